//! A Redis client: one server or a Redis Cluster behind the same calls.
//!
//! It reconnects on its own, bounds every call in time, and never sends a command again that may have been executed.
//! [`Redis`] is the handle; the simulation test in `tests/it` holds it to the guarantees that it documents.

mod address;
mod backend;
mod cluster;
mod connection;
mod pending_commands;
mod scan;
mod slot_map;

use redis::{Cmd, FromRedisValue, Pipeline, RedisError, RedisResult, Value};

use self::{address::Address, backend::Backend, cluster::Cluster, connection::Connection};

pub use self::scan::Scan;

/// A handle to Redis. Clones share the connections.
#[derive(Clone)]
pub struct Redis {
    backend: Backend,
}

impl Redis {
    /// Opens a handle to a server, `redis://…`, or a cluster, `redis-cluster://…`.
    ///
    /// It connects on first use, so that a process can start before its store. While Redis is unavailable, every call
    /// fails at once or within its timeout.
    pub fn open(url: &str) -> Result<Self, RedisError> {
        let backend = match Address::parse(url)? {
            Address::Single(info) => Backend::Single(Connection::open(info)?),
            Address::Cluster(seeds) => Backend::Cluster(Cluster::open(seeds)?),
        };
        Ok(Self { backend })
    }

    /// Sends one command. On a cluster, `PING` and `SCRIPT` go to every primary and succeed only if all succeed.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let reply = match &self.backend {
            Backend::Single(connection) => connection.query(command).await?,
            Backend::Cluster(cluster) => Box::pin(cluster.query(command)).await?,
        };
        Ok(T::from_redis_value(reply)?)
    }

    /// Sends commands, each about keys of one slot, and returns their replies in order.
    ///
    /// It costs one round trip, to all servers at once. Commands about the same key are executed in order. It is not a
    /// transaction: if one command fails, the call fails, and the others may have been executed.
    pub async fn pipeline(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        match &self.backend {
            Backend::Single(connection) => {
                let mut pipeline = Pipeline::with_capacity(commands.len());
                for command in commands {
                    pipeline.add_command(command.clone());
                }
                connection.replies(&pipeline).await?.into_iter().map(Value::extract_error).collect()
            }
            Backend::Cluster(cluster) => Box::pin(cluster.pipeline(commands)).await,
        }
    }

    /// Iterates over the names of the keys that match a pattern, in pages of about `page` names. A name can be
    /// returned twice.
    pub fn scan(&self, pattern: &str, page: usize) -> Scan {
        Scan::new(self.backend.clone(), pattern, page)
    }
}
