//! Creates the topics: one per stream, with explicit partitions and settings.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::{KafkaError, RDKafkaErrorCode},
};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::info;
use vidlog_events::{Stream, Topics};

use crate::publisher::KafkaLogContext;

/// Timeout of a request to the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a created topic may take to appear in the metadata.
const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(10);
const PROPAGATION_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Partitions and replication of the topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Partitions per topic. Must not change for a topic with data.
    pub partitions: i32,
    /// Replicas per partition.
    pub replication: i32,
}

impl Layout {
    /// A majority of the replicas must have a record before it is acknowledged.
    const fn min_insync_replicas(self) -> i32 {
        self.replication / 2 + 1
    }
}

/// Error of creating or checking the topics.
#[derive(Debug, Error)]
pub enum TopicsError {
    /// A request to the broker failed. Retry.
    #[error("request to the broker failed: {0}")]
    Kafka(#[from] KafkaError),
    /// The broker refused to create a topic.
    #[error("failed to create topic {topic}: {code}")]
    Refused {
        /// The topic.
        topic: String,
        /// The broker's reason.
        code: RDKafkaErrorCode,
    },
    /// A topic's number of partitions differs from the configuration. Changing it would move keys and lose their
    /// order.
    #[error(
        "topic {topic} has {found} partitions, but {configured} are configured; partitions of a topic \
         with data can't be changed: set the configuration to {found}, or use another namespace"
    )]
    Partitions {
        /// The topic.
        topic: String,
        /// Its number of partitions.
        found: usize,
        /// The configured number.
        configured: i32,
    },
    /// A created topic did not appear in the metadata in time.
    #[error("topic {0} was created but is not in the broker's metadata yet")]
    NotVisibleYet(String),
    /// The blocking task of a request was cancelled.
    #[error("the request to the broker was cancelled")]
    Cancelled,
}

/// Creates missing topics and checks all of them. Idempotent; several processes may run it concurrently.
pub async fn create_topics(brokers: &str, topics: &Topics, layout: Layout) -> Result<(), TopicsError> {
    let admin: AdminClient<KafkaLogContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("client.id", "vidlog-topics")
        .create_with_context(KafkaLogContext)?;
    let admin = Arc::new(admin);
    let names = Stream::ALL.map(|stream| topics.name(stream));
    create(&admin, &names, layout).await?;
    for name in names {
        verify(&admin, name, layout.partitions).await?;
    }
    Ok(())
}

async fn create(
    admin: &AdminClient<KafkaLogContext>,
    names: &[String],
    layout: Layout,
) -> Result<(), TopicsError> {
    let min_insync = layout.min_insync_replicas().to_string();
    let new: Vec<_> = names
        .iter()
        .map(|name| {
            let topic = NewTopic::new(name, layout.partitions, TopicReplication::Fixed(layout.replication));
            Topics::SETTINGS
                .iter()
                .fold(topic, |topic, (key, value)| topic.set(key, value))
                .set("min.insync.replicas", &min_insync)
        })
        .collect();
    let options =
        AdminOptions::new().request_timeout(Some(BROKER_TIMEOUT)).operation_timeout(Some(BROKER_TIMEOUT));
    for result in admin.create_topics(&new, &options).await? {
        match result {
            Ok(topic) => info!(topic, partitions = layout.partitions, "topic created"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(TopicsError::Refused { topic, code }),
        }
    }
    Ok(())
}

async fn verify(
    admin: &Arc<AdminClient<KafkaLogContext>>,
    topic: String,
    configured: i32,
) -> Result<(), TopicsError> {
    let deadline = Instant::now() + PROPAGATION_TIMEOUT;
    loop {
        let found = partition_count(Arc::clone(admin), topic.clone()).await?;
        if usize::try_from(configured) == Ok(found) {
            return Ok(());
        }
        if found > 0 {
            return Err(TopicsError::Partitions { topic, found, configured });
        }
        if Instant::now() >= deadline {
            return Err(TopicsError::NotVisibleYet(topic));
        }
        sleep(PROPAGATION_POLL_INTERVAL).await;
    }
}

/// Number of a topic's partitions; 0 while it is not in the metadata.
async fn partition_count(
    admin: Arc<AdminClient<KafkaLogContext>>,
    topic: String,
) -> Result<usize, TopicsError> {
    let metadata =
        tokio::task::spawn_blocking(move || admin.inner().fetch_metadata(Some(&topic), BROKER_TIMEOUT))
            .await
            .map_err(|_| TopicsError::Cancelled)??;
    Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len()))
}
