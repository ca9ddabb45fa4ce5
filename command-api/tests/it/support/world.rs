//! Stores of a test's own. Where projectors would fold the log, a test says itself what the read models hold.

use std::time::Duration;

use clap::Parser;
use redis::{ToRedisArgs, cmd};
use sqlx::{AssertSqlSafe, MySqlPool};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use vidlog_command_api::{Settings, config::CommandConfig, start};
use vidlog_contract::config::ApiConfig;
use vidlog_events::Topics;
use vidlog_redis_shards::Redis;
use vidlog_schemas::{
    Keys,
    projections::{self, Projection},
    rows::VideoState,
};
use vidlog_service_kit::{
    clock::Clock,
    config::{self, Stores},
    mysql,
    ops::Readiness,
};

use super::{Api, Log};

/// Partitions of a test's topics: enough that keys spread, few enough that many tests share one broker.
pub(crate) const PARTITIONS: i32 = 3;
/// Addresses nobody listens on.
pub(crate) const DEAD_MYSQL: &str = "mysql://nobody@127.0.0.1:1/nothing";
pub(crate) const DEAD_REDIS: &str = "redis://127.0.0.1:1/";
/// A log that nobody keeps.
pub(crate) fn dead_kafka() -> config::Log {
    config::Log { kafka_brokers: "127.0.0.1:1".to_owned(), session_timeout_ms: config::SESSION_TIMEOUT_MS }
}

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_mins(2);

/// A namespace with its stores.
pub(crate) struct World {
    pub(crate) stores: Stores,
    pub(crate) keys: Keys,
    pub(crate) redis: Redis,
    pub(crate) mysql: MySqlPool,
    pub(crate) log: Log,
    objects: TempDir,
}

#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    log: config::Log,
    #[command(flatten)]
    stores: Stores,
}

impl World {
    /// An empty namespace.
    pub(crate) async fn new() -> Self {
        let Environment { log, mut stores } = Environment::try_parse_from(["test"]).unwrap_or_else(|error| {
            panic!("the tests need Kafka, MySQL and Redis, see `make test`: {error}")
        });
        stores.namespace = format!("t{}", Uuid::now_v7().simple());
        let (server, _) = stores.mysql_url.reveal().rsplit_once('/').unwrap();
        let mysql_url = format!("{server}/{}", stores.namespace);
        let admin = mysql::open(stores.mysql_url.reveal(), 1).unwrap();
        let create = format!("CREATE DATABASE {}", stores.namespace);
        sqlx::query(AssertSqlSafe(create)).execute(&admin).await.unwrap();
        stores.mysql_url = mysql_url.into();
        let topics = Topics::new(&stores.namespace);
        let world = Self {
            keys: Keys::new(&stores.namespace, stores.shards),
            redis: Redis::open(stores.redis_url.reveal()).unwrap(),
            mysql: mysql::open(stores.mysql_url.reveal(), 4).unwrap(),
            log: Log { brokers: log.kafka_brokers, topics },
            objects: TempDir::new().unwrap(),
            stores,
        };
        for projection in projections::ALL {
            world.hset(world.keys.generations(), &[projection.name, "1"]).await;
        }
        world
    }

    /// A namespace with the command side over it, ready.
    pub(crate) async fn with_api() -> (Self, Api) {
        let world = Self::new().await;
        let api = world.ready_api().await;
        (world, api)
    }

    pub(crate) async fn ready_api(&self) -> Api {
        let readiness = Readiness::new();
        let api = self.start(self.kafka(), self.stores.clone(), &readiness).await;
        until("the command side is ready", async || readiness.missing().is_none()).await;
        api
    }

    /// The command side, cut off from the log.
    pub(crate) async fn api_without_log(&self) -> Api {
        let api = self.start(dead_kafka(), self.stores.clone(), &Readiness::new()).await;
        until("there are ids", async || api.state.ids.next().is_ok()).await;
        api
    }

    /// Where the log is, as a setting.
    pub(crate) fn kafka(&self) -> config::Log {
        config::Log {
            kafka_brokers: self.log.brokers.clone(),
            session_timeout_ms: config::SESSION_TIMEOUT_MS,
        }
    }

    /// The command side over this log and these stores or others, which may not be there.
    pub(crate) async fn start(&self, log: config::Log, stores: Stores, readiness: &Readiness) -> Api {
        let settings = Settings {
            command: CommandConfig {
                partitions: PARTITIONS,
                replication: 1,
                command_mysql_connections: 8,
                max_upload_bytes: 1024 * 1024,
                max_uploads: 4,
            },
            api: ApiConfig {
                public_base: None,
                object_store: format!("file://{}", self.objects.path().display()),
                jwt_keys: "a:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned().into(),
            },
            log,
            stores,
            media_base: "http://media".to_owned(),
            clock: Clock::system(),
        };
        Api::new(start(&settings, readiness).await.unwrap())
    }

    /// Makes users known.
    pub(crate) async fn users(&self, ids: &[i64]) {
        for id in ids {
            self.hset(self.keys.user_card(*id), &["name", &format!("user {id}")]).await;
            let insert = sqlx::query("INSERT INTO users VALUES (?, ?, 0)").bind(id);
            insert.bind(format!("user {id}")).execute(&self.mysql).await.unwrap();
        }
    }

    /// Makes a video known.
    pub(crate) async fn video(&self, id: i64, author: i64, state: VideoState) {
        let fields = ["author", &author.to_string(), "state", &state.number().to_string(), "title", "t"];
        self.hset(self.keys.video_card(id), &fields).await;
        let insert = sqlx::query("INSERT INTO videos VALUES (?, ?, 't', ?, 0, 0, '', '', '')");
        insert.bind(id).bind(author).bind(state.number()).execute(&self.mysql).await.unwrap();
    }

    /// Makes a comment known.
    pub(crate) async fn comment(&self, id: i64, video: i64, user: i64) {
        let insert = sqlx::query("INSERT INTO comments VALUES (?, ?, ?, 'text', 0, FALSE)");
        insert.bind(video).bind(id).bind(user).execute(&self.mysql).await.unwrap();
    }

    /// Says that a projection has passed a position, such as `likes:1:7`.
    pub(crate) async fn passed(&self, projection: Projection, position: &str) {
        let (field, offset) = position.rsplit_once(':').unwrap();
        self.hset(self.keys.progress(&projection), &[field, offset]).await;
    }

    /// The marks that readers of a scope find, as positions.
    pub(crate) async fn marks(&self, scope: &str) -> Vec<String> {
        let key = self.keys.recent_writes(scope);
        let command = cmd("ZRANGE").arg(key).arg(0).arg(-1).arg("WITHSCORES").take();
        let marks: Vec<(String, i64)> = self.redis.query(&command).await.unwrap();
        marks.into_iter().map(|(field, offset)| format!("{field}:{offset}")).collect()
    }

    pub(crate) async fn count(&self, table: &str) -> i64 {
        let query = format!("SELECT COUNT(*) FROM {table}");
        sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.mysql).await.unwrap()
    }

    async fn hset(&self, key: impl ToRedisArgs, fields: &[&str]) {
        let command = cmd("HSET").arg(key).arg(fields).take();
        self.redis.query::<redis::Value>(&command).await.unwrap();
    }
}

/// Waits for a condition, with a bound.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let reached = async {
        while !condition().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("waited too long until {what}"));
}
