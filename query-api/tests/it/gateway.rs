//! Requests with bodies that are not read, behind a reverse proxy.

use vidlog_test_support::nginx::{Buffering, Framing, Nginx, listen, request};

use crate::support::World;

#[tokio::test]
async fn unread_bodies_are_answered_through_a_proxy() {
    let world = World::new().await;
    let servers = [listen(world.api().router()).await, listen(world.api().router()).await];
    let (small, large) = (48 * 1024, 8 * 1024 * 1024);
    let requests = [
        (200, "GET", "/douyin/feed/", small),
        (200, "GET", "/douyin/feed/?token=forged", small),
        (405, "POST", "/douyin/feed/", large),
        (405, "PUT", "/static/videos/1.mp4", large),
        (404, "GET", "/static/videos/1.mp4", large),
        (404, "POST", "/douyin/nothing/", large),
    ];
    for buffering in [Buffering::Off, Buffering::On] {
        let nginx = Nginx::start(&servers, buffering).await;
        for (status, method, path, size) in requests {
            for framing in [Framing::Length, Framing::Chunked] {
                let request = request(method, path, "text/plain", framing, &vec![b'x'; size]);
                // One for each server.
                for _ in 0..2 {
                    let response = nginx.send(&request).await;
                    assert!(
                        response.starts_with(&format!("HTTP/1.1 {status} "))
                            && response.contains("status_code"),
                        "{buffering:?} {method} {path} {framing:?}: {response}"
                    );
                }
            }
        }
        for _ in 0..4 {
            let request = request("GET", "/douyin/feed/", "", Framing::Length, b"");
            assert!(nginx.send(&request).await.contains("\"status_code\":0"));
        }
    }
}
