//! Runs all of vidlog in one process behind one address: both APIs, every projection and the media worker. `make run`
//! and the end-to-end tests start it.

mod docs;

use anyhow::Context;
use axum::Router;
use clap::Parser;
use tokio::net::TcpListener;
use tracing::info;
use vidlog_command_api::{
    CommandApi, Settings,
    config::CommandConfig,
    media::{self, MediaConfig, MediaContext, UploadSource},
};
use vidlog_contract::{
    ApiError,
    config::ApiConfig,
    error::too_many_connections,
    http::{allow_origins, merge_slashes},
};
use vidlog_projectors::{Plan, cli::Operation, operator_api, projections};
use vidlog_query_api::{QueryConfig, QueryState};
use vidlog_rate_limits::RateLimitConfig;
use vidlog_service_kit::{
    clock::Clock,
    config::{Kafka, Stores, Telemetry},
    ops::{self, Readiness},
    serve::{Server, serve},
    shutdown::Shutdown,
    telemetry::Metrics,
};

pub use docs::openapi;

/// All of vidlog in one process.
#[derive(Debug, Parser)]
#[command(name = "standalone", version)]
pub struct Cli {
    /// Address of the API.
    #[arg(long, env = "VIDLOG_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
    /// Address of `/livez`, `/readyz`, `/metrics` and `/projections`. Not for the public.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18081")]
    pub ops_listen: String,
    /// Settings that both sides of the API share.
    #[command(flatten)]
    pub api: ApiConfig,
    /// Rate limits.
    #[command(flatten)]
    pub limits: RateLimitConfig,
    /// The command side.
    #[command(flatten)]
    pub command: CommandConfig,
    /// The media worker.
    #[command(flatten)]
    pub media: MediaConfig,
    /// The query side.
    #[command(flatten)]
    pub query: QueryConfig,
    /// Operation of the projections.
    #[command(flatten)]
    pub operation: Operation,
    /// Addresses of the log.
    #[command(flatten)]
    pub log: Kafka,
    /// Addresses of the stores.
    #[command(flatten)]
    pub stores: Stores,
    /// Log level and format.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// The sockets of a process.
pub struct Listeners {
    /// Socket of the API.
    pub api: TcpListener,
    /// Socket of the ops port.
    pub ops: TcpListener,
}

/// Runs until shutdown, then stops accepting requests and completes those in progress.
pub async fn run(cli: Cli, listeners: Listeners, metrics: Metrics, shutdown: Shutdown) -> anyhow::Result<()> {
    let address = listeners.api.local_addr().context("failed to get the address of the API socket")?;
    let media_base = cli.api.public_base(&address.to_string());
    let readiness = Readiness::new();
    let command = start_command_side(&cli, &media_base, &readiness).await?;
    let query = QueryState::open(vidlog_query_api::Settings {
        query: &cli.query,
        api: &cli.api,
        limits: &cli.limits,
        stores: &cli.stores,
        media_base: &media_base,
        clock: Clock::system(),
    })?;
    info!(%address, "standalone started");

    let plan = Plan {
        log: &cli.log,
        stores: &cli.stores,
        projections: &projections::ALL,
        instance: cli.operation.instance.as_deref(),
    };
    let ops = ops::router(readiness.clone(), metrics, shutdown.clone()).merge(operator_api::start(
        &plan,
        &cli.operation,
        &shutdown,
    )?);
    let projections = vidlog_projectors::run(plan, readiness.clone(), shutdown.clone());
    let uploads = UploadSource { log: &cli.log, namespace: &cli.stores.namespace };
    let media = media::run(
        cli.media,
        uploads,
        MediaContext::from_state(&command.state),
        readiness.clone(),
        shutdown.clone(),
    );
    let router = allow_origins(router(&command, query), &cli.api.cors_origins);
    let server = Server::api(router, cli.api.connections, cli.limits.peers(), too_many_connections);
    let ((), (), served) = tokio::join!(
        server.serve(listeners.api, shutdown.clone()),
        serve(listeners.ops, ops, shutdown.clone()),
        async { tokio::try_join!(or_shut_down(projections, &shutdown), or_shut_down(media, &shutdown)) },
    );
    command.stop().await;
    served.map(drop)
}

async fn start_command_side(
    cli: &Cli,
    media_base: &str,
    readiness: &Readiness,
) -> anyhow::Result<CommandApi> {
    let settings = Settings {
        command: cli.command.clone(),
        api: cli.api.clone(),
        limits: cli.limits.clone(),
        log: cli.log.clone(),
        stores: cli.stores.clone(),
        media_base: media_base.to_owned(),
        clock: Clock::system(),
    };
    vidlog_command_api::start(&settings, readiness).await
}

fn router(command: &CommandApi, query: QueryState) -> Router {
    let router = command
        .routes()
        .merge(vidlog_query_api::routes(query))
        .merge(docs::router())
        .fallback(async || ApiError::no_such_path());
    merge_slashes(router)
}

/// Runs a part and shuts the process down when it ends, so that a supervisor can restart all of it.
async fn or_shut_down(
    part: impl Future<Output = anyhow::Result<()>>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let result = part.await;
    shutdown.request();
    result
}
