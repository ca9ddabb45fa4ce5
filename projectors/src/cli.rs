//! The command line of the projectors.

pub mod dead_letters;

use self::dead_letters::DeadLetters;
use crate::{
    as_of::{self, Until},
    projections,
};
use clap::{Args, Parser, Subcommand};
use vidlog_projection_engine::view::Projection;
use vidlog_service_kit::config::{Log, Secret, Stores, Telemetry};

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
    /// How the projections are: position, lag, state, rate and errors of each partition.
    Status(Look),
    /// Have projections stand still until they are resumed, whatever is restarted meanwhile.
    Pause(Choose),
    /// Have projections go on that were paused, or that stopped themselves.
    Resume(Choose),
    /// Fold the log anew and compare every key and row with the views. Exit code 1 if any differs.
    Audit(Look),
    /// Fold a view anew beside the one that serves, compare the two, and switch. Exit code 1 if they differ.
    ///
    /// Cut off at any moment, it goes on where it was when it is run again; the old view serves until the switch.
    Rebuild(Rebuild),
    /// Fold a scratch namespace up to a time or a position: what the state was then.
    AsOf(AsOf),
    /// See the records that could not be folded, and say what is to become of them.
    DeadLetters(DeadLetters),
}

/// Settings of `run`.
#[derive(Args, Debug)]
pub struct Run {
    /// The projections to run, by name; all of them if none is given.
    #[arg(long, num_args = 1.., value_parser = projections::parse)]
    pub only: Vec<Projection>,
    /// Address of `/livez`, `/readyz`, `/metrics` and `/projections`. Not for the public.
    #[arg(long, env = "VIDLOG_OPS_LISTEN", default_value = "127.0.0.1:18084")]
    pub ops_listen: String,
    /// How they are operated.
    #[command(flatten)]
    pub operation: Operation,
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

/// How the projections of a process are operated.
#[derive(Args, Clone, Debug)]
pub struct Operation {
    /// The name of this process among those that run the same projections. With a name its partitions wait for it while
    /// it restarts, for the session timeout. No two processes may have the same.
    #[arg(long, env = "VIDLOG_INSTANCE")]
    pub instance: Option<String>,
    /// Who has this token may look at the projections and operate them on the ops port, as `Authorization: Bearer`.
    /// Without one nobody may.
    #[arg(long, env = "VIDLOG_OPS_TOKEN", hide_env_values = true)]
    pub ops_token: Option<Secret>,
    /// Audit the projections of this process again and again, with a pause of so many seconds.
    #[arg(long, env = "VIDLOG_AUDIT_EVERY", value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_every: Option<u64>,
}

/// Settings of `status` and `audit`.
#[derive(Args, Debug)]
pub struct Look {
    /// The projections, by name; all of them if none is given.
    #[arg(value_parser = projections::parse)]
    pub projections: Vec<Projection>,
    /// For programs.
    #[arg(long)]
    pub json: bool,
    /// Where the log is.
    #[command(flatten)]
    pub log: Log,
    /// Where the stores are.
    #[command(flatten)]
    pub stores: Stores,
}

/// Settings of `pause` and `resume`.
#[derive(Args, Debug)]
pub struct Choose {
    /// The projections, by name.
    #[arg(required = true, value_parser = projections::parse)]
    pub projections: Vec<Projection>,
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
    #[arg(value_parser = projections::parse)]
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
