//! What the server and its stores use.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::Context;
use redis::{InfoDict, aio::MultiplexedConnection, cmd};

/// The measured server.
pub(crate) struct Server {
    pid: u32,
    object_folder: PathBuf,
    redis: MultiplexedConnection,
}

/// Bytes in use.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Memory of Redis.
    pub(crate) redis: u64,
    /// Resident memory of the server.
    pub(crate) memory: u64,
    /// Files of the object store, including unfinished ones.
    pub(crate) objects: u64,
}

impl Server {
    pub(crate) async fn new(pid: u32, object_folder: PathBuf, redis_url: &str) -> anyhow::Result<Self> {
        let client = redis::Client::open(redis_url).context("the Redis URL is malformed")?;
        let redis = client.get_multiplexed_async_connection().await.context("failed to connect to Redis")?;
        Ok(Self { pid, object_folder, redis })
    }

    pub(crate) async fn usage(&self) -> anyhow::Result<Usage> {
        let info: InfoDict = cmd("INFO").arg("memory").query_async(&mut self.redis.clone()).await?;
        Ok(Usage {
            redis: info.get("used_memory").context("Redis reports no used_memory")?,
            memory: resident_bytes(self.pid)?,
            objects: folder_bytes(&self.object_folder)?,
        })
    }
}

impl Usage {
    /// The higher of each component.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            redis: self.redis.max(other.redis),
            memory: self.memory.max(other.memory),
            objects: self.objects.max(other.objects),
        }
    }
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("the server does not run anymore")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix(" kB")).context("the server reports no VmRSS")?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// Files may disappear meanwhile.
fn folder_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("failed to read {}", folder.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(bytes)
}
