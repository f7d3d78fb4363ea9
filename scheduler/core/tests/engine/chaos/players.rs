//! Who else acts in a storm: controllers, the garbage collector, kubelets, kube-scheduler.

use std::sync::Arc;

use muster_core::event::Event;
use muster_core::ids::{GangKey, PodUid};
use muster_core::pod::{Membership, MembershipSource, Pod};
use muster_core::view::FilterAnswer;
use muster_core::workload::WorkloadKind;

use super::Storm;
use crate::world::{GPU, gpus};

impl Storm {
    pub(super) fn play_sets(&mut self) {
        for at in 0..self.sets.len() {
            let set = &self.sets[at];
            if set.born && !set.controlled {
                continue;
            }
            let missing: Vec<(String, Membership)> = set
                .names
                .iter()
                .filter(|(name, _)| !self.world.pods.values().any(|pod| *pod.name == **name))
                .cloned()
                .collect();
            let (shape, gated, controlled) = (Arc::clone(&set.shape), set.gated, set.controlled);
            for (name, mut membership) in missing {
                if membership.source == MembershipSource::Alone {
                    let uid = self.world.pod(&name, None, Arc::clone(&shape));
                    membership.gang = GangKey::new("default", uid.as_str());
                    self.world.watch.pop_back();
                    self.world.change_pod(&uid, |pod| {
                        (pod.gated, pod.controlled) = (gated, controlled);
                        pod.membership = (gpus(0) != shape).then_some(membership);
                    });
                } else {
                    let uid = self.world.pod(&name, Some(membership), Arc::clone(&shape));
                    self.world.watch.pop_back();
                    self.world.change_pod(&uid, |pod| {
                        (pod.gated, pod.controlled) = (gated, controlled);
                    });
                }
            }
            self.sets[at].born = true;
        }
    }

    /// Gang objects go with their owners.
    pub(super) fn collect_garbage(&mut self) {
        let gone: Vec<GangKey> = self
            .world
            .gangs
            .iter()
            .filter(|(key, stored)| match stored.record.kind {
                WorkloadKind::PyTorchJob | WorkloadKind::PodGroup => {
                    !self.world.jobs.contains_key(*key)
                }
                WorkloadKind::Pod => !self.world.pods.contains_key(&*key.uid),
                WorkloadKind::Label => false,
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.world.gangs.remove(&key);
            self.world.tell(Event::RecordRemoved(key));
        }
    }

    /// Terminating pods end, now or a little later; those of a deleted node too.
    pub(super) fn play_kubelet(&mut self) {
        let ended: Vec<PodUid> = self
            .world
            .pods
            .values()
            .filter(|pod| pod.terminating)
            .map(|pod| pod.uid.clone())
            .collect();
        for uid in ended {
            if self.calm || self.rng.chance(30) {
                self.world.delete_pod(&uid);
            }
        }
        let stranded: Vec<PodUid> = self
            .world
            .pods
            .values()
            .filter(|pod| {
                pod.node
                    .as_ref()
                    .is_some_and(|node| !self.world.nodes.contains_key(node.as_str()))
            })
            .map(|pod| pod.uid.clone())
            .collect();
        for uid in stranded {
            self.world.delete_pod(&uid);
        }
    }

    /// kube-scheduler: a pod that Filter turned down is not tried again before somebody touches it.
    pub(super) fn play_scheduler(&mut self) {
        let view = self.world.engine.view();
        let waiting: Vec<Pod> = self
            .world
            .pods
            .values()
            .filter(|pod| {
                pod.ours
                    && pod.node.is_none()
                    && !pod.gated
                    && !pod.gated_by_others
                    && pod.is_alive()
                    && self.asleep.get(&pod.uid) != Some(&pod.resource_version)
            })
            .filter(|pod| !self.world.held.values().any(|held| *held == pod.uid))
            .cloned()
            .collect();
        for pod in waiting {
            if !self.calm && self.rng.chance(40) {
                continue;
            }
            let node = match view.filter(&pod.uid, pod.membership.as_ref()) {
                FilterAnswer::Only(node) => node,
                FilterAnswer::WhereRoom => {
                    let found = self.world.nodes.values().find(|node| {
                        view.has_room(node.name.as_str(), &pod.shape.requests)
                            && pod.shape.mismatch(node).is_none()
                    });
                    match found {
                        Some(node) => node.name.clone(),
                        None => continue,
                    }
                }
                FilterAnswer::Nowhere(text) => {
                    self.condition(&pod, &format!("0/5 nodes are available: {text}"));
                    let version = self.world.pods[&pod.uid].resource_version.clone();
                    self.asleep.insert(pod.uid.clone(), version);
                    continue;
                }
                FilterAnswer::Later(_) => continue,
            };
            let fits = self.world.nodes.get(node.as_str()).is_some_and(|found| {
                found.ready
                    && !found.unschedulable
                    && pod.shape.mismatch(found).is_none()
                    && self.used(&node).1 + pod.shape.requests.extended(GPU)
                        <= found.allocatable.extended(GPU)
            });
            if fits {
                let ticket = self.world.bind(&pod.uid, &node);
                self.note(|| format!("bind {ticket:?} {} {node}", pod.name));
                self.asked.insert(ticket, (pod.uid.clone(), node));
            } else {
                self.condition(
                    &pod,
                    "0/5 nodes are available: 5 Insufficient nvidia.com/gpu",
                );
                let uid = pod.uid.clone();
                self.world.engine.handle(
                    Event::PlannedNodeNotOffered { pod: uid, node },
                    self.world.now,
                );
            }
        }
    }

    fn condition(&mut self, pod: &Pod, text: &str) {
        if pod.unschedulable.as_deref() != Some(text) {
            self.world
                .change_pod(&pod.uid, |pod| pod.unschedulable = Some(Arc::from(text)));
        }
    }
}
