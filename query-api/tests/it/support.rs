//! A namespace of a test's own with read models to fill, and an API over it.

mod api;
mod world;

pub(crate) use api::{Answer, Api, all_pages};
pub(crate) use world::{DEAD_MYSQL, DEAD_REDIS, NOW, World};
