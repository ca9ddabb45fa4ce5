//! A `standalone` process in its own namespace.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::OnceLock,
};

use reqwest::Client;
use tempfile::TempDir;
use vidlog_contract::Tokens;
use vidlog_projectors::audit;
use vidlog_service_kit::config::{self, Stores};
use vidlog_test_support::{ChildProcess, Namespace};
use vidlog_test_support_kafka::{Kafka, PARTITIONS};

pub(crate) use vidlog_test_support::{DEADLINE, until};

/// Token keys of the system under test, so that tests can sign tokens of users without an account.
const JWT_KEYS: &str = "test:0123456789abcdef0123456789abcdef";

/// The origin that the CORS settings of the system under test allow.
pub(crate) const ALLOWED_ORIGIN: &str = "https://app.example";

/// The system under test.
pub(crate) struct App {
    pub(crate) log: config::Kafka,
    pub(crate) stores: Stores,
    pub(crate) http: Client,
    objects: TempDir,
    process: Process,
}

/// Addresses of log and stores that differ from those of the tests, such as a proxy.
#[derive(Clone, Default)]
pub(crate) struct AddressOverrides {
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
        Self::start_with(AddressOverrides::default()).await
    }

    pub(crate) async fn start_with(overrides: AddressOverrides) -> Self {
        let Namespace { stores, .. } = Namespace::create().await;
        let log = Kafka::connect(&stores.namespace).await.settings;
        let objects = TempDir::new().unwrap();
        let process = Process::start(&log, &stores, &overrides, &objects);
        let app = Self { log, stores, http: Client::new(), objects, process };
        app.until_ready().await;
        app
    }

    /// Kills the process with SIGKILL and starts a new one.
    pub(crate) async fn kill_and_restart(&mut self) {
        self.process.child.kill();
        self.process = Process::start(&self.log, &self.stores, &AddressOverrides::default(), &self.objects);
        self.until_ready().await;
    }

    /// Sends SIGTERM; returns the exit code.
    pub(crate) async fn terminate(self) -> Option<i32> {
        self.process.child.terminate().await.code()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.process.base)
    }

    pub(crate) fn ops_url(&self, path: &str) -> String {
        format!("{}{path}", self.process.ops)
    }

    /// Audits the views once they have caught up with the log; panics with the differences if there are any.
    pub(crate) async fn assert_views_equal_the_log(&self) -> audit::Report {
        let report = audit::audit(&self.log, &self.stores).await.unwrap();
        assert!(report.differences.is_empty(), "{:#?}", report.differences);
        report
    }

    async fn until_ready(&self) {
        until("the system is ready", async || {
            self.http.get(self.ops_url("/readyz")).send().await.is_ok_and(|response| response.status() == 200)
        })
        .await;
    }
}

impl Process {
    fn start(log: &config::Kafka, stores: &Stores, overrides: &AddressOverrides, objects: &TempDir) -> Self {
        let mut mysql_url = url::Url::parse(stores.mysql_url.reveal()).unwrap();
        if let Some(port) = overrides.mysql_port {
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
            .args(["--kafka-brokers", overrides.kafka.as_deref().unwrap_or(&log.kafka_brokers)])
            .args(["--redis-url", overrides.redis.as_deref().unwrap_or(stores.redis_url.reveal())])
            .args(["--mysql-url", mysql_url.as_str()])
            .args(["--object-store", &format!("file://{}", objects.path().display())])
            .stdout(Stdio::piped());
        let mut child = ChildProcess::spawn(&mut command);
        let mut lines = BufReader::new(child.take_stdout().unwrap()).lines();
        let mut address = |what: &str| {
            let line = lines.next().expect("standalone prints its addresses").unwrap();
            line.strip_prefix(what).unwrap_or_else(|| panic!("expected {what:?}, got {line:?}")).to_owned()
        };
        let (base, ops) = (address("api "), address("ops "));
        Self { child, base, ops }
    }
}

/// Returns a signer with the keys of the system under test.
pub(crate) fn tokens() -> Tokens {
    let clock = vidlog_service_kit::clock::Clock::system();
    Tokens::parse(JWT_KEYS, move || clock.now_ms()).unwrap()
}

/// Returns a real MP4 of one second, rendered once.
pub(crate) fn mp4() -> &'static [u8] {
    static MP4: OnceLock<Vec<u8>> = OnceLock::new();
    MP4.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("video.mp4");
        let status = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=128x96:rate=10:duration=1"])
            .args(["-f", "lavfi", "-i", "sine=duration=1", "-pix_fmt", "yuv420p", "-shortest"])
            .arg(&file)
            .status()
            .expect("the tests need ffmpeg");
        assert!(status.success());
        std::fs::read(file).unwrap()
    })
}
