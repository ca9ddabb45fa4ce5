//! Stopping: first softly, so that what was begun is finished, then hard.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long a process may take to drain. Longer than a request, shorter than the 30 s that Kubernetes grants.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// The signal to stop. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// A signal that nobody has given yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that is given when the process gets SIGTERM or SIGINT.
    pub fn on_signal() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let given = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("asked to stop; finishing what was begun");
            given.give();
        });
        Ok(shutdown)
    }

    /// Gives the signal.
    pub fn give(&self) {
        self.token.cancel();
    }

    /// Waits for the signal.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// The signal as a token, for `select!` and child tasks.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Whether the signal was given.
    pub fn is_given(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for a task to finish, and once the signal is given for at most [`DRAIN_TIMEOUT`]; then gives up on it.
    pub async fn drain<T>(&self, what: &str, task: impl Future<Output = T>) -> Option<T> {
        let deadline = async {
            self.wait().await;
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            done = task => Some(done),
            () = deadline => {
                warn!(what, timeout_s = DRAIN_TIMEOUT.as_secs(), "did not finish in time; stopping hard");
                None
            }
        }
    }
}
