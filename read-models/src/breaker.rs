//! A circuit breaker: while a store is unavailable, calls fail immediately instead of waiting for a timeout.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::counter;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{
    error::{ReadError, Store},
    metrics::STORE_FAILURES,
};

/// The pause between probes of an unavailable store. It bounds how late its return is detected.
const PROBE_PAUSE: Duration = Duration::from_millis(250);

/// The state of a circuit. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Breaker {
    is_open: Arc<AtomicBool>,
}

/// A store behind a breaker.
pub(crate) trait Guarded: Clone + Send + Sync + 'static {
    /// The store.
    const STORE: Store;

    /// Returns its breaker.
    fn breaker(&self) -> &Breaker;

    /// Sends a cheap command to the store.
    fn probe(&self) -> impl Future<Output = Result<(), ReadError>> + Send;
}

/// Runs a call unless the circuit is open.
///
/// A call that finds the store unavailable opens the circuit. A background task probes the store and closes the circuit
/// once a probe succeeds, so no call waits for a probe.
pub(crate) async fn guard<S: Guarded, T, E: Into<ReadError>>(
    guarded: &S,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, ReadError> {
    if guarded.breaker().is_open.load(Ordering::Relaxed) {
        let reason = "the circuit is open".to_owned();
        return Err(ReadError::Unavailable { store: S::STORE, reason });
    }
    let result = call.await.map_err(Into::into);
    if let Err(error) = &result
        && error.is_unavailable(S::STORE)
    {
        counter!(STORE_FAILURES, "store" => S::STORE.name()).increment(1);
        if !guarded.breaker().is_open.swap(true, Ordering::Relaxed) {
            warn!(store = %S::STORE, %error, "store unavailable");
            tokio::spawn(close_when_back(guarded.clone()));
        }
    }
    result
}

async fn close_when_back<S: Guarded>(guarded: S) {
    // One strong reference is this task's: then no caller uses the store any more.
    while Arc::strong_count(&guarded.breaker().is_open) > 1 {
        sleep(PROBE_PAUSE).await;
        if guarded.probe().await.is_ok() {
            info!(store = %S::STORE, "store available again");
            guarded.breaker().is_open.store(false, Ordering::Relaxed);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::atomic::AtomicUsize};

    use super::*;

    #[derive(Clone, Default)]
    struct Fake {
        breaker: Breaker,
        is_up: Arc<AtomicBool>,
        calls: Arc<AtomicUsize>,
    }

    impl Guarded for Fake {
        const STORE: Store = Store::Redis;

        fn breaker(&self) -> &Breaker {
            &self.breaker
        }

        async fn probe(&self) -> Result<(), ReadError> {
            Ok(self.reply()?)
        }
    }

    impl Fake {
        fn reply(&self) -> Result<(), redis::RedisError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let is_up = self.is_up.load(Ordering::Relaxed);
            is_up.then_some(()).ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused).into())
        }

        async fn call(&self) -> Result<(), ReadError> {
            guard(self, async { self.reply() }).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn open_circuit_fails_calls_until_the_store_is_back() {
        let store = Fake::default();
        for _ in 0..10 {
            assert!(store.call().await.unwrap_err().is_unavailable(Store::Redis));
        }
        assert_eq!(store.calls.load(Ordering::Relaxed), 1, "the first failure opens the circuit");
        sleep(PROBE_PAUSE * 4).await;
        assert!(store.call().await.is_err());
        store.is_up.store(true, Ordering::Relaxed);
        sleep(PROBE_PAUSE * 2).await;
        assert!(store.call().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn probes_stop_when_the_store_is_dropped() {
        let store = Fake::default();
        let calls = Arc::clone(&store.calls);
        assert!(store.call().await.is_err());
        drop(store);
        sleep(PROBE_PAUSE * 100).await;
        assert!(calls.load(Ordering::Relaxed) <= 2);
    }
}
