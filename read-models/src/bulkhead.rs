//! Bounds the concurrent queries of each entity, so that one entity whose queries are slow does not hold all connections
//! and requests.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

/// The share of the pool that the queries of one entity may use: one of this many parts.
const PARTS: usize = 4;
/// The most queries of an entity that wait for another to end, per query that runs.
const WAITING_PER_RUNNING: usize = 4;
/// The longest wait, as for a connection of the pool.
const WAIT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a cancelled query may keep its connection busy: the server's limit for a statement
/// (`vidlog_service_kit::mysql`), and a margin. If it were shorter, cancelled queries of one entity could hold all connections.
const CANCELLED_TIME: Duration = Duration::from_millis(2500);

/// The running and waiting queries of each entity. Clones share them.
#[derive(Clone)]
pub(crate) struct Bulkhead {
    running: usize,
    entities: Arc<Mutex<HashMap<i64, Weak<Entity>>>>,
}

/// The queries of an entity. It exists while it has any.
struct Entity {
    id: i64,
    /// One permit per query that runs or waits.
    admitted: Arc<Semaphore>,
    /// One permit per query that runs.
    running: Arc<Semaphore>,
    entities: Arc<Mutex<HashMap<i64, Weak<Self>>>>,
}

/// The permission to run a query.
///
/// A permit that is dropped before [`Permit::finish`] belongs to a cancelled query, whose connection stays busy until the server
/// ends the statement. So it is released only after the longest statement.
pub(crate) struct Permit(Option<HeldPermit>);

struct HeldPermit {
    _running: OwnedSemaphorePermit,
    _admitted: OwnedSemaphorePermit,
    _entity: Arc<Entity>,
}

impl Bulkhead {
    /// Creates a bulkhead for a pool of connections.
    pub(crate) fn new(connections: u32) -> Self {
        let connections = usize::try_from(connections).unwrap_or(usize::MAX);
        Self { running: (connections / PARTS).max(1), entities: Arc::default() }
    }

    /// Waits until a query of an entity may run; `None` if too many wait already, or after a timeout.
    ///
    /// Ids of different kinds of entities may be equal; these share a limit.
    pub(crate) async fn enter(&self, entity: i64) -> Option<Permit> {
        let entity = self.entity(entity);
        let admitted = entity.admitted.clone().try_acquire_owned().ok()?;
        let running = timeout(WAIT_TIMEOUT, entity.running.clone().acquire_owned()).await.ok()?.ok()?;
        Some(Permit(Some(HeldPermit { _running: running, _admitted: admitted, _entity: entity })))
    }

    fn entity(&self, id: i64) -> Arc<Entity> {
        let mut entities = self.entities.lock();
        if let Some(entity) = entities.get(&id).and_then(Weak::upgrade) {
            return entity;
        }
        let entity = Arc::new(Entity {
            id,
            admitted: Arc::new(Semaphore::new(self.running * (1 + WAITING_PER_RUNNING))),
            running: Arc::new(Semaphore::new(self.running)),
            entities: Arc::clone(&self.entities),
        });
        entities.insert(id, Arc::downgrade(&entity));
        entity
    }
}

impl Permit {
    /// Releases the permit of a query that ended.
    pub(crate) fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // A query may be cancelled by the end of its runtime.
        if let Some(held) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                sleep(CANCELLED_TIME).await;
                drop(held);
            });
        }
    }
}

impl Drop for Entity {
    fn drop(&mut self) {
        let mut entities = self.entities.lock();
        // Another query may have created its successor meanwhile.
        if entities.get(&self.id).is_some_and(|entity| entity.strong_count() == 0) {
            entities.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn slow_entity_leaves_room_for_others() {
        let bulkhead = Bulkhead::new(8);
        let running = [bulkhead.enter(1).await.unwrap(), bulkhead.enter(1).await.unwrap()];
        let enter = || {
            let bulkhead = bulkhead.clone();
            tokio::spawn(async move { bulkhead.enter(1).await.map(Permit::finish).is_some() })
        };
        let waiting: Vec<_> = (0..8).map(|_| enter()).collect();
        tokio::task::yield_now().await;
        let start = tokio::time::Instant::now();
        assert!(bulkhead.enter(1).await.is_none(), "too many wait");
        bulkhead.enter(2).await.unwrap().finish();
        assert_eq!(start.elapsed(), Duration::ZERO);
        running.into_iter().for_each(Permit::finish);
        for waiting in waiting {
            assert!(waiting.await.unwrap());
        }
        assert!(bulkhead.entities.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn wait_for_a_slow_entity_ends() {
        let bulkhead = Bulkhead::new(1);
        let running = bulkhead.enter(1).await.unwrap();
        assert!(bulkhead.enter(1).await.is_none());
        running.finish();
        bulkhead.enter(1).await.unwrap().finish();
        assert!(bulkhead.entities.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_query_holds_its_permit_until_its_statement_ends() {
        let bulkhead = Bulkhead::new(1);
        drop(bulkhead.enter(1).await.unwrap());
        assert!(bulkhead.enter(1).await.is_none(), "the connection is busy");
        bulkhead.enter(1).await.unwrap().finish();
        assert!(bulkhead.entities.lock().is_empty());
    }
}
