//! What the attacks have in common.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future::join_all;
use reqwest::RequestBuilder;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::{source::attacker_address, tally::Tally, users::Target};

/// What an attack acts on, and where it comes from.
pub(crate) struct Attacker {
    pub(crate) api: SocketAddr,
    pub(crate) target: Target,
    pub(crate) tally: Tally,
    /// Third byte of its addresses.
    pub(crate) number: u8,
}

impl Attacker {
    /// Returns the address of a worker: each attack has four.
    pub(crate) fn address(&self, worker: u16) -> Ipv4Addr {
        let [_, number] = (worker % 4 + 1).to_be_bytes();
        attacker_address(self.number, number)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    /// Sends a call and counts its answer.
    pub(crate) async fn call(&self, request: RequestBuilder) {
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
    pub(crate) async fn repeat(&self, workers: u16, pause: Duration, action: impl AsyncFn(u16)) {
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
