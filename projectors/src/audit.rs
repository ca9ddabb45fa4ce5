//! The audit: folds the log on a simple path of its own, not the projections', and compares every key and row with
//! the live views.
//!
//! A view is a list of lines, a name and a content each, so that comparing two is comparing two maps. Text that people
//! wrote is in a line only as a digest. Each view is compared at one position of its own (`moment`), up to which the log is
//! folded for it: so the log may grow meanwhile.

mod excluded;
mod live;
mod log;
mod model;
mod moment;
mod rounds;
mod touched;

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use serde::Serialize;
use tokio::time::{sleep, timeout};
use vidlog_events::Stream;
use vidlog_service_kit::config;

use self::moment::{Moment, moments};
use crate::projections;
use vidlog_projection_engine::{
    desired_state::{self, AllWanted, Wanted, Wish},
    log::{Log, Offsets, Partition},
    store::{Position, Stores},
    view::Projection,
};

pub(crate) use self::live::{Table, open_snapshot};
pub use self::{
    live::{key_lines, lines as live_lines, snapshot},
    model::Model,
    touched::touched,
};

/// How long the views may take to reach the end of the log.
const CATCH_UP: Duration = Duration::from_mins(1);
/// Between two looks at how far they are.
const LOOK: Duration = Duration::from_millis(50);

/// The lines of a view: Redis keys and MySQL rows.
pub type Lines = BTreeMap<String, String>;

/// A line that is not what the log says.
#[derive(Debug, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Serialize)]
pub struct Report {
    /// Records that were folded.
    pub records: usize,
    /// Lines that were compared.
    pub lines: usize,
    /// Lines that differ.
    pub differences: Vec<Difference>,
    /// The same of each projection.
    pub projections: Vec<Audited>,
}

/// What an audit found of a projection.
#[derive(Debug, Serialize)]
pub struct Audited {
    /// Its name.
    pub name: &'static str,
    /// Lines that were compared.
    pub lines: usize,
    /// How many of them differ.
    pub differences: usize,
}

/// Audits all views of a namespace.
pub async fn audit(log: &config::Log, stores: &config::Stores) -> anyhow::Result<Report> {
    let target = Stores::open(stores, 4)?;
    let log = Log::new(log, &stores.namespace);
    audit_some(&log, &target, &projections::ALL).await
}

/// Audits the views of some projections. Those that run have to reach first what the log has now; each is compared at
/// the position that it has then.
pub async fn audit_some(log: &Log, target: &Stores, projections: &[Projection]) -> anyhow::Result<Report> {
    let all_wanted = wanted(target).await?;
    let mut target = target.clone();
    for projection in projections {
        target.keys =
            target.keys.of_generation(&projection.catalogued, of(&all_wanted, projection).generation);
    }
    let streams = Stream::ALL.into_iter().filter(|stream| {
        projections.iter().any(|projection| projection.streams().any(|folded| folded == *stream))
    });
    let ends = log.ends(streams.collect()).await?;
    let is_to_run =
        |projection: &&Projection| matches!(of(&all_wanted, projection).wish, Wish::Run | Wish::Hold);
    let running = projections.iter().filter(is_to_run);
    try_join_all(running.map(|projection| reach(&target, *projection, &ends))).await?;

    let partitions: Vec<Partition> = ends.into_keys().collect();
    let moments = moments(log, &target, projections, &partitions).await?;
    let now = wanted(&target).await?;
    ensure!(
        projections
            .iter()
            .all(|projection| of(&now, projection).generation == of(&all_wanted, projection).generation),
        "another generation took over meanwhile; run it again"
    );
    let mut report =
        Report { records: records(&moments), lines: 0, differences: Vec::new(), projections: Vec::new() };
    for (projection, moment) in projections.iter().zip(moments) {
        report.add(projection, moment)?;
    }
    Ok(report)
}

/// How many records the models have come by.
fn records(moments: &[Moment]) -> usize {
    let mut places = Offsets::new();
    for (partition, at) in moments.iter().flat_map(|moment| &moment.folding.at) {
        let place = places.entry(*partition).or_default();
        *place = (*place).max(*at);
    }
    usize::try_from(places.values().sum::<i64>()).unwrap_or_default()
}

async fn wanted(target: &Stores) -> anyhow::Result<AllWanted> {
    desired_state::read(&target.mysql).await.context("MySQL does not say which generations are live")
}

fn of(all: &AllWanted, projection: &Projection) -> Wanted {
    all.get(projection.name()).cloned().unwrap_or_default()
}

impl Report {
    fn add(&mut self, projection: &Projection, moment: Moment) -> anyhow::Result<()> {
        let expected = moment.folding.lines();
        let lines = expected.len();
        let differences = compare(expected, moment.found);
        ensure!(
            differences.is_empty() || !moment.is_in_doubt,
            "{0} was being rebuilt, or its dead letters retried, so that it is not known what is wrong; run it again \
             after that",
            projection.name()
        );
        self.projections.push(Audited { name: projection.name(), lines, differences: differences.len() });
        self.lines += lines;
        self.differences.extend(differences);
        Ok(())
    }
}

/// Waits until a projection has folded the log up to some ends.
async fn reach(target: &Stores, projection: Projection, ends: &Offsets) -> anyhow::Result<()> {
    let sink = target.view(projection);
    let partitions: Vec<_> = projection.partitions(&ends.keys().copied().collect::<Vec<_>>()).collect();
    let reached = async {
        loop {
            let positions = sink.positions(&partitions).await?;
            let is_there = |(position, partition): (&Position, &Partition)| {
                ends.get(partition).is_some_and(|end| position.lowest() >= *end)
            };
            if positions.iter().zip(&partitions).all(is_there) {
                return anyhow::Ok(());
            }
            sleep(LOOK).await;
        }
    };
    timeout(CATCH_UP, reached)
        .await
        .with_context(|| format!("projection {} did not reach the end of the log", projection.name()))?
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
