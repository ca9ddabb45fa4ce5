//! Read models in a namespace of the test, and an API over them.

mod api;
mod waits;
mod world;

pub(crate) use api::{Answer, Api, all_pages};
pub(crate) use waits::Waits;
pub(crate) use world::{DEAD_MYSQL, DEAD_REDIS, NOW, World};
