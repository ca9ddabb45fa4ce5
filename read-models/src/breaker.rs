//! A circuit breaker: while a store is away, calls fail at once instead of each waiting for it.

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

/// How often a store that is away is tried. It bounds how late it is noticed that the store is back.
const PROBE_PAUSE: Duration = Duration::from_millis(250);

/// Whether calls may go through. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Breaker {
    is_open: Arc<AtomicBool>,
}

/// A store behind a breaker.
pub(crate) trait Guarded: Clone + Send + Sync + 'static {
    /// Which.
    const STORE: Store;

    /// Its breaker.
    fn breaker(&self) -> &Breaker;

    /// Asks the store whether it is there.
    fn probe(&self) -> impl Future<Output = Result<(), ReadError>> + Send;
}

/// Makes a call, if the store was not found to be away. A call that finds it so opens the circuit, for all, until
/// the store answers again: which is tried beside the calls, so that none of them waits for it.
pub(crate) async fn guard<S: Guarded, T, E: Into<ReadError>>(
    guarded: &S,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, ReadError> {
    if guarded.breaker().is_open.load(Ordering::Relaxed) {
        let reason = "it did not answer a moment ago".to_owned();
        return Err(ReadError::Unavailable { store: S::STORE, reason });
    }
    let result = call.await.map_err(Into::into);
    if let Err(error) = &result
        && error.is_unavailable(S::STORE)
    {
        counter!(STORE_FAILURES, "store" => S::STORE.name()).increment(1);
        if !guarded.breaker().is_open.swap(true, Ordering::Relaxed) {
            warn!(store = %S::STORE, %error, "a store went away");
            tokio::spawn(close_when_back(guarded.clone()));
        }
    }
    result
}

async fn close_when_back<S: Guarded>(guarded: S) {
    // Ours is the last clone when the process has no use for the store any more.
    while Arc::strong_count(&guarded.breaker().is_open) > 1 {
        sleep(PROBE_PAUSE).await;
        if guarded.probe().await.is_ok() {
            info!(store = %S::STORE, "the store is back");
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
        is_there: Arc<AtomicBool>,
        calls: Arc<AtomicUsize>,
    }

    impl Guarded for Fake {
        const STORE: Store = Store::Redis;

        fn breaker(&self) -> &Breaker {
            &self.breaker
        }

        async fn probe(&self) -> Result<(), ReadError> {
            Ok(self.answer()?)
        }
    }

    impl Fake {
        fn answer(&self) -> Result<(), redis::RedisError> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let is_there = self.is_there.load(Ordering::Relaxed);
            is_there.then_some(()).ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused).into())
        }

        async fn call(&self) -> Result<(), ReadError> {
            guard(self, async { self.answer() }).await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_fail_without_trying_until_the_store_is_back() {
        let store = Fake::default();
        for _ in 0..10 {
            assert!(store.call().await.unwrap_err().is_unavailable(Store::Redis));
        }
        assert_eq!(store.calls.load(Ordering::Relaxed), 1, "one call was enough to know");
        sleep(PROBE_PAUSE * 4).await;
        assert!(store.call().await.is_err());
        store.is_there.store(true, Ordering::Relaxed);
        sleep(PROBE_PAUSE * 2).await;
        assert!(store.call().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_nobody_uses_any_more_is_not_tried_for_ever() {
        let store = Fake::default();
        let calls = Arc::clone(&store.calls);
        assert!(store.call().await.is_err());
        drop(store);
        sleep(PROBE_PAUSE * 100).await;
        assert!(calls.load(Ordering::Relaxed) <= 2);
    }
}
