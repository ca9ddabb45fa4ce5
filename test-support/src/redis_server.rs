//! A Redis server of a test's own, which keeps nothing on disk.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
    time::Duration,
};

use redis::{Cmd, FromRedisValue, cmd};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use vidlog_redis_shards::Redis;

use crate::{ChildProcess, DEADLINE};

/// Interval between attempts to reach a server that starts.
const START_RETRY: Duration = Duration::from_millis(20);

/// A server; dropping it kills it.
pub struct RedisServer {
    /// The port of clients.
    pub port: u16,
    redis: Redis,
    process: ChildProcess,
    folder: TempDir,
    options: Vec<String>,
}

impl RedisServer {
    /// Starts a server on a free port, with further options.
    pub async fn start(options: impl Fn() -> Vec<String>) -> Self {
        let started = async {
            loop {
                let mut server = Self::spawn(options());
                // Another process may take a free port first; the server exits then.
                while server.process.exit_status().is_none() {
                    if server.try_query::<String>(&cmd("PING")).await.is_some() {
                        return server;
                    }
                    sleep(START_RETRY).await;
                }
            }
        };
        timeout(DEADLINE, started).await.expect("a Redis server starts in time")
    }

    fn spawn(options: Vec<String>) -> Self {
        let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
        let redis = Redis::open(&format!("redis://127.0.0.1:{port}/")).unwrap();
        Self { port, redis, process: serve(port, &folder, &options), folder, options }
    }

    /// The address of the server in settings.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// The host and port of clients.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Sends a command to this server.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> T {
        self.redis.query(command).await.unwrap()
    }

    /// Sends a command to this server; `None` if it fails.
    pub async fn try_query<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        self.redis.query(command).await.ok()
    }

    /// Kills the server, which loses its data.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts a killed server on the same port.
    pub fn restart(&mut self) {
        self.process = serve(self.port, &self.folder, &self.options);
    }
}

fn serve(port: u16, folder: &TempDir, options: &[String]) -> ChildProcess {
    let mut server = Command::new("redis-server");
    server
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(folder.path())
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    ChildProcess::spawn(&mut server)
}

/// A free port below those of outgoing connections, so that it stays free while a server restarts.
pub(crate) fn free_port() -> u16 {
    loop {
        let [.., high, low] = Uuid::now_v7().into_bytes();
        let port = 10_000 + u16::from_be_bytes([high, low]) % 15_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
