//! A namespace of a test's own, the command side over it, and the log to look into.

mod api;
mod log;
mod world;

pub(crate) use api::{Answer, Api, Call};
pub(crate) use log::{Log, Logged};
pub(crate) use world::{DEAD_MYSQL, DEAD_REDIS, PARTITIONS, World, dead_kafka, until};
