//! The keys of the views in Redis.

use std::collections::{BTreeMap, BTreeSet};

use redis::{Value, cmd, from_redis_value};
use vidlog_schemas::keys::ViewKey;

use super::{Lines, digest};
use vidlog_projection_engine::store::Stores;

/// Keys looked for, and read, in one round trip.
const PAGE: usize = 1000;
/// Fields that hold what people wrote.
const TEXTS: [&str; 3] = ["name", "title", "reason"];

/// The lines of some keys, by their names in the first generation, in the generation that the target's keys are of.
pub async fn key_lines(target: &Stores, names: &BTreeSet<String>) -> anyhow::Result<Lines> {
    let mut lines = Lines::new();
    let own = names.iter().filter_map(|name| target.keys.in_own_generation(name));
    let own: Vec<String> = own.collect();
    for page in own.chunks(PAGE) {
        read_keys(target, page.to_vec(), &mut lines).await?;
    }
    Ok(lines)
}

/// The lines of all keys that are wanted.
pub(super) async fn all_lines(
    target: &Stores,
    is_wanted: impl Fn(&ViewKey) -> bool,
    lines: &mut Lines,
) -> anyhow::Result<()> {
    let mut scan = target.redis.scan(&target.keys.pattern(), PAGE);
    while let Some(found) = scan.next().await? {
        let names = found.into_iter().filter(|name| ViewKey::read(name).is_some_and(|key| is_wanted(&key)));
        read_keys(target, names.collect(), lines).await?;
    }
    Ok(())
}

async fn read_keys(target: &Stores, names: Vec<String>, lines: &mut Lines) -> anyhow::Result<()> {
    let types: Vec<_> = names.iter().map(|name| cmd("TYPE").arg(name).take()).collect();
    let types = target.redis.all(&types).await?;
    let (mut found, mut reads) = (Vec::with_capacity(names.len()), Vec::with_capacity(names.len()));
    for (name, kind) in names.iter().zip(types) {
        let kind: String = from_redis_value(kind)?;
        reads.push(match kind.as_str() {
            // It may be made any moment, and it is not known as what.
            "none" => continue,
            "hash" => cmd("HGETALL").arg(name).take(),
            "set" => cmd("SMEMBERS").arg(name).take(),
            _ => cmd("ZRANGE").arg(name).arg(0).arg(-1).arg("WITHSCORES").take(),
        });
        found.push((name, kind));
    }
    let values = target.redis.all(&reads).await?;
    for ((name, kind), value) in found.into_iter().zip(values) {
        let Some(key) = ViewKey::read(name) else {
            continue;
        };
        let members =
            if kind == "set" { from_redis_value::<BTreeSet<String>>(value)? } else { pairs(value)? };
        // A key may have gone since it was found: an empty set is no key.
        if !members.is_empty() {
            lines.insert(key.name, members.into_iter().collect::<Vec<_>>().join(" "));
        }
    }
    Ok(())
}

/// Fields with values, or members with scores.
fn pairs(value: Value) -> anyhow::Result<BTreeSet<String>> {
    let pairs: BTreeMap<String, String> = from_redis_value(value)?;
    let show = |(field, value): (String, String)| {
        if TEXTS.contains(&field.as_str()) {
            format!("{field}={}", digest(&value))
        } else {
            format!("{field}={value}")
        }
    };
    Ok(pairs.into_iter().map(show).collect())
}
