//! Runs the command API as its own process.

use clap::Parser;
use tracing::info;
use vidlog_command_api::{
    Settings, colliding_names,
    config::{Cli, Task},
    start,
};
use vidlog_contract::{error::too_many_connections, http::allow_origins};
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
    if let Some(Task::CollidingNames) = cli.task {
        print!("{}", colliding_names::list(&cli.stores).await?);
        return Ok(());
    }
    open_files::raise_limit(cli.api.connections.max_connections);
    let shutdown = Shutdown::on_signal()?;
    let (listener, ops_listener) = (bind(&cli.listen).await?, bind(&cli.ops_listen).await?);
    let settings = Settings {
        media_base: cli.api.public_base(&cli.listen),
        command: cli.command,
        api: cli.api,
        limits: cli.limits,
        log: cli.log,
        stores: cli.stores,
        clock: Clock::system(),
    };
    let readiness = Readiness::new();
    let api = start(&settings, &readiness).await?;
    let router = allow_origins(api.router(), &settings.api.cors_origins);
    let ops = ops::router(readiness, metrics, shutdown.clone());
    info!(listen = cli.listen, ops_listen = cli.ops_listen, "command-api listening");
    let server = Server::api(router, settings.api.connections, settings.limits.peers(), too_many_connections);
    tokio::join!(server.serve(listener, shutdown.clone()), serve(ops_listener, ops, shutdown));
    api.stop().await;
    Ok(())
}
