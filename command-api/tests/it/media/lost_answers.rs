//! Statements of the worker whose answers are lost. They may have been executed; the worker repeats them.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use sqlx::MySqlPool;
use vidlog_command_api::media::{
    jobs::{Job, JobStore},
    outcomes::{OutcomeError, OutcomeStore, Upload, Verdict},
    retry::{Failure, Reason},
};
use vidlog_service_kit::mysql;
use vidlog_test_support::{Link, Proxy};

use super::support::*;
use crate::support::{World, until};

const LEASE: Duration = Duration::from_mins(10);
const AUTHOR: i64 = 7;

/// Connections to the database that can lose answers.
struct LossyMySql {
    link: Arc<Link>,
    pool: MySqlPool,
    _proxy: Proxy,
}

impl LossyMySql {
    async fn connect(world: &World, connections: u32) -> Self {
        let url = world.stores.mysql_url.reveal();
        let (user, rest) = url.rsplit_once('@').unwrap();
        let (address, database) = rest.split_once('/').unwrap();
        let link = Link::open();
        let proxy = Proxy::over("127.0.0.1:0", address, Arc::clone(&link)).await.unwrap();
        let url = format!("{user}@{}/{database}", proxy.address);
        Self { link, pool: mysql::open(&url, connections).unwrap(), _proxy: proxy }
    }

    fn queue(&self) -> JobStore {
        queue(&self.pool)
    }

    /// Loses the answer after some more of the open connection. How many answers a connection has while it opens varies with
    /// the packets that they arrive in.
    async fn lose_answer_after(&self, count: u32) {
        sqlx::raw_sql("DO 0").execute(&self.pool).await.unwrap();
        until("the connection is idle", async || self.pool.num_idle() == 1).await;
        self.link.lose_answer_after(count);
    }
}

fn queue(pool: &MySqlPool) -> JobStore {
    JobStore::new(pool.clone(), "a worker".to_owned(), LEASE)
}

async fn claim(queue: &JobStore) -> Job {
    queue.claim(1, &[], &mut Vec::new()).await.unwrap().remove(0)
}

#[tokio::test]
async fn claim_without_an_answer_costs_no_try() {
    let (world, _api) = World::with_api().await;
    let lossy = LossyMySql::connect(&world, 1).await;
    let queue = queue(&world.mysql);
    let mut committed = 0;
    for lost in 0.. {
        let id = i64::from(lost) + 1;
        queue.enqueue(&new_jobs(AUTHOR, [id])).await.unwrap();
        lossy.lose_answer_after(lost).await;
        let mut unconfirmed = Vec::new();
        let claimed = lossy.queue().claim(1, &[], &mut unconfirmed).await;
        let is_lost = lossy.link.has_lost_answer();
        let has_failed = claimed.is_err();
        // The server rolls an open transaction back once it notices that its connection has ended.
        unconfirmed.extend(claimed.unwrap_or_default().iter().map(Job::try_id));
        queue.release(&unconfirmed).await.unwrap();
        let job = claim(&queue).await;
        assert_eq!((job.video_id, job.history.interruptions), (id, 1), "after {lost} answers");
        committed += i32::from(has_failed && job.history.tries == 2);
        queue.remove(&job).await.unwrap();
        if !is_lost {
            break;
        }
    }
    assert_eq!(committed, 1, "the answer to one COMMIT was lost");
}

type Operation = for<'a> fn(&'a JobStore, &'a Job) -> BoxFuture<'a, Result<(), OutcomeError>>;

const OPERATIONS: [(&str, Operation); 6] = [
    ("enqueue", |queue, job| {
        Box::pin(async move { queue.enqueue(&new_jobs(AUTHOR, [job.video_id, job.video_id + 100])).await })
    }),
    ("renew", |queue, job| Box::pin(async move { queue.renew(&[job.try_id()]).await })),
    ("release", |queue, job| Box::pin(async move { queue.release(&[job.try_id()]).await })),
    ("record a failure", |queue, job| {
        Box::pin(
            async move { queue.record_failure(job, &Failure::new(Reason::Missing, "lost"), LEASE).await },
        )
    }),
    ("requeue", |queue, _| Box::pin(async move { queue.requeue_due().await.map(drop) })),
    ("remove", |queue, job| Box::pin(async move { queue.remove(job).await })),
];

/// The columns of a job that operations change: tries, interruptions, missing, reason, the worker, when it is due.
type Row = (u32, u32, u32, String, Option<String>, Option<bool>);

async fn rows(world: &World) -> Vec<Row> {
    let select = "SELECT tries, interruptions, missing, reason, worker, due_ms < 1000 FROM media_jobs ORDER BY video_id";
    sqlx::query_as(select).fetch_all(&world.mysql).await.unwrap()
}

/// Empties the queue, and claims a new job whose lease has ended.
async fn claim_only_job(world: &World, id: i64) -> Job {
    sqlx::raw_sql("DELETE FROM media_jobs").execute(&world.mysql).await.unwrap();
    let queue = queue(&world.mysql);
    queue.enqueue(&new_jobs(AUTHOR, [id])).await.unwrap();
    let job = claim(&queue).await;
    sqlx::raw_sql("UPDATE media_jobs SET due_ms = 1").execute(&world.mysql).await.unwrap();
    job
}

#[tokio::test]
async fn operations_without_an_answer_can_be_repeated() {
    let (world, _api) = World::with_api().await;
    for (name, operation) in OPERATIONS {
        let job = claim_only_job(&world, 1).await;
        operation(&queue(&world.mysql), &job).await.unwrap();
        let expected = rows(&world).await;
        let lossy = LossyMySql::connect(&world, 1).await;
        let mut failures = 0;
        for lost in 0.. {
            let job = claim_only_job(&world, 1).await;
            lossy.lose_answer_after(lost).await;
            let is_done = operation(&lossy.queue(), &job).await.is_ok();
            let is_lost = lossy.link.has_lost_answer();
            failures += i32::from(!is_done);
            let repeated = async || operation(&lossy.queue(), &job).await.is_ok();
            let has_effect = async || repeated().await && rows(&world).await == expected;
            until(&format!("{name} has its effect, after {lost} answers"), has_effect).await;
            if !is_lost {
                break;
            }
        }
        assert!(failures > 0, "{name} never failed");
    }
}

#[tokio::test]
async fn decision_without_an_answer_stands() {
    let (world, _api) = World::with_api().await;
    let lossy = LossyMySql::connect(&world, 1).await;
    let (store, direct) = (OutcomeStore::new(lossy.pool.clone()), OutcomeStore::new(world.mysql.clone()));
    let (mut decided, mut committed) = (0, 0);
    for lost in 0.. {
        let upload = Upload::from_envelope(upload(i64::from(lost) + 1)).unwrap();
        lossy.lose_answer_after(lost).await;
        let first = store.decide(&upload, publish("first")).await;
        let is_lost = lossy.link.has_lost_answer();
        let outcome = store.decide(&upload, publish("second")).await.unwrap();
        decided += 1;
        assert_eq!(Some(&outcome), direct.find(upload.video.video_id).await.unwrap().as_ref());
        let is_first = published(&outcome.envelope).play_key == "first";
        assert!(is_first || first.is_err());
        committed += i32::from(is_first && first.is_err());
        // No publish time is allocated without an outcome.
        let counts = (world.count("publish_times").await, world.count("media_outcomes").await);
        assert_eq!(counts, (decided, decided), "after {lost} answers");
        if !is_lost {
            break;
        }
    }
    assert_eq!(committed, 1, "the answer to one COMMIT was lost");
}

fn publish(play_key: &str) -> Verdict {
    Verdict::Publish { play_key: play_key.to_owned(), cover_key: "c".to_owned() }
}
