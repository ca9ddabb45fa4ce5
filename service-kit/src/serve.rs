//! An HTTP server with graceful shutdown and bounds on its connections.
//!
//! The server closes a connection that sends its request's head too slowly, that stays idle, or that does not take its
//! response. Request bodies are the handlers' matter: they know how much to expect.

mod activity;
mod body;
mod connection;
mod metric_names;
mod open_connections;
mod peers;
mod stream;
mod timeouts;

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::Context;
use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
    serve::Listener,
};
use clap::Args;
use metrics::{counter, gauge};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    connection::{Connection, KeepAlive},
    metric_names::{CONNECTIONS, CONNECTIONS_CLOSED, CONNECTIONS_REFUSED},
    open_connections::{Activeness, Closer, Entry, OpenConnections},
    timeouts::DEFAULT_IDLE_TIMEOUT_S,
};
pub use self::{
    peers::{Peers, network},
    timeouts::Timeouts,
};
use crate::shutdown::Shutdown;

/// Maximum number of open connections to an ops port.
const MAX_OPS_CONNECTIONS: usize = 256;
/// Connections above the limit that get a response at the same time; further ones are closed without one.
const MAX_REFUSALS: usize = 64;
/// How long a connection may take to close, to make room for a new one.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Limits on the connections of an API.
#[derive(Args, Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Maximum number of open client connections. At the limit, a new one replaces an idle one, or one of the address that
    /// has the most, or gets a 503.
    #[arg(long, env = "VIDLOG_MAX_CONNECTIONS", default_value_t = ConnectionLimits::default().max_connections)]
    pub max_connections: usize,
    /// Seconds that a connection may wait for its next request. Longer than a proxy keeps its connections, so that the
    /// server does not close one that the proxy is about to use.
    #[arg(long, env = "VIDLOG_IDLE_TIMEOUT_S", default_value_t = ConnectionLimits::default().idle_timeout_s)]
    pub idle_timeout_s: u64,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { max_connections: 4096, idle_timeout_s: DEFAULT_IDLE_TIMEOUT_S }
    }
}

/// What a server serves, and its limits.
#[derive(Clone)]
pub struct Server {
    /// Name in the metrics.
    pub name: &'static str,
    /// The routes.
    pub router: Router,
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// What connects to it.
    pub peers: Peers,
    /// Limits on the time of a connection.
    pub timeouts: Timeouts,
    /// Response to a request on a connection above the limit.
    pub busy: fn() -> Response,
}

impl Server {
    /// Returns the server of an API's clients.
    pub fn api(router: Router, limits: ConnectionLimits, peers: Peers, busy: fn() -> Response) -> Self {
        let idle = Duration::from_secs(limits.idle_timeout_s);
        let timeouts = Timeouts { idle, ..Timeouts::default() };
        Self { name: "api", router, max_connections: limits.max_connections, peers, timeouts, busy }
    }

    /// Returns the server of an ops port.
    pub fn ops(router: Router) -> Self {
        let busy = || StatusCode::SERVICE_UNAVAILABLE.into_response();
        let timeouts = Timeouts::default();
        let (max_connections, peers) = (MAX_OPS_CONNECTIONS, Peers::Clients);
        Self { name: "ops", router, max_connections, peers, timeouts, busy }
    }

    /// Serves until shutdown is requested, then drains the requests in flight.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown) {
        let serving = Acceptor::new(self, shutdown.token()).run(listener);
        shutdown.drain("http server", serving).await;
    }
}

/// Binds an address. The error names it.
pub async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address}; is the port taken?"))
}

/// Serves an ops port until shutdown is requested, then drains the requests in flight.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) {
    Server::ops(router).serve(listener, shutdown).await;
}

/// Accepts connections and spawns a task for each, within the limit. Clones share the limit.
#[derive(Clone)]
struct Acceptor {
    server: Server,
    shutdown: CancellationToken,
    permits: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    open: OpenConnections,
    tasks: TaskTracker,
}

impl Acceptor {
    fn new(server: Server, shutdown: CancellationToken) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(server.max_connections)),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            open: OpenConnections::default(),
            tasks: TaskTracker::new(),
            server,
            shutdown,
        }
    }

    async fn run(self, mut listener: TcpListener) {
        // The listener logs errors, and pauses when the process is out of file descriptors.
        while let Some((stream, peer)) =
            self.shutdown.run_until_cancelled(Listener::accept(&mut listener)).await
        {
            let entry = self.open.add(network(peer.ip()), self.closer());
            match Arc::clone(&self.permits).try_acquire_owned() {
                Ok(permit) => self.open(stream, entry, permit),
                Err(_) => self.make_room(stream, entry),
            }
        }
        drop(listener);
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Opens a connection once another one has closed, or refuses it. The accept loop does not wait for it.
    fn make_room(&self, stream: TcpStream, entry: Entry) {
        let Server { name, max_connections, peers, .. } = self.server;
        let reason = match self.open.make_room(&entry, max_connections, peers) {
            None => return self.refuse(stream, entry.network()),
            Some(Activeness::Idle) => "evicted",
            Some(Activeness::Head | Activeness::Busy) => "evicted_busy",
        };
        counter!(CONNECTIONS_CLOSED, "server" => name, "reason" => reason).increment(1);
        let acceptor = self.clone();
        self.tasks.spawn(async move {
            let permit = Arc::clone(&acceptor.permits).acquire_owned();
            match timeout(EVICTION_TIMEOUT, permit).await {
                Ok(Ok(permit)) => acceptor.open(stream, entry, permit),
                _ => acceptor.refuse(stream, entry.network()),
            }
        });
    }

    fn open(&self, stream: TcpStream, entry: Entry, permit: OwnedSemaphorePermit) {
        let gauge = gauge!(CONNECTIONS, "server" => self.server.name);
        gauge.increment(1);
        let connection = self.connection(self.server.router.clone(), entry);
        self.tasks.spawn(async move {
            connection.serve(stream, KeepAlive::Yes).await;
            gauge.decrement(1);
            drop(permit);
        });
    }

    /// Responds that the server is busy, or closes the connection if too many are being refused.
    fn refuse(&self, stream: TcpStream, network: IpAddr) {
        counter!(CONNECTIONS_REFUSED, "server" => self.server.name).increment(1);
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            return;
        };
        let busy = self.server.busy;
        let router = Router::new().fallback(async move || busy());
        // Closing one of these for a new connection would make no room.
        let connection = self.connection(router, OpenConnections::default().add(network, self.closer()));
        self.tasks.spawn(async move {
            connection.serve(stream, KeepAlive::No).await;
            drop(permit);
        });
    }

    fn connection(&self, router: Router, entry: Entry) -> Connection {
        Connection { server: self.server.name, router, timeouts: self.server.timeouts, entry }
    }

    fn closer(&self) -> Closer {
        Closer { close: self.shutdown.child_token(), abort: CancellationToken::new() }
    }
}
