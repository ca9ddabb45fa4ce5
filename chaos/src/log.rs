//! Compares what was acknowledged with what is in the log, which is read to its end.

use std::{collections::BTreeMap, ops::ControlFlow};

use anyhow::Context;
use rdkafka::{Message, message::Headers};
use tokio::task::spawn_blocking;
use vidlog_events::{Stream, Topics};
use vidlog_projectors::log::{Extent, Item, Log, Source};

use crate::ledger::{Command, Kind, Outcome, Place};

/// The records of a log, by the request that each comes from.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Records {
    by_request: BTreeMap<String, Vec<(Place, String)>>,
}

impl Records {
    /// Reads a namespace's log, up to its present end.
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
                        let place = Place {
                            stream: partition.stream.to_string(),
                            partition: partition.number,
                            offset: message.offset(),
                        };
                        records.add(header(message, "ce_correlationid"), place, header(message, "ce_id"));
                    }
                    Ok(ControlFlow::Continue(()))
                },
            )?;
            Ok(records)
        };
        spawn_blocking(read).await.context("reading the log panicked")?
    }

    fn add(&mut self, request: String, place: Place, event: String) {
        self.by_request.entry(request).or_default().push((place, event));
    }

    /// Where the records of a request are.
    pub(crate) fn places(&self, request: &str) -> impl Iterator<Item = &Place> {
        self.by_request.get(request).into_iter().flatten().map(|(place, _)| place)
    }

    /// What the log has that it should not have, or has not that it should: a sentence each.
    pub(crate) fn faults(&self, commands: &[Command]) -> Vec<String> {
        commands
            .iter()
            .filter_map(|command| Some(format!("{} {}: {}", command.kind, command.id, self.fault(command)?)))
            .collect()
    }

    fn fault(&self, command: &Command) -> Option<String> {
        let records = self.by_request.get(&command.id).map(Vec::as_slice).unwrap_or_default();
        match &command.outcome {
            Outcome::Acknowledged(_) if records.is_empty() => {
                return Some("it was acknowledged and is not in the log".to_owned());
            }
            Outcome::Acknowledged(Some(said)) if !records.iter().any(|(place, _)| place == said) => {
                let places: Vec<_> = records.iter().map(|(place, _)| place.to_string()).collect();
                return Some(format!("it was said to be in {said}, but is in {}", places.join(", ")));
            }
            Outcome::Acknowledged(None) if command.kind != Kind::Register => {
                return Some("it was acknowledged without a position".to_owned());
            }
            // With more than one attempt the first may have succeeded, and its key be lost with Redis.
            Outcome::Refused if command.attempts == 1 && !records.is_empty() => {
                return Some("it was refused and is in the log".to_owned());
            }
            Outcome::Acknowledged(_) | Outcome::Refused | Outcome::Unknown => {}
        }
        // The same event may be there again: the relay repeats one after a crash, and the Kafka client a batch that it sent
        // in vain, as far as it knows, once it has had to begin a new sequence. Every fold ignores that.
        let same_event = records.windows(2).all(|pair| pair[0].1 == pair[1].1);
        (command.attempts == 1 && !same_event)
            .then(|| "it was sent once and is in the log as several events".to_owned())
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
    fn a_ledger_is_held_against_the_log() {
        let mut records = Records::default();
        let at = |offset| Place { stream: "likes".to_owned(), partition: 0, offset };
        for (request, offset, event) in
            [("once", 0, "a"), ("again", 1, "b"), ("again", 2, "b"), ("twice", 3, "c"), ("twice", 4, "d")]
        {
            records.add(request.to_owned(), at(offset), event.to_owned());
        }
        let acknowledged = |offset| Outcome::Acknowledged(Some(at(offset)));
        let fine = [
            command("once", Kind::Like, 1, acknowledged(0)),
            command("never", Kind::Like, 1, Outcome::Unknown),
            command("never", Kind::Like, 1, Outcome::Refused),
            command("again", Kind::Like, 1, acknowledged(2)),
            command("again", Kind::Register, 1, Outcome::Acknowledged(None)),
            command("twice", Kind::Like, 2, acknowledged(3)),
        ];
        assert_eq!(records.faults(&fine), [""; 0]);
        let wrong = [
            command("never", Kind::Like, 1, Outcome::Acknowledged(None)),
            command("once", Kind::Like, 1, Outcome::Acknowledged(None)),
            command("once", Kind::Like, 1, acknowledged(1)),
            command("once", Kind::Like, 1, Outcome::Refused),
            command("twice", Kind::Like, 1, Outcome::Unknown),
        ];
        assert_eq!(records.faults(&wrong).len(), wrong.len());
    }

    #[test]
    fn a_position_is_behind_its_record() {
        let place = Place { stream: "likes".to_owned(), partition: 3, offset: 1041 };
        assert_eq!(Place::before("likes:3:1042"), Some(place));
        assert_eq!(Place::before("likes:3"), None);
    }
}
