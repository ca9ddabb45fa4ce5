//! Command line of the projectors.

pub mod dead_letters;

use self::dead_letters::DeadLetters;
use crate::{
    as_of::{self, Until},
    projections,
};
use clap::{Args, Parser, Subcommand};
use vidlog_projection_engine::view::Projection;
use vidlog_service_kit::config::{Kafka, Secret, Stores, Telemetry};

/// Folds the event log of vidlog into its read models.
#[derive(Debug, Parser)]
#[command(name = "projectors", version)]
pub struct Cli {
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Command to run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run projections until SIGTERM or SIGINT.
    Run(Run),
    /// List the projections.
    List,
    /// Show position, lag, state, rate and errors of each partition.
    Status(InspectArgs),
    /// Pause projections until `resume`; a pause survives restarts.
    Pause(ControlArgs),
    /// Resume projections that were paused or that stopped themselves.
    Resume(ControlArgs),
    /// Fold the log with independent code and compare every key and row with the views. Exit code 1 if any
    /// differs.
    Audit(InspectArgs),
    /// Fold a new generation of a view, compare it with the live one, and switch. Exit code 1 if they differ.
    ///
    /// An interrupted rebuild continues where it stopped when you run the command again. The old generation
    /// serves until the switch.
    Rebuild(Rebuild),
    /// Fold the log into a scratch namespace up to a time or a position, to inspect an earlier state.
    AsOf(AsOf),
    /// List, show, retry or discard the records that failed to fold.
    DeadLetters(DeadLetters),
}

/// Settings of `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// Names of the projections to run; all by default.
    #[arg(long, num_args = 1.., value_parser = projections::parse)]
    pub only: Vec<Projection>,
    /// Address of `/livez`, `/readyz`, `/metrics` and `/projections`. Do not expose it to the public.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18084")]
    pub ops_listen: String,
    /// Operation settings.
    #[command(flatten)]
    pub operation: Operation,
    /// Connection to Kafka.
    #[command(flatten)]
    pub log: Kafka,
    /// Connections to MySQL and Redis.
    #[command(flatten)]
    pub stores: Stores,
    /// Telemetry settings.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// Settings for operating the projections of a process.
#[derive(Args, Clone, Debug)]
pub struct Operation {
    /// Name of this process in its consumer groups (`group.instance.id`): after a restart within the session
    /// timeout it gets the same partitions back. Must be unique among the processes that run the same
    /// projections.
    #[arg(long, env = "VIDLOG_INSTANCE")]
    pub instance: Option<String>,
    /// Bearer token for `/projections` on the ops port, which shows and operates the projections. Without a
    /// token these routes refuse every request.
    #[arg(long, env = "VIDLOG_OPS_TOKEN", hide_env_values = true)]
    pub ops_token: Option<Secret>,
    /// Audit the projections of this process repeatedly, with a pause of this many seconds between two
    /// rounds.
    #[arg(long, env = "VIDLOG_AUDIT_EVERY", value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_every: Option<u64>,
}

/// Settings of `status` and `audit`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Names of the projections; all by default.
    #[arg(value_parser = projections::parse)]
    pub projections: Vec<Projection>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Connection to Kafka.
    #[command(flatten)]
    pub log: Kafka,
    /// Connections to MySQL and Redis.
    #[command(flatten)]
    pub stores: Stores,
}

/// Settings of `pause` and `resume`.
#[derive(Args, Debug)]
pub struct ControlArgs {
    /// Names of the projections.
    #[arg(required = true, value_parser = projections::parse)]
    pub projections: Vec<Projection>,
    /// Connection to Kafka.
    #[command(flatten)]
    pub log: Kafka,
    /// Connections to MySQL and Redis.
    #[command(flatten)]
    pub stores: Stores,
}

/// Settings of `rebuild`.
#[derive(Args, Debug)]
pub struct Rebuild {
    /// Name of the projection.
    #[arg(value_parser = projections::parse)]
    pub projection: Projection,
    /// Switch even if the generations differ: after a change of the fold, or if the live view is wrong.
    #[arg(long)]
    pub take_over: bool,
    /// Drop what earlier rebuilds left, without a rebuild.
    #[arg(long, conflicts_with = "take_over")]
    pub drop: bool,
    /// Connection to Kafka.
    #[command(flatten)]
    pub log: Kafka,
    /// Connections to MySQL and Redis.
    #[command(flatten)]
    pub stores: Stores,
}

/// Settings of `as-of`.
#[derive(Args, Debug)]
pub struct AsOf {
    /// Name of the scratch namespace: a-z, 0-9 and _.
    pub name: as_of::Name,
    /// Time such as 2026-01-31T18:00:00Z: fold the records that were appended before it. Or positions such as
    /// likes:3:1042: fold the records before these offsets, and in other partitions those that were appended
    /// no later.
    #[arg(long, required_unless_present = "drop")]
    pub until: Option<Until>,
    /// Drop the scratch namespace.
    #[arg(long, conflicts_with = "until")]
    pub drop: bool,
    /// Connection to Kafka.
    #[command(flatten)]
    pub log: Kafka,
    /// Connections to MySQL and Redis.
    #[command(flatten)]
    pub stores: Stores,
}
