//! Connections at the limit of their number.

use std::sync::atomic::Ordering;

use tokio::{io::AsyncWriteExt, time::timeout};
use vidlog_service_kit::serve::Peers;

use crate::server::{Client, DEADLINE, PATIENT, Running};

#[tokio::test]
async fn new_connection_replaces_the_longest_idle_one() {
    let server = Running::start(3, PATIENT).await;
    let (mut first, mut second) = (server.idle().await, server.idle().await);
    let mut silent = server.connect().await;
    first.get("/").await;
    // Now the second one is the longest idle, then the silent one.
    let mut third = server.idle().await;
    assert_eq!(second.closed().await, b"");
    let mut fourth = server.idle().await;
    assert_eq!(silent.closed().await, b"");
    for client in [&mut first, &mut third, &mut fourth] {
        assert!(client.get("/").await.ends_with("ok"));
    }
}

#[tokio::test]
async fn connection_is_refused_while_all_are_busy() {
    let server = Running::start(1, PATIENT).await;
    let mut busy = server.connect().await;
    busy.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\nGET /").await;
    let refused = async {
        loop {
            let response = server.connect().await.get("/").await;
            if response.starts_with("HTTP/1.1 503 ") {
                return response;
            }
        }
    };
    let refused = timeout(DEADLINE, refused).await.expect("a refusal");
    assert!(refused.contains("connection: close") && refused.ends_with("busy"), "{refused}");
    server.release.notify_one();
    busy.response().await;
    drop(busy);
    let served = async { while !server.connect().await.get("/").await.ends_with("ok") {} };
    timeout(DEADLINE, served).await.expect("there is room again");
}

#[tokio::test]
async fn connections_above_those_being_refused_are_closed() {
    let server = Running::start(0, PATIENT).await;
    let mut waiting = Vec::new();
    for _ in 0..64 {
        waiting.push(server.connect().await);
    }
    assert_eq!(server.connect().await.closed().await, b"");
    for mut client in waiting {
        assert!(client.get("/").await.starts_with("HTTP/1.1 503 "));
    }
}

/// What a hostile client does with each of its connections.
const ATTACKS: [(&str, &str); 4] = [
    ("silent", ""),
    ("dripping head", "GET / HTTP/1.1\r\na: b\r\n"),
    ("long request", "GET /wait HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("slow reader", "GET /endless HTTP/1.1\r\nhost: a\r\n\r\n"),
];

/// Opens connections from 127.0.0.1 and sends the same on each.
async fn flood(server: &Running, count: usize, request: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = server.connect().await;
        // The server may have closed it.
        _ = client.0.write_all(request.as_bytes()).await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn address_with_many_connections_keeps_no_other_out() {
    for (attack, request) in ATTACKS {
        let server = Running::start(32, PATIENT).await;
        let _flood = flood(&server, 200, request).await;
        let mut phones = Vec::new();
        for host in 2..20 {
            let mut phone = server.connect_from(host).await;
            let response = phone.get("/").await;
            assert!(response.ends_with("ok"), "{attack}: {response}");
            phones.push(phone);
        }
    }
}

#[tokio::test]
async fn request_of_an_address_with_few_connections_goes_on() {
    let server = Running::start(32, PATIENT).await;
    let mut phone = server.connect_from(2).await;
    phone.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    server.until_waiting(1).await;
    let _flood = flood(&server, 200, ATTACKS[3].1).await;
    for _ in 0..8 {
        assert!(server.connect_from(3).await.get("/").await.ends_with("ok"));
    }
    server.release.notify_waiters();
    assert!(phone.response().await.ends_with("waited"));
}

#[tokio::test]
async fn requests_through_proxies_are_not_cut_off() {
    let server = Running::start_for(Peers::Proxies, 4, PATIENT).await;
    let mut proxied = flood(&server, 4, ATTACKS[2].1).await;
    server.until_waiting(4).await;
    assert!(server.connect_from(2).await.get("/").await.starts_with("HTTP/1.1 503 "));
    server.release.notify_waiters();
    for client in &mut proxied {
        assert!(client.response().await.ends_with("waited"));
    }
}

#[tokio::test]
async fn aborted_connection_releases_its_response() {
    let server = Running::start(2, PATIENT).await;
    let _slow = flood(&server, 2, ATTACKS[3].1).await;
    assert!(server.connect_from(2).await.get("/").await.ends_with("ok"));
    assert_eq!(server.dropped.load(Ordering::SeqCst), 1);
}
