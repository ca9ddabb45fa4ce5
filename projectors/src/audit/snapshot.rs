//! Views, each as it is at one position of the log, though the log may grow.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use vidlog_events::Stream;
use vidlog_schemas::{keys::ViewKey, projections};

use super::{
    Lines,
    excluded::Excluded,
    live::{lines, snapshot},
    log::{Folding, Step, fold_on},
    rounds::Known,
};
use vidlog_projection_engine::{
    dead_letters::Post,
    desired_state::view_lock::ViewLock,
    log::{Log, Offsets, Partition},
    store::{Position, SharedStore, Stores},
    view::Projection,
};

/// A view at one position, from both sides.
pub(super) struct Moment {
    /// What the log says.
    pub(super) folding: Folding,
    /// What the view has.
    pub(super) found: Lines,
    /// Whether its dead letters may have been retried meanwhile, which changes the view at the same position.
    pub(super) is_in_doubt: bool,
}

/// A view, and how it is asked.
pub(super) struct View {
    pub(super) sink: SharedStore,
    pub(super) post: Post,
    /// The partitions of its streams.
    pub(super) partitions: Vec<Partition>,
}

impl View {
    pub(super) fn projection(&self) -> Projection {
        *self.sink.projection()
    }

    pub(super) async fn positions(&self) -> anyhow::Result<Vec<Position>> {
        self.sink.positions(&self.partitions).await.context("the store does not say where it stands")
    }

    /// Where all parts of it are.
    pub(super) fn lowest(&self, positions: &[Position]) -> Offsets {
        self.partitions.iter().copied().zip(positions.iter().map(Position::lowest)).collect()
    }

    /// What the view is not to have by now. What waited before, of what is folded by now, has to wait still.
    pub(super) async fn excluded(&self, folding: &Folding) -> anyhow::Result<Excluded> {
        let excluded = Excluded::read(&self.sink, &self.post, &self.partitions).await?;
        self.ensure_hold(&folding.excluded, &excluded, &folding.at)?;
        Ok(excluded)
    }

    pub(super) fn ensure_hold(
        &self,
        before: &Excluded,
        later: &Excluded,
        places: &Offsets,
    ) -> anyhow::Result<()> {
        ensure!(
            before.still_hold_in(later, places),
            "what waits of {} in the dead letters was folded meanwhile; run it again",
            self.projection().name()
        );
        Ok(())
    }

    /// Whether someone has its lock: only they may fold now what waits of it.
    pub(super) async fn is_locked(&self) -> anyhow::Result<bool> {
        Ok(ViewLock::is_taken(&self.sink.stores().mysql, self.projection()).await?)
    }

    /// What the view is to be folded on to next: all that every part of it has.
    async fn step(&self, mut folding: Folding) -> anyhow::Result<Step> {
        let until = self.lowest(&self.positions().await?);
        // After the position was seen.
        folding.excluded = self.excluded(&folding).await?;
        Ok((folding, until))
    }

    /// A view in MySQL, which shows rows and checkpoint of one moment.
    async fn at_snapshot(self, log: &Log, mut folding: Folding) -> anyhow::Result<Moment> {
        let before = self.excluded(&folding).await?;
        let (stored, found) = snapshot(&self.sink.stores().mysql, &self.projection()).await?;
        // In this order: who has folded by then what waited has said so.
        let is_locked = self.is_locked().await?;
        folding.excluded = self.excluded(&folding).await?;
        let place = |partition: &Partition| (*partition, stored.get(partition).copied().unwrap_or(0));
        let until: Offsets = self.partitions.iter().map(place).collect();
        self.ensure_hold(&before, &folding.excluded, &until)?;
        let is_in_doubt = is_locked && folding.excluded.has_parked();
        let mut folded = fold_on(log, vec![(folding, until)]).await?;
        let folding = folded.pop().context("a folding was lost")?;
        Ok(Moment { folding, found, is_in_doubt })
    }
}

/// Some views, each at one position of its own in some partitions.
pub(super) async fn moments(
    log: &Log,
    target: &Stores,
    projections: &[Projection],
    partitions: &[Partition],
) -> anyhow::Result<Vec<Moment>> {
    let post = Post::new(log.clone());
    let (mut views, mut foldings) = (Vec::new(), Vec::new());
    for projection in projections {
        let partitions: Vec<Partition> = projection.partitions(partitions).collect();
        foldings.push(Folding::new(*projection, &partitions, &target.keys));
        let sink = target.view(*projection);
        views.push(View { sink, post: post.clone(), partitions });
    }
    // The first reading of the log may take long. What comes meanwhile is folded by the second, so that little of it is left
    // to be looked at again.
    for _ in 0..2 {
        let mut steps = Vec::new();
        for (view, folding) in views.iter().zip(foldings) {
            steps.push(view.step(folding).await?);
        }
        ensure_log_has(log, &steps).await?;
        foldings = fold_on(log, steps).await?;
    }

    let mut found = redis_lines(target, projections).await?;
    let mut moments = Vec::new();
    for (view, folding) in views.into_iter().zip(foldings) {
        moments.push(match view.projection().catalogued.view {
            projections::View::MySql(_) => view.at_snapshot(log, folding).await?,
            projections::View::Redis(_) => {
                let found = found.remove(view.projection().name()).unwrap_or_default();
                Known::new(view, folding, found).come_to_rest(log).await?
            }
        });
    }
    Ok(moments)
}

/// Makes sure that the log has what the views are said to have.
async fn ensure_log_has(log: &Log, steps: &[Step]) -> anyhow::Result<()> {
    let is_asked = |stream: &Stream| {
        steps.iter().flat_map(|(_, until)| until.keys()).any(|partition| partition.stream == *stream)
    };
    let ends = log.ends(Stream::ALL.into_iter().filter(is_asked).collect()).await?;
    for (partition, place) in steps.iter().flat_map(|(_, until)| until) {
        let end = ends.get(partition).copied().unwrap_or_default();
        ensure!(*place <= end, "a view stands at {place} in {}, but the log ends at {end}", partition.id());
    }
    Ok(())
}

/// The lines of those views that are in Redis, by the projection's name, while they go on.
async fn redis_lines(
    target: &Stores,
    projections: &[Projection],
) -> anyhow::Result<BTreeMap<&'static str, Lines>> {
    let is_in_redis =
        |projection: &Projection| matches!(projection.catalogued.view, projections::View::Redis(_));
    let in_redis: Vec<Projection> = projections.iter().copied().filter(is_in_redis).collect();
    let mut by_name: BTreeMap<&'static str, Lines> = BTreeMap::new();
    for (name, line) in lines(target, &in_redis).await? {
        if let Some(key) = ViewKey::read(&name) {
            by_name.entry(key.projection.name).or_default().insert(name, line);
        }
    }
    Ok(by_name)
}
