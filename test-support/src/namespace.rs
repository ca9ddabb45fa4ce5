//! One namespace per test: a MySQL database and Redis keys that no other test uses.

use clap::Parser;
use redis::cmd;
use sqlx::{AssertSqlSafe, MySqlPool};
use uuid::Uuid;
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;
use vidlog_service_kit::{config::Stores, mysql};

/// A MySQL address without a listener.
pub const UNREACHABLE_MYSQL: &str = "mysql://nobody@127.0.0.1:1/nothing";
/// A Redis address without a listener.
pub const UNREACHABLE_REDIS: &str = "redis://127.0.0.1:1/";
/// Connections of a test's pool.
const MYSQL_CONNECTIONS: u32 = 8;

/// The stores of one test.
pub struct Namespace {
    /// Settings that point to the namespace; `stores.namespace` is its name.
    pub stores: Stores,
    /// Keys of the namespace.
    pub keys: Keys,
    /// The Redis under test.
    pub redis: Redis,
    /// The database of the namespace.
    pub mysql: MySqlPool,
}

#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    stores: Stores,
}

impl Namespace {
    /// Creates an empty namespace in the services that `VIDLOG_MYSQL_URL` and `VIDLOG_REDIS_URL` name; panics if one does
    /// not respond.
    pub async fn create() -> Self {
        Self::in_stores(parse_environment::<Environment>().stores).await
    }

    /// Creates an empty namespace whose keys are in another Redis than `VIDLOG_REDIS_URL` names.
    pub async fn create_on_redis(url: String) -> Self {
        let stores = parse_environment::<Environment>().stores;
        Self::in_stores(Stores { redis_url: url.into(), ..stores }).await
    }

    async fn in_stores(mut stores: Stores) -> Self {
        stores.namespace = format!("t{}", Uuid::now_v7().simple());
        let server = mysql::open(stores.mysql_url.reveal(), 1).unwrap();
        let create = format!("CREATE DATABASE {}", stores.namespace);
        let created = sqlx::query(AssertSqlSafe(create)).execute(&server).await;
        created.unwrap_or_else(|error| missing("MySQL", &error));
        let (server_url, _) = stores.mysql_url.reveal().rsplit_once('/').unwrap();
        stores.mysql_url = format!("{server_url}/{}", stores.namespace).into();

        let redis = Redis::open(stores.redis_url.reveal()).unwrap();
        redis.query::<String>(&cmd("PING")).await.unwrap_or_else(|error| missing("Redis", &error));
        Self {
            keys: Keys::new(&stores.namespace, stores.shards),
            redis,
            mysql: mysql::open(stores.mysql_url.reveal(), MYSQL_CONNECTIONS).unwrap(),
            stores,
        }
    }

    /// Creates the tables.
    pub async fn migrate(&self) {
        vidlog_schemas::MIGRATOR.run(&self.mysql).await.unwrap();
    }
}

/// Deletes every Redis key of a namespace in one atomic step, as FLUSHALL does for a whole server.
pub async fn delete_redis_keys(redis: &Redis, namespace: &str) {
    let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end return 0";
    let delete = cmd("EVAL").arg(script).arg(0).arg(format!("{namespace}:*")).take();
    redis.query::<i64>(&delete).await.unwrap();
}

/// Reads settings from `VIDLOG_…` variables; panics with instructions if one is missing.
pub fn parse_environment<T: Parser>() -> T {
    T::try_parse_from(["test"]).unwrap_or_else(|error| missing("an address of Kafka, MySQL or Redis", &error))
}

/// Panics because a service under test is missing, with instructions.
pub fn missing(service: &str, error: &dyn std::fmt::Display) -> ! {
    panic!(
        "the tests need {service}; run `make test`, or start the services with `deploy/local/stack up` as \
         docs/CONTRIBUTING.md describes: {error}"
    )
}
