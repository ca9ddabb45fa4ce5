//! What every handler works with.

use std::sync::Arc;

use axum::extract::FromRef;
use object_store::ObjectStore;
use sqlx::MySqlPool;
use tokio::sync::Semaphore;
use vidlog_contract::Tokens;
use vidlog_read_models::ReadModels;
use vidlog_service_kit::clock::Clock;

use crate::{ids::IdGenerator, passwords::Passwords, publisher::EventLog};

/// What every handler works with. Clones share all of it.
#[derive(Clone)]
pub struct CommandState {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Makes entity ids.
    pub ids: IdGenerator,
    /// Signs and verifies tokens.
    pub tokens: Tokens,
    /// Hashes and verifies passwords.
    pub passwords: Passwords,
    /// Facts, and who appears in an answer.
    pub read_models: ReadModels,
    /// The time.
    pub clock: Clock,
    /// The command side's own tables.
    pub mysql: MySqlPool,
    /// Media, as they were uploaded and as they are served.
    pub objects: Arc<dyn ObjectStore>,
    /// The largest upload, in bytes.
    pub max_upload_bytes: u64,
    /// A slot for each upload that is received at once: each takes some memory.
    pub upload_slots: Arc<Semaphore>,
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
