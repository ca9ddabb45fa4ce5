//! A server under test, and its clients.

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
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};
use vidlog_service_kit::{
    serve::{Peers, Server, Timeouts},
    shutdown::Shutdown,
};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const LONG: Duration = Duration::from_mins(10);
pub(crate) const SHORT: Duration = Duration::from_millis(300);
/// No timeout.
pub(crate) const PATIENT: Timeouts = Timeouts { head: LONG, idle: LONG, write: LONG, linger: LONG };
pub(crate) const MEGABYTE: usize = 1024 * 1024;

/// A server under test.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) task: JoinHandle<()>,
    /// Ends the requests to `/wait`.
    pub(crate) release: Arc<Notify>,
    /// Requests to `/wait` that have begun.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// Bodies of `/endless` that the server has dropped.
    pub(crate) dropped: Arc<AtomicUsize>,
}

/// An endless body, and what counts its end.
struct Endless(Arc<AtomicUsize>);

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Running {
    pub(crate) async fn start(max_connections: usize, timeouts: Timeouts) -> Self {
        Self::start_for(Peers::Clients, max_connections, timeouts).await
    }

    pub(crate) async fn start_for(peers: Peers, max_connections: usize, timeouts: Timeouts) -> Self {
        let (release, dropped) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let (wait, counter) = (Arc::clone(&release), Arc::clone(&dropped));
        let waiting = Arc::new(AtomicUsize::new(0));
        let begun = Arc::clone(&waiting);
        let router = Router::new()
            .route("/", get(async || "ok").post(async |body: String| body))
            .route("/peer", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()))
            .route("/refuse", post(async || StatusCode::PAYLOAD_TOO_LARGE))
            .route(
                "/wait",
                get(async move || {
                    begun.fetch_add(1, Ordering::SeqCst);
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
        let server = Server { name: "test", router, max_connections, peers, timeouts, busy };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, shutdown) = (listener.local_addr().unwrap(), Shutdown::new());
        let task = tokio::spawn(server.serve(listener, shutdown.clone()));
        Self { address, shutdown, task, release, waiting, dropped }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// A connection from another address of this machine: 127.0.0.`host`.
    pub(crate) async fn connect_from(&self, host: u8) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
        Client(socket.connect(self.address).await.unwrap())
    }

    /// Waits until a number of requests to `/wait` has begun.
    pub(crate) async fn until_waiting(&self, count: usize) {
        let begun = async {
            while self.waiting.load(Ordering::SeqCst) < count {
                tokio::time::sleep(SHORT / 30).await;
            }
        };
        timeout(DEADLINE, begun).await.expect("the requests begin");
    }

    /// A connection that has had a response.
    pub(crate) async fn idle(&self) -> Client {
        let mut client = self.connect().await;
        client.get("/").await;
        client
    }
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response()
}

/// A connection of a client.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends a GET and reads the response.
    pub(crate) async fn get(&mut self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        self.response().await
    }

    /// Reads a response with a Content-Length.
    pub(crate) async fn response(&mut self) -> String {
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
    pub(crate) async fn closed(&mut self) -> Vec<u8> {
        let mut content = Vec::new();
        // A reset is an end, too.
        _ = timeout(DEADLINE, self.0.read_to_end(&mut content))
            .await
            .expect("the server closes the connection");
        content
    }
}
