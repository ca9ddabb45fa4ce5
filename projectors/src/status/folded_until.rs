//! Publishes up to when each projection has folded the log.

use std::time::Duration;

use sqlx::{MySqlPool, QueryBuilder};
use tokio::time::timeout;
use tracing::debug;

use super::{ProjectionStatus, Status};

/// Timeout for the write. The next export repeats it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Writes the time of every projection whose lag is known. Readers take a projection without a new time for one that has
/// folded nothing more.
pub(super) async fn publish(pool: &MySqlPool, status: &Status) {
    let lags: Vec<_> =
        status.projections.iter().filter_map(|status| Some((status.name, lag(status)?))).collect();
    if lags.is_empty() {
        return;
    }
    let result = timeout(WRITE_TIMEOUT, write(pool, &lags)).await;
    if let Ok(Err(error)) = result {
        debug!(%error, "failed to publish the times of projections");
    }
}

/// Returns the lag of a projection: that of its last partition; `None` if one is unknown.
fn lag(status: &ProjectionStatus) -> Option<Duration> {
    let lags =
        status.partitions.iter().map(|partition| Duration::try_from_secs_f64(partition.lag_seconds?).ok());
    lags.collect::<Option<Vec<_>>>()?.into_iter().max()
}

async fn write(pool: &MySqlPool, lags: &[(&'static str, Duration)]) -> sqlx::Result<()> {
    let mut upsert = QueryBuilder::new("INSERT INTO projection_lags (projection, folded_until_ms) ");
    upsert.push_values(lags, |mut row, (projection, lag)| {
        row.push_bind(*projection)
            .push("UNIX_TIMESTAMP(NOW(3)) * 1000 - ")
            .push_bind_unseparated(i64::try_from(lag.as_millis()).unwrap_or(i64::MAX));
    });
    upsert.push(" ON DUPLICATE KEY UPDATE folded_until_ms = VALUES(folded_until_ms)");
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
        assert_eq!(lag(&projection(&[Some(0.0), Some(7.5), Some(1.0)])), Some(Duration::from_millis(7500)));
        assert_eq!(lag(&projection(&[Some(0.0), None])), None);
        assert_eq!(lag(&projection(&[])), None, "the topics are unknown");
        assert_eq!(lag(&projection(&[Some(-1.0)])), None);
    }
}
