//! Folds the log up to an earlier time or position into a scratch namespace.
//!
//! The scratch namespace has its own Redis keys and its own database, beside the real ones. A query-api that
//! is configured for it serves it.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use crate::projections;
use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use redis::cmd;
use sqlx::AssertSqlSafe;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use vidlog_events::Stream;
use vidlog_projection_engine::{
    log::{Log, Offsets, Partition},
    replay::{ReplayProgress, replay},
    store::Stores,
};
use vidlog_schemas::{Keys, projections::View};
use vidlog_service_kit::{config, shutdown::Shutdown};

/// Number of projections that are folded concurrently.
const CONCURRENCY: usize = 4;
const CONNECTIONS: u32 = 16;
/// Maximum length of a name: MySQL limits a database name to 64 characters, which also has to hold the name
/// of the real database.
const NAME_LENGTH: usize = 20;
/// Number of keys that are scanned, and deleted, per round trip.
const PAGE: usize = 1000;

/// End of the fold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Until {
    /// Folds the records that were appended before a time, in ms since 1970.
    Time(i64),
    /// Folds the records before these next offsets, and in other partitions those that were appended no
    /// later.
    Positions(Vec<(Partition, i64)>),
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            let ms = i64::try_from(time.unix_timestamp_nanos() / 1_000_000);
            let since_1970 = ms.ok().filter(|ms| *ms >= 0);
            return since_1970.map(Self::Time).ok_or_else(|| format!("{text} is before 1970, or far away"));
        }
        let positions: Option<Vec<_>> = text.split(',').map(|part| position(part.trim())).collect();
        positions.map(Self::Positions).ok_or_else(|| {
            format!(
                "{text:?} is neither a time such as 2026-01-31T18:00:00Z nor positions such as likes:3:1042,users:0:7"
            )
        })
    }
}

/// Parses `<stream>:<partition>:<next offset>`, the format in which commands return positions.
fn position(text: &str) -> Option<(Partition, i64)> {
    let mut parts = text.split(':');
    let name = parts.next()?;
    let stream = Stream::ALL.into_iter().find(|stream| stream.name() == name)?;
    let number = parts.next()?.parse().ok().filter(|number| *number >= 0)?;
    let next = parts.next()?.parse().ok().filter(|next| *next > 0)?;
    parts.next().is_none().then_some((Partition { stream, number }, next))
}

/// Name of a scratch namespace: lower-case letters, digits and underscores.
#[derive(Clone, Debug)]
pub struct Name(String);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if text.is_empty() || text.len() > NAME_LENGTH || !text.chars().all(is_allowed) {
            return Err(format!("at most {NAME_LENGTH} of a-z, 0-9 and _"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Scratch namespace beside a real one.
pub struct Scratch {
    log: Log,
    live: Stores,
    target: Stores,
    namespace: String,
    database: String,
}

/// Result of a fold, with what a query-api needs to serve it.
#[derive(Debug)]
pub struct Folded {
    /// Records folded, summed over the projections.
    pub records: i64,
    /// Scratch namespace.
    pub namespace: String,
    /// Database of the scratch namespace, on the server of the real one.
    pub database: String,
}

impl Scratch {
    /// Creates a handle of a scratch namespace. It creates nothing in the stores.
    pub fn new(log: &config::Kafka, stores: &config::Stores, name: &Name) -> anyhow::Result<Self> {
        let live = Stores::open(stores, CONNECTIONS)?;
        let (namespace, name) = (format!("{}-as-of-{}", stores.namespace, name.0), &name.0);
        let database = format!("{}_as_of_{name}", live.database()?);
        let keys = Keys::new(&namespace, stores.shards);
        let target = Stores { keys, ..live.with_database(&database, CONNECTIONS) };
        Ok(Self { log: Log::new(log, &stores.namespace), live, target, namespace, database })
    }

    /// Folds the records that the scratch namespace does not have yet. Fails if an earlier call folded
    /// further.
    pub async fn fold(&self, until: &Until) -> anyhow::Result<Folded> {
        let until = self.end_offsets(until).await?;
        let create = format!("CREATE DATABASE IF NOT EXISTS `{}`", self.database);
        sqlx::query(AssertSqlSafe(create))
            .execute(&self.live.mysql)
            .await
            .context("failed to create the scratch database")?;
        let target = &self.target;
        // Fails early if Redis is down: `prepare` would wait for it.
        let _: String = target.redis.query(&cmd("PING")).await.context("Redis is unavailable")?;
        target.prepare(&Shutdown::new()).await?;

        let progress = Arc::new(ReplayProgress::default());
        let folding = projections::ALL.map(async |projection| {
            let streams: Vec<Stream> = projection.streams().collect();
            let own = until.iter().filter(|(partition, _)| streams.contains(&partition.stream));
            let own: Offsets = own.map(|(partition, end)| (*partition, *end)).collect();
            let store = target.view(projection);
            let partitions: Vec<Partition> = own.keys().copied().collect();
            let positions = store.positions(&partitions).await?;
            ensure!(
                positions.iter().zip(own.values()).all(|(at, end)| at.highest() <= *end),
                "{} is already folded beyond that; drop it first",
                self.namespace
            );
            Box::pin(replay(&self.log, &store, &own, &progress)).await
        });
        stream::iter(folding).buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        self.declare_complete(target).await?;
        Ok(Folded {
            records: progress.folded.load(std::sync::atomic::Ordering::Relaxed),
            namespace: self.namespace.clone(),
            database: self.database.clone(),
        })
    }

    /// Drops all keys and the database. Returns a message for the operator.
    pub async fn drop_all(&self) -> anyhow::Result<String> {
        let target = &self.target;
        let mut scan = target.redis.scan(&target.keys.pattern(), PAGE);
        while let Some(found) = scan.next().await? {
            let unlinks: Vec<_> = found.into_iter().map(|name| cmd("UNLINK").arg(name).take()).collect();
            target.redis.pipeline(&unlinks).await?;
        }
        let drop = format!("DROP DATABASE IF EXISTS `{}`", self.database);
        sqlx::query(AssertSqlSafe(drop))
            .execute(&self.live.mysql)
            .await
            .context("failed to drop the scratch database")?;
        Ok(format!("the namespace {} and the database {} are dropped", self.namespace, self.database))
    }

    async fn end_offsets(&self, until: &Until) -> anyhow::Result<Offsets> {
        let streams = Stream::ALL.to_vec();
        match until {
            Until::Time(time_ms) => self.log.at_time(streams, *time_ms).await,
            Until::Positions(positions) => {
                let ends = self.log.ends(streams.clone()).await?;
                let mut latest_ms = 0;
                for (partition, next) in positions {
                    if ends.get(partition).is_none_or(|end| next > end) {
                        bail!("the log has no {}:{next}", partition.id());
                    }
                    let time_ms = self.log.time_before(*partition, *next).await?;
                    let field = partition.id();
                    latest_ms = latest_ms.max(
                        time_ms.with_context(|| format!("the log has no record before {field}:{next}"))?,
                    );
                }
                let mut resolved = self.log.at_time(streams, latest_ms + 1).await?;
                resolved.extend(positions.iter().copied().collect::<BTreeMap<_, _>>());
                Ok(resolved)
            }
        }
    }

    /// Marks the views in Redis as complete; until then, readers refuse to read them.
    async fn declare_complete(&self, target: &Stores) -> anyhow::Result<()> {
        let mut set = cmd("HSET");
        set.arg(target.keys.generations());
        for projection in projections::ALL {
            if let View::Redis(_) = projection.catalogued.view {
                set.arg(projection.name()).arg(target.keys.generation(&projection.catalogued));
            }
        }
        let _: i64 = target.redis.query(&set).await?;
        Ok(())
    }
}

impl fmt::Display for Folded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { records, namespace, database } = self;
        write!(
            f,
            "{records} records folded; a query-api serves them with VIDLOG_NAMESPACE={namespace} \
             and the database {database} in VIDLOG_MYSQL_URL"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_or_positions_are_read() {
        assert_eq!("1970-01-01T00:00:01.5Z".parse(), Ok(Until::Time(1500)));
        let likes = Partition { stream: Stream::Likes, number: 3 };
        assert_eq!("likes:3:1042".parse(), Ok(Until::Positions(vec![(likes, 1042)])));
        for text in [
            "yesterday",
            "likes:3",
            "likes:3:0",
            "dreams:1:1",
            "likes:3:1042:7",
            "likes:-1:4",
            "",
            "1969-12-31T23:59:59Z",
        ] {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_is_short_and_plain() {
        assert!("monday_2".parse::<Name>().is_ok());
        for name in ["", "Monday", "a-b", "a`b", "far_too_long_for_a_name_"] {
            assert!(name.parse::<Name>().is_err(), "{name}");
        }
    }
}
