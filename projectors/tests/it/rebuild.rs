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
    rebuild::{ENOUGH, IfDifferent, Outcome, Progress, Rebuild},
    view::Projection,
};
use vidlog_schemas::keys::ViewKey;

use crate::{
    audit::{MANY_MEMBERS, plant_members},
    support::{DEADLINE, Running, World, envelope, liked, made_up, partition_of, until},
};

/// Views of each store, and one with totals across shards.
const REBUILT: [&str; 4] = ["likes", "feed", "likes-table", "messages-table"];
const BEING_REBUILT: &str = "is being rebuilt, or its dead letters retried, by another process";
const COMPARING: fn(&Progress) -> bool = |now| matches!(now, Progress::Comparing { .. });
/// Likes that fill more than a few pages, of a thousand rows or keys each.
const MANY: i64 = 3500;
const LOOK: Duration = Duration::from_millis(20);

fn projection(name: &str) -> Projection {
    projections::find(name).unwrap()
}

/// Begins a rebuild once the server has released the lock of the previous one.
async fn begin(world: &World, name: &str) -> Rebuild {
    let free = async {
        loop {
            match Rebuild::begin(&world.log, &world.stores, projection(name)).await {
                Ok(begun) => return begun,
                Err(error) if error.to_string().contains(BEING_REBUILT) => sleep(LOOK).await,
                Err(error) => panic!("{error:#}"),
            }
        }
    };
    timeout(Duration::from_mins(3), free).await.expect("the lock is released in time")
}

async fn rebuild(world: &World, name: &str, if_different: IfDifferent) -> Outcome {
    begin(world, name).await.run(if_different).await.unwrap()
}

/// Returns keys of generations that are not live, and databases other than the live one.
async fn left_behind(world: &World, name: &str) -> Vec<String> {
    let catalogued = projection(name).catalogued;
    let keys: Vec<String> =
        world.target.redis.query(cmd("KEYS").arg(format!("{}:*", world.stores.namespace))).await.unwrap();
    let live = desired_state::read(&world.target.mysql).await.unwrap();
    let live = live.get(name).map_or(1, |wanted| wanted.generation);
    let is_left = |key: &String| ViewKey::generation_of(key, &catalogued).is_some_and(|found| found != live);
    let databases: Vec<String> =
        sqlx::query_scalar("SELECT schema_name FROM information_schema.schemata WHERE schema_name LIKE ?")
            .bind(format!("{}\\_%", world.stores.namespace))
            .fetch_all(&world.target.mysql)
            .await
            .unwrap();
    keys.into_iter().filter(is_left).chain(databases).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn views_are_rebuilt_while_records_arrive() {
    let world = World::new().await;
    let running = Running::start(&world);
    let events = made_up(3000);
    let (first, rest) = events.split_at(events.len() / 2);
    world.append(first).await;
    world.assert_views_equal_the_log().await;

    let ended = AtomicBool::new(false);
    let flowing = async {
        for chunk in rest.chunks(10).cycle() {
            world.append(chunk).await;
            if ended.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    let rebuilding = async {
        let outcomes =
            futures::future::join_all(REBUILT.map(|name| rebuild(&world, name, IfDifferent::Keep))).await;
        ended.store(true, Ordering::Relaxed);
        outcomes
    };
    let (outcomes, ()) = tokio::join!(rebuilding, flowing);
    for (name, outcome) in REBUILT.iter().zip(outcomes) {
        assert!(outcome.differences.is_empty(), "{name}: {:#?}", outcome.differences);
        assert!(outcome.lines > 0, "{name}");
        assert_eq!(outcome.generation, (1, 2), "{name}");
        assert_eq!(left_behind(&world, name).await, Vec::<String>::new(), "{name}");
    }
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuild_finds_and_replaces_a_wrong_view() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(40)).await;
    world.assert_views_equal_the_log().await;
    let spoil = cmd("SREM").arg(world.target.keys.likers(1)).arg(7).take();
    let _: i64 = world.target.redis.query(&spoil).await.unwrap();
    sqlx::query("DELETE FROM likes WHERE user_id = 8").execute(&world.target.mysql).await.unwrap();

    for name in ["likes", "likes-table"] {
        let outcome = rebuild(&world, name, IfDifferent::Keep).await;
        assert_eq!(outcome.differences.len(), 1, "{name}: {:#?}", outcome.differences);
        assert_eq!(outcome.generation, (1, 1), "{name} stays as it is");
        let outcome = rebuild(&world, name, IfDifferent::TakeOver).await;
        assert_eq!((outcome.differences.len(), outcome.generation), (1, (1, 2)), "{name}");
    }
    world.assert_views_equal_the_log().await;
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
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(MANY)).await;
    world.assert_views_equal_the_log().await;

    // All likes are of video 1, so that rows lie in the order of users, a thousand a page.
    let missing = [1, 999, 1000, 1001, 2000, 2500, MANY];
    let wrong = [2, 998, 1002, 1999, 2001, 3000, 3001, MANY - 1];
    let (mut rows, mut keys) = (BTreeMap::new(), BTreeMap::new());
    for user in missing {
        spoil(
            &world,
            &format!("DELETE FROM likes WHERE user_id = {user}"),
            cmd("DEL").arg(favorites(&world, user)),
        )
        .await;
        rows.insert(format!("likes/1/{user}"), "missing");
        keys.insert(favorites(&world, user), "missing");
    }
    for user in wrong {
        let update = format!("UPDATE likes SET liked_ms = 1 WHERE user_id = {user}");
        spoil(&world, &update, cmd("ZADD").arg(favorites(&world, user)).arg(1).arg(2)).await;
        rows.insert(format!("likes/1/{user}"), "wrong");
        keys.insert(favorites(&world, user), "wrong");
    }
    for (video, user) in [(0, 5), (1, -3), (1, 0), (1, MANY + 1), (2, 7)] {
        let insert = format!("INSERT INTO likes VALUES ({video}, {user}, 100, 1)");
        spoil(&world, &insert, cmd("ZADD").arg(favorites(&world, user + 10_000)).arg(1).arg(video)).await;
        rows.insert(format!("likes/{video}/{user}"), "superfluous");
        keys.insert(favorites(&world, user + 10_000), "superfluous");
    }
    // A key of thousands of members.
    spoil(&world, "DO 0", cmd("SREM").arg(world.target.keys.likers(1)).arg(1500)).await;
    keys.insert(world.target.keys.likers(1).name, "wrong");

    for (name, planted) in [("likes-table", rows), ("likes", keys)] {
        for (if_different, generation) in [(IfDifferent::Keep, 1), (IfDifferent::TakeOver, 2)] {
            let outcome = rebuild(&world, name, if_different).await;
            assert_eq!(kinds(&outcome), planted, "{name}");
            assert_eq!(outcome.generation, (1, generation), "{name}");
            // One of the video and one of its author. Redis may name a key twice.
            let (lines, is_table) = (i64::try_from(outcome.lines).unwrap(), name == "likes-table");
            assert!(if is_table { lines == MANY } else { lines >= MANY + 2 }, "{name}: {lines} lines");
        }
    }
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn comparison_stops_at_the_difference_limit() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(MANY)).await;
    world.assert_views_equal_the_log().await;
    spoil(&world, "UPDATE likes SET author_id = 1", &cmd("PING")).await;
    let zadd = |user| cmd("ZADD").arg(favorites(&world, user)).arg(1).arg(2).take();
    world.target.redis.all(&(1..=MANY).map(zadd).collect::<Vec<_>>()).await.unwrap();

    for name in ["likes-table", "likes"] {
        for (if_different, generation) in [(IfDifferent::Keep, 1), (IfDifferent::TakeOver, 2)] {
            let outcome = rebuild(&world, name, if_different).await;
            assert_eq!((outcome.differences.len(), outcome.generation), (ENOUGH, (1, generation)), "{name}");
            assert!(outcome.lines < usize::try_from(MANY).unwrap(), "{name}: {} lines", outcome.lines);
        }
    }
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_many_members_is_compared_in_chunks() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(40)).await;
    world.assert_views_equal_the_log().await;
    cut_off_at(&world, "likes", COMPARING).await;
    let keys = &world.target.keys;
    let next = keys.of_generation(&projection("likes").catalogued, 2);
    for key in [keys.likers(1), next.likers(1)] {
        plant_members(&world, &key, MANY_MEMBERS).await;
    }
    let missing = 1_000_000 + MANY_MEMBERS / 2;
    spoil(&world, "DO 0", cmd("SREM").arg(keys.likers(1)).arg(missing)).await;
    let outcome = rebuild(&world, "likes", IfDifferent::Keep).await;
    let [difference] = outcome.differences.as_slice() else { panic!("{:#?}", outcome.differences) };
    let all = MANY_MEMBERS + 40;
    let (expected, found) = (format!("{all} members with {missing}"), format!("{} members", all - 1));
    assert_eq!((&difference.expected, &difference.found), (&Some(expected), &Some(found)));

    spoil(&world, "DO 0", cmd("SADD").arg(keys.likers(1)).arg(missing)).await;
    let outcome = rebuild(&world, "likes", IfDifferent::Keep).await;
    assert_eq!((outcome.differences, outcome.generation), (Vec::new(), (1, 2)));
    running.stop().await;
}

fn favorites(world: &World, user: i64) -> String {
    world.target.keys.favorites(user).name
}

/// Changes the views in both stores, as no event does.
async fn spoil(world: &World, statement: &str, command: &redis::Cmd) {
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&world.target.mysql).await.unwrap();
    let _: redis::Value = world.target.redis.query(command).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_rebuild_can_be_resumed_or_dropped() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&made_up(3000)).await;
    world.assert_views_equal_the_log().await;
    for name in ["likes", "likes-table"] {
        for phase in [COMPARING, |now| *now == Progress::TakingOver] {
            cut_off_at(&world, name, phase).await;
            world.assert_views_equal_the_log().await;
        }
        assert!(!left_behind(&world, name).await.is_empty(), "{name}");
        begin(&world, name).await.drop_next().await.unwrap();
        assert_eq!(left_behind(&world, name).await, Vec::<String>::new(), "{name}");

        cut_off_at(&world, name, COMPARING).await;
        world.append(&likes(10)).await;
        cut_off_at(&world, name, |now| *now == Progress::Waiting).await;
        world.assert_views_equal_the_log().await;
        assert_eq!(rebuild(&world, name, IfDifferent::Keep).await.generation, (2, 3), "{name}");
        assert_eq!(left_behind(&world, name).await, Vec::<String>::new(), "{name}");
    }
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resumed_rebuild_applies_later_discards() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(10)).await;
    let partition =
        Partition { stream: Stream::Likes, number: world.append_garbage(Stream::Likes, "1").await };
    world.append(&likes(20)).await;
    world.assert_views_equal_the_log().await;
    for name in ["likes", "likes-table"] {
        cut_off_at(&world, name, COMPARING).await;
        let sink = world.target.view(projection(name));
        let parked = sink.parked().await.unwrap().remove(&partition).unwrap().into_values().next().unwrap();
        let log =
            Log { brokers: world.log.kafka_brokers.clone(), topics: Topics::new(&world.stores.namespace) };
        let retry = Retry::new(sink, DeadLetterQueue::new(log));
        let (_, discarded) = retry.discard(partition, parked.first).await.unwrap();
        assert_eq!(discarded, Retried::Folded);

        let outcome = rebuild(&world, name, IfDifferent::Keep).await;
        assert!(outcome.differences.is_empty(), "{name}: {:#?}", outcome.differences);
    }
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writer_that_ignores_the_hold_is_no_difference() {
    let world = World::new().await;
    let events = likes(300);
    world.append(&events).await;
    let records: Vec<Record> =
        (0..).zip(events).map(|(offset, envelope)| Record { offset, envelope }).collect();
    let (first, rest) = records.split_at(100);
    let partition = Partition { stream: Stream::Likes, number: partition_of("1") };
    let sink = world.target.view(projection("likes"));
    let mut position = sink.positions(&[partition]).await.unwrap().remove(0);
    sink.apply(partition, &mut position, first, 100).await.unwrap();
    sink.align(partition, &mut position, 100).await.unwrap();

    let begun = begin(&world, "likes").await;
    let mut progress = begun.progress();
    let deaf = async {
        timeout(DEADLINE, progress.wait_for(|now| *now == Progress::TakingOver)).await.unwrap().unwrap();
        for record in rest {
            let next = record.offset + 1;
            sink.apply(partition, &mut position, std::slice::from_ref(record), next).await.unwrap();
            sink.align(partition, &mut position, next).await.unwrap();
        }
    };
    let (outcome, ()) = tokio::join!(begun.run(IfDifferent::Keep), deaf);
    let outcome = outcome.unwrap();
    assert!(outcome.differences.is_empty(), "{:#?}", outcome.differences);
    assert_eq!(outcome.generation, (1, 2));
}

/// Begins a rebuild, and cuts it off once it is in a phase.
async fn cut_off_at(world: &World, name: &str, is_reached: fn(&Progress) -> bool) {
    let begun = begin(world, name).await;
    let mut progress = begun.progress();
    let task: JoinHandle<_> = tokio::spawn(begun.run(IfDifferent::Keep));
    let reached = progress.wait_for(is_reached);
    timeout(Duration::from_mins(3), reached).await.expect("the phase is reached").unwrap();
    task.abort();
    assert!(task.await.is_err_and(|error| error.is_cancelled()));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_rebuild_of_a_view_is_rejected() {
    let world = World::new().await;
    let first = begin(&world, "likes").await;
    let second = Rebuild::begin(&world.log, &world.stores, projection("likes")).await;
    assert!(second.is_err_and(|error| error.to_string().contains(BEING_REBUILT)));
    drop(first);
    begin(&world, "likes").await;
}

#[tokio::test]
async fn only_the_owner_can_end_a_hold() {
    let world = World::new().await;
    let (pool, likes) = (&world.target.mysql, projection("likes"));
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
    let world = World::new().await;
    let (pool, likes) = (&world.target.mysql, projection("likes-table"));
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
    let world = World::new().await;
    let _begun = begin(&world, "likes").await;
    // The server closes silent connections, which would abort a long rebuild before its cutover.
    let silent_for = async || -> i64 {
        sqlx::query_scalar(
            "SELECT CAST(time AS SIGNED) FROM information_schema.processlist
             WHERE id = IS_USED_LOCK(SHA1(CONCAT('view ', DATABASE(), ' likes')))",
        )
        .fetch_one(&world.target.mysql)
        .await
        .unwrap()
    };
    until("the connection is silent", async || silent_for().await >= 2).await;
    until("the connection is used", async || silent_for().await < 2).await;
}

fn likes(count: i64) -> Vec<Envelope> {
    (1..=count).map(|user| envelope(liked(1, user), 1_700_000_000_000 + user)).collect()
}
