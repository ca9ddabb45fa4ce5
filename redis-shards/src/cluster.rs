//! A cluster: a command goes to the node that has its key's slot, and follows it where it moves.
//!
//! A command is sent again only if a node answered that it did not carry it out. One whose answer did not come fails,
//! as with one server: what became of it is not known.

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
    node::Node,
    slots::{self, Member, Slots},
};

mod errands;

use self::errands::Errands;

/// How long a call may take, with all the ways that it goes.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// How often commands are sent on before the call fails: a slot that moves costs two hops, its neighbours in the call
/// some more.
const MOST_HOPS: usize = 8;

/// A cluster. Clones share the connections.
#[derive(Clone)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
}

struct Shared {
    seeds: Seeds,
    entries: Vec<Arc<Member>>,
    slots: watch::Sender<Arc<Slots>>,
    /// How often there was reason to ask for the slots: at first, and whenever a node failed.
    doubts: AtomicU64,
    /// How many of them were there when they were last asked for, with success.
    settled_doubts: AtomicU64,
    /// When asking last failed. Held while someone asks.
    asking: Mutex<Option<(Instant, RedisError)>>,
}

impl Cluster {
    /// It connects when it is first used.
    pub(super) fn open(seeds: Seeds) -> RedisResult<Self> {
        let entries: RedisResult<Vec<_>> =
            seeds.endpoints.iter().map(|endpoint| open_member(&seeds, endpoint)).collect();
        let shared = Shared {
            entries: entries?,
            seeds,
            slots: watch::Sender::new(Arc::new(Slots::unknown())),
            doubts: AtomicU64::new(1),
            settled_doubts: AtomicU64::new(0),
            asking: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The answer to a command.
    pub(super) async fn query(&self, command: &Cmd) -> RedisResult<Value> {
        if slots::is_for_all(command) {
            return self.bounded(self.everywhere(command)).await;
        }
        let answers = self.all(std::slice::from_ref(command)).await?;
        answers.into_iter().next().ok_or_else(|| (ErrorKind::Client, "there is no answer").into())
    }

    /// The answers to commands, in order.
    pub(super) async fn all(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        self.bounded(self.carry(commands)).await
    }

    /// Asks where the slots are, whatever was known.
    pub(super) async fn ask_again(&self) -> RedisResult<Arc<Slots>> {
        self.doubt();
        self.bounded(self.slots()).await
    }

    /// Takes a failure of a node for a sign that slots may be elsewhere by now.
    async fn bounded<T>(&self, call: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        let result = timeout(CALL_TIMEOUT, call)
            .await
            .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
        if let Err(error) = &result
            && (error.is_io_error() || error.kind() == ServerErrorKind::ClusterDown.into())
        {
            self.doubt();
        }
        result
    }

    async fn carry(&self, commands: &[Cmd]) -> RedisResult<Vec<Value>> {
        let mut errands = Errands::new(commands)?;
        for _ in 0..MOST_HOPS {
            let slots = self.slots().await?;
            let batches = errands.batches(&slots)?;
            // All of them to the end: a call that returned has nothing under way any more.
            for (batch, answers) in join_all(batches.into_iter().map(errands::Batch::send)).await {
                let redirects = errands.take(&batch, answers?)?;
                for redirect in redirects {
                    let member = self.member(&redirect.to)?;
                    self.learn(redirect.moved_slot, &member);
                    errands.send_on(redirect.errand, member, redirect.moved_slot.is_none());
                }
            }
            if errands.are_done() {
                return errands.into_answers();
            }
        }
        Err((ErrorKind::Server(ServerErrorKind::TryAgain), "slots are on the move").into())
    }

    async fn everywhere(&self, command: &Cmd) -> RedisResult<Value> {
        let slots = self.slots().await?;
        let answers = join_all(slots.members().map(|member| member.node.query(command))).await;
        let mut last = Value::Nil;
        for answer in answers {
            last = answer?;
        }
        Ok(last)
    }

    fn doubt(&self) {
        self.shared.doubts.fetch_add(1, Ordering::AcqRel);
    }

    /// Where the slots are. They are asked for by one caller at a time, and who waited meanwhile takes what came of it.
    async fn slots(&self) -> RedisResult<Arc<Slots>> {
        let came = Instant::now();
        if !self.is_doubtful() {
            return Ok(Arc::clone(&self.shared.slots.borrow()));
        }
        let mut failure = self.shared.asking.lock().await;
        if let Some((at, error)) = failure.as_ref()
            && *at >= came
        {
            return Err(error.clone());
        }
        if self.is_doubtful() {
            // Counted before asking: of what fails while the answer is on its way, the answer says nothing.
            let doubts = self.shared.doubts.load(Ordering::Acquire);
            match self.ask().await {
                Ok(slots) => _ = self.shared.slots.send_replace(Arc::new(slots)),
                Err(error) => {
                    *failure = Some((Instant::now(), error.clone()));
                    return Err(error);
                }
            }
            self.shared.settled_doubts.store(doubts, Ordering::Release);
        }
        Ok(Arc::clone(&self.shared.slots.borrow()))
    }

    fn is_doubtful(&self) -> bool {
        self.shared.settled_doubts.load(Ordering::Acquire) < self.shared.doubts.load(Ordering::Acquire)
    }

    /// Asks every node that is known, and takes the first answer.
    async fn ask(&self) -> RedisResult<Slots> {
        let known = Arc::clone(&self.shared.slots.borrow());
        let mut nodes: Vec<_> = known.members().cloned().collect();
        nodes.extend(
            self.shared.entries.iter().filter(|entry| known.member(&entry.endpoint).is_none()).cloned(),
        );
        let (ranges, _) = select_ok(nodes.iter().map(|member| Box::pin(ask_one(member)))).await?;
        let mut slots = Slots::unknown();
        for range in ranges {
            slots.assign(range.first, range.last, &self.member(&range.owner)?);
        }
        Ok(slots)
    }

    /// The node at an endpoint, with the connection that there may be already.
    fn member(&self, endpoint: &Endpoint) -> RedisResult<Arc<Member>> {
        let known = self.shared.slots.borrow();
        let entry = || self.shared.entries.iter().find(|entry| entry.endpoint == *endpoint);
        match known.member(endpoint).or_else(entry) {
            Some(member) => Ok(Arc::clone(member)),
            None => open_member(&self.shared.seeds, endpoint),
        }
    }

    fn learn(&self, moved_slot: Option<u16>, member: &Arc<Member>) {
        self.shared.slots.send_modify(|slots| match moved_slot {
            Some(slot) => Arc::make_mut(slots).assign(slot, slot, member),
            None if slots.member(&member.endpoint).is_none() => Arc::make_mut(slots).add(member),
            None => {}
        });
    }
}

fn open_member(seeds: &Seeds, endpoint: &Endpoint) -> RedisResult<Arc<Member>> {
    let node = Node::open(seeds.info(endpoint))?;
    Ok(Arc::new(Member { endpoint: endpoint.clone(), node }))
}

/// Asks a node where the slots are. One that is cut off from the others does not know.
async fn ask_one(member: &Member) -> RedisResult<Vec<slots::Range>> {
    let mut pipeline = Pipeline::with_capacity(2);
    pipeline.add_command(cmd("CLUSTER").arg("INFO").take());
    pipeline.add_command(cmd("CLUSTER").arg("SLOTS").take());
    let mut answers = member.node.answers(&pipeline).await?.into_iter();
    let mut next = || answers.next().unwrap_or(Value::Nil).extract_error();
    let info: String = from_redis_value(next()?)?;
    if !info.contains("cluster_state:ok") {
        let error = (ErrorKind::Server(ServerErrorKind::ClusterDown), "the cluster is not whole");
        return Err(error.into());
    }
    slots::read_ranges(next()?, &member.endpoint)
}
