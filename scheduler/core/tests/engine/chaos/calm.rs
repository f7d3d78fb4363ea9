//! After the storm: what must be so once nothing goes wrong any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::ids::GangKey;
use muster_core::pod::{MembershipSource, Pod, PodPhase};
use muster_core::record::Phase;
use muster_core::time::Millis;
use muster_core::workload::{Hold, MemberSource, Workload};

use super::{NODES, Storm, ruled};
use crate::world::GPU;

/// After the storm.
impl Storm {
    /// Everything works again; time passes until nothing is left to be done.
    pub fn calm_down(&mut self, span: Millis) {
        if !self.calm {
            while self.away > 0 {
                self.turn();
            }
            self.calm = true;
            self.thaw();
            self.silent.clear();
            self.world.unhealthy.clear();
            for index in 0..NODES {
                let name = format!("n{index}");
                if !self.world.nodes.contains_key(&name) {
                    self.bring_node(&name);
                }
                self.world.change_node(&name, |node| {
                    (node.ready, node.unschedulable) = (true, false);
                });
            }
        }
        let end = self.world.now + span;
        while self.world.now < end {
            self.agents_report();
            for round in 0.. {
                let (writes, next) = (self.world.writes.len(), self.busy());
                self.turn();
                if !next && !self.busy() && self.world.writes.len() == writes {
                    break;
                }
                assert!(round < 200, "the world does not come to rest");
            }
            self.world.now = self.world.now + Millis::from_secs(10);
        }
    }

    fn busy(&self) -> bool {
        !self.pending.is_empty()
            || !self.zombies.is_empty()
            || !self.world.watch.is_empty()
            || self.relists > 0
    }

    /// GANG-1: past the repair deadline no gang is bound in part, whatever it still waits for.
    pub fn check_whole(&self) {
        for (key, job) in &self.world.jobs {
            let total = job.total().unwrap_or(0);
            let minimum = job.minimum.filter(|least| *least > 0).unwrap_or(total);
            let minimum = self
                .started_with(key)
                .map_or(minimum, |own| own.min(minimum));
            let bound = self
                .world
                .pods
                .values()
                .filter(|pod| pod.membership.as_ref().is_some_and(|m| m.gang == *key))
                .filter(|pod| pod.is_alive() && pod.node.is_some())
                .count();
            assert!(
                job.finished.is_some()
                    || bound == 0
                    || bound + self.ever_ended(key) as usize >= minimum as usize,
                "{key} stays bound in part: {bound} of {minimum}; {}",
                self.world.phase(key)
            );
        }
    }

    /// Every gang runs whole, or says why it does not.
    pub fn check_settled(&self) {
        for (key, job) in &self.world.jobs {
            self.check_job(key, job);
        }
        let mut partial: BTreeMap<&GangKey, (u32, u32)> = BTreeMap::new();
        for pod in self.world.pods.values() {
            if let Some(member) = &pod.membership
                && pod.is_alive()
                && !self.world.jobs.contains_key(&member.gang)
            {
                let (bound, size) = partial.entry(&member.gang).or_default();
                *bound += u32::from(pod.node.is_some());
                *size = match member.source {
                    MembershipSource::Label { size: Ok(size), .. } => size,
                    MembershipSource::Alone => 1,
                    _ => 0,
                };
            }
        }
        for (gang, (bound, size)) in partial {
            // Members that have ended count, those that are gone since too.
            let ended = self.ever_ended(gang);
            assert!(
                bound == 0 || bound + ended >= size,
                "{gang} is bound in part: {bound} of {size}; {}",
                self.world.phase(gang)
            );
            assert!(
                bound > 0 || !self.world.phase(gang).is_empty(),
                "{gang} neither runs nor says why"
            );
            assert!(
                ended > 0 || !self.world.phase(gang).starts_with("Starting"),
                "{gang} hangs: {}",
                self.world.phase(gang)
            );
        }
        let loose = self
            .world
            .pods
            .values()
            .filter(|pod| pod.ours && pod.membership.is_none() && pod.is_alive());
        for pod in loose {
            assert!(pod.node.is_some(), "{} is not bound", pod.name);
        }
    }

    /// Members that have ended well: by their pods, and by the Gang once those are gone.
    fn ended(&self, key: &GangKey) -> u32 {
        let status = self.world.gangs.get(key);
        let status = status.and_then(|gang| gang.status.as_ref());
        let slots = status.and_then(|status| status.plan.as_ref());
        let slots = slots.into_iter().flat_map(|plan| &plan.slots);
        let said = slots.filter(|slot| slot.ended);
        let gone = said.filter(|slot| {
            let uid = slot.pod.as_ref().unwrap();
            assert!(self.world.ended.contains(uid), "{uid} has not ended");
            !self.world.pods.contains_key(uid)
        });
        let gone = gone.count() as u32;
        gone + self
            .world
            .pods
            .values()
            .filter(|pod| pod.membership.as_ref().is_some_and(|m| m.gang == *key))
            .filter(|pod| pod.phase == PodPhase::Succeeded)
            .count() as u32
    }

    /// Members that have ended well and do not run again, by what the world has seen alone: whatever
    /// the engine says of the gang, and whether their pods are still there.
    fn ever_ended(&self, key: &GangKey) -> u32 {
        // Pods that do not say which member they are may take the place of any that is lost: one that runs
        // under the name of one that has ended is not that one again.
        let says_which = |pod: &Pod| pod.membership.as_ref().is_some_and(|m| m.index.is_some());
        let runs = |name: &Arc<str>| {
            let mut pods = self.world.pods.values().filter(|pod| says_which(pod));
            pods.any(|pod| pod.name == *name && pod.is_alive() && pod.node.is_some())
        };
        let ended: BTreeSet<&Arc<str>> = self
            .members
            .iter()
            .filter(|(uid, (gang, _))| gang == key && self.world.ended.contains(*uid))
            .map(|(_, (_, name))| name)
            .filter(|name| !runs(name))
            .collect();
        ended.len() as u32
    }

    /// A gang that runs goes on by the plan that it was started with, whatever was edited since.
    fn started_with(&self, key: &GangKey) -> Option<u32> {
        let status = self.world.gangs.get(key)?.status.as_ref()?;
        (status.phase == Phase::Running).then(|| status.minimum.min(status.total))
    }

    fn check_job(&self, key: &GangKey, job: &Workload) {
        let alive = self
            .world
            .pods
            .values()
            .filter(|pod| pod.membership.as_ref().is_some_and(|m| m.gang == *key))
            .filter(|pod| pod.is_alive());
        let (mut bound, mut unbound) = (0u32, 0u32);
        for pod in alive {
            *if pod.node.is_some() {
                &mut bound
            } else {
                &mut unbound
            } += 1;
        }
        if job.finished.is_some() {
            return;
        }
        let running = self
            .world
            .gangs
            .get(key)
            .and_then(|gang| gang.status.as_ref())
            .filter(|status| status.phase == Phase::Running);
        if let Some(running) = running {
            // It goes on by the plan that it was started with, whatever was edited since.
            assert!(
                bound + unbound == 0
                    || bound + self.ended(key) >= running.minimum.min(running.total),
                "{key} has {bound} bound and says {} {}",
                self.world.phase(key),
                running.minimum
            );
            return;
        }
        let total = job.total().unwrap_or(bound + unbound);
        let minimum = job.minimum.filter(|least| *least > 0).unwrap_or(total);
        let phase = self.world.phase(key);
        let ended = self.ended(key);
        if bound + ended >= minimum {
            return;
        }
        assert_eq!(
            bound, 0,
            "{key} is bound in part: {bound} of {minimum}; {phase}"
        );
        if ended > 0 {
            return;
        }
        if job.total().is_none() && unbound == 0 {
            return;
        }
        if job.hold == Hold::SuspendedByUser && phase.is_empty() {
            return;
        }
        assert!(!phase.is_empty(), "{key} does not say why it waits");
        assert!(
            phase.starts_with("Waiting") || phase.starts_with("Suspended"),
            "{key} hangs: {phase} {}",
            self.world.reason(key)
        );
        if phase.starts_with("Waiting") {
            // Somebody before it has waited for long, and goes on doing so.
            let kept_for = self.world.engine.kept_nodes().gangs;
            let is_held_back = match phase.split(' ').nth(1) {
                Some("NodesKeptForAnother") => true,
                // Nodes are kept for it, and where it fits now they are kept for one before it.
                Some("NodesKept") => kept_for > 1,
                _ => false,
            };
            assert!(
                !phase.contains("NodesKept") || kept_for > 0,
                "{key} says {phase}"
            );
            assert!(
                is_held_back || !self.fits(job, minimum),
                "{key} would fit and waits: {phase} {}",
                self.world.reason(key)
            );
        }
    }

    /// Whether a job of one role would find room now.
    fn fits(&self, job: &Workload, minimum: u32) -> bool {
        let MemberSource::Roles(roles) = &job.members else {
            return false;
        };
        let [role] = roles.as_slice() else {
            return false;
        };
        let each = role.shape.requests.extended(GPU).max(1);
        let older = self.world.pods.values().any(|pod| {
            pod.membership.as_ref().is_some_and(|m| m.gang == job.key)
                && pod.shape.requests != role.shape.requests
        });
        if older {
            // Pods that were born before the template was edited are not made again.
            return false;
        }
        let rooms = self.world.nodes.values().map(|node| {
            let free = node.allocatable.extended(GPU) - self.used(&node.name).1;
            (node, free / each)
        });
        let places = ruled::places(&role.shape, &rooms.collect::<Vec<_>>());
        role.count > 0 && minimum <= role.count && places >= u64::from(minimum)
    }

    /// What another process would work out of the API and the agents' reports alone is what this one
    /// believes of every node.
    pub fn check_rebuilt(&mut self) {
        let believed = self.world.engine.view();
        // Another process chooses nodes anew, those first that are empty by now: who is held back may be another one.
        let is_kept = self.world.engine.kept_nodes().gangs > 0;
        self.restart();
        self.calm_down(Millis::from_secs(60));
        let rebuilt = self.world.engine.view();
        for name in self.world.nodes.keys().filter(|_| !is_kept) {
            assert_eq!(
                believed.free.get(name.as_str()),
                rebuilt.free.get(name.as_str()),
                "{name}"
            );
        }
        self.check_settled();
    }

    /// Phases, for the trace of a failure.
    pub fn picture(&self) -> String {
        let gangs: Vec<String> = self
            .world
            .gangs
            .iter()
            .map(|(key, stored)| {
                let phase = stored.status.as_ref().map_or(Phase::Waiting, |s| s.phase);
                format!("{key} {} {}", phase.as_str(), self.world.reason(key))
            })
            .collect();
        let view = self.world.engine.view();
        let nodes = self.world.nodes.keys().map(|name| {
            format!(
                "{name} used {:?}, free {:?}",
                self.used(&name.as_str().into()),
                view.free.get(name.as_str()).map(|free| free.extended(GPU))
            )
        });
        gangs
            .into_iter()
            .chain(nodes)
            .collect::<Vec<_>>()
            .join("\n")
    }
}
