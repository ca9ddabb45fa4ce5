//! The Kafka consumer of one projection, and its rebalance callbacks.

use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use tracing::{debug, error};
use vidlog_events::Topics;

use super::{assignment::Assignment, settings::Settings};
use crate::log::Partition;

/// Session timeouts for which an instance may not poll: longer than a pass over the due partitions takes while a store or a
/// broker is unavailable.
const POLL_SESSIONS: u32 = 3;

/// The callbacks of librdkafka.
pub(super) struct Context {
    assignment: Assignment,
    topics: Topics,
}

impl Context {
    /// The assigned partitions.
    pub(super) const fn assignment(&self) -> &Assignment {
        &self.assignment
    }
}

impl ClientContext for Context {
    // The client also reports these to the poller, which handles them.
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        debug!(facility, message, "kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "kafka client");
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
        let done = match Rebalance::of(event) {
            Rebalance::Assign => {
                self.assignment.assign(&named);
                let assigned = assign(consumer, partitions);
                if assigned.is_err() {
                    self.assignment.revoke(&named);
                }
                assigned
            }
            Rebalance::Revoke => {
                self.assignment.revoke(&named);
                release(consumer, partitions)
            }
            Rebalance::Failed(code) => {
                // The members of the group may disagree about any partition, not only about those of the event.
                error!(%code, "rebalance failed, releasing all partitions");
                self.assignment.revoke_all();
                release_all(consumer)
            }
        };
        if let Err(error) = done {
            error!(%error, "failed to apply a rebalance");
            self.assignment.report_failed_rebalance(&error);
        }
    }
}

/// The kind of a rebalance event.
#[derive(Debug, PartialEq, Eq)]
enum Rebalance {
    /// The group assigns partitions to this member.
    Assign,
    /// The group takes partitions from this member.
    Revoke,
    /// The rebalance failed; the client joins the group again.
    Failed(RDKafkaErrorCode),
}

impl Rebalance {
    fn of(event: RDKafkaRespErr) -> Self {
        match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => Self::Assign,
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => Self::Revoke,
            failure => Self::Failed(failure.into()),
        }
    }
}

/// Assigns partitions, paused: the poller seeks to the store's position, and resumes them.
pub(super) fn assign(
    consumer: &BaseConsumer<Context>,
    partitions: &mut TopicPartitionList,
) -> KafkaResult<()> {
    // No offset that may be gone: the client would stop fetching the partition.
    partitions.set_all_offsets(Offset::Beginning).and_then(|()| consumer.incremental_assign(partitions))?;
    if let Err(error) = consumer.pause(partitions) {
        // Then records arrive without a task, until the next seek.
        debug!(%error, "failed to pause assigned partitions");
    }
    Ok(())
}

/// Releases partitions. Leaves out those that the client does not have: it would release none, and wait forever for the
/// end of the rebalance.
pub(super) fn release(consumer: &BaseConsumer<Context>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    let assigned = consumer.assignment()?;
    let mut owned = TopicPartitionList::new();
    for element in partitions.elements() {
        if assigned.find_partition(element.topic(), element.partition()).is_some() {
            owned.add_partition(element.topic(), element.partition());
        }
    }
    // The client keeps a pause: the partition would be paused when it is assigned again.
    if let Err(error) = consumer.resume(&owned) {
        debug!(%error, "failed to resume released partitions");
    }
    consumer.incremental_unassign(&owned)
}

/// Releases all partitions. The client waits for the call even if there are none. Before it has joined the group, it has no
/// rebalance protocol yet, and releases all at once.
fn release_all(consumer: &BaseConsumer<Context>) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => release(consumer, &consumer.assignment()?),
        RebalanceProtocol::None | RebalanceProtocol::Eager => consumer.unassign(),
    }
}

/// Creates a consumer in the group of a projection, not subscribed yet.
pub(super) fn connect(
    settings: &Settings,
    projection: &str,
    assignment: Assignment,
) -> KafkaResult<BaseConsumer<Context>> {
    let session_timeout_ms = settings.session_timeout_ms;
    let mut config = ClientConfig::new();
    if let Some(instance) = &settings.instance {
        config.set("group.instance.id", format!("{instance}-{projection}"));
    }
    config
        .set("bootstrap.servers", &settings.log.brokers)
        .set("group.id", format!("{}.{projection}", settings.namespace))
        .set("client.id", format!("vidlog-projector-{projection}"))
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("auto.offset.reset", "error")
        // Skips records of aborted transactions.
        .set("isolation.level", "read_committed")
        // At the end of a partition, the position is past offsets without a message, such as transaction markers.
        .set("enable.partition.eof", "true")
        // Tasks store applied offsets; they are committed for lag tools only.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "2000")
        // The partitions of a crashed instance move after this; those of one that does not poll, after `max.poll.interval`.
        .set("session.timeout.ms", session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", (session_timeout_ms / 5).to_string())
        .set("max.poll.interval.ms", (session_timeout_ms * POLL_SESSIONS).to_string())
        .set("fetch.wait.max.ms", "100")
        // Prefetched records of all partitions, beside their queues. One response of each broker may exceed it.
        .set("queued.max.messages.kbytes", "2048")
        .set("fetch.max.bytes", "4194304")
        // The buffer is small, so the time until it is filled again limits the throughput of a backfill.
        .set("fetch.queue.backoff.ms", "20")
        .set("reconnect.backoff.max.ms", "1000")
        .set("log_level", "4")
        .create_with_context(Context { assignment, topics: settings.log.topics.clone() })
}

fn named(topics: &Topics, partitions: &TopicPartitionList) -> Vec<Partition> {
    let partition =
        |(topic, number): (String, i32)| Some(Partition { stream: topics.stream(&topic)?, number });
    partitions.to_topic_map().into_keys().filter_map(partition).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};
    use tokio::{runtime::Runtime, sync::watch};
    use vidlog_events::Stream;
    use vidlog_schemas::projections::LIKES_TABLE;
    use vidlog_service_kit::{config, ops::Readiness};

    use super::*;
    use crate::{
        dead_letters::DeadLetterQueue,
        desired_state::DesiredStates,
        log::{Log, identity::FirstRecords},
        runner::status::PartitionStatusRegistry,
        store::Stores,
        view::{Fold, Projection},
    };

    const PARTITIONS: i32 = 3;
    const DEADLINE: Duration = Duration::from_mins(1);

    /// A consumer of a simulated cluster, and what it needs to live.
    struct Member {
        consumer: BaseConsumer<Context>,
        topic: String,
        _cluster: MockCluster<'static, DefaultProducerContext>,
        _runtime: Runtime,
    }

    impl Member {
        fn new() -> Self {
            let (cluster, runtime) = (MockCluster::new(1).unwrap(), Runtime::new().unwrap());
            let kafka =
                config::Kafka { kafka_brokers: cluster.bootstrap_servers(), session_timeout_ms: 10_000 };
            let log = Log::new(&kafka, "test");
            let topic = log.topics.name(Stream::Likes);
            cluster.create_topic(&topic, PARTITIONS, 1).unwrap();
            let readiness = Readiness::new();
            let settings = Settings {
                instance: None,
                session_timeout_ms: kafka.session_timeout_ms,
                namespace: "test".to_owned(),
                first_records: FirstRecords::new(log.clone()),
                dead_letters: DeadLetterQueue::new(log.clone()),
                log,
                desired_states: watch::channel(DesiredStates::new()).1,
                statuses: Arc::new(PartitionStatusRegistry::new(readiness.clone())),
            };
            let stores = config::Stores {
                namespace: "test".to_owned(),
                mysql_url: "mysql://nobody@127.0.0.1:1/nothing".to_owned().into(),
                redis_url: "redis://127.0.0.1:1/".to_owned().into(),
                shards: 1,
            };
            let stores = runtime.block_on(async { Stores::open(&stores, 1).unwrap() });
            let fold = Fold::MySql(|_, _| Box::pin(async { Ok(()) }));
            let store = stores.view(Projection { catalogued: LIKES_TABLE, fold });
            let (requests, _) = std::sync::mpsc::channel();
            let assignment = Assignment::new(store, &settings, readiness, requests, runtime.handle().clone());
            let consumer = connect(&settings, LIKES_TABLE.name, assignment).unwrap();
            Self { consumer, topic, _cluster: cluster, _runtime: runtime }
        }

        fn assigned(&self) -> i32 {
            i32::try_from(self.consumer.assignment().unwrap().count()).unwrap()
        }

        /// Joins the group, and waits for its partitions.
        fn join(&self) {
            self.consumer.subscribe(&[&self.topic]).unwrap();
            let deadline = Instant::now() + DEADLINE;
            while self.assigned() < PARTITIONS {
                assert!(Instant::now() < deadline, "no assignment in time");
                _ = self.consumer.poll(Duration::from_millis(20));
            }
        }

        fn rebalance(&self, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
            self.consumer.context().rebalance(&self.consumer, event, partitions);
        }
    }

    #[test]
    fn failed_rebalance_is_no_revocation() {
        let of = Rebalance::of;
        assert_eq!(of(RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS), Rebalance::Assign);
        assert_eq!(of(RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS), Rebalance::Revoke);
        let failed = of(RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION);
        assert_eq!(failed, Rebalance::Failed(RDKafkaErrorCode::IllegalGeneration));
    }

    #[test]
    fn failed_rebalance_releases_all_partitions() {
        let member = Member::new();
        let mut none = TopicPartitionList::new();
        member.rebalance(RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, &mut none);
        member.join();
        member.rebalance(RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION, &mut none);
        assert_eq!(member.assigned(), 0);
    }

    #[test]
    fn revocation_of_a_partition_that_the_client_lacks_releases_the_others() {
        let member = Member::new();
        member.join();
        let mut first = TopicPartitionList::new();
        first.add_partition(&member.topic, 0);
        member.consumer.incremental_unassign(&first).unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_range(&member.topic, 0, PARTITIONS - 1);
        member.rebalance(RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS, &mut all);
        assert_eq!(member.assigned(), 0);
    }
}
