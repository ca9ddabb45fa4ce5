//! The time to publish uploads, with and without others whose originals are lost.
//!
//! Users upload to command-api; then half of the originals are deleted, and a media worker starts. Every second upload is
//! lost, so each user has both kinds.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, ensure};
use clap::Args;
use tempfile::TempDir;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    spread::Spread,
    system::{Services, System},
};

const USERS: usize = 20;
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum time of a round.
const ROUND_TIMEOUT: Duration = Duration::from_mins(10);
/// What is uploaded in place of a video whose original is deleted afterwards.
const LOST: &[u8] = b"lost";

#[derive(Args, Debug)]
pub(crate) struct Settings {
    /// Rounds; each measures without and with lost uploads.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Videos to publish.
    #[arg(long, default_value_t = 100)]
    videos: usize,
    /// Length of a video in seconds.
    #[arg(long, default_value_t = 2)]
    length_s: u32,
}

/// Whether a queue has lost uploads beside its videos, one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Videos,
    VideosAndLost,
}

/// Measures the queues in turn, and prints the ratio of each round.
pub(crate) async fn measure(settings: &Settings, services: &Services) -> anyhow::Result<()> {
    let video = render_video(settings.length_s).await?;
    println!("{} videos of {} s, without and with as many lost uploads", settings.videos, settings.length_s);
    println!("\n| round | without, s | with, s | ratio |\n|--:|--:|--:|--:|");
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..settings.rounds {
        // Alternates which queue is first.
        let mut order = [Queue::Videos, Queue::VideosAndLost];
        order.rotate_left(round % 2);
        for queue in order {
            let time_s = publish(queue, settings.videos, &video, services).await?.as_secs_f64();
            match queue {
                Queue::Videos => without.push(time_s),
                Queue::VideosAndLost => with.push(time_s),
            }
        }
        ratios.push(with[round] / without[round]);
        println!("| {} | {:.2} | {:.2} | {:.3} |", round + 1, without[round], with[round], ratios[round]);
    }
    for (name, values) in [("without", without), ("with", with), ("ratio", ratios)] {
        let spread = Spread::of(&values).context("no rounds")?;
        println!("{name}: {spread} (minimum / median / maximum)");
    }
    Ok(())
}

/// Uploads a queue and starts a worker; returns the time from the first upload in its queue to the last published video.
async fn publish(queue: Queue, videos: usize, video: &[u8], services: &Services) -> anyhow::Result<Duration> {
    let system = System::create(services).await?;
    upload(&system, queue, videos, video).await?;
    let worker = system.start("media-worker").await?;
    let has_jobs = "SELECT COUNT(*) FROM (SELECT 1 FROM media_jobs LIMIT 1) queued";
    until(&system, has_jobs, 1).await?;
    let started = Instant::now();
    let published = "SELECT COUNT(*) FROM media_outcomes WHERE appended AND event LIKE '%play\\_key%'";
    until(&system, published, videos).await?;
    let time = started.elapsed();
    let decided: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM media_outcomes").fetch_one(&system.mysql).await?;
    ensure!(usize::try_from(decided)? == videos, "lost uploads were decided, so they did not wait");
    worker.kill().await?;
    system.remove().await?;
    Ok(time)
}

async fn upload(system: &System<'_>, queue: Queue, videos: usize, video: &[u8]) -> anyhow::Result<()> {
    let api = system.start("command-api").await?;
    let mut tokens = Vec::new();
    for number in 0..USERS {
        let answer = api.register(&format!("user{number}")).await?;
        tokens.push(
            answer["token"]
                .as_str()
                .with_context(|| format!("registered without a token: {answer}"))?
                .to_owned(),
        );
    }
    for number in 0..videos {
        let token = &tokens[number % USERS];
        if queue == Queue::VideosAndLost {
            api.upload(token, LOST).await?;
        }
        api.upload(token, video).await?;
    }
    let deleted = delete_lost(&system.objects().join("originals"))?;
    ensure!(deleted == if queue == Queue::Videos { 0 } else { videos }, "{deleted} originals deleted");
    api.kill().await
}

/// Deletes the originals of lost uploads; returns their number.
fn delete_lost(folder: &Path) -> anyhow::Result<usize> {
    let mut deleted = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))? {
        let path = entry?.path();
        if fs::read(&path)? == LOST {
            fs::remove_file(path)?;
            deleted += 1;
        }
    }
    Ok(deleted)
}

/// Waits until a query counts enough.
async fn until(system: &System<'_>, query: &'static str, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + ROUND_TIMEOUT;
    loop {
        let found: i64 = sqlx::query_scalar(query).fetch_one(&system.mysql).await?;
        if usize::try_from(found)? >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the round took too long: {query} counted {found}");
        sleep(POLL_INTERVAL).await;
    }
}

/// Renders a video that the worker has to transcode.
async fn render_video(length_s: u32) -> anyhow::Result<Vec<u8>> {
    let folder = TempDir::new()?;
    let file = folder.path().join("video.avi");
    let arguments = "-loglevel error -nostdin -f lavfi -i testsrc=size=320x240:rate=25 -f lavfi -i sine -codec:v mpeg4 \
                     -codec:a mp3 -t";
    let status = Command::new("ffmpeg")
        .args(arguments.split(' '))
        .arg(length_s.to_string())
        .arg(&file)
        .status()
        .await
        .context("failed to run ffmpeg")?;
    ensure!(status.success(), "ffmpeg failed to render a video");
    Ok(fs::read(file)?)
}
