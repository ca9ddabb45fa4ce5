//! Whoever operates the system: gives the commands of `projectors` that anyone would, each as a process of its own.

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
    BOUND,
    connection_owner::ConnectionOwners,
    fault::{Cut, Failpoint},
    instance::{Death, Links},
};

/// How long a command is waited for. Then it is cut off as well.
const PATIENCE: Duration = Duration::from_secs(45);
/// Between two attempts at a command.
const AGAIN: Duration = Duration::from_millis(300);

/// An operator.
pub(crate) struct Operator {
    /// The program.
    pub(crate) program: PathBuf,
    /// What tells it which system it is about.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Where the output of each command goes, into a file of its own.
    pub(crate) folder: PathBuf,
    /// The ways from all commands to what they need.
    pub(crate) links: Links,
    /// Held by the fault that they suffer.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Who takes which way to the log.
    pub(crate) owners: ConnectionOwners,
    /// Where it is kept that a command died at a failpoint.
    pub(crate) deaths: Arc<Mutex<Vec<(String, Death)>>>,
    /// How many commands were given.
    pub(crate) given: AtomicU32,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// It is done; it printed this.
    Done(String),
    /// It could not be done, and said so.
    Refused(String),
    /// It was cut off.
    CutOff,
}

impl Operator {
    /// Gives a command, which may be cut off.
    pub(crate) async fn run(&self, arguments: &[&str], cut: Option<&Cut>) -> anyhow::Result<Ran> {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        let log = self.folder.join(format!("operator-{number:03}-{}.log", arguments.join("-")));
        let mut command = Command::new(&self.program);
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        command.stderr(OpenOptions::new().create(true).append(true).open(&log)?);
        let (failpoint, patience) = match cut {
            None => (None, PATIENCE),
            Some(Cut::After(time)) => (None, *time),
            Some(Cut::At(failpoint)) => (Some(failpoint), PATIENCE),
        };
        match failpoint {
            Some(failpoint) => command.env("VIDLOG_FAILPOINT", failpoint.to_string()),
            None => command.env_remove("VIDLOG_FAILPOINT"),
        };
        let child = command.spawn().with_context(|| format!("{} can't be started", told(arguments)))?;
        if let Some(pid) = child.id() {
            self.owners.set(pid, &self.links.kafka);
        }
        let Ok(output) = timeout(patience, child.wait_with_output()).await else {
            return Ok(Ran::CutOff);
        };
        let output = output?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        OpenOptions::new().append(true).open(&log)?.write_all(&output.stdout)?;
        if output.status.success() {
            return Ok(Ran::Done(printed));
        }
        let said = fs::read_to_string(&log)?;
        Ok(self.failed(arguments, output.status, failpoint).unwrap_or(Ran::Refused(said)))
    }

    /// Gives a command until it is done.
    pub(crate) async fn insist(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            match self.run(arguments, None).await? {
                Ran::Done(printed) => return Ok(printed),
                Ran::Refused(why) if begun.elapsed() > BOUND => {
                    bail!("{} can't be done: {why}", told(arguments))
                }
                Ran::CutOff if begun.elapsed() > BOUND => bail!("{} does not end", told(arguments)),
                Ran::Refused(_) | Ran::CutOff => sleep(AGAIN).await,
            }
        }
    }

    /// Keeps how a command died; nothing if it ended in order, but without success.
    fn failed(&self, arguments: &[&str], status: ExitStatus, failpoint: Option<&Failpoint>) -> Option<Ran> {
        let signal = status.signal().and_then(Signal::from_named_raw);
        let (ran, death) = match failpoint {
            Some(failpoint) if signal == Some(Signal::ABORT) => {
                (Some(Ran::CutOff), Death::Failpoint(failpoint.clone()))
            }
            _ if status.code() == Some(1) => return None,
            _ => (None, Death::ByItself(status.to_string())),
        };
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).push((told(arguments), death));
        ran
    }
}

fn told(arguments: &[&str]) -> String {
    format!("`projectors {}`", arguments.join(" "))
}
