//! The operator: runs commands of `projectors`, each in its own process.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::Signal;
use tokio::{
    process::Command,
    time::{sleep, timeout},
};

use crate::{
    connection_owner::ConnectionOwners,
    fault::{Failpoint, KillAt},
    instance::{Crash, Links},
    wait::DEADLINE,
};

/// Timeout of a command; afterwards it is killed.
const TIMEOUT: Duration = Duration::from_secs(45);
const RETRY_INTERVAL: Duration = Duration::from_millis(300);

/// Runs operator commands.
pub(crate) struct Operator {
    /// The path of the program.
    pub(crate) program: PathBuf,
    /// The environment variables, which point to the system.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// The folder of log files, one per command.
    pub(crate) folder: PathBuf,
    /// The links of all commands.
    pub(crate) links: Links,
    /// Held by the fault that affects the commands.
    pub(crate) fault_lock: tokio::sync::Mutex<()>,
    /// The links of processes to Kafka.
    pub(crate) owners: ConnectionOwners,
    /// The crashes of all processes so far.
    pub(crate) crashes: Arc<Mutex<Vec<(String, Crash)>>>,
    /// Commands so far.
    pub(crate) commands: AtomicU32,
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommandResult {
    /// Success, with its output.
    Succeeded(String),
    /// Failure, with its log.
    Refused(String),
    /// Killed.
    Killed,
}

impl Operator {
    /// Runs a command, which may be killed on the way.
    pub(crate) async fn run(
        &self,
        arguments: &[&str],
        kill: Option<&KillAt>,
    ) -> anyhow::Result<CommandResult> {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.join(format!("operator-{number:03}-{}.log", arguments.join("-")));
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command.stderr(OpenOptions::new().create(true).append(true).open(&log)?);
        let (failpoint, limit) = match kill {
            None => (None, TIMEOUT),
            Some(KillAt::Time(time)) => (None, *time),
            Some(KillAt::Failpoint(failpoint)) => (Some(failpoint), TIMEOUT),
        };
        match failpoint {
            Some(failpoint) => command.env("VIDLOG_FAILPOINT", failpoint.to_string()),
            None => command.env_remove("VIDLOG_FAILPOINT"),
        };
        let child =
            command.spawn().with_context(|| format!("failed to start {}", command_line(arguments)))?;
        if let Some(pid) = child.id() {
            self.owners.set(pid, &self.links.kafka);
        }
        let Ok(output) = timeout(limit, child.wait_with_output()).await else {
            return Ok(CommandResult::Killed);
        };
        let output = output?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        OpenOptions::new().append(true).open(&log)?.write_all(&output.stdout)?;
        if output.status.success() {
            return Ok(CommandResult::Succeeded(printed));
        }
        let text = fs::read_to_string(&log)?;
        Ok(self.failed(arguments, output.status, failpoint).unwrap_or(CommandResult::Refused(text)))
    }

    /// Repeats a command until it succeeds.
    pub(crate) async fn run_until_success(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let started = Instant::now();
        loop {
            match self.run(arguments, None).await? {
                CommandResult::Succeeded(output) => return Ok(output),
                CommandResult::Refused(why) if started.elapsed() > DEADLINE => {
                    bail!("{} keeps failing: {why}", command_line(arguments))
                }
                CommandResult::Killed if started.elapsed() > DEADLINE => {
                    bail!("{} times out", command_line(arguments))
                }
                CommandResult::Refused(_) | CommandResult::Killed => sleep(RETRY_INTERVAL).await,
            }
        }
    }

    /// Records the crash of a command; none if it exited with code 1.
    fn failed(
        &self,
        arguments: &[&str],
        status: ExitStatus,
        failpoint: Option<&Failpoint>,
    ) -> Option<CommandResult> {
        let signal = status.signal().and_then(Signal::from_named_raw);
        let (result, crash) = match failpoint {
            Some(failpoint) if signal == Some(Signal::ABORT) => {
                (Some(CommandResult::Killed), Crash::Failpoint(failpoint.clone()))
            }
            _ if status.code() == Some(1) => return None,
            _ => (None, Crash::Unexpected(status.to_string())),
        };
        self.crashes.lock().unwrap_or_else(PoisonError::into_inner).push((command_line(arguments), crash));
        result
    }
}

fn command_line(arguments: &[&str]) -> String {
    format!("`projectors {}`", arguments.join(" "))
}
