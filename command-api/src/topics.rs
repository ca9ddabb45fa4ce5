//! Creates the topics: one a stream, with explicit partitions and settings.

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

use crate::publisher::Logging;

/// How long one question to the broker may take.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a topic may take to be known after the broker said that it is created.
const PROPAGATION_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks for it.
const PROPAGATION_POLL: Duration = Duration::from_millis(50);

/// How topics are laid out on the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Partitions of every topic. It can't change for a topic that has data.
    pub partitions: i32,
    /// Copies of every partition.
    pub replication: i32,
}

impl Layout {
    /// A write is acknowledged once a majority of the copies has it.
    const fn min_insync_replicas(self) -> i32 {
        self.replication / 2 + 1
    }
}

/// Why the topics are not there as they must be.
#[derive(Debug, Error)]
pub enum TopicsError {
    /// The broker can't be reached or would not do it. Try again.
    #[error("the broker did not answer: {0}")]
    Kafka(#[from] KafkaError),
    /// The broker refused one topic.
    #[error("failed to create topic {topic}: {code}")]
    Refused {
        /// The topic.
        topic: String,
        /// The broker's reason.
        code: RDKafkaErrorCode,
    },
    /// A topic has another number of partitions than is configured: keys would move, and their order be lost.
    #[error(
        "topic {topic} has {found} partitions, but {configured} are configured; partitions of a topic \
         with data can't be changed: set the configuration to {found}, or use another namespace"
    )]
    Partitions {
        /// The topic.
        topic: String,
        /// How many it has.
        found: usize,
        /// How many it should have.
        configured: i32,
    },
    /// A topic that was created is still not known.
    #[error("topic {0} was created but is not known to the broker yet")]
    NotThereYet(String),
    /// The task that asks the broker was cancelled.
    #[error("asking the broker was cancelled")]
    Cancelled,
}

/// Makes sure that the topic of every stream is there. Doing it again, or several processes at once, is harmless.
pub async fn create_topics(brokers: &str, topics: &Topics, layout: Layout) -> Result<(), TopicsError> {
    let admin: AdminClient<Logging> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("client.id", "vidlog-topics")
        .create_with_context(Logging)?;
    let admin = Arc::new(admin);
    let names = Stream::ALL.map(|stream| topics.name(stream));
    create(&admin, &names, layout).await?;
    for name in names {
        verify(&admin, name, layout.partitions).await?;
    }
    Ok(())
}

async fn create(admin: &AdminClient<Logging>, names: &[String], layout: Layout) -> Result<(), TopicsError> {
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
            Ok(topic) => info!(topic, partitions = layout.partitions, "created a topic"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(TopicsError::Refused { topic, code }),
        }
    }
    Ok(())
}

async fn verify(
    admin: &Arc<AdminClient<Logging>>,
    topic: String,
    configured: i32,
) -> Result<(), TopicsError> {
    let deadline = Instant::now() + PROPAGATION_TIMEOUT;
    loop {
        let found = partitions_of(Arc::clone(admin), topic.clone()).await?;
        if usize::try_from(configured) == Ok(found) {
            return Ok(());
        }
        if found > 0 {
            return Err(TopicsError::Partitions { topic, found, configured });
        }
        if Instant::now() >= deadline {
            return Err(TopicsError::NotThereYet(topic));
        }
        sleep(PROPAGATION_POLL).await;
    }
}

/// The topic's partitions; 0 while the broker does not know it.
async fn partitions_of(admin: Arc<AdminClient<Logging>>, topic: String) -> Result<usize, TopicsError> {
    let metadata =
        tokio::task::spawn_blocking(move || admin.inner().fetch_metadata(Some(&topic), BROKER_TIMEOUT))
            .await
            .map_err(|_| TopicsError::Cancelled)??;
    Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len()))
}
