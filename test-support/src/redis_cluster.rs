//! A Redis Cluster of a test's own: three primaries.

use redis::cmd;
use tokio::{process::Command, time::timeout};
use vidlog_redis_shards::Redis;

use crate::{
    DEADLINE,
    redis_server::{RedisServer, free_port},
    until,
};

/// Primaries: the minimum of a cluster.
const NODES: usize = 3;

/// A cluster; dropping it kills its nodes.
pub struct RedisCluster {
    nodes: Vec<Node>,
}

/// A primary.
pub struct Node {
    /// Its server.
    pub server: RedisServer,
    id: String,
}

impl RedisCluster {
    /// Starts a cluster whose nodes serve all slots.
    pub async fn start() -> Self {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            let options = || {
                let bus_port = free_port().to_string();
                let options = [
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &bus_port,
                    "--cluster-node-timeout",
                    "2000",
                ];
                options.map(str::to_owned).to_vec()
            };
            nodes.push(Node { server: RedisServer::start(options).await, id: String::new() });
        }
        let create = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(nodes.iter().map(|node| node.server.address()))
            .args(["--cluster-replicas", "0", "--cluster-yes"])
            .kill_on_drop(true)
            .output();
        let created = timeout(DEADLINE, create).await.expect("the cluster is created in time").unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        for node in &mut nodes {
            node.id = node.server.query(cmd("CLUSTER").arg("MYID")).await;
        }
        let cluster = Self { nodes };
        cluster.until_healthy().await;
        cluster
    }

    /// The address of the cluster in settings.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(|node| node.server.address()).collect();
        format!("redis-cluster://{}/", hosts.join(","))
    }

    /// A handle to the cluster.
    pub fn connect(&self) -> Redis {
        Redis::open(&self.url()).unwrap()
    }

    /// Waits until every node reaches the others and they serve all slots.
    pub async fn until_healthy(&self) {
        for Node { server, .. } in &self.nodes {
            let is_healthy = async || {
                let info: Option<String> = server.try_query(cmd("CLUSTER").arg("INFO")).await;
                let peers: Option<String> = server.try_query(cmd("CLUSTER").arg("NODES")).await;
                info.is_some_and(|info| info.contains("cluster_state:ok"))
                    && peers.is_some_and(|peers| !peers.contains("fail"))
            };
            until("the cluster is healthy", is_healthy).await;
        }
    }

    /// The slot of a key, and the index of its node.
    pub async fn owner(&self, key: &str) -> (u16, usize) {
        let slot: u16 = self.nodes[0].server.query(cmd("CLUSTER").arg("KEYSLOT").arg(key)).await;
        for (index, node) in self.nodes.iter().enumerate() {
            // Other nodes redirect the command.
            if node.server.try_query::<i64>(cmd("EXISTS").arg(key)).await.is_some() {
                return (slot, index);
            }
        }
        panic!("no node has slot {slot}")
    }

    /// A node by its index, modulo the number of nodes.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index % NODES]
    }

    /// A node by its index, to kill or restart it.
    pub fn node_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index % NODES]
    }

    /// Begins to migrate the slot of a key to the next node.
    pub async fn begin_migration(&self, key: &str) -> SlotMigration<'_> {
        let (slot, from) = self.owner(key).await;
        let (from, to) = (self.node(from), self.node(from + 1));
        for (node, state, peer) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
            let set = cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(&peer.id).take();
            let _: String = node.server.query(&set).await;
        }
        SlotMigration { slot, from, to, nodes: &self.nodes }
    }
}

impl Node {
    /// Counts the commands that it redirected or deferred because their slot migrates.
    pub async fn redirections(&self) -> u64 {
        let info: String = self.server.query(cmd("INFO").arg("errorstats")).await;
        info.lines()
            .filter(|line| line.starts_with("errorstat_ASK") || line.starts_with("errorstat_TRYAGAIN"))
            .filter_map(|line| line.rsplit_once('=')?.1.trim().parse::<u64>().ok())
            .sum()
    }

    /// Counts the keys of a slot.
    pub async fn count_keys(&self, slot: u16) -> usize {
        self.server.query(cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot)).await
    }
}

/// The migration of a slot from one node to another.
pub struct SlotMigration<'a> {
    /// The slot.
    pub slot: u16,
    /// Its node until the end of the migration.
    pub from: &'a Node,
    /// Its node afterwards.
    pub to: &'a Node,
    nodes: &'a [Node],
}

impl SlotMigration<'_> {
    /// Moves some of the remaining keys; returns their number.
    pub async fn move_some(&self, max: usize) -> usize {
        let names: Vec<String> =
            self.from.server.query(cmd("CLUSTER").arg("GETKEYSINSLOT").arg(self.slot).arg(max)).await;
        self.move_keys(&names).await;
        names.len()
    }

    /// Moves some keys.
    pub async fn move_keys(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let mut migrate = cmd("MIGRATE");
        migrate.arg("127.0.0.1").arg(self.to.server.port).arg("").arg(0).arg(10_000).arg("KEYS").arg(names);
        let moved: String = self.from.server.query(&migrate).await;
        assert!(moved == "OK" || moved == "NOKEY", "{moved}");
    }

    /// Counts the commands that either node redirected or deferred.
    pub async fn redirections(&self) -> u64 {
        self.from.redirections().await + self.to.redirections().await
    }

    /// Moves the remaining keys, and assigns the slot to its new node.
    pub async fn finish(self) {
        while self.move_some(100).await > 0 {}
        for node in [self.to, self.from].into_iter().chain(self.nodes) {
            let set = cmd("CLUSTER").arg("SETSLOT").arg(self.slot).arg("NODE").arg(&self.to.id).take();
            let _: String = node.server.query(&set).await;
        }
    }
}
