//! The way from one process to one store, and what is wrong with it.

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;

/// What is wrong with a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Nothing.
    Open,
    /// Everything is late, in both directions.
    Slow(Duration),
    /// Connections are reset, and new ones as well.
    Cut,
    /// Nothing moves, and nobody is told.
    Stalled,
    /// Requests arrive, but instead of the first answer comes a reset: nobody knows what became of them.
    AnswersLost,
    /// Half of what is sent arrives, then the connection ends: perhaps between two scripts of a pipeline.
    Torn,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Slow(latency) => write!(f, "slow by {} ms", latency.as_millis()),
            Self::Cut => f.write_str("cut"),
            Self::Stalled => f.write_str("stalled"),
            Self::AnswersLost => f.write_str("losing answers"),
            Self::Torn => f.write_str("tearing requests"),
        }
    }
}

/// A way. Whoever holds it can change it while connections use it.
#[derive(Debug)]
pub(crate) struct Link {
    state: watch::Sender<State>,
}

/// How it is with a way now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// What is wrong.
    pub(crate) condition: Condition,
    /// How often its connections were reset: one that is older than the latest reset ends.
    pub(crate) resets: u64,
}

impl Link {
    /// A way with which nothing is wrong.
    pub(crate) fn open() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(State { condition: Condition::Open, resets: 0 }) })
    }

    /// Changes what is wrong. Cutting a way resets its connections.
    pub(crate) fn set(&self, condition: Condition) {
        self.state.send_modify(|state| {
            state.condition = condition;
            state.resets += u64::from(condition == Condition::Cut);
        });
    }

    /// Resets all connections.
    pub(crate) fn reset(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }

    /// The way as a connection watches it.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }
}
