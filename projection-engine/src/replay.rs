//! Folds a stretch of the log into a sink, without a consumer group: what a rebuild and a look into the past are made of.
//!
//! A sink begins where it stands, so a replay that was cut off is simply run again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rdkafka::{Message, Offset, TopicPartitionList, consumer::Consumer};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use vidlog_schemas::keys::Key;

use crate::{
    dead_letters::{Intake, IntakeError, Post},
    log::{Delivery, Log, Offsets, Partition},
    store::{Position, StoreError, sink::Sink},
};

/// Records in a batch.
const BATCH: usize = 500;
/// Records that wait for a partition's task.
const QUEUE: usize = 2 * BATCH;
/// How long the broker may take to answer, or to send the next record.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest that the reading thread does not look whether it is still wanted.
const POLL: Duration = Duration::from_millis(100);
/// Attempts to write a batch, with a pause that grows between them: half a minute of a store that is away.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(50);

/// What a replay tells about itself while it goes on.
#[derive(Default)]
pub struct Tally {
    /// Records that were folded.
    pub folded: AtomicI64,
    /// The Redis keys that were written to, if someone wants to know.
    pub touched: Option<Mutex<BTreeSet<Key>>>,
}

/// Folds what a sink does not have yet before some places, and settles it there.
pub async fn replay(log: &Log, sink: &Sink, until: &Offsets, tally: &Arc<Tally>) -> anyhow::Result<()> {
    let partitions: Vec<Partition> = until.keys().copied().collect();
    let positions = sink.positions(&partitions).await.context("the store does not say where it stands")?;
    let post = Post::new(log.clone());
    let mut queues = BTreeMap::new();
    let mut from = Offsets::new();
    let mut tasks = JoinSet::new();
    for (partition, position) in partitions.into_iter().zip(positions) {
        let end = until.get(&partition).copied().unwrap_or_default();
        if position.lowest() >= end {
            continue;
        }
        from.insert(partition, position.lowest());
        let (queue, records) = mpsc::channel(QUEUE);
        queues.insert(partition, queue);
        let (sink, post, tally) = (sink.clone(), post.clone(), tally.clone());
        let folding = Folding { sink, post, partition, position, end, tally };
        tasks.spawn(folding.run(records));
    }
    let (log, until) = (log.clone(), until.clone());
    // Dropped when this future is, which ends the reading.
    let wanted = Wanted(Arc::new(AtomicBool::new(true)));
    let still_wanted = wanted.0.clone();
    let reading = spawn_blocking(move || read(&log, from, &until, &queues, &still_wanted));
    while let Some(folded) = tasks.join_next().await {
        folded.context("folding a partition panicked")??;
    }
    reading.await.context("reading the log panicked")?
}

struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Reads partitions from some places until others, and hands over what comes. It blocks.
fn read(
    log: &Log,
    mut from: Offsets,
    until: &Offsets,
    queues: &BTreeMap<Partition, Sender<Delivery>>,
    wanted: &AtomicBool,
) -> anyhow::Result<()> {
    if from.is_empty() {
        return Ok(());
    }
    let consumer = log.consumer()?;
    let mut list = TopicPartitionList::new();
    for (partition, offset) in &from {
        let topic = log.topics.name(partition.stream);
        list.add_partition_offset(&topic, partition.number, Offset::Offset(*offset))?;
    }
    consumer.assign(&list).context("failed to read the log")?;
    let mut heard = Instant::now();
    while !from.is_empty() && wanted.load(Ordering::Relaxed) {
        let Some(message) = consumer.poll(POLL) else {
            if heard.elapsed() > BROKER_TIMEOUT {
                bail!("the log could not be read on: nothing came for {} s", BROKER_TIMEOUT.as_secs());
            }
            continue;
        };
        let message = message.context("failed to read the log")?;
        heard = Instant::now();
        let Some(stream) = log.topics.stream(message.topic()) else {
            continue;
        };
        let partition = Partition { stream, number: message.partition() };
        let end = until.get(&partition).copied().unwrap_or_default();
        if !from.contains_key(&partition) || message.offset() >= end {
            continue;
        }
        let delivery = Delivery::read(stream, &message);
        if queues.get(&partition).is_none_or(|queue| queue.blocking_send(delivery).is_err()) {
            // The task has ended with an error, which is the one to tell.
            return Ok(());
        }
        if message.offset() + 1 == end {
            from.remove(&partition);
        }
        heard = Instant::now();
    }
    Ok(())
}

/// Folds one partition.
struct Folding {
    sink: Sink,
    post: Post,
    partition: Partition,
    position: Position,
    end: i64,
    tally: Arc<Tally>,
}

impl Folding {
    async fn run(self, mut deliveries: Receiver<Delivery>) -> anyhow::Result<()> {
        let mut next = self.position.lowest();
        let (sink, post) = (self.sink.clone(), self.post.clone());
        let opened = Intake::open(sink, post, self.partition, self.position.clone()).await;
        let mut intake = opened.with_context(|| format!("in {}", self.partition.field()))?;
        while next < self.end {
            let mut batch = Vec::with_capacity(BATCH);
            if deliveries.recv_many(&mut batch, BATCH).await == 0 {
                bail!("{} was read to {next} only, not to {}", self.partition.field(), self.end);
            }
            next = batch.last().map_or(next, |delivery| delivery.offset() + 1);
            if let Some(touched) = &self.tally.touched {
                let records: Vec<_> = batch.iter().filter_map(Delivery::record).collect();
                let keys = self.sink.keys_written(&records);
                touched.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
            }
            self.write(&mut intake, &batch, next).await?;
            self.tally.folded.fetch_add(i64::try_from(batch.len()).unwrap_or_default(), Ordering::Relaxed);
        }
        self.write(&mut intake, &[], next).await
    }

    /// Writes a batch, or settles if there is none.
    async fn write(&self, intake: &mut Intake, batch: &[Delivery], next: i64) -> anyhow::Result<()> {
        let mut attempt = 0;
        loop {
            let written = if batch.is_empty() {
                intake.settle(next).await.map_err(IntakeError::from)
            } else {
                intake.take(batch).await
            };
            match written {
                Ok(()) => return Ok(()),
                Err(IntakeError::Sink(StoreError::Retry(_)) | IntakeError::Post(_)) if attempt < ATTEMPTS => {
                    sleep(PAUSE * (1 << attempt)).await;
                    attempt += 1;
                }
                Err(error) => return Err(error).with_context(|| format!("in {}", self.partition.field())),
            }
        }
    }
}
