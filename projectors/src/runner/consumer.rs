//! The thread that polls Kafka for one projection and hands records to its partitions' tasks.

use std::{
    collections::HashSet,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rdkafka::{
    ClientConfig, ClientContext, Message, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
    types::RDKafkaRespErr,
};
use tokio::runtime::Handle;
use tracing::{debug, error, info, warn};
use vidlog_events::{Stream, Topics, decode};
use vidlog_service_kit::shutdown::Shutdown;

use super::{
    Runner, Settings,
    assignment::{Assignment, Routed},
    partition::{Delivery, Request},
};
use crate::{Record, projection::Projection, sink::Partition};

/// The longest that a request of a partition's task waits for the thread.
const POLL: Duration = Duration::from_millis(20);
/// Between two checks that the store still has what was written: how long a store that lost writes goes unnoticed
/// when nothing new comes.
const VERIFY_EVERY: Duration = Duration::from_secs(2);
/// How long a seek or a question to the broker may take.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks for topics that are not there yet.
const TOPICS_RETRY: Duration = Duration::from_secs(1);

/// The thread's state.
pub(super) struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    projection: Projection,
    settings: Arc<Settings>,
    requests: mpsc::Receiver<Request>,
    paused: HashSet<Partition>,
    shutdown: Shutdown,
}

/// What librdkafka calls back into.
pub(super) struct Context {
    assignment: Assignment,
    topics: Topics,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                debug!(facility, message, "kafka client");
            }
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => warn!(facility, message, "kafka client"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        warn!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Context {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let named = named(&self.topics, partitions);
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let assigned = self.assignment.start(consumer, &self.topics, &named);
            if let Err(error) = consumer.incremental_assign(&assigned) {
                error!(%error, "failed to take the assigned partitions");
            }
        } else {
            self.assignment.stop(&named);
            if let Err(error) = consumer.incremental_unassign(partitions) {
                error!(%error, "failed to give up the revoked partitions");
            }
        }
    }
}

impl Poller {
    /// A poller of a runner's projection; its tasks run on a runtime.
    pub(super) fn new(runner: Runner, shutdown: Shutdown, runtime: Handle) -> anyhow::Result<Self> {
        let Runner { projection, sink, settings, readiness } = runner;
        let (requested, requests) = mpsc::channel();
        let assignment = Assignment::new(projection.name(), sink, readiness, requested, runtime);
        let context = Context { assignment, topics: settings.topics.clone() };
        let consumer: BaseConsumer<Context> = ClientConfig::new()
            .set("bootstrap.servers", &settings.brokers)
            .set("group.id", format!("{}.{}", settings.namespace, projection.name()))
            .set("client.id", format!("vidlog-projector-{}", projection.name()))
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            // What was applied is stored by the task; committing it is only a hint.
            .set("enable.auto.offset.store", "false")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "2000")
            // A dead instance's partitions move on after this.
            .set("session.timeout.ms", "10000")
            .set("heartbeat.interval.ms", "2000")
            .set("fetch.wait.max.ms", "100")
            .set("queued.max.messages.kbytes", "8192")
            .set("reconnect.backoff.max.ms", "1000")
            .set("log_level", "4")
            .create_with_context(context)?;
        let consumer = Arc::new(consumer);
        consumer.context().assignment.set_hints(&consumer, &settings.topics);
        Ok(Self { consumer, projection, settings, requests, paused: HashSet::new(), shutdown })
    }

    /// Polls until shutdown is given and the partitions' tasks have ended.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let name = self.projection.name();
        if !self.wait_for_topics() {
            return Ok(());
        }
        self.subscribe()?;
        let mut verify_at = Instant::now() + VERIFY_EVERY;
        while !self.shutdown.is_given() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => route(&self.consumer, &mut self.paused, &message),
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::PartitionEOF))) | None => {}
                Some(Err(error)) => {
                    warn!(projection = name, %error, "the log can't be read now; trying again");
                }
            }
            self.serve_requests()?;
            if Instant::now() >= verify_at {
                self.assignment().verify();
                verify_at = Instant::now() + VERIFY_EVERY;
            }
            if self.assignment().take_failed_start() {
                // Leaving and joining again makes the group assign the partitions once more.
                self.consumer.unsubscribe();
                self.subscribe()?;
            }
        }
        self.assignment().stop_all();
        info!(projection = name, "stopped");
        Ok(())
    }

    fn assignment(&self) -> &Assignment {
        &self.consumer.context().assignment
    }

    fn subscribe(&self) -> anyhow::Result<()> {
        let topics: Vec<_> =
            self.projection.streams().map(|stream| self.settings.topics.name(stream)).collect();
        let topics: Vec<_> = topics.iter().map(String::as_str).collect();
        self.consumer
            .subscribe(&topics)
            .with_context(|| format!("projection {} failed to subscribe", self.projection.name()))
    }

    /// Waits until the projection's topics exist; false if shutdown was given first.
    fn wait_for_topics(&self) -> bool {
        let mut told = false;
        for stream in self.projection.streams() {
            let topic = self.settings.topics.name(stream);
            while !self.shutdown.is_given() && !self.exists(&topic) {
                if !std::mem::replace(&mut told, true) {
                    info!(projection = self.projection.name(), topic, "waiting for the topic");
                }
                // Serves the client's own events, and waits.
                _ = self.consumer.poll(TOPICS_RETRY);
            }
        }
        !self.shutdown.is_given()
    }

    fn exists(&self, topic: &str) -> bool {
        self.consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).is_ok_and(|metadata| {
            metadata.topics().iter().any(|found| found.error().is_none() && !found.partitions().is_empty())
        })
    }

    fn serve_requests(&mut self) -> anyhow::Result<()> {
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Resume(partition) => {
                    if self.paused.contains(&partition) && self.assignment().flush_held(partition) {
                        self.paused.remove(&partition);
                        self.consumer
                            .resume(&self.list(partition))
                            .context("failed to resume a partition")?;
                    }
                }
                Request::Restart(partition) => self.restart(partition),
            }
        }
        Ok(())
    }

    /// Starts a partition's task again where the store stands.
    fn restart(&mut self, partition: Partition) {
        let Some(next) = self.assignment().restart(partition) else {
            return;
        };
        let topic = self.settings.topics.name(partition.stream);
        let sought = self
            .consumer
            .seek(&topic, partition.number, rdkafka::Offset::Offset(next), BROKER_TIMEOUT)
            .and_then(|()| {
                if self.paused.remove(&partition) {
                    self.consumer.resume(&self.list(partition))
                } else {
                    Ok(())
                }
            });
        match sought {
            Ok(()) => {
                info!(projection = self.projection.name(), partition = partition.field(), next, "restarted");
            }
            Err(error) => {
                warn!(projection = self.projection.name(), %error, "failed to seek; joining the group again");
                self.assignment().fail_start();
            }
        }
    }

    fn list(&self, partition: Partition) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.settings.topics.name(partition.stream), partition.number);
        list
    }
}

/// Hands a record to its partition's task. If the task's queue is full the record is held and the partition paused.
fn route(consumer: &BaseConsumer<Context>, paused: &mut HashSet<Partition>, message: &BorrowedMessage<'_>) {
    let context = consumer.context();
    let Some(stream) = context.topics.stream(message.topic()) else {
        return;
    };
    let partition = Partition { stream, number: message.partition() };
    if let Routed::Held = context.assignment.route(partition, read(stream, message)) {
        let mut list = TopicPartitionList::new();
        list.add_partition(message.topic(), message.partition());
        match consumer.pause(&list) {
            Ok(()) => _ = paused.insert(partition),
            Err(error) => {
                error!(%error, "failed to pause a partition; its records are held in memory");
            }
        }
    }
}

fn read(stream: Stream, message: &BorrowedMessage<'_>) -> Delivery {
    let header = |name: &str| {
        let headers = message.headers()?;
        headers.iter().find(|header| header.key == name).and_then(|header| header.value)
    };
    match decode(stream, header, message.payload().unwrap_or_default()) {
        Ok(envelope) => Delivery::Record(Record { offset: message.offset(), envelope }),
        Err(error) => Delivery::Poison { offset: message.offset(), error },
    }
}

fn named(topics: &Topics, partitions: &TopicPartitionList) -> Vec<Partition> {
    let partition =
        |(topic, number): (String, i32)| Some(Partition { stream: topics.stream(&topic)?, number });
    partitions.to_topic_map().into_keys().filter_map(partition).collect()
}
