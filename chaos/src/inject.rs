//! Carries a plan out.

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    sync::{Arc, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::Context;
use futures::future::try_join_all;
use redis::cmd;
use rustix::process::Signal;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, sleep_until},
};
use vidlog_redis_shards::Redis;
use vidlog_test_support::Condition;

use crate::{
    fault::{Fault, Leaving, Planned, Process, Round},
    instance::Instance,
    ledger::Command,
    operate::Deeds,
    operator::Operator,
    poison::Poisoner,
    stack::{Frozen, Stack, Store},
    system::System,
    until,
};

/// How long requests are held up before the process that sends them is stopped: until every partition has sent one.
const HELD_UP: Duration = Duration::from_millis(300);
/// Between two rounds of a storm.
const LULL: Duration = Duration::from_millis(100);

/// What faults are done to.
pub(crate) struct Stage {
    /// The system under test.
    pub(crate) system: System,
    /// What it stands on.
    pub(crate) stack: Arc<Stack>,
    /// Held by whoever kills or stops a store, by store: a store suffers one fault at a time.
    pub(crate) turns: [Mutex<()>; Store::ALL.len()],
    /// Puts bad records into the log.
    pub(crate) poisoner: Poisoner,
    /// Everyone who has an account, once they have.
    pub(crate) users: OnceLock<Vec<i64>>,
    notes: std::sync::Mutex<Notes>,
}

/// What was done so far.
#[derive(Default)]
pub(crate) struct Notes {
    /// By operators.
    pub(crate) deeds: Deeds,
    /// The views that they folded anew, or began to.
    pub(crate) rebuilt: BTreeSet<&'static str>,
    /// What was refused, and why.
    pub(crate) refusals: Vec<String>,
    /// What rebuilds found to differ.
    pub(crate) differing: Vec<String>,
    /// The records that can't be decoded.
    pub(crate) poisoned: Vec<Command>,
}

impl Notes {
    /// Notes what was refused, with the reason in what the command said, on one line: the error, if it names one.
    pub(crate) fn refused(&mut self, what: &str, said: &str) {
        let why: Vec<_> = said[said.find("Error:").unwrap_or(0)..].split_whitespace().collect();
        self.refusals.push(format!("{what}: {}", why.join(" ")));
    }
}

/// Carries out all faults of a plan, each at its time, and returns when the last is over.
pub(crate) async fn inject(stage: &Stage, faults: &[Planned]) -> anyhow::Result<()> {
    let begin = Instant::now();
    let suffered = faults.iter().map(async |Planned { at, fault }| {
        sleep_until(begin + *at).await;
        stage.suffer(fault).await.with_context(|| format!("this fault went wrong: {fault}"))
    });
    try_join_all(suffered).await.map(drop)
}

impl Stage {
    /// A stage on which nothing has happened yet.
    pub(crate) fn new(system: System, stack: Arc<Stack>) -> anyhow::Result<Self> {
        let poisoner = Poisoner::new(&system)?;
        let (turns, users, notes) = Default::default();
        Ok(Self { system, stack, turns, poisoner, users, notes })
    }

    /// What was done so far.
    pub(crate) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who operates the system.
    pub(crate) const fn operator(&self) -> &Operator {
        &self.system.operator
    }

    async fn suffer(&self, fault: &Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill { process, away } => self.kill(*process, *away).await,
            Fault::KillStore { store, away } => self.kill_store(*store, *away).await,
            Fault::Zombie { projectors, away } => self.stop(*projectors, *away).await,
            Fault::Late { projectors, away } => self.delay_writes(*projectors, *away).await,
            Fault::Freeze { store, away } => self.freeze(*store, *away).await,
            Fault::Reset { process, store } => {
                self.system.links(*process).to(*store).reset();
                Ok(())
            }
            Fault::Impair { process, store, condition, lasting } => {
                let _turn = self.system.turn(*process).lock().await;
                let link = self.system.links(*process).to(*store);
                link.set(*condition);
                sleep(*lasting).await;
                link.set(Condition::Open);
                Ok(())
            }
            Fault::Flush => self.flush().await,
            Fault::Rewind { back } => self.rewind(*back).await,
            Fault::Storm { rounds } => self.storm(rounds).await,
            Fault::Rebuild { projection, cut, then } => self.rebuild(projection, cut.as_ref(), *then).await,
            Fault::Pause { projection, lasting, killed } => self.halt(projection, *lasting, *killed).await,
            Fault::Poison(poison) => self.poison(poison).await,
        }
    }

    pub(crate) async fn kill(&self, process: Process, away: Duration) -> anyhow::Result<()> {
        let Some(instance) = self.system.instance(process) else {
            return Ok(());
        };
        let _turn = instance.turn.lock().await;
        instance.end(Signal::KILL).await?;
        sleep(away).await;
        instance.start()
    }

    async fn kill_store(&self, store: Store, away: Duration) -> anyhow::Result<()> {
        let _turn = self.turn(store).lock().await;
        self.stack.kill(store).await?;
        sleep(away).await;
        self.stack.up().await
    }

    async fn stop(&self, projectors: usize, away: Duration) -> anyhow::Result<()> {
        let instance = &self.system.projectors[projectors];
        let _turn = instance.turn.lock().await;
        stop(instance, away).await
    }

    /// Pauses a process whose last requests are held up on their way.
    async fn delay_writes(&self, projectors: usize, away: Duration) -> anyhow::Result<()> {
        let instance = &self.system.projectors[projectors];
        let _turn = instance.turn.lock().await;
        let links = [&instance.links.mysql, &instance.links.redis];
        for link in links {
            link.set(Condition::Stalled);
        }
        sleep(HELD_UP).await;
        let stopped = stop(instance, away).await;
        for link in links {
            link.set(Condition::Open);
        }
        stopped
    }

    async fn freeze(&self, store: Store, away: Duration) -> anyhow::Result<()> {
        let _turn = self.turn(store).lock().await;
        let _frozen = Frozen::new(|| self.stack.freeze(store), || self.stack.wake(store))?;
        sleep(away).await;
        Ok(())
    }

    async fn flush(&self) -> anyhow::Result<()> {
        let _turn = self.turn(Store::Redis).lock().await;
        let redis = Redis::open(self.system.stores.redis_url.reveal())?;
        until("redis is flushed", async || redis.query::<()>(&cmd("FLUSHALL")).await.is_ok()).await
    }

    /// Kills Redis, and takes away what it has written to its file of late.
    async fn rewind(&self, back: Duration) -> anyhow::Result<()> {
        let _turn = self.turn(Store::Redis).lock().await;
        let (file, length) = self.stack.redis_file()?;
        sleep(back).await;
        self.stack.kill(Store::Redis).await?;
        OpenOptions::new().write(true).open(file)?.set_len(length)?;
        self.stack.up().await
    }

    async fn storm(&self, rounds: &[Round]) -> anyhow::Result<()> {
        for round in rounds {
            let instance = &self.system.projectors[round.projectors];
            let _turn = instance.turn.lock().await;
            instance.start()?;
            sleep(round.staying).await;
            match round.leaving {
                Leaving::Terminated => instance.end(Signal::TERM).await?,
                Leaving::Killed => instance.end(Signal::KILL).await?,
            }
            sleep(LULL).await;
        }
        Ok(())
    }

    fn turn(&self, store: Store) -> &Mutex<()> {
        &self.turns[store as usize]
    }
}

/// Stops a process for a while.
async fn stop(instance: &Instance, away: Duration) -> anyhow::Result<()> {
    let wake = || _ = instance.signal(Signal::CONT);
    let _frozen = Frozen::new(|| instance.signal(Signal::STOP), wake)?;
    sleep(away).await;
    Ok(())
}
