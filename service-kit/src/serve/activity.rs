//! What a connection is doing, recorded by its stream and its requests, and how long it may go on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{
    open_connections::{Activeness, Entry},
    timeouts::Timeouts,
};

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// The head of a request did not arrive in time.
    Head,
    /// No next request arrived.
    Idle,
    /// The client does not take the response.
    Write,
}

impl Overdue {
    /// Label in the metrics.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::Head => "slow_head",
            Self::Idle => "idle",
            Self::Write => "slow_reader",
        }
    }
}

/// The activity of one connection. Clones share it.
#[derive(Clone)]
pub(super) struct Activity {
    state: Arc<Mutex<State>>,
    timeouts: Timeouts,
}

struct State {
    phase: Phase,
    /// When the phase began, or data was last written.
    since: Instant,
    /// Since when a write waits for the client.
    blocked_since: Option<Instant>,
    /// Whether the client may still be sending a request that is not read further.
    has_unread_input: bool,
    entry: Entry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The connection has sent nothing.
    Opened,
    /// A request's head is arriving.
    Head,
    /// A request is being handled, or its response sent.
    Request,
    /// A response is complete, and no next request has begun.
    Idle,
}

impl Activity {
    /// Records a new connection.
    pub(super) fn new(timeouts: Timeouts, entry: Entry) -> Self {
        let (phase, since) = (Phase::Opened, Instant::now());
        let mut state = State { phase, since, blocked_since: None, has_unread_input: false, entry };
        state.update_entry();
        Self { state: Arc::new(Mutex::new(state)), timeouts }
    }

    /// Records that bytes arrived.
    pub(super) fn received(&self) {
        let mut state = self.state();
        match state.phase {
            // The time of the first head includes the wait for its first byte.
            Phase::Opened => {}
            Phase::Idle => state.since = Instant::now(),
            Phase::Head | Phase::Request => return,
        }
        state.phase = Phase::Head;
        state.update_entry();
    }

    /// Records that a request's head is complete.
    pub(super) fn request_began(&self) {
        let mut state = self.state();
        state.phase = Phase::Request;
        state.has_unread_input = false;
        // The head of a pipelined request arrives before the connection is idle.
        state.update_entry();
    }

    /// Records that a response is ready before its request's body is read.
    pub(super) fn left_input_unread(&self) {
        self.state().has_unread_input = true;
    }

    /// Records that a response is complete.
    pub(super) fn response_ended(&self) {
        let mut state = self.state();
        (state.phase, state.since) = (Phase::Idle, Instant::now());
        state.update_entry();
    }

    /// Records that the client took data.
    pub(super) fn write_progressed(&self) {
        let mut state = self.state();
        let was_blocked = state.blocked_since.take().is_some();
        if state.phase == Phase::Idle {
            // The end of the response is still being written.
            state.since = Instant::now();
        }
        if was_blocked {
            state.update_entry();
        }
    }

    /// Records that a write has to wait for the client. Until it goes on, the connection cannot close on request, so
    /// it is not idle.
    pub(super) fn write_blocked(&self) {
        let mut state = self.state();
        if state.blocked_since.is_none() {
            state.blocked_since = Some(Instant::now());
            state.update_entry();
        }
    }

    /// Returns when the connection is overdue, and why. `None` while a handler works: it has its own deadlines.
    pub(super) fn deadline(&self) -> Option<(Instant, Overdue)> {
        let state = self.state();
        if let Some(blocked) = state.blocked_since {
            return Some((blocked + self.timeouts.write, Overdue::Write));
        }
        match state.phase {
            Phase::Opened | Phase::Head => Some((state.since + self.timeouts.head, Overdue::Head)),
            Phase::Idle => Some((state.since + self.timeouts.idle, Overdue::Idle)),
            Phase::Request => None,
        }
    }

    /// Returns whether the client may still be sending a request that was refused.
    pub(super) fn has_unread_input(&self) -> bool {
        let state = self.state();
        state.has_unread_input || state.phase == Phase::Head
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn update_entry(&mut self) {
        self.entry.set(match self.phase {
            _ if self.blocked_since.is_some() => Activeness::Busy,
            Phase::Opened | Phase::Idle => Activeness::Idle,
            Phase::Head => Activeness::Head,
            Phase::Request => Activeness::Busy,
        });
    }
}
