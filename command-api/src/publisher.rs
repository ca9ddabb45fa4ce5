//! Appends events to Kafka.
//!
//! A command succeeds only after [`EventLog::append`] has returned the position of its event.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use metrics::histogram;
use parking_lot::RwLock;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};
use vidlog_events::{EncodedRecord, Envelope, Stream, Topics};
use vidlog_service_kit::failpoint;

use crate::metrics::APPEND_SECONDS;

/// Timeout of an append: less than the 5 s that a command has to respond.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(4);
/// Maximum number of unacknowledged records. Beyond it an append fails immediately, so that an unavailable broker
/// costs bounded memory.
const MAX_IN_FLIGHT: u32 = 20_000;
/// The same bound in kilobytes.
const MAX_IN_FLIGHT_KB: u32 = 64 * 1024;
/// Maximum size of a record: far above any event, and the broker's default.
const MAX_RECORD_BYTES: u32 = 1_000_000;

/// Position of an appended event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Stream of the event.
    pub stream: Stream,
    /// Partition of the stream's topic.
    pub partition: i32,
    /// Offset of the record.
    pub offset: i64,
}

/// Error of an append.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AppendError {
    /// The producer's queue is full. The event is not in the log; retry later.
    #[error("the producer queue is full")]
    Busy,
    /// The broker did not acknowledge in time: the event may or may not be in the log. Retrying with the same envelope
    /// is safe, because folds ignore repeated events.
    #[error("the outcome of the append is unknown: {0}")]
    Unknown(String),
    /// The broker or the client rejects the event, now and on every retry. It is not in the log.
    #[error("the record was refused: {0}")]
    Refused(String),
}

/// The write side of the log.
pub trait EventLog: Send + Sync {
    /// Appends an event and waits for the broker's acknowledgement.
    fn append<'a>(&'a self, envelope: &'a Envelope) -> BoxFuture<'a, Result<Appended, AppendError>>;
}

/// The log in Kafka. Clones share the producer.
#[derive(Clone)]
pub struct KafkaLog {
    shared: Arc<Shared>,
}

struct Shared {
    config: ClientConfig,
    topics: Topics,
    active: RwLock<ActiveProducer>,
    /// Whether the latest append failed; an outage is logged once, not per event.
    is_failing: AtomicBool,
}

/// The producer in use. After a fatal error a producer never appends again, so it is replaced.
#[derive(Clone)]
struct ActiveProducer {
    generation: u64,
    producer: FutureProducer<KafkaLogContext>,
}

impl KafkaLog {
    /// Opens the log on brokers (`host:port`, comma separated). Connects in the background, also if the brokers start
    /// later.
    pub fn open(brokers: &str, topics: Topics) -> Result<Self, KafkaError> {
        let config = producer_config(brokers);
        let producer = config.create_with_context(KafkaLogContext)?;
        let active = RwLock::new(ActiveProducer { generation: 0, producer });
        let shared = Shared { config, topics, active, is_failing: AtomicBool::new(false) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Waits until all pending appends have completed or failed, at most for the append timeout.
    pub async fn flush(&self) {
        let producer = self.active().producer;
        let flushed = tokio::task::spawn_blocking(move || producer.flush(DELIVERY_TIMEOUT)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "kafka producer not flushed in time"),
            Err(error) => warn!(%error, "failed to flush kafka producer"),
        }
    }

    async fn send(&self, record: EncodedRecord) -> Result<Appended, AppendError> {
        let topic = self.shared.topics.name(record.stream);
        let message = FutureRecord::to(&topic)
            .key(&record.key)
            .payload(&record.value)
            .timestamp(record.timestamp_ms)
            .headers(headers(&record));
        let active = self.active();
        failpoint::pass("append-before");
        let sent = active.producer.send(message, Duration::ZERO).await;
        failpoint::pass("append-after");
        match sent {
            Ok(delivery) => {
                Ok(Appended { stream: record.stream, partition: delivery.partition, offset: delivery.offset })
            }
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
                    self.replace_producer(active.generation);
                }
                Err(classify(&error))
            }
        }
    }

    fn active(&self) -> ActiveProducer {
        self.shared.active.read().clone()
    }

    /// Replaces the producer of a generation, unless a concurrent append has replaced it.
    fn replace_producer(&self, generation: u64) {
        let mut active = self.shared.active.write();
        if active.generation != generation {
            return;
        }
        match self.shared.config.create_with_context(KafkaLogContext) {
            Ok(producer) => {
                warn!("kafka producer replaced after fatal error");
                *active = ActiveProducer { generation: generation + 1, producer };
            }
            Err(error) => error!(%error, "failed to replace kafka producer after fatal error"),
        }
    }

    fn log_outcome(&self, envelope: &Envelope, result: &Result<Appended, AppendError>) {
        let (event_id, event_type) = (envelope.id, envelope.event.type_name());
        match result {
            Ok(_) => {
                if self.shared.is_failing.swap(false, Ordering::Relaxed) {
                    info!("kafka append recovered");
                }
            }
            Err(error @ AppendError::Refused(_)) => {
                error!(%event_id, event_type, %error, "event refused by kafka");
            }
            Err(error) if self.shared.is_failing.swap(true, Ordering::Relaxed) => {
                debug!(%event_id, event_type, %error, "kafka append failed");
            }
            Err(error) => warn!(%event_id, event_type, %error, "kafka append failed"),
        }
    }
}

impl EventLog for KafkaLog {
    fn append<'a>(&'a self, envelope: &'a Envelope) -> BoxFuture<'a, Result<Appended, AppendError>> {
        async move {
            let record = envelope.encode().map_err(|error| AppendError::Refused(error.to_string()))?;
            let stream = record.stream;
            let started = Instant::now();
            let result = self.send(record).await;
            histogram!(APPEND_SECONDS, "stream" => stream.name()).record(started.elapsed());
            self.log_outcome(envelope, &result);
            result
        }
        .boxed()
    }
}

fn producer_config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "vidlog-command-api")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        // The Java client's partitioner, so that other producers would choose the same partitions.
        .set("partitioner", "murmur2_random")
        .set("delivery.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
        .set("message.max.bytes", MAX_RECORD_BYTES.to_string())
        .set("queue.buffering.max.messages", MAX_IN_FLIGHT.to_string())
        .set("queue.buffering.max.kbytes", MAX_IN_FLIGHT_KB.to_string())
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

fn headers(record: &EncodedRecord) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(record.headers.len());
    record
        .headers
        .iter()
        .fold(empty, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// Maps a Kafka error to the caller's action. In doubt the outcome is unknown: that is correct for every error, and
/// costs at most a repeated event.
fn classify(error: &KafkaError) -> AppendError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::QueueFull) => AppendError::Busy,
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessageSize
            | RDKafkaErrorCode::InvalidRecord
            | RDKafkaErrorCode::InvalidTimestamp
            | RDKafkaErrorCode::InvalidArgument
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed,
        ) => AppendError::Refused(error.to_string()),
        _ => AppendError::Unknown(error.to_string()),
    }
}

/// Forwards the Kafka client's log to `tracing`.
pub(crate) struct KafkaLogContext;

impl ClientContext for KafkaLogContext {
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
        // The client logs the same error.
        debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for KafkaLogContext {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failed_producer_is_replaced_once() {
        let log = KafkaLog::open("127.0.0.1:1", Topics::new("test")).unwrap();
        log.replace_producer(0);
        log.replace_producer(0);
        assert_eq!(log.active().generation, 1);
    }

    #[test]
    fn kafka_errors_map_to_append_errors() {
        let of = |code| classify(&KafkaError::MessageProduction(code));
        assert_eq!(of(RDKafkaErrorCode::QueueFull), AppendError::Busy);
        assert!(matches!(of(RDKafkaErrorCode::MessageTimedOut), AppendError::Unknown(_)));
        assert!(matches!(of(RDKafkaErrorCode::NotEnoughReplicasAfterAppend), AppendError::Unknown(_)));
        assert!(matches!(of(RDKafkaErrorCode::MessageSizeTooLarge), AppendError::Refused(_)));
    }
}
