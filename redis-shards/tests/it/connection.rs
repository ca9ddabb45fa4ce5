//! A connection to one server recovers from each kind of failure.

use redis::cmd;
use vidlog_redis_shards::Redis;
use vidlog_test_support::{RedisServer, until};

/// Redis refuses the password at first, as during a change of passwords or while it loads its users.
#[tokio::test(flavor = "multi_thread")]
async fn refused_authentication_is_not_permanent() {
    let server = RedisServer::start(Vec::new).await;
    let url = server.url().replacen("redis://", "redis://user:secret@", 1);
    let redis = Redis::open(&url).unwrap();
    let ping = async || redis.query::<String>(&cmd("PING")).await;
    let is_circuit_open = async || ping().await.unwrap_err().to_string().contains("the circuit is open");
    until("the circuit opens", is_circuit_open).await;
    let _: String =
        server.query(cmd("ACL").arg("SETUSER").arg("user").arg("on").arg(">secret").arg("+@all")).await;
    until("the server responds", async || ping().await.is_ok()).await;
}
