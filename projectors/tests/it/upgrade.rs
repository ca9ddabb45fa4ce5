//! Processes of two versions on one database, before, during and after a migration.

use std::iter::zip;

use futures::{FutureExt, future::BoxFuture};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool};
use vidlog_events::{Event, LikeEvent, Stream};
use vidlog_projectors::{
    log::{Partition, Record},
    projections,
    rebuild::IfDifferent,
    store::{SharedStore, StoreError, Stores},
    view::{Fold, Projection},
};
use vidlog_schemas::{MIGRATOR, projections as catalogue};
use vidlog_service_kit::mysql;
use vidlog_test_support::Namespace;

use crate::{
    rebuild,
    support::{TestSystem, envelope, liked, until},
};

const PARTITION: Partition = Partition { stream: Stream::Likes, number: 0 };
/// The last migration before the one with counts.
const BEFORE_COUNTS: i64 = 10;
const COUNTS: i64 = 11;
/// The migration that fences projectors without counts.
const FENCE: i64 = 14;

/// The likes of the version without counts.
const EARLIER: Projection = Projection {
    catalogued: catalogue::Projection { format: 1, ..catalogue::LIKES_TABLE },
    fold: Fold::MySql(insert_likes),
};

fn insert_likes<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    async move {
        for record in records {
            if let Event::Like(LikeEvent::VideoLiked(liked)) = &record.envelope.event {
                sqlx::query("INSERT INTO likes (video_id, user_id, author_id, liked_ms) VALUES (?, ?, ?, 0)")
                    .bind(liked.video_id.get())
                    .bind(liked.user_id.get())
                    .bind(liked.author_id.get())
                    .execute(&mut *connection)
                    .await?;
            }
        }
        Ok(())
    }
    .boxed()
}

/// Folds a like of video 1 by the user of the same number as the record.
async fn fold(store: &SharedStore, offset: i64) -> Result<(), StoreError> {
    let mut position = store.positions(&[PARTITION]).await?.remove(0);
    assert_eq!(position.lowest(), offset);
    let record = Record { offset, envelope: envelope(liked(1, offset + 1), 0) };
    store.apply(PARTITION, &mut position, &[record], offset + 1).await
}

async fn count(pool: &MySqlPool, select: &'static str) -> i64 {
    sqlx::query_scalar(select).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn earlier_projector_is_fenced_by_the_migration() {
    let Namespace { stores, keys, redis, mysql } = Namespace::create().await;
    MIGRATOR.run_to(FENCE - 1, &mysql).await.unwrap();
    let target = Stores { keys, redis, mysql: mysql.clone() };
    let earlier = target.view(EARLIER);
    fold(&earlier, 0).await.unwrap();

    // A batch of the earlier version, during which the migration begins.
    let mut transaction = mysql.begin().await.unwrap();
    for statement in [
        "SELECT next_offset FROM checkpoints_likes_table FOR UPDATE",
        "INSERT INTO likes (video_id, user_id, author_id, liked_ms) VALUES (1, 2, 101, 0)",
        "UPDATE checkpoints_likes_table SET next_offset = 2",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    }
    let pool = mysql.clone();
    let migration = tokio::spawn(async move { mysql::migrate(&pool, &MIGRATOR).await });
    until("the migration waits for the batch", async || {
        let waiting = "SELECT COUNT(*) FROM information_schema.processlist
                       WHERE db = ? AND state LIKE 'Waiting for table metadata lock%'";
        let waiting = sqlx::query_scalar(waiting).bind(&stores.namespace).fetch_one(&mysql).await;
        waiting.unwrap_or(0_i64) == 1
    })
    .await;
    transaction.commit().await.unwrap();
    migration.await.unwrap().unwrap();

    let fenced = earlier.positions(&[PARTITION]).await.unwrap_err();
    assert_eq!(fenced.reason(), "MySQL error 1146: table or database missing");
    let counts = "SELECT like_count FROM video_like_counts WHERE video_id = 1";
    let likes = "SELECT COUNT(*) FROM likes";
    assert_eq!((count(&mysql, likes).await, count(&mysql, counts).await), (2, 2));

    // A zombie that read its position before the migration.
    let current = target.view(projections::find("likes-table").unwrap());
    let mut zombie = current.positions(&[PARTITION]).await.unwrap().remove(0);
    let record = Record { offset: 2, envelope: envelope(liked(1, 3), 0) };
    let fenced = earlier.apply(PARTITION, &mut zombie, &[record], 3).await.unwrap_err();
    assert!(matches!(fenced, StoreError::Retry(_)), "{fenced:?}");
    fold(&current, 2).await.unwrap();
    assert_eq!((count(&mysql, likes).await, count(&mysql, counts).await), (3, 3));
}

#[tokio::test]
async fn interrupted_migration_of_counts_runs_again() {
    let mysql = Namespace::create().await.mysql;
    MIGRATOR.run_to(BEFORE_COUNTS, &mysql).await.unwrap();
    for statement in [
        "INSERT INTO users VALUES (1, 'a', 0), (2, 'b', 0)",
        "INSERT INTO videos VALUES (1, 1, 't', 1, 0, 0, '', '', ''), (2, 1, 't', 0, 0, 0, '', '', '')",
        "INSERT INTO likes VALUES (1, 1, 1, 0), (1, 2, 1, 0)",
        "INSERT INTO follows VALUES (2, 1, 0)",
        "INSERT INTO comments VALUES (1, 1, 2, '', 0, FALSE), (1, 2, 2, '', 0, TRUE)",
        "INSERT INTO checkpoints_likes_table VALUES ('likes', 0, '', 7)",
    ] {
        sqlx::query(statement).execute(&mysql).await.unwrap();
    }
    for version in [COUNTS, FENCE] {
        MIGRATOR.run_to(version - 1, &mysql).await.unwrap();
        interrupt_everywhere(&mysql, version).await;
    }
}

/// Interrupts a migration after each of its statements, and runs it again.
async fn interrupt_everywhere(mysql: &MySqlPool, version: i64) {
    let statements = statements_of(version);
    for interrupted_after in 0..=statements.len() {
        let mut connection = mysql.acquire().await.unwrap().detach();
        for statement in &statements[..interrupted_after] {
            sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await.unwrap();
        }
        if version == FENCE {
            let favorited =
                "SELECT CAST(COALESCE(SUM(total_favorited), 0) AS SIGNED) FROM user_stats WHERE user_id = 1";
            assert_eq!(
                count(mysql, favorited).await,
                2,
                "readers see counts after {interrupted_after} statements of {version}"
            );
        }
        // Ends the transaction of the interrupted migration.
        connection.close().await.unwrap();
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (?, 'interrupted', FALSE, '', 0)",
        )
        .bind(version)
        .execute(mysql)
        .await
        .unwrap();
        mysql::migrate(mysql, &MIGRATOR).await.unwrap();

        let video = "SELECT like_count * 10 + comment_count FROM video_stats WHERE video_id = 1";
        assert_eq!(
            count(mysql, video).await,
            21,
            "interrupted after {interrupted_after} statements of {version}"
        );
        let counts = ["total_favorited", "favorite_count", "follower_count", "work_count", "upload_count"];
        for (counted, expected) in zip(counts, [2, 1, 1, 1, 2]) {
            let select = format!("SELECT {counted} FROM user_stats WHERE user_id = 1");
            let stored: i64 = sqlx::query_scalar(AssertSqlSafe(select)).fetch_one(mysql).await.unwrap();
            assert_eq!(
                stored, expected,
                "{counted}, interrupted after {interrupted_after} statements of {version}"
            );
        }
        let checkpoint = "SELECT next_offset FROM checkpoints_likes_table_2";
        assert_eq!(count(mysql, checkpoint).await, 7);
        undo(mysql, version).await;
    }
}

/// The statements of a migration.
fn statements_of(version: i64) -> Vec<String> {
    let migration = MIGRATOR.iter().find(|migration| migration.version == version).unwrap();
    let is_code = |line: &&str| !line.starts_with("--");
    let code: Vec<&str> = migration.sql.as_str().lines().filter(is_code).collect();
    code.join("\n").split(';').map(|sql| sql.trim().to_owned()).filter(|sql| !sql.is_empty()).collect()
}

/// Undoes the migrations from that with counts, or from the fence.
async fn undo(mysql: &MySqlPool, version: i64) {
    for name in ["likes", "follows", "comments", "videos"] {
        let rename = format!("RENAME TABLE checkpoints_{name}_table_2 TO checkpoints_{name}_table");
        sqlx::query(AssertSqlSafe(rename)).execute(mysql).await.unwrap();
    }
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version >= ?")
        .bind(version)
        .execute(mysql)
        .await
        .unwrap();
    if version == FENCE {
        // A row that an earlier projector wrote without its count.
        sqlx::query("UPDATE video_like_counts SET like_count = 0").execute(mysql).await.unwrap();
        return;
    }
    for statement in [
        "DROP VIEW video_stats, user_stats",
        "DROP TABLE video_like_counts, user_like_counts, user_follow_counts, video_comment_counts, user_work_counts",
        "ALTER TABLE follows DROP KEY by_follower",
        "ALTER TABLE videos DROP KEY works",
    ] {
        sqlx::query(statement).execute(mysql).await.unwrap();
    }
}

#[tokio::test]
async fn program_starts_after_a_later_migration() {
    let mysql = Namespace::create().await.mysql;
    mysql::migrate(&mysql, &MIGRATOR).await.unwrap();
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'later', TRUE, '', 0)",
    )
    .execute(&mysql)
    .await
    .unwrap();
    mysql::migrate(&mysql, &MIGRATOR).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_that_an_earlier_version_began_is_refused() {
    let system = TestSystem::new().await;
    let namespace = &system.stores.namespace;
    let next = format!("{namespace}_next_likes_table");
    for statement in [
        format!("CREATE DATABASE {next}"),
        format!("CREATE TABLE {next}.likes LIKE {namespace}.likes"),
        format!("CREATE TABLE {next}.checkpoints_likes_table LIKE {namespace}.checkpoints_likes_table_2"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&system.target.mysql).await.unwrap();
    }
    let begin = || rebuild::begin(&system, "likes-table");
    let refused = begin().await.run(IfDifferent::TakeOver).await.unwrap_err();
    assert!(format!("{refused:#}").contains("a rebuild of another version"), "{refused:#}");
    begin().await.drop_next().await.unwrap();
    begin().await.run(IfDifferent::TakeOver).await.unwrap();
}
