//! The network link from one process to one store, and what is wrong with it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

/// The condition of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It works.
    Open,
    /// Each chunk arrives late, in both directions.
    Slow(Duration),
    /// Connections are reset, new ones included.
    Cut,
    /// No byte moves, and no connection ends.
    Stalled,
    /// Requests arrive, but the client gets a reset instead of the first answer, so their outcome is unknown.
    AnswersLost,
    /// Half of a request arrives, then the connection ends: possibly between two scripts of a pipeline.
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

/// A link whose condition can change while connections use it.
#[derive(Debug)]
pub struct Link {
    state: watch::Sender<LinkState>,
    /// Answers until one is lost; negative once it was.
    answers_until_loss: AtomicI64,
}

/// The current state of a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkState {
    /// The condition.
    pub(crate) condition: Condition,
    /// Resets so far: a connection that is older than the last one ends.
    pub(crate) resets: u64,
}

impl Link {
    /// A link that works.
    pub fn open() -> Arc<Self> {
        let state = LinkState { condition: Condition::Open, resets: 0 };
        Arc::new(Self { state: watch::Sender::new(state), answers_until_loss: AtomicI64::new(i64::MAX) })
    }

    /// Changes the condition. [`Condition::Cut`] also resets all connections.
    pub fn set(&self, condition: Condition) {
        self.state.send_modify(|state| {
            state.condition = condition;
            state.resets += u64::from(condition == Condition::Cut);
        });
    }

    /// Resets all connections.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.resets += 1);
    }

    /// Loses one answer, after `count` others on any connection: its client gets a reset instead.
    pub fn lose_answer_after(&self, count: u32) {
        self.answers_until_loss.store(i64::from(count), Ordering::SeqCst);
    }

    /// Whether the answer of [`Link::lose_answer_after`] is lost.
    pub fn has_lost_answer(&self) -> bool {
        self.answers_until_loss.load(Ordering::SeqCst) < 0
    }

    /// Counts an answer; returns whether it is the one to lose.
    pub(crate) fn loses_answer(&self) -> bool {
        self.answers_until_loss.fetch_sub(1, Ordering::SeqCst) == 0
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }
}
