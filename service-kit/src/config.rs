//! Settings that every service shares. Each is a flag and an environment variable.

use clap::Args;

/// Long enough for a pause of the machine, short enough that a dead instance is soon replaced.
pub const SESSION_TIMEOUT_MS: u32 = 10_000;

/// Where the log is: nothing that the query side is to know.
#[derive(Args, Clone, Debug)]
pub struct Log {
    /// Kafka brokers, host:port, comma separated.
    #[arg(long, env = "VIDLOG_KAFKA_BROKERS")]
    pub kafka_brokers: String,
    /// A consumer that was not heard of for so long, in milliseconds, loses its partitions. The broker has bounds for it,
    /// from 6000 on unless it is told otherwise.
    #[arg(long, env = "VIDLOG_SESSION_TIMEOUT_MS", default_value_t = SESSION_TIMEOUT_MS)]
    pub session_timeout_ms: u32,
}

/// Where the stores are, and what of them is vidlog's.
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

/// What a process tells about itself.
#[derive(Args, Clone, Debug)]
pub struct Telemetry {
    /// What is logged: `info`, `debug`, or directives such as `info,vidlog_projectors=debug`.
    #[arg(long, env = "VIDLOG_LOG", default_value = "info")]
    pub log: String,
    /// How it is logged.
    #[arg(long, env = "VIDLOG_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A setting with a password in it: `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The setting, for the client that needs it.
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
