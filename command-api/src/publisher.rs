//! The seam to the log: appends events to Kafka.
//!
//! A command is answered with success only after [`EventLog::append`] said where its event is.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use metrics::histogram;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
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

/// After this long without an acknowledgement an append fails: less than the 5 s in which a command answers.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(4);
/// Records that may wait for their acknowledgement; above it an append fails at once, so that a broker that is
/// away costs a bounded amount of memory.
const MAX_IN_FLIGHT: u32 = 20_000;
/// The same in kilobytes.
const MAX_IN_FLIGHT_KB: u32 = 64 * 1024;
/// Bytes of one record: far above any event, and the broker's own default.
const MAX_RECORD_BYTES: u32 = 1_000_000;

/// Where an event is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The stream.
    pub stream: Stream,
    /// The partition of its topic.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
}

/// Why an append did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AppendError {
    /// Too much is waiting already. The event is not in the log; append it again later.
    #[error("too many records wait for the broker")]
    Busy,
    /// No acknowledgement came in time. The event may be in the log or not; appending the same envelope again is
    /// safe, because every fold ignores a repeated event.
    #[error("the outcome of the append is not known: {0}")]
    Unknown(String),
    /// The event is not in the log, and the broker or the client would refuse it again.
    #[error("the record was refused: {0}")]
    Refused(String),
}

/// The log, as writers see it.
pub trait EventLog: Send + Sync {
    /// Appends an event, and waits until the broker has acknowledged it.
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
    current: RwLock<Current>,
    /// Whether the latest append failed: that is logged once, not once an event.
    is_away: AtomicBool,
}

/// The producer in use. One that has met a fatal error is replaced, because it never appends again.
#[derive(Clone)]
struct Current {
    generation: u64,
    producer: FutureProducer<Logging>,
}

impl KafkaLog {
    /// A log on some brokers (`host:port`, comma separated). It connects by itself, also when they come up later.
    pub fn open(brokers: &str, topics: Topics) -> Result<Self, KafkaError> {
        let config = producer_config(brokers);
        let producer = config.create_with_context(Logging)?;
        let current = RwLock::new(Current { generation: 0, producer });
        let shared = Shared { config, topics, current, is_away: AtomicBool::new(false) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Waits until everything that was handed over is acknowledged or has failed, for at most the time in which
    /// an append fails by itself.
    pub async fn flush(&self) {
        let producer = self.current().producer;
        let flushed = tokio::task::spawn_blocking(move || producer.flush(DELIVERY_TIMEOUT)).await;
        match flushed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the log was not flushed in time"),
            Err(error) => warn!(%error, "flushing the log failed"),
        }
    }

    async fn send(&self, record: EncodedRecord) -> Result<Appended, AppendError> {
        let topic = self.shared.topics.name(record.stream);
        let message = FutureRecord::to(&topic)
            .key(&record.key)
            .payload(&record.value)
            .timestamp(record.timestamp_ms)
            .headers(headers(&record));
        let current = self.current();
        failpoint::pass("append-before");
        let sent = current.producer.send(message, Duration::ZERO).await;
        failpoint::pass("append-after");
        match sent {
            Ok(delivery) => {
                Ok(Appended { stream: record.stream, partition: delivery.partition, offset: delivery.offset })
            }
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
                    self.replace(current.generation);
                }
                Err(classify(&error))
            }
        }
    }

    fn current(&self) -> Current {
        self.shared.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the producer of a generation, unless another has done so.
    fn replace(&self, generation: u64) {
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.generation != generation {
            return;
        }
        match self.shared.config.create_with_context(Logging) {
            Ok(producer) => {
                warn!("the producer met a fatal error and was replaced");
                *current = Current { generation: generation + 1, producer };
            }
            Err(error) => error!(%error, "failed to replace a producer that met a fatal error"),
        }
    }

    fn log_outcome(&self, envelope: &Envelope, result: &Result<Appended, AppendError>) {
        let (event_id, event_type) = (envelope.id, envelope.event.type_name());
        match result {
            Ok(_) => {
                if self.shared.is_away.swap(false, Ordering::Relaxed) {
                    info!("the log takes events again");
                }
            }
            Err(error @ AppendError::Refused(_)) => {
                error!(%event_id, event_type, %error, "failed to append an event");
            }
            Err(error) if self.shared.is_away.swap(true, Ordering::Relaxed) => {
                debug!(%event_id, event_type, %error, "failed to append an event");
            }
            Err(error) => warn!(%event_id, event_type, %error, "the log does not take events"),
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
        // As Java's clients do it, so that their producers would find the same partition.
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

/// What a writer may conclude. Where in doubt the outcome is unknown: that is true of every error, and only costs
/// a repeated event.
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

/// Takes the Kafka client's own log into ours.
pub(crate) struct Logging;

impl ClientContext for Logging {
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
        // The client's log has it as well.
        debug!(%error, reason, "kafka client");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_producer_is_replaced_once() {
        let log = KafkaLog::open("127.0.0.1:1", Topics::new("test")).unwrap();
        log.replace(0);
        log.replace(0);
        assert_eq!(log.current().generation, 1);
    }

    #[test]
    fn an_error_says_what_is_known() {
        let of = |code| classify(&KafkaError::MessageProduction(code));
        assert_eq!(of(RDKafkaErrorCode::QueueFull), AppendError::Busy);
        assert!(matches!(of(RDKafkaErrorCode::MessageTimedOut), AppendError::Unknown(_)));
        assert!(matches!(of(RDKafkaErrorCode::NotEnoughReplicasAfterAppend), AppendError::Unknown(_)));
        assert!(matches!(of(RDKafkaErrorCode::MessageSizeTooLarge), AppendError::Refused(_)));
    }
}
