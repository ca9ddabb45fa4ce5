//! A bounded hostile run on loopback: attackers beside the normal use of the API.
//!
//! Normal users call the API alone first, then beside each attack, then beside all attacks at once. The report shows what
//! each attack achieved, what the users noticed, and how far Redis, the server's memory and the object store grew. The run
//! fails if a bound of [`bounds`] is exceeded.

mod attack;
mod attacker;
mod bounds;
mod phase;
mod report;
mod results;
mod source;
mod tally;
mod usage;
mod users;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, ensure};
use clap::Parser;
use rustix::process::{Resource, getrlimit};

use crate::{
    attack::Attack,
    phase::Phase,
    report::Report,
    results::{Mode, Results},
    usage::{Server, Usage},
    users::Users,
};

/// File descriptors of the attackers' connections, those of the users, and some to spare.
const FILE_DESCRIPTORS: u64 = attack::CONNECTIONS as u64 + 2_000;
/// How long the server may take to remove what an attack left behind, such as the parts of an aborted upload.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(40);

/// Attacks a local server within bounds; `deploy/local/abuse` starts it.
#[derive(Debug, Parser)]
#[command(name = "abuse", version)]
struct Cli {
    /// Address of the API, on loopback.
    #[arg(long)]
    api: SocketAddr,
    /// Process id of the server, whose memory is measured.
    #[arg(long)]
    pid: u32,
    /// Folder of the object store, whose size is measured.
    #[arg(long)]
    object_folder: PathBuf,
    /// Redis, whose size is measured.
    #[arg(long, env = "VIDLOG_REDIS_URL", hide_env_values = true)]
    redis_url: String,
    /// A video that a user uploads beside each attack.
    #[arg(long)]
    video: PathBuf,
    /// Runs for half a minute, all attacks at once, and does not check times.
    #[arg(long)]
    short: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    ensure!(
        cli.api.ip().is_loopback(),
        "--api {} is not a loopback address; attack no other machine",
        cli.api
    );
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    ensure!(
        limit >= FILE_DESCRIPTORS,
        "the limit of open files is {limit}; raise it: ulimit -n {FILE_DESCRIPTORS}"
    );
    let mode = if cli.short { Mode::Short } else { Mode::Full };
    let server = Server::new(cli.pid, cli.object_folder, &cli.redis_url).await?;
    let video = tokio::fs::read(&cli.video)
        .await
        .with_context(|| format!("failed to read {}", cli.video.display()))?;
    let users = Users::register(cli.api, video).await?;

    let before = server.usage().await?;
    let mut results = Vec::new();
    for phase in phases(mode) {
        results.push(phase.run(cli.api, &users, &server).await?);
    }
    let after = usage_after_cleanup(&server, before, &users).await?;
    let results = Results { mode, phases: results, before, after, uploaded_bytes: users.uploaded_bytes() };
    print!("{}", Report(&results));
    Ok(if bounds::violations(&results).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Two minutes in full, half a minute in short.
fn phases(mode: Mode) -> Vec<Phase> {
    let quiet =
        |seconds| Phase { name: "no attack", attacks: Vec::new(), time: Duration::from_secs(seconds) };
    let all = |seconds| Phase {
        name: "all at once",
        attacks: Attack::ALL.to_vec(),
        time: Duration::from_secs(seconds),
    };
    match mode {
        Mode::Short => vec![quiet(5), all(20)],
        Mode::Full => {
            let one = |attack: &Attack| Phase {
                name: attack.name(),
                attacks: vec![*attack],
                time: Duration::from_secs(9),
            };
            let mut phases = vec![quiet(15)];
            phases.extend(Attack::ALL.iter().map(one));
            phases.push(all(33));
            phases
        }
    }
}

/// The usage once the object store has shrunk to what the users uploaded, or at the timeout.
async fn usage_after_cleanup(server: &Server, before: Usage, users: &Users) -> anyhow::Result<Usage> {
    let deadline = tokio::time::Instant::now() + CLEANUP_TIMEOUT;
    loop {
        let usage = server.usage().await?;
        let is_clean =
            bounds::object_growth(before, usage) <= bounds::max_object_growth(users.uploaded_bytes());
        if is_clean || tokio::time::Instant::now() > deadline {
            return Ok(usage);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
