//! Guesses the password of a user from several addresses.

use std::time::Duration;

use crate::{
    attacker::Attacker,
    source::{client, random_text},
};

const WORKERS: u16 = 16;
/// At most 160 guesses per second.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(attacker: Attacker) {
    // Four workers share a client, whose TLS setup would cost more than a guess.
    let clients = (0..WORKERS / 4).map(|number| client(attacker.address(number)));
    let Ok(clients) = clients.collect::<Result<Vec<_>, _>>() else { return };
    attacker
        .repeat(WORKERS, PAUSE, async |worker| {
            let client = &clients[usize::from(worker / 4)];
            // Half of the guesses are for one account, the others for names that do not exist.
            let name = if worker % 2 == 0 { attacker.target.username.clone() } else { random_text() };
            let form = [("username", name), ("password", random_text())];
            attacker.call(client.post(attacker.url("/douyin/user/login/")).query(&form)).await;
        })
        .await;
}
