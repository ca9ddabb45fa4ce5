//! Compares the outcomes of commands with the log.

use std::{collections::BTreeMap, ops::ControlFlow};

use anyhow::Context;
use rdkafka::{Message, message::Headers};
use tokio::task::spawn_blocking;
use vidlog_events::{Stream, Topics};
use vidlog_projectors::log::{Extent, Item, Log, Source};

use crate::ledger::{Command, Kind, LogPosition, Outcome};

/// The records of a log by request id.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    by_request: BTreeMap<String, Vec<(LogPosition, String)>>,
}

impl Records {
    /// Reads a namespace's log, up to its current end.
    pub(crate) async fn read(brokers: &str, namespace: &str) -> anyhow::Result<Self> {
        let log = Log { brokers: brokers.to_owned(), topics: Topics::new(namespace) };
        let extents = log.extents(Stream::ALL.to_vec()).await?;
        let ranges =
            extents.into_iter().map(|(partition, Extent { start, end })| (partition, start..end)).collect();
        let read = move || {
            let mut records = Self::default();
            log.read(
                Source::Events,
                &ranges,
                || false,
                |partition, item| {
                    if let Item::Record(message) = item {
                        let position = LogPosition {
                            stream: partition.stream.to_string(),
                            partition: partition.number,
                            offset: message.offset(),
                        };
                        records.add(header(message, "ce_correlationid"), position, header(message, "ce_id"));
                    }
                    Ok(ControlFlow::Continue(()))
                },
            )?;
            Ok(records)
        };
        spawn_blocking(read).await.context("reading the log panicked")?
    }

    fn add(&mut self, request: String, position: LogPosition, event: String) {
        self.by_request.entry(request).or_default().push((position, event));
    }

    /// The positions of a request's records.
    pub(crate) fn positions(&self, request: &str) -> impl Iterator<Item = &LogPosition> {
        self.by_request.get(request).into_iter().flatten().map(|(position, _)| position)
    }

    /// One sentence for each command whose outcome contradicts the log.
    pub(crate) fn violations(&self, commands: &[Command]) -> Vec<String> {
        commands
            .iter()
            .filter_map(|command| {
                Some(format!("{} {}: {}", command.kind, command.id, self.violation(command)?))
            })
            .collect()
    }

    fn violation(&self, command: &Command) -> Option<String> {
        let records = self.by_request.get(&command.id).map(Vec::as_slice).unwrap_or_default();
        match &command.outcome {
            Outcome::Acknowledged(_) if records.is_empty() => {
                return Some("acknowledged, but not in the log".to_owned());
            }
            Outcome::Acknowledged(Some(answered))
                if !records.iter().any(|(position, _)| position == answered) =>
            {
                let positions: Vec<_> = records.iter().map(|(position, _)| position.to_string()).collect();
                return Some(format!(
                    "acknowledged at {answered}, but the log has it at {}",
                    positions.join(", ")
                ));
            }
            Outcome::Acknowledged(None) if command.kind != Kind::Register => {
                return Some("acknowledged without a position".to_owned());
            }
            // With several attempts the first may have succeeded and Redis lost its idempotency key.
            Outcome::Refused if command.attempts == 1 && !records.is_empty() => {
                return Some("refused, but in the log".to_owned());
            }
            Outcome::Acknowledged(_) | Outcome::Refused | Outcome::Unknown => {}
        }
        // The same event may be there again: the relay repeats one after a crash, and the Kafka client repeats a batch
        // whose outcome it does not know after it had to begin a new sequence. Folds ignore repetitions.
        let same_event = records.windows(2).all(|pair| pair[0].1 == pair[1].1);
        (command.attempts == 1 && !same_event)
            .then(|| "sent once, but in the log as several events".to_owned())
    }
}

fn header(message: &impl Message, name: &str) -> String {
    let value = message.headers().and_then(|headers| headers.iter().find(|header| header.key == name)?.value);
    value.map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(id: &str, kind: Kind, attempts: u32, outcome: Outcome) -> Command {
        Command { id: id.to_owned(), kind, attempts, outcome }
    }

    #[test]
    fn outcomes_that_contradict_the_log_are_violations() {
        let mut records = Records::default();
        let at = |offset| LogPosition { stream: "likes".to_owned(), partition: 0, offset };
        for (request, offset, event) in
            [("once", 0, "a"), ("again", 1, "b"), ("again", 2, "b"), ("twice", 3, "c"), ("twice", 4, "d")]
        {
            records.add(request.to_owned(), at(offset), event.to_owned());
        }
        let acknowledged = |offset| Outcome::Acknowledged(Some(at(offset)));
        let consistent = [
            command("once", Kind::Like, 1, acknowledged(0)),
            command("never", Kind::Like, 1, Outcome::Unknown),
            command("never", Kind::Like, 1, Outcome::Refused),
            command("again", Kind::Like, 1, acknowledged(2)),
            command("again", Kind::Register, 1, Outcome::Acknowledged(None)),
            command("twice", Kind::Like, 2, acknowledged(3)),
        ];
        assert_eq!(records.violations(&consistent), [""; 0]);
        let contradicting = [
            command("never", Kind::Like, 1, Outcome::Acknowledged(None)),
            command("once", Kind::Like, 1, Outcome::Acknowledged(None)),
            command("once", Kind::Like, 1, acknowledged(1)),
            command("once", Kind::Like, 1, Outcome::Refused),
            command("twice", Kind::Like, 1, Outcome::Unknown),
        ];
        assert_eq!(records.violations(&contradicting).len(), contradicting.len());
    }

    #[test]
    fn position_follows_its_record() {
        let record = LogPosition { stream: "likes".to_owned(), partition: 3, offset: 1041 };
        assert_eq!(LogPosition::before("likes:3:1042"), Some(record));
        assert_eq!(LogPosition::before("likes:3"), None);
    }
}
