//! Graceful shutdown: drains work in progress, up to a timeout.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Limit on draining: longer than a request, shorter than the 30 s grace period of Kubernetes.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// A shutdown signal. Clones share its state.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
}

impl Shutdown {
    /// Creates a signal that is not requested yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a signal that SIGTERM or SIGINT requests.
    pub fn on_signal() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let requested = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("shutdown requested, draining");
            requested.request();
        });
        Ok(shutdown)
    }

    /// Requests shutdown.
    pub fn request(&self) {
        self.token.cancel();
    }

    /// Waits until shutdown is requested.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Returns the signal as a token, for `select!` and child tasks.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Returns whether shutdown is requested.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Runs a task to its end, but drops it and returns `None` if it is still running [`DRAIN_TIMEOUT`] after the
    /// request.
    pub async fn drain<T>(&self, task_name: &str, task: impl Future<Output = T>) -> Option<T> {
        let deadline = async {
            self.wait().await;
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            done = task => Some(done),
            () = deadline => {
                warn!(task = task_name, timeout_s = DRAIN_TIMEOUT.as_secs(), "drain timed out");
                None
            }
        }
    }
}
