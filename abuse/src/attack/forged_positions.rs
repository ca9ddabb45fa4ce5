//! Requests positions that no command was answered with, so that reads wait for them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{attacker::Attacker, source::client};

/// More than the reads that may wait at the same time.
const WORKERS: u16 = 300;
/// At most 600 calls per second.
const PAUSE: Duration = Duration::from_millis(500);
/// Beyond the end of the log.
const FIRST_OFFSET: u64 = 1_000_000_000;

pub(super) async fn run(attacker: Attacker) {
    let Ok(client) = client(attacker.address(0)) else { return };
    let sent = AtomicU64::new(0);
    attacker
        .repeat(WORKERS, PAUSE, async |_| {
            let began = Instant::now();
            let number = sent.fetch_add(1, Ordering::Relaxed);
            let position = format!("likes:{}:{}", number % 12, FIRST_OFFSET + number);
            attacker
                .call(client.get(attacker.url("/douyin/feed/")).header("vidlog-position", position))
                .await;
            let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            attacker.tally.record_max("ms for the slowest answer", milliseconds);
        })
        .await;
}
