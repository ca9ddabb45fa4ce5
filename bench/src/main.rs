//! Measures the programs as they are deployed: release builds, real services, calls over HTTP. `make bench` runs it.
//!
//! A measurement is a comparison: the same work with and without what could slow it down, in alternating rounds, or
//! beside the ceiling of the machine.

mod media;
mod registrations;
mod spread;
mod system;

use clap::{Parser, Subcommand};

use crate::system::Services;

/// Measures vidlog on the services of this machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    measurement: Measurement,
    #[command(flatten)]
    services: Services,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// Time to publish uploads, with and without others whose originals are lost.
    Media(media::Settings),
    /// Simultaneous registrations: failures, time, and memory.
    Registrations(registrations::Settings),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.measurement {
        Measurement::Media(settings) => media::measure(&settings, &cli.services).await,
        Measurement::Registrations(settings) => registrations::measure(&settings, &cli.services).await,
    }
}
