//! Infrastructure that all processes share: store handles, configuration, telemetry, the ops endpoints, a clock,
//! shutdown. It has no domain logic.

pub mod clock;
pub mod config;
pub mod failpoint;
pub mod mysql;
pub mod objects;
pub mod open_files;
pub mod ops;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
