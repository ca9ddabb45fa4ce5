//! The plan of every statement of the command side's own tables, on tables of 100,000 rows, for batches of 1, 2 and 500.
//! See `vidlog_test_support::plans`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use vidlog_command_api::{
    accounts::{
        self,
        appearances::{colliding, compare, normalize_all},
    },
    lease,
    media::{
        jobs::{BATCH_SIZE, Job, JobStore},
        outcomes::{OutcomeStore, Upload, Verdict},
        retry::{Failure, Reason},
    },
    outbox::Relay,
    publisher::{AppendError, Appended, EventLog},
    router,
    state::CommandState,
};
use vidlog_events::Envelope;
use vidlog_service_kit::{mysql, ops::Readiness, shutdown::Shutdown};
use vidlog_test_support::{
    api,
    plans::{AUTHOR, ROWS, Recorder, fill},
};

use crate::{
    media::{mysql_at, new_jobs, upload_of},
    outbox::register_without_append,
    support::{Call, World, until},
};

const EXEMPT: [(&str, &str); 3] = [
    ("SELECT reason, COUNT(*) AS count,", "counts the backlog in an index, four times a minute"),
    ("SELECT CONVERT(appearance", "a command of operators"),
    ("UPDATE accounts SET appearance = NULL WHERE user_id BETWEEN", "of this test"),
];
const BATCHES: [i64; 3] = [1, 2, 500];
/// A publish time of the tables.
const TAKEN_MS: i64 = 1_700_000_500_000;

#[tokio::test]
async fn statements_of_the_command_side_use_indexes() {
    let (world, api) = World::with_api().await;
    let state = api.state.clone();
    // Its relay would append the outbox.
    api.stop().await;
    fill(&world.mysql).await;
    let recorder = Recorder::start(world.stores.mysql_url.reveal()).await;
    // The recorder does not see connections that are open.
    let mysql = mysql::open(world.stores.mysql_url.reveal(), 8).unwrap();
    let state = CommandState { mysql, ..state };
    lease_a_node(&state).await;
    register(&state).await;
    relay(&world, &state).await;
    process_uploads(&state).await;
    decide(&world, &state).await;
    normalize_names(&world, &state).await;
    let source = format!("{}/src", env!("CARGO_MANIFEST_DIR"));
    recorder.check(&world.mysql, &[&source], &EXEMPT).await;
}

async fn lease_a_node(state: &CommandState) {
    let now_ms = state.clock.now_ms();
    let held = lease::claim(&state.mysql, now_ms).await.unwrap().unwrap();
    lease::renew(&state.mysql, &held, now_ms + 60_000).await.unwrap();
    lease::release(&state.mysql, &held, now_ms).await.unwrap();
    let held = lease::claim(&state.mysql, now_ms).await.unwrap().unwrap();
    state.ids.start_lease(held.lease);
}

async fn register(state: &CommandState) {
    let api = api::Api::new(router(state.clone()), state.tokens.clone());
    let register = Call::register("ada", "secret").header("idempotency-key", "a-key");
    api.call(register.clone()).await.ok();
    // A retry, then another account with the same key after a day.
    api.call(register).await.even_if_stale();
    sqlx::query("UPDATE registration_keys SET created_ms = 0 WHERE user_id > ?")
        .bind(ROWS)
        .execute(&state.mysql)
        .await
        .unwrap();
    api.call(Call::register("bob", "secret").header("idempotency-key", "a-key")).await.ok();
    api.call(Call::login("ada", "secret")).await.ok();
    assert!(accounts::find(&state.mysql, "user 7").await.unwrap().is_some());
}

/// A log that becomes unavailable after one event.
struct BriefLog {
    log: Arc<dyn EventLog>,
    is_unavailable: AtomicBool,
}

impl EventLog for BriefLog {
    fn append<'a>(&'a self, envelope: &'a Envelope) -> BoxFuture<'a, Result<Appended, AppendError>> {
        if self.is_unavailable.swap(true, Ordering::SeqCst) {
            return Box::pin(async { Err(AppendError::Busy) });
        }
        self.log.append(envelope)
    }
}

/// Runs the relay on an outbox whose first entry is undecodable, whose second one is appended, and whose third one is not.
async fn relay(world: &World, state: &CommandState) {
    for user in [ROWS + 1, ROWS + 2] {
        register_without_append(world, user).await;
    }
    for (id, user) in [(2, ROWS + 1), (3, ROWS + 2)] {
        sqlx::query("DELETE FROM outbox WHERE id = ?").bind(id).execute(&world.mysql).await.unwrap();
        let moved = sqlx::query("UPDATE outbox SET id = ?, created_ms = 0 WHERE id > ? AND event LIKE ?");
        moved.bind(id).bind(ROWS).bind(format!("%user {user}%")).execute(&world.mysql).await.unwrap();
    }
    let log = BriefLog { log: Arc::clone(&state.log), is_unavailable: AtomicBool::new(false) };
    let relay = Relay::new(CommandState { log: Arc::new(log), ..state.clone() });
    let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
    let running = tokio::spawn(relay.run(readiness.clone(), shutdown.clone()));
    until("the failure is reported", async || !readiness.warnings().is_empty()).await;
    shutdown.request();
    running.await.unwrap();
}

async fn process_uploads(state: &CommandState) {
    let store = |worker: &str| JobStore::new(state.mysql.clone(), worker.to_owned(), Duration::from_mins(1));
    let (jobs, failure) = (store("a"), Failure::new(Reason::Missing, "lost"));
    let mut next = 3_000_000;
    for size in BATCHES {
        let enqueued = usize::try_from(size).unwrap().min(BATCH_SIZE);
        for author in [AUTHOR, ROWS] {
            let ids = next..next + i64::try_from(enqueued).unwrap();
            jobs.enqueue(&new_jobs(author, ids)).await.unwrap();
            next += 1000;
        }
        // Of other jobs, as the first ones of the queue are running and lost.
        let running: Vec<_> = (1..=size).map(|n| (2_000_000 + n, 1)).collect();
        let claimed = jobs.claim(usize::try_from(size).unwrap(), &running, &mut Vec::new()).await.unwrap();
        let tries: Vec<_> = claimed.iter().map(Job::try_id).collect();
        jobs.renew(&tries).await.unwrap();
        jobs.record_failure(&claimed[0], &failure, Duration::ZERO).await.unwrap();
        jobs.remove(&claimed[0]).await.unwrap();
        jobs.release(&tries).await.unwrap();
        assert_eq!(jobs.requeue_due().await.unwrap(), BATCH_SIZE);
    }
    jobs.backlog().await.unwrap();
}

async fn decide(world: &World, state: &CommandState) {
    let publish = Verdict::Publish { play_key: "v".to_owned(), cover_key: "c".to_owned() };
    let reject = Verdict::Reject { reason: "damaged".to_owned() };
    let taken = OutcomeStore::new(mysql_at(world, TAKEN_MS).await);
    let outcomes = OutcomeStore::new(state.mysql.clone());
    for (id, store, verdict) in [(4_000_001, &taken, &publish), (4_000_002, &outcomes, &reject)] {
        let upload = Upload::from_envelope(upload_of(AUTHOR, id)).unwrap();
        store.decide(&upload, verdict.clone()).await.unwrap();
        outcomes.find(upload.video.video_id).await.unwrap().unwrap();
        outcomes.mark_appended(upload.video.video_id).await.unwrap();
    }
}

/// Normalizes the names of 20,000 accounts of an earlier version.
async fn normalize_names(world: &World, state: &CommandState) {
    let pending = sqlx::query("UPDATE accounts SET appearance = NULL WHERE user_id BETWEEN ? AND ?");
    pending.bind(ROWS - 20_000).bind(ROWS).execute(&world.mysql).await.unwrap();
    for name in ["user 7", "USER  7", "nobody"] {
        accounts::find(&state.mysql, name).await.unwrap();
        compare(&state.mysql, name).await.unwrap();
    }
    normalize_all(&state.mysql).await.unwrap();
    colliding(&state.mysql).await.unwrap();
}
