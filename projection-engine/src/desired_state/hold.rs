//! Holds stop a projection for a moment, so that its view can be read at one position.
//!
//! A hold expires on its own, so a crashed holder cannot block the projection. Callers own the view lock: two holders would
//! release each other's hold.

use std::time::Duration;

use sqlx::MySqlPool;
use tokio::time::Instant;
use tracing::warn;

use crate::{desired_state, view::Projection};

/// The longest hold. A reader waits 2 s for its own write, and the projection needs some time to resume.
const HOLD: Duration = Duration::from_millis(1500);
/// The end of a hold that is reserved for its last steps: a statement or two in each store.
const RESERVE: Duration = Duration::from_millis(300);
/// Interval between two checks whether the position of a held view has converged.
pub const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Maximum of attempts to hold a projection.
pub const HOLDS: u32 = 10;
/// Interval between two holds, during which waiting readers catch up.
pub const BETWEEN_HOLDS: Duration = Duration::from_secs(2);

/// A hold.
pub struct Hold<'a> {
    pool: &'a MySqlPool,
    projection: Projection,
    until_ms: i64,
    reserve_at: Instant,
}

impl<'a> Hold<'a> {
    /// Begins a hold. Every process has read it after a few polls of the desired state.
    pub async fn begin(pool: &'a MySqlPool, projection: Projection) -> sqlx::Result<Self> {
        let reserve_at = Instant::now() + HOLD - RESERVE;
        let until_ms = desired_state::hold(pool, &projection, HOLD).await?;
        Ok(Self { pool, projection, until_ms, reserve_at })
    }

    /// Whether only the last steps may begin.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.reserve_at
    }

    /// Extends the hold for its last steps. Returns false if it expired.
    pub async fn extend(&mut self) -> sqlx::Result<bool> {
        let extended = desired_state::extend_hold(self.pool, &self.projection, self.until_ms, HOLD).await?;
        self.until_ms = extended.unwrap_or(self.until_ms);
        Ok(extended.is_some())
    }

    /// Renames tables. Returns false if the hold expired, or if the tables were in use.
    pub async fn rename(&mut self, moves: &str) -> sqlx::Result<bool> {
        let until_ms = self.until_ms;
        self.until_ms += i64::try_from(HOLD.as_millis()).unwrap_or_default();
        desired_state::rename_while_held(self.pool, &self.projection, (until_ms, self.until_ms), moves).await
    }

    /// Ends the hold.
    pub async fn end(self) {
        if let Err(error) = desired_state::end_hold(self.pool, &self.projection, self.until_ms).await {
            warn!(projection = self.projection.name(), %error, "failed to end a hold, it expires on its own");
        }
    }
}
