//! Publishes up to when each projection has folded the log.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{MySqlPool, QueryBuilder};
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::{ProjectionStatus, Status};

/// Timeout for a statement. The next export repeats it.
const MYSQL_TIMEOUT: Duration = Duration::from_secs(2);

/// A partition of a projection.
type Key = (&'static str, String);

/// Publishes the times, and remembers since when partitions have made no progress.
#[derive(Default)]
pub(super) struct FoldedUntil {
    /// The position of each partition that is behind, and when it was first seen there. The clock of the process that wrote the
    /// next record may be ahead, so the age of the record alone may hide a lag.
    behind: BTreeMap<Key, (i64, Instant)>,
}

impl FoldedUntil {
    /// Writes the time of every projection whose lag is known, measured at a time of MySQL. Readers take a projection without a
    /// new time for one that has folded nothing more.
    pub(super) async fn publish(&mut self, pool: &MySqlPool, status: &Status, measured_ms: Option<i64>) {
        self.observe(status, Instant::now());
        let Some(measured_ms) = measured_ms else { return };
        let of_projection = |status: &ProjectionStatus| {
            let lag_ms = i64::try_from(self.lag(status)?.as_millis()).ok()?;
            Some((status.name, measured_ms.saturating_sub(lag_ms)))
        };
        let times: Vec<_> = status.projections.iter().filter_map(of_projection).collect();
        if times.is_empty() {
            return;
        }
        let result = timeout(MYSQL_TIMEOUT, write(pool, &times)).await;
        if let Ok(Err(error)) = result {
            debug!(%error, "failed to publish the times of projections");
        }
    }

    /// Updates since when partitions are behind at their position.
    fn observe(&mut self, status: &Status, now: Instant) {
        for projection in &status.projections {
            for partition in &projection.partitions {
                let key = (projection.name, partition.partition.clone());
                match (partition.lag, partition.position) {
                    (Some(0), _) => _ = self.behind.remove(&key),
                    (Some(_), Some(position)) => {
                        let seen = self.behind.entry(key).or_insert((position, now));
                        if seen.0 != position {
                            *seen = (position, now);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Returns the lag of a projection: that of its last partition; `None` if one is unknown.
    fn lag(&self, status: &ProjectionStatus) -> Option<Duration> {
        let lags = status.partitions.iter().map(|partition| {
            let age = Duration::try_from_secs_f64(partition.lag_seconds?).ok()?;
            let since = self.behind.get(&(status.name, partition.partition.clone()));
            Some(since.map_or(age, |(_, since)| age.max(since.elapsed())))
        });
        lags.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

/// Returns the time of MySQL, in ms since 1970; `None` if it is unavailable.
pub(super) async fn mysql_time_ms(pool: &MySqlPool) -> Option<i64> {
    let query = sqlx::query_scalar("SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)").fetch_one(pool);
    timeout(MYSQL_TIMEOUT, query).await.ok()?.ok()
}

/// Writes the times. A process that measured later may have written first, so a time never decreases.
async fn write(pool: &MySqlPool, times: &[(&'static str, i64)]) -> sqlx::Result<()> {
    let mut upsert = QueryBuilder::new("INSERT INTO projection_lags (projection, folded_until_ms) ");
    upsert.push_values(times, |mut row, (projection, folded_until_ms)| {
        row.push_bind(*projection).push_bind(*folded_until_ms);
    });
    upsert.push(
        " ON DUPLICATE KEY UPDATE folded_until_ms = GREATEST(folded_until_ms, VALUES(folded_until_ms))",
    );
    upsert.build().execute(pool).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{PartitionStatus, State};

    fn projection(lags: &[Option<f64>]) -> ProjectionStatus {
        let partition = |lag_seconds: &Option<f64>| PartitionStatus {
            partition: "likes:0".to_owned(),
            position: None,
            end: None,
            lag: None,
            lag_seconds: *lag_seconds,
            state: State::Running,
            why: None,
            records_per_second: None,
            instance: None,
            dead_letters: None,
            last_error: None,
        };
        let partitions = lags.iter().map(partition).collect();
        ProjectionStatus { name: "likes", generation: None, unknown: None, partitions }
    }

    #[test]
    fn lag_is_that_of_the_last_partition() {
        let lag = |lags| FoldedUntil::default().lag(&projection(lags));
        assert_eq!(lag(&[Some(0.0), Some(7.5), Some(1.0)]), Some(Duration::from_millis(7500)));
        assert_eq!(lag(&[Some(0.0), None]), None);
        assert_eq!(lag(&[]), None, "the topics are unknown");
        assert_eq!(lag(&[Some(-1.0)]), None);
    }

    /// The clock of the writer is ahead, so the record looks new.
    #[tokio::test(start_paused = true)]
    async fn partition_without_progress_lags_despite_a_new_record() {
        let mut folded_until = FoldedUntil::default();
        let mut observe = async |position, lag| {
            let mut likes = projection(&[Some(0.0)]);
            likes.partitions[0].position = Some(position);
            likes.partitions[0].lag = Some(lag);
            let status = Status { projections: vec![likes], unknown: Vec::new() };
            folded_until.observe(&status, Instant::now());
            let lag = folded_until.lag(&status.projections[0]);
            tokio::time::advance(Duration::from_mins(1)).await;
            lag.unwrap().as_secs()
        };
        assert_eq!(observe(5, 1).await, 0);
        assert_eq!(observe(5, 9).await, 60);
        assert_eq!(observe(5, 10).await, 120);
        assert_eq!(observe(6, 9).await, 0, "it made progress");
        assert_eq!(observe(6, 9).await, 60);
        assert_eq!(observe(6, 0).await, 0, "all is folded");
        assert_eq!(observe(6, 1).await, 0);
    }
}
