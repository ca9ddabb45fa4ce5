//! The system under test: command-api and projectors in a namespace of their own, each process behind proxies.

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
    config::{Log, Stores},
    mysql,
};
use vidlog_test_support::{Condition, Link, Proxy};

use crate::{
    connection_owner::ConnectionOwners,
    fault::{Failpoint, Process},
    instance::{Death, Instance, Launch, Links},
    operator::Operator,
    plan::{EXTRA, Plan, REGULAR},
    stack::Store,
    until,
};

/// Signs the tokens of the load's users.
pub(crate) const JWT_KEYS: &str = "chaos:0123456789abcdef0123456789abcdef";
/// Partitions of the topics: enough that keys spread and instances share them.
const PARTITIONS: &str = "3";
/// A process that is stopped is replaced after this and the time that a rebalance takes.
const SESSION_TIMEOUT_MS: &str = "3000";
/// Between two looks whether a process died.
const TEND_EVERY: Duration = Duration::from_millis(50);

/// What all seeds have in common.
pub(crate) struct Surroundings {
    /// The log, reached directly.
    pub(crate) log: Log,
    /// The stores, reached directly; namespace and database are those of no seed.
    pub(crate) stores: Stores,
    /// What clients of the log are told to connect to: the proxy before it.
    pub(crate) kafka_proxy: String,
    /// Who takes which way through that proxy.
    pub(crate) owners: ConnectionOwners,
    /// Where command-api listens, and its ops port.
    pub(crate) api: [String; 2],
    /// Where the programs are.
    pub(crate) programs: PathBuf,
}

/// A system.
pub(crate) struct System {
    /// The log, reached directly.
    pub(crate) log: Log,
    /// The stores, reached directly.
    pub(crate) stores: Stores,
    /// Its tables, reached directly.
    pub(crate) tables: MySqlPool,
    /// command-api.
    pub(crate) api: Arc<Instance>,
    /// The projectors: first those that always run.
    pub(crate) projectors: Vec<Arc<Instance>>,
    /// Who operates it.
    pub(crate) operator: Operator,
    /// How processes died so far.
    pub(crate) deaths: Arc<Mutex<Vec<(String, Death)>>>,
    /// Where command-api answers.
    pub(crate) base: String,
    ops: String,
    _proxies: Vec<Proxy>,
    _supervisor: AbortOnDropHandle<()>,
}

impl System {
    /// Starts a system in a new namespace.
    pub(crate) async fn start(
        around: &Surroundings,
        plan: &Plan,
        name: &str,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let mut stores = around.stores.clone();
        name.clone_into(&mut stores.namespace);
        let admin = mysql::open(stores.mysql_url.reveal(), 1)?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&admin).await?;
        let mut database = Url::parse(stores.mysql_url.reveal())?;
        database.set_path(name);
        stores.mysql_url = database.to_string().into();
        let tables = mysql::open(stores.mysql_url.reveal(), 2)?;

        let mut launcher = Launcher { around, stores: &stores, folder, proxies: Vec::new() };
        let api = launcher.instance(Process::Api, plan.api.clone()).await?;
        let mut projectors = Vec::new();
        for number in 0..REGULAR + EXTRA {
            let failpoints = plan.projectors.get(number).cloned().unwrap_or_default();
            projectors.push(launcher.instance(Process::Projectors(number), failpoints).await?);
        }
        let deaths = Arc::new(Mutex::default());
        let operator = launcher.operator(&deaths).await?;
        let proxies = launcher.proxies;

        let all = [slice::from_ref(&api), &projectors].concat();
        let supervisor = AbortOnDropHandle::new(tokio::spawn(supervise(all, deaths.clone())));
        let [base, ops] = around.api.each_ref().map(|address| format!("http://{address}"));
        let log = around.log.clone();
        let system = Self {
            log,
            stores,
            tables,
            api,
            projectors,
            operator,
            deaths,
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

    /// A process of it, unless it is one of the operator's.
    pub(crate) fn instance(&self, process: Process) -> Option<&Arc<Instance>> {
        match process {
            Process::Api => Some(&self.api),
            Process::Projectors(number) => Some(&self.projectors[number]),
            Process::Operator => None,
        }
    }

    /// The ways from a process.
    pub(crate) fn links(&self, process: Process) -> &Links {
        self.instance(process).map_or(&self.operator.links, |instance| &instance.links)
    }

    /// Held by the fault that a process suffers.
    pub(crate) fn turn(&self, process: Process) -> &tokio::sync::Mutex<()> {
        self.instance(process).map_or(&self.operator.turn, |instance| &instance.turn)
    }

    /// Ends all faults of its own: opens every way, and wakes and starts whatever should run.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
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

    /// Waits until command-api has given all that it took to the log, and ends it.
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

/// Makes the processes of a system.
struct Launcher<'a> {
    around: &'a Surroundings,
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
                    format!("--listen={}", self.around.api[0]),
                    format!("--ops-listen={}", self.around.api[1]),
                    format!("--jwt-keys={JWT_KEYS}"),
                    format!("--partitions={PARTITIONS}"),
                    format!("--object-store=file://{}/objects", self.folder.display()),
                ],
            ),
            Process::Projectors(_) | Process::Operator => {
                ("projectors", vec!["run".to_owned(), "--ops-listen=127.0.0.1:0".to_owned()])
            }
        };
        let mut environment = self.environment(&links).await?;
        environment.push(("VIDLOG_SESSION_TIMEOUT_MS", SESSION_TIMEOUT_MS.to_owned()));
        environment.push(("VIDLOG_LOG", "info".to_owned()));
        let name = process.to_string();
        let launch = Launch {
            program: self.around.programs.join(program),
            log: self.folder.join(format!("{name}.log")),
            name,
            arguments,
            environment,
            failpoints,
        };
        Ok(Arc::new(Instance::new(launch, links, self.around.owners.clone())))
    }

    async fn operator(&mut self, deaths: &Arc<Mutex<Vec<(String, Death)>>>) -> anyhow::Result<Operator> {
        let links = Links::open();
        Ok(Operator {
            program: self.around.programs.join("projectors"),
            environment: self.environment(&links).await?,
            folder: self.folder.to_owned(),
            links,
            turn: tokio::sync::Mutex::default(),
            owners: self.around.owners.clone(),
            deaths: deaths.clone(),
            given: AtomicU32::default(),
        })
    }

    /// What tells a process where all is, by ways of its own.
    async fn environment(&mut self, links: &Links) -> anyhow::Result<Vec<(&'static str, String)>> {
        let mysql = self.detour(self.stores.mysql_url.reveal(), &links.mysql).await?;
        let redis = self.detour(self.stores.redis_url.reveal(), &links.redis).await?;
        Ok(vec![
            ("VIDLOG_NAMESPACE", self.stores.namespace.clone()),
            ("VIDLOG_SHARDS", self.stores.shards.to_string()),
            ("VIDLOG_KAFKA_BROKERS", self.around.kafka_proxy.clone()),
            ("VIDLOG_MYSQL_URL", mysql.to_string()),
            ("VIDLOG_REDIS_URL", redis.to_string()),
        ])
    }

    /// The same address by way of a proxy.
    async fn detour(&mut self, address: &str, link: &Arc<Link>) -> anyhow::Result<Url> {
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

async fn supervise(instances: Vec<Arc<Instance>>, deaths: Arc<Mutex<Vec<(String, Death)>>>) {
    loop {
        for instance in &instances {
            let death = match instance.tend() {
                Ok(None) => continue,
                Ok(Some(death)) => death,
                Err(error) => Death::ByItself(format!("{error:#}")),
            };
            deaths.lock().unwrap_or_else(PoisonError::into_inner).push((instance.to_string(), death));
        }
        sleep(TEND_EVERY).await;
    }
}
