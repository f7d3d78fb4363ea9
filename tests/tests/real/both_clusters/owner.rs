//! What breaks in a cluster, and what its administrator forbids: no kube client alone can do that on both.
//!
//! On the real control plane a broken GPU is one of a fleet that is started anew with a scenario file; the
//! agents are silent for the moment between. KWOK has no device plugin, so what nodes offer is set by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use muster_agent::scenario::FaultEvent;
use muster_control_plane::NodeTemplate;
use muster_tests::fleet::Fleet;
use muster_tests::sim::Sim;
use muster_tests::stack::{self, Stack};

use super::NODES;

/// XID of a GPU that has fallen off the bus.
const OFF_THE_BUS: u64 = 79;
/// GPUs of a node.
const GPUS: usize = 8;
/// Longest until a policy acts, and no longer acts.
const POLICY_MAX: Duration = Duration::from_secs(60);

/// Who can break a cluster.
pub enum Owner<'a> {
    Embedded(&'a Sim),
    Real(&'a Stack, Mutex<Fleets>),
}

/// Fleets of the real cluster so far, and what is broken.
#[derive(Default)]
pub struct Fleets {
    started: u32,
    /// GPUs by node.
    broken: BTreeMap<String, BTreeSet<u32>>,
}

impl<'a> Owner<'a> {
    pub fn real(stack: &'a Stack) -> Self {
        Self::Real(stack, Mutex::default())
    }

    /// A GPU falls off the bus.
    pub async fn xid(&self, node: &str, gpu: u32) -> anyhow::Result<()> {
        match self {
            Self::Embedded(sim) => {
                let code = OFF_THE_BUS;
                Ok(sim.agents.inject(node, FaultEvent::Xid { gpu, code })?)
            }
            Self::Real(stack, fleets) => {
                self.change(fleets, node, |broken| {
                    broken.insert(gpu);
                });
                self.renew(stack, fleets, node).await
            }
        }
    }

    /// All GPUs of a node are as new.
    pub async fn repair(&self, node: &str) -> anyhow::Result<()> {
        match self {
            Self::Embedded(sim) => Ok(sim.agents.inject(node, FaultEvent::Back { gpu: None })?),
            Self::Real(stack, fleets) => {
                self.change(fleets, node, BTreeSet::clear);
                self.renew(stack, fleets, node).await
            }
        }
    }

    fn change(&self, fleets: &Mutex<Fleets>, node: &str, change: impl FnOnce(&mut BTreeSet<u32>)) {
        let mut fleets = fleets.lock().unwrap_or_else(PoisonError::into_inner);
        fleets.started += 1;
        change(fleets.broken.entry(node.to_owned()).or_default());
    }

    /// Starts the fleet anew, with the GPUs broken that are, and offers the others.
    async fn renew(&self, stack: &Stack, fleets: &Mutex<Fleets>, node: &str) -> anyhow::Result<()> {
        let (number, events, left) = {
            let fleets = fleets.lock().unwrap_or_else(PoisonError::into_inner);
            let mut events = String::new();
            for (node, gpus) in &fleets.broken {
                for gpu in gpus {
                    events += &format!(
                        "[[events]]\nat_s = 0\nfault = \"xid\"\ngpu = {gpu}\ncode = {OFF_THE_BUS}\nnodes = [\"{node}\"]\n"
                    );
                }
            }
            let broken = fleets.broken.get(node).map_or(0, BTreeSet::len);
            (fleets.started, events, GPUS.saturating_sub(broken))
        };
        let name = format!("muster-fleet-{number}");
        let file = stack.cluster.folder().join(format!("{name}.toml"));
        std::fs::write(&file, format!("name = \"{name}\"\n{events}"))?;
        let before = match number {
            1 => stack::fleet(),
            _ => muster_control_plane::Program::Other(format!("muster-fleet-{}", number - 1)),
        };
        stack.cluster.kill(&before)?;
        let pools = [NodeTemplate::gpu_pool("gpu", u32::try_from(NODES)?)];
        let fleet = Fleet {
            name,
            scenario: Some(file),
            ..Fleet::of(&pools)
        };
        stack.start_fleet(&fleet).await?;
        let gpus = "nvidia.com/gpu";
        stack
            .cluster
            .set_node_resource(node, gpus, &left.to_string())
            .await?;
        Ok(())
    }

    /// Whether a node's kubelet is heard.
    pub async fn ready(&self, node: &str, on: bool) -> anyhow::Result<()> {
        match self {
            Self::Embedded(sim) => Ok(sim.cluster.set_node_ready(node, on)?),
            Self::Real(stack, _) => Ok(stack.cluster.set_node_ready(node, on).await?),
        }
    }

    /// Whether a policy refuses the Bindings of pods with this prefix.
    pub async fn refuse(&self, prefix: &str, on: bool) -> anyhow::Result<()> {
        match self {
            Self::Embedded(sim) => {
                sim.script.refuse_bindings(on.then(|| {
                    let why = format!("ValidatingAdmissionPolicy '{prefix}' with binding '{prefix}' denied request: not now");
                    (prefix.to_owned(), why)
                }));
                Ok(())
            }
            Self::Real(stack, _) if on => {
                stack.cluster.apply_yaml(&policy(prefix)).await?;
                self.wait_policy(stack, prefix, true).await
            }
            Self::Real(stack, _) => {
                for kind in [
                    "validatingadmissionpolicybinding",
                    "validatingadmissionpolicy",
                ] {
                    stack.kubectl(&["delete", kind, prefix]).await?;
                }
                self.wait_policy(stack, prefix, false).await
            }
        }
    }

    /// Waits until a Binding that would change nothing is refused by the policy, or by nobody but the
    /// pod's absence.
    async fn wait_policy(&self, stack: &Stack, prefix: &str, on: bool) -> anyhow::Result<()> {
        let probe = format!("{prefix}-probe");
        let path = format!("/api/v1/namespaces/default/pods/{probe}/binding?dryRun=All");
        let body = format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Binding\", \"metadata\": {{\"name\": \"{probe}\"}}, \"target\": {{\"kind\": \"Node\", \"name\": \"a\"}}}}"
        );
        let create = ["create", "--raw", &path, "-f", "-"];
        stack
            .wait_until(POLICY_MAX, "the policy to act", async || {
                let admin = muster_control_plane::Identity::Admin;
                let answer = stack.cluster.kubectl_as(&admin, &create, &body).await;
                answer.is_ok_and(|answer| answer.stderr.contains("not now") == on)
            })
            .await
    }
}

fn policy(prefix: &str) -> String {
    format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {{name: {prefix}}}\nspec:\n  \
         failurePolicy: Fail\n  matchConstraints: {{resourceRules: [{{apiGroups: [\"\"], apiVersions: [v1], operations: [CREATE], resources: [pods/binding]}}]}}\n  \
         validations: [{{expression: \"!object.metadata.name.startsWith('{prefix}')\", message: not now, reason: Forbidden}}]\n---\n\
         apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {{name: {prefix}}}\n\
         spec: {{policyName: {prefix}, validationActions: [Deny]}}\n"
    )
}
