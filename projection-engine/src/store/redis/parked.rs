//! Parked keys in Redis: what is done to them beside the batches that park them.

use std::collections::BTreeMap;

use redis::{Cmd, cmd};
use vidlog_schemas::keys::Key;

use super::{Stage, View};
use crate::{
    log::{Partition, RecordKey},
    store::{Parked, ParkedKey, StoreError, Target},
    view::Projection,
};

/// Removes a parked key if it is as it is said to be: KEYS the hash; ARGV field, first and last offset.
const UNPARK: &str = "local parked = redis.call('HGET', KEYS[1], ARGV[1])
     local first, last = string.match(parked or '', '^(%d+):(%d+):')
     if first ~= ARGV[2] or last ~= ARGV[3] then
         return 0
     end
     return redis.call('HDEL', KEYS[1], ARGV[1])";

/// Has a parked key begin later: KEYS the hash; ARGV field, first offset as it is and as it is to be, how many fewer
/// wait, class, message.
const PARK_FROM: &str = "local parked = redis.call('HGET', KEYS[1], ARGV[1])
     local first, last, waiting = string.match(parked or '', '^(%d+):(%d+):(%d+):')
     if first ~= ARGV[2] then
         return 0
     end
     waiting = string.format('%d', tonumber(waiting) - tonumber(ARGV[4]))
     local value = ARGV[3] .. ':' .. last .. ':' .. waiting .. ':' .. ARGV[5] .. ':' .. ARGV[6]
     redis.call('HSET', KEYS[1], ARGV[1], value)
     return 1";

/// Sets a field unless it is there with as much: KEYS the hash; ARGV field, value.
const RAISE: &str = "local stored = redis.call('HGET', KEYS[1], ARGV[1])
     if not stored or tonumber(stored) < tonumber(ARGV[2]) then
         redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
     end
     return 1";

/// All parked keys of a view.
pub(crate) async fn parked(
    target: &Target,
    projection: &Projection,
) -> Result<BTreeMap<Partition, Parked>, StoreError> {
    let command = cmd("HGETALL").arg(target.keys.parked(&projection.catalogued)).take();
    let stored: BTreeMap<String, String> = target.redis.query(&command).await?;
    let mut all: BTreeMap<Partition, Parked> = BTreeMap::new();
    for (field, value) in stored {
        let (partition, key, parked) = read(projection, &field, &value)
            .ok_or_else(|| StoreError::Retry(format!("a parked key can't be read: {field} = {value}")))?;
        all.entry(partition).or_default().insert(key, parked);
    }
    Ok(all)
}

fn read(projection: &Projection, field: &str, value: &str) -> Option<(Partition, RecordKey, ParkedKey)> {
    let mut parts = field.splitn(3, ':');
    let name = parts.next()?;
    let stream = projection.streams().find(|stream| stream.name() == name)?;
    let partition = Partition { stream, number: parts.next()?.parse().ok()? };
    Some((partition, RecordKey::from_text(parts.next()?), ParkedKey::read(value)?))
}

impl View<'_> {
    /// Brings every shard's checkpoint of a parked key, in both stages, to a place, where it is not further.
    pub(crate) async fn begin(&self, place: i64) -> Result<(), StoreError> {
        self.at_every_checkpoint(|checkpoint| self.eval(RAISE, checkpoint).arg(place).take()).await
    }

    /// Makes a parked key one like others, unless it has changed; whether it did so.
    pub(crate) async fn unpark(&self, parked: &ParkedKey) -> Result<bool, StoreError> {
        let hash = self.parked_keys();
        let unpark = self.eval(UNPARK, &hash).arg(parked.first).arg(parked.last).take();
        let unparked: bool = self.target.redis.query(&unpark).await?;
        if unparked {
            // Cut off before this, it leaves checkpoints that are of no harm: offsets only grow.
            self.at_every_checkpoint(|checkpoint| cmd("HDEL").arg(checkpoint).arg(&self.field).take())
                .await?;
        }
        Ok(unparked)
    }

    /// Has a parked key begin at a later record; whether it still began where it is said to.
    pub(crate) async fn park_from(&self, from: &ParkedKey, to: &ParkedKey) -> Result<bool, StoreError> {
        let hash = self.parked_keys();
        let command = self
            .eval(PARK_FROM, &hash)
            .arg(from.first)
            .arg(to.first)
            .arg(from.waiting - to.waiting)
            .arg(to.failure.class.name())
            .arg(&to.failure.message)
            .take();
        Ok(self.target.redis.query(&command).await?)
    }

    fn parked_keys(&self) -> Key {
        self.target.keys.parked(&self.projection.catalogued)
    }

    /// A script of one key, with the field as its first argument.
    fn eval(&self, source: &str, key: &Key) -> Cmd {
        cmd("EVAL").arg(source).arg(1).arg(key).arg(&self.field).take()
    }

    async fn at_every_checkpoint(&self, command: impl Fn(&Key) -> Cmd) -> Result<(), StoreError> {
        let mut commands = Vec::new();
        for stage in Stage::ALL {
            for shard in self.target.keys.shards() {
                commands.push(command(&stage.checkpoint(self.target, shard, self.projection)));
            }
        }
        self.target.redis.all(&commands).await?;
        Ok(())
    }
}
