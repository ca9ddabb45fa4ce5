//! Limits on connections, and their end.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use vidlog_service_kit::{
    serve::{Server, Timeouts},
    shutdown::Shutdown,
};

const DEADLINE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_mins(10);
const SHORT: Duration = Duration::from_millis(300);
/// No timeout.
const PATIENT: Timeouts = Timeouts { head: LONG, idle: LONG, write: LONG, linger: LONG };
const MEGABYTE: usize = 1024 * 1024;

/// A server under test.
struct Running {
    address: SocketAddr,
    shutdown: Shutdown,
    task: JoinHandle<()>,
    /// Ends the requests to `/wait`.
    release: Arc<Notify>,
    /// Bodies of `/endless` that the server has dropped.
    dropped: Arc<AtomicUsize>,
}

/// An endless body, and what counts its end.
struct Endless(Arc<AtomicUsize>);

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Running {
    async fn start(max_connections: usize, timeouts: Timeouts) -> Self {
        let (release, dropped) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (wait, counter) = (Arc::clone(&release), Arc::clone(&dropped));
        let router = Router::new()
            .route("/", get(async || "ok").post(async |body: String| body))
            .route("/peer", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()))
            .route("/refuse", post(async || StatusCode::PAYLOAD_TOO_LARGE))
            .route(
                "/wait",
                get(async move || {
                    wait.notified().await;
                    "waited"
                }),
            )
            .route(
                "/endless",
                get(async move || {
                    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
                    let endless = Endless(counter);
                    Body::from_stream(futures::stream::repeat_with(move || {
                        _ = &endless;
                        Ok::<_, io::Error>(chunk.clone())
                    }))
                }),
            );
        let server = Server { name: "test", router, max_connections, timeouts, busy };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let task = tokio::spawn(server.serve(listener, shutdown.clone()));
        Self { address, shutdown, task, release, dropped }
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// A connection that has had a response.
    async fn idle(&self) -> Client {
        let mut client = self.connect().await;
        client.get("/").await;
        client
    }
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response()
}

/// A connection of a client.
struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends a GET and reads the response.
    async fn get(&mut self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        self.response().await
    }

    /// Reads a response with a Content-Length.
    async fn response(&mut self) -> String {
        let read = async {
            let mut text = String::new();
            loop {
                if let Some((head, body)) = text.split_once("\r\n\r\n") {
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                        return text;
                    }
                }
                let mut bytes = [0; 1024];
                let count = self.0.read(&mut bytes).await.unwrap();
                assert!(count > 0, "closed after {text:?}");
                text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
            }
        };
        timeout(DEADLINE, read).await.expect("a response")
    }

    /// Waits until the server closes the connection; returns what it sent before.
    async fn closed(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        // A reset is an end, too.
        _ = timeout(DEADLINE, self.0.read_to_end(&mut content))
            .await
            .expect("the server closes the connection");
        content
    }
}

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
