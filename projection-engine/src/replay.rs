//! Replays a range of the log into a view's store, without a consumer group, for rebuilds and for views of the past.
//!
//! A replay starts at the store's position, so an interrupted one can run again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use vidlog_events::Stream;
use vidlog_schemas::keys::Key;

use crate::{
    dead_letters::{ApplyError, BatchApplier, DeadLetterQueue},
    log::{Delivery, Item, Log, Offsets, Partition, Ranges, Source},
    store::{Position, SharedStore, StoreError},
};

/// Records in a batch.
const BATCH: usize = 500;
/// Maximum of records in the queue of a partition's task.
const QUEUE: usize = 2 * BATCH;
/// Retries of a write, and the first pause between them, which doubles: about 50 s of an unavailable store.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// Progress of a replay, updated while it runs.
#[derive(Default)]
pub struct ReplayProgress {
    /// The number of folded records.
    pub folded: AtomicI64,
    /// The members of Redis keys that may have changed; `None` if they are not collected.
    pub touched: Option<Mutex<BTreeSet<(Key, String)>>>,
}

/// Folds the records before some end offsets that a store does not have yet. Then aligns the view at the end offsets,
/// or at the log start offset if that is higher. A store without a position starts at the log start offset.
pub async fn replay(
    log: &Log,
    store: &SharedStore,
    until: &Offsets,
    progress: &Arc<ReplayProgress>,
) -> anyhow::Result<()> {
    let partitions: Vec<Partition> = until.keys().copied().collect();
    let positions = store.positions(&partitions).await.context("failed to read the view's position")?;
    let behind: BTreeMap<Partition, (Position, i64)> = partitions
        .into_iter()
        .zip(positions)
        .filter_map(|(partition, position)| {
            let end = until.get(&partition).copied().filter(|end| position.lowest() < *end)?;
            Some((partition, (position, end)))
        })
        .collect();
    let starts = log_starts(log, &behind).await?;
    let dead_letters = DeadLetterQueue::new(log.clone());
    let (mut queues, mut ranges) = (BTreeMap::new(), Ranges::new());
    let mut tasks = JoinSet::new();
    for (partition, (position, end)) in behind {
        let start = starts.get(&partition).copied().unwrap_or_default();
        let from = position.read_from(start).with_context(|| {
            let field = partition.id();
            format!("{field} begins at {start}, after the view's position; drop the view, then fold it again")
        })?;
        let end = end.max(from);
        ranges.insert(partition, from..end);
        let (queue, records) = mpsc::channel(QUEUE);
        queues.insert(partition, queue);
        let (store, dead_letters, progress) = (store.clone(), dead_letters.clone(), progress.clone());
        let task = PartitionReplay { store, dead_letters, partition, position, from, end, progress };
        tasks.spawn(task.run(records));
    }
    let log = log.clone();
    let cancelled = CancellationToken::new();
    let is_cancelled = cancelled.clone();
    // Cancels the read when this future is dropped.
    let guard = cancelled.drop_guard();
    let reading = spawn_blocking(move || read(&log, &ranges, &queues, &is_cancelled));
    let mut folded = Ok(());
    while folded.is_ok()
        && let Some(ended) = tasks.join_next().await
    {
        folded = ended.context("folding a partition panicked").flatten();
    }
    tasks.abort_all();
    drop(guard);
    // A failed read also fails the tasks, so its error comes first.
    reading.await.context("reading the log panicked")??;
    folded
}

/// Returns the log start offsets of the streams of which the view is empty in a partition.
async fn log_starts(log: &Log, behind: &BTreeMap<Partition, (Position, i64)>) -> anyhow::Result<Offsets> {
    let is_empty = |(partition, (position, _)): (&Partition, &(Position, i64))| {
        (position.lowest() == 0).then_some(partition.stream)
    };
    let streams: BTreeSet<Stream> = behind.iter().filter_map(is_empty).collect();
    if streams.is_empty() {
        return Ok(Offsets::new());
    }
    let extents = log.extents(streams.into_iter().collect()).await?;
    Ok(extents.into_iter().map(|(partition, extent)| (partition, extent.start)).collect())
}

/// A record, or `None` at the end of the range.
type Received = Option<Delivery>;

/// Reads ranges of the log into the queues of the tasks. Blocks.
fn read(
    log: &Log,
    ranges: &Ranges,
    queues: &BTreeMap<Partition, Sender<Received>>,
    cancelled: &CancellationToken,
) -> anyhow::Result<()> {
    log.read(
        Source::Events,
        ranges,
        || cancelled.is_cancelled(),
        |partition, item| {
            let received = match item {
                Item::Record(message) => Some(Delivery::read(partition.stream, message)),
                Item::End => None,
            };
            // A task that ended returned an error, which the caller reports.
            let is_sent = queues.get(&partition).is_some_and(|queue| queue.blocking_send(received).is_ok());
            Ok(if is_sent { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        },
    )
}

/// The task of one partition.
struct PartitionReplay {
    store: SharedStore,
    dead_letters: DeadLetterQueue,
    partition: Partition,
    position: Position,
    /// The offset of the first record to read.
    from: i64,
    end: i64,
    progress: Arc<ReplayProgress>,
}

impl PartitionReplay {
    async fn run(self, mut records: Receiver<Received>) -> anyhow::Result<()> {
        let (store, dead_letters) = (self.store.clone(), self.dead_letters.clone());
        let opened = BatchApplier::open(store, dead_letters, self.partition, self.position.clone()).await;
        let mut applier = opened.with_context(|| format!("partition {}", self.partition.id()))?;
        let (mut next, mut is_read) = (self.from, false);
        while !is_read {
            let mut received = Vec::with_capacity(BATCH);
            if records.recv_many(&mut received, BATCH).await == 0 {
                bail!("{} was read only to {next}, not to {}", self.partition.id(), self.end);
            }
            is_read = received.last().is_some_and(Option::is_none);
            let batch: Vec<Delivery> = received.into_iter().flatten().collect();
            next = batch.last().map_or(next, |delivery| delivery.offset() + 1);
            if !batch.is_empty() {
                self.fold(&mut applier, &batch, next).await?;
            }
        }
        self.write(&mut applier, &[], self.end).await
    }

    async fn fold(&self, applier: &mut BatchApplier, batch: &[Delivery], next: i64) -> anyhow::Result<()> {
        if let Some(touched) = &self.progress.touched {
            let records: Vec<_> = batch.iter().filter_map(Delivery::record).collect();
            let members = self.store.members_written(&records);
            touched.lock().unwrap_or_else(PoisonError::into_inner).extend(members);
        }
        self.write(applier, batch, next).await?;
        self.progress.folded.fetch_add(i64::try_from(batch.len()).unwrap_or_default(), Ordering::Relaxed);
        Ok(())
    }

    /// Writes a batch, or aligns the view if the batch is empty. Retries while a store or the broker is unavailable.
    async fn write(&self, applier: &mut BatchApplier, batch: &[Delivery], next: i64) -> anyhow::Result<()> {
        let mut attempt = 0;
        loop {
            let written = if batch.is_empty() {
                applier.align(next).await.map_err(ApplyError::from)
            } else {
                applier.apply(batch).await
            };
            match written {
                Ok(()) => return Ok(()),
                Err(ApplyError::Store(StoreError::Retry(_)) | ApplyError::DeadLetters(_))
                    if attempt < ATTEMPTS =>
                {
                    sleep(PAUSE * (1 << attempt)).await;
                    attempt += 1;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("partition {}", self.partition.id()));
                }
            }
        }
    }
}
