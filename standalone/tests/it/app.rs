//! A `standalone` process in a namespace of its own.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::OnceLock,
};

use reqwest::Client;
use tempfile::TempDir;
use vidlog_contract::Tokens;
use vidlog_projectors::audit;
use vidlog_service_kit::config::{Log, Stores};
use vidlog_test_support::{ChildProcess, Namespace};
use vidlog_test_support_kafka::{Kafka, PARTITIONS};

pub(crate) use vidlog_test_support::{DEADLINE, until};

use crate::client::User;

/// Signs tokens of callers that need no account, such as a thousand likers.
const JWT_KEYS: &str = "test:0123456789abcdef0123456789abcdef";

/// The origin that may call the system under test from a browser.
pub(crate) const ALLOWED_ORIGIN: &str = "https://app.example";

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
    child: ChildProcess,
    base: String,
    ops: String,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::start_with(Detours::default()).await
    }

    pub(crate) async fn start_with(detours: Detours) -> Self {
        let Namespace { stores, .. } = Namespace::create().await;
        let log = Kafka::connect(&stores.namespace).await.settings;
        let objects = TempDir::new().unwrap();
        let process = Process::start(&log, &stores, &detours, &objects);
        let app = Self { log, stores, http: Client::new(), objects, process };
        app.until_ready().await;
        app
    }

    /// `kill -9`, and a new process.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.process.child.kill();
        self.process = Process::start(&self.log, &self.stores, &Detours::default(), &self.objects);
        self.until_ready().await;
    }

    /// SIGTERM; returns the exit code.
    pub(crate) async fn terminate(self) -> Option<i32> {
        self.process.child.terminate().await.code()
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_standalone"));
        command
            .args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--log", "warn"])
            .args(["--cors-origins", ALLOWED_ORIGIN])
            .args([
                "--partitions",
                &PARTITIONS.to_string(),
                "--namespace",
                &stores.namespace,
                "--jwt-keys",
                JWT_KEYS,
            ])
            .args(["--kafka-brokers", detours.kafka.as_deref().unwrap_or(&log.kafka_brokers)])
            .args(["--redis-url", detours.redis.as_deref().unwrap_or(stores.redis_url.reveal())])
            .args(["--mysql-url", mysql_url.as_str()])
            .args(["--object-store", &format!("file://{}", objects.path().display())])
            .stdout(Stdio::piped());
        let mut child = ChildProcess::spawn(&mut command);
        let mut lines = BufReader::new(child.take_stdout().unwrap()).lines();
        let mut address = |what: &str| {
            let line = lines.next().expect("standalone says where it answers").unwrap();
            line.strip_prefix(what).unwrap_or_else(|| panic!("expected {what:?}, got {line:?}")).to_owned()
        };
        let (base, ops) = (address("api "), address("ops "));
        Self { child, base, ops }
    }
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
