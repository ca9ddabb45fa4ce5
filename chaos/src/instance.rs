//! A process of the system under test: started again when it dies, unless it is meant to be gone.

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

/// How long a process may take to end after SIGTERM: longer than it grants itself.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks whether a process has ended.
const LOOK: Duration = Duration::from_millis(20);

/// What a process is started with.
pub(crate) struct Launch {
    /// Its name, also of its log.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// And what it is told beside them.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Where its output goes.
    pub(crate) log: PathBuf,
    /// The failpoints of its first starts, one each; later ones have none.
    pub(crate) failpoints: VecDeque<Failpoint>,
}

/// The ways from a process to what it needs.
pub(crate) struct Links {
    /// To the log.
    pub(crate) kafka: Arc<Link>,
    /// To the tables.
    pub(crate) mysql: Arc<Link>,
    /// To the views.
    pub(crate) redis: Arc<Link>,
}

impl Links {
    /// Ways with which nothing is wrong.
    pub(crate) fn open() -> Self {
        Self { kafka: Link::open(), mysql: Link::open(), redis: Link::open() }
    }

    /// The way to a store.
    pub(crate) const fn to(&self, store: Store) -> &Arc<Link> {
        match store {
            Store::Kafka => &self.kafka,
            Store::MySql => &self.mysql,
            Store::Redis => &self.redis,
        }
    }
}

/// A process.
pub(crate) struct Instance {
    launch: Launch,
    /// The ways from it.
    pub(crate) links: Links,
    owners: ConnectionOwners,
    state: Mutex<State>,
    /// Held by the fault that it suffers, so that it suffers one at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    child: Option<Child>,
    failpoint: Option<Failpoint>,
    starts: usize,
    wanted: bool,
}

/// Why a process died that nobody killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// At a failpoint.
    Failpoint(Failpoint),
    /// Of its own accord, which none should.
    ByItself(String),
}

impl Instance {
    /// A process that does not run yet.
    pub(crate) fn new(launch: Launch, links: Links, owners: ConnectionOwners) -> Self {
        Self { launch, links, owners, state: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Starts it, and has it started again whenever it dies.
    pub(crate) fn start(&self) -> anyhow::Result<()> {
        let mut state = self.state();
        state.wanted = true;
        if state.child.is_none() {
            self.spawn(&mut state)?;
        }
        Ok(())
    }

    /// Starts it again if it died; says why it did.
    pub(crate) fn tend(&self) -> anyhow::Result<Option<Death>> {
        let mut state = self.state();
        if !state.wanted {
            return Ok(None);
        }
        let Some(status) = ended(&mut state)? else {
            return Ok(None);
        };
        let death = cause(status, state.failpoint.take());
        self.spawn(&mut state)?;
        Ok(Some(death))
    }

    /// Sends it a signal, if it runs.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.state().child.as_ref().and_then(Child::id);
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        pid.map_or(Ok(()), |pid| kill_process(pid, signal)).context("a process can't be sent a signal")
    }

    /// Ends it for good by a signal, or until it is started.
    pub(crate) async fn end(&self, signal: Signal) -> anyhow::Result<()> {
        self.state().wanted = false;
        self.signal(signal)?;
        let gone = async {
            while !self.is_gone()? {
                sleep(LOOK).await;
            }
            anyhow::Ok(())
        };
        timeout(END_TIMEOUT, gone).await.with_context(|| format!("{self} did not end"))?
    }

    fn is_gone(&self) -> anyhow::Result<bool> {
        let mut state = self.state();
        Ok(state.child.is_none() || ended(&mut state)?.is_some())
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
        let child = command.spawn().with_context(|| format!("{self} can't be started"))?;
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

fn ended(state: &mut State) -> anyhow::Result<Option<ExitStatus>> {
    let Some(child) = state.child.as_mut() else {
        return Ok(None);
    };
    let status = child.try_wait()?;
    if status.is_some() {
        state.child = None;
    }
    Ok(status)
}

fn cause(status: ExitStatus, failpoint: Option<Failpoint>) -> Death {
    match (status.signal().and_then(Signal::from_named_raw), failpoint) {
        (Some(Signal::ABORT), Some(failpoint)) => Death::Failpoint(failpoint),
        _ => Death::ByItself(status.to_string()),
    }
}
