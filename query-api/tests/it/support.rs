//! The query side in one namespace per test. Tests fill the read models themselves, in place of projectors.

mod waits;

use std::{ops::Deref, sync::Arc};

use object_store::memory::InMemory;
use redis::{Cmd, cmd};
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::sync::Semaphore;
use vidlog_contract::Tokens;
use vidlog_query_api::{QueryState, router};
use vidlog_rate_limits::{RateLimitConfig, RateLimiter};
use vidlog_read_models::{MediaUrls, Position, ReadModels};
use vidlog_redis_shards::Redis;
use vidlog_schemas::{
    keys::{feed_week_of, partition_field, top_score},
    projections::{self, Projection},
    rows::VideoState,
};
use vidlog_service_kit::{clock::Clock, mysql};
use vidlog_test_support::{Namespace, api::ids};

pub(crate) use self::waits::Waits;
pub(crate) use vidlog_test_support::{Answer, Api, UNREACHABLE_MYSQL, UNREACHABLE_REDIS};

/// The time of everything in the read models, in milliseconds.
pub(crate) const NOW: i64 = 1_700_000_000_000;

/// Read models that a test fills.
pub(crate) struct World {
    pub(crate) clock: Clock,
    namespace: Namespace,
}

/// A video to add.
#[derive(Clone, Copy)]
struct Video {
    id: i64,
    author: i64,
    state: VideoState,
    published_ms: i64,
}

/// The API over any state.
pub(crate) fn api_over(state: QueryState) -> Api {
    let tokens = state.tokens.clone();
    Api::new(router(state), tokens)
}

impl Deref for World {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::in_namespace(Namespace::create().await).await
    }

    /// Read models whose views are in another Redis.
    pub(crate) async fn on_redis(url: String) -> Self {
        Self::in_namespace(Namespace::create_on_redis(url).await).await
    }

    async fn in_namespace(namespace: Namespace) -> Self {
        namespace.migrate().await;
        let world = Self { clock: Clock::fixed(NOW), namespace };
        for projection in projections::ALL {
            world.complete(projection, 1).await;
        }
        world
    }

    /// Marks a view as complete, with a live generation.
    pub(crate) async fn complete(&self, projection: &Projection, generation: u32) {
        let key = self.keys.generations();
        self.do_all(&[cmd("HSET").arg(key).arg(projection.name).arg(generation).take()]).await;
    }

    /// Marks a view as incomplete.
    pub(crate) async fn incomplete(&self, projection: &Projection) {
        self.do_all(&[cmd("HDEL").arg(self.keys.generations()).arg(projection.name).take()]).await;
    }

    pub(crate) fn api(&self) -> Api {
        api_over(self.state())
    }

    pub(crate) fn api_without_redis(&self) -> Api {
        api_over(self.state_over(Redis::open(UNREACHABLE_REDIS).unwrap(), self.mysql.clone()))
    }

    pub(crate) fn api_without_mysql(&self) -> Api {
        api_over(self.state_over(self.redis.clone(), mysql::open(UNREACHABLE_MYSQL, 4).unwrap()))
    }

    pub(crate) fn state(&self) -> QueryState {
        self.state_over(self.redis.clone(), self.mysql.clone())
    }

    pub(crate) fn state_over(&self, redis: Redis, mysql: MySqlPool) -> QueryState {
        let clock = self.clock.clone();
        // Keys of another process, which does not share the test's generations.
        let keys = self.keys.of_generation(&projections::FEED, self.keys.generation(&projections::FEED));
        let models = ReadModels::new(keys, redis, mysql, MediaUrls::new("http://media"));
        QueryState {
            limits: RateLimiter::new(RateLimitConfig::default(), &models),
            models,
            tokens: Tokens::parse("a:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", move || clock.now_ms())
                .unwrap(),
            clock: self.clock.clone(),
            objects: Arc::new(InMemory::new()),
            request_permits: Arc::new(Semaphore::new(64)),
        }
    }

    pub(crate) async fn user(&self, id: i64) {
        let name = format!("user {id}");
        self.do_all(&[cmd("HSET").arg(self.keys.user_card(id)).arg("name").arg(&name).take()]).await;
        let insert = sqlx::query("INSERT INTO users VALUES (?, ?, ?)").bind(id).bind(name).bind(NOW);
        insert.execute(&self.mysql).await.unwrap();
    }

    pub(crate) async fn users(&self, ids: impl IntoIterator<Item = i64>) {
        for id in ids {
            self.user(id).await;
        }
    }

    /// Adds a published video.
    pub(crate) async fn published(&self, id: i64, author: i64, published_ms: i64) {
        self.video(Video { id, author, state: VideoState::Published, published_ms }).await;
    }

    /// Adds a video that is being processed or was rejected.
    pub(crate) async fn unpublished(&self, id: i64, author: i64, state: VideoState) {
        self.video(Video { id, author, state, published_ms: 0 }).await;
    }

    async fn video(&self, video: Video) {
        self.do_all(&self.video_commands(video)).await;
        let is_published = video.state == VideoState::Published;
        let key = |kind| if is_published { format!("{kind}/{}", video.id) } else { String::new() };
        sqlx::query("INSERT INTO videos VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(video.id)
            .bind(video.author)
            .bind(format!("video {}", video.id))
            .bind(video.state.number())
            .bind(NOW)
            .bind(video.published_ms)
            .bind(key("play"))
            .bind(key("cover"))
            .bind(reason(video.state))
            .execute(&self.mysql)
            .await
            .unwrap();
        self.count("user_work_counts", video.author, "upload_count", 1).await;
        self.count("user_work_counts", video.author, "work_count", i64::from(is_published)).await;
    }

    fn video_commands(&self, video: Video) -> Vec<Cmd> {
        let Video { id, author, state, published_ms } = video;
        let mut card = cmd("HSET");
        card.arg(self.keys.video_card(id)).arg("author").arg(author).arg("title").arg(format!("video {id}"));
        card.arg("state").arg(state.number());
        let mut commands = vec![cmd("ZADD").arg(self.keys.uploads(author)).arg(id).arg(id).take()];
        if state == VideoState::Published {
            card.arg("play_key").arg(format!("play/{id}")).arg("cover_key").arg(format!("cover/{id}"));
            card.arg("published_ms").arg(published_ms);
            let week = feed_week_of(published_ms);
            commands.extend([
                cmd("ZADD").arg(self.keys.works(author)).arg(id).arg(id).take(),
                cmd("ZADD").arg(self.keys.feed_week(week)).arg(published_ms).arg(id).take(),
                cmd("ZADD").arg(self.keys.feed_weeks()).arg(week).arg(week).take(),
                cmd("ZADD").arg(self.keys.top_of_video(id)).arg(top_score(week, 0)).arg(id).take(),
            ]);
        }
        card.arg("reason").arg(reason(state));
        commands.push(card);
        commands
    }

    pub(crate) async fn like(&self, user: i64, (video, author): (i64, i64), liked_ms: i64) {
        self.do_all(&[
            cmd("SADD").arg(self.keys.likers(video)).arg(user).take(),
            cmd("ZADD").arg(self.keys.favorites(user)).arg(liked_ms).arg(video).take(),
            cmd("HINCRBY").arg(self.keys.favorited(author)).arg(video).arg(1).take(),
            cmd("HINCRBY").arg(self.keys.favorited(author)).arg("total").arg(1).take(),
            cmd("ZINCRBY").arg(self.keys.top_of_video(video)).arg(1).arg(video).take(),
        ])
        .await;
        let insert = sqlx::query("INSERT INTO likes VALUES (?, ?, ?, ?)").bind(video).bind(user);
        insert.bind(author).bind(liked_ms).execute(&self.mysql).await.unwrap();
        self.count("video_like_counts", video, "like_count", 1).await;
        self.count("user_like_counts", author, "total_favorited", 1).await;
        self.count("user_like_counts", user, "favorite_count", 1).await;
    }

    pub(crate) async fn follow(&self, follower: i64, followee: i64, followed_ms: i64) {
        self.do_all(&[
            cmd("ZADD").arg(self.keys.following(follower)).arg(followed_ms).arg(followee).take(),
            cmd("ZADD").arg(self.keys.followers(followee)).arg(followed_ms).arg(follower).take(),
        ])
        .await;
        let insert = sqlx::query("INSERT INTO follows VALUES (?, ?, ?)").bind(follower).bind(followee);
        insert.bind(followed_ms).execute(&self.mysql).await.unwrap();
        self.count("user_follow_counts", follower, "follow_count", 1).await;
        self.count("user_follow_counts", followee, "follower_count", 1).await;
    }

    pub(crate) async fn unfollow(&self, follower: i64, followee: i64) {
        self.do_all(&[
            cmd("ZREM").arg(self.keys.following(follower)).arg(followee).take(),
            cmd("ZREM").arg(self.keys.followers(followee)).arg(follower).take(),
        ])
        .await;
        let delete = sqlx::query("DELETE FROM follows WHERE follower_id = ? AND followee_id = ?");
        delete.bind(follower).bind(followee).execute(&self.mysql).await.unwrap();
        self.count("user_follow_counts", follower, "follow_count", -1).await;
        self.count("user_follow_counts", followee, "follower_count", -1).await;
    }

    pub(crate) async fn comment(&self, id: i64, video: i64, user: i64) {
        self.do_all(&[cmd("SADD").arg(self.keys.comments(video)).arg(id).take()]).await;
        let insert = sqlx::query("INSERT INTO comments VALUES (?, ?, ?, ?, ?, FALSE)").bind(video).bind(id);
        insert.bind(user).bind(format!("comment {id}")).bind(NOW).execute(&self.mysql).await.unwrap();
        self.count("video_comment_counts", video, "comment_count", 1).await;
    }

    pub(crate) async fn delete_comment(&self, id: i64, video: i64) {
        self.do_all(&[cmd("SREM").arg(self.keys.comments(video)).arg(id).take()]).await;
        let update = sqlx::query("UPDATE comments SET deleted = TRUE, text = '' WHERE comment_id = ?");
        update.bind(id).execute(&self.mysql).await.unwrap();
        self.count("video_comment_counts", video, "comment_count", -1).await;
    }

    /// Adds to a count in MySQL.
    async fn count(&self, table: &str, id: i64, column: &str, by: i64) {
        let key = if table.starts_with("video") { "video_id" } else { "user_id" };
        let add = format!(
            "INSERT INTO {table} ({key}, {column}) VALUES (?, ?)
             ON DUPLICATE KEY UPDATE {column} = {column} + VALUES({column})"
        );
        sqlx::query(AssertSqlSafe(add)).bind(id).bind(by).execute(&self.mysql).await.unwrap();
    }

    /// Adds a message. Between users 1 and 2 its id is its time; the ids of other conversations do not collide with those.
    pub(crate) async fn message(&self, from: i64, to: i64, create_ms: i64) {
        let (low, high, text) = (from.min(to), from.max(to), format!("message {create_ms}"));
        let id = create_ms + (high - 2) * 1_000_000_000_000;
        let insert = sqlx::query("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)").bind(low).bind(high);
        let insert = insert.bind(create_ms).bind(id).bind(from).bind(to).bind(&text);
        insert.execute(&self.mysql).await.unwrap();
        let replace =
            sqlx::query("REPLACE INTO conversations VALUES (?, ?, ?, ?, ?, ?)").bind(low).bind(high);
        let replace = replace.bind(id).bind(from).bind(text).bind(create_ms);
        replace.execute(&self.mysql).await.unwrap();
    }

    /// Records a position that a command was answered with, without a mark of a scope.
    pub(crate) async fn issue(&self, position: Position) {
        self.state().models.freshness.record(&[], position).await.unwrap();
    }

    /// Publishes a projection's progress in a partition.
    pub(crate) async fn progress(&self, projection: &str, stream: &str, partition: i32, next_offset: i64) {
        let field = partition_field(stream, partition);
        let projection = projections::ALL.iter().find(|known| known.name == projection).unwrap();
        self.do_all(&[cmd("HSET").arg(self.keys.progress(projection)).arg(field).arg(next_offset).take()])
            .await;
    }

    pub(crate) async fn do_all(&self, commands: &[Cmd]) {
        self.redis.pipeline(commands).await.unwrap();
    }
}

fn reason(state: VideoState) -> &'static str {
    if state == VideoState::Rejected { "it is no video" } else { "" }
}

/// Collects every id of a list, page by page; runs `between` after each page.
pub(crate) async fn all_pages(
    list: &str,
    mut page: impl AsyncFnMut(Option<String>) -> Answer,
    mut between: impl AsyncFnMut(),
) -> Vec<i64> {
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let body = page(cursor.take()).await.even_if_stale();
        all.extend(ids(&body, list));
        cursor = body["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return all;
        }
        between().await;
    }
}
