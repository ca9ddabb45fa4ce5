//! Kafka, MySQL and Redis as private processes, which can be killed, suspended and restarted.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{process::Command, time::timeout};

use crate::wait::until;

/// How long the services may take to start.
const UP_TIMEOUT: Duration = Duration::from_mins(3);

/// A service that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Keeps the log.
    Kafka,
    /// Keeps tables.
    MySql,
    /// Keeps views.
    Redis,
}

impl Store {
    /// Every store.
    pub(crate) const ALL: [Self; 3] = [Self::Kafka, Self::MySql, Self::Redis];
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kafka => "kafka",
            Self::MySql => "mysql",
            Self::Redis => "redis",
        })
    }
}

/// The services of `deploy/local/stack`.
pub(crate) struct Stack {
    /// The path of the script.
    pub(crate) script: PathBuf,
    /// Its folder, with process ids and data.
    pub(crate) folder: PathBuf,
}

impl Stack {
    /// Starts the services that are down, and waits until all respond.
    pub(crate) async fn up(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            let mut up = Command::new(&self.script);
            up.arg("up").stdin(Stdio::null()).kill_on_drop(true);
            let output =
                timeout(UP_TIMEOUT, up.output()).await.context("the services did not start in time")??;
            if output.status.success() {
                return Ok(());
            }
            // Another fault may have killed a service while it was starting.
            if started.elapsed() > UP_TIMEOUT {
                bail!("failed to start the services: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }

    /// Resumes a store's process, if it is suspended.
    pub(crate) fn resume(&self, store: Store) {
        // The process may not exist.
        _ = self.signal(store, Signal::CONT);
    }

    /// Suspends a store's process.
    pub(crate) fn suspend(&self, store: Store) -> anyhow::Result<()> {
        self.signal(store, Signal::STOP)
    }

    /// Kills a store's process; returns when its ports and files are free.
    pub(crate) async fn kill(&self, store: Store) -> anyhow::Result<()> {
        let pid = self.pid(store)?;
        self.signal(store, Signal::KILL)?;
        until("a killed store has exited", async || has_exited(pid)).await
    }

    fn signal(&self, store: Store, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid(store)?, signal).with_context(|| format!("failed to send a signal to {store}"))
    }

    fn pid(&self, store: Store) -> anyhow::Result<Pid> {
        let file = self.folder.join("pid").join(store.to_string());
        let text = fs::read_to_string(&file).with_context(|| format!("{store} has no pid file"))?;
        let pid = text.lines().next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        pid.with_context(|| format!("{} contains no pid", file.display()))
    }

    /// The path and the length of the file that Redis appends to.
    pub(crate) fn redis_file(&self) -> anyhow::Result<(PathBuf, u64)> {
        let file = newest(&self.folder.join("redis/appendonlydir"))?;
        let length = fs::metadata(&file)?.len();
        Ok((file, length))
    }
}

/// Whether a process has exited, reaped or not.
fn has_exited(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.ok()
        .and_then(|stat| stat.rsplit_once(") ")?.1.chars().next())
        .is_none_or(|state| "ZX".contains(state))
}

/// The append-only file with the highest number.
fn newest(folder: &Path) -> anyhow::Result<PathBuf> {
    let files = fs::read_dir(folder).context("Redis has no append-only file")?;
    let appended =
        files.flatten().map(|file| file.path()).filter(|path| path.to_string_lossy().ends_with(".incr.aof"));
    let numbered = appended.filter_map(|path| {
        let number: u64 = path
            .file_name()?
            .to_str()?
            .strip_prefix("appendonly.aof.")?
            .strip_suffix(".incr.aof")?
            .parse()
            .ok()?;
        Some((number, path))
    });
    Ok(numbered.max().context("Redis has no append-only file")?.1)
}

/// Keeps a process suspended; dropping it resumes the process.
pub(crate) struct Suspended<Resume: FnMut()>(Resume);

impl<Resume: FnMut()> Suspended<Resume> {
    /// Runs `suspend` now and `resume` later.
    pub(crate) fn new(suspend: impl FnOnce() -> anyhow::Result<()>, resume: Resume) -> anyhow::Result<Self> {
        suspend()?;
        Ok(Self(resume))
    }
}

impl<Resume: FnMut()> Drop for Suspended<Resume> {
    fn drop(&mut self) {
        (self.0)();
    }
}
