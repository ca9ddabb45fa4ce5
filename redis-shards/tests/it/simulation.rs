//! Concurrent callers of a simulated cluster, of which slots migrate, primaries fail over and connections break.
//!
//! Each run draws new cases. A failed case prints its seed. `SIMULATION_SEED=<seed>` repeats it; several times, because
//! the kernel decides when a connection is re-established. `SIMULATION_CASES=<number>` runs more cases.

mod calls;
mod model;
mod server;

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use redis::cmd;
use tokio::time::sleep;
use vidlog_redis_shards::Redis;
use vidlog_test_support::until;

use self::{
    calls::{Call, call, check_call, check_commands},
    model::{Model, Outcome, SHARDS},
    server::Server,
};

const CASES: usize = 30;
/// Runs of a case that is repeated by its seed.
const REPETITIONS: usize = 20;
/// Cases at once: most of the time they wait for reconnections.
const CONCURRENT_CASES: usize = 8;
const CALLERS: u64 = 3;
/// Calls of each caller in a case.
const CALLS: usize = 25;
/// How long the client may take until it works again after the last fault.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two calls of a caller while calls fail.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// How often something happened over all cases: without it the checks would be vacuous.
#[derive(Debug, Default)]
struct Coverage {
    succeeded: usize,
    failed: usize,
    moved: usize,
    ask: usize,
    refused: usize,
    reply_lost: usize,
    failovers: usize,
}

#[tokio::test]
async fn guarantees_hold_while_the_topology_changes() {
    if let Ok(seed) = std::env::var("SIMULATION_SEED") {
        for _ in 0..REPETITIONS {
            run(seed.parse().unwrap()).await;
        }
        return;
    }
    let cases = std::env::var("SIMULATION_CASES").map_or(CASES, |cases| cases.parse().unwrap());
    let seeds = (0..cases).map(|_| rand::rng().random());
    let runs = stream::iter(seeds).map(run).buffer_unordered(CONCURRENT_CASES);
    let coverage = runs.fold(Coverage::default(), async |sum, case| sum + case).await;
    eprintln!("{coverage:?}");
    let Coverage { succeeded, failed, moved, ask, refused, reply_lost, failovers } = coverage;
    for (count, what) in [
        (succeeded, "successful calls"),
        (failed, "failed calls"),
        (moved, "MOVED"),
        (ask, "ASK"),
        (refused, "TRYAGAIN and CLUSTERDOWN"),
        (reply_lost, "lost replies"),
        (failovers, "failovers"),
    ] {
        assert!(count >= cases / 4, "only {count} {what}");
    }
}

/// While a node is down, calls that do not need it neither wait for slot maps nor fetch them.
#[tokio::test]
async fn dead_node_costs_other_calls_no_slot_map() {
    let server = Server::start(0).await;
    server.stop_for_good(0);
    let redis = Redis::open(&server.url()).unwrap();
    let key = |of_dead: bool| {
        model::all_keys().into_iter().find(|key| server.model().owns(0, key) == of_dead).unwrap()
    };
    let (dead, healthy) = (key(true), key(false));
    let append = async |key: &str| redis.query::<String>(cmd("APPEND").arg(key).arg("1.1")).await;
    let start = Instant::now();
    let before = server.model().slot_map_replies;
    for _ in 0..500 {
        assert!(append(&dead).await.unwrap_err().is_io_error());
        append(&healthy).await.unwrap();
    }
    // Each refresh asks all nodes.
    let refreshes = (server.model().slot_map_replies - before).div_ceil(2 * SHARDS - 1);
    let intervals = start.elapsed().as_millis() / 250;
    assert!(refreshes as u128 <= intervals + 3, "{refreshes} refreshes in {:?}", start.elapsed());

    // The return of the node is detected.
    server.heal();
    until("the node responds", async || append(&dead).await.is_ok()).await;
}

/// Runs a case, and panics if a guarantee is violated.
async fn run(seed: u64) -> Coverage {
    let server = Server::start(seed).await;
    let redis = Redis::open(&server.url()).unwrap();
    let callers = (0..CALLERS).map(|caller| {
        let (server, redis) = (&server, &redis);
        async move {
            let mut rng = StdRng::seed_from_u64(seed ^ (caller + 1));
            let mut calls = Vec::new();
            for number in 0..CALLS {
                server.change_topology();
                let made = call(server, redis, &mut rng, &format!("{caller}.{number}")).await;
                if made.result.is_err() {
                    sleep(RETRY_PAUSE).await;
                }
                calls.push(made);
            }
            calls
        }
    });
    let calls: Vec<Call> = futures::future::join_all(callers).await.into_iter().flatten().collect();
    server.heal();
    let is_recovered = recover(&server, &redis).await;

    let model = server.model();
    let mut violations: Vec<String> =
        calls.iter().filter_map(|call| check_call(call, &model.history)).collect();
    violations.extend(check_commands(&model.history));
    if !is_recovered {
        violations.push("calls still fail after the last fault".to_owned());
    }
    assert!(violations.is_empty(), "{}\nrepeat with SIMULATION_SEED={seed}", violations.join("\n"));
    Coverage::of(&calls, &model)
}

/// Waits until a call about every slot, a call to all primaries and a scan succeed.
async fn recover(server: &Server, redis: &Redis) -> bool {
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    let mut attempt = 0;
    while Instant::now() < deadline {
        if calls::covers_everything(server, redis, attempt).await {
            return true;
        }
        attempt += 1;
        sleep(RETRY_PAUSE).await;
    }
    false
}

impl std::ops::Add for Coverage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            succeeded: self.succeeded + other.succeeded,
            failed: self.failed + other.failed,
            moved: self.moved + other.moved,
            ask: self.ask + other.ask,
            refused: self.refused + other.refused,
            reply_lost: self.reply_lost + other.reply_lost,
            failovers: self.failovers + other.failovers,
        }
    }
}

impl Coverage {
    fn of(calls: &[Call], model: &Model) -> Self {
        let calls = |succeeded| calls.iter().filter(|call| call.result.is_ok() == succeeded).count();
        let mut coverage = Self {
            succeeded: calls(true),
            failed: calls(false),
            failovers: model.failovers,
            ..Self::default()
        };
        for arrival in &model.history {
            match arrival.outcome {
                Outcome::Executed => {}
                Outcome::Moved => coverage.moved += 1,
                Outcome::Ask(_) => coverage.ask += 1,
                Outcome::Refused => coverage.refused += 1,
                Outcome::ReplyLost { .. } => coverage.reply_lost += 1,
            }
        }
        coverage
    }
}
