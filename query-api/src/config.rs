//! The settings of the query API. Each is a flag and an environment variable.

use clap::{Args, Parser};
use vidlog_contract::config::ApiConfig;
use vidlog_rate_limits::RateLimitConfig;
use vidlog_service_kit::config::{Stores, Telemetry};

/// Serves every GET of the client contract from Redis and MySQL.
#[derive(Debug, Parser)]
#[command(name = "query-api", version)]
pub struct Cli {
    /// Address of the API.
    #[arg(long, env = "VIDLOG_LISTEN", default_value = "127.0.0.1:18079")]
    pub listen: String,
    /// Address of `/livez`, `/readyz` and `/metrics`. Not for the public.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18083")]
    pub ops_listen: String,
    /// Settings of the query API.
    #[command(flatten)]
    pub query: QueryConfig,
    /// Settings that both APIs share.
    #[command(flatten)]
    pub api: ApiConfig,
    /// Rate limits.
    #[command(flatten)]
    pub limits: RateLimitConfig,
    /// Addresses of the stores.
    #[command(flatten)]
    pub stores: Stores,
    /// Logging.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// Settings of the query API alone.
#[derive(Args, Clone, Debug)]
pub struct QueryConfig {
    /// Concurrent requests; further ones are rejected with 503.
    #[arg(long, env = "VIDLOG_QUERY_MAX_REQUESTS", default_value_t = 1024)]
    pub query_max_requests: usize,
    /// MySQL connections.
    #[arg(long, env = "VIDLOG_QUERY_MYSQL_CONNECTIONS", default_value_t = 32)]
    pub query_mysql_connections: u32,
}
