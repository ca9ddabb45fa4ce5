//! The first record that a view does not have: its age is how far the view is behind in time.
//!
//! It is read from the log itself, one record for each place, so that it is exact and known also while nothing runs.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use anyhow::Context;
use rdkafka::Message;
use tokio::{task::spawn_blocking, time::Instant};
use vidlog_projection_engine::log::{Item, Log, Partition, Ranges, Source};

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// A place in the log: a partition, and the offset of the next record.
pub(super) type Place = (Partition, i64);
/// The times of the first records at or after some places, in ms since 1970; `None` where the log has none up to its end.
pub(super) type Times = BTreeMap<Place, Option<i64>>;

/// The times of the first records at some places, up to the ends of their partitions. What the broker did not send in time
/// is missing.
pub(super) async fn times(log: &Log, places: BTreeMap<Place, i64>) -> anyhow::Result<Times> {
    let log = log.clone();
    spawn_blocking(move || read(&log, places)).await.context("reading the log panicked")?
}

fn read(log: &Log, mut places: BTreeMap<Place, i64>) -> anyhow::Result<Times> {
    let deadline = Instant::now() + DEADLINE;
    let mut times = Times::new();
    while !places.is_empty() && Instant::now() < deadline {
        // One place of each partition; the others, of projections that are elsewhere, come next.
        let ranges: Ranges =
            places.iter().map(|((partition, offset), end)| (*partition, *offset..*end)).collect();
        places.retain(|(partition, offset), _| {
            ranges.get(partition).is_none_or(|range| range.start != *offset)
        });
        log.read(
            Source::Events,
            &ranges,
            || Instant::now() >= deadline,
            |partition, item| {
                let time = match item {
                    Item::Record(message) => message.timestamp().to_millis(),
                    Item::End => None,
                };
                if let Some(range) = ranges.get(&partition) {
                    times.insert((partition, range.start), time);
                }
                Ok(ControlFlow::Break(()))
            },
        )?;
    }
    Ok(times)
}
