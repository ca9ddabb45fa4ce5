//! The query API as a separate process.

use clap::Parser;
use tracing::info;
use vidlog_contract::{error::too_many_connections, http::allow_origins};
use vidlog_query_api::{Cli, QueryState, Settings, router};
use vidlog_service_kit::{
    clock::Clock,
    open_files,
    ops::{self, Readiness},
    serve::{Server, bind, serve},
    shutdown::Shutdown,
    telemetry,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let metrics = telemetry::start(&cli.telemetry)?;
    open_files::raise_limit(cli.api.connections.max_connections);
    let shutdown = Shutdown::on_signal()?;
    let media_base = cli.api.public_base(&cli.listen);
    let state = QueryState::open(Settings {
        query: &cli.query,
        api: &cli.api,
        limits: &cli.limits,
        stores: &cli.stores,
        media_base: &media_base,
        clock: Clock::system(),
    })?;
    let router = allow_origins(router(state), &cli.api.cors_origins);
    let ops = ops::router(Readiness::new(), metrics, shutdown.clone());
    let (listener, ops_listener) = (bind(&cli.listen).await?, bind(&cli.ops_listen).await?);
    info!(listen = cli.listen, ops_listen = cli.ops_listen, "query-api listening");
    let server = Server::api(router, cli.api.connections, cli.limits.peers(), too_many_connections);
    tokio::join!(server.serve(listener, shutdown.clone()), serve(ops_listener, ops, shutdown));
    Ok(())
}
