//! Rebuilds of views while the old generations serve reads.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redis::cmd;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use vidlog_events::{Envelope, Stream, Topics};
use vidlog_projectors::{
    dead_letters::{DeadLetterQueue, Outcome as Retried, Retry},
    desired_state,
    log::{Log, Partition, Record},
    projections,
    rebuild::{IfDifferent, MAX_DIFFERENCES, Outcome, Progress, Rebuild},
    view::Projection,
};
use vidlog_schemas::keys::ViewKey;

use crate::{
    audit::{MANY_MEMBERS, plant_members},
    support::{DEADLINE, Running, TestSystem, envelope, liked, partition_of, random_history, until},
};

/// Views of each store, and one with totals across shards.
const REBUILT: [&str; 4] = ["likes", "feed", "likes-table", "messages-table"];
const BEING_REBUILT: &str = "is being rebuilt, or its dead letters retried, by another process";
const COMPARING: fn(&Progress) -> bool = |now| matches!(now, Progress::Comparing { .. });
/// Likes that fill more than a few pages, of a thousand rows or keys each.
const MANY: i64 = 3500;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

fn projection(name: &str) -> Projection {
    projections::find(name).unwrap()
}

/// Begins a rebuild once the server has released the lock of the previous one.
pub(crate) async fn begin(system: &TestSystem, name: &str) -> Rebuild {
    let free = async {
        loop {
            match Rebuild::begin(&system.log, &system.stores, projection(name)).await {
                Ok(begun) => return begun,
                Err(error) if error.to_string().contains(BEING_REBUILT) => sleep(POLL_INTERVAL).await,
                Err(error) => panic!("{error:#}"),
            }
        }
    };
    timeout(Duration::from_mins(3), free).await.expect("the lock is released in time")
}

async fn rebuild(system: &TestSystem, name: &str, if_different: IfDifferent) -> Outcome {
    begin(system, name).await.run(if_different).await.unwrap()
}

/// Returns keys of generations that are not live, and databases other than the live one.
async fn left_behind(system: &TestSystem, name: &str) -> Vec<String> {
    let catalogued = projection(name).catalogued;
    let keys: Vec<String> =
        system.target.redis.query(cmd("KEYS").arg(format!("{}:*", system.stores.namespace))).await.unwrap();
    let live = desired_state::read(&system.target.mysql).await.unwrap();
    let live = live.get(name).map_or(1, |desired| desired.generation);
    let is_left = |key: &String| ViewKey::generation_of(key, &catalogued).is_some_and(|found| found != live);
    let databases: Vec<String> =
        sqlx::query_scalar("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE ?")
            .bind(format!("{}\\_%", system.stores.namespace))
            .fetch_all(&system.target.mysql)
            .await
            .unwrap();
    keys.into_iter().filter(is_left).chain(databases).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_rebuilt_while_records_arrive() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    let events = random_history(3000);
    let (first, rest) = events.split_at(events.len() / 2);
    system.append(first).await;
    system.assert_views_equal_the_log().await;

    let ended = AtomicBool::new(false);
    let flowing = async {
        for chunk in rest.chunks(10).cycle() {
            system.append(chunk).await;
            if ended.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    let rebuilding = async {
        let outcomes =
            futures::future::join_all(REBUILT.map(|name| rebuild(&system, name, IfDifferent::Keep))).await;
        ended.store(true, Ordering::Relaxed);
        outcomes
    };
    let (outcomes, ()) = tokio::join!(rebuilding, flowing);
    for (name, outcome) in REBUILT.iter().zip(outcomes) {
        assert!(outcome.differences.is_empty(), "{name}: {:#?}", outcome.differences);
        assert!(outcome.lines > 0, "{name}");
        assert_eq!(outcome.generation, (1, 2), "{name}");
        assert_eq!(left_behind(&system, name).await, Vec::<String>::new(), "{name}");
    }
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_finds_and_replaces_a_wrong_view() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(40)).await;
    system.assert_views_equal_the_log().await;
    let spoil = cmd("SREM").arg(system.target.keys.likers(1)).arg(7).take();
    let _: i64 = system.target.redis.query(&spoil).await.unwrap();
    sqlx::query("DELETE FROM likes WHERE user_id = 8").execute(&system.target.mysql).await.unwrap();

    for name in ["likes", "likes-table"] {
        let outcome = rebuild(&system, name, IfDifferent::Keep).await;
        assert_eq!(outcome.differences.len(), 1, "{name}: {:#?}", outcome.differences);
        assert_eq!(outcome.generation, (1, 1), "{name} stays as it is");
        let outcome = rebuild(&system, name, IfDifferent::TakeOver).await;
        assert_eq!((outcome.differences.len(), outcome.generation), (1, (1, 2)), "{name}");
    }
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

/// The differences by name, without the contents of either side.
fn kinds(outcome: &Outcome) -> BTreeMap<String, &'static str> {
    let differences = outcome.differences.iter();
    let what = differences.map(|difference| match (&difference.expected, &difference.found) {
        (Some(_), Some(_)) => (difference.name.clone(), "wrong"),
        (Some(_), None) => (difference.name.clone(), "missing"),
        _ => (difference.name.clone(), "superfluous"),
    });
    what.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_difference_in_a_large_view_is_listed() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(MANY)).await;
    system.assert_views_equal_the_log().await;

    // All likes are of video 1, so that rows lie in the order of users, a thousand a page.
    let missing = [1, 999, 1000, 1001, 2000, 2500, MANY];
    let wrong = [2, 998, 1002, 1999, 2001, 3000, 3001, MANY - 1];
    let (mut rows, mut keys) = (BTreeMap::new(), BTreeMap::new());
    for user in missing {
        spoil(
            &system,
            &format!("DELETE FROM likes WHERE user_id = {user}"),
            cmd("DEL").arg(favorites(&system, user)),
        )
        .await;
        rows.insert(format!("likes/1/{user}"), "missing");
        keys.insert(favorites(&system, user), "missing");
    }
    for user in wrong {
        let update = format!("UPDATE likes SET liked_ms = 1 WHERE user_id = {user}");
        spoil(&system, &update, cmd("ZADD").arg(favorites(&system, user)).arg(1).arg(2)).await;
        rows.insert(format!("likes/1/{user}"), "wrong");
        keys.insert(favorites(&system, user), "wrong");
    }
    for (video, user) in [(0, 5), (1, -3), (1, 0), (1, MANY + 1), (2, 7)] {
        let insert = format!("INSERT INTO likes VALUES ({video}, {user}, 100, 1)");
        spoil(&system, &insert, cmd("ZADD").arg(favorites(&system, user + 10_000)).arg(1).arg(video)).await;
        rows.insert(format!("likes/{video}/{user}"), "superfluous");
        keys.insert(favorites(&system, user + 10_000), "superfluous");
    }
    // A key of thousands of members.
    spoil(&system, "DO 0", cmd("SREM").arg(system.target.keys.likers(1)).arg(1500)).await;
    keys.insert(system.target.keys.likers(1).name, "wrong");

    for (name, planted) in [("likes-table", rows), ("likes", keys)] {
        for (if_different, generation) in [(IfDifferent::Keep, 1), (IfDifferent::TakeOver, 2)] {
            let outcome = rebuild(&system, name, if_different).await;
            assert_eq!(kinds(&outcome), planted, "{name}");
            assert_eq!(outcome.generation, (1, generation), "{name}");
            // The counts of each user, of whom one is the author, and of the video. Redis may name a key twice.
            let (lines, is_table) = (i64::try_from(outcome.lines).unwrap(), name == "likes-table");
            assert!(
                if is_table { lines == 2 * MANY + 1 } else { lines >= MANY + 2 },
                "{name}: {lines} lines"
            );
        }
    }
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn comparison_stops_at_the_difference_limit() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(MANY)).await;
    system.assert_views_equal_the_log().await;
    spoil(&system, "UPDATE likes SET author_id = 1", &cmd("PING")).await;
    let zadd = |user| cmd("ZADD").arg(favorites(&system, user)).arg(1).arg(2).take();
    system.target.redis.pipeline(&(1..=MANY).map(zadd).collect::<Vec<_>>()).await.unwrap();

    for name in ["likes-table", "likes"] {
        for (if_different, generation) in [(IfDifferent::Keep, 1), (IfDifferent::TakeOver, 2)] {
            let outcome = rebuild(&system, name, if_different).await;
            assert_eq!(
                (outcome.differences.len(), outcome.generation),
                (MAX_DIFFERENCES, (1, generation)),
                "{name}"
            );
            assert!(outcome.lines < usize::try_from(MANY).unwrap(), "{name}: {} lines", outcome.lines);
        }
    }
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_many_members_is_compared_in_chunks() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(40)).await;
    system.assert_views_equal_the_log().await;
    cut_off_at(&system, "likes", COMPARING).await;
    let keys = &system.target.keys;
    let next = keys.of_generation(&projection("likes").catalogued, 2);
    for key in [keys.likers(1), next.likers(1)] {
        plant_members(&system, &key, MANY_MEMBERS).await;
    }
    let missing = 1_000_000 + MANY_MEMBERS / 2;
    spoil(&system, "DO 0", cmd("SREM").arg(keys.likers(1)).arg(missing)).await;
    let outcome = rebuild(&system, "likes", IfDifferent::Keep).await;
    let [difference] = outcome.differences.as_slice() else { panic!("{:#?}", outcome.differences) };
    let all = MANY_MEMBERS + 40;
    let (expected, found) = (format!("{all} members with {missing}"), format!("{} members", all - 1));
    assert_eq!((&difference.expected, &difference.found), (&Some(expected), &Some(found)));

    spoil(&system, "DO 0", cmd("SADD").arg(keys.likers(1)).arg(missing)).await;
    let outcome = rebuild(&system, "likes", IfDifferent::Keep).await;
    assert_eq!((outcome.differences, outcome.generation), (Vec::new(), (1, 2)));
    running.stop().await;
}

fn favorites(system: &TestSystem, user: i64) -> String {
    system.target.keys.favorites(user).name
}

/// Changes the views in both stores without an event.
async fn spoil(system: &TestSystem, statement: &str, command: &redis::Cmd) {
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&system.target.mysql).await.unwrap();
    let _: redis::Value = system.target.redis.query(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_rebuild_can_be_resumed_or_dropped() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&random_history(3000)).await;
    system.assert_views_equal_the_log().await;
    for name in ["likes", "likes-table"] {
        for phase in [COMPARING, |now| *now == Progress::TakingOver] {
            cut_off_at(&system, name, phase).await;
            system.assert_views_equal_the_log().await;
        }
        assert!(!left_behind(&system, name).await.is_empty(), "{name}");
        begin(&system, name).await.drop_next().await.unwrap();
        assert_eq!(left_behind(&system, name).await, Vec::<String>::new(), "{name}");

        cut_off_at(&system, name, COMPARING).await;
        system.append(&likes(10)).await;
        cut_off_at(&system, name, |now| *now == Progress::Waiting).await;
        system.assert_views_equal_the_log().await;
        assert_eq!(rebuild(&system, name, IfDifferent::Keep).await.generation, (2, 3), "{name}");
        assert_eq!(left_behind(&system, name).await, Vec::<String>::new(), "{name}");
    }
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resumed_rebuild_applies_later_discards() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(10)).await;
    let partition =
        Partition { stream: Stream::Likes, number: system.append_garbage(Stream::Likes, "1").await };
    system.append(&likes(20)).await;
    system.assert_views_equal_the_log().await;
    for name in ["likes", "likes-table"] {
        cut_off_at(&system, name, COMPARING).await;
        let store = system.target.view(projection(name));
        let parked = store.parked().await.unwrap().remove(&partition).unwrap().into_values().next().unwrap();
        let log =
            Log { brokers: system.log.kafka_brokers.clone(), topics: Topics::new(&system.stores.namespace) };
        let retry = Retry::new(store, DeadLetterQueue::new(log));
        let (_, discarded) = retry.discard(partition, parked.first).await.unwrap();
        assert_eq!(discarded, Retried::Folded);

        let outcome = rebuild(&system, name, IfDifferent::Keep).await;
        assert!(outcome.differences.is_empty(), "{name}: {:#?}", outcome.differences);
    }
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writer_that_ignores_the_hold_is_no_difference() {
    let system = TestSystem::new().await;
    let events = likes(300);
    system.append(&events).await;
    let records: Vec<Record> =
        (0..).zip(events).map(|(offset, envelope)| Record { offset, envelope }).collect();
    let (first, rest) = records.split_at(100);
    let partition = Partition { stream: Stream::Likes, number: partition_of("1") };
    let store = system.target.view(projection("likes"));
    let mut position = store.positions(&[partition]).await.unwrap().remove(0);
    store.apply(partition, &mut position, first, 100).await.unwrap();
    store.align(partition, &mut position, 100).await.unwrap();

    let begun = begin(&system, "likes").await;
    let mut progress = begun.progress();
    let deaf = async {
        timeout(DEADLINE, progress.wait_for(|now| *now == Progress::TakingOver)).await.unwrap().unwrap();
        for record in rest {
            let next = record.offset + 1;
            store.apply(partition, &mut position, std::slice::from_ref(record), next).await.unwrap();
            store.align(partition, &mut position, next).await.unwrap();
        }
    };
    let (outcome, ()) = tokio::join!(begun.run(IfDifferent::Keep), deaf);
    let outcome = outcome.unwrap();
    assert!(outcome.differences.is_empty(), "{:#?}", outcome.differences);
    assert_eq!(outcome.generation, (1, 2));
}

/// Begins a rebuild, and cancels it in a phase.
async fn cut_off_at(system: &TestSystem, name: &str, is_reached: fn(&Progress) -> bool) {
    let begun = begin(system, name).await;
    let mut progress = begun.progress();
    let task: JoinHandle<_> = tokio::spawn(begun.run(IfDifferent::Keep));
    let reached = progress.wait_for(is_reached);
    timeout(Duration::from_mins(3), reached).await.expect("the phase is reached").unwrap();
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_rebuild_of_a_view_is_rejected() {
    let system = TestSystem::new().await;
    let first = begin(&system, "likes").await;
    let second = Rebuild::begin(&system.log, &system.stores, projection("likes")).await;
    assert!(second.is_err_and(|error| error.to_string().contains(BEING_REBUILT)));
    drop(first);
    begin(&system, "likes").await;
}

#[tokio::test]
async fn only_the_owner_can_end_a_hold() {
    let system = TestSystem::new().await;
    let (pool, likes) = (&system.target.mysql, projection("likes"));
    let is_held =
        async || desired_state::read(pool).await.unwrap()["likes"].run_state == desired_state::RunState::Hold;
    let minutes = Duration::from_mins;
    let audits = desired_state::hold(pool, &likes, minutes(10)).await.unwrap();
    let rebuilds = desired_state::hold(pool, &likes, minutes(20)).await.unwrap();
    desired_state::end_hold(pool, &likes, audits).await.unwrap();
    assert!(is_held().await, "the hold of the other owner remains");
    assert_eq!(desired_state::extend_hold(pool, &likes, audits, minutes(30)).await.unwrap(), None);
    let prolonged = desired_state::extend_hold(pool, &likes, rebuilds, minutes(30)).await.unwrap().unwrap();
    assert!(prolonged > rebuilds);
    desired_state::end_hold(pool, &likes, prolonged).await.unwrap();
    assert!(!is_held().await);
    assert_eq!(desired_state::extend_hold(pool, &likes, prolonged, minutes(30)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_renamed_only_during_an_owned_hold() {
    let system = TestSystem::new().await;
    let (pool, likes) = (&system.target.mysql, projection("likes-table"));
    let minute = Duration::from_mins(1);
    let rename = async |from_ms: i64| {
        let prolonged = (from_ms, from_ms + 1);
        desired_state::rename_while_held(pool, &likes, prolonged, "likes TO elsewhere").await.unwrap()
    };
    assert!(!rename(0).await, "nothing was ever held");
    let ended = desired_state::hold(pool, &likes, Duration::ZERO).await.unwrap();
    assert!(!rename(ended).await, "the hold has ended");
    let of_another = desired_state::hold(pool, &projection("likes"), minute).await.unwrap();
    assert!(!rename(of_another).await, "another projection is held");
    let held = desired_state::hold(pool, &likes, minute).await.unwrap();
    assert!(!rename(held - 1).await, "the hold of another owner");
    let mut reading = pool.begin().await.unwrap();
    sqlx::query("SELECT * FROM likes").fetch_all(&mut *reading).await.unwrap();
    assert!(!rename(held).await, "a transaction reads the table");
    reading.rollback().await.unwrap();
    assert!(!rename(held).await, "the hold was extended");
    assert!(rename(held + 1).await);
    sqlx::query("SELECT * FROM elsewhere").fetch_all(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_connection_is_kept_alive() {
    let system = TestSystem::new().await;
    let _begun = begin(&system, "likes").await;
    // The server closes silent connections, which would abort a long rebuild before its cutover.
    let silent_for = async || -> i64 {
        sqlx::query_scalar(
            "SELECT CAST(time AS SIGNED) FROM information_schema.processlist
             WHERE id = IS_USED_LOCK(SHA1(CONCAT('view ', DATABASE(), ' likes')))",
        )
        .fetch_one(&system.target.mysql)
        .await
        .unwrap()
    };
    until("the connection is silent", async || silent_for().await >= 2).await;
    until("the connection is used", async || silent_for().await < 2).await;
}

fn likes(count: i64) -> Vec<Envelope> {
    (1..=count).map(|user| envelope(liked(1, user), 1_700_000_000_000 + user)).collect()
}
