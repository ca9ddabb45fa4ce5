//! `projectors dead-letters`: lists, shows, retries and discards dead letters.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use rdkafka::{
    Message,
    message::{Headers, OwnedMessage},
};
use tokio::task::spawn_blocking;
use vidlog_projection_engine::{
    dead_letters::{DeadLetter, DeadLetterQueue, dead_letter},
    log::{Log, Partition, RecordKey},
    store::{Class, Stores},
    view::Projection,
};
use vidlog_service_kit::config;

use crate::{
    operator::dead_letters::{ParkedEntry, as_json, available_parked_keys, discard, retry},
    projections,
};

/// Size of the MySQL connection pool.
const MYSQL_CONNECTIONS: u32 = 4;

/// Settings of `dead-letters`.
#[derive(Args, Debug)]
pub struct DeadLetters {
    /// Action to run.
    #[command(subcommand)]
    pub action: Action,
    /// Connection to Kafka.
    #[command(flatten)]
    pub log: config::Kafka,
    /// Connections to MySQL and Redis.
    #[command(flatten)]
    pub stores: config::Stores,
}

/// Actions on dead letters.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List the parked keys.
    List {
        /// Name of the projection; all by default.
        #[arg(value_parser = projections::parse)]
        projection: Option<Projection>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a dead letter with its headers and its value.
    Show(DeadLetterId),
    /// Fold the parked records in order, for example after a fix. Exit code 1 if any stays parked.
    Retry {
        /// Name of the projection.
        #[arg(value_parser = projections::parse)]
        projection: Projection,
        /// Retry only this key.
        #[arg(long)]
        key: Option<String>,
    },
    /// Skip the first parked record of a key for good, and fold the rest. Exit code 1 if any stays parked.
    Discard(DeadLetterId),
}

/// Identifies a dead letter of a projection.
#[derive(Args, Debug)]
pub struct DeadLetterId {
    /// Name of the projection.
    #[arg(value_parser = projections::parse)]
    pub projection: Projection,
    /// Partition, such as `likes:3`.
    pub partition: Partition,
    /// Offset of the record in its topic.
    pub offset: i64,
}

/// Runs a command. Returns true if it succeeded in full: all sources responded, and no record of the chosen
/// keys stays parked.
pub async fn run(command: DeadLetters) -> anyhow::Result<bool> {
    let DeadLetters { action, log, stores } = command;
    let target = Stores::open(&stores, MYSQL_CONNECTIONS)?;
    let dead_letters = DeadLetterQueue::new(Log::new(&log, &stores.namespace));
    match action {
        Action::List { projection, json } => {
            let chosen = projection.map_or(projections::ALL.to_vec(), |projection| vec![projection]);
            let (waiting, unavailable) = available_parked_keys(&target, &chosen).await?;
            println!("{}", if json { as_json(&waiting).to_string() } else { as_table(&waiting) });
            for why in &unavailable {
                eprintln!("unavailable: {why:#}");
            }
            Ok(unavailable.is_empty())
        }
        Action::Show(id) => {
            println!("{}", show(&dead_letters, &id).await?);
            Ok(true)
        }
        Action::Retry { projection, key } => {
            let key = key.as_deref().map(RecordKey::from_text);
            let (mut retried, mut is_done) = (0, true);
            // Prints each key at once: a retry may take long and may end with an error.
            retry(&target, &dead_letters, projection, key.as_ref(), |one| {
                println!("{one}");
                (retried, is_done) = (retried + 1, is_done && one.is_folded());
            })
            .await?;
            if retried == 0 {
                println!("no parked keys");
            }
            Ok(is_done)
        }
        Action::Discard(DeadLetterId { projection, partition, offset }) => {
            let discarded = discard(&target, &dead_letters, projection, (partition, offset)).await?;
            println!("{discarded}");
            Ok(discarded.is_folded())
        }
    }
}

fn as_table(waiting: &[ParkedEntry]) -> String {
    if waiting.is_empty() {
        return "no parked keys".to_owned();
    }
    let mut lines = vec![format!(
        "{:15} {:12} {:20} {:>10} {:>8}  {:11} MESSAGE",
        "PROJECTION", "PARTITION", "KEY", "OFFSET", "WAITING", "CLASS"
    )];
    for ParkedEntry { projection, partition, key, parked } in waiting {
        lines.push(format!(
            "{projection:15} {:12} {key:20} {:>10} {:>8}  {:11} {}",
            partition.id(),
            parked.first,
            parked.waiting,
            parked.failure.class,
            parked.failure.message
        ));
    }
    lines.join("\n")
}

async fn show(dead_letters: &DeadLetterQueue, id: &DeadLetterId) -> anyhow::Result<String> {
    let (log, name) = (dead_letters.log().clone(), id.projection.name());
    let (partition, offset) = (id.partition, id.offset);
    let read = move || {
        // A rebuild sends the same dead letter again. One per class suffices, so the last one is kept.
        let mut found: BTreeMap<Class, DeadLetter> = BTreeMap::new();
        dead_letter::read(&log, name, partition, |dead_letter| {
            if dead_letter.offset == offset {
                found.insert(dead_letter.failure.class, dead_letter);
            }
        })?;
        // The records that dead letters refer to: of a discarded one only the offset is kept.
        let is_loaded = |dead_letter: &DeadLetter| {
            dead_letter.is_reference() && dead_letter.failure.class != Class::Discarded
        };
        let origin = match found.values().find(|dead_letter| is_loaded(dead_letter)) {
            Some(dead_letter) => Some(dead_letter.origin().load(&log, partition)?),
            None => None,
        };
        anyhow::Ok((found, origin))
    };
    let (found, origin) = spawn_blocking(read).await.context("reading the dead letters panicked")??;
    if found.is_empty() {
        bail!("{name} has no dead letter at offset {offset} of {}", partition.id());
    }
    let text = |bytes: Option<&[u8]>| printable(&String::from_utf8_lossy(bytes.unwrap_or_default()));
    let headers = |message: &OwnedMessage| -> Vec<String> {
        let all = message.headers().into_iter().flat_map(Headers::iter);
        all.map(|header| format!("{}: {}", header.key, text(header.value))).collect()
    };
    let mut lines = Vec::new();
    for dead_letter in found.values() {
        let key = if dead_letter.is_reference() {
            printable(dead_letter.key().as_str())
        } else {
            text(dead_letter.message.key())
        };
        lines.push(format!("key: {key}"));
        lines.extend(headers(&dead_letter.message));
        match &origin {
            Some(Ok(origin)) if dead_letter.is_reference() => {
                lines.extend(headers(origin));
                lines.push(format!("\n{}\n", text(origin.payload())));
            }
            Some(Err(deleted)) if dead_letter.is_reference() => lines.push(format!("\n{deleted}\n")),
            _ => lines.push(format!("\n{}\n", text(dead_letter.message.payload()))),
        }
    }
    Ok(lines.join("\n"))
}

/// Escapes control characters, which a record could use to control the terminal.
fn printable(text: &str) -> String {
    let escape = |character: char| match character {
        '\n' | '\t' => character.to_string(),
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_a_terminal_is_shown_and_not_followed() {
        assert_eq!(printable("{\n\t\"text\": \"häh?\"}"), "{\n\t\"text\": \"häh?\"}");
        assert_eq!(printable("\u{1b}[2J\r\u{9b}"), "\\u{1b}[2J\\r\\u{9b}");
    }
}
