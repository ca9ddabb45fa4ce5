//! A phase of the run: normal users, and attacks beside them.

use std::{net::SocketAddr, time::Duration};

use futures::future::try_join_all;
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    attack::Attack,
    tally::Tally,
    usage::{Server, Usage},
    users::{Experience, Users},
};

/// How often the server's usage is measured during a phase.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);

/// Attacks that run at the same time, and how long.
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) attacks: Vec<Attack>,
    pub(crate) time: Duration,
}

/// What a phase achieved.
pub(crate) struct PhaseResult {
    pub(crate) name: &'static str,
    pub(crate) experience: Experience,
    /// The outcomes of each attack.
    pub(crate) tallies: Vec<(Attack, Tally)>,
    /// The highest usage, component by component.
    pub(crate) peak: Usage,
}

impl Phase {
    pub(crate) async fn run(
        &self,
        api: SocketAddr,
        users: &Users,
        server: &Server,
    ) -> anyhow::Result<PhaseResult> {
        println!("{}: {} s", self.name, self.time.as_secs());
        let tallies: Vec<_> = self.attacks.iter().map(|attack| (*attack, Tally::default())).collect();
        let attacks = tallies.iter().map(|(attack, tally)| {
            let (attack, target, tally, time) = (*attack, users.target(), tally.clone(), self.time);
            spawn_blocking(move || attack.run_for(time, api, target, tally))
        });
        let (experience, peak, attacks) =
            tokio::join!(users.use_api(self.time), peak_usage(server, self.time), try_join_all(attacks));
        attacks?.into_iter().collect::<anyhow::Result<()>>()?;
        Ok(PhaseResult { name: self.name, experience, tallies, peak: peak? })
    }
}

async fn peak_usage(server: &Server, time: Duration) -> anyhow::Result<Usage> {
    let end = Instant::now() + time;
    let mut peak = server.usage().await?;
    while Instant::now() < end {
        sleep(SAMPLE_INTERVAL).await;
        peak = peak.max(server.usage().await?);
    }
    Ok(peak)
}
