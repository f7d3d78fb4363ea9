//! What goes wrong in a storm, one thing at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use muster_core::engine::Engine;
use muster_core::event::Event;
use muster_core::ids::{Epoch, GangKey, PodUid};
use muster_core::pod::{Membership, MembershipSource, PodPhase};
use muster_core::time::Millis;
use muster_core::workload::{Hold, MemberSource, Outcome, Shown, Workload, WorkloadKind};

use super::{GPUS, NODES, Set, Storm};
use crate::world::{GPU, gpus};

/// What goes wrong.
impl Storm {
    pub(super) fn mischief(&mut self) {
        self.world.now = self.world.now + Millis(self.rng.below(3000));
        if self.rng.chance(60) {
            self.agents_report();
        }
        match self.rng.below(42) {
            0..6 => self.submit(),
            6 => self.flap_node(),
            7 => self.remove_node(),
            8 => self.sick_device(),
            9 => self.silence(),
            10 => self.foreign_pod(),
            11..14 => self.hurt_pod(),
            14..17 => self.edit_job(),
            17 => self.end_job(),
            18 => self.drop_binds(),
            19 => self.restart(),
            20 => self.pause_leadership(),
            21 => self.hand_deletes_record(),
            22 => self.flush_unschedulable(),
            23 => {
                let more = self.rng.below(40_000);
                self.world.now = self.world.now + Millis(more);
            }
            24 => self.lose_api(),
            25 => self.freeze(),
            _ => {}
        }
    }

    /// An operator freezes all, or lets it go on.
    fn freeze(&mut self) {
        self.frozen = !self.frozen;
        self.tell_frozen();
    }

    pub(super) fn thaw(&mut self) {
        self.frozen = false;
        self.tell_frozen();
    }

    fn tell_frozen(&mut self) {
        let why = self.frozen.then(|| Arc::from("an operator looks at it"));
        self.note(|| format!("frozen: {why:?}"));
        self.world.engine.handle(Event::Frozen(why), self.world.now);
    }

    fn lose_api(&mut self) {
        self.away = 1 + self.rng.below(40);
        let before = Millis(self.rng.below(5000));
        self.note(|| "api is away".to_owned());
        self.world
            .engine
            .handle(Event::ApiAway(before), self.world.now);
    }

    pub(super) fn agents_report(&mut self) {
        self.world.next_generation();
        for name in self.world.nodes.keys().cloned().collect::<Vec<_>>() {
            if self.silent.contains(&name) {
                continue;
            }
            if let Some(report) = self.world.report_of(&name) {
                self.world.tell(Event::Report(report));
            }
        }
    }

    fn name(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{what}{}", self.made)
    }

    fn submit(&mut self) {
        if self.world.jobs.len() + self.sets.len() > 7 {
            return;
        }
        match self.rng.below(10) {
            0..4 => self.submit_job(),
            4..6 => self.submit_pod_group(),
            6..8 => self.submit_label(),
            _ => self.submit_alone(),
        }
    }

    fn submit_job(&mut self) {
        let name = self.name("job");
        let hold = if self.rng.chance(65) {
            Hold::Held
        } else {
            Hold::Free
        };
        let workers = 1 + self.rng.below(4) as u32;
        let each = [1, 1, 2, 4][self.rng.below(4) as usize];
        let ruled = self.ruled();
        let worker = ("Worker", workers, ruled.shape(&gpus(each)));
        let key = if self.rng.chance(30) {
            let master = ("Master", 1, ruled.shape(&gpus(self.rng.below(2))));
            self.world.submit(&name, &[master, worker], hold)
        } else {
            self.world.submit(&name, &[worker], hold)
        };
        if self.rng.chance(20) {
            let minimum = Some(1 + self.rng.below(u64::from(workers)) as u32);
            self.world.edit(&key, |job| job.minimum = minimum);
        }
    }

    fn members(
        &mut self,
        name: &str,
        key: &GangKey,
        count: u32,
        source: &MembershipSource,
    ) -> Vec<(String, Membership)> {
        let named = self.rng.chance(40);
        let indexed = self.rng.chance(50);
        let twin = self.rng.chance(20);
        (0..count)
            .map(|index| {
                let membership = Membership {
                    gang: key.clone(),
                    source: source.clone(),
                    role: named.then(|| "part".into()),
                    index: indexed.then_some(if twin { index / 2 } else { index }),
                };
                (format!("{name}-{index}"), membership)
            })
            .collect()
    }

    fn submit_pod_group(&mut self) {
        let name = self.name("group");
        let key = GangKey::new("default", &format!("uid-{name}"));
        let size = 1 + self.rng.below(4) as u32;
        let source = MembershipSource::PodGroup {
            name: Arc::from(name.as_str()),
        };
        let each = 1 + self.rng.below(2);
        let names = self.members(&name, &key, size, &source);
        self.world.submit(&name, &[], Hold::Free);
        self.world.watch.pop_back();
        let minimum = self.rng.chance(80).then_some(size);
        self.world.edit(&key, |group| {
            group.kind = WorkloadKind::PodGroup;
            group.members = MemberSource::Pods;
            group.minimum = minimum;
        });
        let (gated, controlled) = (self.rng.chance(50), self.rng.chance(60));
        let ruled = self.ruled();
        self.sets.push(Set {
            names,
            shape: ruled.shape(&gpus(each)),
            gated,
            controlled,
            born: false,
        });
    }

    fn submit_label(&mut self) {
        let name = self.name("label");
        let key = GangKey::labelled("default", &name);
        let size = 1 + self.rng.below(4) as u32;
        let source = MembershipSource::Label {
            name: Arc::from(name.as_str()),
            size: Ok(size),
        };
        let names = self.members(&name, &key, size, &source);
        let (gated, controlled) = (self.rng.chance(50), self.rng.chance(50));
        let each = 1 + self.rng.below(2);
        let ruled = self.ruled();
        self.sets.push(Set {
            names,
            shape: ruled.shape(&gpus(each)),
            gated,
            controlled,
            born: false,
        });
    }

    fn submit_alone(&mut self) {
        let name = self.name("alone");
        let membership = Membership {
            gang: GangKey::new("default", "set at birth"),
            source: MembershipSource::Alone,
            role: None,
            index: None,
        };
        let (gated, controlled) = (self.rng.chance(50), self.rng.chance(50));
        let each = self.rng.below(3);
        self.sets.push(Set {
            names: vec![(name, membership)],
            shape: gpus(each),
            gated: gated && each > 0,
            controlled,
            born: false,
        });
    }

    fn a_node(&mut self) -> String {
        format!("n{}", self.rng.below(NODES))
    }

    /// A node of the storm comes back, in its zone.
    pub(super) fn bring_node(&mut self, name: &str) {
        self.world.add_node(name, GPUS);
        let index = name.trim_start_matches('n').parse().unwrap();
        self.world
            .change_node(name, |node| super::ruled::label(node, index));
    }

    fn flap_node(&mut self) {
        let name = self.a_node();
        if !self.world.nodes.contains_key(&name) {
            return;
        }
        let cordon = self.rng.chance(50);
        self.world.change_node(&name, |node| {
            if cordon {
                node.unschedulable = !node.unschedulable;
            } else {
                node.ready = !node.ready;
            }
        });
    }

    fn remove_node(&mut self) {
        let name = self.a_node();
        self.note(|| format!("node {name} goes or comes"));
        if self.world.nodes.remove(&name).is_some() {
            self.world.tell(Event::NodeRemoved(name.as_str().into()));
        } else {
            self.bring_node(&name);
        }
    }

    fn sick_device(&mut self) {
        let device = format!("GPU-{}-{}", self.a_node(), self.rng.below(GPUS));
        if !self.world.unhealthy.remove(&device) {
            self.world.unhealthy.insert(device);
        }
        self.agents_report();
    }

    fn silence(&mut self) {
        let node = self.a_node();
        if !self.silent.remove(&node) {
            self.silent.insert(node);
        }
    }

    fn foreign_pod(&mut self) {
        let foreign: Vec<PodUid> = self
            .world
            .pods
            .values()
            .filter(|pod| !pod.ours)
            .map(|pod| pod.uid.clone())
            .collect();
        if let Some(uid) = foreign.first()
            && self.rng.chance(60)
        {
            self.world.end_pod(uid);
            return;
        }
        let name = self.a_node();
        let Some(node) = self.world.nodes.get(&name) else {
            return;
        };
        if self.used(&node.name).1 < node.allocatable.extended(GPU) {
            let node = node.name.clone();
            self.world.stranger("foreign", gpus(1), node);
        }
    }

    fn hurt_pod(&mut self) {
        let ours: Vec<PodUid> = self
            .world
            .pods
            .values()
            .filter(|pod| pod.ours && pod.is_alive())
            .map(|pod| pod.uid.clone())
            .collect();
        if ours.is_empty() {
            return;
        }
        let uid = ours[self.rng.below(ours.len() as u64) as usize].clone();
        let bound = self.world.pods[&uid].node.is_some();
        match self.rng.below(3) {
            0 if bound => self
                .world
                .change_pod(&uid, |pod| pod.phase = PodPhase::Failed),
            1 if bound => self
                .world
                .change_pod(&uid, |pod| pod.phase = PodPhase::Succeeded),
            _ => self.world.end_pod(&uid),
        }
    }

    fn a_job(&mut self) -> Option<GangKey> {
        let keys: Vec<GangKey> = self.world.jobs.keys().cloned().collect();
        let at = self.rng.below(keys.len() as u64) as usize;
        keys.get(at).cloned()
    }

    fn edit_job(&mut self) {
        let Some(key) = self.a_job() else { return };
        let (what, size) = (self.rng.below(6), 1 + self.rng.below(4) as u32);
        let each = 1 + self.rng.below(2);
        self.world.edit(&key, |job| match (&mut job.members, what) {
            (MemberSource::Roles(roles), 0 | 1) => {
                if let Some(role) = roles.last_mut() {
                    role.count = size;
                }
            }
            (MemberSource::Roles(roles), 2) => {
                if let Some(role) = roles.last_mut() {
                    let mut shape = (*gpus(each)).clone();
                    shape.between_pods = role.shape.between_pods.clone();
                    role.shape = Arc::new(shape);
                }
            }
            (MemberSource::Roles(_), 3) => toggle_suspension(job),
            (MemberSource::Roles(_), _) => job.minimum = Some(size),
            (MemberSource::Pods, _) => {}
        });
    }

    fn end_job(&mut self) {
        let Some(key) = self.a_job() else { return };
        let name = Arc::clone(&self.world.jobs[&key].name);
        if self.rng.chance(50) && self.world.jobs[&key].kind == WorkloadKind::PyTorchJob {
            self.world
                .edit(&key, |job| job.finished = Some(Outcome::Succeeded));
            return;
        }
        self.world.jobs.remove(&key);
        self.world.tell(Event::WorkloadRemoved(key.clone()));
        self.sets
            .retain(|set| set.names.iter().all(|(_, member)| member.gang != key));
        let pods: Vec<PodUid> = self
            .world
            .pods
            .values()
            .filter(|pod| pod.membership.as_ref().is_some_and(|m| m.gang == key))
            .map(|pod| pod.uid.clone())
            .collect();
        self.note(|| format!("job {name} is deleted"));
        for uid in pods {
            self.world.end_pod(&uid);
        }
    }

    fn drop_binds(&mut self) {
        for ticket in self.world.held.keys().copied().collect::<Vec<_>>() {
            if self.rng.chance(60) {
                self.world.held.remove(&ticket);
                self.asked.remove(&ticket);
                self.world
                    .engine
                    .handle(Event::BindDropped(ticket), self.world.now);
            }
        }
    }

    /// Another process takes over; what the old one sent may still arrive.
    pub(super) fn restart(&mut self) {
        self.epoch += 1;
        self.note(|| "restart".to_owned());
        self.zombies.extend(self.pending.drain(..));
        self.relists = 0;
        self.asked.clear();
        self.world.held.clear();
        self.world.watch.clear();
        self.lanes.iter_mut().for_each(VecDeque::clear);
        self.world.engine = Engine::new(self.world.config.clone());
        let now = self.world.now;
        let list: Vec<Event> = self
            .world
            .nodes
            .values()
            .cloned()
            .map(Event::NodeApplied)
            .chain(self.world.pods.values().cloned().map(Event::PodApplied))
            .chain(
                self.world
                    .jobs
                    .values()
                    .cloned()
                    .map(Event::WorkloadApplied),
            )
            .chain(
                self.world
                    .gangs
                    .values()
                    .map(|gang| Event::RecordApplied(gang.record.clone())),
            )
            .collect();
        for event in list {
            self.world.engine.handle(event, now);
        }
        self.agents_report();
        self.tell_frozen();
        self.world.engine.handle(
            Event::LeadershipGained {
                epoch: Epoch(self.epoch),
                first: self.epoch == 1,
            },
            now,
        );
        self.world.engine.handle(Event::Synced, now);
    }

    /// Leadership goes and comes back in the same process.
    fn pause_leadership(&mut self) {
        self.note(|| "leadership lost".to_owned());
        self.world
            .engine
            .handle(Event::LeadershipLost, self.world.now);
        self.decide();
        self.epoch += 1;
        self.note(|| "leadership gained".to_owned());
        self.world.engine.handle(
            Event::LeadershipGained {
                epoch: Epoch(self.epoch),
                first: self.epoch == 1,
            },
            self.world.now,
        );
    }

    fn hand_deletes_record(&mut self) {
        let Some(key) = self.world.gangs.keys().next().cloned() else {
            return;
        };
        self.world.gangs.remove(&key);
        self.world.tell(Event::RecordRemoved(key));
    }

    /// kube-scheduler tries every pod again now and then, whatever happened.
    fn flush_unschedulable(&mut self) {
        self.asleep.clear();
    }
}

/// The user suspends the job, or takes it out of the queue, or resumes it: with the admission policy
/// it queues again, without it its pods come.
fn toggle_suspension(job: &mut Workload) {
    (job.hold, job.shown) = match (&job.hold, job.shown) {
        (Hold::SuspendedByUser, shown) if job.generation % 2 == 0 => (Hold::Held, shown),
        (Hold::SuspendedByUser, _) => (Hold::Free, Shown::Nothing),
        (Hold::Held, Shown::Queued) => (Hold::SuspendedByUser, Shown::Queued),
        _ => (Hold::SuspendedByUser, Shown::Suspended),
    };
}
