//! The outbox: what was committed reaches the log, whatever ended in between.

use uuid::Uuid;
use vidlog_command_api::{
    accounts::{self, NewAccount},
    outbox::Relay,
};
use vidlog_events::{Envelope, Event, Personal, Stream, UserEvent, UserId, UserRegistered};
use vidlog_service_kit::clock::Clock;

use crate::support::{World, until};

/// An account is committed, and then everything ends. The entry is one that nobody's relay takes by itself for now.
async fn register_and_die(world: &World, user: i64) -> Envelope {
    let name = format!("user {user}");
    let registered =
        UserRegistered { user_id: UserId::new(user).unwrap(), name: Personal::new(name.clone()) };
    let announcement = Envelope {
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
        announcement: &announcement,
    };
    accounts::create(&world.mysql, &account).await.unwrap();
    announcement
}

#[tokio::test]
async fn what_was_committed_is_appended_by_the_relay_as_it_was() {
    let (world, api) = World::with_api().await;
    let first = register_and_die(&world, 1).await;
    let second = register_and_die(&world, 2).await;
    let relay = Relay::new(api.state.clone());
    // Young entries are left to those who wrote them.
    assert_eq!(relay.pass(first.time_ms - 1).await.unwrap(), 0);
    assert_eq!(relay.pass(first.time_ms).await.unwrap(), 1);
    assert_eq!(relay.pass(i64::MAX).await.unwrap(), 1);
    assert_eq!(relay.pass(i64::MAX).await.unwrap(), 0);

    let mut events = world.log.read(Stream::Users).await;
    events.sort_by_key(|event| event.timestamp_ms);
    assert_eq!(events.iter().map(|event| &event.envelope).collect::<Vec<_>>(), [&first, &second]);
    assert_eq!(world.marks("user:2").await, [events[1].position()]);
    assert_eq!(world.count("outbox").await, 0);
}

#[tokio::test]
async fn many_relays_append_everything_once() {
    let (world, api) = World::with_api().await;
    for user in 1..=120 {
        register_and_die(&world, user).await;
    }
    let relays = (0..4).map(|_| async { Relay::new(api.state.clone()).pass(i64::MAX).await.unwrap() });
    let relayed: u64 = futures::future::join_all(relays).await.into_iter().sum();
    assert_eq!(relayed, 120);
    let events = world.log.read(Stream::Users).await;
    let keys: std::collections::HashSet<_> = events.iter().map(|event| &event.key).collect();
    assert_eq!((events.len(), keys.len()), (120, 120));
    assert_eq!(world.count("outbox").await, 0);
}

#[tokio::test]
async fn what_can_not_be_read_holds_nothing_up() {
    let (world, api) = World::with_api().await;
    sqlx::query("INSERT INTO outbox (event, created_ms) VALUES ('{}', 0)")
        .execute(&world.mysql)
        .await
        .unwrap();
    register_and_die(&world, 1).await;
    assert_eq!(Relay::new(api.state.clone()).pass(i64::MAX).await.unwrap(), 1);
    assert_eq!(world.count("outbox").await, 1);
}

#[tokio::test]
async fn new_accounts_do_not_wait_for_a_relay_that_waits_for_the_log() {
    let (world, api) = World::with_api().await;
    register_and_die(&world, 1).await;
    let cut_off = world.api_without_log().await;
    let relay = Relay::new(cut_off.state.clone());
    let waiting = tokio::spawn(async move { relay.pass(i64::MAX).await });
    until("the relay holds the entry", async || {
        let free = "SELECT COUNT(*) FROM (SELECT id FROM outbox FOR UPDATE SKIP LOCKED) free";
        sqlx::query_scalar::<_, i64>(free).fetch_one(&world.mysql).await.unwrap() == 0
    })
    .await;
    api.register("ada").await.ok();
    assert!(!waiting.is_finished());
    assert!(waiting.await.unwrap().is_err());
}

#[tokio::test]
async fn who_registers_while_the_log_is_away_is_told_so_and_announced_later() {
    let (world, api) = World::with_api().await;
    let cut_off = world.api_without_log().await;
    let registered = cut_off.register("ada").await;
    let id = registered.even_if_stale()["user_id"].as_i64().unwrap();
    assert!(registered.is_stale());
    assert!(!registered.headers.contains_key("vidlog-position"));
    assert_eq!(world.marks(&format!("user:{id}")).await, ["users:2147483647:9007199254740991"]);
    cut_off.login("ada", "secret").await.ok();
    assert_eq!(world.log.read(Stream::Users).await, []);

    // Either instance's own relay may come first.
    _ = Relay::new(api.state.clone()).pass(i64::MAX).await;
    until("the user is announced", async || world.count("outbox").await == 0).await;
    let events = world.log.read(Stream::Users).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].key, id.to_string());
    assert_eq!(world.marks(&format!("user:{id}")).await, [events[0].position()]);
}

/// A time that is still young when the test is over. The broker refuses one that is an hour ahead.
fn young_ms() -> i64 {
    Clock::system().now_ms() + 600_000
}
