//! The queue between the poller and a partition's task, bounded in records and in bytes.
//!
//! Together with the limits of the consumer it bounds the memory of a process, independent of its lag. At most, a process holds:
//!
//! - in each partition's queue 1 MiB and one record, in its task a batch of 512 KiB and one record, and what the fold
//!   makes of that, which is of the same size: 2 MiB with the records that vidlog writes, of some 500 bytes;
//! - in each projection's consumer 2 MiB, and one response of 4 MiB of each broker.
//!
//! With 13 projections of 12 partitions and one broker that is 13 × (12 × 2 + 6) = 390 MiB, if every one of the 156
//! partitions is behind and every store slower than the log.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use crate::log::Delivery;

/// Maximum of records in a queue. More would only use memory: the broker has them as well.
const RECORDS: usize = 2000;
/// Maximum of bytes in a queue: some batches, so that the task never waits for the poller.
const BYTES: usize = 1024 * 1024;
/// Maximum of records in a batch: enough to share a round trip, few enough that a batch takes milliseconds.
pub(super) const BATCH_RECORDS: usize = 500;
/// Maximum of bytes in a batch, which is one script per shard or one transaction. The record that exceeds it is
/// included.
const BATCH_BYTES: usize = 512 * 1024;

/// A record with its size, or a range of offsets without records.
pub(super) struct Queued {
    pub(super) delivery: Option<Delivery>,
    /// The offset after it.
    pub(super) next: i64,
    pub(super) bytes: usize,
}

impl Queued {
    /// Offsets up to `next` that hold no record.
    pub(super) const fn gap(next: i64) -> Self {
        Self { delivery: None, next, bytes: size_of::<Self>() }
    }
}

/// The sending end, for the poller.
pub(super) struct Sender {
    records: mpsc::Sender<Queued>,
    waiting: Arc<AtomicUsize>,
}

/// The receiving end, for the task.
pub(super) struct Receiver {
    records: mpsc::Receiver<Queued>,
    waiting: Arc<AtomicUsize>,
}

/// An empty queue.
pub(super) fn queue() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel(RECORDS);
    let waiting = Arc::new(AtomicUsize::new(0));
    (Sender { records: sender, waiting: waiting.clone() }, Receiver { records: receiver, waiting })
}

impl Sender {
    /// Adds a record, or returns it if there is no room. An empty queue accepts a record of any size. If the task has ended,
    /// the record is dropped.
    pub(super) fn offer(&self, queued: Queued) -> Option<Queued> {
        let bytes = queued.bytes;
        let waiting = self.waiting.load(Ordering::Acquire);
        if waiting > 0 && waiting + bytes > BYTES {
            return Some(queued);
        }
        // Before the record can be received, so that the sum never drops below zero.
        self.waiting.fetch_add(bytes, Ordering::AcqRel);
        let sent = self.records.try_send(queued);
        if sent.is_err() {
            self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        }
        match sent {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(queued)) => Some(queued),
        }
    }
}

impl Receiver {
    /// Receives at least one record and those behind it, up to the size of a batch, without waiting for more. Returns the
    /// offset after them, or `None` once the queue is closed. It is cancel safe.
    pub(super) async fn receive(&mut self, batch: &mut Vec<Delivery>) -> Option<i64> {
        let mut queued = self.records.recv().await?;
        let (mut bytes, mut received) = (0, 0);
        let next = loop {
            bytes += queued.bytes;
            received += 1;
            batch.extend(queued.delivery);
            if received >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                break queued.next;
            }
            match self.records.try_recv() {
                Ok(more) => queued = more,
                Err(_) => break queued.next,
            }
        };
        self.waiting.fetch_sub(bytes, Ordering::AcqRel);
        Some(next)
    }

    /// Whether the queue is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::{Timestamp, message::OwnedMessage};
    use vidlog_events::DecodeError;

    use super::*;

    fn queued(bytes: usize) -> Queued {
        let error = DecodeError::MissingHeader("ce_id");
        let message = OwnedMessage::new(None, None, String::new(), Timestamp::NotAvailable, 0, 0, None);
        Queued { delivery: Some(Delivery { message, decoded: Err(error) }), next: 1, bytes }
    }

    async fn take(receiver: &mut Receiver) -> usize {
        let mut batch = Vec::new();
        receiver.receive(&mut batch).await;
        batch.len()
    }

    #[tokio::test]
    async fn gap_behind_records_moves_the_next_offset() {
        let (sender, mut receiver) = queue();
        assert!(sender.offer(queued(1)).is_none());
        assert!(sender.offer(Queued::gap(7)).is_none());
        let mut batch = Vec::new();
        assert_eq!(receiver.receive(&mut batch).await, Some(7));
        assert_eq!(batch.len(), 1);
    }

    #[tokio::test]
    async fn queue_is_full_by_records_or_bytes() {
        let (sender, mut receiver) = queue();
        assert!((0..RECORDS).all(|_| sender.offer(queued(1)).is_none()));
        assert!(sender.offer(queued(1)).is_some());
        assert_eq!(take(&mut receiver).await, BATCH_RECORDS);
        assert!(sender.offer(queued(BYTES)).is_some(), "too large beside the others");
        assert!(sender.offer(queued(1)).is_none());
        while !receiver.is_empty() {
            take(&mut receiver).await;
        }
        assert!(sender.offer(queued(10 * BYTES)).is_none(), "alone it may be as large as it is");
        assert!(sender.offer(queued(1)).is_some());
        assert_eq!(take(&mut receiver).await, 1);
        assert!(sender.offer(queued(1)).is_none());
    }

    #[tokio::test]
    async fn batch_is_bounded_by_records_and_bytes() {
        let (sender, mut receiver) = queue();
        let third = BATCH_BYTES / 3 + 1;
        assert!((0..5).all(|_| sender.offer(queued(third)).is_none()));
        assert_eq!(take(&mut receiver).await, 3);
        assert_eq!(take(&mut receiver).await, 2);
        drop(sender);
        assert_eq!(take(&mut receiver).await, 0);
    }
}
