//! The projectors: they fold the log into the read models.
//!
//! This crate has the code that knows events and operators: the projections, and what operators do with them. All else
//! is the projection engine's, of which it gives on what the other crates need.

pub mod as_of;
pub mod audit;
pub mod cli;
pub mod comparison;
mod metrics;
pub mod operator;
pub mod operator_api;
pub mod projections;
pub mod rebuild;
mod run;
pub mod status;

pub use vidlog_projection_engine::{dead_letters, desired_state, log, replay, store, view};

pub use self::run::{Plan, run};
