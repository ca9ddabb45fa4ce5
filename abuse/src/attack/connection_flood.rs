//! Opens as many connections as possible and sends nothing.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{
    attacker::Attacker,
    source::{connect, read_to_close},
};

/// Connections at the same time.
pub(crate) const CONNECTIONS: u16 = 10_000;
/// Between attempts of one to connect.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(attacker: Attacker) {
    let open = AtomicU64::new(0);
    attacker
        .repeat(CONNECTIONS, PAUSE, async |number| {
            let address = attacker.address(number);
            let Ok(mut stream) = connect(address, attacker.api).await else {
                attacker.tally.add("failed to connect");
                return;
            };
            let now_open = open.fetch_add(1, Ordering::Relaxed) + 1;
            attacker.tally.record_max("open at the same time", now_open);
            attacker.tally.add("opened");
            let answer = read_to_close(&mut stream).await;
            open.fetch_sub(1, Ordering::Relaxed);
            attacker.tally.add(if answer.is_empty() { "closed" } else { "answered and closed" });
        })
        .await;
}
