//! A Redis Cluster of a test's own: three primaries, on free ports, that keep nothing on disk.

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

use crate::support::{ChildProcess, DEADLINE, until};

/// Primaries: a cluster has three at least.
const NODES: usize = 3;

/// The cluster. Its processes are killed when it goes out of scope.
pub(crate) struct Nodes {
    pub(crate) nodes: Vec<Node>,
}

/// Where a node listens: for clients, and for the other nodes.
#[derive(Clone, Copy)]
struct Ports {
    clients: u16,
    nodes: u16,
}

/// A node, with a handle that speaks to it alone.
pub(crate) struct Node {
    pub(crate) id: String,
    redis: Redis,
    ports: Ports,
    process: ChildProcess,
    folder: TempDir,
}

impl Nodes {
    pub(crate) async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            nodes.push(Node::start().await);
        }
        let create = tokio::process::Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(nodes.iter().map(Node::address))
            .args(["--cluster-replicas", "0", "--cluster-yes"])
            .kill_on_drop(true)
            .output();
        let created = timeout(DEADLINE, create).await.expect("the cluster is created in time").unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        for node in &mut nodes {
            node.id = node.ask(cmd("CLUSTER").arg("MYID")).await;
        }
        let cluster = Self { nodes };
        cluster.are_whole().await;
        cluster
    }

    /// As it stands in the settings.
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(Node::address).collect();
        format!("redis-cluster://{}/", hosts.join(","))
    }

    /// Waits until all nodes know each other and have all slots.
    pub(crate) async fn are_whole(&self) {
        for node in &self.nodes {
            let whole = async || {
                let info: Option<String> = node.try_ask(cmd("CLUSTER").arg("INFO")).await;
                let peers: Option<String> = node.try_ask(cmd("CLUSTER").arg("NODES")).await;
                info.is_some_and(|info| info.contains("cluster_state:ok"))
                    && peers.is_some_and(|peers| !peers.contains("fail"))
            };
            until("the cluster is whole", whole).await;
        }
    }

    /// The slot of a key, and who has it.
    pub(crate) async fn owner(&self, key: &str) -> (u16, usize) {
        let slot: u16 = self.nodes[0].ask(cmd("CLUSTER").arg("KEYSLOT").arg(key)).await;
        for (at, node) in self.nodes.iter().enumerate() {
            let answer: Result<i64, _> = node.redis.query(cmd("EXISTS").arg(key)).await;
            if answer.is_ok() {
                return (slot, at);
            }
        }
        panic!("nobody has slot {slot}")
    }

    pub(crate) fn node(&self, at: usize) -> &Node {
        &self.nodes[at % NODES]
    }

    /// Begins to move the slot of a key to the next node.
    pub(crate) async fn begin_move(&self, key: &str) -> Move<'_> {
        let (slot, from) = self.owner(key).await;
        let (from, to) = (self.node(from), self.node(from + 1));
        let _: String = to.ask(cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("IMPORTING").arg(&from.id)).await;
        let _: String = from.ask(cmd("CLUSTER").arg("SETSLOT").arg(slot).arg("MIGRATING").arg(&to.id)).await;
        Move { slot, from, to, nodes: &self.nodes }
    }

    /// `kill -9`. What it had is gone with it.
    pub(crate) fn kill(&mut self, at: usize) {
        self.nodes[at % NODES].process.kill();
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let node = &mut self.nodes[at % NODES];
        node.process = serve(node.ports, &node.folder);
    }
}

impl Node {
    async fn start() -> Self {
        let started = async {
            loop {
                let mut node = Self::spawn();
                // One whose port was taken in the last moment ends.
                while node.process.exit_status().is_none() {
                    if node.try_ask::<String>(&cmd("PING")).await.is_some() {
                        return node;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
        };
        timeout(DEADLINE, started).await.expect("a node starts in time")
    }

    fn spawn() -> Self {
        let (ports, folder) =
            (Ports { clients: free_port(), nodes: free_port() }, tempfile::tempdir().unwrap());
        let redis = Redis::open(&format!("redis://127.0.0.1:{}/", ports.clients)).unwrap();
        Self { id: String::new(), redis, ports, process: serve(ports, &folder), folder }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.clients)
    }

    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        self.redis.query(command).await.unwrap()
    }

    async fn try_ask<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        self.redis.query(command).await.ok()
    }

    /// How often it sent a command elsewhere, or put it off, as the slot was on the move.
    pub(crate) async fn refusals(&self) -> u64 {
        let info: String = self.ask(cmd("INFO").arg("errorstats")).await;
        info.lines()
            .filter(|line| line.starts_with("errorstat_ASK") || line.starts_with("errorstat_TRYAGAIN"))
            .filter_map(|line| line.rsplit_once('=')?.1.trim().parse::<u64>().ok())
            .sum()
    }
}

/// A slot on its way from one node to another.
pub(crate) struct Move<'a> {
    pub(crate) slot: u16,
    pub(crate) from: &'a Node,
    pub(crate) to: &'a Node,
    nodes: &'a [Node],
}

impl Move<'_> {
    /// Moves some of the keys that are left; tells how many.
    pub(crate) async fn keys(&self, most: usize) -> usize {
        let names: Vec<String> =
            self.from.ask(cmd("CLUSTER").arg("GETKEYSINSLOT").arg(self.slot).arg(most)).await;
        self.these(&names).await;
        names.len()
    }

    /// Moves some keys.
    pub(crate) async fn these(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let mut migrate = cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(self.to.ports.clients).arg("").arg(0).arg(10_000).arg("KEYS").arg(names);
        let moved: String = self.from.ask(&migrate).await;
        assert!(moved == "OK" || moved == "NOKEY", "{moved}");
    }

    /// Moves what is left, and says whose the slot is now.
    pub(crate) async fn end(self) {
        while self.keys(100).await > 0 {}
        let said = [self.to, self.from].into_iter().chain(self.nodes);
        for node in said {
            let _: String =
                node.ask(cmd("CLUSTER").arg("SETSLOT").arg(self.slot).arg("NODE").arg(&self.to.id)).await;
        }
    }
}

fn serve(ports: Ports, folder: &TempDir) -> ChildProcess {
    let mut server = Command::new("redis-server");
    server
        .args(["--bind", "127.0.0.1", "--port", &ports.clients.to_string()])
        .args(["--cluster-enabled", "yes", "--cluster-port", &ports.nodes.to_string()])
        .args(["--cluster-node-timeout", "2000", "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    ChildProcess::spawn(&mut server)
}

/// A free port below those that the system gives to outgoing connections: a node that is away for a moment keeps it.
fn free_port() -> u16 {
    loop {
        let [.., high, low] = Uuid::now_v7().into_bytes();
        let port = 10_000 + u16::from_be_bytes([high, low]) % 15_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
