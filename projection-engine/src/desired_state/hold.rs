//! A moment in which a projection stands still, so that its view can be read at one position.
//!
//! A hold ends by itself, so that it outlives nobody. Whoever asks for one has the view's lock: two would end each other's.

use std::time::Duration;

use sqlx::MySqlPool;
use tokio::time::Instant;
use tracing::warn;

use crate::{desired_state, view::Projection};

/// How long a projection is held at most. A reader waits for its own write for 2 s, and the projection needs some time to
/// go on after it.
const HOLD: Duration = Duration::from_millis(1500);
/// What is kept of it for its last steps: a statement or two in each store.
const LET_GO: Duration = Duration::from_millis(300);
/// Between two looks whether a view that is held has come to rest.
pub const LOOK: Duration = Duration::from_millis(20);
/// Holds until it is given up.
pub const HOLDS: u32 = 10;
/// Between two holds, for readers that wait.
pub const BETWEEN_HOLDS: Duration = Duration::from_secs(2);

/// A hold.
pub struct Hold<'a> {
    pool: &'a MySqlPool,
    projection: Projection,
    until_ms: i64,
    over: Instant,
}

impl<'a> Hold<'a> {
    /// Begins one. That every process knows of it takes several times of asking.
    pub async fn begin(pool: &'a MySqlPool, projection: Projection) -> sqlx::Result<Self> {
        let over = Instant::now() + HOLD - LET_GO;
        let until_ms = desired_state::hold(pool, &projection, HOLD).await?;
        Ok(Self { pool, projection, until_ms, over })
    }

    /// Whether nothing but its last steps may be begun any more.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.over
    }

    /// Prolongs it for its last steps; false if it has ended already.
    pub async fn prolong(&mut self) -> sqlx::Result<bool> {
        let prolonged = desired_state::prolong_hold(self.pool, &self.projection, self.until_ms, HOLD).await?;
        self.until_ms = prolonged.unwrap_or(self.until_ms);
        Ok(prolonged.is_some())
    }

    /// Renames tables, if it has not ended; false if it has, or they were in use.
    pub async fn rename(&mut self, moves: &str) -> sqlx::Result<bool> {
        let until_ms = self.until_ms;
        self.until_ms += i64::try_from(HOLD.as_millis()).unwrap_or_default();
        desired_state::rename_while_held(self.pool, &self.projection, (until_ms, self.until_ms), moves).await
    }

    /// Ends it.
    pub async fn end(self) {
        if let Err(error) = desired_state::end_hold(self.pool, &self.projection, self.until_ms).await {
            warn!(projection = self.projection.name(), %error, "the hold was not ended; it ends by itself");
        }
    }
}
