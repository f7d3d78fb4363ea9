//! What must come of everything once nothing goes wrong any more.
//!
//! | id | what |
//! |---|---|
//! | QUE-1 (L1) | every gang that fits runs, and ends |
//! | L5 | another leader is there in time |
//! | L6 | pods of others are none of Muster's business: they run while it is away |
//! | L3 | with everything ended the schedulers write nothing but their Lease |
//! | S16 | a restart leaves a running gang as it is: its pods, its plan |

use std::collections::BTreeMap;
use std::time::Duration;

use muster_agent::scenario::FaultEvent;
use muster_embedded::standins::scheduler::SchedulerConfig;
use muster_embedded::value;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::workload;
use super::{Storm, judge};
use crate::sim::{CLIENT, GANGS, NODES, PODS, phase_of};

/// Longest time until every gang has run. A node that refused a member stays out for a minute, a plan
/// that failed rests for up to 80 s, kube-scheduler looks after five minutes at what it could not place,
/// and up to nine gangs run after each other.
const ENDED_MAX: Duration = Duration::from_secs(900);
/// Longest time for a gang that has the cluster for itself.
const ALONE_MAX: Duration = Duration::from_secs(180);
/// Time for which all schedulers are away.
const AWAY: Duration = Duration::from_secs(5);
/// Longest time from their start until one of them leads: a Lease lasts for 15 s.
const LEADS_MAX: Duration = Duration::from_secs(25);
/// Time in which nothing may be written.
const QUIET: Duration = Duration::from_secs(60);

/// Whether a job has ended, well or badly.
pub fn has_ended(job: &Value) -> bool {
    ["Succeeded", "Failed"].iter().any(|kind| {
        value::condition(job, kind).is_some_and(|c| value::text(c, &["status"]) == "True")
    })
}

/// The taints of a GPU node that is well.
fn own_taints() -> Value {
    json!([{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}])
}

/// Makes a node one that takes pods.
pub fn heal(node: &mut Value) {
    value::remove(node, &["spec", "unschedulable"]);
    value::set(node, &["spec", "taints"], own_taints());
    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
    value::set(node, &["status", "conditions"], json!([ready]));
}

fn is_waiting(pod: &Value) -> bool {
    value::text(pod, &["spec", "schedulerName"]) == "muster"
        && !matches!(
            value::text(pod, &["status", "phase"]),
            "Succeeded" | "Failed"
        )
}

impl Storm {
    /// Everything is well from now on.
    pub(super) fn clear_up(&mut self) {
        self.weather.storm(false);
        self.take_back(true);
        self.script.refuse_bindings(None);
        for replica in &mut self.replicas {
            if replica.thaw() {
                judge::locked(&self.judge).wakes(replica.client);
            }
        }
        for node in self.cluster.list(NODES) {
            let name = value::name(&node).to_owned();
            if !name.starts_with("gpu-") {
                continue;
            }
            let spec = json!({"spec": {"unschedulable": null, "taints": own_taints()}});
            let _ = self.cluster.patch(NODES, "", &name, "", &spec);
            let _ = self.cluster.set_node_ready(&name, true);
            for fault in [FaultEvent::Resume, FaultEvent::Back { gpu: None }] {
                let _ = self.agents.inject(&name, fault);
            }
        }
        self.log.note("nothing goes wrong any more");
        judge::locked(&self.judge).calm(true);
    }

    /// Passes time second by second until something holds; looks after the schedulers meanwhile.
    pub(super) async fn until(
        &mut self,
        limit: Duration,
        holds: impl Fn(&mut Self) -> bool,
    ) -> Result<bool, String> {
        self.until_every(Duration::from_secs(1), limit, holds).await
    }

    /// The same at other steps.
    pub(super) async fn until_every(
        &mut self,
        step: Duration,
        limit: Duration,
        holds: impl Fn(&mut Self) -> bool,
    ) -> Result<bool, String> {
        let end = Instant::now() + limit;
        loop {
            self.tend().await?;
            if holds(self) {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            tokio::time::sleep(step.min(end - Instant::now())).await;
        }
    }

    /// A set that has lost members nobody makes again never runs, nor one that was released after a member of it had ended: its
    /// user gives it up.
    fn give_up_broken_sets(&mut self) {
        let mut given_up = Vec::new();
        let judge = judge::locked(&self.judge);
        for set in &self.sets {
            let of_set = |name: &str| {
                name.strip_prefix(&set.name)
                    .is_some_and(|rest| rest.starts_with('-'))
            };
            let pods = judge.pods().map(|(_, pod)| pod);
            let left: Vec<_> = pods
                .filter(|pod| of_set(&pod.name) && pod.phase != "Failed")
                .collect();
            let is_short = left.len() < usize::try_from(set.count).unwrap_or(0);
            let has_ended = left.iter().any(|pod| pod.has_ended());
            let mut going = left.iter().filter(|pod| !pod.has_ended());
            let is_released = has_ended && going.all(|pod| pod.node.is_empty());
            if is_short || is_released {
                let going = left
                    .iter()
                    .filter(|pod| !pod.has_ended() && !pod.terminating);
                given_up.extend(going.map(|pod| pod.name.clone()));
            }
        }
        drop(judge);
        for pod in given_up {
            let _ = self.cluster.delete(PODS, "default", &pod);
        }
    }

    /// QUE-1.
    pub(super) async fn all_end(&mut self) -> Result<(), String> {
        let since = Instant::now();
        let done = self
            .until(ENDED_MAX, |storm| {
                storm.give_up_broken_sets();
                !judge::locked(&storm.judge).is_busy()
            })
            .await?;
        self.settled = since.elapsed();
        if done {
            return Ok(());
        }
        let limit = ENDED_MAX.as_secs();
        Err(format!(
            "QUE-1: after {limit} s of calm not all gangs have run:\n{}",
            self.picture()
        ))
    }

    /// S16.
    pub(super) async fn restart_changes_nothing(&mut self) -> Result<(), String> {
        let roles = [("Master", 1, 0), ("Worker", 2, 4)];
        self.cluster
            .create(workload::job("keeper", &roles, None))
            .map_err(|error| error.to_string())?;
        let runs = |storm: &mut Self| phase_of(&storm.cluster, "keeper") == "Running";
        if !self.until(ALONE_MAX, runs).await? {
            return Err(format!("QUE-1: keeper does not run:\n{}", self.picture()));
        }
        self.pass(Duration::from_secs(5)).await?;
        let before = self.kept();
        for at in 0..self.replicas.len() {
            let around = super::around!(self);
            if let Some(replica) = self.replicas.get_mut(at) {
                replica.kill(AWAY, &around).await?;
            }
        }
        self.others_run_meanwhile().await?;
        let leads = |storm: &mut Self| storm.replicas.iter().any(super::replica::Replica::leads);
        if !self.until(LEADS_MAX, leads).await? {
            let limit = LEADS_MAX.as_secs();
            return Err(format!("L5: nobody leads {limit} s after a restart"));
        }
        self.pass(Duration::from_secs(45)).await?;
        let after = self.kept();
        if before != after {
            return Err(format!(
                "S16: a restart has changed a gang that runs:\n{before:?}\n{after:?}\n{}",
                self.picture()
            ));
        }
        Ok(())
    }

    /// L6.
    async fn others_run_meanwhile(&mut self) -> Result<(), String> {
        let config = SchedulerConfig::new("default-scheduler", Vec::new());
        let others = self.cluster.start_scheduler(config);
        let others = others.map_err(|error| error.to_string())?;
        self.create(workload::plain("plain"));
        let runs = |storm: &mut Self| {
            let pod = storm.cluster.get(PODS, "default", "plain");
            pod.is_some_and(|pod| value::text(&pod, &["status", "phase"]) == "Running")
        };
        let ran = self.until(AWAY - Duration::from_secs(1), runs).await?;
        let _ = self.cluster.delete(PODS, "default", "plain");
        others.kill();
        match ran {
            true => Ok(()),
            false => Err(format!(
                "L6: a pod for another scheduler does not run while Muster is away:\n{}",
                self.picture()
            )),
        }
    }

    /// What a restart must leave alone: pods by UID with their nodes, and the plan.
    fn kept(&self) -> (BTreeMap<String, String>, String, String) {
        let pods = self.cluster.list(PODS).into_iter().filter(is_waiting);
        let pods = pods.map(|pod| {
            let node = value::text(&pod, &["spec", "nodeName"]).to_owned();
            (value::uid(&pod).to_owned(), node)
        });
        let gang = self.cluster.get(GANGS, "default", "keeper");
        let of = |field: &str| {
            gang.as_ref()
                .map_or("", |gang| value::text(gang, &["status", field]))
                .to_owned()
        };
        (pods.collect(), of("planId"), of("phase"))
    }

    /// L3.
    pub(super) async fn nothing_more_is_written(&mut self) -> Result<(), String> {
        let before = self.written();
        self.pass(QUIET).await?;
        let after = self.written();
        if before == after {
            return Ok(());
        }
        let told: Vec<_> = after
            .iter()
            .filter(|(what, count)| before.get(*what) != Some(count))
            .collect();
        Err(format!(
            "L3: with nothing to do the schedulers write on: {told:?}\n{}",
            self.picture()
        ))
    }

    /// Writes of the schedulers so far, by verb and kind, without those of the Lease.
    fn written(&self) -> BTreeMap<(String, String), u64> {
        let mut written = BTreeMap::new();
        for ((client, verb, resource), count) in self.cluster.api().request_counts() {
            let reads = matches!(verb.as_str(), "get" | "list" | "watch");
            let idle = matches!(resource.as_str(), "leases" | "tokenreviews");
            if client.starts_with(CLIENT) && !reads && !idle {
                let sum: &mut u64 = written.entry((verb, resource)).or_default();
                *sum = sum.saturating_add(count);
            }
        }
        written
    }

    /// Lets time pass and looks after the schedulers.
    pub(super) async fn pass(&mut self, time: Duration) -> Result<(), String> {
        self.until(time, |_| false).await.map(|_| ())
    }
}
