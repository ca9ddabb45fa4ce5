//! The command side in one namespace per test. Tests fill the read models themselves, in place of projectors.

use std::ops::Deref;

use redis::{ToRedisArgs, cmd};
use sqlx::AssertSqlSafe;
use tempfile::TempDir;
use vidlog_command_api::{CommandApi, Settings, config::CommandConfig, start, state::CommandState};
use vidlog_contract::{config::ApiConfig, http::Origins};
use vidlog_rate_limits::RateLimitConfig;
use vidlog_schemas::{
    projections::{self, Projection},
    rows::VideoState,
};
use vidlog_service_kit::{
    clock::Clock,
    config::{self, Stores},
    ops::Readiness,
    serve::ConnectionLimits,
};
use vidlog_test_support::{Namespace, api};
use vidlog_test_support_kafka::Kafka;

pub(crate) use vidlog_test_support::{Answer, Call, UNREACHABLE_MYSQL, UNREACHABLE_REDIS, until};
pub(crate) use vidlog_test_support_kafka::{LoggedEvent, PARTITIONS, unreachable_kafka};

/// A namespace with its stores and topics.
pub(crate) struct World {
    pub(crate) log: Kafka,
    namespace: Namespace,
    objects: TempDir,
}

/// The command side in this process, with one method per command.
pub(crate) struct Api {
    pub(crate) state: CommandState,
    client: api::Api,
    running: CommandApi,
}

impl Deref for World {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

impl World {
    /// An empty namespace.
    pub(crate) async fn new() -> Self {
        let namespace = Namespace::create().await;
        let log = Kafka::connect(&namespace.stores.namespace).await;
        let world = Self { log, namespace, objects: TempDir::new().unwrap() };
        for projection in projections::ALL {
            world.hset(world.keys.generations(), &[projection.name, "1"]).await;
        }
        world
    }

    /// An empty namespace with a ready command side.
    pub(crate) async fn with_api() -> (Self, Api) {
        let world = Self::new().await;
        let api = world.ready_api().await;
        (world, api)
    }

    pub(crate) async fn ready_api(&self) -> Api {
        let readiness = Readiness::new();
        let api = self.start(self.kafka(), self.stores.clone(), &readiness).await;
        until("the command side is ready", async || readiness.unready().is_none()).await;
        api
    }

    /// A command side that cannot reach Kafka.
    pub(crate) async fn api_without_log(&self) -> Api {
        let api = self.start(unreachable_kafka(), self.stores.clone(), &Readiness::new()).await;
        until("there are ids", async || api.state.ids.next().is_ok()).await;
        api
    }

    /// Settings that point to the broker.
    pub(crate) fn kafka(&self) -> config::Kafka {
        self.log.settings.clone()
    }

    /// The URL of the object store.
    pub(crate) fn object_store(&self) -> String {
        format!("file://{}", self.objects.path().display())
    }

    /// A command side with any settings, which may point to nothing.
    pub(crate) async fn start(&self, log: config::Kafka, stores: Stores, readiness: &Readiness) -> Api {
        let settings = Settings {
            command: CommandConfig {
                partitions: PARTITIONS,
                replication: 1,
                command_mysql_connections: 8,
                max_upload_bytes: 1024 * 1024,
                max_uploads: 4,
                max_uploads_per_user: 2,
            },
            api: ApiConfig {
                public_base: None,
                object_store: self.object_store(),
                jwt_keys: "a:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned().into(),
                cors_origins: Origins::default(),
                connections: ConnectionLimits::default(),
            },
            limits: RateLimitConfig::default(),
            log,
            stores,
            media_base: "http://media".to_owned(),
            clock: Clock::system(),
        };
        Api::new(start(&settings, readiness).await.unwrap())
    }

    /// Adds users to the read models.
    pub(crate) async fn users(&self, ids: &[i64]) {
        for id in ids {
            self.hset(self.keys.user_card(*id), &["name", &format!("user {id}")]).await;
            let insert = sqlx::query("INSERT INTO users VALUES (?, ?, 0)").bind(id);
            insert.bind(format!("user {id}")).execute(&self.mysql).await.unwrap();
        }
    }

    /// Adds a video to the read models.
    pub(crate) async fn video(&self, id: i64, author: i64, state: VideoState) {
        let fields = ["author", &author.to_string(), "state", &state.number().to_string(), "title", "t"];
        self.hset(self.keys.video_card(id), &fields).await;
        let insert = sqlx::query("INSERT INTO videos VALUES (?, ?, 't', ?, 0, 0, '', '', '')");
        insert.bind(id).bind(author).bind(state.number()).execute(&self.mysql).await.unwrap();
    }

    /// Adds a comment to the read models.
    pub(crate) async fn comment(&self, id: i64, video: i64, user: i64) {
        let insert = sqlx::query("INSERT INTO comments VALUES (?, ?, ?, 'text', 0, FALSE)");
        insert.bind(video).bind(id).bind(user).execute(&self.mysql).await.unwrap();
    }

    /// Publishes a projection's progress: a position such as `likes:1:7`.
    pub(crate) async fn passed(&self, projection: Projection, position: &str) {
        let (field, offset) = position.rsplit_once(':').unwrap();
        self.hset(self.keys.progress(&projection), &[field, offset]).await;
    }

    /// The marks of a scope, as positions.
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

impl Deref for Api {
    type Target = api::Api;

    fn deref(&self) -> &api::Api {
        &self.client
    }
}

impl Api {
    pub(crate) fn new(running: CommandApi) -> Self {
        let state = running.state.clone();
        Self { client: api::Api::new(running.router(), state.tokens.clone()), state, running }
    }

    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }

    pub(crate) async fn register(&self, username: &str) -> Answer {
        self.call(Call::register(username, "secret")).await
    }

    pub(crate) async fn login(&self, username: &str, password: &str) -> Answer {
        self.call(Call::login(username, password)).await
    }

    pub(crate) async fn like(&self, user: i64, video: i64, action: i32) -> Answer {
        self.call_as(user, Call::favorite(video, action)).await
    }

    pub(crate) async fn follow(&self, user: i64, to: i64, action: i32) -> Answer {
        self.call_as(user, Call::relation(to, action)).await
    }

    pub(crate) async fn comment(&self, user: i64, video: i64, text: &str) -> Answer {
        self.call_as(user, Call::comment(video, text)).await
    }

    pub(crate) async fn delete_comment(&self, user: i64, video: i64, comment: i64) -> Answer {
        self.call_as(user, Call::delete_comment(video, comment)).await
    }

    pub(crate) async fn write(&self, user: i64, to: i64, content: &str) -> Answer {
        self.call_as(user, Call::message(to, content)).await
    }
}
