//! A Redis Cluster: each command goes to the owner of its slot and follows redirections.
//!
//! A command is sent again only if a node replied that it did not execute it (`MOVED`, `ASK`). A command whose reply is
//! lost fails, as on a single server, because it may have been executed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::{join_all, select_ok};
use redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value, cmd, from_redis_value,
};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use super::{
    address::{Endpoint, Seeds},
    connection::Connection,
    pending_commands::{Batch, PendingCommands},
    slot_map::{self, Node, SlotMap, SlotRange},
};

/// How long a call may take, with all its redirections.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Rounds of a call before it fails: a migrating slot costs two, and commands that wait for others of their slot cost
/// more.
const MAX_REDIRECTIONS: usize = 8;
/// The shortest interval between two refreshes of the slot map because of failed calls. While a node is down, the calls
/// that need it fail at once, hundreds of times a second; without the interval every other call would fetch the map anew.
/// It bounds how late a failover is detected.
const FAILURE_REFRESH_INTERVAL: Duration = Duration::from_millis(250);

/// A cluster. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    seeds: Seeds,
    seed_nodes: Vec<Arc<Node>>,
    slots: watch::Sender<Arc<SlotMap>>,
    /// Incremented whenever the slot map may be out of date: initially, and when a node fails.
    topology_epoch: AtomicU64,
    /// The topology epoch of the last successful refresh.
    refreshed_epoch: AtomicU64,
    /// When a failed call last invalidated the slot map.
    failed_at: parking_lot::Mutex<Option<Instant>>,
    /// The last refreshes. Locked during a refresh.
    refreshes: Mutex<Refreshes>,
}

/// The last refreshes of the slot map, for callers that waited for them.
#[derive(Default)]
struct Refreshes {
    /// The start of the last successful one.
    succeeded: Option<Instant>,
    /// The end of the last failed one, with its error.
    failed: Option<(Instant, RedisError)>,
}

impl Cluster {
    /// Prepares a cluster, which is connected to on first use.
    pub(crate) fn open(seeds: Seeds) -> RedisResult<Self> {
        let seed_nodes: RedisResult<Vec<_>> =
            seeds.endpoints.iter().map(|endpoint| open_node(&seeds, endpoint)).collect();
        let shared = Shared {
            seed_nodes: seed_nodes?,
            seeds,
            slots: watch::Sender::new(Arc::new(SlotMap::empty())),
            topology_epoch: AtomicU64::new(1),
            refreshed_epoch: AtomicU64::new(0),
            failed_at: parking_lot::Mutex::default(),
            refreshes: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Sends one command.
    pub(crate) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        if slot_map::targets_all_primaries(command) {
            return self.with_timeout(self.query_all_primaries(command)).await;
        }
        let replies = self.pipeline(std::slice::from_ref(command)).await?;
        replies.into_iter().next().ok_or_else(|| (ErrorKind::Client, "there is no reply").into())
    }

    /// Sends commands and returns their replies in order.
    pub(crate) async fn pipeline(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        self.with_timeout(self.execute(commands)).await
    }

    /// Fetches the slot map, even if the cached one is current.
    pub(crate) async fn refresh_slots(&self) -> RedisResult<Arc<SlotMap>> {
        self.invalidate_slots();
        self.with_timeout(self.slots()).await
    }

    /// Bounds a call in time. Invalidates the slot map if a node failed, because its slots may have moved.
    async fn with_timeout<T>(&self, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let result = timeout(CALL_TIMEOUT, call)
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
        if let Err(error) = &result
            && (error.is_io_error() || error.kind() == ServerErrorKind::ClusterDown.into())
        {
            self.invalidate_slots_after_failure();
        }
        result
    }

    async fn execute(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        let mut pending = PendingCommands::new(commands)?;
        for _ in 0..MAX_REDIRECTIONS {
            let slots = self.slots().await?;
            let batches = pending.batches(&slots)?;
            // Awaits every batch, so no command is in flight when the call returns.
            for (batch, replies) in join_all(batches.into_iter().map(Batch::send)).await {
                for redirection in pending.store_replies(&batch, replies?)? {
                    let node = self.node(&redirection.to)?;
                    self.update_slot(redirection.moved_slot, &node);
                    pending.redirect(&redirection, node);
                }
            }
            if pending.are_finished() {
                return pending.into_replies();
            }
        }
        Err((ErrorKind::Server(ServerErrorKind::TryAgain), "slots are migrating").into())
    }

    /// Refreshes the slot map first: after a failover the old primary may reply as a replica, so the cached map would
    /// miss the new one unnoticed.
    async fn query_all_primaries(&self, command: &Cmd) -> RedisResult<Value> {
        self.invalidate_slots();
        let slots = self.slots().await?;
        let replies = join_all(slots.nodes().map(|node| node.connection.query(command))).await;
        let mut last = Value::Nil;
        for reply in replies {
            last = reply?;
        }
        Ok(last)
    }

    fn invalidate_slots(&self) {
        self.shared.topology_epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Invalidates the slot map at most once per interval.
    fn invalidate_slots_after_failure(&self) {
        let mut failed_at = self.shared.failed_at.lock();
        if failed_at.is_none_or(|at| at.elapsed() >= FAILURE_REFRESH_INTERVAL) {
            *failed_at = Some(Instant::now());
            self.invalidate_slots();
        }
    }

    fn are_slots_current(&self) -> bool {
        self.shared.refreshed_epoch.load(Ordering::Acquire)
            >= self.shared.topology_epoch.load(Ordering::Acquire)
    }

    /// The current slot map. One caller at a time refreshes it; callers that waited meanwhile share the outcome.
    async fn slots(&self) -> RedisResult<Arc<SlotMap>> {
        let called_at = Instant::now();
        if self.are_slots_current() {
            return Ok(Arc::clone(&self.shared.slots.borrow()));
        }
        let mut refreshes = self.shared.refreshes.lock().await;
        if let Some((at, error)) = refreshes.failed.as_ref()
            && *at >= called_at
        {
            return Err(error.clone());
        }
        // A refresh that started later than the call serves it, even if another call has failed since.
        let is_refreshed = refreshes.succeeded.is_some_and(|at| at >= called_at);
        if !is_refreshed && !self.are_slots_current() {
            let start = Instant::now();
            // Read before the fetch: a failure during the fetch is not covered by its reply.
            let epoch = self.shared.topology_epoch.load(Ordering::Acquire);
            match self.fetch_slots().await {
                Ok(slots) => {
                    self.shared.slots.send_replace(Arc::new(slots));
                    refreshes.succeeded = Some(start);
                }
                Err(error) => {
                    refreshes.failed = Some((Instant::now(), error.clone()));
                    return Err(error);
                }
            }
            self.shared.refreshed_epoch.store(epoch, Ordering::Release);
        }
        Ok(Arc::clone(&self.shared.slots.borrow()))
    }

    /// Asks every cached node and every seed node for the slot map, and takes the first reply.
    async fn fetch_slots(&self) -> RedisResult<SlotMap> {
        let cached = Arc::clone(&self.shared.slots.borrow());
        let mut nodes: Vec<_> = cached.nodes().cloned().collect();
        nodes.extend(
            self.shared.seed_nodes.iter().filter(|node| cached.node(&node.endpoint).is_none()).cloned(),
        );
        let (ranges, _) = select_ok(nodes.iter().map(|node| Box::pin(fetch_slots_from(node)))).await?;
        let mut slots = SlotMap::empty();
        for range in ranges {
            slots.assign(range.first, range.last, &self.node(&range.owner)?);
        }
        Ok(slots)
    }

    /// The node at an endpoint, with the connection that exists to it, if any.
    fn node(&self, endpoint: &Endpoint) -> RedisResult<Arc<Node>> {
        let cached = Arc::clone(&self.shared.slots.borrow());
        let seed = || self.shared.seed_nodes.iter().find(|node| node.endpoint == *endpoint);
        match cached.node(endpoint).or_else(seed) {
            Some(node) => Ok(Arc::clone(node)),
            None => open_node(&self.shared.seeds, endpoint),
        }
    }

    /// Applies a redirection to the slot map: `MOVED` changes the owner, `ASK` only adds the node.
    fn update_slot(&self, moved_slot: Option<u16>, node: &Arc<Node>) {
        self.shared.slots.send_modify(|slots| match moved_slot {
            Some(slot) => Arc::make_mut(slots).assign(slot, slot, node),
            None if slots.node(&node.endpoint).is_none() => Arc::make_mut(slots).add(node),
            None => {}
        });
    }
}

fn open_node(seeds: &Seeds, endpoint: &Endpoint) -> RedisResult<Arc<Node>> {
    let connection = Connection::open(seeds.info(endpoint))?;
    Ok(Arc::new(Node { endpoint: endpoint.clone(), connection }))
}

/// Fetches the slot ranges from one node. Fails if the node is not part of a complete cluster, because then its slot
/// map may be out of date.
async fn fetch_slots_from(node: &Node) -> RedisResult<Vec<SlotRange>> {
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.add_command(cmd("CLUSTER").arg("INFO").take());
    pipeline.add_command(cmd("CLUSTER").arg("SLOTS").take());
    let mut replies = node.connection.replies(&pipeline).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Value::Nil).extract_error();
    let info: String = from_redis_value(next()?)?;
    if !info.contains("cluster_state:ok") {
        return Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "the cluster is not complete").into());
    }
    slot_map::parse_slots(next()?, &node.endpoint)
}
