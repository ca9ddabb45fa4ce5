//! The breaker of one server.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use metrics::{Gauge, gauge};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::{metrics::CIRCUIT_OPEN, window::Window};

/// The fewest failed calls, trials included, that open a circuit.
const MIN_FAILURES: u32 = 3;
/// How long a trial waits for its answer. A server that needs longer cannot serve requests either.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between the trials of an open circuit. It bounds how late the return of a server is detected.
const TRIAL_INTERVAL: Duration = Duration::from_millis(250);
/// A call that its caller cancels after this time counts as unanswered: callers with short timeouts must not keep the
/// circuit closed. Below the shortest of these timeouts, and above the time of nearly all answers.
const CANCELLED_AFTER: Duration = Duration::from_millis(200);

type Trial = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A server, as logs and metrics name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The kind of store, such as `redis`.
    pub store: &'static str,
    /// The node, without credentials.
    pub node: String,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server answered, possibly with an error.
    Answered,
    /// No answer arrived, for whatever reason.
    Unanswered,
}

/// The circuit breaker of one server. Clones share its state.
///
/// The circuit opens when a trial fails, and at least three calls have failed, and these are at least half of the calls
/// of the last 10 s, or none was answered during the trial. While it is open, one trial at a time runs, every 250 ms, and
/// the first that is answered closes it. No call of a caller is a trial, so none waits for one.
#[derive(Clone)]
pub struct CircuitBreaker(Arc<Shared>);

struct Shared {
    server: Server,
    trial: Box<dyn Fn() -> Trial + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    is_open: bool,
    is_trying: bool,
    window: Window,
    /// Unanswered calls since the last trial ended.
    unconfirmed: u32,
    /// Whether a call was answered since the current trial began.
    is_answered: bool,
}

/// A call that the breaker let through. A call that is dropped without an outcome was cancelled.
pub struct AdmittedCall {
    breaker: CircuitBreaker,
    start: Instant,
    outcome: Option<Outcome>,
}

impl CircuitBreaker {
    /// Creates a breaker with a closed circuit. A trial sends a cheap command to the server, and succeeds with any answer.
    pub fn new<F>(server: Server, trial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let trial = Box::new(move || -> Trial { Box::pin(trial()) });
        let state = State {
            is_open: false,
            is_trying: false,
            window: Window::new(),
            unconfirmed: 0,
            is_answered: false,
        };
        let shared = Shared { server, trial, state: Mutex::new(state) };
        // The series exists from the start, with 0 unless a breaker of the same server is open.
        shared.gauge().increment(0.0);
        Self(Arc::new(shared))
    }

    /// Admits a call; `None` while the circuit is open.
    pub fn admit(&self) -> Option<AdmittedCall> {
        let is_open = self.0.state.lock().is_open;
        (!is_open).then(|| AdmittedCall { breaker: self.clone(), start: Instant::now(), outcome: None })
    }

    fn record(&self, outcome: Outcome) {
        let mut state = self.0.state.lock();
        match outcome {
            Outcome::Answered => {
                state.window.add(1, 0);
                state.is_answered = true;
            }
            Outcome::Unanswered => {
                state.unconfirmed += 1;
                // A call may be cancelled by the end of its runtime.
                if !state.is_trying
                    && let Ok(runtime) = Handle::try_current()
                {
                    (state.is_trying, state.is_answered) = (true, false);
                    runtime.spawn(run_trials(Arc::downgrade(&self.0)));
                }
            }
        }
    }
}

impl AdmittedCall {
    /// Ends the call.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }
}

impl Drop for AdmittedCall {
    fn drop(&mut self) {
        let is_slow = self.start.elapsed() >= CANCELLED_AFTER;
        if let Some(outcome) = self.outcome.or(is_slow.then_some(Outcome::Unanswered)) {
            self.breaker.record(outcome);
        }
    }
}

/// Tries until an answer arrives, or until the failures do not suffice to open the circuit, or until the breaker is dropped.
async fn run_trials(breaker: Weak<Shared>) {
    while let Some(trial) = breaker.upgrade().map(|shared| (shared.trial)()) {
        let result = timeout(TRIAL_TIMEOUT, trial).await;
        let result =
            result.unwrap_or_else(|_| Err(format!("no answer within {} s", TRIAL_TIMEOUT.as_secs())));
        let is_open = breaker.upgrade().is_some_and(|shared| shared.end_trial(result));
        if !is_open {
            return;
        }
        sleep(TRIAL_INTERVAL).await;
    }
}

impl Shared {
    /// Returns whether the circuit is open.
    fn end_trial(&self, result: Result<(), String>) -> bool {
        let mut state = self.state.lock();
        let was_open = state.is_open;
        match &result {
            Ok(()) => {
                state.is_open = false;
                state.unconfirmed = 0;
                if was_open {
                    state.window = Window::new();
                }
            }
            Err(_) if was_open => {}
            Err(_) => {
                let failed = std::mem::take(&mut state.unconfirmed).saturating_add(1);
                state.window.add(0, failed);
                state.is_open = state.opens();
            }
        }
        state.is_trying = state.is_open;
        let is_open = state.is_open;
        drop(state);
        if is_open != was_open {
            let gauge = self.gauge();
            if is_open {
                gauge.increment(1.0);
            } else {
                gauge.decrement(1.0);
            }
            let Server { store, node } = &self.server;
            match result {
                Ok(()) => info!(store, node, "store available again"),
                Err(error) => warn!(store, node, error, "store unavailable"),
            }
        }
        is_open
    }

    /// Returns the gauge of the server. Breakers of the same server share it, so each adds and removes only its own circuit.
    fn gauge(&self) -> Gauge {
        let Server { store, node } = &self.server;
        gauge!(CIRCUIT_OPEN, "store" => *store, "node" => node.clone())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A node that left its cluster must not look unreachable forever.
        if self.state.get_mut().is_open {
            self.gauge().decrement(1.0);
        }
    }
}

impl State {
    /// Returns whether the circuit opens after a failed trial.
    fn opens(&self) -> bool {
        let (answered, failed) = self.window.totals();
        failed >= MIN_FAILURES && (failed >= answered || !self.is_answered)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    /// A server that answers trials while it is up.
    #[derive(Clone, Default)]
    struct Fake {
        is_up: Arc<AtomicBool>,
        trials: Arc<AtomicUsize>,
        running: Arc<AtomicUsize>,
    }

    impl Fake {
        fn up() -> Self {
            let fake = Self::default();
            fake.set_up(true);
            fake
        }

        fn set_up(&self, is_up: bool) {
            self.is_up.store(is_up, Ordering::Relaxed);
        }

        fn trials(&self) -> usize {
            self.trials.load(Ordering::Relaxed)
        }

        fn breaker(&self) -> CircuitBreaker {
            let fake = self.clone();
            let server = Server { store: "redis", node: "localhost:1".to_owned() };
            CircuitBreaker::new(server, move || fake.clone().answer_trial())
        }

        async fn answer_trial(self) -> Result<(), String> {
            self.trials.fetch_add(1, Ordering::Relaxed);
            assert_eq!(self.running.fetch_add(1, Ordering::Relaxed), 0, "one trial at a time");
            sleep(Duration::from_millis(100)).await;
            self.running.fetch_sub(1, Ordering::Relaxed);
            let is_up = self.is_up.load(Ordering::Relaxed);
            is_up.then_some(()).ok_or_else(|| "connection refused".to_owned())
        }
    }

    fn call(breaker: &CircuitBreaker, outcome: Outcome) -> bool {
        breaker.admit().map(|call| call.end(outcome)).is_some()
    }

    fn calls(breaker: &CircuitBreaker, outcome: Outcome, count: usize) {
        for _ in 0..count {
            assert!(call(breaker, outcome));
        }
    }

    async fn after_a_trial() {
        sleep(Duration::from_millis(150)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn unreachable_server_opens_the_circuit_until_a_trial_is_answered() {
        let server = Fake::default();
        let breaker = server.breaker();
        calls(&breaker, Outcome::Unanswered, 2);
        after_a_trial().await;
        assert!(breaker.admit().is_none());
        assert_eq!(server.trials(), 1);
        sleep(Duration::from_secs(10)).await;
        assert!((20..40).contains(&server.trials()), "{}", server.trials());
        assert!(breaker.admit().is_none());
        server.set_up(true);
        sleep(TRIAL_INTERVAL * 2).await;
        calls(&breaker, Outcome::Answered, 1);
        let trials = server.trials();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(server.trials(), trials, "a closed circuit needs no trials");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_calls_leave_the_circuit_of_a_reachable_server_closed() {
        let server = Fake::up();
        let breaker = server.breaker();
        for _ in 0..20 {
            calls(&breaker, Outcome::Unanswered, 5);
            after_a_trial().await;
        }
        assert!(breaker.admit().is_some());
        // What the answered trials excused does not count later.
        server.set_up(false);
        calls(&breaker, Outcome::Unanswered, 1);
        after_a_trial().await;
        assert!(breaker.admit().is_some(), "one call and one trial failed");
    }

    #[tokio::test(start_paused = true)]
    async fn minority_of_failures_leaves_the_circuit_closed() {
        let server = Fake::default();
        let breaker = server.breaker();
        for _ in 0..10 {
            calls(&breaker, Outcome::Answered, 10);
            calls(&breaker, Outcome::Unanswered, 2);
            calls(&breaker, Outcome::Answered, 1);
            after_a_trial().await;
        }
        assert!(breaker.admit().is_some());
        // The same number of failures without answers.
        sleep(Duration::from_secs(10)).await;
        calls(&breaker, Outcome::Answered, 2);
        calls(&breaker, Outcome::Unanswered, 2);
        calls(&breaker, Outcome::Answered, 1);
        after_a_trial().await;
        assert!(breaker.admit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn server_that_stops_answering_opens_the_circuit_despite_earlier_answers() {
        let breaker = Fake::default().breaker();
        calls(&breaker, Outcome::Answered, 10_000);
        calls(&breaker, Outcome::Unanswered, 2);
        after_a_trial().await;
        assert!(breaker.admit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_are_cancelled_late_count_as_unanswered() {
        let server = Fake::default();
        let breaker = server.breaker();
        let cancelled = [breaker.admit(), breaker.admit()];
        drop(breaker.admit());
        after_a_trial().await;
        assert_eq!(server.trials(), 0);
        sleep(CANCELLED_AFTER).await;
        drop(cancelled);
        after_a_trial().await;
        assert!(breaker.admit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn trial_without_an_answer_fails() {
        let server = Server { store: "mysql", node: "localhost:1".to_owned() };
        let breaker = CircuitBreaker::new(server, std::future::pending);
        calls(&breaker, Outcome::Unanswered, 2);
        sleep(TRIAL_TIMEOUT * 2).await;
        assert!(breaker.admit().is_none());
    }

    #[test]
    fn gauge_counts_the_open_circuits_of_a_server() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exported = recorder.handle();
        let open_circuits = || {
            let text = exported.render();
            let line = text.lines().find(|line| line.starts_with(CIRCUIT_OPEN));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        metrics::with_local_recorder(&recorder, || {
            runtime.unwrap().block_on(async {
                let server = Fake::default();
                let (first, second) = (server.breaker(), server.breaker());
                assert_eq!(open_circuits(), Some(0.0));
                for (breaker, expected) in [(&first, 1.0), (&second, 2.0)] {
                    calls(breaker, Outcome::Unanswered, 2);
                    after_a_trial().await;
                    assert_eq!(open_circuits(), Some(expected));
                    // A third breaker, of a later connection to the same server.
                    drop(server.breaker());
                    assert_eq!(open_circuits(), Some(expected));
                }
                drop(second);
                sleep(TRIAL_INTERVAL * 2).await;
                assert_eq!(open_circuits(), Some(1.0));
                server.set_up(true);
                sleep(TRIAL_INTERVAL * 2).await;
                assert_eq!(open_circuits(), Some(0.0));
            });
        });
    }

    #[tokio::test(start_paused = true)]
    async fn trials_stop_when_the_breaker_is_dropped() {
        let server = Fake::default();
        let breaker = server.breaker();
        calls(&breaker, Outcome::Unanswered, 3);
        drop(breaker);
        sleep(Duration::from_secs(10)).await;
        assert!(server.trials() <= 1);
    }
}
