//! The command side: validates write requests and appends their events to the log.
//!
//! A handler extracts the parameters, reads facts, calls a pure `decide` function, appends the event, and responds
//! once the broker has acknowledged it. The projectors fold the event into the read models.

pub mod accounts;
pub mod append;
pub mod colliding_names;
pub mod commands;
pub mod config;
pub mod envelope_json;
mod error;
pub mod execute;
mod facts;
pub mod idempotency;
pub mod ids;
pub mod lease;
pub mod media;
mod metrics;
mod mysql;
mod openapi;
pub mod outbox;
mod passwords;
pub mod publisher;
pub mod reply;
pub mod request_context;
mod router;
mod routes;
mod start;
pub mod state;
mod storage;
pub mod topics;
pub mod upload_slots;
pub mod username;

pub use openapi::openapi;
pub use router::{router, routes};
pub use start::{CommandApi, Settings, start};
