//! A `standalone` process in a namespace of its own.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use clap::Parser;
use reqwest::Client;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use vidlog_contract::Tokens;
use vidlog_projectors::audit;
use vidlog_service_kit::{
    config::{Log, Stores},
    mysql,
};

use crate::client::User;

/// A bound on what should take a second or two: the machine may be busy.
pub(crate) const BOUND: Duration = Duration::from_mins(3);
/// Partitions of a test's topics: enough that keys spread, few enough that many tests share one broker.
const PARTITIONS: &str = "3";
/// Signs tokens of callers that need no account, such as a thousand likers.
const JWT_KEYS: &str = "test:0123456789abcdef0123456789abcdef";

/// The system under test.
pub(crate) struct App {
    pub(crate) log: Log,
    pub(crate) stores: Stores,
    pub(crate) http: Client,
    objects: TempDir,
    process: Process,
}

/// Where the system finds its stores, when not where the tests find them.
#[derive(Clone, Default)]
pub(crate) struct Detours {
    pub(crate) kafka: Option<String>,
    pub(crate) mysql_port: Option<u16>,
    pub(crate) redis: Option<String>,
}

struct Process {
    child: Child,
    base: String,
    ops: String,
}

#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    stores: Stores,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::start_with(Detours::default()).await
    }

    pub(crate) async fn start_with(detours: Detours) -> Self {
        let Environment { log, mut stores } = Environment::try_parse_from(["test"]).unwrap_or_else(|error| {
            panic!("the tests need Kafka, MySQL and Redis, see `make test`: {error}")
        });
        stores.namespace = format!("t{}", Uuid::now_v7().simple());
        let admin = mysql::open(stores.mysql_url.reveal(), 1).unwrap();
        let create = format!("CREATE DATABASE {}", stores.namespace);
        sqlx::query(sqlx::AssertSqlSafe(create)).execute(&admin).await.unwrap();
        let (server, _) = stores.mysql_url.reveal().rsplit_once('/').unwrap();
        stores.mysql_url = format!("{server}/{}", stores.namespace).into();

        let objects = TempDir::new().unwrap();
        let process = Process::start(&log, &stores, &detours, &objects);
        let app = Self { log, stores, http: Client::new(), objects, process };
        app.until_ready().await;
        app
    }

    /// `kill -9`, and a new process.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.process.child.kill().unwrap();
        self.process.child.wait().unwrap();
        self.process = Process::start(&self.log, &self.stores, &Detours::default(), &self.objects);
        self.until_ready().await;
    }

    /// SIGTERM; returns the exit code.
    pub(crate) async fn terminate(mut self) -> Option<i32> {
        let pid = self.process.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let ended = async {
            loop {
                if let Some(status) = self.process.child.try_wait().unwrap() {
                    return status.code();
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(BOUND, ended).await.expect("the process drains in time")
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.process.base)
    }

    pub(crate) fn ops_url(&self, path: &str) -> String {
        format!("{}{path}", self.process.ops)
    }

    /// Somebody who has a valid token but never registered: enough to like, and cheap.
    pub(crate) fn stranger(&self, id: i64) -> User<'_> {
        User { app: self, id, name: String::new(), token: tokens().sign(id).unwrap() }
    }

    /// Audits the views, which have to come up with the log; panics with the differences if there are any.
    pub(crate) async fn assert_views_equal_the_log(&self) -> audit::Report {
        let report = audit::audit(&self.log, &self.stores).await.unwrap();
        assert!(report.differences.is_empty(), "{:#?}", report.differences);
        report
    }

    async fn until_ready(&self) {
        until("the system is ready", async || {
            self.http.get(self.ops_url("/readyz")).send().await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
    }
}

impl Process {
    fn start(log: &Log, stores: &Stores, detours: &Detours, objects: &TempDir) -> Self {
        let mut mysql_url = url::Url::parse(stores.mysql_url.reveal()).unwrap();
        if let Some(port) = detours.mysql_port {
            mysql_url.set_port(Some(port)).unwrap();
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_standalone"))
            .args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log", "warn"])
            .args(["--partitions", PARTITIONS, "--namespace", &stores.namespace, "--jwt-keys", JWT_KEYS])
            .args(["--kafka-brokers", detours.kafka.as_deref().unwrap_or(&log.kafka_brokers)])
            .args(["--redis-url", detours.redis.as_deref().unwrap_or(stores.redis_url.reveal())])
            .args(["--mysql-url", mysql_url.as_str()])
            .args(["--object-store", &format!("file://{}", objects.path().display())])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = |what: &str| {
            let line = lines.next().expect("standalone says where it answers").unwrap();
            line.strip_prefix(what).unwrap_or_else(|| panic!("expected {what:?}, got {line:?}")).to_owned()
        };
        let (base, ops) = (address("api "), address("ops "));
        Self { child, base, ops }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Waits for a condition, with a bound.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let reached = async {
        while !condition().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(BOUND, reached).await.unwrap_or_else(|_| panic!("waited too long until {what}"));
}

/// The keys that the system under test trusts.
pub(crate) fn tokens() -> Tokens {
    let clock = vidlog_service_kit::clock::Clock::system();
    Tokens::parse(JWT_KEYS, move || clock.now_ms()).unwrap()
}

/// A real MP4 of one second, made once.
pub(crate) fn mp4() -> &'static [u8] {
    static MP4: OnceLock<Vec<u8>> = OnceLock::new();
    MP4.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("video.mp4");
        let made = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=128x96:rate=10:duration=1"])
            .args(["-f", "lavfi", "-i", "sine=duration=1", "-pix_fmt", "yuv420p", "-shortest"])
            .arg(&file)
            .status()
            .expect("the tests need ffmpeg");
        assert!(made.success());
        std::fs::read(file).unwrap()
    })
}
