//! The consumer of one projection, and how its group's partitions come and go.

use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use tracing::{debug, error};
use vidlog_events::Topics;

use super::{assignment::Assignment, settings::Settings};
use crate::log::Partition;

/// Session timeouts for which an instance may not poll: more than a pass over the partitions that are to be started takes
/// while a store or a broker is away.
const POLL_SESSIONS: u32 = 3;

/// What librdkafka calls back into.
pub(super) struct Context {
    assignment: Assignment,
    topics: Topics,
}

impl Context {
    /// The partitions that the consumer has.
    pub(super) const fn assignment(&self) -> &Assignment {
        &self.assignment
    }
}

impl ClientContext for Context {
    // What the client says here it also says to the poller, which decides what it means.
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
        let done = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assignment.take(&named);
            // Every partition is taken and paused; the poller seeks to where the store stands, and resumes. No offset that may
            // be gone: the client would stop fetching the partition.
            partitions
                .set_all_offsets(Offset::Beginning)
                .and_then(|()| consumer.incremental_assign(partitions))
                .and_then(|()| consumer.pause(partitions))
        } else {
            self.assignment.give_up(&named);
            // The client would remember a pause, and the partition come back with it.
            consumer.resume(partitions).and_then(|()| consumer.incremental_unassign(partitions))
        };
        if let Err(error) = done {
            error!(%error, "failed to follow a rebalance of the consumer group");
        }
    }
}

/// A consumer in the group of a projection, which has not subscribed yet.
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
        // Records of aborted transactions are no events.
        .set("isolation.level", "read_committed")
        // The position at the end of a partition is past what is not passed on, such as transaction markers.
        .set("enable.partition.eof", "true")
        // What was applied is stored by the task; committing it is only a hint.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "2000")
        // A dead instance's partitions move on after this; those of one that lives but does not poll, a bit later.
        .set("session.timeout.ms", session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", (session_timeout_ms / 5).to_string())
        .set("max.poll.interval.ms", (session_timeout_ms * POLL_SESSIONS).to_string())
        .set("fetch.wait.max.ms", "100")
        // What the client reads ahead of the partitions' queues: so much for all of them together, overshot by
        // what is on its way then, which is one answer of each broker.
        .set("queued.max.messages.kbytes", "2048")
        .set("fetch.max.bytes", "4194304")
        // The room is small, so how soon it is used again decides the speed of a long way to go.
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
