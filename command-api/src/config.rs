//! The settings of the command API. Each is a flag and an environment variable.

use clap::{Args, Parser, Subcommand};
use vidlog_contract::{config::ApiConfig, limits};
use vidlog_rate_limits::RateLimitConfig;
use vidlog_service_kit::config::{Kafka, Stores, Telemetry};

use crate::topics::Layout;

/// Serves the write requests of vidlog: validates them and appends their events to the log.
#[derive(Debug, Parser)]
#[command(name = "command-api", version)]
pub struct Cli {
    /// What to do instead of serving requests.
    #[command(subcommand)]
    pub task: Option<Task>,
    /// Listen address of the API.
    #[arg(long, env = "VIDLOG_LISTEN", default_value = "127.0.0.1:18080")]
    pub listen: String,
    /// Listen address of `/livez`, `/readyz` and `/metrics`. Keep it private.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18082")]
    pub ops_listen: String,
    /// Settings of the command side alone.
    #[command(flatten)]
    pub command: CommandConfig,
    /// Settings shared by both APIs.
    #[command(flatten)]
    pub api: ApiConfig,
    /// Rate limits.
    #[command(flatten)]
    pub limits: RateLimitConfig,
    /// Connection settings of the log.
    #[command(flatten)]
    pub log: Kafka,
    /// Connection settings of the stores.
    #[command(flatten)]
    pub stores: Stores,
    /// Log settings.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// What command-api does instead of serving requests.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Task {
    /// List accounts of earlier versions whose names look the same.
    CollidingNames,
}

/// Settings of the command side.
#[derive(Args, Clone, Debug)]
pub struct CommandConfig {
    /// Partitions per topic. Fixed once a namespace has topics.
    #[arg(long, env = "VIDLOG_PARTITIONS", default_value_t = vidlog_events::PARTITIONS)]
    pub partitions: i32,
    /// Replicas per partition: 1 on a single broker, 3 in production.
    #[arg(long, env = "VIDLOG_REPLICATION", default_value_t = 1)]
    pub replication: i32,
    /// Maximum number of MySQL connections.
    #[arg(long, env = "VIDLOG_COMMAND_MYSQL_CONNECTIONS", default_value_t = 32)]
    pub command_mysql_connections: u32,
    /// Maximum size of an upload, in bytes.
    #[arg(long, env = "VIDLOG_MAX_UPLOAD_BYTES", default_value_t = limits::UPLOAD_BYTES)]
    pub max_upload_bytes: u64,
    /// Maximum number of concurrent uploads. Each takes up to 15 MB of memory. Uploads whose file precedes the token get
    /// at most a quarter of them, and each address a quarter of that.
    #[arg(long, env = "VIDLOG_MAX_UPLOADS", default_value_t = 64)]
    pub max_uploads: usize,
    /// Maximum number of concurrent uploads of a user.
    #[arg(long, env = "VIDLOG_MAX_UPLOADS_PER_USER", default_value_t = 4)]
    pub max_uploads_per_user: usize,
}

impl CommandConfig {
    pub(crate) const fn layout(&self) -> Layout {
        Layout { partitions: self.partitions, replication: self.replication }
    }
}
