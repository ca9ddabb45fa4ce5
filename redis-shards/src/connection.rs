//! A multiplexed connection to one server that reconnects.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use redis::{
    Client, Cmd, ConnectionInfo, Pipeline, RedisError, RedisResult, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cmd,
    io::tcp::TcpSettings,
};
use vidlog_circuit_breaker::{CircuitBreaker, Outcome, Server};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a reply may take: longer than any script of a caller, shorter than a request's deadline.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long sent bytes may stay unacknowledged before the connection counts as broken.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a server, with the server's circuit breaker. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    managed: Arc<Managed>,
    breaker: CircuitBreaker,
}

/// The connection manager of a server, and what it is created from.
struct Managed {
    client: Client,
    config: ConnectionManagerConfig,
    current: Mutex<Arc<ConnectionManager>>,
}

impl Connection {
    /// Prepares a connection, which is established on first use.
    ///
    /// While the server is unreachable every call fails at once. A command whose reply is lost is not sent again,
    /// because it may have been executed.
    pub(crate) fn open(info: ConnectionInfo) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(200));
        // Detects a peer that vanished without closing the connection.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED_TIMEOUT);
        let server = Server { store: "redis", node: info.addr().to_string() };
        let client = Client::open(info.set_tcp_settings(tcp))?;
        let manager = ConnectionManager::new_lazy_with_config(client.clone(), config.clone())?;
        let managed = Arc::new(Managed { client, config, current: Mutex::new(Arc::new(manager)) });
        let pinged = Arc::clone(&managed);
        let breaker = CircuitBreaker::new(server, move || {
            let pinged = Arc::clone(&pinged);
            async move {
                let manager = pinged.current();
                let reply = ConnectionManager::clone(&manager).req_packed_command(&cmd("PING")).await;
                pinged.replace_if_broken(&manager, &reply);
                reply.map(drop).map_err(|error| error.to_string())
            }
        });
        Ok(Self { managed, breaker })
    }

    /// Sends a command and returns its reply; an error reply is an error.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let manager = self.managed.current();
        let mut sender = ConnectionManager::clone(&manager);
        self.guard(&manager, sender.req_packed_command(command)).await?.extract_error()
    }

    /// Sends a pipeline and returns its replies, of which each may be an error reply.
    pub(crate) async fn replies(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let manager = self.managed.current();
        let mut sender = ConnectionManager::clone(&manager);
        self.guard(&manager, sender.req_packed_commands(pipeline, 0, pipeline.len())).await
    }

    /// Makes a call with a manager unless the circuit is open. Replies of the server that are errors are values here, so an
    /// error means that there is no reply, or no usable connection.
    async fn guard<T>(
        &self,
        manager: &Arc<ConnectionManager>,
        call: impl Future<Output = RedisResult<T>>,
    ) -> RedisResult<T> {
        let Some(admitted) = self.breaker.admit() else {
            let error = "the server does not answer, the circuit is open";
            return Err(io::Error::new(io::ErrorKind::NotConnected, error).into());
        };
        let result = call.await;
        self.managed.replace_if_broken(manager, &result);
        admitted.end(if result.is_err() { Outcome::Unanswered } else { Outcome::Answered });
        result
    }
}

impl Managed {
    fn current(&self) -> Arc<ConnectionManager> {
        Arc::clone(&self.current.lock())
    }

    /// Replaces a manager that failed to set up its connection, such as because authentication failed. It reconnects only after
    /// IO errors, and returns any other error forever.
    fn replace_if_broken<T>(&self, failed: &Arc<ConnectionManager>, result: &RedisResult<T>) {
        if result.as_ref().err().is_none_or(RedisError::is_io_error) {
            return;
        }
        let mut current = self.current.lock();
        if Arc::ptr_eq(&current, failed)
            && let Ok(manager) =
                ConnectionManager::new_lazy_with_config(self.client.clone(), self.config.clone())
        {
            *current = Arc::new(manager);
        }
    }
}
