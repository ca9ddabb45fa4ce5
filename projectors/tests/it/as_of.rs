//! Views as of an earlier time or position.

use redis::cmd;
use tokio::time::timeout;
use vidlog_events::{Envelope, Event, Stream, Topics};
use vidlog_projectors::{
    as_of::{Scratch, Until},
    audit::{self, Model},
    log::Log,
    projections,
    store::Stores,
};
use vidlog_schemas::Keys;
use vidlog_service_kit::{config, mysql};

use crate::support::{DEADLINE, TestSystem, envelope, liked, random_history};

/// The target of a scratch namespace.
fn scratch_of(system: &TestSystem, name: &str) -> Stores {
    let stores = &system.stores;
    Stores {
        keys: Keys::new(&format!("{}-as-of-{name}", stores.namespace), stores.shards),
        redis: system.target.redis.clone(),
        mysql: mysql::open(&format!("{}_as_of_{name}", stores.mysql_url.reveal()), 2).unwrap(),
    }
}

/// Asserts that the views of a scratch namespace are the fold of some events.
async fn assert_is(system: &TestSystem, name: &str, events: &[Envelope]) {
    let mut model = Model::new(1 << 20);
    for envelope in events {
        model.fold(envelope).unwrap();
    }
    let target = scratch_of(system, name);
    let differences = audit::compare_with_model(&target, &projections::ALL, model).await.unwrap();
    assert!(differences.is_empty(), "{differences:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn scratch_namespace_holds_past_state_until_dropped() {
    let system = TestSystem::new().await;
    // Kafka looks up records by time, and repeated events keep their first time.
    let mut events = random_history(800);
    events.sort_by_key(|envelope| envelope.time_ms);
    system.append(&events).await;
    let scratch = Scratch::new(&system.log, &system.stores, &"then".parse().unwrap()).unwrap();
    for part in [3, 2] {
        let time_ms = events[events.len() / part].time_ms;
        let before = events.partition_point(|envelope| envelope.time_ms < time_ms);
        scratch.fold(&Until::Time(time_ms)).await.unwrap();
        assert_is(&system, "then", &events[..before]).await;
    }
    let back = scratch.fold(&Until::Time(events[10].time_ms)).await;
    assert!(back.is_err_and(|error| error.to_string().contains("already folded beyond that")));

    scratch.drop_all().await.unwrap();
    let pattern = scratch_of(&system, "then").keys.pattern();
    let left: Vec<String> = system.target.redis.query(cmd("KEYS").arg(pattern)).await.unwrap();
    assert!(left.is_empty(), "{left:?}");

    let away =
        config::Stores { redis_url: "redis://127.0.0.1:1/".to_owned().into(), ..system.stores.clone() };
    let scratch = Scratch::new(&system.log, &away, &"then".parse().unwrap()).unwrap();
    let folded = timeout(DEADLINE, scratch.fold(&Until::Time(0))).await.expect("the call ends in time");
    assert!(folded.is_err_and(|error| error.to_string().contains("Redis is unavailable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn position_selects_the_state_up_to_its_record() {
    let system = TestSystem::new().await;
    let events: Vec<_> =
        (1..=60).map(|user| envelope(liked(user % 7 + 1, user), 1_700_000_000_000 + user)).collect();
    system.append(&events).await;
    let log =
        Log { brokers: system.log.kafka_brokers.clone(), topics: Topics::new(&system.stores.namespace) };
    let likes = log.ends(vec![Stream::Likes]).await.unwrap();
    let (partition, end) = likes.into_iter().find(|(_, end)| *end > 3).unwrap();
    let position = format!("{}:{}", partition.id(), end - 2);

    let scratch = Scratch::new(&system.log, &system.stores, &"position".parse().unwrap()).unwrap();
    scratch.fold(&position.parse().unwrap()).await.unwrap();
    let time_ms = log.time_before(partition, end - 2).await.unwrap().unwrap();
    let until: Vec<_> = events.iter().filter(|envelope| envelope.time_ms <= time_ms).cloned().collect();
    assert!(until.len() < events.len() && matches!(until[0].event, Event::Like(_)));
    assert_is(&system, "position", &until).await;

    let beyond = format!("{}:{}", partition.id(), end + 1).parse().unwrap();
    assert!(scratch.fold(&beyond).await.is_err_and(|error| error.to_string().contains("the log has no")));
}
