//! The settings of the query API. Each is a flag and an environment variable.

use clap::{Args, Parser};
use vidlog_contract::config::ApiConfig;
use vidlog_service_kit::config::{Stores, Telemetry};

/// Answers every GET of the client contract, from Redis and MySQL.
#[derive(Debug, Parser)]
#[command(name = "query-api", version)]
pub struct Cli {
    /// Where the client finds it.
    #[arg(long, env = "VIDLOG_LISTEN", default_value = "127.0.0.1:18079")]
    pub listen: String,
    /// Address of `/livez`, `/readyz` and `/metrics`. Not for the public.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18083")]
    pub ops_listen: String,
    /// What it has to itself.
    #[command(flatten)]
    pub query: QueryConfig,
    /// What it shares with its neighbours.
    #[command(flatten)]
    pub api: ApiConfig,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
    /// What is logged.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// Settings that the query side has to itself.
#[derive(Args, Clone, Debug)]
pub struct QueryConfig {
    /// Requests that are worked on at once; more are answered "too busy".
    #[arg(long, env = "VIDLOG_QUERY_MAX_REQUESTS", default_value_t = 1024)]
    pub query_max_requests: usize,
    /// Connections to MySQL.
    #[arg(long, env = "VIDLOG_QUERY_MYSQL_CONNECTIONS", default_value_t = 32)]
    pub query_mysql_connections: u32,
}
