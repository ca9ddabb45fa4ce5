//! Bodies that are refused before they are read, behind a reverse proxy.

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
