//! The attacks. Each is bounded in connections and calls per second, and ends when its future is dropped.

mod connection_flood;
mod dripping_heads;
mod forged_positions;
mod idempotency_keys;
mod json_bombs;
mod login_guessing;
mod slow_readers;
mod trickling_uploads;

use std::{net::SocketAddr, time::Duration};

use tokio::{runtime::Builder, task::unconstrained, time::timeout};

pub(crate) use self::connection_flood::CONNECTIONS;
use crate::{attacker::Attacker, tally::Tally, users::Target};

/// A kind of attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    IdempotencyKeys,
    TricklingUploads,
    ForgedPositions,
    LoginGuessing,
    SlowReaders,
    DrippingHeads,
    JsonBombs,
    ConnectionFlood,
}

impl Attack {
    pub(crate) const ALL: [Self; 8] = [
        Self::IdempotencyKeys,
        Self::TricklingUploads,
        Self::ForgedPositions,
        Self::LoginGuessing,
        Self::SlowReaders,
        Self::DrippingHeads,
        Self::JsonBombs,
        Self::ConnectionFlood,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IdempotencyKeys => "anonymous idempotency keys",
            Self::TricklingUploads => "trickling uploads",
            Self::ForgedPositions => "forged positions",
            Self::LoginGuessing => "login guessing",
            Self::SlowReaders => "slow readers",
            Self::DrippingHeads => "dripping heads",
            Self::JsonBombs => "64 KB JSON bombs",
            Self::ConnectionFlood => "10,000 connections",
        }
    }

    /// Attacks for some time on this thread, apart from the users', and counts the outcomes.
    pub(crate) fn run_for(
        self,
        time: Duration,
        api: SocketAddr,
        target: Target,
        tally: Tally,
    ) -> anyhow::Result<()> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        // Unconstrained: all connections of an attack are in one task, which would share one task's budget.
        _ = runtime.block_on(async { timeout(time, unconstrained(self.run(api, target, tally))).await });
        Ok(())
    }

    /// Attacks until it is dropped. Dropping it closes all its connections.
    async fn run(self, api: SocketAddr, target: Target, tally: Tally) {
        let attacker = Attacker { api, target, tally, number: self as u8 };
        match self {
            Self::IdempotencyKeys => idempotency_keys::run(attacker).await,
            Self::TricklingUploads => trickling_uploads::run(attacker).await,
            Self::ForgedPositions => forged_positions::run(attacker).await,
            Self::LoginGuessing => login_guessing::run(attacker).await,
            Self::SlowReaders => slow_readers::run(attacker).await,
            Self::DrippingHeads => dripping_heads::run(attacker).await,
            Self::JsonBombs => json_bombs::run(attacker).await,
            Self::ConnectionFlood => connection_flood::run(attacker).await,
        }
    }
}
