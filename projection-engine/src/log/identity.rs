//! The identity of the log: the id of the first record that consumers receive from a partition, which no other log
//! has. A log whose first records were deleted has no identity.
//!
//! A store keeps the identity beside its views. So no view continues with the log of another cluster, nor with a
//! topic that was created again under the same name, even if that one has the next offset.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{Message, message::Headers};

use super::{Item, Log, Offsets, Partition, Ranges, Source};

/// Lifetime of a cached identity: projections that start together share one query. If a topic is created
/// again while a process runs, its consumers restart later than this.
const CACHE_TTL: Duration = Duration::from_secs(2);
/// Timeout for the first records.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The header with the event's id.
const ID: &str = "ce_id";

/// Reads and caches the identities of partitions, for all projections of a process.
pub struct FirstRecords {
    log: Log,
    cache: Mutex<HashMap<Partition, (Instant, String)>>,
}

impl FirstRecords {
    /// Creates an empty cache for a log.
    pub fn new(log: Log) -> Self {
        Self { log, cache: Mutex::default() }
    }

    /// Returns the identity of each of some partitions that begin at offset 0, given their ends; `None` for one
    /// without a record. Omits partitions for which the broker does not respond in time. Blocks.
    pub fn read(&self, ends: &Offsets) -> anyhow::Result<BTreeMap<Partition, Option<String>>> {
        self.cache().retain(|_, (at, _)| at.elapsed() < CACHE_TTL);
        let cache = self.cache().clone();
        let mut found: BTreeMap<_, _> = ends
            .keys()
            .filter_map(|partition| Some((*partition, Some(cache.get(partition)?.1.clone()))))
            .collect();
        let missing = ends.iter().filter(|(partition, _)| !cache.contains_key(partition));
        let missing: Ranges = missing.map(|(partition, end)| (*partition, 0..*end)).collect();
        let start = Instant::now();
        // Without the lock: the broker may respond to other projections sooner.
        self.log.read(
            Source::Events,
            &missing,
            || start.elapsed() > TIMEOUT,
            |partition, item| {
                let first = match item {
                    Item::Record(message) => Some(identity(message)),
                    Item::End => None,
                };
                found.insert(partition, first);
                Ok(ControlFlow::Break(()))
            },
        )?;
        let now = Instant::now();
        let read = missing.keys().filter_map(|partition| {
            let first = found.get(partition)?.clone()?;
            Some((*partition, (now, first)))
        });
        self.cache().extend(read);
        Ok(found)
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<Partition, (Instant, String)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the identity of a partition from its first record.
pub fn identity<M: Message>(message: &M) -> String {
    let id = message.headers().and_then(|headers| headers.iter().find(|header| header.key == ID)?.value);
    match id.and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) => id.to_owned(),
        // Not an event. Its time differs from that of the first record of another log.
        None => format!("{:?}", message.timestamp()),
    }
}
