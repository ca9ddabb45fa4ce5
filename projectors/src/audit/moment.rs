//! A view as it is at one position of the log, though the log may grow.

use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::sleep;
use vidlog_schemas::{keys::ViewKey, projections::View};

use super::{
    Lines,
    live::{lines, snapshot},
};
use crate::{
    projection::Projection,
    replay::Places,
    sink::{Partition, Position, Sink, Target},
};

/// Times that views in Redis are read, as they are only good if they stood still meanwhile.
const READINGS: u32 = 20;
/// Between two of them: an idle partition settles within half a second.
const PAUSE: Duration = Duration::from_millis(300);

/// A view at one position.
pub(super) struct Moment {
    pub(super) projection: Projection,
    pub(super) places: Places,
    pub(super) lines: Lines,
}

/// Some views, each at one position of its own in some partitions.
///
/// MySQL shows rows and checkpoint of one moment. Redis does not: there a view is read, again and again, until its
/// position was the same before and after.
pub(super) async fn moments(
    target: &Target,
    projections: &[Projection],
    partitions: &[Partition],
) -> anyhow::Result<Vec<Moment>> {
    let (in_redis, in_mysql): (Vec<Projection>, Vec<Projection>) =
        projections.iter().partition(|projection| matches!(projection.catalogued.view, View::Redis(_)));
    let mut moments = Vec::new();
    for projection in in_mysql {
        let (places, lines) = snapshot(&target.mysql, &projection).await?;
        moments.push(Moment { projection, places, lines });
    }
    let mut restless = in_redis;
    for reading in 0..READINGS {
        if restless.is_empty() {
            return Ok(moments);
        }
        if reading > 0 {
            sleep(PAUSE).await;
        }
        restless = read(target, restless, partitions, &mut moments).await?;
    }
    let names: Vec<_> = restless.iter().map(Projection::name).collect();
    ensure!(
        names.is_empty(),
        "{} went on while being read, so that there is no one position to compare at; run it again in a quieter \
         moment, or pause it meanwhile",
        names.join(", ")
    );
    Ok(moments)
}

/// Reads views in Redis. Returns those that went on meanwhile.
async fn read(
    target: &Target,
    projections: Vec<Projection>,
    partitions: &[Partition],
    moments: &mut Vec<Moment>,
) -> anyhow::Result<Vec<Projection>> {
    let before = all_positions(target, &projections, partitions).await?;
    let found = lines(target, &projections).await?;
    let after = all_positions(target, &projections, partitions).await?;
    let mut restless = Vec::new();
    for ((projection, before), after) in projections.into_iter().zip(before).zip(after) {
        // A shard that is behind has all that is its own up to the others, or a crash left it behind: who knows.
        let is_settled = before.iter().all(|(_, position)| position.lowest() == position.highest());
        if before != after || !is_settled {
            restless.push(projection);
            continue;
        }
        let is_own =
            |name: &str| ViewKey::read(name).is_some_and(|key| key.projection == projection.catalogued);
        let own = found.iter().filter(|(name, _)| is_own(name));
        moments.push(Moment {
            projection,
            places: before.into_iter().map(|(partition, position)| (partition, position.lowest())).collect(),
            lines: own.map(|(name, content)| (name.clone(), content.clone())).collect(),
        });
    }
    Ok(restless)
}

async fn all_positions(
    target: &Target,
    projections: &[Projection],
    partitions: &[Partition],
) -> anyhow::Result<Vec<Vec<(Partition, Position)>>> {
    let mut all = Vec::with_capacity(projections.len());
    for projection in projections {
        let own: Vec<Partition> = projection.partitions(partitions).collect();
        let positions = Sink::new(*projection, target.clone())
            .positions(&own)
            .await
            .context("the store does not say where it stands")?;
        all.push(own.into_iter().zip(positions).collect());
    }
    Ok(all)
}
