//! Timeouts of connections, and their end.

use std::sync::atomic::Ordering;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use vidlog_service_kit::serve::Timeouts;

use crate::server::{Client, DEADLINE, MEGABYTE, PATIENT, Running, SHORT};

#[tokio::test]
async fn slow_head_is_cut_off() {
    let server = Running::start(8, Timeouts { head: SHORT, ..PATIENT }).await;
    let silent = async { server.connect().await.closed().await };
    let stopped = async {
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.1\r\n").await;
        client.closed().await
    };
    let after_a_response = async {
        let mut client = server.idle().await;
        client.send("GET / HTTP/1.1\r\n").await;
        client.closed().await
    };
    // Each byte comes in time, the head does not.
    let trickling = async {
        let mut client = server.connect().await;
        client.send("GET / HTTP/1.1\r\n").await;
        while client.0.write_all(b"a: b\r\n").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
        client.closed().await
    };
    let all = async { tokio::join!(silent, stopped, after_a_response, timeout(DEADLINE, trickling)) };
    let (silent, stopped, after_a_response, trickling) = all.await;
    let nothing: &[u8] = b"";
    assert_eq!((&*silent, &*stopped, &*after_a_response), (nothing, nothing, nothing));
    assert_eq!(trickling.expect("the server closes the connection"), nothing);
}

#[tokio::test]
async fn handlers_get_the_address_of_the_peer() {
    let server = Running::start(8, PATIENT).await;
    let mut client = server.connect().await;
    let address = client.0.local_addr().unwrap();
    let response = client.get("/peer").await;
    assert!(response.ends_with(&format!("\r\n\r\n{address}")), "{response:?}");
}

#[tokio::test]
async fn idle_connection_is_closed() {
    let server = Running::start(8, Timeouts { idle: SHORT, ..PATIENT }).await;
    let mut client = server.idle().await;
    assert!(client.get("/").await.ends_with("ok"), "the connection carries several requests");
    assert_eq!(client.closed().await, b"");
    // A request in progress is not idle.
    let mut client = server.idle().await;
    client.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(timeout(SHORT * 4, client.0.readable()).await.is_err());
    server.release.notify_one();
    assert!(client.response().await.ends_with("waited"));
}

#[tokio::test]
async fn client_that_takes_no_response_is_cut_off() {
    let server = Running::start(8, Timeouts { write: SHORT, ..PATIENT }).await;
    let mut stalled = server.connect().await;
    stalled.send("GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let dropped = async {
        while server.dropped.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    timeout(DEADLINE, dropped).await.expect("the server drops the response");
    stalled.closed().await;
}

#[tokio::test]
async fn slow_client_that_reads_on_is_served() {
    let server = Running::start(8, Timeouts { write: SHORT * 3, ..PATIENT }).await;
    let mut slow = server.connect().await;
    slow.send("GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut buffer = vec![0; 4 * MEGABYTE];
    for _ in 0..15 {
        // Pauses are part of the scenario: the sum of them exceeds the timeout, none does alone.
        tokio::time::sleep(SHORT / 2).await;
        timeout(DEADLINE, slow.0.read_exact(&mut buffer)).await.unwrap().unwrap();
    }
    assert_eq!(server.dropped.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn client_of_a_refused_request_gets_the_response_after_its_body() {
    let server = Running::start(8, PATIENT).await;
    let bodies = [
        ("content-length: 16777216", vec![b'x'; 16 * MEGABYTE]),
        (
            "transfer-encoding: chunked",
            [&b"1000000\r\n"[..], &vec![b'x'; 16 * MEGABYTE], b"\r\n0\r\n\r\n"].concat(),
        ),
    ];
    for (header, body) in bodies {
        let mut client = server.connect().await;
        client.send(format!("POST /refuse HTTP/1.1\r\nhost: a\r\n{header}\r\n\r\n")).await;
        timeout(DEADLINE, client.send(&body)).await.expect("the server reads on");
        let response = client.response().await;
        assert!(response.starts_with("HTTP/1.1 413 "), "{response}");
        assert!(response.contains("connection: close"), "{response}");
        assert_eq!(client.closed().await, b"");
    }
    let mut client = server.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await;
    let response = client.response().await;
    assert!(response.ends_with("body") && !response.contains("connection: close"), "{response}");
}

#[tokio::test]
async fn client_of_a_malformed_request_gets_the_response_after_its_body() {
    let server = Running::start(8, PATIENT).await;
    let mut client = server.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n").await;
    client.send(vec![b'x'; 16 * MEGABYTE]).await;
    assert!(client.response().await.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn endless_body_of_a_refused_request_is_cut_off() {
    let server = Running::start(8, Timeouts { linger: SHORT, ..PATIENT }).await;
    let mut client = server.connect().await;
    client.send("POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n").await;
    let chunk = vec![b'x'; 1024];
    let endless = async { while client.0.write_all(&chunk).await.is_ok() {} };
    timeout(DEADLINE, endless).await.expect("the server closes the connection");
}

#[tokio::test]
async fn shutdown_drains_requests_and_closes_idle_connections() {
    let server = Running::start(8, PATIENT).await;
    let (mut silent, mut idle, mut busy) =
        (server.connect().await, server.idle().await, server.connect().await);
    busy.send("GET /wait HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(timeout(SHORT, busy.0.readable()).await.is_err(), "the request has begun");
    server.shutdown.request();
    assert_eq!((silent.closed().await, idle.closed().await), (vec![], vec![]));
    assert!(!server.task.is_finished());
    server.release.notify_one();
    assert!(busy.response().await.ends_with("waited"));
    timeout(DEADLINE, server.task).await.expect("the server stops").unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

/// A client whose request was refused, and that has read the response while the server waits for the body.
async fn refused(server: &Running) -> Client {
    let mut client = server.connect().await;
    client.send("POST /refuse HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999\r\n\r\n").await;
    assert!(client.response().await.starts_with("HTTP/1.1 413 "));
    client
}

/// Sends a byte at a time until the server closes the connection.
async fn trickle(mut client: Client) {
    while client.0.write_all(b"x").await.is_ok() {
        tokio::time::sleep(SHORT / 10).await;
    }
}

#[tokio::test]
async fn body_of_a_refused_request_is_read_up_to_a_size() {
    let server = Running::start(8, PATIENT).await;
    let mut client = refused(&server).await;
    let (chunk, mut sent) = (vec![b'x'; MEGABYTE], 0);
    let endless = async {
        while client.0.write_all(&chunk).await.is_ok() {
            sent += 1;
        }
    };
    timeout(DEADLINE, endless).await.expect("the server closes the connection");
    // More than an upload; the buffers of the sockets take some.
    assert!((256..320).contains(&sent), "{sent} MB");
}

#[tokio::test]
async fn refused_client_that_pauses_is_cut_off() {
    let server = Running::start(8, PATIENT).await;
    assert_eq!(refused(&server).await.closed().await, b"");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_refused_bodies() {
    let server = Running::start(8, PATIENT).await;
    let client = tokio::spawn(trickle(refused(&server).await));
    server.shutdown.request();
    // The drain of a shutdown takes 25 s at most.
    timeout(DEADLINE / 3, server.task).await.expect("the server stops").unwrap();
    client.await.unwrap();
}

#[tokio::test]
async fn refused_client_makes_room_for_another() {
    let server = Running::start(1, PATIENT).await;
    let client = tokio::spawn(trickle(refused(&server).await));
    assert!(server.connect().await.get("/").await.ends_with("ok"));
    timeout(DEADLINE, client).await.expect("the server closes the connection").unwrap();
}
