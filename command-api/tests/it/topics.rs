//! Topic creation and partitioning.

use futures::future::try_join_all;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
};
use vidlog_command_api::topics::{Layout, TopicsError, create_topics};
use vidlog_events::{Stream, Topics};
use vidlog_schemas::rows::VideoState;
use vidlog_test_support_kafka::partition_of;

use crate::support::{PARTITIONS, World};

const LAYOUT: Layout = Layout { partitions: PARTITIONS, replication: 1 };

#[tokio::test]
async fn concurrent_topic_creation_is_idempotent() {
    let world = World::new().await;
    let (brokers, topics) = (&world.log.settings.kafka_brokers, &world.log.topics);
    try_join_all((0..3).map(|_| create_topics(brokers, topics, LAYOUT))).await.unwrap();
    create_topics(brokers, topics, LAYOUT).await.unwrap();

    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
    for stream in Stream::ALL {
        let name = topics.name(stream);
        let topic = ResourceSpecifier::Topic(&name);
        let described =
            admin.describe_configs([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        for (key, value) in Topics::SETTINGS.into_iter().chain([("min.insync.replicas", "1")]) {
            assert_eq!(described.get(key).unwrap().value.as_deref(), Some(value), "{key} of {name}");
        }
    }
}

#[tokio::test]
async fn different_partition_count_is_an_actionable_error() {
    let world = World::new().await;
    let (brokers, topics) = (&world.log.settings.kafka_brokers, &world.log.topics);
    create_topics(brokers, topics, LAYOUT).await.unwrap();
    let more = Layout { partitions: PARTITIONS + 1, ..LAYOUT };
    let error = create_topics(brokers, topics, more).await.unwrap_err();
    assert!(matches!(error, TopicsError::Partitions { found: 3, configured: 4, .. }), "{error}");
    assert!(error.to_string().contains("set the configuration to 3"));
}

#[tokio::test]
async fn keys_are_partitioned_like_the_java_client() {
    let (world, api) = World::with_api().await;
    world.users(&[1]).await;
    for video in 1..=12 {
        world.video(video, 2, VideoState::Published).await;
        api.like(1, video, 1).await.ok();
    }
    let events = world.log.read(Stream::Likes).await;
    assert_eq!(events.len(), 12);
    for event in events {
        assert_eq!(event.partition, partition_of(&event.key), "{}", event.key);
    }
}
