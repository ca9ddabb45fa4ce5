//! The topics of a namespace.

use std::time::{Duration, Instant};

use clap::Parser;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};
use tokio::{net::TcpStream, task::spawn_blocking};
use uuid::Uuid;
use vidlog_events::{Envelope, Event, Stream, Topics, decode};
use vidlog_service_kit::config;
use vidlog_test_support::{
    DEADLINE,
    namespace::{missing, parse_environment},
    until,
};

/// Partitions of a test's topics: enough that keys spread, few enough that many tests share one broker.
pub const PARTITIONS: i32 = 3;
/// Size of a large record, which a compression makes small.
const LARGE_BYTES: usize = 8_000_000;
/// Timeout of one request to the broker.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The topics of one test.
#[derive(Clone)]
pub struct Kafka {
    /// Settings that point to the broker.
    pub settings: config::Kafka,
    /// The topics' names.
    pub topics: Topics,
    producer: FutureProducer,
}

/// An event as it is stored in its partition.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedEvent {
    /// The event.
    pub envelope: Envelope,
    /// The record's key.
    pub key: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// The record's timestamp, in milliseconds.
    pub timestamp_ms: i64,
}

#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    log: config::Kafka,
}

/// Settings that point to an address without a broker.
pub fn unreachable_kafka() -> config::Kafka {
    config::Kafka { kafka_brokers: "127.0.0.1:1".to_owned(), session_timeout_ms: config::SESSION_TIMEOUT_MS }
}

/// An envelope without a cause.
pub fn envelope(event: Event, time_ms: i64) -> Envelope {
    Envelope {
        id: Uuid::now_v7(),
        source: "test".to_owned(),
        time_ms,
        traceparent: None,
        correlation_id: None,
        causation_id: None,
        event,
    }
}

impl Kafka {
    /// The topics of a namespace, which may not exist yet, on the broker that `VIDLOG_KAFKA_BROKERS` names; panics if it
    /// does not listen.
    pub async fn connect(namespace: &str) -> Self {
        let Environment { log } = parse_environment();
        for broker in log.kafka_brokers.split(',') {
            TcpStream::connect(broker).await.unwrap_or_else(|error| missing("Kafka", &error));
        }
        let producer = producer(&log);
        Self { settings: log, topics: Topics::new(namespace), producer }
    }

    /// Creates the topics of all streams, with [`PARTITIONS`] partitions.
    pub async fn create_topics(&self) {
        let names = Stream::ALL.map(|stream| self.topics.name(stream));
        let topics: Vec<_> = names.iter().map(|name| new_topic(name)).collect();
        for created in self.admin().create_topics(&topics, &AdminOptions::new()).await.unwrap() {
            created.unwrap();
        }
        self.until_led().await;
    }

    /// Deletes a topic and creates one of the same name.
    pub async fn recreate_topic(&self, stream: Stream) {
        let name = self.topics.name(stream);
        let (admin, options) = (self.admin(), AdminOptions::new());
        admin.delete_topics(&[&name], &options).await.unwrap().remove(0).unwrap();
        until("the deleted topic can be created again", async || {
            admin.create_topics(&[new_topic(&name)], &options).await.unwrap().remove(0).is_ok()
        })
        .await;
        self.until_led().await;
    }

    /// Waits until every partition has a leader; a new one has none for a moment, and requests about it fail.
    async fn until_led(&self) {
        until("every partition has a leader", async || {
            let kafka = self.clone();
            spawn_blocking(move || {
                let consumer = kafka.consumer();
                Stream::ALL.iter().all(|stream| kafka.is_led(&consumer, *stream))
            })
            .await
            .unwrap()
        })
        .await;
    }

    fn is_led(&self, consumer: &BaseConsumer, stream: Stream) -> bool {
        let topic = self.topics.name(stream);
        let Ok(metadata) = consumer.fetch_metadata(Some(&topic), REQUEST_TIMEOUT) else {
            return false;
        };
        let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        let answers = |partition: i32| consumer.fetch_watermarks(&topic, partition, REQUEST_TIMEOUT).is_ok();
        !partitions.is_empty() && partitions.iter().all(|partition| answers(partition.id()))
    }

    /// Appends events in order; returns when the broker has acknowledged all.
    pub async fn append(&self, events: &[Envelope]) {
        self.append_with(&self.producer, events).await;
    }

    /// Appends events in a transaction that stays open; returns its producer.
    pub async fn append_in_transaction(&self, events: &[Envelope]) -> FutureProducer {
        let id = Uuid::now_v7().to_string();
        let producer: FutureProducer =
            producer_config(&self.settings).set("transactional.id", id).create().unwrap();
        producer.init_transactions(REQUEST_TIMEOUT).unwrap();
        producer.begin_transaction().unwrap();
        self.append_with(&producer, events).await;
        producer
    }

    async fn append_with(&self, producer: &FutureProducer, events: &[Envelope]) {
        let mut deliveries = Vec::new();
        for envelope in events {
            let record = envelope.encode().unwrap();
            let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
            let topic = self.topics.name(record.stream);
            let record = FutureRecord::to(&topic)
                .key(&record.key)
                .payload(&record.value)
                .timestamp(record.timestamp_ms)
                .headers(headers);
            deliveries.push(producer.send_result(record).map_err(|(error, _)| error).unwrap());
        }
        for delivery in deliveries {
            delivery.await.unwrap().map_err(|(error, _)| error).unwrap();
        }
    }

    /// Appends a record to each partition of a stream's dead letters in a transaction, and aborts it.
    pub async fn abort_in_dead_letters(&self, stream: Stream) {
        let topic = self.topics.dead_letters(stream);
        let producer = self.append_in_transaction(&[]).await;
        for partition in 0..PARTITIONS {
            let record = FutureRecord::to(&topic).key("1").payload("{").partition(partition);
            producer.send(record, REQUEST_TIMEOUT).await.map_err(|(error, _)| error).unwrap();
        }
        producer.abort_transaction(REQUEST_TIMEOUT).unwrap();
    }

    /// Deletes the records of a stream before some offsets, given by partition.
    pub async fn delete_records(&self, stream: Stream, before: &[(i32, Offset)]) {
        let topic = self.topics.name(stream);
        let mut list = TopicPartitionList::new();
        for (partition, offset) in before {
            list.add_partition_offset(&topic, *partition, *offset).unwrap();
        }
        self.admin().delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    /// The first and the end offset of each partition of a stream. Blocks.
    pub fn watermarks(&self, stream: Stream) -> Vec<(i64, i64)> {
        let (topic, consumer) = (self.topics.name(stream), self.consumer());
        (0..PARTITIONS)
            .map(|partition| consumer.fetch_watermarks(&topic, partition, REQUEST_TIMEOUT).unwrap())
            .collect()
    }

    /// Appends an undecodable record; returns its partition.
    pub async fn append_garbage(&self, stream: Stream, key: &str) -> i32 {
        let topic = self.topics.name(stream);
        let record = FutureRecord::to(&topic).key(key).payload("{");
        let sent = self.producer.send(record, REQUEST_TIMEOUT).await;
        sent.map_err(|(error, _)| error).unwrap().partition
    }

    /// Appends an undecodable record that is larger than the topic's limit before its compression; returns its partition and
    /// offset.
    pub async fn append_large_garbage(&self, stream: Stream, key: &str) -> (i32, i64) {
        let producer: FutureProducer = producer_config(&self.settings)
            .set("compression.type", "gzip")
            .set("message.max.bytes", "50000000")
            .create()
            .unwrap();
        let topic = self.topics.name(stream);
        let payload = "a".repeat(LARGE_BYTES);
        let sent = producer.send(FutureRecord::to(&topic).key(key).payload(&payload), REQUEST_TIMEOUT).await;
        let delivery = sent.map_err(|(error, _)| error).unwrap();
        (delivery.partition, delivery.offset)
    }

    /// The offset that a consumer group has committed in each partition of a stream. Blocks.
    pub fn committed_offsets(&self, group: &str, stream: Stream) -> Vec<Option<i64>> {
        let consumer: BaseConsumer = client(&self.settings).set("group.id", group).create().unwrap();
        let topic = self.topics.name(stream);
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&topic, 0, PARTITIONS - 1);
        let committed = consumer.committed_offsets(list, REQUEST_TIMEOUT).unwrap();
        let offset = |partition| committed.find_partition(&topic, partition).unwrap().offset();
        (0..PARTITIONS)
            .map(|partition| match offset(partition) {
                Offset::Offset(offset) => Some(offset),
                _ => None,
            })
            .collect()
    }

    /// Adds a partition to a topic and appends an undecodable record to it; returns the new partition.
    pub async fn append_garbage_to_new_partition(&self, stream: Stream) -> i32 {
        let topic = self.topics.name(stream);
        let more = NewPartitions::new(&topic, usize::try_from(PARTITIONS).unwrap() + 1);
        self.admin().create_partitions([&more], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        self.until_led().await;
        // The producer's metadata may still lack the partition.
        let producer = producer(&self.settings);
        let record = FutureRecord::to(&topic).key("1").payload("{").partition(PARTITIONS);
        let sent = producer.send(record, REQUEST_TIMEOUT).await;
        sent.map_err(|(error, _)| error).unwrap().partition
    }

    /// Reads every event of a stream, up to the current end.
    pub async fn read(&self, stream: Stream) -> Vec<LoggedEvent> {
        let kafka = self.clone();
        spawn_blocking(move || kafka.read_blocking(stream)).await.unwrap()
    }

    /// Reads every event of every stream.
    pub async fn read_all(&self) -> Vec<LoggedEvent> {
        let mut all = Vec::new();
        for stream in Stream::ALL {
            all.extend(self.read(stream).await);
        }
        all
    }

    fn read_blocking(&self, stream: Stream) -> Vec<LoggedEvent> {
        let topic = self.topics.name(stream);
        let consumer = self.consumer();
        let mut assignment = TopicPartitionList::new();
        let mut expected = 0;
        for partition in 0..PARTITIONS {
            expected += end_offset(&consumer, &topic, partition);
            assignment.add_partition_offset(&topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();
        (0..expected)
            .map(|_| {
                let message = consumer.poll(DEADLINE).expect("the record is there").unwrap();
                let header = |name: &str| {
                    message
                        .headers()?
                        .iter()
                        .find(|header| header.key == name)
                        .and_then(|header| header.value)
                };
                LoggedEvent {
                    envelope: decode(stream, header, message.payload().unwrap()).unwrap(),
                    key: String::from_utf8(message.key().unwrap().to_vec()).unwrap(),
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp_ms: message.timestamp().to_millis().unwrap(),
                }
            })
            .collect()
    }

    /// The number of members of a consumer group. Blocks.
    pub fn group_members(&self, group: &str) -> usize {
        let groups = self.consumer().fetch_group_list(Some(group), DEADLINE).unwrap();
        groups.groups().first().map_or(0, |group| group.members().len())
    }

    fn consumer(&self) -> BaseConsumer {
        // The client library requires a group id, even without joining the group.
        client(&self.settings)
            .set("group.id", "test-reader")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap()
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        client(&self.settings).create().unwrap()
    }
}

impl LoggedEvent {
    /// The position right after the event, such as `likes:3:1042`.
    pub fn position(&self) -> String {
        format!("{}:{}:{}", self.envelope.event.stream(), self.partition, self.offset + 1)
    }
}

/// The end offset of a partition, once it has a leader.
fn end_offset(consumer: &BaseConsumer, topic: &str, partition: i32) -> i64 {
    let started = Instant::now();
    loop {
        match consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT) {
            Ok((_, end)) => return end,
            Err(error) => assert!(started.elapsed() < DEADLINE, "{topic}[{partition}]: {error}"),
        }
        // Serves the client's own events, and waits.
        consumer.poll(Duration::from_millis(20));
    }
}

fn new_topic(name: &str) -> NewTopic<'_> {
    NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1))
}

fn producer(log: &config::Kafka) -> FutureProducer {
    producer_config(log).create().unwrap()
}

/// The partitioner is that of the Java clients, as in command-api.
fn producer_config(log: &config::Kafka) -> ClientConfig {
    let mut config = client(log);
    config.set("enable.idempotence", "true").set("partitioner", "murmur2_random");
    config
}

fn client(log: &config::Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &log.kafka_brokers);
    config
}
