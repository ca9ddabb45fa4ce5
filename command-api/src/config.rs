//! The settings of the command API. Each is a flag and an environment variable.

use clap::{Args, Parser};
use vidlog_contract::{config::ApiConfig, limits};
use vidlog_service_kit::config::{Log, Stores, Telemetry};

use crate::topics::Layout;

/// Takes the write requests of vidlog: decides them, and appends their events to the log.
#[derive(Debug, Parser)]
#[command(name = "command-api", version)]
pub struct Cli {
    /// Where the client finds it.
    #[arg(long, env = "VIDLOG_LISTEN", default_value = "127.0.0.1:18080")]
    pub listen: String,
    /// Address of `/livez`, `/readyz` and `/metrics`. Not for the public.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18082")]
    pub ops_listen: String,
    /// What it has to itself.
    #[command(flatten)]
    pub command: CommandConfig,
    /// What it shares with its neighbours.
    #[command(flatten)]
    pub api: ApiConfig,
    /// Where the log is.
    #[command(flatten)]
    pub log: Log,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
    /// What is logged.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// Settings that the command side has to itself.
#[derive(Args, Clone, Debug)]
pub struct CommandConfig {
    /// Partitions of every topic; fixed when a namespace is created.
    #[arg(long, env = "VIDLOG_PARTITIONS", default_value_t = vidlog_events::PARTITIONS)]
    pub partitions: i32,
    /// Copies of every partition: 1 on one broker, 3 in production.
    #[arg(long, env = "VIDLOG_REPLICATION", default_value_t = 1)]
    pub replication: i32,
    /// Connections to MySQL.
    #[arg(long, env = "VIDLOG_COMMAND_MYSQL_CONNECTIONS", default_value_t = 32)]
    pub command_mysql_connections: u32,
    /// The largest upload, in bytes.
    #[arg(long, env = "VIDLOG_MAX_UPLOAD_BYTES", default_value_t = limits::UPLOAD_BYTES)]
    pub max_upload_bytes: u64,
    /// Uploads that are received at once; each takes up to 15 MB of memory.
    #[arg(long, env = "VIDLOG_MAX_UPLOADS", default_value_t = 64)]
    pub max_uploads: usize,
}

impl CommandConfig {
    pub(crate) const fn layout(&self) -> Layout {
        Layout { partitions: self.partitions, replication: self.replication }
    }
}
