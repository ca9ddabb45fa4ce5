//! Settings that several services share. Each is a flag and an environment variable.

use clap::Args;

/// Default session timeout of a consumer: longer than a short stall of the machine, short enough to replace a dead
/// instance soon.
pub const SESSION_TIMEOUT_MS: u32 = 10_000;

/// Settings of Kafka. The query side has none: it must not depend on the log.
#[derive(Args, Clone, Debug)]
pub struct Kafka {
    /// Kafka brokers, host:port, comma separated.
    #[arg(long, env = "VIDLOG_KAFKA_BROKERS")]
    pub kafka_brokers: String,
    /// Milliseconds without a heartbeat after which a consumer loses its partitions. The broker sets bounds; its
    /// default minimum is 6000.
    #[arg(long, env = "VIDLOG_SESSION_TIMEOUT_MS", default_value_t = SESSION_TIMEOUT_MS)]
    pub session_timeout_ms: u32,
}

/// Addresses of the stores, and the namespace within them.
#[derive(Args, Clone, Debug)]
pub struct Stores {
    /// Prefix of every topic, consumer group and Redis key.
    #[arg(long, env = "VIDLOG_NAMESPACE", default_value = "vidlog")]
    pub namespace: String,
    /// MySQL, as `mysql://user:password@host:port/database`.
    #[arg(long, env = "VIDLOG_MYSQL_URL", hide_env_values = true)]
    pub mysql_url: Secret,
    /// Redis, as `redis://user:password@host:port/`, or `redis-cluster://user:password@host:port,host:port/` with some
    /// nodes of a Redis Cluster; `rediss…` with TLS.
    #[arg(long, env = "VIDLOG_REDIS_URL", hide_env_values = true)]
    pub redis_url: Secret,
    /// Shards of the Redis keys; fixed when a namespace is created.
    #[arg(long, env = "VIDLOG_SHARDS", default_value_t = 16)]
    pub shards: u16,
}

/// Log settings.
#[derive(Args, Clone, Debug)]
pub struct Telemetry {
    /// Log level: `info`, `debug`, or directives such as `info,vidlog_projectors=debug`.
    #[arg(long, env = "VIDLOG_LOG", default_value = "info")]
    pub log: String,
    /// Log format.
    #[arg(long, env = "VIDLOG_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Plain text.
    Text,
    /// One JSON object per line.
    Json,
}

/// A setting that contains a password. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the setting.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        Ok(Self(value.to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}
