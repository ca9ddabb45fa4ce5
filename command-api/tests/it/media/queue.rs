//! The queue of uploads: turns, leases, and what counts as a try.

use std::time::Duration;

use futures::{StreamExt, stream};
use vidlog_command_api::media::{
    jobs::{Job, JobStore},
    retry::{Failure, History, Reason},
};

use super::support::*;
use crate::support::World;

/// A time of MySQL's clock.
const NOW: i64 = 1_700_000_000_000;
const LEASE: Duration = Duration::from_secs(1);

/// The queue, for a worker of a name.
fn queue(world: &World, worker: &str) -> JobStore {
    JobStore::new(world.mysql.clone(), worker.to_owned(), LEASE)
}

/// The queue, at a time after [`NOW`].
async fn queue_after(world: &World, worker: &str, ms: i64) -> JobStore {
    JobStore::new(mysql_at(world, NOW + ms).await, worker.to_owned(), LEASE)
}

async fn claim_jobs(queue: &JobStore, count: usize) -> Vec<Job> {
    let mut unconfirmed = Vec::new();
    let jobs = queue.claim(count, &[], &mut unconfirmed).await.unwrap();
    assert_eq!(unconfirmed, []);
    jobs
}

/// Claims jobs; returns their ids.
async fn claim(queue: &JobStore, count: usize) -> Vec<i64> {
    claim_jobs(queue, count).await.iter().map(|job| job.video_id).collect()
}

#[tokio::test]
async fn authors_take_turns() {
    let (world, _api) = World::with_api().await;
    let queue = queue(&world, "a");
    queue.enqueue(&new_jobs(7, 1..=50)).await.unwrap();
    assert_eq!(claim(&queue, 2).await, [1, 2]);
    queue.enqueue(&new_jobs(8, [101, 102])).await.unwrap();
    queue.enqueue(&new_jobs(9, [103])).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..6 {
        order.extend(claim(&queue, 1).await);
    }
    assert_eq!(order, [101, 103, 3, 102, 4, 5]);
    // What author 7 has been given counts later too.
    queue.enqueue(&new_jobs(7, [51])).await.unwrap();
    queue.enqueue(&new_jobs(8, [104])).await.unwrap();
    assert_eq!(claim(&queue, 1).await, [104]);
}

#[tokio::test]
async fn interrupted_upload_does_not_come_first() {
    let (world, _api) = World::with_api().await;
    let killed = queue_after(&world, "killed", 0).await;
    killed.enqueue(&new_jobs(7, [1, 2])).await.unwrap();
    killed.enqueue(&new_jobs(8, [3])).await.unwrap();
    assert_eq!(claim(&killed, 1).await, [1]);
    assert_eq!(queue_after(&world, "next", 999).await.requeue_due().await.unwrap(), 0, "it has not ended");
    let next = queue_after(&world, "next", 1000).await;
    assert_eq!(next.requeue_due().await.unwrap(), 1);
    assert_eq!(jobs_with(&world, "interrupted").await, 1);
    assert_eq!(claim(&next, 2).await, [3, 2]);
    let again = &claim_jobs(&next, 1).await[0];
    let History { tries, interruptions, spent, .. } = again.history;
    assert_eq!((again.video_id, tries, interruptions, spent), (1, 2, 2, Duration::ZERO), "it is not charged");
    // The end that the first worker records, if it lives, has no effect.
    killed.record_failure(again, &Failure::new(Reason::Crashed, "late"), Duration::ZERO).await.unwrap();
    assert_eq!(jobs_with(&world, "crashed").await, 0);
}

#[tokio::test]
async fn only_leases_that_end_count_as_interrupted() {
    let (world, _api) = World::with_api().await;
    let queue = queue_after(&world, "a", 0).await;
    queue.enqueue(&new_jobs(7, [1, 2])).await.unwrap();
    let failed = claim_jobs(&queue, 2).await.remove(0);
    queue.record_failure(&failed, &Failure::new(Reason::Missing, "lost"), LEASE).await.unwrap();
    assert_eq!(queue_after(&world, "b", 1000).await.requeue_due().await.unwrap(), 2);
    assert_eq!((jobs_with(&world, "missing").await, jobs_with(&world, "interrupted").await), (1, 1));
}

#[tokio::test]
async fn released_upload_does_not_count_as_interrupted() {
    let (world, _api) = World::with_api().await;
    let queue = queue_after(&world, "a", 0).await;
    queue.enqueue(&new_jobs(7, [1])).await.unwrap();
    let first = claim_jobs(&queue, 1).await.remove(0);
    let later = queue_after(&world, "a", 500).await;
    later.renew(&[first.try_id()]).await.unwrap();
    assert_eq!(queue_after(&world, "a", 1499).await.requeue_due().await.unwrap(), 0, "the lease is renewed");
    queue.release(&[first.try_id()]).await.unwrap();
    let second = claim_jobs(&queue, 1).await.remove(0);
    assert_eq!((second.history.tries, second.history.interruptions), (2, 1));
    // A release that arrives late does not end a later try.
    queue.release(&[first.try_id()]).await.unwrap();
    assert_eq!(claim(&queue, 1).await, [0; 0]);
}

#[tokio::test]
async fn try_without_its_lease_is_fenced() {
    let (world, _api) = World::with_api().await;
    let queue = queue_after(&world, "a", 0).await;
    queue.enqueue(&new_jobs(7, [1])).await.unwrap();
    let first = claim_jobs(&queue, 1).await.remove(0);
    let late = queue_after(&world, "a", 1000).await;
    assert_eq!(late.requeue_due().await.unwrap(), 1);
    let claimed = late.claim(1, &[first.try_id()], &mut Vec::new()).await.unwrap();
    assert!(claimed.is_empty(), "the first try still runs");
    let second = claim_jobs(&late, 1).await.remove(0);
    // The worker is the same, the try is not.
    late.record_failure(&first, &Failure::new(Reason::Crashed, "late"), Duration::ZERO).await.unwrap();
    late.release(&[first.try_id()]).await.unwrap();
    queue_after(&world, "a", 9000).await.renew(&[first.try_id()]).await.unwrap();
    assert_eq!(jobs_with(&world, "crashed").await, 0);
    let later = queue_after(&world, "a", 1500).await;
    later.renew(&[first.try_id(), second.try_id()]).await.unwrap();
    assert_eq!(queue_after(&world, "a", 2499).await.requeue_due().await.unwrap(), 0);
    let last = queue_after(&world, "a", 2500).await;
    assert_eq!(last.requeue_due().await.unwrap(), 1);
    assert_eq!(claim_jobs(&last, 1).await[0].history.tries, 3);
}

#[tokio::test]
async fn waits_and_leases_end_after_the_clock_was_set_back() {
    const HOUR: i64 = 60 * 60 * 1000;
    let (world, _api) = World::with_api().await;
    let lost = queue_after(&world, "lost", 0).await;
    lost.enqueue(&new_jobs(7, [1, 2, 3])).await.unwrap();
    let claimed = claim_jobs(&lost, 3).await;
    lost.record_failure(&claimed[0], &Failure::new(Reason::Missing, "lost"), LEASE).await.unwrap();
    let set_back = queue_after(&world, "alive", -HOUR).await;
    assert_eq!(set_back.requeue_due().await.unwrap(), 0, "a worker that is alive can renew its lease");
    assert_eq!(jobs_with(&world, "interrupted").await, 0);
    let renewing = queue_after(&world, "lost", -HOUR + 31_000 - 1).await;
    renewing.renew(&[claimed[2].try_id()]).await.unwrap();
    assert_eq!(queue_after(&world, "alive", -HOUR + 31_000).await.requeue_due().await.unwrap(), 2);
    assert_eq!((jobs_with(&world, "missing").await, jobs_with(&world, "interrupted").await), (1, 1));
    let ages: Vec<_> = set_back.backlog().await.unwrap().iter().map(|entry| entry.oldest_s).collect();
    assert_eq!(ages, [0, 0, 0], "uploads are not younger than new");
}

#[tokio::test]
async fn running_uploads_are_skipped() {
    let (world, _api) = World::with_api().await;
    let queue = queue(&world, "a");
    queue.enqueue(&new_jobs(7, 1..=4)).await.unwrap();
    let claimed = queue.claim(1, &[(1, 1), (11, 1), (2, 7)], &mut Vec::new()).await.unwrap();
    assert_eq!(claimed.iter().map(|job| job.video_id).collect::<Vec<_>>(), [3]);
    assert_eq!(claim(&queue, 4).await, [1, 2, 4]);
}

#[tokio::test]
async fn concurrent_claims_are_disjoint() {
    let (world, _api) = World::with_api().await;
    let jobs = new_jobs(7, 1..=60);
    queue(&world, "a").enqueue(&jobs).await.unwrap();
    queue(&world, "b").enqueue(&jobs).await.unwrap();
    let claims = stream::iter(0..24).map(|number| {
        let queue = queue(&world, &number.to_string());
        async move { claim(&queue, 5).await }
    });
    let mut ids = claims.buffer_unordered(6).concat().await;
    ids.sort_unstable();
    assert_eq!(ids, (1..=60).collect::<Vec<_>>());
}
