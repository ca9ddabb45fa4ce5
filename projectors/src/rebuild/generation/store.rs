//! What the generations of a view need of its store.

use async_trait::async_trait;
use vidlog_projection_engine::{desired_state::hold::Hold, store::Stores};

/// The store of a view's generations.
#[async_trait]
pub(super) trait GenerationStore: Send + Sync {
    /// Creates the next generation, or finds the one of an earlier rebuild. Returns its stores.
    async fn create_next(&self) -> anyhow::Result<Stores>;

    /// Makes the next generation the live one, in one step that requires the hold and ends it. Returns false
    /// if the hold has ended before, or if a long read blocked the switch.
    async fn take_over(&self, hold: &mut Hold<'_>) -> anyhow::Result<bool>;

    /// Returns the stores of the generation that was live until the switch, if processes that have not read
    /// the switch yet may have written to it.
    fn replaced(&self) -> anyhow::Result<Option<Stores>>;

    /// Publishes the live generation to readers. An interrupted rebuild may have switched without it.
    async fn publish_live(&self) -> anyhow::Result<()>;

    /// Drops the next generation, and what a switch left.
    async fn drop_next(&self) -> anyhow::Result<()>;

    /// Drops the generations before one that is live.
    async fn drop_before(&self, live: u32) -> anyhow::Result<()>;
}
