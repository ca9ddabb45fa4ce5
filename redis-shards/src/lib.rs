//! The handle to Redis: one server or a cluster behind the same calls, reconnecting, bounded in time.

mod address;
mod cluster;
mod node;
mod scan;
mod slots;

use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, Value};

use self::{address::Address, cluster::Cluster, node::Node};

pub use self::scan::Scan;

/// A handle to Redis. Clones share the connections.
#[derive(Clone)]
pub struct Redis {
    servers: Servers,
}

#[derive(Clone)]
enum Servers {
    One(Node),
    // Its futures are large and therefore boxed: those of every caller would hold them.
    Cluster(Cluster),
}

impl Redis {
    /// Opens a handle to a server, `redis://…`, or a cluster, `redis-cluster://…`. It connects when it is first used,
    /// so that a process can start before its store; while Redis is away every call fails at once or within its
    /// bound.
    pub fn open(url: &str) -> Result<Self, RedisError> {
        let servers = match Address::parse(url)? {
            Address::One(info) => Servers::One(Node::open(info)?),
            Address::Cluster(seeds) => Servers::Cluster(Cluster::open(seeds)?),
        };
        Ok(Self { servers })
    }

    /// Sends one command. Of a cluster, `PING` and `SCRIPT` go to every primary, and succeed if they do so on all.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let answer = match &self.servers {
            Servers::One(node) => node.query(command).await?,
            Servers::Cluster(cluster) => Box::pin(cluster.query(command)).await?,
        };
        Ok(T::from_redis_value(answer)?)
    }

    /// Sends many commands, each about keys of one shard, and returns their answers in order. One round trip, with
    /// all servers at once. Commands about the same key are carried out in order. It is not a transaction; if one
    /// fails, the call fails.
    pub async fn all(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        match &self.servers {
            Servers::One(node) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command.clone());
                }
                node.answers(&pipeline).await?.into_iter().map(Value::extract_error).collect()
            }
            Servers::Cluster(cluster) => Box::pin(cluster.all(commands)).await,
        }
    }

    /// Walks over the names of the keys that match a pattern, in pages of about a number. A name can come twice.
    pub fn scan(&self, pattern: &str, page: usize) -> Scan {
        Scan::new(self.servers.clone(), pattern, page)
    }
}
