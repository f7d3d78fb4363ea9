//! Limits and choices of the engine. The scheduler's configuration file sets them.

use crate::breaker::BreakerLimits;
use crate::failure::OnGpuFailure;
use crate::ids::ResourceName;
use crate::time::Millis;
use crate::topology::Level;

/// What to do with a node that no agent reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodesWithoutAgent {
    /// Its devices are not given to anybody.
    #[default]
    Refuse,
    /// The kubelet's count is believed.
    UseAllocatable,
}

/// Limits and choices of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Resources whose units are devices, by exact name or, ending in `*`, by prefix.
    pub device_resources: Vec<String>,
    /// What to do with a node that no agent reports.
    pub nodes_without_agent: NodesWithoutAgent,
    /// Silence of an agent after which nothing new is placed on its node.
    pub report_age_max: Millis,
    /// How many nodes may turn bad at once before that is no longer believed.
    pub breaker: BreakerLimits,
    /// How long a released gang may go without another member arriving at the barrier. training-operator
    /// makes about ten pods a second, so a minute without any means that none will come. It makes one job's pods after the other's:
    /// while it makes any, a job without is waited for up to five times as long.
    pub gather_quiet_max: Millis,
    /// How long the first held Bind may wait in all: half of kube-scheduler's `httpTimeout` for bind.
    pub gather_max: Millis,
    /// How long a gang may be bound in part before it is released as a whole.
    pub repair_max: Millis,
    /// What becomes of a gang with a member on a GPU that has failed, where it does not say so itself.
    pub on_gpu_failure: OnGpuFailure,
    /// How long the GPU must have failed before anything is done. Longer than the driver has, by the agents' table
    /// of health, to say that nothing is wrong after all.
    pub gpu_failure_grace: Millis,
    /// How long a gang that is short of room only for now waits before nodes are kept for it, of which gangs
    /// behind it in the queue get none. None are ever kept where it is zero.
    pub reserve_after: Millis,
    /// How long nodes are kept for a gang while nothing ends on them; for as long again they are kept for nobody then.
    /// Without end where it is zero.
    pub keep_for: Millis,
    /// How long after kube-scheduler turned a member down on its planned node it may still change its
    /// mind. Its view lags behind: a pod that has just gone may not be gone for it yet.
    pub refusal_grace: Millis,
    /// How long a gang whose plan failed rests before it is planned again; doubles with each failure,
    /// up to sixteen times this.
    pub retry_after: Millis,
    /// How long a node stays out of a gang's plans after its kubelet or kube-scheduler refused a member, or a GPU of it failed
    /// under one. Where it was kube-scheduler, a gang that finds no other nodes goes back after a sixteenth of this, after twice as
    /// long each time that it is refused there again.
    pub refused_node_for: Millis,
    /// Most nodes that are written into a job's template. Beyond that the list costs more than it
    /// saves (every pod carries it), and Filter alone confines the pods.
    pub template_nodes_max: usize,
    /// How long a gang known by its pods alone, with no stated size, must be quiet before the pods
    /// that exist are taken for all of it.
    pub settle: Millis,
    /// Writes that may wait for the writer. Further ones wait in the cycle, in order. The engine has
    /// one write under way for each place of a plan, Gang object and job, and decides what the next
    /// one says when that has ended.
    pub writes_in_flight_max: usize,
    /// Levels of the network's topology, the widest first; at most [`crate::topology::LEVELS_MAX`].
    pub topology: Vec<Level>,
    /// Position of the level in whose domains a gang on several nodes is kept together, as far as can be,
    /// though it asks nothing of the topology. `None`: it goes by nodes only.
    pub together: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            device_resources: vec!["nvidia.com/gpu".into(), "nvidia.com/mig-*".into()],
            nodes_without_agent: NodesWithoutAgent::Refuse,
            report_age_max: Millis::from_secs(30),
            breaker: BreakerLimits::default(),
            gather_quiet_max: Millis::from_secs(60),
            gather_max: Millis::from_secs(150),
            repair_max: Millis::from_secs(30),
            on_gpu_failure: OnGpuFailure::Ignore,
            gpu_failure_grace: Millis::from_secs(120),
            reserve_after: Millis::from_secs(600),
            keep_for: Millis::from_secs(48 * 3600),
            refusal_grace: Millis::from_secs(5),
            retry_after: Millis::from_secs(5),
            refused_node_for: Millis::from_secs(300),
            template_nodes_max: 32,
            settle: Millis::from_secs(3),
            writes_in_flight_max: 512,
            topology: Vec::new(),
            together: None,
        }
    }
}

impl Config {
    /// Whether units of this resource are devices.
    pub fn is_device(&self, name: &ResourceName) -> bool {
        self.device_resources
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(prefix) => name.as_str().starts_with(prefix),
                None => name.as_str() == pattern,
            })
    }
}
