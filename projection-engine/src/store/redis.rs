//! Redis: one script a shard holds a batch's writes and its position.
//!
//! Writes that depend on another shard, an author's total over videos, go in a second stage with checkpoints of its
//! own, after the first stage answered the counts that they are made of. A crash between the stages leaves the second
//! behind: the batch is read again, the first stage passes over its writes but answers the counts again, as they are
//! by then, and the second stage takes them. Its parts are absolute, so what counts is the last one written, and
//! that one is written after the last change of its video.

pub(super) mod parked;

use std::{collections::BTreeMap, sync::LazyLock};

use redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value, cmd, from_redis_value};
use vidlog_schemas::{
    Keys,
    keys::{Key, Shard},
};
use vidlog_service_kit::failpoint;

use super::{Batch, Change, Changes, Position, StoreError, Target};
use crate::{
    log::{Partition, Record},
    view::{
        Projection, RedisFold, RedisWrites,
        writes::{Part, Write},
    },
};

const SOURCE: &str = include_str!("redis/apply.lua");
static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(SOURCE));

/// One partition of a view, or one parked key of it.
pub(super) struct View<'a> {
    pub(super) target: &'a Target,
    pub(super) projection: &'a Projection,
    /// Where its positions stand in the checkpoints.
    pub(super) field: String,
}

/// What a shard's script answered.
struct Answer {
    stored: i64,
    counts: Vec<i64>,
}

/// The two stages, in order. Each has a checkpoint on every shard.
#[derive(Clone, Copy)]
enum Stage {
    Writes,
    Parts,
}

impl Stage {
    const ALL: [Self; 2] = [Self::Writes, Self::Parts];

    fn checkpoint(self, target: &Target, shard: Shard, projection: &Projection) -> Key {
        match self {
            Self::Writes => target.keys.checkpoint(shard, &projection.catalogued),
            Self::Parts => target.keys.parts_checkpoint(shard, &projection.catalogued),
        }
    }
}

/// The positions of all shards in the first stage, then of all in the second, at each of some fields. They say nothing if
/// there is another number of shards in this Redis.
pub(super) async fn positions(
    target: &Target,
    projection: &Projection,
    fields: &[String],
) -> Result<Vec<Position>, StoreError> {
    let mut positions = vec![Position { parts: Vec::new() }; fields.len()];
    if fields.is_empty() {
        return Ok(positions);
    }
    let mut commands = Vec::new();
    for stage in Stage::ALL {
        for shard in target.keys.shards() {
            let mut command = cmd("HMGET");
            command.arg(stage.checkpoint(target, shard, projection)).arg(fields);
            commands.push(command);
        }
    }
    commands.push(cmd("GET").arg(target.keys.shard_count()).take());
    let mut answers = target.redis.all(&commands).await?;
    check_shards(target, answers.pop())?;
    for answer in answers {
        let stored: Vec<Option<i64>> =
            from_redis_value(answer).map_err(|error| StoreError::Retry(error.to_string()))?;
        for (position, next) in positions.iter_mut().zip(stored) {
            position.parts.push(next.unwrap_or(0));
        }
    }
    Ok(positions)
}

/// Whether the number of shards that Redis knows is ours. It knows none after it was emptied.
fn check_shards(target: &Target, known: Option<Value>) -> Result<(), StoreError> {
    let known: Option<usize> = from_redis_value(known.unwrap_or(Value::Nil))
        .map_err(|error| StoreError::Retry(error.to_string()))?;
    let ours = target.keys.shards().count();
    match known {
        Some(created) if created != ours => Err(StoreError::OtherShards { created, ours }),
        Some(_) | None => Ok(()),
    }
}

/// Whether the view stands nowhere before another generation of it, which stands somewhere.
pub(super) async fn is_past_generation(
    target: &Target,
    projection: &Projection,
    other: u32,
) -> Result<bool, StoreError> {
    let keys = target.keys.of_generation(&projection.catalogued, other);
    let other = checkpoints(&Target { keys, ..target.clone() }, projection).await?;
    let own = checkpoints(target, projection).await?;
    // Parked keys have positions of their own, which need not be parked here.
    let is_partition = |field: &str| field.matches(':').count() == 1;
    let others = other.iter().zip(&own).flat_map(|(other, own)| {
        let of_partitions = other.iter().filter(|(field, _)| is_partition(field));
        of_partitions.map(|(field, next)| own.get(field).is_some_and(|own| own >= next))
    });
    let others: Vec<_> = others.collect();
    Ok(!others.is_empty() && !others.contains(&false))
}

/// All positions, of all shards in the first stage, then of all in the second.
async fn checkpoints(
    target: &Target,
    projection: &Projection,
) -> Result<Vec<BTreeMap<String, i64>>, StoreError> {
    let stages = Stage::ALL.into_iter();
    let all = stages.flat_map(|stage| target.keys.shards().map(move |shard| (stage, shard)));
    let commands: Vec<_> = all
        .map(|(stage, shard)| cmd("HGETALL").arg(stage.checkpoint(target, shard, projection)).take())
        .collect();
    let answers = target.redis.all(&commands).await?.into_iter().map(from_redis_value);
    answers.collect::<Result<_, _>>().map_err(|error| StoreError::Retry(error.to_string()))
}

/// The first records that are remembered, of these partitions in their order; these, where there were none.
pub(super) async fn logs(target: &Target, firsts: &[(Partition, String)]) -> Result<Vec<String>, StoreError> {
    let key = target.keys.logs();
    let remember = firsts
        .iter()
        .map(|(partition, first)| cmd("HSETNX").arg(&key).arg(partition.field()).arg(first).take());
    let recall = firsts.iter().map(|(partition, _)| cmd("HGET").arg(&key).arg(partition.field()).take());
    let answers = target.redis.all(&remember.chain(recall).collect::<Vec<_>>()).await?;
    let recalled = answers.into_iter().skip(firsts.len()).map(from_redis_value);
    recalled.collect::<Result<_, _>>().map_err(|error| StoreError::Retry(error.to_string()))
}

impl View<'_> {
    pub(super) async fn apply(
        &self,
        fold: RedisFold,
        positions: &mut [i64],
        batch: &Batch<'_>,
    ) -> Result<(), StoreError> {
        let next = batch.next;
        let (writes, parts) = self::fold(&self.target.keys, fold, batch.records).into_stages();
        let (first, second) = positions.split_at_mut(positions.len() / 2);

        let counted = writes.into_iter().chain(parts.iter().map(Part::count));
        let mut batches = by_shard(counted);
        let mut answers = BTreeMap::new();
        if !batch.changes.is_empty() {
            // First, and on its own: no shard may pass a record that is to wait before it is known to wait.
            let shard = self.target.keys.parked(&self.projection.catalogued).shard;
            let own = BTreeMap::from([(shard, batches.remove(&shard).unwrap_or_default())]);
            answers.extend(self.run_parking(own, first, next, batch.changes).await?);
            failpoint::pass("redis-parked-after");
        }
        failpoint::pass("redis-writes-before");
        answers.extend(self.run(Stage::Writes, batches, first, next).await?);
        failpoint::pass("redis-writes-after");

        let mut counts: BTreeMap<Shard, _> =
            answers.into_iter().map(|(shard, answer)| (shard, answer.counts.into_iter())).collect();
        let mut totals = Vec::with_capacity(parts.len());
        for part in parts {
            let count = counts.get_mut(&part.source.shard).and_then(Iterator::next);
            totals.push(
                part.write(count.ok_or_else(|| StoreError::Retry("Redis answered no count".to_owned()))?),
            );
        }
        self.run(Stage::Parts, by_shard(totals), second, next).await?;
        failpoint::pass("redis-parts-after");
        Ok(())
    }

    /// Brings every shard to `next`, of which it is known that it has all that is its own before that.
    pub(super) async fn settle(&self, positions: &mut [i64], next: i64) -> Result<(), StoreError> {
        let (first, second) = positions.split_at_mut(positions.len() / 2);
        for (stage, positions) in Stage::ALL.into_iter().zip([first, second]) {
            let all = self.target.keys.shards().map(|shard| (shard, Vec::new())).collect();
            failpoint::pass("redis-settle-before");
            self.run(stage, all, positions, next).await?;
            failpoint::pass("redis-settle-after");
        }
        Ok(())
    }

    /// Runs a stage on some shards.
    async fn run(
        &self,
        stage: Stage,
        batches: BTreeMap<Shard, Vec<Write>>,
        positions: &mut [i64],
        next: i64,
    ) -> Result<BTreeMap<Shard, Answer>, StoreError> {
        let commands = batches
            .iter()
            .map(|(shard, writes)| {
                let mut script = self.script(stage, *shard, positions, next);
                script.write(writes);
                script.command()
            })
            .collect();
        self.answers(batches.into_keys(), commands, positions).await
    }

    /// Runs the first stage on the shard of the parked keys, and changes these.
    async fn run_parking(
        &self,
        batch: BTreeMap<Shard, Vec<Write>>,
        positions: &mut [i64],
        next: i64,
        changes: &Changes,
    ) -> Result<BTreeMap<Shard, Answer>, StoreError> {
        let commands = batch
            .iter()
            .map(|(shard, writes)| {
                let mut script = self.script(Stage::Writes, *shard, positions, next);
                script.park(&self.target.keys.parked(&self.projection.catalogued), &self.field, changes);
                script.write(writes);
                script.command()
            })
            .collect();
        self.answers(batch.into_keys(), commands, positions).await
    }

    async fn answers(
        &self,
        shards: impl Iterator<Item = Shard>,
        commands: Vec<Cmd>,
        positions: &mut [i64],
    ) -> Result<BTreeMap<Shard, Answer>, StoreError> {
        let mut answers = BTreeMap::new();
        for (shard, answer) in shards.zip(self.send(&commands).await?) {
            let answer = read_answer(answer)?;
            if let Some(position) = positions.get_mut(shard.index()) {
                *position = answer.stored;
            }
            answers.insert(shard, answer);
        }
        Ok(answers)
    }

    /// The script for a shard, as yet without changes and writes.
    fn script(&self, stage: Stage, shard: Shard, positions: &[i64], next: i64) -> Call {
        let known = positions.get(shard.index()).copied().unwrap_or(0);
        let checkpoint = stage.checkpoint(self.target, shard, self.projection);
        Call {
            keys: vec![checkpoint.name],
            indexes: BTreeMap::new(),
            arguments: vec![self.field.clone(), known.to_string(), next.to_string()],
            changes: Vec::new(),
            writes: Vec::new(),
        }
    }

    /// Sends the scripts in one round trip. A Redis that does not know the script, after a restart or a failover, is
    /// taught it; of a cluster, every primary is.
    async fn send(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        match self.target.redis.all(commands).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let _: String = self.target.redis.query(cmd("SCRIPT").arg("LOAD").arg(SOURCE)).await?;
                self.target.redis.all(commands).await
            }
            answered => answered,
        }
    }
}

/// What a batch comes to.
pub(super) fn fold(keys: &Keys, fold: RedisFold, records: &[Record]) -> RedisWrites {
    let mut writes = RedisWrites::default();
    for record in records {
        writes.at(record.offset);
        fold(keys, &record.envelope, &mut writes);
    }
    writes
}

/// A call of the script.
struct Call {
    keys: Vec<String>,
    indexes: BTreeMap<String, usize>,
    arguments: Vec<String>,
    changes: Vec<String>,
    writes: Vec<String>,
}

impl Call {
    /// Adds changes of the parked keys in a hash, which is the second key.
    fn park(&mut self, hash: &Key, field: &str, changes: &Changes) {
        self.keys.push(hash.name.clone());
        self.changes.push(changes.len().to_string());
        for (key, change) in changes {
            let field = format!("{field}:{key}");
            match change {
                Change::Park(parked) => self.changes.extend(["park".to_owned(), field, parked.stored()]),
                Change::Extend { last, more } => {
                    self.changes.extend(["extend".to_owned(), field, last.to_string(), more.to_string()]);
                }
            }
        }
    }

    /// Adds writes.
    fn write(&mut self, writes: &[Write]) {
        for write in writes {
            let key = self.index_of(&write.key);
            let mut own = write.arguments.clone();
            if let Some(other) = &write.other {
                own.push(self.index_of(other).to_string());
            }
            self.writes.extend([
                write.action.to_owned(),
                write.offset.to_string(),
                key.to_string(),
                own.len().to_string(),
            ]);
            self.writes.append(&mut own);
        }
    }

    fn index_of(&mut self, key: &Key) -> usize {
        if let Some(index) = self.indexes.get(&key.name) {
            return *index;
        }
        self.keys.push(key.name.clone());
        self.indexes.insert(key.name.clone(), self.keys.len());
        self.keys.len()
    }

    fn command(self) -> Cmd {
        let changes = if self.changes.is_empty() { vec!["0".to_owned()] } else { self.changes };
        let mut command = cmd("EVALSHA");
        command.arg(SCRIPT.get_hash()).arg(self.keys.len()).arg(self.keys);
        command.arg(self.arguments).arg(changes).arg(self.writes).take()
    }
}

fn by_shard(writes: impl IntoIterator<Item = Write>) -> BTreeMap<Shard, Vec<Write>> {
    let mut shards: BTreeMap<Shard, Vec<Write>> = BTreeMap::new();
    for write in writes {
        shards.entry(write.key.shard).or_default().push(write);
    }
    shards
}

fn read_answer(value: Value) -> Result<Answer, StoreError> {
    let numbers: Vec<i64> = from_redis_value(value).map_err(|error| StoreError::Retry(error.to_string()))?;
    match numbers.as_slice() {
        [1, stored, counts @ ..] => Ok(Answer { stored: *stored, counts: counts.to_vec() }),
        [0, stored] => Err(StoreError::Behind { stored: *stored }),
        [2, stored] => Err(StoreError::Moved { stored: *stored }),
        [3, _] => Err(StoreError::OtherParked),
        _ => Err(StoreError::Retry("Redis answered what the script never does".to_owned())),
    }
}
