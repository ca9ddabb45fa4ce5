//! Which log it is: a partition is known by the first record that consumers receive, whose id no other log has. A log
//! whose first records were deleted has no identity.
//!
//! A store remembers it beside its views. So a view is not folded on from another cluster, nor from a topic that was made
//! again under the same name, even where that is long enough.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{Message, message::Headers};

use super::{Item, Log, Offsets, Partition, Ranges, Source};

/// How long what was read stays true: projections that start one after the other ask once. A topic that is made again
/// while a process runs makes its consumers start anew, later than this.
const KEPT: Duration = Duration::from_secs(2);
/// How long the broker may take to send the first records.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The header with the event's id.
const ID: &str = "ce_id";

/// Reads the first records of partitions, for all projections of a process.
pub struct FirstRecords {
    log: Log,
    known: Mutex<HashMap<Partition, (Instant, String)>>,
}

impl FirstRecords {
    /// The first records of a log.
    pub fn new(log: Log) -> Self {
        Self { log, known: Mutex::default() }
    }

    /// The identity of each of some partitions that begin at offset 0, up to their ends; `None` of those that have no
    /// record yet. Partitions for which the broker does not answer in time are left out. Blocks.
    pub fn read(&self, ends: &Offsets) -> anyhow::Result<BTreeMap<Partition, Option<String>>> {
        self.known().retain(|_, (at, _)| at.elapsed() < KEPT);
        let known = self.known().clone();
        let mut found: BTreeMap<_, _> = ends
            .keys()
            .filter_map(|partition| Some((*partition, Some(known.get(partition)?.1.clone()))))
            .collect();
        let unknown = ends.iter().filter(|(partition, _)| !known.contains_key(partition));
        let unknown: Ranges = unknown.map(|(partition, end)| (*partition, 0..*end)).collect();
        let begun = Instant::now();
        // Unlocked: the broker may answer other projections faster than this one.
        self.log.read(
            Source::Events,
            &unknown,
            || begun.elapsed() > TIMEOUT,
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
        let read = unknown.keys().filter_map(|partition| {
            let first = found.get(partition)?.clone()?;
            Some((*partition, (now, first)))
        });
        self.known().extend(read);
        Ok(found)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Partition, (Instant, String)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What identifies a partition, by its first record.
pub fn identity<M: Message>(message: &M) -> String {
    let id = message.headers().and_then(|headers| headers.iter().find(|header| header.key == ID)?.value);
    match id.and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) => id.to_owned(),
        // No event of ours. Its time is enough to tell it from the first record of another log.
        None => format!("{:?}", message.timestamp()),
    }
}
