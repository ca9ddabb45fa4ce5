//! A multiplexed connection to one server that reconnects.

use std::{io, time::Duration};

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
    manager: ConnectionManager,
    breaker: CircuitBreaker,
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
        let manager = ConnectionManager::new_lazy_with_config(client, config)?;
        let ping = manager.clone();
        let breaker = CircuitBreaker::new(server, move || {
            let mut ping = ping.clone();
            async move {
                let reply = ping.req_packed_command(&cmd("PING")).await;
                reply.err().filter(is_unanswered).map_or(Ok(()), |error| Err(error.to_string()))
            }
        });
        Ok(Self { manager, breaker })
    }

    /// Sends a command and returns its reply; an error reply is an error.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        let mut manager = self.manager.clone();
        self.guard(manager.req_packed_command(command)).await?.extract_error()
    }

    /// Sends a pipeline and returns its replies, of which each may be an error reply.
    pub(crate) async fn replies(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let mut manager = self.manager.clone();
        self.guard(manager.req_packed_commands(pipeline, 0, pipeline.len())).await
    }

    /// Makes a call unless the circuit is open.
    async fn guard<T>(&self, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let Some(admitted) = self.breaker.admit() else {
            let error = "the server does not answer, the circuit is open";
            return Err(io::Error::new(io::ErrorKind::NotConnected, error).into());
        };
        let result = call.await;
        let is_unanswered = result.as_ref().err().is_some_and(is_unanswered);
        admitted.end(if is_unanswered { Outcome::Unanswered } else { Outcome::Answered });
        result
    }
}

/// Returns whether no answer arrived. Errors that the server replies are of other kinds.
fn is_unanswered(error: &RedisError) -> bool {
    error.is_io_error()
}
