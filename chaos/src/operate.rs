//! What an operator does while all else goes wrong. A command that can't be done says so, and is given again when the
//! faults are over.

use std::{fmt, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep};
use vidlog_events::Stream;
use vidlog_projectors::{
    desired_state::{self, Wish},
    projections,
    view::Projection,
};

use crate::{
    fault::{Cut, Poison, Process, Then},
    inject::Stage,
    operator::Ran,
};

/// How long after a run of bad records an operator looks whether it stopped a projection.
const WATCH: Duration = Duration::from_secs(6);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Attempts at a rebuild that is refused, with a pause between: what it needs may be back.
const ATTEMPTS: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
/// Between a command that was cut off and the next: MySQL has to notice that whoever had the lock is gone.
const AFTER_CUT: Duration = Duration::from_millis(300);

/// What a discard says after which the key's next bad record waits.
pub(crate) const STILL_WAIT: &str = "still wait, from offset";

/// What operators did, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deeds {
    /// Rebuilds that were begun, or gone on with, while there were faults.
    pub(crate) rebuilds: usize,
    /// Those that switched.
    pub(crate) switched: usize,
    /// Those that were cut off.
    pub(crate) cut_off: usize,
    /// What cut-off rebuilds had made was dropped.
    pub(crate) dropped: usize,
    /// Rebuilds afterwards, without faults.
    pub(crate) calm: usize,
    /// Pauses.
    pub(crate) pauses: usize,
    /// Records that can't be decoded.
    pub(crate) poison: usize,
    /// Projections that stopped themselves, and were resumed.
    pub(crate) stops: usize,
    /// Records that were discarded, by each projection by itself.
    pub(crate) discarded: usize,
    /// Discards that were cut off.
    pub(crate) cut_discards: usize,
}

impl std::iter::Sum for Deeds {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, deeds| Self {
            rebuilds: sum.rebuilds + deeds.rebuilds,
            switched: sum.switched + deeds.switched,
            cut_off: sum.cut_off + deeds.cut_off,
            dropped: sum.dropped + deeds.dropped,
            calm: sum.calm + deeds.calm,
            pauses: sum.pauses + deeds.pauses,
            poison: sum.poison + deeds.poison,
            stops: sum.stops + deeds.stops,
            discarded: sum.discarded + deeds.discarded,
            cut_discards: sum.cut_discards + deeds.cut_discards,
        })
    }
}

impl fmt::Display for Deeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.rebuilds - self.switched - self.cut_off;
        write!(
            f,
            "{} rebuilds under faults ({} switched, {} cut off, {refused} refused; {} dropped), {} without; {} pauses; \
             {} undecodable records, {} projections that stopped for them, {} discards ({} cut off)",
            self.rebuilds,
            self.switched,
            self.cut_off,
            self.dropped,
            self.calm,
            self.pauses,
            self.poison,
            self.stops,
            self.discarded,
            self.cut_discards,
        )
    }
}

/// The projections that fold a stream.
pub(crate) fn folding(stream: Stream) -> impl Iterator<Item = Projection> {
    projections::ALL.into_iter().filter(move |projection| projection.streams().any(|folded| folded == stream))
}

impl Stage {
    /// Folds a view anew.
    pub(crate) async fn rebuild(
        &self,
        projection: &'static str,
        cut: Option<&Cut>,
        then: Then,
    ) -> anyhow::Result<()> {
        self.notes().rebuilt.insert(projection);
        let mut ran = self.begin_rebuild(projection, cut).await?;
        for _ in 1..ATTEMPTS {
            if let Ran::Refused(_) = ran {
                sleep(AGAIN).await;
                ran = self.begin_rebuild(projection, cut).await?;
            }
        }
        if cut.is_none() || ran != Ran::CutOff {
            return Ok(());
        }
        sleep(AFTER_CUT).await;
        match then {
            Then::Resumed => self.begin_rebuild(projection, None).await.map(drop),
            Then::Dropped => {
                if let Ran::Done(_) = self.operator().run(&["rebuild", projection, "--drop"], None).await? {
                    self.notes().deeds.dropped += 1;
                }
                Ok(())
            }
            Then::Left => Ok(()),
        }
    }

    async fn begin_rebuild(&self, projection: &'static str, cut: Option<&Cut>) -> anyhow::Result<Ran> {
        self.notes().deeds.rebuilds += 1;
        let ran = self.operator().run(&["rebuild", projection], cut).await?;
        let notes = &mut self.notes();
        match &ran {
            Ran::Done(_) => notes.deeds.switched += 1,
            Ran::CutOff => notes.deeds.cut_off += 1,
            Ran::Refused(said) if said.contains(" differences") => {
                notes.differing.push(format!("the rebuild of {projection} found differences: {said}"));
            }
            Ran::Refused(said) => notes.refused(&format!("rebuild of {projection}"), said),
        }
        Ok(ran)
    }

    /// Has a projection stand still for a while.
    pub(crate) async fn halt(
        &self,
        projection: &'static str,
        lasting: Duration,
        killed: Option<usize>,
    ) -> anyhow::Result<()> {
        self.operator().insist(&["pause", projection]).await?;
        self.notes().deeds.pauses += 1;
        sleep(lasting / 2).await;
        if let Some(number) = killed {
            self.kill(Process::Projectors(number), Duration::ZERO).await?;
        }
        sleep(lasting / 2).await;
        self.operator().insist(&["resume", projection]).await.map(drop)
    }

    /// Puts bad records into the log, and looks after the projections that get them.
    pub(crate) async fn poison(&self, poison: &Poison) -> anyhow::Result<()> {
        let users = self.users.get().map(Vec::as_slice).unwrap_or_default();
        let commands = self.poisoner.append(poison, users).await;
        {
            let notes = &mut self.notes();
            notes.deeds.poison += commands.len();
            notes.poisoned.extend(commands);
        }
        if let Some(after) = poison.discarded {
            sleep(after).await;
            let mut cut = poison.cut.as_ref();
            for projection in folding(poison.stream) {
                self.discard(projection, &mut cut).await?;
            }
        } else if poison.records > 2 {
            self.watch(poison.stream).await?;
        }
        Ok(())
    }

    /// Discards the first bad record that waits of each key of a projection. The first discard of all may be cut off.
    async fn discard(&self, projection: Projection, cut: &mut Option<&Cut>) -> anyhow::Result<()> {
        let name = projection.name();
        let list = self.operator().run(&["dead-letters", "list", name, "--json"], None).await?;
        let Ran::Done(printed) = list else {
            return Ok(());
        };
        for waiting in waiting(&printed)? {
            self.discard_one(&waiting, cut.take()).await?;
        }
        Ok(())
    }

    /// Discards a record.
    pub(crate) async fn discard_one(&self, waiting: &Waiting, cut: Option<&Cut>) -> anyhow::Result<Ran> {
        let Waiting { projection, partition, first, .. } = waiting;
        let arguments = ["dead-letters", "discard", projection, partition, &first.to_string()];
        let ran = self.operator().run(&arguments, cut).await?;
        let deeds = &mut self.notes().deeds;
        match &ran {
            Ran::Done(_) => deeds.discarded += 1,
            // Of several the next waits.
            Ran::Refused(said) if said.contains(STILL_WAIT) => deeds.discarded += 1,
            Ran::Refused(_) => {}
            Ran::CutOff => deeds.cut_discards += 1,
        }
        Ok(ran)
    }

    /// Resumes those that stop themselves for a while.
    async fn watch(&self, stream: Stream) -> anyhow::Result<()> {
        let until = Instant::now() + WATCH;
        while Instant::now() < until {
            for projection in folding(stream) {
                self.resume_if_stopped(projection).await?;
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Resumes a projection if it stopped itself.
    pub(crate) async fn resume_if_stopped(&self, projection: Projection) -> anyhow::Result<()> {
        // MySQL may be away.
        let wanted = desired_state::read(&self.system.tables).await.unwrap_or_default();
        let has_stopped =
            wanted.get(projection.name()).is_some_and(|wanted| matches!(wanted.wish, Wish::Stopped(_)));
        if has_stopped && let Ran::Done(_) = self.operator().run(&["resume", projection.name()], None).await?
        {
            self.notes().deeds.stops += 1;
        }
        Ok(())
    }
}

/// A key that waits, as `dead-letters list` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) projection: String,
    pub(crate) partition: String,
    pub(crate) first: i64,
    pub(crate) class: String,
}

/// What `dead-letters list --json` printed.
pub(crate) fn waiting(printed: &str) -> anyhow::Result<Vec<Waiting>> {
    let all: Vec<Value> = serde_json::from_str(printed)?;
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    let read = |one: &Value| Waiting {
        projection: text(one, "projection"),
        partition: text(one, "partition"),
        first: one["first_offset"].as_i64().unwrap_or(-1),
        class: text(one, "class"),
    };
    Ok(all.iter().map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_read_as_it_was_printed() {
        let printed = r#"[{"class":"undecodable","first_offset":17,"key":"2","last_offset":78,"message":"",
            "partition":"likes:2","projection":"likes","waiting":45}]"#;
        let [waiting] = waiting(printed).unwrap().try_into().unwrap();
        assert_eq!((waiting.projection.as_str(), waiting.partition.as_str()), ("likes", "likes:2"));
        assert_eq!((waiting.first, waiting.class.as_str()), (17, "undecodable"));
    }
}
