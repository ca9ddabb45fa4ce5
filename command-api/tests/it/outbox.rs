//! The outbox relay appends committed events after crashes and outages.

use uuid::Uuid;
use vidlog_command_api::{
    accounts::{self, NewAccount},
    outbox::Relay,
};
use vidlog_events::{Envelope, Event, Personal, Stream, UserEvent, UserId, UserRegistered};
use vidlog_service_kit::{clock::Clock, ops::Readiness};

use crate::support::{World, until};

/// Commits an account without appending its event, as after a crash. The entry is too young for background relays.
pub(crate) async fn register_without_append(world: &World, user: i64) -> Envelope {
    let name = format!("user {user}");
    let registered =
        UserRegistered { user_id: UserId::new(user).unwrap(), name: Personal::new(name.clone()) };
    let registration = Envelope {
        id: Uuid::now_v7(),
        source: "/vidlog/test".to_owned(),
        time_ms: young_ms() + user,
        traceparent: None,
        correlation_id: Some("request".to_owned()),
        causation_id: None,
        event: Event::User(UserEvent::UserRegistered(registered)),
    };
    let account = NewAccount {
        user_id: user,
        username: &name,
        password_hash: "x".to_owned(),
        registration: &registration,
        idempotency_key: None,
    };
    accounts::create(&world.mysql, &account).await.unwrap();
    registration
}

#[tokio::test]
async fn relay_appends_committed_events_unchanged() {
    let (world, api) = World::with_api().await;
    let first = register_without_append(&world, 1).await;
    let second = register_without_append(&world, 2).await;
    let relay = Relay::new(api.state.clone());
    // Young entries belong to their writers.
    assert_eq!(relay.run_once(first.time_ms - 1).await.unwrap(), 0);
    assert_eq!(relay.run_once(first.time_ms).await.unwrap(), 1);
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 1);
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 0);

    let mut events = world.log.read(Stream::Users).await;
    events.sort_by_key(|event| event.timestamp_ms);
    assert_eq!(events.iter().map(|event| &event.envelope).collect::<Vec<_>>(), [&first, &second]);
    assert_eq!(world.marks("user:2").await, [events[1].position()]);
    assert_eq!(world.count("outbox").await, 0);
}

#[tokio::test]
async fn concurrent_relays_append_each_event_once() {
    let (world, api) = World::with_api().await;
    for user in 1..=120 {
        register_without_append(&world, user).await;
    }
    let relays = (0..4).map(|_| async { Relay::new(api.state.clone()).run_once(i64::MAX).await.unwrap() });
    let relayed: u64 = futures::future::join_all(relays).await.into_iter().sum();
    assert_eq!(relayed, 120);
    let events = world.log.read(Stream::Users).await;
    let keys: std::collections::HashSet<_> = events.iter().map(|event| &event.key).collect();
    assert_eq!((events.len(), keys.len()), (120, 120));
    assert_eq!(world.count("outbox").await, 0);
}

#[tokio::test]
async fn undecodable_entry_does_not_block_others() {
    let (world, api) = World::with_api().await;
    insert_undecodable(&world, i64::MAX).await;
    register_without_append(&world, 1).await;
    let relay = Relay::new(api.state.clone());
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 1);
    assert_eq!(world.count("outbox").await, 1);
    assert_eq!(failed_attempts(&world).await, [1]);

    // It is not tried again before its time.
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 0);
    assert_eq!(failed_attempts(&world).await, [1]);
    execute(&world, "UPDATE outbox_failures SET retry_ms = 0").await;
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 0);
    assert_eq!(failed_attempts(&world).await, [2]);
}

#[tokio::test]
async fn failed_entry_is_appended_once_it_can_be() {
    let (world, api) = World::with_api().await;
    register_without_append(&world, 1).await;
    execute(&world, "UPDATE outbox SET event = CONCAT('?', event)").await;
    let relay = Relay::new(api.state.clone());
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 0);
    assert_eq!(failed_attempts(&world).await, [1]);
    execute(&world, "UPDATE outbox SET event = SUBSTRING(event, 2)").await;
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 0, "the retry is due in a minute");
    execute(&world, "UPDATE outbox_failures SET retry_ms = 0").await;
    assert_eq!(relay.run_once(i64::MAX).await.unwrap(), 1);
    assert_eq!((world.count("outbox").await, world.count("outbox_failures").await), (0, 0));
    assert_eq!(world.log.read(Stream::Users).await.len(), 1);
}

#[tokio::test]
async fn failed_entry_is_reported_without_loss_of_readiness() {
    let world = World::new().await;
    let readiness = Readiness::new();
    let api = world.start(world.kafka(), world.stores.clone(), &readiness).await;
    until("the command side is ready", async || readiness.unready().is_none()).await;
    assert_eq!(readiness.warnings(), [""; 0]);
    insert_undecodable(&world, 0).await;
    until("the failure is reported", async || !readiness.warnings().is_empty()).await;
    let warnings = readiness.warnings();
    assert!(warnings[0].starts_with("outbox: 1 entries can't be appended; entry "), "{warnings:?}");
    assert!(warnings[0].contains("does not decode"), "{warnings:?}");
    assert_eq!(readiness.unready(), None);
    execute(&world, "DELETE FROM outbox").await;
    until("the failure is resolved", async || readiness.warnings().is_empty()).await;
    api.stop().await;
}

async fn insert_undecodable(world: &World, created_ms: i64) {
    let insert = sqlx::query("INSERT INTO outbox (event, created_ms) VALUES ('{}', ?)").bind(created_ms);
    insert.execute(&world.mysql).await.unwrap();
}

async fn execute(world: &World, statement: &'static str) {
    sqlx::query(statement).execute(&world.mysql).await.unwrap();
}

async fn failed_attempts(world: &World) -> Vec<i32> {
    let attempts = sqlx::query_scalar("SELECT attempts FROM outbox_failures ORDER BY id");
    attempts.fetch_all(&world.mysql).await.unwrap()
}

#[tokio::test]
async fn waiting_relay_does_not_block_registrations() {
    let (world, api) = World::with_api().await;
    register_without_append(&world, 1).await;
    let cut_off = world.api_without_log().await;
    let relay = Relay::new(cut_off.state.clone());
    let waiting = tokio::spawn(async move { relay.run_once(i64::MAX).await });
    until("the relay has locked the entry", async || {
        let free = "SELECT COUNT(*) FROM (SELECT id FROM outbox FOR UPDATE SKIP LOCKED) free";
        sqlx::query_scalar::<_, i64>(free).fetch_one(&world.mysql).await.unwrap() == 0
    })
    .await;
    api.register("ada").await.ok();
    assert!(!waiting.is_finished());
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test]
async fn registration_during_kafka_outage_is_relayed_later() {
    let (world, api) = World::with_api().await;
    let cut_off = world.api_without_log().await;
    let registered = cut_off.register("ada").await;
    let id = registered.even_if_stale()["user_id"].as_i64().unwrap();
    assert!(registered.is_stale());
    assert!(!registered.headers.contains_key("vidlog-position"));
    assert_eq!(world.marks(&format!("user:{id}")).await, ["users:2147483647:9007199254740991"]);
    cut_off.login("ada", "secret").await.ok();
    assert_eq!(world.log.read(Stream::Users).await, []);

    // A background relay may append it first.
    _ = Relay::new(api.state.clone()).run_once(i64::MAX).await;
    until("the event is relayed", async || world.count("outbox").await == 0).await;
    let events = world.log.read(Stream::Users).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].key, id.to_string());
    assert_eq!(world.marks(&format!("user:{id}")).await, [events[0].position()]);
}

/// A creation time that stays young during the test. The broker refuses timestamps an hour ahead.
fn young_ms() -> i64 {
    Clock::system().now_ms() + 600_000
}
