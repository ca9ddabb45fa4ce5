//! The audit: folds the log on a simple path of its own, not the projections', and compares every key and row with
//! the live views.
//!
//! A view is a list of lines, a name and a content each, so that comparing two is comparing two maps. Text that people
//! wrote is in a line only as a digest.

mod live;
mod log;
mod model;

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, bail};
use tokio::time::{sleep, timeout};
use vidlog_events::Topics;
use vidlog_schemas::Keys;
use vidlog_service_kit::{
    config::{Log, Stores},
    mysql,
    redis::Redis,
};

use crate::{
    control, projections,
    sink::{Partition, Sink, Target},
};

pub use self::{
    live::{key_lines, lines as live_lines, snapshot},
    log::LogEnd,
    model::Model,
};

/// How long the views may take to reach the end of the log.
const CATCH_UP: Duration = Duration::from_mins(1);
/// Between two looks at how far they are.
const LOOK: Duration = Duration::from_millis(50);

/// The lines of a view: Redis keys and MySQL rows.
pub type Lines = BTreeMap<String, String>;

/// A line that is not what the log says.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// The Redis key, or the MySQL table and row.
    pub name: String,
    /// What the log says; nothing if it should not be there.
    pub expected: Option<String>,
    /// What the view has; nothing if it is missing.
    pub found: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{}: expected {}, found {}", self.name, show(&self.expected), show(&self.found))
    }
}

/// What an audit found.
#[derive(Debug)]
pub struct Report {
    /// Records that were folded.
    pub records: usize,
    /// Lines that were compared.
    pub lines: usize,
    /// Lines that differ.
    pub differences: Vec<Difference>,
}

/// Audits all views of a namespace against its log, which should be quiet meanwhile: if it grew, that is an error.
pub async fn audit(log: &Log, stores: &Stores) -> anyhow::Result<Report> {
    let target = Target {
        keys: Keys::new(&stores.namespace, stores.shards),
        redis: Redis::open(stores.redis_url.reveal()).context("failed to read the Redis address")?,
        mysql: mysql::open(stores.mysql_url.reveal(), 4).context("failed to read the MySQL address")?,
    };
    let wanted =
        control::read(&target.mysql).await.context("MySQL does not say which generations are live")?;
    for projection in projections::ALL {
        let generation = wanted.get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, generation);
    }
    let topics = Topics::new(&stores.namespace);
    let (brokers, read_topics) = (log.kafka_brokers.clone(), topics.clone());
    let (model, end) = tokio::task::spawn_blocking(move || log::fold(&brokers, &read_topics))
        .await
        .context("reading the log panicked")??;
    reach(&target, &end).await?;
    let found = live::lines(&target, &projections::ALL).await?;
    let expected = model.lines(&Keys::new(&stores.namespace, stores.shards));

    let (brokers, end_after) = (log.kafka_brokers.clone(), end.clone());
    let grew = tokio::task::spawn_blocking(move || log::end(&brokers, &topics).map(|now| now != end_after))
        .await
        .context("reading the log panicked")??;
    if grew {
        bail!("the log grew during the audit, so that there is no one position to compare at; run it again");
    }
    let lines = expected.len();
    Ok(Report { records: end.records(), lines, differences: compare(expected, found) })
}

/// Waits until every projection has folded all of the log.
async fn reach(target: &Target, end: &LogEnd) -> anyhow::Result<()> {
    for projection in projections::ALL {
        let sink = Sink::new(projection, target.clone());
        let ends: Vec<(Partition, i64)> = end.of(&projection).collect();
        let partitions: Vec<_> = ends.iter().map(|(partition, _)| *partition).collect();
        let reached = async {
            loop {
                let positions = sink.positions(&partitions).await?;
                if positions.iter().zip(&ends).all(|(position, (_, end))| position.lowest() >= *end) {
                    return anyhow::Ok(());
                }
                sleep(LOOK).await;
            }
        };
        timeout(CATCH_UP, reached).await.with_context(|| {
            format!("projection {} did not reach the end of the log", projection.name())
        })??;
    }
    Ok(())
}

/// The lines that differ between what should be and what is.
pub fn compare(mut expected: Lines, found: Lines) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (name, found) in found {
        let expected = expected.remove(&name);
        if expected.as_ref() != Some(&found) {
            differences.push(Difference { name, expected, found: Some(found) });
        }
    }
    differences.extend(expected.into_iter().map(|(name, expected)| Difference {
        name,
        expected: Some(expected),
        found: None,
    }));
    differences
}

/// Text as it stands in a line: its length in bytes and a digest (FNV-1a, 64 bits), enough to tell it from another.
fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("#{}:{hash:016x}", text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_a_wrong_and_a_superfluous_line_are_told() {
        let lines = |lines: &[(&str, &str)]| -> Lines {
            lines.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
        };
        let differences = compare(
            lines(&[("same", "1"), ("wrong", "1"), ("missing", "1")]),
            lines(&[("same", "1"), ("wrong", "2"), ("superfluous", "1")]),
        );
        let told: Vec<_> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "superfluous: expected nothing, found 1",
                "wrong: expected 1, found 2",
                "missing: expected 1, found nothing",
            ]
        );
    }
}
