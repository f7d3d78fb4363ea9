//! Who kills, and what else goes wrong meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use muster_control_plane::Program;

use super::{LOOK_EVERY, PAIR, epoch_led};
use crate::pairs::Pairs;
use crate::proxy::Weather;
use crate::rng::Rng;

/// One of the other faults comes with so many kills.
const FAULT_EVERY: u32 = 5;

/// After so many kills Muster lives for [`LONG_LIFE`].
const LONG_LIFE_EVERY: u32 = 8;

/// So long, milliseconds, from when it leads: longer than kube-scheduler leaves a pod alone that has failed often (10 s).
///
/// A gang is bound in a life in which all of its members come. Those that a kill has sent away come again at times of
/// their own, up to 10 s later, so that lives that are all shorter may each miss one of them: then nothing of a gang is bound for as long as that
/// goes on, and its room stays reserved, as it should. A busy machine had a gang of four wait so for more than a minute.
/// Room that is reserved for nobody is found only if it stays so beyond such a life.
const LONG_LIFE: (u64, u64) = (13_000, 16_000);

/// Longest wait for Muster to lead at the beginning of such a life.
const LEADS_MAX: Duration = Duration::from_secs(20);

/// A fault besides the kills.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    KubeScheduler,
    ApiServer,
    Etcd,
    Apart,
    AnswersLost,
    Cut,
    Late,
    AgentsApart,
    AgentsCut,
}

impl Fault {
    pub(super) const ALL: [Self; 9] = [
        Self::KubeScheduler,
        Self::ApiServer,
        Self::Etcd,
        Self::Apart,
        Self::AnswersLost,
        Self::Cut,
        Self::Late,
        Self::AgentsApart,
        Self::AgentsCut,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::KubeScheduler => "SIGKILL of kube-scheduler",
            Self::ApiServer => "SIGKILL of kube-apiserver",
            Self::Etcd => "SIGKILL of etcd",
            Self::Apart => "Muster and API server apart",
            Self::AnswersLost => "answers of the API server lost",
            Self::Cut => "connections to the API server cut in mid-frame",
            Self::Late => "API server late by 150 ms",
            Self::AgentsApart => "agents apart",
            Self::AgentsCut => "connections of agents cut in mid-frame",
        }
    }
}

/// Kills.
pub(super) struct Reaper<'a> {
    pub(super) pairs: &'a Pairs,
    pub(super) rng: Rng,
    pub(super) kills: &'a AtomicU32,
    pub(super) faults: BTreeMap<&'static str, u32>,
}

impl Reaper<'_> {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        let span = to.saturating_sub(from).max(1);
        Duration::from_millis(from.saturating_add(self.rng.below(span)))
    }

    /// Waits until the next fault: often too short for Muster to lead, sometimes long enough for it to bind many, now and then for every gang
    /// that has its plan to be bound.
    async fn pause(&mut self, turn: u32) {
        let mut time = self.short_life();
        if turn.is_multiple_of(LONG_LIFE_EVERY) {
            time = self.millis(LONG_LIFE.0, LONG_LIFE.1);
            let leads = async {
                while epoch_led(self.pairs).await.is_none() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            // One that does not lead by then has its life all the same.
            let _ = tokio::time::timeout(LEADS_MAX, leads).await;
        }
        tokio::time::sleep(time).await;
    }

    fn short_life(&mut self) -> Duration {
        match self.rng.below(20) {
            0..9 => self.millis(50, 1000),
            9..17 => self.millis(1000, 4000),
            _ => self.millis(4000, 8000),
        }
    }

    /// Kills so often, and goes on until each other fault has come at least once.
    pub(super) async fn run(&mut self, kills: u32) -> anyhow::Result<()> {
        let [muster, _] = self.pairs.programs(PAIR)?;
        let mut faults = Fault::ALL.iter().cycle();
        let mut turn = 0_u32;
        while self.kills.load(Ordering::Relaxed) < kills || self.faults.len() < Fault::ALL.len() {
            turn = turn.saturating_add(1);
            self.pause(turn).await;
            if turn.is_multiple_of(FAULT_EVERY)
                && let Some(fault) = faults.next()
                && self.strike(*fault).await?
            {
                let count = self.faults.entry(fault.words()).or_default();
                *count = count.saturating_add(1);
            }
            if self.pairs.cluster.is_running(&muster) {
                self.pairs.cluster.kill(&muster)?;
                self.kills.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// One fault, until it is over; Muster may be killed in the middle of it. `false` where what was to be killed was not there.
    async fn strike(&mut self, fault: Fault) -> anyhow::Result<bool> {
        let cluster = &self.pairs.cluster;
        let [muster, kube_scheduler] = self.pairs.programs(PAIR)?;
        let (short, long) = (self.millis(100, 2000), self.millis(500, 6000));
        let (api, agents) = (self.pairs.to_api(PAIR)?, self.pairs.from_agents(PAIR)?);
        let bytes = self.rng.below(200_000);
        let weather = match fault {
            Fault::KubeScheduler => {
                let runs = cluster.is_running(&kube_scheduler);
                cluster.kill(&kube_scheduler)?;
                return Ok(runs);
            }
            Fault::ApiServer => {
                cluster.stop_api_server_for(short).await?;
                return Ok(true);
            }
            Fault::Etcd => {
                cluster.kill(&Program::Etcd)?;
                tokio::time::sleep(short).await;
                // The API server, too, may give up without its store.
                let _ = cluster.start(&Program::Etcd).await;
                if !cluster.is_running(&Program::KubeApiserver) {
                    cluster.start(&Program::KubeApiserver).await?;
                }
                return Ok(true);
            }
            Fault::Apart | Fault::AgentsApart => Weather::APART,
            Fault::AnswersLost => Weather::ANSWERS_LOST,
            Fault::Cut | Fault::AgentsCut => Weather::cut_after(bytes),
            Fault::Late => Weather::late(Duration::from_millis(150)),
        };
        let proxy = match fault {
            Fault::AgentsApart | Fault::AgentsCut => agents,
            _ => api,
        };
        proxy.set(weather);
        tokio::time::sleep(long).await;
        if self.rng.below(2) == 0 && cluster.is_running(&muster) {
            cluster.kill(&muster)?;
            self.kills.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(short).await;
        }
        proxy.set(Weather::default());
        Ok(true)
    }
}
