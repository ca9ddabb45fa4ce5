//! Reads the keys of views in Redis, in chunks.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use redis::{Cmd, Value, cmd, from_redis_value};
use vidlog_projection_engine::{store::Stores, view::Projection};
use vidlog_schemas::{keys::ViewKey, projections::View};

use super::{
    line::{LineKey, digest},
    lines::Lines,
};

/// Number of key names that are fetched, and of lines that are looked up, per round trip.
pub(crate) const PAGE: usize = 1000;
/// Number of members that are read per round trip. Redis serves no other client meanwhile: with 1000, a chunk
/// of a set of 2 million took 1.4 to 4.6 ms on a busy machine.
const CHUNK: usize = 500;
/// Fields that hold user-written text.
const TEXTS: [&str; 3] = ["name", "title", "reason"];

/// The type of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Set,
    SortedSet,
    Hash,
    /// A type that no view has.
    Other(String),
}

impl Kind {
    fn size(&self, name: &str) -> Cmd {
        let command = match self {
            Self::Set => "SCARD",
            Self::SortedSet => "ZCARD",
            Self::Hash => "HLEN",
            Self::Other(_) => "EXISTS",
        };
        cmd(command).arg(name).take()
    }

    /// Reads a chunk of the members. A member that exists from the first chunk to the last is in one of them,
    /// no matter which members are added or removed meanwhile.
    fn scan(&self, name: &str, cursor: u64) -> Cmd {
        let command = match self {
            Self::Set => "SSCAN",
            Self::SortedSet => "ZSCAN",
            Self::Hash => "HSCAN",
            Self::Other(_) => return cmd("TYPE").arg(name).take(),
        };
        cmd(command).arg(name).arg(cursor).arg("COUNT").arg(CHUNK).take()
    }

    /// Looks up some members.
    fn lookup(&self, name: &str, members: &[&[u8]]) -> Cmd {
        let command = match self {
            Self::Set => "SMISMEMBER",
            Self::SortedSet => "ZMSCORE",
            Self::Hash => "HMGET",
            Self::Other(_) => return cmd("TYPE").arg(name).take(),
        };
        cmd(command).arg(name).arg(members).take()
    }

    /// Returns the cursor of the next chunk, 0 after the last, and the lines of this chunk.
    fn chunk(&self, name: &str, reply: Value) -> anyhow::Result<(u64, Vec<(LineKey, String)>)> {
        if let Self::Other(kind) = self {
            return Ok((0, vec![(LineKey::member(name, ""), format!("type {kind}"))]));
        }
        let (cursor, values): (u64, Vec<Vec<u8>>) = from_redis_value(reply)?;
        let lines = if *self == Self::Set {
            values.iter().map(|member| (LineKey::member(name, member), String::new())).collect()
        } else {
            let pairs = values.as_chunks().0.iter();
            pairs
                .map(|[member, value]| (LineKey::member(name, member), self.content(member, value)))
                .collect()
        };
        Ok((cursor, lines))
    }

    /// Returns the contents of members that were looked up; `None` for absent ones.
    fn contents(&self, members: &[&[u8]], reply: Value) -> anyhow::Result<Vec<Option<String>>> {
        Ok(match self {
            Self::Set => {
                let are_there: Vec<bool> = from_redis_value(reply)?;
                are_there.into_iter().map(|is_there| is_there.then(String::new)).collect()
            }
            Self::SortedSet | Self::Hash => {
                let values: Vec<Option<Vec<u8>>> = from_redis_value(reply)?;
                let content =
                    |(member, value): (&&[u8], Option<Vec<u8>>)| Some(self.content(member, &value?));
                members.iter().zip(values).map(content).collect()
            }
            Self::Other(kind) => {
                members.iter().map(|member| member.is_empty().then(|| format!("type {kind}"))).collect()
            }
        })
    }

    fn content(&self, member: &[u8], value: &[u8]) -> String {
        let value = String::from_utf8_lossy(value);
        match self {
            // Redis formats scores differently in different replies.
            Self::SortedSet => {
                value.parse().map_or_else(|_| value.to_string(), |score: f64| score.to_string())
            }
            _ if TEXTS.iter().any(|text| text.as_bytes() == member) => digest(&value),
            _ => value.into_owned(),
        }
    }
}

/// Reads the views of some projections, as far as they are in Redis, in the generations of the target's keys.
/// Returns the lines by projection name; holds about the given number of bytes of each in memory.
pub(crate) async fn read_views(
    target: &Stores,
    projections: &[Projection],
    memory: usize,
) -> anyhow::Result<BTreeMap<&'static str, Lines>> {
    let in_redis =
        projections.iter().filter(|projection| matches!(projection.catalogued.view, View::Redis(_)));
    let mut views: BTreeMap<_, _> =
        in_redis.map(|projection| (projection.name(), Lines::new(memory))).collect();
    if views.is_empty() {
        return Ok(views);
    }
    let mut scan = target.redis.scan(&target.keys.pattern(), PAGE);
    while let Some(names) = scan.next().await.context("failed to read the keys in Redis")? {
        let mut pages: BTreeMap<&'static str, BTreeSet<String>> = BTreeMap::new();
        for key in names.iter().filter_map(|name| ViewKey::parse(name)) {
            if target.keys.generation(&key.projection) == key.generation {
                pages.entry(key.projection.name).or_default().insert(key.name);
            }
        }
        for (name, page) in pages {
            if let Some(lines) = views.get_mut(name) {
                read_keys(target, page, lines).await?;
            }
        }
    }
    Ok(views)
}

/// Reads all lines of some keys, named as in the first generation. Returns the number of lines.
pub(crate) async fn read_keys(
    target: &Stores,
    names: BTreeSet<String>,
    lines: &mut Lines,
) -> anyhow::Result<usize> {
    let read = async {
        let keys = Key::find(target, names).await?;
        let mut sizes = Vec::with_capacity(keys.len());
        let commands: Vec<_> = keys.iter().map(|key| key.kind.size(&key.own_name)).collect();
        for size in target.redis.pipeline(&commands).await? {
            sizes.push(from_redis_value::<usize>(size)?);
        }
        let (mut count, mut batch, mut members) = (0, Vec::new(), 0);
        for (key, size) in keys.into_iter().zip(sizes) {
            batch.push(key);
            members += size.clamp(1, CHUNK);
            if members >= CHUNK {
                count += read_batch(target, std::mem::take(&mut batch), lines).await?;
                members = 0;
            }
        }
        anyhow::Ok(count + read_batch(target, batch, lines).await?)
    };
    read.await.context("failed to read the view in Redis")
}

/// Reads some keys: the first chunks in one round trip, then the rest of each key that has more.
async fn read_batch(target: &Stores, keys: Vec<Key>, lines: &mut Lines) -> anyhow::Result<usize> {
    let first: Vec<_> = keys.iter().map(|key| key.kind.scan(&key.own_name, 0)).collect();
    let replies = target.redis.pipeline(&first).await?;
    let mut count = 0;
    for (Key { name, own_name, kind }, reply) in keys.iter().zip(replies) {
        let (mut cursor, mut chunk) = kind.chunk(name, reply)?;
        loop {
            count += chunk.len();
            for (key, content) in chunk {
                lines.set(&key, &content);
            }
            lines.spill_if_full_on_blocking_thread().await?;
            if cursor == 0 {
                break;
            }
            let reply = target.redis.query(&kind.scan(own_name, cursor)).await?;
            (cursor, chunk) = kind.chunk(name, reply)?;
        }
    }
    Ok(count)
}

/// Looks up some lines of keys, named as in the first generation. Returns those that exist.
pub(crate) async fn read_lines(
    target: &Stores,
    lines: &BTreeSet<LineKey>,
) -> anyhow::Result<BTreeMap<LineKey, String>> {
    let read = async {
        let mut members: BTreeMap<String, Vec<&[u8]>> = BTreeMap::new();
        for (name, member) in lines.iter().filter_map(LineKey::redis) {
            members.entry(name.into_owned()).or_default().push(member);
        }
        let keys = Key::find(target, members.keys().cloned().collect()).await?;
        let commands =
            keys.iter().flat_map(|key| members[&key.name].chunks(CHUNK).map(move |chunk| (key, chunk)));
        let commands: Vec<_> = commands.collect();
        let mut found = BTreeMap::new();
        for page in commands.chunks(PAGE) {
            let lookups: Vec<_> =
                page.iter().map(|(key, chunk)| key.kind.lookup(&key.own_name, chunk)).collect();
            for ((key, chunk), reply) in page.iter().zip(target.redis.pipeline(&lookups).await?) {
                for (member, content) in chunk.iter().zip(key.kind.contents(chunk, reply)?) {
                    found.extend(content.map(|content| (LineKey::member(&key.name, member), content)));
                }
            }
        }
        anyhow::Ok(found)
    };
    read.await.context("failed to read the view in Redis")
}

/// Returns the sizes of some keys, named as in the first generation; absent keys are left out.
pub(crate) async fn key_sizes(
    target: &Stores,
    names: BTreeSet<String>,
) -> anyhow::Result<BTreeMap<String, usize>> {
    let keys = Key::find(target, names).await?;
    let commands: Vec<_> = keys.iter().map(|key| key.kind.size(&key.own_name)).collect();
    let sizes = target.redis.pipeline(&commands).await?.into_iter().map(from_redis_value);
    let sizes = sizes.collect::<Result<Vec<usize>, _>>()?;
    Ok(keys.into_iter().map(|key| key.name).zip(sizes).collect())
}

/// A key that exists.
struct Key {
    /// Name in the first generation.
    name: String,
    /// Name in the generation that is read.
    own_name: String,
    kind: Kind,
}

impl Key {
    async fn find(target: &Stores, names: BTreeSet<String>) -> anyhow::Result<Vec<Self>> {
        let with_own = |name: String| Some((target.keys.to_current_generation(&name)?, name));
        let names: Vec<_> = names.into_iter().filter_map(with_own).collect();
        let mut keys = Vec::with_capacity(names.len());
        for page in names.chunks(PAGE) {
            let types: Vec<_> = page.iter().map(|(own_name, _)| cmd("TYPE").arg(own_name).take()).collect();
            for ((own_name, name), kind) in page.iter().zip(target.redis.pipeline(&types).await?) {
                let kind = match from_redis_value::<String>(kind)?.as_str() {
                    "none" => continue,
                    "set" => Kind::Set,
                    "zset" => Kind::SortedSet,
                    "hash" => Kind::Hash,
                    other => Kind::Other(other.to_owned()),
                };
                keys.push(Self { name: name.clone(), own_name: own_name.clone(), kind });
            }
        }
        Ok(keys)
    }
}
