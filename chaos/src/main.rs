//! The fault harness: random commands while a seed determines which processes and stores crash, hang or lose data.
//!
//! After each seed every acknowledged command must be in the log, and every key and row must equal an independent fold of
//! the log.

mod bad_records;
mod connection_owner;
mod fault;
mod inject;
mod instance;
mod ledger;
mod load;
mod log;
mod media;
mod operate;
mod operator;
mod plan;
mod recovery;
mod report;
mod run;
mod seed;
mod stack;
mod system;
mod wait;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::{ArgGroup, Parser};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::process::Command;
use vidlog_service_kit::{
    clock::Clock,
    config::{Kafka, Stores},
    shutdown::Shutdown,
};

use crate::{connection_owner::ConnectionOwners, seed::Outcome, stack::Stack, system::Environment};

/// Runs vidlog under faults and verifies the result; `deploy/local/chaos` starts the services.
#[derive(Debug, Parser)]
#[command(name = "chaos", version, group = ArgGroup::new("which").required(true))]
struct Cli {
    /// Run the seeds 1 to N.
    #[arg(long, group = "which")]
    seeds: Option<u64>,
    /// Run these seeds.
    #[arg(long, group = "which", num_args = 1..)]
    seed: Vec<u64>,
    /// Write the report to this file.
    #[arg(long)]
    report: PathBuf,
    /// Path of the script that starts Kafka, MySQL and Redis.
    #[arg(long)]
    stack: PathBuf,
    /// Folder of the script's data and of failed seeds' logs.
    #[arg(long, env = "VIDLOG_LOCAL_DIR")]
    local_dir: PathBuf,
    /// Addresses of command-api and of its ops port.
    #[arg(long, num_args = 2)]
    api: Vec<String>,
    /// Kafka's listener behind the proxy.
    #[arg(long, env = "VIDLOG_KAFKA_FAULT_ADDRESS")]
    kafka_fault_address: String,
    /// Address of the proxy, which that listener advertises.
    #[arg(long, env = "VIDLOG_KAFKA_FAULT_PROXY")]
    kafka_fault_proxy: String,
    #[command(flatten)]
    log: Kafka,
    #[command(flatten)]
    stores: Stores,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let shutdown = Shutdown::on_signal()?;
    // On a signal, dropping `run` kills every child process.
    tokio::select! {
        result = run(cli) => result,
        () = shutdown.wait() => bail!("interrupted by a signal"),
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let seeds = cli.seeds.map_or(cli.seed, |last| (1..=last).collect());
    let owners = ConnectionOwners::default();
    let _proxy = owners
        .proxy(&cli.kafka_fault_proxy, cli.kafka_fault_address)
        .await
        .with_context(|| format!("failed to listen on {}", cli.kafka_fault_proxy))?;
    let environment = Environment {
        log: cli.log,
        stores: cli.stores,
        kafka_proxy: cli.kafka_fault_proxy,
        owners,
        api: cli.api.try_into().ok().context("--api needs two addresses")?,
        programs: std::env::current_exe()?.parent().context("the program has no folder")?.to_owned(),
    };
    let stack = Arc::new(Stack { script: cli.stack, folder: cli.local_dir.clone() });

    // Read at the start: another commit may be checked out during the run.
    let (today, commit) = (today()?, commit().await);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for seed in seeds {
        println!("seed {seed}");
        let folder = cli.local_dir.join(format!("seed-{seed}"));
        let outcome = seed::run(seed, &environment, &stack, &folder).await;
        print!("{outcome}");
        if !outcome.violations.is_empty() {
            println!("    logs: {}", folder.display());
        }
        outcomes.push(outcome);
        // After each seed, so that an interrupted run leaves a report.
        fs::write(&cli.report, report::document(&today, &commit, &outcomes)?)
            .with_context(|| format!("failed to write {}", cli.report.display()))?;
    }
    Ok(summarize(&outcomes, &cli.report))
}

fn summarize(outcomes: &[Outcome], report: &Path) -> ExitCode {
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| !outcome.violations.is_empty())
        .map(|outcome| outcome.seed.to_string())
        .collect();
    println!("{} seeds, {} failed; report: {}", outcomes.len(), failed.len(), report.display());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed seeds: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn today() -> anyhow::Result<String> {
    let now = OffsetDateTime::from_unix_timestamp(Clock::system().now_ms() / 1000)?;
    let text = now.format(&Rfc3339)?;
    Ok(text.split('T').next().unwrap_or_default().to_owned())
}

/// The commit that is checked out, marked as dirty if there are changes on top.
async fn commit() -> String {
    let described =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().await;
    described
        .ok()
        .map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
