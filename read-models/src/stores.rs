//! The two stores, each behind the circuit breakers of its servers.

use std::{io, time::Duration, vec};

use metrics::counter;
use redis::{Cmd, FromRedisValue, Value};
use sqlx::{ConnectOptions, Connection, MySqlPool, mysql::MySqlConnectOptions};
use tokio::time::{Instant, timeout};
use vidlog_circuit_breaker::{CircuitBreaker, Outcome, Server};
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;

use crate::{
    bulkhead::Bulkhead,
    error::{ReadError, Store},
    generation_cache::GenerationCache,
    metrics::STORE_FAILURES,
};

/// The longest query, with the wait for a connection. With the waits before it, a request still ends within its timeout.
/// The server aborts a statement earlier (`vidlog_service_kit::mysql`), so that the connection remains usable.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);

/// The store of a read that both stores support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The Redis views, the default.
    Views,
    /// The MySQL tables, while Redis is unavailable or a view is incomplete.
    Tables,
}

/// The Redis views. Clones share the connections, each of which has a circuit breaker.
#[derive(Clone)]
pub struct Views {
    redis: Redis,
    generations: GenerationCache,
}

/// The MySQL tables. Clones share the pool and its circuit breaker.
#[derive(Clone)]
pub struct Tables {
    pool: MySqlPool,
    breaker: CircuitBreaker,
    bulkhead: Bulkhead,
}

/// The replies of a pipeline, in the order of its commands.
#[derive(Debug)]
pub struct Replies {
    values: vec::IntoIter<Value>,
}

impl Views {
    pub(crate) fn new(redis: Redis, keys: Keys) -> Self {
        Self { redis, generations: GenerationCache::new(keys) }
    }

    /// Sends one command.
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, ReadError> {
        self.pipeline(std::slice::from_ref(command)).await?.take()
    }

    /// Sends commands in one round trip. The pipeline ends with the query of the live generations.
    pub async fn pipeline(&self, commands: &[Cmd]) -> Result<Replies, ReadError> {
        if commands.is_empty() {
            return Ok(Replies { values: Vec::new().into_iter() });
        }
        let commands = [commands, &[self.generations.generations_query()]].concat();
        let mut values = self.redis.pipeline(&commands).await.map_err(|error| counted(error.into()))?;
        self.generations.observe(values.pop().unwrap_or(Value::Nil))?;
        Ok(Replies { values: values.into_iter() })
    }

    pub(crate) const fn generations(&self) -> &GenerationCache {
        &self.generations
    }
}

impl Replies {
    /// Returns the next reply.
    pub fn take<T: FromRedisValue>(&mut self) -> Result<T, ReadError> {
        let value = self
            .values
            .next()
            .ok_or_else(|| ReadError::fault(Store::Redis, "the pipeline has no further reply"))?;
        T::from_redis_value(value).map_err(|error| ReadError::fault(Store::Redis, error))
    }
}

impl Tables {
    pub(crate) fn new(pool: MySqlPool) -> Self {
        let bulkhead = Bulkhead::new(pool.options().get_max_connections());
        Self { breaker: breaker(&pool), pool, bulkhead }
    }

    /// Returns the pool, for queries within [`Tables::run`].
    pub const fn pool(&self) -> &MySqlPool {
        &self.pool
    }

    /// Runs a query whose cost does not depend on how large an entity is, with a timeout.
    pub async fn run<T>(&self, query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, ReadError> {
        let Some(admitted) = self.breaker.admit() else {
            return Err(counted(ReadError::unavailable(Store::MySql, "the circuit is open")));
        };
        let timed_out = |_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into()));
        let result = timeout(QUERY_TIMEOUT, query).await.unwrap_or_else(timed_out);
        let is_unanswered = result.as_ref().err().is_some_and(is_unanswered);
        admitted.end(if is_unanswered { Outcome::Unanswered } else { Outcome::Answered });
        result.map_err(|error| counted(error.into()))
    }

    /// Runs a query whose cost grows with an entity, such as the list of a user. Bounds how many connections and requests
    /// the queries of one entity can hold.
    pub async fn run_for<T>(
        &self,
        entity: i64,
        query: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, ReadError> {
        let Some(permit) = self.bulkhead.enter(entity).await else {
            return Err(counted(ReadError::unavailable(Store::MySql, "too many queries of one entity")));
        };
        let start = Instant::now();
        let result = self.run(query).await;
        // After a timeout the statement may still run: dropping the permit keeps it until the server has aborted the statement.
        if start.elapsed() < QUERY_TIMEOUT {
            permit.finish();
        }
        result
    }
}

/// Returns the breaker of the server of a pool. Its trials do not use the pool, so that an exhausted pool is not taken for
/// an unreachable server.
fn breaker(pool: &MySqlPool) -> CircuitBreaker {
    let options = pool.connect_options();
    let server =
        Server { store: Store::MySql.name(), node: format!("{}:{}", options.get_host(), options.get_port()) };
    CircuitBreaker::new(server, move || {
        let options = options.clone();
        async move {
            match try_statement(&options).await {
                Err(error) if is_unanswered(&error) => Err(error.to_string()),
                _ => Ok(()),
            }
        }
    })
}

/// Connects, and executes a statement: a server whose storage hangs may still answer the handshake.
async fn try_statement(options: &MySqlConnectOptions) -> sqlx::Result<()> {
    let mut connection = options.connect().await?;
    sqlx::query("SELECT 1").execute(&mut connection).await?;
    // Closed in the background: the statement was answered, so a slow close must not fail the trial.
    tokio::spawn(timeout(QUERY_TIMEOUT, connection.close()));
    Ok(())
}

/// Returns whether the server did not answer. A call that got no connection from the pool may have reached no server.
fn is_unanswered(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed
    )
}

/// Counts an error if its store is unavailable.
fn counted(error: ReadError) -> ReadError {
    if let ReadError::Unavailable { store, .. } = &error {
        counter!(STORE_FAILURES, "store" => store.name()).increment(1);
    }
    error
}
