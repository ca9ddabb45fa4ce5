//! The store of a view in Redis. One script per shard writes a batch and the shard's position.
//!
//! Writes that depend on another shard, such as an author's total over videos, go in a second stage with checkpoints of its
//! own, after the first stage returned the counts that they are made of. A crash between the stages leaves the second one
//! behind. Then the batch is read again: the first stage skips its writes but returns the current counts, and the second
//! stage writes them. Its parts are absolute, so the last write of a part counts, and that one follows the last change of
//! its set.

mod script;

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use redis::{Cmd, ErrorKind, FromRedisValue, RedisResult, ServerErrorKind, Value, cmd, from_redis_value};
use vidlog_schemas::keys::{Key, Shard};
use vidlog_service_kit::failpoint;

use self::script::{Call, SOURCE, ScriptReply};
use super::{
    Batch, Changes, Checkpoint, Parked, ParkedKey, Position, StoreError, Stores, ViewStore,
    generation_marker::GenerationMarker,
};
use crate::{
    log::{Offsets, Partition, Record, RecordKey},
    view::{
        Projection, RedisFold, RedisWrites,
        writes::{Part, Write},
    },
};

/// Unparks a key if it is as expected. KEYS: the hash; ARGV: field, first and last offset.
const UNPARK: &str = "local parked = redis.call('HGET', KEYS[1], ARGV[1])
     local first, last = string.match(parked or '', '^(%d+):(%d+):')
     if first ~= ARGV[2] or last ~= ARGV[3] then
         return 0
     end
     return redis.call('HDEL', KEYS[1], ARGV[1])";

/// Moves the first offset of a parked key. KEYS: the hash; ARGV: field, expected and new first offset, decrease of the
/// number of records, class, message.
const REPARK: &str = "local parked = redis.call('HGET', KEYS[1], ARGV[1])
     local first, last, waiting = string.match(parked or '', '^(%d+):(%d+):(%d+):')
     if first ~= ARGV[2] then
         return 0
     end
     waiting = string.format('%d', tonumber(waiting) - tonumber(ARGV[4]))
     local value = ARGV[3] .. ':' .. last .. ':' .. waiting .. ':' .. ARGV[5] .. ':' .. ARGV[6]
     redis.call('HSET', KEYS[1], ARGV[1], value)
     return 1";

/// Raises a field to a value, unless it is higher. KEYS: the hash; ARGV: field, value.
const RAISE: &str = "local stored = redis.call('HGET', KEYS[1], ARGV[1])
     if not stored or tonumber(stored) < tonumber(ARGV[2]) then
         redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
     end
     return 1";

/// The store of a view in Redis.
pub struct RedisStore {
    projection: Projection,
    fold: RedisFold,
    stores: Stores,
}

/// The two stages, in order. Each has a checkpoint on every shard.
#[derive(Clone, Copy)]
enum Stage {
    Writes,
    Parts,
}

impl Stage {
    const ALL: [Self; 2] = [Self::Writes, Self::Parts];
}

/// What the calls of one round have in common.
struct Round<'a> {
    stage: Stage,
    /// The field of the checkpoints.
    field: &'a str,
    next: i64,
    changes: &'a Changes,
}

#[async_trait]
impl ViewStore for RedisStore {
    fn projection(&self) -> &Projection {
        &self.projection
    }

    fn stores(&self) -> &Stores {
        &self.stores
    }

    /// Returns the positions of all shards in the first stage, then of all in the second.
    async fn positions(&self, partitions: &[Partition]) -> Result<Vec<Position>, StoreError> {
        let fields: Vec<_> = partitions.iter().map(|partition| partition.id()).collect();
        self.stored_positions(&fields).await
    }

    /// Readers see all records before the progress, which is published after each batch. Shards without writes in a batch
    /// are behind it. The progress itself may be behind all shards, or ahead of them when Redis lost writes.
    async fn visible_offsets(&self, partitions: &[Partition]) -> Result<Offsets, StoreError> {
        if partitions.is_empty() {
            return Ok(Offsets::new());
        }
        let positions = self.positions(partitions).await?;
        let mut command = cmd("HMGET");
        command.arg(self.stores.keys.progress(&self.projection.catalogued));
        for partition in partitions {
            command.arg(partition.id());
        }
        let progress: Vec<Option<i64>> = self.stores.redis.query(&command).await?;
        let visible = positions.iter().zip(progress).map(|(position, progress)| {
            progress.unwrap_or_default().clamp(position.lowest(), position.highest())
        });
        Ok(partitions.iter().copied().zip(visible).collect())
    }

    async fn log_identities(&self, firsts: &[(Partition, String)]) -> Result<Vec<String>, StoreError> {
        let key = self.stores.keys.logs();
        let set =
            firsts.iter().map(|(partition, id)| cmd("HSETNX").arg(&key).arg(partition.id()).arg(id).take());
        let get = firsts.iter().map(|(partition, _)| cmd("HGET").arg(&key).arg(partition.id()).take());
        let replies = self.stores.redis.pipeline(&set.chain(get).collect::<Vec<_>>()).await?;
        replies.into_iter().skip(firsts.len()).map(decode).collect()
    }

    async fn write(
        &self,
        checkpoint: &Checkpoint,
        position: &mut Position,
        batch: &Batch<'_>,
    ) -> Result<(), StoreError> {
        let field = &checkpoint.to_string();
        let round = |stage, changes| Round { stage, field, next: batch.next, changes };
        let unchanged = Changes::new();
        let (writes, parts) = self.folded(batch.records).into_stages();
        let middle = position.parts.len() / 2;
        let (first, second) = position.parts.split_at_mut(middle);

        let counted = writes.into_iter().chain(parts.iter().map(Part::count));
        let mut shards = by_shard(counted);
        let mut replies = BTreeMap::new();
        if !batch.changes.is_empty() {
            // Before all other shards: none may pass a record that is parked before the parked key is stored.
            let shard = self.parked_hash().shard;
            let own = BTreeMap::from([(shard, shards.remove(&shard).unwrap_or_default())]);
            replies.extend(self.run(&round(Stage::Writes, batch.changes), own, first).await?);
            failpoint::pass("redis-parked-after");
        }
        failpoint::pass("redis-writes-before");
        replies.extend(self.run(&round(Stage::Writes, &unchanged), shards, first).await?);
        failpoint::pass("redis-writes-after");

        let mut counts: BTreeMap<Shard, _> =
            replies.into_iter().map(|(shard, reply)| (shard, reply.counts.into_iter())).collect();
        let mut totals = Vec::with_capacity(parts.len());
        for part in parts {
            let count = counts.get_mut(&part.source.shard).and_then(Iterator::next);
            let missing = || StoreError::retry("Redis returned no count");
            totals.push(part.write(count.ok_or_else(missing)?));
        }
        self.run(&round(Stage::Parts, &unchanged), by_shard(totals), second).await?;
        failpoint::pass("redis-parts-after");
        Ok(())
    }

    async fn align(
        &self,
        partition: Partition,
        position: &mut Position,
        next: i64,
    ) -> Result<(), StoreError> {
        if position.lowest() >= next {
            return Ok(());
        }
        let middle = position.parts.len() / 2;
        let (first, second) = position.parts.split_at_mut(middle);
        for (stage, positions) in Stage::ALL.into_iter().zip([first, second]) {
            let all = self.stores.keys.shards().map(|shard| (shard, Vec::new())).collect();
            failpoint::pass("redis-settle-before");
            let round = Round { stage, field: &partition.id(), next, changes: &Changes::new() };
            self.run(&round, all, positions).await?;
            failpoint::pass("redis-settle-after");
        }
        Ok(())
    }

    async fn parked(&self) -> Result<BTreeMap<Partition, Parked>, StoreError> {
        let command = cmd("HGETALL").arg(self.parked_hash()).take();
        let stored: BTreeMap<String, String> = self.stores.redis.query(&command).await?;
        let mut all: BTreeMap<Partition, Parked> = BTreeMap::new();
        for (field, value) in stored {
            let (partition, key, parked) = self.decode_parked(&field, &value).ok_or_else(|| {
                StoreError::retry(format!("failed to decode a parked key: {field} = {value}"))
            })?;
            all.entry(partition).or_default().insert(key, parked);
        }
        Ok(all)
    }

    async fn create_checkpoint(&self, key: &Checkpoint, offset: i64) -> Result<Position, StoreError> {
        let field = key.to_string();
        self.on_every_checkpoint(|checkpoint| eval(RAISE, checkpoint, &field).arg(offset).take()).await?;
        let position = self.stored_positions(&[field]).await?.pop();
        position.ok_or_else(|| StoreError::retry("Redis returned no position"))
    }

    async fn unpark(&self, key: &Checkpoint, expected: &ParkedKey) -> Result<bool, StoreError> {
        let field = key.to_string();
        let unpark = eval(UNPARK, &self.parked_hash(), &field).arg(expected.first).arg(expected.last).take();
        let unparked: bool = self.stores.redis.query(&unpark).await?;
        if unparked {
            // A crash before this leaves checkpoints behind, which do no harm: offsets only grow.
            self.on_every_checkpoint(|checkpoint| cmd("HDEL").arg(checkpoint).arg(&field).take()).await?;
        }
        Ok(unparked)
    }

    async fn repark(&self, key: &Checkpoint, from: &ParkedKey, to: &ParkedKey) -> Result<bool, StoreError> {
        let command = eval(REPARK, &self.parked_hash(), &key.to_string())
            .arg(from.first)
            .arg(to.first)
            .arg(from.waiting - to.waiting)
            .arg(to.failure.class.name())
            .arg(&to.failure.message)
            .take();
        Ok(self.stores.redis.query(&command).await?)
    }

    /// A Redis that lost everything has no number of shards either, so that is stored again.
    async fn mark_incomplete(&self) -> Result<(), StoreError> {
        GenerationMarker::new(&self.stores, &self.projection).remove().await?;
        // If another process stored another number first, `positions` reports it.
        create_shards(&self.stores).await?;
        Ok(())
    }

    fn members_written(&self, records: &[Record]) -> BTreeSet<(Key, String)> {
        self.folded(records).members()
    }

    fn survives_redis(&self) -> bool {
        false
    }
}

impl RedisStore {
    /// The store of a projection's view.
    pub const fn new(projection: Projection, fold: RedisFold, stores: Stores) -> Self {
        Self { projection, fold, stores }
    }

    /// Whether another generation has positions, and this one is at or past each of them.
    pub async fn is_past_generation(&self, other: u32) -> Result<bool, StoreError> {
        let keys = self.stores.keys.of_generation(&self.projection.catalogued, other);
        let stores = Stores { keys, ..self.stores.clone() };
        let other = Self::new(self.projection, self.fold, stores).all_positions().await?;
        let own = self.all_positions().await?;
        // Checkpoints of parked keys are left out: these need not be parked here.
        let is_partition = |field: &str| field.matches(':').count() == 1;
        let mut compared = other.iter().zip(&own).flat_map(|(other, own)| {
            let of_partitions = other.iter().filter(|(field, _)| is_partition(field));
            of_partitions.map(|(field, next)| own.get(field).is_some_and(|own| own >= next))
        });
        let first = compared.next();
        Ok(first == Some(true) && compared.all(|is_past| is_past))
    }

    /// The writes that some records fold into.
    fn folded(&self, records: &[Record]) -> RedisWrites {
        let mut writes = RedisWrites::default();
        for record in records {
            writes.set_offset(record.offset);
            (self.fold)(&self.stores.keys, &record.envelope, &mut writes);
        }
        writes
    }

    /// Runs the script on some shards, in one round trip.
    async fn run(
        &self,
        round: &Round<'_>,
        shards: BTreeMap<Shard, Vec<Write>>,
        positions: &mut [i64],
    ) -> Result<BTreeMap<Shard, ScriptReply>, StoreError> {
        let Round { stage, field, next, changes } = *round;
        let command = |(shard, writes): (&Shard, &Vec<Write>)| {
            let expected = positions.get(shard.index()).copied().unwrap_or(0);
            let mut call = Call::new(self.checkpoint(stage, *shard), field, expected, next);
            if !changes.is_empty() {
                call.park(&self.parked_hash(), field, changes);
            }
            call.write(writes);
            call.command()
        };
        let commands: Vec<Cmd> = shards.iter().map(command).collect();
        let mut replies = BTreeMap::new();
        for (shard, reply) in shards.into_keys().zip(self.send(&commands).await?) {
            let reply = ScriptReply::decode(reply)?;
            if let Some(position) = positions.get_mut(shard.index()) {
                *position = reply.stored;
            }
            replies.insert(shard, reply);
        }
        Ok(replies)
    }

    /// Sends script calls in one round trip. Loads the script first if Redis does not have it, after a restart or a
    /// failover; in a cluster, on every primary.
    async fn send(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        match self.stores.redis.pipeline(commands).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let _: String = self.stores.redis.query(cmd("SCRIPT").arg("LOAD").arg(SOURCE)).await?;
                self.stores.redis.pipeline(commands).await
            }
            replies => replies,
        }
    }

    /// Returns the positions in some fields of the checkpoints. Fails if Redis has another number of shards.
    async fn stored_positions(&self, fields: &[String]) -> Result<Vec<Position>, StoreError> {
        let mut positions = vec![Position { parts: Vec::new() }; fields.len()];
        if fields.is_empty() {
            return Ok(positions);
        }
        let mut commands: Vec<Cmd> =
            self.checkpoints().map(|key| cmd("HMGET").arg(key).arg(fields).take()).collect();
        commands.push(cmd("GET").arg(self.stores.keys.shard_count()).take());
        let mut replies = self.stores.redis.pipeline(&commands).await?;
        // A Redis that was emptied has no number.
        let created: Option<usize> = decode(replies.pop().unwrap_or(Value::Nil))?;
        let configured = self.stores.keys.shards().count();
        if let Some(created) = created.filter(|created| *created != configured) {
            return Err(StoreError::ShardCountMismatch { created, configured });
        }
        for reply in replies {
            let stored: Vec<Option<i64>> = decode(reply)?;
            for (position, next) in positions.iter_mut().zip(stored) {
                position.parts.push(next.unwrap_or(0));
            }
        }
        Ok(positions)
    }

    /// Returns all positions of each checkpoint, by field.
    async fn all_positions(&self) -> Result<Vec<BTreeMap<String, i64>>, StoreError> {
        let commands: Vec<_> = self.checkpoints().map(|key| cmd("HGETALL").arg(key).take()).collect();
        self.stores.redis.pipeline(&commands).await?.into_iter().map(decode).collect()
    }

    async fn on_every_checkpoint(&self, command: impl Fn(&Key) -> Cmd + Send) -> Result<(), StoreError> {
        let commands: Vec<_> = self.checkpoints().map(|key| command(&key)).collect();
        self.stores.redis.pipeline(&commands).await?;
        Ok(())
    }

    /// The checkpoints of all shards in the first stage, then of all in the second.
    fn checkpoints(&self) -> impl Iterator<Item = Key> {
        let stages = Stage::ALL.into_iter();
        stages
            .flat_map(move |stage| self.stores.keys.shards().map(move |shard| self.checkpoint(stage, shard)))
    }

    fn checkpoint(&self, stage: Stage, shard: Shard) -> Key {
        match stage {
            Stage::Writes => self.stores.keys.checkpoint(shard, &self.projection.catalogued),
            Stage::Parts => self.stores.keys.parts_checkpoint(shard, &self.projection.catalogued),
        }
    }

    fn parked_hash(&self) -> Key {
        self.stores.keys.parked(&self.projection.catalogued)
    }

    fn decode_parked(&self, field: &str, value: &str) -> Option<(Partition, RecordKey, ParkedKey)> {
        let mut parts = field.splitn(3, ':');
        let name = parts.next()?;
        let stream = self.projection.streams().find(|stream| stream.name() == name)?;
        let partition = Partition { stream, number: parts.next()?.parse().ok()? };
        Some((partition, RecordKey::from_text(parts.next()?), ParkedKey::decode(value)?))
    }
}

/// Returns the number of shards that the namespace was created with. Stores the configured number if the namespace is new.
pub(super) async fn create_shards(stores: &Stores) -> RedisResult<usize> {
    let key = stores.keys.shard_count();
    let configured = stores.keys.shards().count();
    let _: bool = stores.redis.query(cmd("SETNX").arg(&key).arg(configured)).await?;
    stores.redis.query(cmd("GET").arg(&key)).await
}

/// A script of one key, with a field as its first argument.
fn eval(source: &str, key: &Key, field: &str) -> Cmd {
    cmd("EVAL").arg(source).arg(1).arg(key).arg(field).take()
}

fn by_shard(writes: impl IntoIterator<Item = Write>) -> BTreeMap<Shard, Vec<Write>> {
    let mut shards: BTreeMap<Shard, Vec<Write>> = BTreeMap::new();
    for write in writes {
        shards.entry(write.key.shard).or_default().push(write);
    }
    shards
}

fn decode<T: FromRedisValue>(value: Value) -> Result<T, StoreError> {
    from_redis_value(value).map_err(|error| StoreError::retry(error.to_string()))
}
