//! The command side: takes the write requests, decides them, and appends their events to the log.
//!
//! A handler extracts what is asked for, reads facts, lets a pure function decide, appends the event, and answers
//! once the broker has acknowledged it. What a command changes is seen in the read models, where others fold it.

pub mod accounts;
pub mod append;
pub mod commands;
pub mod config;
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
pub mod origin;
pub mod outbox;
mod passwords;
pub mod publisher;
pub mod reply;
mod router;
mod routes;
mod start;
pub mod state;
mod storage;
pub mod stored;
pub mod topics;

pub use openapi::openapi;
pub use router::{router, routes};
pub use start::{CommandApi, Settings, start};
