//! The attacks. Each is bounded in connections and calls per second, and ends when its future is dropped.

mod connection_flood;
mod dripping_heads;
mod forged_positions;
mod idempotency_keys;
mod json_bombs;
mod login_guessing;
mod slow_readers;
mod trickling_uploads;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use reqwest::RequestBuilder;
use serde_json::Value;
use tokio::{
    runtime::Builder,
    task::unconstrained,
    time::{MissedTickBehavior, interval, timeout},
};

pub(crate) use self::connection_flood::CONNECTIONS;
use crate::{source::attacker_address, tally::Tally, users::Target};

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

/// What an attack acts on, and where it comes from.
#[derive(Clone)]
struct Attacker {
    api: SocketAddr,
    target: Target,
    tally: Tally,
    /// Third byte of its addresses.
    number: u8,
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

impl Attacker {
    fn address(&self, number: u8) -> Ipv4Addr {
        attacker_address(self.number, number)
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    /// Sends a call and counts its answer.
    async fn call(&self, request: RequestBuilder) {
        let outcome = match request.send().await {
            Ok(response) => {
                let status = response.status().as_u16();
                let body = response.bytes().await.unwrap_or_default();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                body["status_code"]
                    .as_i64()
                    .map_or_else(|| format!("HTTP {status}"), |code| format!("HTTP {status}/{code}"))
            }
            Err(error) if error.is_timeout() => "timed out".to_owned(),
            Err(error) if error.is_connect() => "failed to connect".to_owned(),
            Err(_) => "closed without an answer".to_owned(),
        };
        self.tally.add(outcome);
    }

    /// Runs workers, each of which repeats an action with at least this time between its starts.
    async fn repeat(&self, workers: u16, pause: Duration, action: impl AsyncFn(u16)) {
        let work = async |worker| {
            let mut ticks = interval(pause);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                action(worker).await;
            }
        };
        join_all((0..workers).map(work)).await;
    }
}
