//! A process of the system under test: restarted when it exits, unless it should be down.

use std::{
    collections::VecDeque,
    fmt,
    fs::OpenOptions,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use vidlog_test_support::Link;

use crate::{connection_owner::ConnectionOwners, fault::Failpoint, stack::Store};

/// How long a process may take to exit after SIGTERM: longer than its own drain timeout.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How a process is started.
pub(crate) struct Launch {
    /// The name of the process and of its log file.
    pub(crate) name: String,
    /// The path of the program.
    pub(crate) program: PathBuf,
    /// The arguments.
    pub(crate) arguments: Vec<String>,
    /// The environment variables.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// The log file.
    pub(crate) log: PathBuf,
    /// The failpoints of its first starts, one each; later starts have none.
    pub(crate) failpoints: VecDeque<Failpoint>,
}

/// The links from a process to its stores.
pub(crate) struct Links {
    /// To Kafka.
    pub(crate) kafka: Arc<Link>,
    /// To MySQL.
    pub(crate) mysql: Arc<Link>,
    /// To Redis.
    pub(crate) redis: Arc<Link>,
}

impl Links {
    /// Links that work.
    pub(crate) fn open() -> Self {
        Self { kafka: Link::open(), mysql: Link::open(), redis: Link::open() }
    }

    /// The link to a store.
    pub(crate) const fn to(&self, store: Store) -> &Arc<Link> {
        match store {
            Store::Kafka => &self.kafka,
            Store::MySql => &self.mysql,
            Store::Redis => &self.redis,
        }
    }
}

/// A process with its links.
pub(crate) struct Instance {
    launch: Launch,
    /// Its links.
    pub(crate) links: Links,
    owners: ConnectionOwners,
    state: Mutex<State>,
    /// Held by the fault that affects the process, so that it has one fault at a time.
    pub(crate) fault_lock: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    failpoint: Option<Failpoint>,
    starts: usize,
    should_run: bool,
}

/// Why a process exited that no fault killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// At a failpoint.
    Failpoint(Failpoint),
    /// For any other reason, which is a violation.
    Unexpected(String),
}

impl Instance {
    /// A process that is not started yet.
    pub(crate) fn new(launch: Launch, links: Links, owners: ConnectionOwners) -> Self {
        Self { launch, links, owners, state: Mutex::default(), fault_lock: tokio::sync::Mutex::default() }
    }

    /// Starts the process, and keeps it running from now on.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        state.should_run = true;
        if state.child.is_none() {
            self.spawn(&mut state)?;
        }
        Ok(())
    }

    /// Restarts the process if it exited; returns why.
    pub(crate) fn restart_if_exited(&self) -> anyhow::Result<Option<Crash>> {
        let mut state = self.state();
        if !state.should_run {
            return Ok(None);
        }
        let Some(status) = exit_status(&mut state)? else {
            return Ok(None);
        };
        let crash = crash(status, state.failpoint.take());
        self.spawn(&mut state)?;
        Ok(Some(crash))
    }

    /// Sends a signal to the process, if it runs.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.state().child.as_ref().and_then(Child::id);
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        pid.map_or(Ok(()), |pid| kill_process(pid, signal)).context("failed to send a signal to a process")
    }

    /// Ends the process by a signal and waits for its exit; it stays down until it is started.
    pub(crate) async fn end(&self, signal: Signal) -> anyhow::Result<()> {
        self.state().should_run = false;
        self.signal(signal)?;
        let exited = async {
            while !self.is_down()? {
                sleep(POLL_INTERVAL).await;
            }
            anyhow::Ok(())
        };
        timeout(EXIT_TIMEOUT, exited).await.with_context(|| format!("{self} did not exit in time"))?
    }

    fn is_down(&self) -> anyhow::Result<bool> {
        let mut state = self.state();
        Ok(state.child.is_none() || exit_status(&mut state)?.is_some())
    }

    fn spawn(&self, state: &mut State) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.launch.log)?;
        let failpoint = self.launch.failpoints.get(state.starts).cloned();
        let mut command = Command::new(&self.launch.program);
        command.args(&self.launch.arguments);
        command
            .envs(self.launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command.stdout(log.try_clone()?).stderr(log);
        match &failpoint {
            Some(failpoint) => command.env("VIDLOG_FAILPOINT", failpoint.to_string()),
            None => command.env_remove("VIDLOG_FAILPOINT"),
        };
        let child = command.spawn().with_context(|| format!("failed to start {self}"))?;
        if let Some(pid) = child.id() {
            self.owners.set(pid, &self.links.kafka);
        }
        state.child = Some(child);
        state.failpoint = failpoint;
        state.starts += 1;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.launch.name)
    }
}

fn exit_status(state: &mut State) -> anyhow::Result<Option<ExitStatus>> {
    let Some(child) = state.child.as_mut() else {
        return Ok(None);
    };
    let status = child.try_wait()?;
    if status.is_some() {
        state.child = None;
    }
    Ok(status)
}

fn crash(status: ExitStatus, failpoint: Option<Failpoint>) -> Crash {
    match (status.signal().and_then(Signal::from_named_raw), failpoint) {
        (Some(Signal::ABORT), Some(failpoint)) => Crash::Failpoint(failpoint),
        _ => Crash::Unexpected(status.to_string()),
    }
}
