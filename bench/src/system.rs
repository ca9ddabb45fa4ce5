//! A new namespace on the services, and the programs that use it.

use std::{
    env,
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use reqwest::Client;
use serde_json::Value;
use sqlx::{AssertSqlSafe, MySqlPool};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use uuid::Uuid;
use vidlog_service_kit::{
    config::{Kafka, Stores},
    mysql,
};

/// How long a program may take to become ready: command-api creates its tables and topics.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The services, and where the programs are.
#[derive(Args, Debug)]
pub(crate) struct Services {
    /// Folder of the programs; by default that of this one.
    #[arg(long)]
    programs: Option<PathBuf>,
    #[command(flatten)]
    log: Kafka,
    #[command(flatten)]
    stores: Stores,
}

/// A namespace with its own database and object store.
pub(crate) struct System<'a> {
    services: &'a Services,
    namespace: String,
    mysql_url: String,
    folder: TempDir,
    /// Connections to its database.
    pub(crate) mysql: MySqlPool,
}

/// A running program; dropping it kills it.
pub(crate) struct Process {
    child: Child,
    /// Address of its API, if it has one.
    address: String,
    client: Client,
}

impl<'a> System<'a> {
    /// Creates an empty namespace.
    pub(crate) async fn create(services: &'a Services) -> anyhow::Result<Self> {
        let namespace = format!("bench{}", Uuid::new_v4().simple());
        let server_url = services.stores.mysql_url.reveal();
        let server = mysql::open(server_url, 1).context("failed to parse the MySQL URL")?;
        let create = format!("CREATE DATABASE {namespace}");
        sqlx::query(AssertSqlSafe(create)).execute(&server).await.context("failed to create a database")?;
        let (start, _) = server_url.rsplit_once('/').context("the MySQL URL has no database")?;
        let mysql_url = format!("{start}/{namespace}");
        let mysql = mysql::open(&mysql_url, 2)?;
        Ok(Self { services, namespace, mysql_url, folder: TempDir::new()?, mysql })
    }

    /// Drops the database. The topics remain: the services are this measurement's own.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        let remove = format!("DROP DATABASE {}", self.namespace);
        sqlx::query(AssertSqlSafe(remove)).execute(&self.mysql).await?;
        Ok(())
    }

    /// The folder of the object store.
    pub(crate) fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// Starts a program, and waits until it is ready.
    pub(crate) async fn start(&self, program: &str) -> anyhow::Result<Process> {
        std::fs::create_dir_all(self.objects())?;
        let path = self.programs()?.join(program);
        ensure!(
            path.exists(),
            "{} does not exist; build it with --release, or name its folder",
            path.display()
        );
        let log = self.folder.path().join(format!("{program}.log"));
        let (address, ops_address) = (free_address()?, free_address()?);
        let child = Command::new(path)
            .env("VIDLOG_LISTEN", &address)
            .env("VIDLOG_OPS_LISTEN", &ops_address)
            .env("VIDLOG_NAMESPACE", &self.namespace)
            .env("VIDLOG_MYSQL_URL", &self.mysql_url)
            .env("VIDLOG_REDIS_URL", self.services.stores.redis_url.reveal())
            .env("VIDLOG_KAFKA_BROKERS", &self.services.log.kafka_brokers)
            .env("VIDLOG_OBJECT_STORE", format!("file://{}", self.objects().display()))
            .env("VIDLOG_JWT_KEYS", format!("bench:{}", Uuid::new_v4().simple()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start {program}"))?;
        let mut process = Process { child, address, client: Client::new() };
        let ready = timeout(START_TIMEOUT, process.until_ready(&ops_address)).await;
        if !matches!(ready, Ok(Ok(()))) {
            bail!("{program} did not become ready:\n{}", std::fs::read_to_string(log)?);
        }
        Ok(process)
    }

    fn programs(&self) -> anyhow::Result<PathBuf> {
        let own = env::current_exe()?;
        Ok(self.services.programs.clone().or_else(|| own.parent().map(Path::to_owned)).unwrap_or_default())
    }
}

impl Process {
    async fn until_ready(&mut self, ops_address: &str) -> anyhow::Result<()> {
        let url = format!("http://{ops_address}/readyz");
        loop {
            if let Ok(response) = self.client.get(&url).send().await
                && response.status().is_success()
            {
                return Ok(());
            }
            ensure!(self.child.try_wait()?.is_none(), "it exited");
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Kills the program and waits for its exit.
    pub(crate) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Registers a user; returns the answer.
    pub(crate) async fn register(&self, name: &str) -> anyhow::Result<Value> {
        let url =
            format!("http://{}/douyin/user/register/?username={name}&password=a-password", self.address);
        let response = self.client.post(url).send().await?;
        Ok(serde_json::from_str(&response.text().await?)?)
    }

    /// Uploads a file as a user.
    pub(crate) async fn upload(&self, token: &str, file: &[u8]) -> anyhow::Result<()> {
        const BOUNDARY: &str = "a-boundary";
        let mut body = Vec::new();
        for (name, value) in [("token", token.as_bytes()), ("title", b"a title".as_slice()), ("data", file)] {
            let file_name = if name == "data" { "; filename=\"video.mp4\"" } else { "" };
            let head =
                format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file_name}\r\n\r\n");
            body.extend([head.as_bytes(), value, b"\r\n"].concat());
        }
        body.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
        let request = self
            .client
            .post(format!("http://{}/douyin/publish/action/", self.address))
            .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"))
            .body(body);
        let answer: Value = serde_json::from_str(&request.send().await?.text().await?)?;
        ensure!(answer["status_code"] == 0, "the upload failed: {answer}");
        Ok(())
    }

    /// A value of the process's memory in MiB, such as `VmRSS`, which `/proc` has in KiB.
    pub(crate) fn memory_mib(&self, name: &str) -> anyhow::Result<f64> {
        let id = self.child.id().context("the program has exited")?;
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib: f64 = line
            .and_then(|line| line.split_whitespace().next())
            .with_context(|| format!("/proc has no {name}"))?
            .parse()?;
        Ok(kib / 1024.0)
    }
}

/// An address on which nothing listens.
fn free_address() -> anyhow::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
