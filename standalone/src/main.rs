//! Starts all of vidlog in this process.

use std::net::SocketAddr;

use clap::Parser;
use tokio::net::TcpListener;
use vidlog_service_kit::{open_files, serve::bind, shutdown::Shutdown, telemetry};
use vidlog_standalone::{Cli, Listeners, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let metrics = telemetry::start(&cli.telemetry)?;
    open_files::raise_limit(cli.api.connections.max_connections);
    let shutdown = Shutdown::on_signal()?;
    let listeners = Listeners { api: bind(&cli.listen).await?, ops: bind(&cli.ops_listen).await? };
    // With port 0 the caller reads the actual addresses from here.
    println!("api http://{}", address(&listeners.api)?);
    println!("ops http://{}", address(&listeners.ops)?);
    Box::pin(run(cli, listeners, metrics, shutdown)).await
}

fn address(listener: &TcpListener) -> std::io::Result<SocketAddr> {
    listener.local_addr()
}
