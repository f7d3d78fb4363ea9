//! Baselines: who goes next is decided here, where it goes by the production planner.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::config::Config;
use muster_core::ids::{GangKey, NodeName};
use muster_core::inventory::Inventory;
use muster_core::ledger::{Ledger, SlotKey};
use muster_core::plan::{Placement, plan_part};
use muster_core::reason::Unplaceable;
use muster_core::snapshot::{Counts, Snapshot};
use muster_core::state::State;

use super::{Fact, Policy, config, timestamp};
use crate::cluster::{Cluster, Holders};
use crate::error::Error;
use crate::scene::{GPU, GangSpec, Scene};

/// Who goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Strictly by arrival.
    Fifo,
    /// By arrival, and whoever fits.
    Greedy,
}

/// What a gang asks for: its class, and the members that must run together.
type Question = (usize, u32);

/// A member that runs.
#[derive(Debug)]
struct Member {
    slot: SlotKey,
    node: NodeName,
    gpus: u64,
}

/// A baseline policy.
#[derive(Debug)]
pub struct Baseline<'a> {
    scene: &'a Scene,
    order: Order,
    config: Config,
    ledger: Ledger,
    inventory: Inventory,
    snapshot: Snapshot,
    /// Positions of gangs; they are in order of arrival.
    waiting: BTreeSet<usize>,
    /// Those of them that have not been tried on what there is.
    untried: BTreeSet<usize>,
    running: BTreeMap<usize, Vec<Member>>,
    /// Why what was asked found no room, when it was last tried.
    reasons: BTreeMap<Question, Unplaceable>,
    /// There may be more room than when everybody was last tried.
    grown: bool,
    /// Brought about since the last decision.
    facts: Vec<Fact>,
    now_ms: u64,
}

impl<'a> Baseline<'a> {
    /// A scheduler for these gangs that knows no node yet.
    pub fn new(scene: &'a Scene, order: Order) -> Self {
        Self {
            scene,
            order,
            config: config(scene),
            ledger: Ledger::default(),
            inventory: Inventory::default(),
            snapshot: Snapshot::default(),
            waiting: BTreeSet::new(),
            untried: BTreeSet::new(),
            running: BTreeMap::new(),
            reasons: BTreeMap::new(),
            grown: false,
            facts: Vec::new(),
            now_ms: 0,
        }
    }

    fn refresh(&mut self, node: &NodeName) {
        let now = timestamp(self.now_ms);
        match self
            .ledger
            .capacity(node, &self.inventory, &self.config, now)
        {
            Some(capacity) => self.snapshot.set(Arc::new(capacity)),
            None => {
                self.snapshot.remove(node);
            }
        }
    }

    /// Frees what a gang has.
    fn stop(&mut self, gang: usize) {
        for member in self.running.remove(&gang).unwrap_or_default() {
            self.ledger.release(&member.slot);
            self.refresh(&member.node);
            self.facts.push(Fact::Frees {
                gang,
                node: member.node,
                gpus: member.gpus,
            });
        }
        self.grown = true;
    }

    fn start(&mut self, gang: usize, placement: Placement) {
        let key = GangKey::new("default", &gang.to_string());
        let mut members = Vec::with_capacity(placement.members.len());
        for member in placement.members {
            let slot = SlotKey {
                gang: key.clone(),
                role: member.role,
                index: member.index,
            };
            let gpus = member.shape.requests.extended(GPU);
            self.ledger.reserve(
                slot.clone(),
                member.node.clone(),
                member.shape,
                member.devices,
            );
            self.refresh(&member.node);
            self.facts.push(Fact::Takes {
                gang,
                node: member.node.clone(),
                gpus,
            });
            members.push(Member {
                slot,
                node: member.node,
                gpus,
            });
        }
        self.running.insert(gang, members);
        self.waiting.remove(&gang);
        self.facts.push(Fact::Runs { gang });
    }

    /// As the engine does: what the gangs that wait and run ask for.
    fn review_demand(&mut self) {
        let known = self.waiting.len().saturating_add(self.running.len());
        if !self.snapshot.is_demand_due(known) {
            return;
        }
        let mut counts = Counts::new();
        for gang in self.waiting.iter().chain(self.running.keys()) {
            let roles = self.scene.gangs.get(*gang).map(|spec| spec.roles.iter());
            for role in roles.into_iter().flatten() {
                let count = counts.entry(Arc::clone(&role.shape)).or_default();
                *count = count.saturating_add(u64::from(role.count));
            }
        }
        for shape in counts.keys() {
            self.snapshot.learn(shape);
        }
        self.snapshot.set_demand(&counts, &self.config);
    }

    fn find(&mut self, spec: &GangSpec) -> Result<Placement, Unplaceable> {
        for role in spec.roles.iter() {
            self.snapshot.learn(&role.shape);
        }
        let spare = spec.members().saturating_sub(spec.minimum());
        plan_part(
            &self.snapshot,
            &spec.request(&self.config),
            spare,
            &self.config,
        )
        .placement
    }

    /// Tries one gang. Whether it has started.
    fn attempt(&mut self, gang: usize, spec: &GangSpec) -> bool {
        match self.find(spec) {
            Ok(placement) => {
                self.start(gang, placement);
                true
            }
            Err(why) => {
                self.reasons.insert(question(spec), why);
                false
            }
        }
    }

    fn pass_fifo(&mut self) {
        let scene = self.scene;
        while let Some(first) = self.waiting.first().copied() {
            // What was tried on the same room found none.
            if !self.grown && !self.untried.contains(&first) {
                break;
            }
            self.untried.remove(&first);
            match scene.gangs.get(first) {
                Some(spec) if self.attempt(first, spec) => {}
                _ => break,
            }
        }
        self.grown = false;
    }

    fn pass_greedy(&mut self) {
        let scene = self.scene;
        let untried = std::mem::take(&mut self.untried);
        let candidates: Vec<usize> = if std::mem::take(&mut self.grown) {
            self.waiting.iter().copied().collect()
        } else {
            untried.into_iter().collect()
        };
        // Within one pass room only shrinks: what found none finds none.
        let mut failed: BTreeSet<Question> = BTreeSet::new();
        for gang in candidates {
            if let Some(spec) = scene.gangs.get(gang)
                && !failed.contains(&question(spec))
                && !self.attempt(gang, spec)
            {
                failed.insert(question(spec));
            }
        }
    }
}

fn question(spec: &GangSpec) -> Question {
    (spec.class, spec.minimum())
}

impl Policy for Baseline<'_> {
    fn node_changed(&mut self, cluster: &mut Cluster, node: usize, now_ms: u64) {
        self.now_ms = now_ms;
        let Some(name) = cluster.name(node).cloned() else {
            return;
        };
        match cluster.object(node) {
            Some(object) => {
                self.ledger.set_node(object);
                if let Some(report) = cluster.report(node, &Holders::new()) {
                    // A report counts up with each call: it is never an old one.
                    let _ = self.inventory.apply(report, timestamp(now_ms));
                }
            }
            None => {
                self.ledger.remove_node(&name);
                let hit: Vec<usize> = self
                    .running
                    .iter()
                    .filter(|(_, members)| members.iter().any(|member| member.node == name))
                    .map(|(gang, _)| *gang)
                    .collect();
                for gang in hit {
                    self.stop(gang);
                    self.waiting.insert(gang);
                    self.facts.push(Fact::Halts { gang });
                }
            }
        }
        self.refresh(&name);
        self.grown = true;
    }

    fn arrived(&mut self, gang: usize, _now_ms: u64) {
        self.waiting.insert(gang);
        self.untried.insert(gang);
    }

    fn ended(&mut self, gang: usize, now_ms: u64) {
        self.now_ms = now_ms;
        self.stop(gang);
    }

    fn decide(
        &mut self,
        _cluster: &mut Cluster,
        now_ms: u64,
        facts: &mut Vec<Fact>,
    ) -> Result<(), Error> {
        self.now_ms = now_ms;
        self.review_demand();
        match self.order {
            Order::Fifo => self.pass_fifo(),
            Order::Greedy => self.pass_greedy(),
        }
        facts.append(&mut self.facts);
        Ok(())
    }

    fn deadline_ms(&self) -> Option<u64> {
        None
    }

    fn reason(&self, gang: usize) -> Option<String> {
        if !self.waiting.contains(&gang) {
            return None;
        }
        let is_behind = self.order == Order::Fifo && self.waiting.first() != Some(&gang);
        let spec = self.scene.gangs.get(gang)?;
        match self.reasons.get(&question(spec)).filter(|_| !is_behind) {
            Some(why) => Some(why.to_string()),
            None => Some("waits behind an earlier gang".into()),
        }
    }

    fn state(&self, _: u64) -> Option<State> {
        None
    }

    fn audit(&mut self) -> u64 {
        0
    }
}
