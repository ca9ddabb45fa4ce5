//! What a view is not to have: records that wait in the dead letters, or that an operator decided to pass over.

use std::collections::BTreeMap;

use anyhow::Context;

use crate::{
    dead_letters::{Discards, Post},
    projection::Projection,
    sink::{Partition, RecordKey, Sink, Target},
};

/// What a view is not to have, by partition: the keys that are parked, each from an offset on, and single records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Excluded(BTreeMap<Partition, (BTreeMap<RecordKey, i64>, Discards)>);

impl Excluded {
    /// Whether a record is not to be in the view.
    pub(super) fn has(&self, partition: Partition, offset: i64, key: impl FnOnce() -> RecordKey) -> bool {
        let Some((parked, discards)) = self.0.get(&partition) else {
            return false;
        };
        discards.contains(&offset) || parked.get(&key()).is_some_and(|first| *first <= offset)
    }
}

/// What the views of some projections are not to have in some partitions, by the projection's name.
pub(super) async fn excluded(
    target: &Target,
    post: &Post,
    projections: &[Projection],
    partitions: &[Partition],
) -> anyhow::Result<BTreeMap<&'static str, Excluded>> {
    let mut all = BTreeMap::new();
    for projection in projections {
        let name = projection.name();
        let sink = Sink::new(*projection, target.clone());
        let mut parked =
            sink.parked().await.with_context(|| format!("failed to ask what waits of {name}"))?;
        let mut excluded = BTreeMap::new();
        for partition in projection.partitions(partitions) {
            let discards = post.discards(name, partition).await?;
            let parked = parked.remove(&partition).unwrap_or_default();
            let firsts = parked.into_iter().map(|(key, parked)| (key, parked.first)).collect();
            excluded.insert(partition, (firsts, discards));
        }
        all.insert(name, Excluded(excluded));
    }
    Ok(all)
}
