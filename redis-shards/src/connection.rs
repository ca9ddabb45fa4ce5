//! A multiplexed connection to one server that reconnects.

use std::time::Duration;

use redis::{
    Client, Cmd, ConnectionInfo, Pipeline, RedisError, RedisResult, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a reply may take: longer than any script of a caller, shorter than a request's deadline.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long sent bytes may stay unacknowledged before the connection counts as broken.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a server. Clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    manager: ConnectionManager,
}

impl Connection {
    /// Prepares a connection, which is established on first use.
    ///
    /// While the server is unavailable every call fails at once. A command whose reply is lost is not sent again,
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
        let client = Client::open(info.set_tcp_settings(tcp))?;
        Ok(Self { manager: ConnectionManager::new_lazy_with_config(client, config)? })
    }

    /// Sends a command and returns its reply; an error reply is an error.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        self.manager.clone().req_packed_command(command).await?.extract_error()
    }

    /// Sends a pipeline and returns its replies, of which each may be an error reply.
    pub(crate) async fn replies(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.manager.clone().req_packed_commands(pipeline, 0, pipeline.len()).await
    }
}
