//! The keeper of a view in Redis: says to readers when it is complete, and which generation is live.
//!
//! It says so by the view's field of [`Keys::generations`](vidlog_schemas::Keys::generations). Whatever empties Redis
//! takes the field along, and a runner that finds that its store lost writes removes it, before it fills the view up
//! again ([`Sink::forget_complete`]). Until a keeper sets it again readers get their answers from MySQL.
//!
//! A view is complete when it has reached the end that the log had after the loss. In what order that is found out
//! matters, because Redis may lose everything again at any moment, or its newest writes:
//!
//! 1. A random token is put in the place of the field. From now on, if it is gone the view was lost again.
//! 2. The log is asked where it ends.
//! 3. The view has reached that.
//! 4. The token is replaced by another, if it is still there. The new one is younger than all that was seen in step 3:
//!    a Redis that comes back with it has that as well, because what Redis loses is the newest.
//! 5. The view still has reached the end.
//! 6. The field takes the place of the new token, if that is still there.
//!
//! Every process that runs the projection does that for all of its partitions. Keepers share the token of step 1, and
//! of two that come to step 4 one begins again.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    metadata::{MetadataPartition, MetadataTopic},
};
use redis::{RedisError, cmd};
use thiserror::Error;
use tokio::{task::spawn_blocking, time::sleep};
use tracing::{debug, info, warn};
use uuid::Uuid;
use vidlog_events::Stream;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::{
    log::{Log, Partition},
    store::{StoreError, Target, generation_marker::filling, sink::Sink},
    view::{Fold, Projection},
};

/// Between two looks at a view that is complete: how late it is noticed that Redis lost everything, on top of the time
/// that the view needs to be filled up.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at what is waited for: doubled from the first to the last.
const WAIT: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// How long the broker may take to answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Looks for which a newer generation than ours is left alone: whoever made it live tells us in less than a second.
const LOOKS_AT_NEWER: u32 = 10;

/// Puts one field of a hash in the place of another one, if that has the value that is expected, and unless the new
/// one is there already.
const REPLACE: &str = "
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
    return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
return redis.call('HSETNX', KEYS[1], ARGV[3], ARGV[4])";

/// The keeper of one view.
pub struct Keeper {
    projection: Projection,
    target: Target,
    sink: Sink,
    log: Log,
    readiness: Readiness,
}

/// Why it is not known whether a view is complete. Looking again may help.
#[derive(Debug, Error)]
enum Unknown {
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    #[error(transparent)]
    Sink(#[from] StoreError),
    #[error("the log: {0}")]
    Log(#[from] KafkaError),
    #[error("asking the log panicked: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Where the log ended, in each partition of the view.
type Ends = Vec<(Partition, i64)>;

/// A field of the hash of generations, and its value.
type Field<'a> = (&'a str, &'a str);

impl Keeper {
    /// The keeper of a projection's view, which does not count as ready before it is looked at.
    pub fn new(projection: Projection, target: Target, log: Log, readiness: Readiness) -> Self {
        let sink = Sink::new(projection, target.clone());
        let keeper = Self { projection, target, sink, log, readiness };
        if keeper.is_needed() {
            keeper.not_ready("it is not known yet whether the view is complete");
        }
        keeper
    }

    /// Keeps until shutdown is given. There is nothing to keep of a view in MySQL.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        if self.is_needed() {
            let token = shutdown.token();
            _ = token.run_until_cancelled(self.keep()).await;
        }
        Ok(())
    }

    const fn is_needed(&self) -> bool {
        matches!(self.projection.fold, Fold::Redis(_))
    }

    async fn keep(&self) {
        let name = self.projection.name();
        let mut failing = false;
        let mut looks_at_newer = 0;
        loop {
            match self.look(&mut looks_at_newer).await {
                Ok(()) => failing = false,
                Err(error) if failing => debug!(projection = name, %error, "still not known"),
                Err(error) => {
                    failing = true;
                    warn!(projection = name, %error, "can't see whether the view is complete; trying again");
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Looks at what readers are told, and sets it right.
    async fn look(&self, looks_at_newer: &mut u32) -> Result<(), Unknown> {
        loop {
            let (live, said) = (self.generation(), self.said().await?);
            *looks_at_newer = if said > Some(live) { *looks_at_newer + 1 } else { 0 };
            match said {
                Some(said) if said == live => break,
                Some(said) if said < live => self.correct(said, live).await?,
                Some(_) if *looks_at_newer <= LOOKS_AT_NEWER => break,
                Some(said) => self.withdraw(said, live).await?,
                None => self.fill(live).await?,
            }
        }
        self.readiness.ready(&self.part());
        Ok(())
    }

    /// The live generation was found to be right before it became that. But it may be gone: of a Redis that was
    /// restored from before the switch, for one. Then that it is complete has to be seen.
    async fn correct(&self, said: u32, live: u32) -> Result<(), Unknown> {
        let name = self.projection.name();
        if !self.sink.is_past_generation(said).await? {
            return self.withdraw(said, live).await;
        }
        if self.replace((name, &said.to_string()), (name, &live.to_string())).await? {
            info!(projection = name, said, live, "readers are told of the live generation");
        }
        Ok(())
    }

    /// If it is we who have not heard of a switch, the generation that we know may be gone: that it is complete has to
    /// be seen.
    async fn withdraw(&self, said: u32, live: u32) -> Result<(), Unknown> {
        let name = self.projection.name();
        let token = Uuid::new_v4().to_string();
        if self.replace((name, &said.to_string()), (&filling(&self.projection), &token)).await? {
            warn!(projection = name, said, live, "readers were told of a generation that is not live");
        }
        Ok(())
    }

    /// Waits until the view is complete, and says so; or finds that this has to begin again.
    async fn fill(&self, generation: u32) -> Result<(), Unknown> {
        let name = self.projection.name();
        let filling = filling(&self.projection);
        let token = self.claim(&filling).await?;
        info!(
            projection = name,
            generation, "the view is not complete; until it is, readers get MySQL's answers"
        );
        self.not_ready("the view is being filled up");
        let ends = self.ends().await?;

        let mut pause = WAIT.0;
        while !self.has_reached(&ends).await? {
            sleep(pause).await;
            pause = WAIT.1.min(pause * 2);
        }
        let younger = Uuid::new_v4().to_string();
        let is_complete = self.replace((&filling, &token), (&filling, &younger)).await?
            && self.has_reached(&ends).await?
            && self.generation() == generation
            && self.replace((&filling, &younger), (name, &generation.to_string())).await?;
        if is_complete {
            info!(projection = name, generation, "the view is complete");
        }
        Ok(())
    }

    /// Puts a token in the place of the missing field, or finds that of another keeper.
    async fn claim(&self, filling: &str) -> Result<String, Unknown> {
        let key = self.target.keys.generations();
        let mine = Uuid::new_v4().to_string();
        let _: bool = self.target.redis.query(cmd("HSETNX").arg(&key).arg(filling).arg(&mine)).await?;
        let token: Option<String> = self.target.redis.query(cmd("HGET").arg(&key).arg(filling)).await?;
        // If it is gone already ours does not come back: the last step will fail, and all begins again.
        Ok(token.unwrap_or(mine))
    }

    /// Where the log ends now. Waits until there is one.
    async fn ends(&self) -> Result<Ends, Unknown> {
        let mut config = ClientConfig::new();
        let mut consumer: BaseConsumer = config
            .set("bootstrap.servers", &self.log.brokers)
            // The end is the last stable offset: runners cannot fold what an open transaction holds back.
            .set("isolation.level", "read_committed")
            // A connection on which nothing moves any more would else be given up after a minute.
            .set("socket.timeout.ms", "6000")
            .create()?;
        let streams: Vec<Stream> = self.projection.streams().collect();
        let mut pause = WAIT.0;
        loop {
            let (log, streams) = (self.log.clone(), streams.clone());
            // The client's calls block, and so does its end.
            let asked =
                spawn_blocking(move || ends(&consumer, &log, &streams).map_err(|why| (why, consumer)));
            match asked.await? {
                Ok(ends) => return Ok(ends),
                Err((why, again)) => {
                    self.not_ready(&format!("waiting for the log: {why}"));
                    consumer = again;
                }
            }
            sleep(pause).await;
            pause = WAIT.1.min(pause * 2);
        }
    }

    /// Whether every part of the view has reached the ends.
    async fn has_reached(&self, ends: &Ends) -> Result<bool, Unknown> {
        let partitions: Vec<_> = ends.iter().map(|(partition, _)| *partition).collect();
        let positions = self.sink.positions(&partitions).await?;
        let behind = positions.iter().zip(ends).find(|(position, (_, end))| position.lowest() < *end);
        if let Some((position, (partition, end))) = behind {
            let field = partition.field();
            self.not_ready(&format!(
                "the view is being filled up: {field} is at {} of {end}",
                position.lowest()
            ));
        }
        Ok(behind.is_none())
    }

    /// The generation that readers are told to read, if any.
    async fn said(&self) -> Result<Option<u32>, Unknown> {
        let key = self.target.keys.generations();
        Ok(self.target.redis.query(cmd("HGET").arg(key).arg(self.projection.name())).await?)
    }

    /// Puts a field in the place of another; false if that was not there any more.
    async fn replace(&self, old: Field<'_>, new: Field<'_>) -> Result<bool, Unknown> {
        let mut command = cmd("EVAL");
        command.arg(REPLACE).arg(1).arg(self.target.keys.generations());
        command.arg(old.0).arg(old.1).arg(new.0).arg(new.1);
        Ok(self.target.redis.query(&command).await?)
    }

    fn generation(&self) -> u32 {
        self.target.keys.generation(&self.projection.catalogued)
    }

    fn part(&self) -> String {
        format!("{}/view", self.projection.name())
    }

    fn not_ready(&self, why: &str) {
        self.readiness.not_ready(&self.part(), why);
    }
}

/// Where the topics of streams end, or why that can't be said.
fn ends(consumer: &BaseConsumer, log: &Log, streams: &[Stream]) -> Result<Ends, String> {
    let mut ends = Ends::new();
    for stream in streams {
        let topic = log.topics.name(*stream);
        let metadata =
            consumer.fetch_metadata(Some(&topic), BROKER_TIMEOUT).map_err(|error| error.to_string())?;
        let numbers: Vec<_> =
            metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id).collect();
        if numbers.is_empty() {
            return Err(format!("there is no topic {topic}"));
        }
        for number in numbers {
            let (_, end) = consumer
                .fetch_watermarks(&topic, number, BROKER_TIMEOUT)
                .map_err(|error| format!("{topic}[{number}]: {error}"))?;
            ends.push((Partition { stream: *stream, number }, end));
        }
    }
    Ok(ends)
}
