//! Projectors: fold the event log into the read models.
//!
//! This crate has the code that depends on events and on operators: the projections, and the commands that
//! operate them. The generic part is in the projection engine; the modules that other crates need are
//! re-exported here.

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
