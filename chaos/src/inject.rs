//! Injects the faults of a plan.

use std::{fs::OpenOptions, time::Duration};

use anyhow::Context;
use futures::future::try_join_all;
use redis::cmd;
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};
use vidlog_redis_shards::Redis;
use vidlog_test_support::Condition;

use crate::{
    fault::{Exit, Fault, PlannedFault, StormRound},
    instance::Instance,
    run::Run,
    stack::{Store, Suspended},
    wait::until,
};

/// How long requests are stalled before their process is suspended: until every partition has sent one.
const STALL: Duration = Duration::from_millis(300);
/// Pause between two rounds of a rebalance storm.
const STORM_PAUSE: Duration = Duration::from_millis(100);

/// Injects all faults of a plan, each at its time; returns when the last is over.
pub(crate) async fn inject(run: &Run, faults: &[PlannedFault]) -> anyhow::Result<()> {
    let start = Instant::now();
    let injected = faults.iter().map(async |PlannedFault { at, fault }| {
        sleep_until(start + *at).await;
        run.inject(fault).await.with_context(|| format!("failed to inject: {fault}"))
    });
    try_join_all(injected).await.map(drop)
}

impl Run {
    async fn inject(&self, fault: &Fault) -> anyhow::Result<()> {
        match fault {
            Fault::Kill { process, downtime } => self.kill(*process, *downtime).await,
            Fault::KillStore { store, downtime } => self.kill_store(*store, *downtime).await,
            Fault::Zombie { projectors, duration } => self.suspend_projectors(*projectors, *duration).await,
            Fault::DelayedWrites { projectors, duration } => self.delay_writes(*projectors, *duration).await,
            Fault::SuspendStore { store, duration } => self.suspend_store(*store, *duration).await,
            Fault::Reset { process, store } => {
                self.system.links(*process).to(*store).reset();
                Ok(())
            }
            Fault::Impair { process, store, condition, duration } => {
                let _lock = self.system.fault_lock(*process).lock().await;
                let link = self.system.links(*process).to(*store);
                link.set(*condition);
                sleep(*duration).await;
                link.set(Condition::Open);
                Ok(())
            }
            Fault::Flush => self.flush().await,
            Fault::Rewind { by } => self.rewind(*by).await,
            Fault::RebalanceStorm { rounds } => self.rebalance_storm(rounds).await,
            Fault::Rebuild { projection, kill, then } => self.rebuild(projection, kill.as_ref(), *then).await,
            Fault::Pause { projection, duration, killed } => self.pause(projection, *duration, *killed).await,
            Fault::BadRecords(records) => self.append_bad_records(records).await,
        }
    }

    async fn kill_store(&self, store: Store, downtime: Duration) -> anyhow::Result<()> {
        let _lock = self.store_lock(store).lock().await;
        self.stack.kill(store).await?;
        sleep(downtime).await;
        self.stack.up().await
    }

    async fn suspend_projectors(&self, projectors: usize, duration: Duration) -> anyhow::Result<()> {
        let instance = &self.system.projectors[projectors];
        let _lock = instance.fault_lock.lock().await;
        suspend(instance, duration).await
    }

    /// Suspends a process while its last requests are stalled.
    async fn delay_writes(&self, projectors: usize, duration: Duration) -> anyhow::Result<()> {
        let instance = &self.system.projectors[projectors];
        let _lock = instance.fault_lock.lock().await;
        let links = [&instance.links.mysql, &instance.links.redis];
        for link in links {
            link.set(Condition::Stalled);
        }
        sleep(STALL).await;
        let suspended = suspend(instance, duration).await;
        for link in links {
            link.set(Condition::Open);
        }
        suspended
    }

    async fn suspend_store(&self, store: Store, duration: Duration) -> anyhow::Result<()> {
        let _lock = self.store_lock(store).lock().await;
        let _suspended = Suspended::new(|| self.stack.suspend(store), || self.stack.resume(store))?;
        sleep(duration).await;
        Ok(())
    }

    async fn flush(&self) -> anyhow::Result<()> {
        let _lock = self.store_lock(Store::Redis).lock().await;
        let redis = Redis::open(self.system.stores.redis_url.reveal())?;
        until("redis is flushed", async || redis.query::<()>(&cmd("FLUSHALL")).await.is_ok()).await
    }

    /// Kills Redis and cuts off the end of its file, which holds the latest writes.
    async fn rewind(&self, by: Duration) -> anyhow::Result<()> {
        let _lock = self.store_lock(Store::Redis).lock().await;
        let (file, length) = self.stack.redis_file()?;
        sleep(by).await;
        self.stack.kill(Store::Redis).await?;
        OpenOptions::new().write(true).open(file)?.set_len(length)?;
        self.stack.up().await
    }

    async fn rebalance_storm(&self, rounds: &[StormRound]) -> anyhow::Result<()> {
        for round in rounds {
            let instance = &self.system.projectors[round.projectors];
            let _lock = instance.fault_lock.lock().await;
            instance.start()?;
            sleep(round.uptime).await;
            match round.exit {
                Exit::Terminated => instance.end(Signal::TERM).await?,
                Exit::Killed => instance.end(Signal::KILL).await?,
            }
            sleep(STORM_PAUSE).await;
        }
        Ok(())
    }
}

/// Suspends a process for a while.
async fn suspend(instance: &Instance, duration: Duration) -> anyhow::Result<()> {
    let resume = || _ = instance.signal(Signal::CONT);
    let _suspended = Suspended::new(|| instance.signal(Signal::STOP), resume)?;
    sleep(duration).await;
    Ok(())
}
