//! Kafka, MySQL and Redis as private processes, which can be killed, frozen and started again.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{process::Command, time::timeout};

use crate::until;

/// How long all of it may take to come up.
const UP_TIMEOUT: Duration = Duration::from_mins(3);

/// A store, or the log: whatever can go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// The log.
    Kafka,
    /// Tables.
    MySql,
    /// Views.
    Redis,
}

impl Store {
    /// All of them.
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

/// The processes that `deploy/local/stack` keeps.
pub(crate) struct Stack {
    /// The script.
    pub(crate) script: PathBuf,
    /// Its folder.
    pub(crate) folder: PathBuf,
}

impl Stack {
    /// Starts what does not run, and waits until all of it answers.
    pub(crate) async fn up(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut up = Command::new(&self.script);
            up.arg("up").stdin(Stdio::null()).kill_on_drop(true);
            let output = timeout(UP_TIMEOUT, up.output()).await.context("the stack does not come up")??;
            if output.status.success() {
                return Ok(());
            }
            // Another fault may have killed what was just starting.
            if begun.elapsed() > UP_TIMEOUT {
                bail!("the stack does not come up: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }

    /// Has a store's process go on, if it was stopped.
    pub(crate) fn wake(&self, store: Store) {
        // There may be no such process.
        _ = self.signal(store, Signal::CONT);
    }

    /// Stops a store's process where it is.
    pub(crate) fn freeze(&self, store: Store) -> anyhow::Result<()> {
        self.signal(store, Signal::STOP)
    }

    /// `kill -9`; returns when the process has let go of its ports and files.
    pub(crate) async fn kill(&self, store: Store) -> anyhow::Result<()> {
        let pid = self.pid(store)?;
        self.signal(store, Signal::KILL)?;
        until("a killed store is gone", async || has_ended(pid)).await
    }

    fn signal(&self, store: Store, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid(store)?, signal).with_context(|| format!("{store} can't be sent a signal"))
    }

    fn pid(&self, store: Store) -> anyhow::Result<Pid> {
        let file = self.folder.join("pid").join(store.to_string());
        let text = fs::read_to_string(&file).with_context(|| format!("{store} was not started"))?;
        let pid = text.lines().next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        pid.with_context(|| format!("{} holds no pid", file.display()))
    }

    /// How much Redis has written to its file, and where that is.
    pub(crate) fn redis_file(&self) -> anyhow::Result<(PathBuf, u64)> {
        let file = newest(&self.folder.join("redis/appendonlydir"))?;
        let length = fs::metadata(&file)?.len();
        Ok((file, length))
    }
}

/// Whether a process is not there, or a zombie that nobody waits for.
fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.ok()
        .and_then(|stat| stat.rsplit_once(") ")?.1.chars().next())
        .is_none_or(|state| "ZX".contains(state))
}

/// The file that Redis appends to: of several the one with the highest number.
fn newest(folder: &Path) -> anyhow::Result<PathBuf> {
    let files = fs::read_dir(folder).context("Redis keeps no file")?;
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
    Ok(numbered.max().context("Redis keeps no file")?.1)
}

/// A process that stands still while this is there, and goes on whatever happens.
pub(crate) struct Frozen<Wake: FnMut()>(Wake);

impl<Wake: FnMut()> Frozen<Wake> {
    /// What `freeze` stops and `wake` has go on.
    pub(crate) fn new(freeze: impl FnOnce() -> anyhow::Result<()>, wake: Wake) -> anyhow::Result<Self> {
        freeze()?;
        Ok(Self(wake))
    }
}

impl<Wake: FnMut()> Drop for Frozen<Wake> {
    fn drop(&mut self) {
        (self.0)();
    }
}
