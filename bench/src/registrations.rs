//! Simultaneous registrations on an idle command-api: how many fail, how long all take, and the memory that remains.
//!
//! The ceiling is the hashing alone, on as many threads as command-api uses.

use std::{num::NonZero, sync::Arc, thread::available_parallelism};

use anyhow::{Context, anyhow};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use clap::Args;
use tokio::{task::JoinSet, time::Instant};
use uuid::Uuid;

use crate::{
    spread::Spread,
    system::{Process, Services, System},
};

/// Parameters of command-api's hashes: memory in KiB, passes, lanes.
const PARAMETERS: (u32, u32, u32) = (19_456, 2, 1);
/// Maximum number of command-api's hashing threads.
const MAX_THREADS: usize = 8;

#[derive(Args, Debug)]
pub(crate) struct Settings {
    /// Rounds, against the same process.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Registrations that are sent at once.
    #[arg(long, default_value_t = 200)]
    calls: usize,
}

/// The result of one round.
struct Round {
    failures: Vec<String>,
    /// Until the last answer.
    total_s: f64,
    latencies_s: Vec<f64>,
}

/// Measures rounds of registrations, and prints a line for each.
pub(crate) async fn measure(settings: &Settings, services: &Services) -> anyhow::Result<()> {
    let threads = available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let system = System::create(services).await?;
    let api = Arc::new(system.start("command-api").await?);
    println!("{} registrations at once, {threads} hashing threads", settings.calls);
    println!("resident before: {:.0} MiB", api.memory_mib("VmRSS")?);
    println!(
        "\n| round | failed | all, s | latency, s (minimum / median / maximum) | resident after, MiB | hashing alone, s |"
    );
    println!("|--:|--:|--:|--:|--:|--:|");
    for round in 1..=settings.rounds {
        let ceiling_s = hash(settings.calls, threads).await?;
        let result = register(&api, settings.calls).await?;
        println!(
            "| {round} | {} | {:.2} | {} | {:.0} | {ceiling_s:.2} |",
            result.failures.len(),
            result.total_s,
            Spread::of(&result.latencies_s).context("no calls")?,
            api.memory_mib("VmRSS")?,
        );
        for failure in result.failures.iter().take(3) {
            println!("failed: {failure}");
        }
    }
    println!("resident at most: {:.0} MiB", api.memory_mib("VmHWM")?);
    drop(api);
    system.remove().await
}

/// Sends registrations at once.
async fn register(api: &Arc<Process>, calls: usize) -> anyhow::Result<Round> {
    let started = Instant::now();
    let mut running = JoinSet::new();
    for _ in 0..calls {
        let api = Arc::clone(api);
        running.spawn(async move {
            let answer = api.register(&Uuid::new_v4().simple().to_string()).await;
            (answer, started.elapsed().as_secs_f64())
        });
    }
    let mut round = Round { failures: Vec::new(), total_s: 0.0, latencies_s: Vec::new() };
    while let Some(ended) = running.join_next().await {
        let (answer, latency_s) = ended?;
        round.latencies_s.push(latency_s);
        match answer {
            Ok(answer) if answer["status_code"] == 0 => {}
            Ok(answer) => round.failures.push(answer.to_string()),
            Err(error) => round.failures.push(format!("{error:#}")),
        }
    }
    round.total_s = started.elapsed().as_secs_f64();
    Ok(round)
}

/// Hashes passwords on threads that reuse their memory; returns the time in seconds.
async fn hash(count: usize, threads: usize) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut running = JoinSet::new();
    for thread in 0..threads {
        let share = (count + thread) / threads;
        running.spawn_blocking(move || hash_on_thread(share));
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(started.elapsed().as_secs_f64())
}

fn hash_on_thread(count: usize) -> anyhow::Result<()> {
    let (memory_kib, passes, lanes) = PARAMETERS;
    let parameters = Params::new(memory_kib, passes, lanes, None).map_err(|error| anyhow!("{error}"))?;
    let mut memory = vec![Block::default(); parameters.block_count()];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    let mut output = [0; 32];
    for number in 0..count {
        let salt = format!("a salt of 16 bytes {number}");
        argon2
            .hash_password_into_with_memory(b"a-password", salt.as_bytes(), &mut output, &mut memory)
            .map_err(|error| anyhow!("failed to hash: {error}"))?;
    }
    Ok(())
}
