//! What is asked of a scheduler once all is well, with everybody else gone: it says no where it must, and yes where it must.
//!
//! | id | what |
//! |---|---|
//! | PLACE-1, INV-1, S2, DEV-1 | a gang that needs every device waits while one node is closed, silent, broken or taken in part |
//! | RES-1 (S5, L4) | and runs when that is over: nothing is held for nobody |
//! | S10 | a Bind of a pod that is bound there is answered OK, one to another node is not |
//! | S11 | kube-scheduler may not preempt a gang's pods |
//! | TEXT-1 | who asks twice is told the same |
//! | L2 | pods that no node can take keep nobody waiting |

use std::collections::BTreeMap;
use std::time::Duration;

use muster_agent::scenario::FaultEvent;
use muster_embedded::standins::extender::of_muster;
use muster_embedded::value;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::calm::has_ended;
use super::mischief::Undo;
use super::workload::{self, GPUS};
use super::{Storm, judge};
use crate::sim::{JOBS, NODES, PODS};

/// Longest time for a gang that has the cluster for itself.
const ALONE_MAX: Duration = Duration::from_secs(180);
/// Time after which a scheduler must have seen what a node has come to.
const SEEN: Duration = Duration::from_secs(14);
/// The same for what its agent tells, or does not.
const HEARD: Duration = Duration::from_secs(44);

/// Time in which a report that comes once more arrives.
const REPLAYED: Duration = Duration::from_millis(300);

/// What is wrong with one node.
#[derive(Clone, Copy, Debug)]
enum Closure {
    Nothing,
    Stranger,
    Cordon,
    Taint,
    NotReady,
    Gone,
    Silent,
    /// Broken, and then the agent's first report comes once more.
    Broken,
    Devices,
}

const CLOSURES: [Closure; 9] = [
    Closure::Nothing,
    Closure::Stranger,
    Closure::Cordon,
    Closure::Taint,
    Closure::NotReady,
    Closure::Gone,
    Closure::Silent,
    Closure::Broken,
    Closure::Devices,
];

impl Storm {
    /// A gang on every device of every node waits while it must, and runs then.
    pub(super) async fn all_room_is_free(&mut self) -> Result<(), String> {
        let closure = self
            .rng
            .pick(&CLOSURES)
            .copied()
            .unwrap_or(Closure::Nothing);
        let seen = match closure {
            Closure::Nothing => Duration::ZERO,
            Closure::Silent | Closure::Broken => HEARD,
            _ => SEEN,
        };
        if !seen.is_zero() {
            let calm = judge::locked(&self.judge).settles_in(Instant::now());
            self.pass(calm).await?;
            let node = self.a_node();
            self.log.note(format!("an exam: {closure:?} on {node}"));
            self.close(closure, &node);
            self.pass(seen).await?;
            if matches!(closure, Closure::Broken) {
                // The agent's next sign of life would tell a scheduler that believes it.
                let _ = self.agents.inject(&node, FaultEvent::Replay);
                self.pass(REPLAYED).await?;
            }
        }
        let roles = [("Worker", self.nodes, GPUS)];
        self.cluster
            .create(workload::job("probe", &roles, Some(20)))
            .map_err(|error| error.to_string())?;
        if !seen.is_zero() {
            self.pass(SEEN).await?;
            self.take_back(true);
        }
        let ended = self
            .until(ALONE_MAX, |storm| {
                let job = storm.cluster.get(JOBS, "default", "probe");
                job.is_some_and(|job| has_ended(&job))
            })
            .await?;
        if ended {
            return Ok(());
        }
        let limit = ALONE_MAX.as_secs();
        Err(format!(
            "RES-1: a gang on all devices has not run within {limit} s of having the cluster for itself:\n{}",
            self.picture()
        ))
    }

    fn close(&mut self, closure: Closure, node: &str) {
        let undo = match closure {
            Closure::Nothing => return,
            Closure::Stranger => {
                let name = self.next_name("stranger");
                self.create(workload::stranger(&name, node, GPUS / 2));
                Undo::Stranger(name)
            }
            Closure::Cordon => {
                let patch = json!({"spec": {"unschedulable": true}});
                let _ = self.cluster.patch(NODES, "", node, "", &patch);
                Undo::Cordon(node.to_owned())
            }
            Closure::Taint => {
                self.set_taint(node, true);
                Undo::Taint(node.to_owned())
            }
            Closure::NotReady => {
                let _ = self.cluster.set_node_ready(node, false);
                Undo::NotReady(node.to_owned())
            }
            Closure::Gone => {
                let Some(undo) = self.take_node(node) else {
                    return;
                };
                undo
            }
            Closure::Silent => {
                let _ = self.agents.inject(node, FaultEvent::Silent);
                judge::locked(&self.judge).silent(node, true);
                Undo::Agent(node.to_owned())
            }
            Closure::Broken => {
                let gpu = u32::try_from(self.rng.below(u64::from(GPUS))).unwrap_or(0);
                // One that only the agent knows of: the kubelet's device plugin counts it on.
                let _ = self.agents.inject(node, FaultEvent::RemapFailure { gpu });
                if let Some(uuid) = self.device(node, gpu) {
                    judge::locked(&self.judge).sick(&uuid, true);
                }
                Undo::Devices(node.to_owned())
            }
            Closure::Devices => {
                self.set_devices(node, 6);
                Undo::DeviceCount(node.to_owned())
            }
        };
        let whenever = Duration::from_secs(3600);
        self.undo.push((Instant::now() + whenever, undo));
    }

    /// Pods that no node can take, and pods that nobody can read.
    pub(super) fn submit_the_impossible(&mut self) {
        self.create(workload::beyond_all_numbers("beyond"));
        self.create(workload::unreadable("unreadable"));
    }

    pub(super) fn withdraw_the_impossible(&mut self) {
        for name in ["beyond", "unreadable"] {
            let _ = self.cluster.delete(PODS, "default", name);
        }
    }

    /// Calls of kube-scheduler about a gang that runs and a pod that waits.
    pub(super) async fn calls_are_answered(&mut self) -> Result<(), String> {
        let mut extenders = of_muster("http://muster", &self.doors.transport()).into_iter();
        let (Some(filter), Some(bind)) = (extenders.next(), extenders.next()) else {
            return Err("no extenders".into());
        };
        let pods = self.cluster.list(PODS);
        let bound = |pod: &&Value| {
            value::name(pod).starts_with("keeper-")
                && !value::text(pod, &["spec", "nodeName"]).is_empty()
        };
        let nodes: Vec<String> = (0..self.nodes)
            .map(|number| format!("gpu-{number:03}"))
            .collect();
        for pod in pods.iter().filter(bound) {
            let (name, node) = (value::name(pod), value::text(pod, &["spec", "nodeName"]));
            if let Err(said) = bind.bind(pod, node).await {
                return Err(format!(
                    "S10: {name} is bound to {node}, and a Bind of it there is refused: {said}"
                ));
            }
            let other = nodes.iter().find(|other| *other != node);
            if let Some(other) = other
                && bind.bind(pod, other).await.is_ok()
            {
                return Err(format!(
                    "S10: {name} is bound to {node}, and a Bind of it to {other} is answered OK"
                ));
            }
            let urgent = workload::elsewhere("urgent", 0);
            let victims = BTreeMap::from([(node.to_owned(), vec![pod.clone()])]);
            match filter.preempt(&urgent, &victims).await {
                Ok(left) if left.is_empty() => {}
                other => return Err(format!("S11: {name} of a gang may be preempted: {other:?}")),
            }
        }
        let Some(waiting) = pods.iter().find(|pod| value::name(pod) == "beyond") else {
            return Err("the pod that no node can take is gone".into());
        };
        let first = filter.filter(waiting, &nodes, &[]).await?;
        let second = filter.filter(waiting, &nodes, &[]).await?;
        if first != second || !first.nodes.is_empty() {
            return Err(format!("TEXT-1: {first:?} and then {second:?}"));
        }
        Ok(())
    }
}
