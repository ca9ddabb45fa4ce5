//! The first record that a view does not have: its age is how far the view is behind in time.
//!
//! It is read from the log itself, one record for each place, so that it is exact and known also while nothing runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::Context;
use rdkafka::{Message, Offset, TopicPartitionList, consumer::Consumer};
use tokio::task::spawn_blocking;
use vidlog_projection_engine::log::{Log, Partition};

/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// A place in the log: a partition, and the offset of the next record.
pub(super) type Place = (Partition, i64);

/// The times of the records at some places, in ms since 1970. What the broker did not send in time is missing.
pub(super) async fn times(log: &Log, places: BTreeSet<Place>) -> anyhow::Result<BTreeMap<Place, i64>> {
    let log = log.clone();
    spawn_blocking(move || read(&log, places)).await.context("reading the log panicked")?
}

fn read(log: &Log, mut places: BTreeSet<Place>) -> anyhow::Result<BTreeMap<Place, i64>> {
    let deadline = Instant::now() + DEADLINE;
    let mut times = BTreeMap::new();
    while !places.is_empty() && Instant::now() < deadline {
        // One place of each partition; the others, of projections that are elsewhere, come next.
        let round: BTreeMap<Partition, i64> = places.iter().copied().collect();
        places.retain(|(partition, offset)| round.get(partition) != Some(offset));
        read_round(log, round, deadline, &mut times)?;
    }
    Ok(times)
}

fn read_round(
    log: &Log,
    mut round: BTreeMap<Partition, i64>,
    deadline: Instant,
    times: &mut BTreeMap<Place, i64>,
) -> anyhow::Result<()> {
    let consumer = log.consumer()?;
    let mut list = TopicPartitionList::new();
    for (partition, offset) in &round {
        list.add_partition_offset(
            &log.topics.name(partition.stream),
            partition.number,
            Offset::Offset(*offset),
        )?;
    }
    consumer.assign(&list).context("failed to read the log")?;
    while !round.is_empty() && Instant::now() < deadline {
        let Some(message) = consumer.poll(POLL) else { continue };
        let message = message.context("failed to read the log")?;
        let Some(stream) = log.topics.stream(message.topic()) else { continue };
        let partition = Partition { stream, number: message.partition() };
        if let Some(offset) = round.remove(&partition)
            && let Some(time) = message.timestamp().to_millis()
        {
            times.insert((partition, offset), time);
        }
    }
    Ok(())
}
