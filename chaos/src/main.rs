//! The fault harness: random commands under load, while a seed decides what dies, hangs or loses what it had. After each
//! seed every acknowledged command has to be in the log, and every key and row to equal an independent fold of the log.

mod connection_owner;
mod fault;
mod inject;
mod instance;
mod ledger;
mod load;
mod log;
mod operate;
mod operator;
mod plan;
mod poison;
mod report;
mod seed;
mod settle;
mod stack;
mod studio;
mod system;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::{ArgGroup, Parser};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use vidlog_service_kit::{
    clock::Clock,
    config::{Log, Stores},
    shutdown::Shutdown,
};

use crate::{connection_owner::ConnectionOwners, seed::Outcome, stack::Stack, system::Surroundings};

/// How long anything may take that should take a second or two.
const BOUND: Duration = Duration::from_mins(2);

/// Runs vidlog under faults, and compares. `deploy/local/chaos` starts what it needs.
#[derive(Debug, Parser)]
#[command(name = "chaos", version, group = ArgGroup::new("which").required(true))]
struct Cli {
    /// Run the seeds from 1 to this.
    #[arg(long, group = "which")]
    seeds: Option<u64>,
    /// Run these seeds.
    #[arg(long, group = "which", num_args = 1..)]
    seed: Vec<u64>,
    /// Where the document about the run goes.
    #[arg(long)]
    report: PathBuf,
    /// The script that starts Kafka, MySQL and Redis.
    #[arg(long)]
    stack: PathBuf,
    /// Its folder, where the logs of failed seeds are kept as well.
    #[arg(long, env = "VIDLOG_LOCAL_DIR")]
    local_dir: PathBuf,
    /// Where command-api listens, and its ops port.
    #[arg(long, num_args = 2)]
    api: Vec<String>,
    /// Where Kafka listens for clients that come by way of a proxy.
    #[arg(long, env = "VIDLOG_KAFKA_FAULT_ADDRESS")]
    kafka_fault_address: String,
    /// Where Kafka tells them that the proxy is.
    #[arg(long, env = "VIDLOG_KAFKA_FAULT_PROXY")]
    kafka_fault_proxy: String,
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    stores: Stores,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let shutdown = Shutdown::on_signal()?;
    // When it is asked to stop all that it started has to end with it.
    tokio::select! {
        ran = run(cli) => ran,
        () = shutdown.wait() => bail!("asked to stop"),
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let seeds = cli.seeds.map_or(cli.seed, |last| (1..=last).collect());
    let owners = ConnectionOwners::default();
    let _proxy = owners
        .proxy(&cli.kafka_fault_proxy, cli.kafka_fault_address)
        .await
        .with_context(|| format!("failed to listen on {}", cli.kafka_fault_proxy))?;
    let around = Surroundings {
        log: cli.log,
        stores: cli.stores,
        kafka_proxy: cli.kafka_fault_proxy,
        owners,
        api: cli.api.try_into().ok().context("--api needs two addresses")?,
        programs: std::env::current_exe()?.parent().context("this program is nowhere")?.to_owned(),
    };
    let stack = Arc::new(Stack { script: cli.stack, folder: cli.local_dir.clone() });

    // Of what runs, whatever is checked out meanwhile.
    let (today, commit) = (today()?, commit().await);
    let mut outcomes: Vec<Outcome> = Vec::new();
    for seed in seeds {
        println!("seed {seed}");
        let folder = cli.local_dir.join(format!("seed-{seed}"));
        let outcome = seed::run(seed, &around, &stack, &folder).await;
        print!("{outcome}");
        if !outcome.faults.is_empty() {
            println!("    the logs of its processes are in {}", folder.display());
        }
        outcomes.push(outcome);
        // Each time, so that a run that is stopped leaves what it did.
        fs::write(&cli.report, report::document(&today, &commit, &outcomes)?)
            .with_context(|| format!("failed to write {}", cli.report.display()))?;
    }
    Ok(verdict(&outcomes, &cli.report))
}

fn verdict(outcomes: &[Outcome], report: &Path) -> ExitCode {
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| !outcome.faults.is_empty())
        .map(|outcome| outcome.seed.to_string())
        .collect();
    println!("{} seeds, {} failed; the report is {}", outcomes.len(), failed.len(), report.display());
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

/// The commit that is checked out; there may be changes on top of it.
async fn commit() -> String {
    let described =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().await;
    described
        .ok()
        .map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Waits for a condition, with a bound.
async fn until(what: &str, condition: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    let reached = async {
        while !condition().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(BOUND, reached).await.with_context(|| format!("waited too long until {what}"))
}
