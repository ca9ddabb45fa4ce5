//! Publishes to readers whether a view in Redis is complete, and which generation is live.
//!
//! Readers read the generation in the view's [`GenerationMarker`], and read MySQL while it is missing. A loss of all keys
//! removes it together with the view. A runner that detects that Redis lost writes removes it before it refills the view
//! ([`ViewStore::mark_incomplete`]).
//!
//! A view is complete when it has reached the end that the log had after the loss. Redis may lose everything again at any
//! moment, or its newest writes, so the order of the steps matters:
//!
//! 1. Set a random token in place of the marker. If the token is gone later, the view was lost again.
//! 2. Read the end of the log.
//! 3. Wait until the view has reached it.
//! 4. Replace the token by another one, if it is still there. The new token is younger than all that step 3 read, and
//!    Redis loses the newest writes first: while the new token exists, so do they.
//! 5. Check that the view is still at the end.
//! 6. Replace the new token by the marker, if it is still there.
//!
//! Every process that runs the projection does this for all partitions. They share the token of step 1; of two that reach
//! step 4, one starts again.

use std::{collections::BTreeMap, time::Duration};

use redis::RedisError;
use thiserror::Error;
use tokio::time::sleep;
use tracing::{debug, info, warn};
use vidlog_events::Stream;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::{
    log::{self, Extent, Log, LogClient, Offsets, Partition},
    store::{
        StoreError, Stores, ViewStore,
        generation_marker::{GenerationMarker, Marker, new_token},
        redis::RedisStore,
    },
    view::{Projection, RedisFold},
};

/// Interval between two checks of a complete view. A loss of all of Redis is detected after at most this time.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two checks of a view that is refilled: doubled from the first to the last.
const REFILL_CHECK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// Timeout for a response of the broker. A shutdown waits for it.
const BROKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum of checks that tolerate a published generation newer than ours: the next poll of the desired state reads
/// it in less than a second.
const CHECKS_OF_NEWER: u32 = 10;

/// Publishes the completeness of one view in Redis.
pub struct CompletenessController {
    projection: Projection,
    stores: Stores,
    store: RedisStore,
    log: Log,
    readiness: Readiness,
}

/// Why the completeness of a view is unknown. A later check may succeed.
#[derive(Debug, Error)]
enum Unknown {
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CompletenessController {
    /// The controller of a projection's view in Redis. The view is not ready before the first check.
    pub fn new(
        projection: Projection,
        fold: RedisFold,
        stores: Stores,
        log: Log,
        readiness: Readiness,
    ) -> Self {
        let store = RedisStore::new(projection, fold, stores.clone());
        let controller = Self { projection, stores, store, log, readiness };
        controller.not_ready("the completeness of the view is not checked yet");
        controller
    }

    /// Runs until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        _ = shutdown.token().run_until_cancelled(self.check_repeatedly()).await;
    }

    async fn check_repeatedly(&self) {
        let name = self.projection.name();
        let mut failing = false;
        let mut checks_of_newer = 0;
        loop {
            match self.check(&mut checks_of_newer).await {
                Ok(()) => failing = false,
                Err(error) if failing => debug!(projection = name, %error, "completeness still unknown"),
                Err(error) => {
                    failing = true;
                    warn!(projection = name, %error, "completeness unknown, retrying");
                }
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    /// Compares the published generation with the live one, and corrects it.
    async fn check(&self, checks_of_newer: &mut u32) -> Result<(), Unknown> {
        loop {
            let (live, published) = (self.generation(), self.marker().published_generation().await?);
            *checks_of_newer = if published > Some(live) { *checks_of_newer + 1 } else { 0 };
            match published {
                Some(published) if published == live => break,
                Some(published) if published < live => self.fix_generation(published, live).await?,
                Some(_) if *checks_of_newer <= CHECKS_OF_NEWER => break,
                Some(published) => self.mark_incomplete(published, live).await?,
                None => self.wait_until_complete(live).await?,
            }
        }
        self.readiness.ready(&self.part());
        Ok(())
    }

    /// Publishes the live generation in place of an older one. A rebuild checked the live one before the switch, but a
    /// Redis that was restored from before the switch lost it. Then the view has to be checked again.
    async fn fix_generation(&self, published: u32, live: u32) -> Result<(), Unknown> {
        if !self.store.is_past_generation(published).await? {
            return self.mark_incomplete(published, live).await;
        }
        if self.marker().replace(Marker::Published(published), Marker::Published(live)).await? {
            info!(projection = self.projection.name(), published, live, "published the live generation");
        }
        Ok(())
    }

    /// Replaces the marker by a token: the published generation may not be complete.
    async fn mark_incomplete(&self, published: u32, live: u32) -> Result<(), Unknown> {
        let token = new_token();
        if self.marker().replace(Marker::Published(published), Marker::Refilling(&token)).await? {
            let projection = self.projection.name();
            warn!(projection, published, live, "published generation is not live, marked incomplete");
        }
        Ok(())
    }

    /// Waits until the view is complete, and publishes its generation. Returns without publishing if it has to start again.
    async fn wait_until_complete(&self, generation: u32) -> Result<(), Unknown> {
        let name = self.projection.name();
        let marker = self.marker();
        let token = marker.claim_token().await?;
        info!(projection = name, generation, "view incomplete, readers read MySQL");
        self.not_ready("the view is being refilled");
        let ends = self.ends().await;

        let mut pause = REFILL_CHECK.0;
        while !self.has_reached(&ends).await? {
            sleep(pause).await;
            pause = REFILL_CHECK.1.min(pause * 2);
        }
        let younger = new_token();
        let is_complete = marker.replace(Marker::Refilling(&token), Marker::Refilling(&younger)).await?
            && self.has_reached(&ends).await?
            && self.generation() == generation
            && marker.replace(Marker::Refilling(&younger), Marker::Published(generation)).await?;
        if is_complete {
            info!(projection = name, generation, "view complete");
        }
        Ok(())
    }

    /// Returns the end of the log in each partition. Retries until the log answers.
    async fn ends(&self) -> Offsets {
        let streams: Vec<Stream> = self.projection.streams().collect();
        let mut pause = REFILL_CHECK.0;
        // One client for all attempts: each has threads and connections of its own.
        let mut client = None;
        loop {
            match self.extents(&mut client, streams.clone()).await {
                Ok(extents) => return log::ends(extents),
                Err(error) => self.not_ready(&format!("waiting for the log: {error:#}")),
            }
            sleep(pause).await;
            pause = REFILL_CHECK.1.min(pause * 2);
        }
    }

    async fn extents(
        &self,
        client: &mut Option<LogClient>,
        streams: Vec<Stream>,
    ) -> anyhow::Result<BTreeMap<Partition, Extent>> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.log.client()?),
        };
        client.extents(streams, BROKER_TIMEOUT).await
    }

    /// Whether every part of the view has reached the ends.
    async fn has_reached(&self, ends: &Offsets) -> Result<bool, Unknown> {
        let partitions: Vec<Partition> = ends.keys().copied().collect();
        let positions = self.store.positions(&partitions).await?;
        let behind = positions.iter().zip(ends).find(|(position, (_, end))| position.lowest() < **end);
        if let Some((position, (partition, end))) = behind {
            let (id, at) = (partition.id(), position.lowest());
            self.not_ready(&format!("the view is being refilled: {id} is at {at} of {end}"));
        }
        Ok(behind.is_none())
    }

    fn marker(&self) -> GenerationMarker<'_> {
        GenerationMarker::new(&self.stores, &self.projection)
    }

    fn generation(&self) -> u32 {
        self.stores.keys.generation(&self.projection.catalogued)
    }

    fn part(&self) -> String {
        format!("{}/view", self.projection.name())
    }

    fn not_ready(&self, why: &str) {
        self.readiness.not_ready(&self.part(), why);
    }
}
