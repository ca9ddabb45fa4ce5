//! Operator actions under faults. A refused command is no violation; it is repeated when the faults are over.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};
use vidlog_events::Stream;
use vidlog_projectors::{
    desired_state::{self, RunState},
    projections,
    view::Projection,
};

use crate::{
    fault::{AfterKill, BadRecords, KillAt, Process},
    operator::CommandResult,
    run::Run,
};

/// How long after a run of bad records the operator watches for projections that stop.
const WATCH: Duration = Duration::from_secs(6);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Attempts at a rebuild that is refused, with a pause in between: its services may be back.
const ATTEMPTS: u32 = 3;
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after a killed command: MySQL has to release the lock of its connection first.
const AFTER_KILL: Duration = Duration::from_millis(300);

/// Part of a discard's output if another bad record of the key parks it again.
pub(crate) const STAYS_PARKED: &str = "stay parked from offset";

/// The projections that fold a stream.
pub(crate) fn folding(stream: Stream) -> impl Iterator<Item = Projection> {
    projections::ALL.into_iter().filter(move |projection| projection.streams().any(|folded| folded == stream))
}

impl Run {
    /// Rebuilds a view.
    pub(crate) async fn rebuild(
        &self,
        projection: &'static str,
        kill: Option<&KillAt>,
        then: AfterKill,
    ) -> anyhow::Result<()> {
        self.journal().rebuilt.insert(projection);
        let mut result = self.try_rebuild(projection, kill).await?;
        for _ in 1..ATTEMPTS {
            if let CommandResult::Refused(_) = result {
                sleep(RETRY_INTERVAL).await;
                result = self.try_rebuild(projection, kill).await?;
            }
        }
        if kill.is_none() || result != CommandResult::Killed {
            return Ok(());
        }
        sleep(AFTER_KILL).await;
        match then {
            AfterKill::Resumed => self.try_rebuild(projection, None).await.map(drop),
            AfterKill::Dropped => {
                let dropped = self.operator().run(&["rebuild", projection, "--drop"], None).await?;
                if let CommandResult::Succeeded(_) = dropped {
                    self.journal().operator.dropped += 1;
                }
                Ok(())
            }
            AfterKill::Left => Ok(()),
        }
    }

    async fn try_rebuild(
        &self,
        projection: &'static str,
        kill: Option<&KillAt>,
    ) -> anyhow::Result<CommandResult> {
        self.journal().operator.rebuilds += 1;
        let result = self.operator().run(&["rebuild", projection], kill).await?;
        let journal = &mut self.journal();
        match &result {
            CommandResult::Succeeded(_) => journal.operator.switched += 1,
            CommandResult::Killed => journal.operator.killed_rebuilds += 1,
            CommandResult::Refused(output) if output.contains(" differences") => {
                let found = format!("the rebuild of {projection} found differences: {output}");
                journal.rebuild_differences.push(found);
            }
            CommandResult::Refused(output) => {
                journal.record_refusal(&format!("rebuild of {projection}"), output);
            }
        }
        Ok(result)
    }

    /// Pauses a projection for a while; kills a process of the projectors meanwhile, if one is given.
    pub(crate) async fn pause(
        &self,
        projection: &'static str,
        duration: Duration,
        killed: Option<usize>,
    ) -> anyhow::Result<()> {
        self.operator().run_until_success(&["pause", projection]).await?;
        self.journal().operator.pauses += 1;
        sleep(duration / 2).await;
        if let Some(number) = killed {
            self.kill(Process::Projectors(number), Duration::ZERO).await?;
        }
        sleep(duration / 2).await;
        self.operator().run_until_success(&["resume", projection]).await.map(drop)
    }

    /// Appends bad records; discards them or resumes the projections that they stop, as planned.
    pub(crate) async fn append_bad_records(&self, records: &BadRecords) -> anyhow::Result<()> {
        let users = self.users.get().map(Vec::as_slice).unwrap_or_default();
        let commands = self.bad_records.append(records, users).await;
        {
            let journal = &mut self.journal();
            journal.operator.bad_records += commands.len();
            journal.bad_records.extend(commands);
        }
        if let Some(delay) = records.discard_after {
            sleep(delay).await;
            let mut kill = records.kill.as_ref();
            for projection in folding(records.stream) {
                self.discard_first_of_each_key(projection, &mut kill).await?;
            }
        } else if records.count > 2 {
            self.resume_stopped(records.stream).await?;
        }
        Ok(())
    }

    /// Discards the first dead letter of each parked key of a projection. The first of these discards may be killed.
    async fn discard_first_of_each_key(
        &self,
        projection: Projection,
        kill: &mut Option<&KillAt>,
    ) -> anyhow::Result<()> {
        let list = ["dead-letters", "list", projection.name(), "--json"];
        let CommandResult::Succeeded(output) = self.operator().run(&list, None).await? else {
            return Ok(());
        };
        for parked in parse_parked_keys(&output)? {
            self.discard(&parked, kill.take()).await?;
        }
        Ok(())
    }

    /// Discards the first dead letter of a parked key.
    pub(crate) async fn discard(
        &self,
        parked: &ParkedKey,
        kill: Option<&KillAt>,
    ) -> anyhow::Result<CommandResult> {
        let ParkedKey { projection, partition, first_offset, .. } = parked;
        let arguments = ["dead-letters", "discard", projection, partition, &first_offset.to_string()];
        let result = self.operator().run(&arguments, kill).await?;
        let stats = &mut self.journal().operator;
        match &result {
            CommandResult::Succeeded(_) => stats.discards += 1,
            // The key's next bad record parks it again.
            CommandResult::Refused(output) if output.contains(STAYS_PARKED) => stats.discards += 1,
            CommandResult::Refused(_) => {}
            CommandResult::Killed => stats.killed_discards += 1,
        }
        Ok(result)
    }

    /// Resumes the projections of a stream that stop, for a while.
    async fn resume_stopped(&self, stream: Stream) -> anyhow::Result<()> {
        let end = Instant::now() + WATCH;
        while Instant::now() < end {
            for projection in folding(stream) {
                self.resume_if_stopped(projection).await?;
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Resumes a projection if it is stopped because of bad records.
    pub(crate) async fn resume_if_stopped(&self, projection: Projection) -> anyhow::Result<()> {
        // MySQL may be down.
        let desired = desired_state::read(&self.system.tables).await.unwrap_or_default();
        let is_stopped = desired
            .get(projection.name())
            .is_some_and(|desired| matches!(desired.run_state, RunState::Stopped(_)));
        if is_stopped
            && let CommandResult::Succeeded(_) =
                self.operator().run(&["resume", projection.name()], None).await?
        {
            self.journal().operator.stopped_projections += 1;
        }
        Ok(())
    }
}

/// A parked key, as `dead-letters list` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParkedKey {
    pub(crate) projection: String,
    pub(crate) partition: String,
    pub(crate) first_offset: i64,
    pub(crate) class: String,
}

/// Parses the output of `dead-letters list --json`.
pub(crate) fn parse_parked_keys(output: &str) -> anyhow::Result<Vec<ParkedKey>> {
    let keys: Vec<Value> = serde_json::from_str(output)?;
    let text = |key: &Value, name: &str| key[name].as_str().unwrap_or_default().to_owned();
    let parse = |key: &Value| ParkedKey {
        projection: text(key, "projection"),
        partition: text(key, "partition"),
        first_offset: key["first_offset"].as_i64().unwrap_or(-1),
        class: text(key, "class"),
    };
    Ok(keys.iter().map(parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parked_keys_parse_from_printed_list() {
        let output = r#"[{"class":"undecodable","first_offset":17,"key":"2","last_offset":78,"message":"",
            "partition":"likes:2","projection":"likes","waiting":45}]"#;
        let [parked] = parse_parked_keys(output).unwrap().try_into().unwrap();
        assert_eq!((parked.projection.as_str(), parked.partition.as_str()), ("likes", "likes:2"));
        assert_eq!((parked.first_offset, parked.class.as_str()), (17, "undecodable"));
    }
}
