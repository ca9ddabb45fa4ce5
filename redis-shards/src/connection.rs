//! One server: a connection, multiplexed, reconnecting.

use std::time::Duration;

use redis::{
    Client, Cmd, ConnectionInfo, Pipeline, RedisError, RedisResult, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an answer may take: longer than any script of ours, shorter than a request's time.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long sent bytes may stay unacknowledged before the connection counts as dead.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(5);

/// A server. Clones share the connection.
#[derive(Clone)]
pub(super) struct Node {
    connection: ConnectionManager,
}

impl Node {
    /// It connects when it is first used; while the server is away every call fails at once. A command whose answer
    /// did not come is not sent again: what became of it is not known.
    pub(super) fn open(info: ConnectionInfo) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_number_of_retries(1)
            .set_min_delay(Duration::from_millis(20))
            .set_max_delay(Duration::from_millis(200));
        // A peer that vanished without a word is noticed by what is not acknowledged.
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED_TIMEOUT);
        let client = Client::open(info.set_tcp_settings(tcp))?;
        Ok(Self { connection: ConnectionManager::new_lazy_with_config(client, config)? })
    }

    /// The answer to a command.
    pub(super) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        self.connection.clone().req_packed_command(command).await?.extract_error()
    }

    /// The answers to commands that are sent in one go, each maybe an error of its own.
    pub(super) async fn answers(&self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        self.connection.clone().req_packed_commands(pipeline, 0, pipeline.len()).await
    }
}
