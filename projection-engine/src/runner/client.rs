//! The Kafka consumer of one projection, and its rebalance callbacks.

use rdkafka::{
    ClientConfig, ClientContext, Offset, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
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
                // Every partition is paused; the poller seeks to the store's position, and resumes it. No offset that may
                // be gone: the client would stop fetching the partition.
                partitions
                    .set_all_offsets(Offset::Beginning)
                    .and_then(|()| consumer.incremental_assign(partitions))
                    .and_then(|()| consumer.pause(partitions))
            }
            Rebalance::Revoke => {
                self.assignment.revoke(&named);
                release(consumer, partitions)
            }
            Rebalance::Failed(code) => {
                // The members of the group may disagree about any partition, not only about those of the event.
                error!(%code, "rebalance failed, releasing all partitions");
                self.assignment.revoke_all();
                consumer.assignment().and_then(|all| release(consumer, &all))
            }
        };
        if let Err(error) = done {
            error!(%error, "failed to apply a rebalance");
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

fn release(consumer: &BaseConsumer<Context>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    // The client keeps a pause: the partition would be paused when it is assigned again.
    consumer.resume(partitions).and_then(|()| consumer.incremental_unassign(partitions))
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
    use super::*;

    #[test]
    fn failed_rebalance_is_no_revocation() {
        let of = Rebalance::of;
        assert_eq!(of(RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS), Rebalance::Assign);
        assert_eq!(of(RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS), Rebalance::Revoke);
        let failed = of(RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION);
        assert_eq!(failed, Rebalance::Failed(RDKafkaErrorCode::IllegalGeneration));
    }
}
