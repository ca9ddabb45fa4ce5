//! The two stores, each with its circuit breaker.

use std::{time::Duration, vec};

use redis::{Cmd, FromRedisValue, Value, cmd};
use sqlx::MySqlPool;
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;

use crate::{
    breaker::{Breaker, Guarded, guard},
    error::{ReadError, Store},
    generation_cache::GenerationCache,
};

/// The longest query. A longer one would hold its connection; with the waits before it, a request still ends within
/// its timeout.
const QUERY_TIMEOUT: Duration = Duration::from_secs(3);

/// The store of a read that both stores support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The Redis views, the default.
    Views,
    /// The MySQL tables, while Redis is unavailable or a view is incomplete.
    Tables,
}

/// The Redis views. Clones share the connection.
#[derive(Clone)]
pub struct Views {
    redis: Redis,
    breaker: Breaker,
    generations: GenerationCache,
}

/// The MySQL tables. Clones share the pool.
#[derive(Clone)]
pub struct Tables {
    pool: MySqlPool,
    breaker: Breaker,
}

/// The replies of a pipeline, in the order of its commands.
#[derive(Debug)]
pub struct Replies {
    values: vec::IntoIter<Value>,
}

impl Views {
    pub(crate) fn new(redis: Redis, keys: Keys) -> Self {
        Self { redis, breaker: Breaker::default(), generations: GenerationCache::new(keys) }
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
        let mut values = guard(self, self.redis.pipeline(&commands)).await?;
        self.generations.observe(values.pop().unwrap_or(Value::Nil))?;
        Ok(Replies { values: values.into_iter() })
    }

    pub(crate) const fn generations(&self) -> &GenerationCache {
        &self.generations
    }
}

impl Guarded for Views {
    const STORE: Store = Store::Redis;

    fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    async fn probe(&self) -> Result<(), ReadError> {
        Ok(self.redis.query(&cmd("PING")).await?)
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
        Self { pool, breaker: Breaker::default() }
    }

    /// Returns the pool, for queries within [`Tables::run`].
    pub const fn pool(&self) -> &MySqlPool {
        &self.pool
    }

    /// Runs a query with a timeout.
    pub async fn run<T>(&self, query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, ReadError> {
        let bounded = async {
            tokio::time::timeout(QUERY_TIMEOUT, query)
                .await
                .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut))))
        };
        guard(self, bounded).await
    }
}

impl Guarded for Tables {
    const STORE: Store = Store::MySql;

    fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    async fn probe(&self) -> Result<(), ReadError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }
}
