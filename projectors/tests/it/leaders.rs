//! Partitions whose leader does not respond, on a simulated Kafka cluster.

use std::time::Duration;

use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    mocking::{MockCluster, MockCoordinator},
    producer::{FutureProducer, FutureRecord},
};
use vidlog_events::{Stream, Topics};
use vidlog_projectors::{log::Partition, projections};

use crate::support::{Running, TestSystem, envelope, liked, until};

/// So many that querying each takes longer than a member may go without polling.
const SILENT: i32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_broker_does_not_block_other_partitions() {
    let mut system = TestSystem::new().await;
    let cluster = MockCluster::new(2).unwrap();
    let topic = Topics::new(&system.stores.namespace).name(Stream::Likes);
    cluster.create_topic(&topic, SILENT + 1, 1).unwrap();
    for partition in 0..=SILENT {
        cluster.partition_leader(&topic, partition, Some(if partition == 0 { 1 } else { 2 })).unwrap();
    }
    let group = format!("{}.likes-table", system.stores.namespace);
    cluster.coordinator(MockCoordinator::Group(group), 1).unwrap();
    cluster.broker_round_trip_time(2, Duration::from_mins(1)).unwrap();
    system.log.kafka_brokers = cluster.bootstrap_servers();
    system.log.session_timeout_ms = 3000;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &system.log.kafka_brokers).create().unwrap();
    let append = async |user| {
        let event = envelope(liked(1, user), 1_700_000_000_000).encode().unwrap();
        let add = |headers: OwnedHeaders, header: &(&'static str, String)| {
            headers.insert(Header { key: header.0, value: Some(&header.1) })
        };
        let headers = event.headers.iter().fold(OwnedHeaders::new(), add);
        let record =
            FutureRecord::to(&topic).key(&event.key).payload(&event.value).headers(headers).partition(0);
        producer.send(record, Duration::from_mins(1)).await.map_err(|(error, _)| error).unwrap();
    };
    let likes = projections::find("likes-table").unwrap();
    let store = system.target.view(likes);
    let folded = async || {
        let partition = Partition { stream: Stream::Likes, number: 0 };
        store.positions(&[partition]).await.unwrap()[0].lowest()
    };

    append(1).await;
    let running = Running::of(&system, vec![likes]);
    until("the available partition is folded", async || folded().await == 1).await;
    let reported = async || {
        let missing = running.readiness.unready().unwrap_or_default();
        missing.lines().filter(|line| line.contains("failed to fetch the watermarks")).count()
    };
    let all = usize::try_from(SILENT).unwrap();
    until("the other partitions are reported", async || reported().await == all).await;
    append(2).await;
    until("the available partition is folded further", async || folded().await == 2).await;
    running.stop().await;
}
