//! What every process of vidlog needs and none should write again: store handles, configuration, telemetry, the
//! ops endpoints, a clock, shutdown. There is no domain in here.

pub mod clock;
pub mod config;
pub mod failpoint;
pub mod mysql;
pub mod objects;
pub mod ops;
pub mod serve;
pub mod shutdown;
pub mod telemetry;
