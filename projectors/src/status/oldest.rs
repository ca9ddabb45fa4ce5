//! Reads the time of the first record that each view does not have, which gives the lag in seconds.
//!
//! Reads one record per position from the log itself, so the lag is exact and available even if no process
//! runs.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use anyhow::Context;
use rdkafka::Message;
use tokio::{task::spawn_blocking, time::Instant};
use vidlog_projection_engine::log::{Item, Log, Partition, Ranges, Source};

/// Timeout for reading all records. What the broker does not send in time is left out. Below the timeout of the whole source
/// (`gather.rs`), which would discard what was read.
const DEADLINE: Duration = Duration::from_secs(3);

/// A position in the log: a partition and the offset of the next record.
pub(super) type LogPosition = (Partition, i64);
/// Times of the first records at or after some positions, in ms since 1970; `None` if no record follows up to
/// the end of the partition.
pub(super) type Times = BTreeMap<LogPosition, Option<i64>>;

/// Returns the times of the first records at or after some positions, up to the given ends of their
/// partitions. Positions that the broker does not send in time are missing.
pub(super) async fn times(log: &Log, positions: BTreeMap<LogPosition, i64>) -> anyhow::Result<Times> {
    let log = log.clone();
    spawn_blocking(move || read(&log, positions)).await.context("reading the log panicked")?
}

fn read(log: &Log, mut positions: BTreeMap<LogPosition, i64>) -> anyhow::Result<Times> {
    let deadline = Instant::now() + DEADLINE;
    let mut times = Times::new();
    while !positions.is_empty() && Instant::now() < deadline {
        // Reads one position per partition in each round; further positions, of other projections, follow in
        // the next rounds.
        let ranges: Ranges =
            positions.iter().map(|((partition, offset), end)| (*partition, *offset..*end)).collect();
        positions.retain(|(partition, offset), _| {
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
