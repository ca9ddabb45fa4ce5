//! `projectors dead-letters`: what waits, and what is to become of it.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures::future::join_all;
use rdkafka::{Message, message::Headers};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use vidlog_events::{Stream, Topics};
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;
use vidlog_service_kit::{
    config::{Log, Stores},
    mysql,
};

use super::{Letter, Outcome, Post, Retry, letter};
use crate::{
    config::parse_projection,
    control,
    projection::Projection,
    projections, replay,
    sink::{Class, Parked, ParkedKey, Partition, RecordKey, Sink, Target},
    view_lock::ViewLock,
};

/// Settings of `dead-letters`.
#[derive(Args, Debug)]
pub struct DeadLetters {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
    /// Where the log is.
    #[command(flatten)]
    pub log: Log,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
}

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List the keys whose records wait.
    List {
        /// The projection; all if none is given.
        #[arg(value_parser = parse_projection)]
        projection: Option<Projection>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show a record that waits, with its headers and its value.
    Show(Place),
    /// Fold what waits, in order, as after a fix. Exit code 1 if anything still waits.
    Retry {
        /// The projection.
        #[arg(value_parser = parse_projection)]
        projection: Projection,
        /// Only this key.
        #[arg(long)]
        key: Option<String>,
    },
    /// Pass over the first record that waits of a key, for good, and fold the rest. Exit code 1 if it still waits.
    Discard(Place),
}

/// A record, as a projection has it among its dead letters.
#[derive(Args, Debug)]
pub struct Place {
    /// The projection.
    #[arg(value_parser = parse_projection)]
    pub projection: Projection,
    /// The partition, as `likes:3`.
    #[arg(value_parser = parse_partition)]
    pub partition: Partition,
    /// The record's offset in its topic.
    pub offset: i64,
}

/// Does what is asked; true if nothing is left that should not be.
pub async fn run(command: DeadLetters) -> anyhow::Result<bool> {
    let DeadLetters { action, log, stores } = command;
    let target = Target {
        keys: Keys::new(&stores.namespace, stores.shards),
        redis: Redis::open(stores.redis_url.reveal()).context("failed to read the Redis address")?,
        mysql: mysql::open(stores.mysql_url.reveal(), 4).context("failed to read the MySQL address")?,
    };
    let topics = Topics::new(&stores.namespace);
    let post = Post::new(replay::Log { brokers: log.kafka_brokers, topics });
    match action {
        Action::List { projection, json } => {
            let chosen = projection.map_or(projections::ALL.to_vec(), |projection| vec![projection]);
            let (waiting, unknown) = waiting_where_known(&target, &chosen).await?;
            println!("{}", if json { as_json(&waiting).to_string() } else { as_table(&waiting) });
            for why in &unknown {
                eprintln!("not known: {why:#}");
            }
            Ok(unknown.is_empty())
        }
        Action::Show(place) => {
            println!("{}", show(&post, &place).await?);
            Ok(true)
        }
        Action::Retry { projection, key } => {
            let key = key.as_deref().map(RecordKey::from_text);
            let (mut retried, mut is_done) = (0, true);
            // Told one by one: it may take long, and end with an error.
            retry(&target, &post, projection, key.as_ref(), |one| {
                println!("{one}");
                (retried, is_done) = (retried + 1, is_done && one.is_folded());
            })
            .await?;
            if retried == 0 {
                println!("nothing waits");
            }
            Ok(is_done)
        }
        Action::Discard(Place { projection, partition, offset }) => {
            let discarded = discard(&target, &post, projection, (partition, offset)).await?;
            println!("{discarded}");
            Ok(discarded.is_folded())
        }
    }
}

/// A key that was retried, and what came of it.
pub(crate) struct Retried {
    partition: Partition,
    key: RecordKey,
    outcome: Outcome,
}

/// Folds what waits of a projection, or of one key of it, in order, and tells what comes of each key.
pub(crate) async fn retry(
    target: &Target,
    post: &Post,
    projection: Projection,
    key: Option<&RecordKey>,
    mut tell: impl FnMut(Retried),
) -> anyhow::Result<()> {
    let lock = locked(target, projection).await?;
    let retry = Retry::new(Sink::new(projection, target.clone()), post.clone());
    for Waiting { partition, key: parked, .. } in waiting(target, projection).await? {
        if key.is_none_or(|key| *key == parked) {
            lock.ensure_held().await?;
            let outcome = retry.key(partition, &parked).await;
            let outcome = outcome.with_context(|| format!("in {} key {parked}", partition.field()))?;
            tell(Retried { partition, key: parked, outcome });
        }
    }
    Ok(())
}

/// Passes over the first record that waits of a key, and folds the rest.
pub(crate) async fn discard(
    target: &Target,
    post: &Post,
    projection: Projection,
    (partition, offset): (Partition, i64),
) -> anyhow::Result<Retried> {
    let _lock = locked(target, projection).await?;
    let retry = Retry::new(Sink::new(projection, target.clone()), post.clone());
    let (key, outcome) = retry.discard(partition, offset).await?;
    Ok(Retried { partition, key, outcome })
}

/// Keeps rebuilds away: what is folded here moves no position, by which a rebuild would know of it.
async fn locked(target: &Target, projection: Projection) -> anyhow::Result<ViewLock> {
    let lock = ViewLock::take(&target.mysql, projection).await?;
    follow_generations(target).await?;
    Ok(lock)
}

async fn follow_generations(target: &Target) -> anyhow::Result<()> {
    let wanted = control::read(&target.mysql).await.context("failed to ask which generations are live")?;
    for projection in projections::ALL {
        let generation = wanted.get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, generation);
    }
    Ok(())
}

/// A key that waits.
pub(crate) struct Waiting {
    projection: &'static str,
    partition: Partition,
    key: RecordKey,
    parked: ParkedKey,
}

/// What waits of a projection.
pub(crate) async fn waiting(target: &Target, projection: Projection) -> anyhow::Result<Vec<Waiting>> {
    let (waiting, unknown) = waiting_where_known(target, &[projection]).await?;
    unknown.into_iter().next().map_or(Ok(waiting), Err)
}

/// What waits of some projections, and why that is not known of the others, as one of the stores is away.
async fn waiting_where_known(
    target: &Target,
    projections: &[Projection],
) -> anyhow::Result<(Vec<Waiting>, Vec<anyhow::Error>)> {
    follow_generations(target).await?;
    let asked = join_all(projections.iter().map(async |projection| {
        let (sink, projection) = (Sink::new(*projection, target.clone()), projection.name());
        let parked = sink.parked().await.with_context(|| format!("what waits of {projection}"))?;
        let of_partition = |(partition, keys): (Partition, Parked)| {
            keys.into_iter().map(move |(key, parked)| Waiting { projection, partition, key, parked })
        };
        anyhow::Ok(parked.into_iter().flat_map(of_partition).collect::<Vec<_>>())
    }));
    let (mut all, mut unknown) = (Vec::new(), Vec::new());
    for answer in asked.await {
        match answer {
            Ok(waiting) => all.extend(waiting),
            Err(why) => unknown.push(why),
        }
    }
    Ok((all, unknown))
}

/// As programs read it.
pub(crate) fn as_json(waiting: &[Waiting]) -> Value {
    let value = |Waiting { projection, partition, key, parked }: &Waiting| {
        json!({
            "projection": projection,
            "partition": partition.field(),
            "key": key.as_str(),
            "first_offset": parked.first,
            "last_offset": parked.last,
            "waiting": parked.waiting,
            "class": parked.failure.class.name(),
            "message": parked.failure.message,
        })
    };
    Value::Array(waiting.iter().map(value).collect())
}

fn as_table(waiting: &[Waiting]) -> String {
    if waiting.is_empty() {
        return "nothing waits".to_owned();
    }
    let mut lines = vec![format!(
        "{:15} {:12} {:20} {:>10} {:>8}  {:11} MESSAGE",
        "PROJECTION", "PARTITION", "KEY", "OFFSET", "WAITING", "CLASS"
    )];
    for Waiting { projection, partition, key, parked } in waiting {
        lines.push(format!(
            "{projection:15} {:12} {key:20} {:>10} {:>8}  {:11} {}",
            partition.field(),
            parked.first,
            parked.waiting,
            parked.failure.class,
            parked.failure.message
        ));
    }
    lines.join("\n")
}

async fn show(post: &Post, place: &Place) -> anyhow::Result<String> {
    let (log, name) = (post.log().clone(), place.projection.name());
    let (partition, offset) = (place.partition, place.offset);
    let read = move || {
        // Whoever folds the log anew sends it anew. The last of each class tells all there is.
        let mut found: BTreeMap<Class, Letter> = BTreeMap::new();
        letter::read(&log, name, partition, |letter| {
            if letter.offset == offset {
                found.insert(letter.failure.class, letter);
            }
        })?;
        anyhow::Ok(found)
    };
    let found = spawn_blocking(read).await.context("reading the dead letters panicked")??;
    if found.is_empty() {
        bail!("{name} has no dead letter of offset {offset} of {}", partition.field());
    }
    let text = |bytes: Option<&[u8]>| printable(&String::from_utf8_lossy(bytes.unwrap_or_default()));
    let mut lines = Vec::new();
    for letter in found.values() {
        lines.push(format!("key: {}", text(letter.message.key())));
        for header in letter.message.headers().into_iter().flat_map(Headers::iter) {
            lines.push(format!("{}: {}", header.key, text(header.value)));
        }
        lines.push(format!("\n{}\n", text(letter.message.payload())));
    }
    Ok(lines.join("\n"))
}

impl Retried {
    /// Whether nothing of the key waits any more.
    pub(crate) const fn is_folded(&self) -> bool {
        matches!(self.outcome, Outcome::Folded)
    }
}

impl fmt::Display for Retried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, key, outcome } = self;
        match outcome {
            Outcome::Folded => write!(f, "{} key {key}: all is folded", partition.field()),
            Outcome::Waits(ParkedKey { first, waiting, failure, .. }) => write!(
                f,
                "{} key {key}: {waiting} still wait, from offset {first} on, which is {}: {}",
                partition.field(),
                failure.class,
                failure.message
            ),
            Outcome::Lost { parked: ParkedKey { waiting, .. }, found } => write!(
                f,
                "{} key {key}: {waiting} wait, but the dead letters have {found}: was the topic cut? Fold the view anew",
                partition.field()
            ),
        }
    }
}

/// As a terminal may have it: what controls it is shown, not followed.
fn printable(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' | '\t' => character.to_string(),
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    text.chars().map(shown).collect()
}

/// Reads a partition, as `likes:3`.
pub(crate) fn parse_partition(text: &str) -> Result<Partition, String> {
    let parse = || {
        let (stream, number) = text.split_once(':')?;
        let stream = Stream::ALL.into_iter().find(|known| known.name() == stream)?;
        Some(Partition { stream, number: number.parse().ok()? })
    };
    parse().ok_or_else(|| format!("{text:?} is no partition; one is called likes:3"))
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
