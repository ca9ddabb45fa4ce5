//! The command line of the projectors.

use clap::{Args, Parser, Subcommand};
use vidlog_service_kit::config::{Log, Stores, Telemetry};

use crate::{
    as_of::{self, Until},
    projection::Projection,
    projections,
};

/// Folds the event log of vidlog into its read models.
#[derive(Debug, Parser)]
#[command(name = "projectors", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run projections until asked to stop.
    Run(Run),
    /// List the projections.
    List,
    /// Fold the log anew and compare every key and row with the views. Exit code 1 if any differs.
    Audit(Audit),
    /// Fold a view anew beside the one that serves, compare the two, and switch. Exit code 1 if they differ.
    ///
    /// Cut off at any moment, it goes on where it was when it is run again; the old view serves until the switch.
    Rebuild(Rebuild),
    /// Fold a scratch namespace up to a time or a position: what the state was then.
    AsOf(AsOf),
}

/// Settings of `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// The projections to run, by name; all of them if none is given.
    #[arg(long, num_args = 1.., value_parser = parse_projection)]
    pub only: Vec<Projection>,
    /// Address of `/livez`, `/readyz` and `/metrics`. Not for the public.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18084")]
    pub ops_listen: String,
    /// Where the log is.
    #[command(flatten)]
    pub log: Log,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
    /// What is logged.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// Settings of `audit`.
#[derive(Args, Debug)]
pub struct Audit {
    /// Where the log is.
    #[command(flatten)]
    pub log: Log,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
}

/// Settings of `rebuild`.
#[derive(Args, Debug)]
pub struct Rebuild {
    /// The projection, by name.
    #[arg(value_parser = parse_projection)]
    pub projection: Projection,
    /// Switch even if the two differ: the fold was changed, or the view that serves is wrong.
    #[arg(long)]
    pub take_over: bool,
    /// Drop what a rebuild that was cut off has left, and do nothing else.
    #[arg(long, conflicts_with = "take_over")]
    pub drop: bool,
    /// Where the log is.
    #[command(flatten)]
    pub log: Log,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
}

/// Settings of `as-of`.
#[derive(Args, Debug)]
pub struct AsOf {
    /// What the scratch namespace is to be called.
    pub name: as_of::Name,
    /// A time, such as 2026-01-31T18:00:00Z: what was appended before it. Or positions, such as likes:3:1042: what was
    /// before them, and elsewhere no later.
    #[arg(long, required_unless_present = "drop")]
    pub until: Option<Until>,
    /// Remove the scratch namespace.
    #[arg(long, conflicts_with = "until")]
    pub drop: bool,
    /// Where the log is.
    #[command(flatten)]
    pub log: Log,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
}

fn parse_projection(name: &str) -> Result<Projection, String> {
    projections::find(name)
        .ok_or_else(|| format!("there is no projection {name:?}; `projectors list` names those there are"))
}
