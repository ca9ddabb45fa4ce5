//! The queue between the poller and a partition's task, bounded in records and in bytes, and the batches taken from it.
//!
//! With the bounds of `consumer` these make a process's memory independent of how far it is behind. At most, it holds:
//!
//! - in each partition's queue 1 MiB and one record, in its task a batch of 512 KiB and one record, and what the fold
//!   makes of that, which is of the same size: 2 MiB with the records that vidlog writes, of some 500 bytes;
//! - in each projection's consumer 2 MiB, and one answer of 4 MiB of each broker that was asked when there was room.
//!
//! With 13 projections of 12 partitions and one broker that is 13 × (12 × 2 + 6) = 390 MiB, if every one of the 156
//! partitions is behind and every store slower than the log.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use crate::log::Delivery;

/// Records that wait for a partition's task. More would only be memory: the broker keeps them as well.
const RECORDS: usize = 2000;
/// Bytes that wait for it: some batches, so that the task never waits for the poller.
const BYTES: usize = 1024 * 1024;
/// Records in a batch: enough that a round trip is shared by many, few enough that a batch takes milliseconds.
pub(super) const BATCH_RECORDS: usize = 500;
/// Bytes in a batch, which is one script a shard or one transaction. The record that goes beyond still goes in.
const BATCH_BYTES: usize = 512 * 1024;

/// A record with its weight, or the end of offsets that hold none.
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

/// The poller's end.
pub(super) struct Sender {
    records: mpsc::Sender<Queued>,
    waiting: Arc<AtomicUsize>,
}

/// The task's end.
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
    /// Puts a record in; gives it back if there is no room. One that is larger than the queue goes into an empty one. If
    /// the task has ended, the record is dropped.
    pub(super) fn offer(&self, queued: Queued) -> Option<Queued> {
        let bytes = queued.bytes;
        let waiting = self.waiting.load(Ordering::Acquire);
        if waiting > 0 && waiting + bytes > BYTES {
            return Some(queued);
        }
        // Before it can be taken, so that the sum is never below zero.
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
    /// Waits for a record, and takes it with those that are behind it, up to the size of a batch. Returns the offset after
    /// what was taken, or `None` once there will be no more. It never waits for a batch to become larger. Cut off, it has
    /// taken nothing.
    pub(super) async fn take(&mut self, batch: &mut Vec<Delivery>) -> Option<i64> {
        let mut queued = self.records.recv().await?;
        let (mut bytes, mut taken) = (0, 0);
        let next = loop {
            bytes += queued.bytes;
            taken += 1;
            batch.extend(queued.delivery);
            if taken >= BATCH_RECORDS || bytes >= BATCH_BYTES {
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

    /// Whether nothing waits.
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
        receiver.take(&mut batch).await;
        batch.len()
    }

    #[tokio::test]
    async fn gap_behind_records_moves_the_next_offset() {
        let (sender, mut receiver) = queue();
        assert!(sender.offer(queued(1)).is_none());
        assert!(sender.offer(Queued::gap(7)).is_none());
        let mut batch = Vec::new();
        assert_eq!(receiver.take(&mut batch).await, Some(7));
        assert_eq!(batch.len(), 1);
    }

    #[tokio::test]
    async fn it_is_full_by_records_or_by_bytes_and_has_room_again_when_they_are_taken() {
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
    async fn a_batch_is_bounded_by_records_and_by_bytes() {
        let (sender, mut receiver) = queue();
        let third = BATCH_BYTES / 3 + 1;
        assert!((0..5).all(|_| sender.offer(queued(third)).is_none()));
        assert_eq!(take(&mut receiver).await, 3);
        assert_eq!(take(&mut receiver).await, 2);
        drop(sender);
        assert_eq!(take(&mut receiver).await, 0);
    }
}
