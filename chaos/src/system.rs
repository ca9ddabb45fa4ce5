//! The system under test: command-api and projectors in a new namespace, each process behind proxies.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    slice,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32},
    time::Duration,
};

use anyhow::Context;
use reqwest::Client;
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use url::Url;
use vidlog_service_kit::{
    config::{Kafka, Stores},
    mysql,
};
use vidlog_test_support::{Condition, Link, Proxy};

use crate::{
    connection_owner::ConnectionOwners,
    fault::{Failpoint, Process},
    instance::{Crash, Instance, Launch, Links},
    operator::Operator,
    plan::{EXTRA, Plan, REGULAR},
    stack::Store,
    wait::until,
};

/// Signs the tokens of the load generator's callers.
pub(crate) const JWT_KEYS: &str = "chaos:0123456789abcdef0123456789abcdef";
/// Partitions of a topic: enough that keys spread and processes share them.
const PARTITIONS: &str = "3";
/// A suspended process loses its partitions after this time and a rebalance.
const SESSION_TIMEOUT_MS: &str = "3000";
const SUPERVISION_INTERVAL: Duration = Duration::from_millis(50);

/// What all seeds share.
pub(crate) struct Environment {
    /// Kafka, without a proxy.
    pub(crate) log: Kafka,
    /// MySQL and Redis, without proxies; namespace and database belong to no seed.
    pub(crate) stores: Stores,
    /// The address that Kafka advertises: its proxy.
    pub(crate) kafka_proxy: String,
    /// The links of processes through that proxy.
    pub(crate) owners: ConnectionOwners,
    /// The addresses of command-api and of its ops port.
    pub(crate) api: [String; 2],
    /// The folder of the programs.
    pub(crate) programs: PathBuf,
}

/// A running system.
pub(crate) struct System {
    /// Kafka, without a proxy.
    pub(crate) log: Kafka,
    /// MySQL and Redis, without proxies.
    pub(crate) stores: Stores,
    /// Its database, without a proxy.
    pub(crate) tables: MySqlPool,
    /// command-api.
    pub(crate) api: Arc<Instance>,
    /// The projectors; those that always run come first.
    pub(crate) projectors: Vec<Arc<Instance>>,
    /// Its operator.
    pub(crate) operator: Operator,
    /// The crashes of all processes so far.
    pub(crate) crashes: Arc<Mutex<Vec<(String, Crash)>>>,
    /// The URL of command-api.
    pub(crate) base: String,
    ops: String,
    _proxies: Vec<Proxy>,
    _supervisor: AbortOnDropHandle<()>,
}

impl System {
    /// Starts a system in a new namespace.
    pub(crate) async fn start(
        environment: &Environment,
        plan: &Plan,
        name: &str,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let mut stores = environment.stores.clone();
        name.clone_into(&mut stores.namespace);
        let admin = mysql::open(stores.mysql_url.reveal(), 1)?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await?;
        let mut database = Url::parse(stores.mysql_url.reveal())?;
        database.set_path(name);
        stores.mysql_url = database.to_string().into();
        let tables = mysql::open(stores.mysql_url.reveal(), 2)?;

        let mut launcher = Launcher { environment, stores: &stores, folder, proxies: Vec::new() };
        let api = launcher.instance(Process::Api, plan.api.clone()).await?;
        let mut projectors = Vec::new();
        for number in 0..REGULAR + EXTRA {
            let failpoints = plan.projectors.get(number).cloned().unwrap_or_default();
            projectors.push(launcher.instance(Process::Projectors(number), failpoints).await?);
        }
        let crashes = Arc::new(Mutex::default());
        let operator = launcher.operator(&crashes).await?;
        let proxies = launcher.proxies;

        let all = [slice::from_ref(&api), &projectors].concat();
        let supervisor = AbortOnDropHandle::new(tokio::spawn(supervise(all, crashes.clone())));
        let [base, ops] = environment.api.each_ref().map(|address| format!("http://{address}"));
        let log = environment.log.clone();
        let system = Self {
            log,
            stores,
            tables,
            api,
            projectors,
            operator,
            crashes,
            base,
            ops,
            _proxies: proxies,
            _supervisor: supervisor,
        };
        system.api.start()?;
        system.projectors[..REGULAR].iter().try_for_each(|instance| instance.start())?;
        system.until_ready().await?;
        Ok(system)
    }

    /// A process of the system; none for the operator.
    pub(crate) fn instance(&self, process: Process) -> Option<&Arc<Instance>> {
        match process {
            Process::Api => Some(&self.api),
            Process::Projectors(number) => Some(&self.projectors[number]),
            Process::Operator => None,
        }
    }

    /// The links of a process.
    pub(crate) fn links(&self, process: Process) -> &Links {
        self.instance(process).map_or(&self.operator.links, |instance| &instance.links)
    }

    /// The lock that the fault of a process holds.
    pub(crate) fn fault_lock(&self, process: Process) -> &tokio::sync::Mutex<()> {
        self.instance(process).map_or(&self.operator.fault_lock, |instance| &instance.fault_lock)
    }

    /// Ends the faults of the processes: opens every link, resumes and starts every process that should run.
    pub(crate) async fn end_faults(&self) -> anyhow::Result<()> {
        for store in Store::ALL {
            self.operator.links.to(store).set(Condition::Open);
        }
        for instance in [slice::from_ref(&self.api), &self.projectors].concat() {
            for store in Store::ALL {
                instance.links.to(store).set(Condition::Open);
            }
            instance.signal(Signal::CONT)?;
        }
        for extra in &self.projectors[REGULAR..] {
            extra.end(Signal::TERM).await?;
        }
        self.api.start()?;
        self.projectors[..REGULAR].iter().try_for_each(|instance| instance.start())
    }

    /// Waits until command-api has appended its whole outbox, and stops it.
    pub(crate) async fn quiesce(&self) -> anyhow::Result<()> {
        self.until_ready().await?;
        until("the outbox is empty", async || {
            let left: sqlx::Result<i64> =
                sqlx::query_scalar("SELECT COUNT(*) FROM outbox").fetch_one(&self.tables).await;
            left.is_ok_and(|left| left == 0)
        })
        .await?;
        self.api.end(Signal::TERM).await
    }

    async fn until_ready(&self) -> anyhow::Result<()> {
        let http = Client::builder().timeout(Duration::from_secs(1)).build()?;
        until("command-api is ready", async || {
            let answer = http.get(format!("{}/readyz", self.ops)).send().await;
            answer.is_ok_and(|answer| answer.status() == 200)
        })
        .await
    }
}

/// Sets up the processes of a system.
struct Launcher<'a> {
    environment: &'a Environment,
    stores: &'a Stores,
    folder: &'a Path,
    proxies: Vec<Proxy>,
}

impl Launcher<'_> {
    async fn instance(
        &mut self,
        process: Process,
        failpoints: VecDeque<Failpoint>,
    ) -> anyhow::Result<Arc<Instance>> {
        let links = Links::open();
        let (program, arguments) = match process {
            Process::Api => (
                "command-api",
                vec![
                    format!("--listen={}", self.environment.api[0]),
                    format!("--ops-listen={}", self.environment.api[1]),
                    format!("--jwt-keys={JWT_KEYS}"),
                    format!("--partitions={PARTITIONS}"),
                    format!("--object-store=file://{}/objects", self.folder.display()),
                ],
            ),
            Process::Projectors(_) | Process::Operator => {
                ("projectors", vec!["run".to_owned(), "--ops-listen=127.0.0.1:0".to_owned()])
            }
        };
        let mut environment = self.variables(&links).await?;
        environment.push(("VIDLOG_SESSION_TIMEOUT_MS", SESSION_TIMEOUT_MS.to_owned()));
        environment.push(("VIDLOG_LOG", "info".to_owned()));
        let name = process.to_string();
        let launch = Launch {
            program: self.environment.programs.join(program),
            log: self.folder.join(format!("{name}.log")),
            name,
            arguments,
            environment,
            failpoints,
        };
        Ok(Arc::new(Instance::new(launch, links, self.environment.owners.clone())))
    }

    async fn operator(&mut self, crashes: &Arc<Mutex<Vec<(String, Crash)>>>) -> anyhow::Result<Operator> {
        let links = Links::open();
        Ok(Operator {
            program: self.environment.programs.join("projectors"),
            environment: self.variables(&links).await?,
            folder: self.folder.to_owned(),
            links,
            fault_lock: tokio::sync::Mutex::default(),
            owners: self.environment.owners.clone(),
            crashes: crashes.clone(),
            commands: AtomicU32::default(),
        })
    }

    /// The environment variables of a process, with proxies over its links.
    async fn variables(&mut self, links: &Links) -> anyhow::Result<Vec<(&'static str, String)>> {
        let mysql = self.proxied(self.stores.mysql_url.reveal(), &links.mysql).await?;
        let redis = self.proxied(self.stores.redis_url.reveal(), &links.redis).await?;
        Ok(vec![
            ("VIDLOG_NAMESPACE", self.stores.namespace.clone()),
            ("VIDLOG_SHARDS", self.stores.shards.to_string()),
            ("VIDLOG_KAFKA_BROKERS", self.environment.kafka_proxy.clone()),
            ("VIDLOG_MYSQL_URL", mysql.to_string()),
            ("VIDLOG_REDIS_URL", redis.to_string()),
        ])
    }

    /// Starts a proxy in front of an address; returns the proxy's address.
    async fn proxied(&mut self, address: &str, link: &Arc<Link>) -> anyhow::Result<Url> {
        let mut url = Url::parse(address)?;
        let (host, port) =
            (url.host_str().unwrap_or_default(), url.port().context("a store's address has no port")?);
        let proxy = Proxy::over("127.0.0.1:0", format!("{host}:{port}"), link.clone()).await?;
        url.set_ip_host(proxy.address.ip()).ok();
        url.set_port(Some(proxy.address.port())).ok();
        self.proxies.push(proxy);
        Ok(url)
    }
}

async fn supervise(instances: Vec<Arc<Instance>>, crashes: Arc<Mutex<Vec<(String, Crash)>>>) {
    loop {
        for instance in &instances {
            let crash = match instance.restart_if_exited() {
                Ok(None) => continue,
                Ok(Some(crash)) => crash,
                Err(error) => Crash::Unexpected(format!("{error:#}")),
            };
            crashes.lock().unwrap_or_else(PoisonError::into_inner).push((instance.to_string(), crash));
        }
        sleep(SUPERVISION_INTERVAL).await;
    }
}
