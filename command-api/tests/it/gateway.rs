//! Bodies that are refused before they are read, behind a reverse proxy.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use vidlog_command_api::{
    router,
    state::CommandState,
    upload_slots::{SlotLimits, UploadSlots},
    username::account_key,
};
use vidlog_rate_limits::{Quota, RateLimitConfig, RateLimiter};
use vidlog_test_support::nginx::{Buffering, Framing, Nginx, listen, request};

use crate::support::World;

const MEGABYTE: usize = 1024 * 1024;
const PUBLISH: &str = "/douyin/publish/action/";
const LIKE: &str = "/douyin/favorite/action/";

/// Requests with large bodies that are refused, each with the status of its response.
fn refused_requests() -> Vec<(u16, Vec<u8>)> {
    let part = |name: &str, content: &[u8]| {
        let head = format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n");
        [head.as_bytes(), content, b"\r\n"].concat()
    };
    let post = |path: &str, content_type: &str, framing: Framing, body: &[u8]| {
        request("POST", path, content_type, framing, body)
    };
    let multipart = "multipart/form-data; boundary=b";
    let large = vec![b'x'; 8 * MEGABYTE];
    let forged = [part("token", b"forged"), part("data", &large)].concat();
    let too_large = [part("title", b"t"), part("data", &large)].concat();
    let mut requests = Vec::new();
    for framing in [Framing::Length, Framing::Chunked] {
        requests.extend([
            (413, post(LIKE, "application/json", framing, &large)),
            (413, post(LIKE, "application/x-www-form-urlencoded", framing, &large)),
            (413, post(LIKE, multipart, framing, &too_large)),
            (413, post(LIKE, "text/plain", framing, &large)),
            (413, post(PUBLISH, multipart, framing, &too_large)),
            (404, post("/douyin/nothing/", "text/plain", framing, &large)),
            (405, request("PUT", LIKE, "text/plain", framing, &large)),
        ]);
        // Within the limit of an upload, so that nothing but the token or the form is at fault.
        let small = forged[..MEGABYTE].to_vec();
        requests.extend([
            (200, post(PUBLISH, multipart, framing, &small)),
            (200, post(&format!("{PUBLISH}?token=forged"), multipart, framing, &small)),
            (200, post(PUBLISH, "multipart/form-data", framing, &small)),
            (200, post(PUBLISH, multipart, framing, &large[..MEGABYTE])),
            (200, post(PUBLISH, "text/plain", framing, &large[..MEGABYTE])),
        ]);
    }
    requests
}

#[tokio::test]
async fn refused_bodies_are_answered_through_a_proxy() {
    let (_world, api) = World::with_api().await;
    let servers = [listen(api.router()).await, listen(api.router()).await];
    for buffering in [Buffering::Off, Buffering::On] {
        let nginx = Nginx::start(&servers, buffering).await;
        for (status, refused) in refused_requests() {
            // One for each server.
            for _ in 0..2 {
                let response = nginx.send(&refused).await;
                let head = String::from_utf8_lossy(&refused[..150]);
                assert!(
                    response.starts_with(&format!("HTTP/1.1 {status} "))
                        && response.contains("\"status_code\":1"),
                    "{buffering:?}: {head}: {response}"
                );
            }
        }
        // The proxy takes neither server for failed.
        for _ in 0..4 {
            let response =
                nginx.send(&request("POST", LIKE, "application/json", Framing::Length, b"{}")).await;
            assert!(response.contains("\"status_code\":10002"), "{response}");
        }
    }
}

#[tokio::test]
async fn refused_uploads_are_answered_through_a_proxy() {
    let (_world, api) = World::with_api().await;
    let limits = SlotLimits { total: 8, per_user: 0, per_address: 8, anonymous: 0, anonymous_per_address: 8 };
    let state = CommandState { upload_slots: UploadSlots::new(limits), ..api.state.clone() };
    let servers = [listen(router(state.clone())).await, listen(router(state)).await];
    let file = vec![b'x'; MEGABYTE];
    let head = b"--b\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\n";
    let form = [&head[..], &file].concat();
    let user = format!("{PUBLISH}?token={}", api.state.tokens.sign(7).unwrap());
    for buffering in [Buffering::Off, Buffering::On] {
        let nginx = Nginx::start(&servers, buffering).await;
        for framing in [Framing::Length, Framing::Chunked] {
            for (path, status) in [(PUBLISH, 503), (user.as_str(), 429)] {
                for _ in 0..2 {
                    let refused = request("POST", path, "multipart/form-data; boundary=b", framing, &form);
                    let response = nginx.send(&refused).await;
                    let is_refusal = response.starts_with(&format!("HTTP/1.1 {status} "))
                        && response.to_lowercase().contains("retry-after: ");
                    assert!(is_refusal, "{buffering:?}, {framing:?}: {response}");
                }
            }
        }
    }
}

#[tokio::test]
async fn stalled_upload_is_answered_through_a_proxy() {
    let (_world, api) = World::with_api().await;
    let servers = [listen(api.router()).await];
    let nginx = Nginx::start(&servers, Buffering::Off).await;
    let complete =
        request("POST", PUBLISH, "multipart/form-data; boundary=b", Framing::Length, &vec![b'x'; MEGABYTE]);
    let head_end = complete.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let begun =
        [&complete[..head_end], b"--b\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\nx"].concat();
    let response = nginx.send(&begun).await;
    assert!(response.contains("\"status_code\":10001") && response.contains("too slow"), "{response}");
}

#[tokio::test]
async fn clients_behind_an_unexpected_proxy_share_no_quota() {
    let (_world, api) = World::with_api().await;
    let config = RateLimitConfig { limit_register_address: Quota::per(2, 3600), ..RateLimitConfig::off() };
    let limits = RateLimiter::with_account_key(config, &api.state.read_models, account_key);
    let server = listen(router(CommandState { limits, ..api.state.clone() })).await;
    let nginx = Nginx::start(&[server], Buffering::On).await;
    let invalid = request("POST", "/douyin/user/register/", "application/json", Framing::Length, b"{}");
    for _ in 0..5 {
        let response = nginx.send(&invalid).await;
        assert!(response.contains("\"status_code\":10001"), "{response}");
    }
    // Without a proxy, the address of the connection counts.
    for status in [200, 200, 429] {
        let mut stream = TcpStream::connect(server).await.unwrap();
        stream.write_all(&invalid).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
    }
}
