//! The state shared by all handlers.

use std::sync::Arc;

use axum::extract::FromRef;
use object_store::ObjectStore;
use sqlx::MySqlPool;
use vidlog_contract::Tokens;
use vidlog_rate_limits::RateLimiter;
use vidlog_read_models::ReadModels;
use vidlog_service_kit::clock::Clock;

use crate::{ids::IdGenerator, passwords::Passwords, publisher::EventLog, upload_slots::UploadSlots};

/// The state shared by all handlers. Clones share its contents.
#[derive(Clone)]
pub struct CommandState {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Generates entity ids.
    pub ids: IdGenerator,
    /// Signs and verifies tokens.
    pub tokens: Tokens,
    /// Hashes and verifies passwords.
    pub passwords: Passwords,
    /// Reads the facts that decisions depend on.
    pub read_models: ReadModels,
    /// Counts calls, per user and per address.
    pub limits: RateLimiter,
    /// The clock.
    pub clock: Clock,
    /// The command side's own tables.
    pub mysql: MySqlPool,
    /// Stores originals and published media.
    pub objects: Arc<dyn ObjectStore>,
    /// Maximum size of an upload, in bytes.
    pub max_upload_bytes: u64,
    /// One slot per concurrent upload.
    pub upload_slots: UploadSlots,
}

impl FromRef<CommandState> for Clock {
    fn from_ref(state: &CommandState) -> Self {
        state.clock.clone()
    }
}

impl FromRef<CommandState> for Tokens {
    fn from_ref(state: &CommandState) -> Self {
        state.tokens.clone()
    }
}
