//! Reservation, fence and repair with two replicas, as a model whose every state is looked at.
//!
//! ```text
//!   replica 0, replica 1: follow -> acquire -> stamp every unbound pod and every Gang -> LIST -> plan, bind, give back, repair
//!        │ requests: put a plan, bind a pod        ▲ answers, or none; the watch, as late as it likes
//!        ▼                                         │
//!   API server: pods and Gangs with versions, the Lease              the world: loses pods
//! ```
//!
//! Two gangs, of two members and of one, and three nodes with room for one member each. A request may be
//! on its way for as long as it likes, also for ever, and longer than its sender leads. Nothing goes by a
//! clock, but for [`Protections::deadline`].
//!
//! The rules are those of the product, and each names its place there. Each [`Protections`] can be taken
//! out: the model must find a violation then, or it would not have found one with it either.

// Indices are pods, gangs and replicas of the model: a wrong one is a mistake in it, and ends the test.
#![allow(clippy::indexing_slicing)]

use std::collections::BTreeSet;

use stateright::{Model, Property};

/// Members; the first two are gang 0, the last one is gang 1.
const PODS: usize = 3;
const GANGS: usize = 2;
const NODES: u8 = 3;
const REPLICAS: usize = 2;

/// Members of a gang.
const MEMBERS: [&[usize]; GANGS] = [&[0, 1], &[2]];

/// Gang of a pod.
const fn gang_of(pod: usize) -> usize {
    if pod < 2 { 0 } else { 1 }
}

/// Nodes of a gang's members, by pod.
pub type Plan = [Option<u8>; PODS];

/// What keeps two leaders apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protections {
    /// A Binding cites the resourceVersion of its pod (`scheduler/src/writer/bind.rs`).
    pub version: bool,
    /// A new leader stamps every pod that is not bound (`core/src/engine/fencing.rs`).
    pub stamp: bool,
    /// And every Gang.
    pub stamp_gangs: bool,
    /// It does not write over the stamp of a later one (`Attempts::read_pod` and `read_record` in
    /// `scheduler/src/writer/step.rs`).
    pub respect: bool,
    /// A new leader lists the pods and the Gangs after that, before it plans.
    pub list: bool,
    /// A replica that sees a later epoch writes nothing until it knows who leads (`scheduler/src/fence.rs`).
    pub step_down: bool,
    /// Room that a Binding may still take is not given away (`core/src/engine/doubt.rs`).
    pub doubt: bool,
    /// Nothing is sent after the renew deadline, which is over before anybody else may take the Lease
    /// (`Fence::hold_until`).
    pub deadline: bool,
}

impl Protections {
    /// As in the product, but for the clock: nothing is believed of times.
    pub const WITHOUT_CLOCK: Self = Self {
        version: true,
        stamp: true,
        stamp_gangs: true,
        respect: true,
        list: true,
        step_down: true,
        doubt: true,
        deadline: false,
    };

    /// As in the product.
    pub const ALL: Self = Self {
        deadline: true,
        ..Self::WITHOUT_CLOCK
    };
}

/// The model, and how much of it is looked at.
#[derive(Clone, Debug)]
pub struct Fence {
    /// What is in force.
    pub protections: Protections,
    /// Highest epoch: so many times the Lease is taken.
    pub epochs_max: u8,
    /// Requests on their way at most.
    pub requests_max: usize,
    /// Pods that are lost after they were bound, and made again.
    pub losses_max: u8,
    /// Plans that are given back.
    pub returns_max: u8,
}

/// A pod as the API server has it, or as a replica believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pod {
    version: u8,
    stamp: u8,
    node: Option<u8>,
}

/// A Gang object, as the API server has it, or as a replica believes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gang {
    version: u8,
    stamp: u8,
    epoch: u8,
    plan: Option<Plan>,
}

/// How far a replica is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// It does not lead.
    #[default]
    Follows,
    /// It holds the Lease, by its own belief, and stamps: this pod is the next. All Gangs are stamped with the first pod, or
    /// there would be too many states.
    Stamps(usize),
    /// It plans.
    Leads,
}

/// One replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Replica {
    role: Role,
    epoch: u8,
    /// It has seen a later epoch.
    doubts: bool,
    pods: [Pod; PODS],
    gangs: [Gang; GANGS],
    /// Version that a write without an answer yet cites, and what is reserved until there is one.
    reserved: [Option<(u8, Plan)>; GANGS],
    /// Version and node of a Binding that has no answer yet.
    sent: [Option<(u8, u8)>; PODS],
}

/// A request on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    /// Write a plan, or that there is none.
    Put {
        /// Its sender.
        from: usize,
        /// In which of its leaderships.
        epoch: u8,
        /// Of which gang.
        gang: usize,
        /// Version of the Gang that the sender saw.
        version: u8,
        /// The plan.
        plan: Option<Plan>,
    },
    /// Bind a pod.
    Bind {
        /// Its sender.
        from: usize,
        /// In which of its leaderships.
        epoch: u8,
        /// The pod.
        pod: usize,
        /// Version of the pod that the sender saw.
        version: u8,
        /// Where to.
        node: u8,
    },
}

/// Everything there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pods: [Pod; PODS],
    gangs: [Gang; GANGS],
    holder: Option<usize>,
    epoch: u8,
    replicas: [Replica; REPLICAS],
    requests: BTreeSet<Request>,
    losses: u8,
    repairs: u8,
    returns: u8,
    /// Highest epoch of which a plan was written.
    planned: u8,
    /// A Binding of an epoch has applied after a plan of a later one.
    late: bool,
    /// A plan of an epoch has, or that there is none any more.
    late_plan: bool,
    /// A Binding has applied without a durable plan that says so.
    unplanned: bool,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A replica takes the Lease; whoever held it is not told.
    Acquire(usize),
    /// A replica learns that it does not hold the Lease any more, or is killed and started again: either
    /// way it forgets what it meant, and its requests stay on their way.
    Notice(usize),
    /// A replica stamps a pod, and the Gangs with the first.
    Stamp(usize, usize),
    /// A replica lists the pods and the Gangs, and begins to plan.
    List(usize),
    /// The watch of pods brings a replica what there is.
    SeePods(usize),
    /// The watch of Gangs does.
    SeeGangs(usize),
    /// A replica plans a gang.
    Plan(usize, usize),
    /// A replica takes over the plan of a leader before it.
    Adopt(usize, usize),
    /// A replica gives a plan back.
    GiveBack(usize, usize),
    /// A replica moves a member that is not bound to another node, because its own has failed.
    Repair(usize, usize),
    /// A replica binds a pod.
    Bind(usize, usize),
    /// A request arrives; the answer is heard or not.
    Arrive(Request, bool),
    /// A bound pod is lost and made again under its name.
    LosePod(usize),
}

impl Replica {
    fn leads(&self) -> bool {
        self.role == Role::Leads && !self.doubts
    }

    fn follow(&mut self) {
        self.role = Role::Follows;
        self.doubts = false;
        self.reserved = Default::default();
        self.sent = Default::default();
    }

    /// A later epoch was seen.
    fn see(&mut self, epoch: u8, protections: Protections) {
        if protections.step_down && self.role != Role::Follows && epoch > self.epoch {
            self.doubts = true;
        }
    }

    fn see_pod(&mut self, pod: usize, found: Pod, protections: Protections) {
        self.see(found.stamp, protections);
        self.pods[pod] = found;
        // A Binding in doubt is void once the pod has moved on from the version that it cites.
        if self.sent[pod].is_some_and(|(cited, _)| cited != found.version) {
            self.sent[pod] = None;
        }
    }

    fn see_gang(&mut self, gang: usize, found: Gang, protections: Protections) {
        self.see(found.epoch.max(found.stamp), protections);
        self.gangs[gang] = found;
        // A write is over once the object is at another version than the one that it cites.
        if self.reserved[gang].is_some_and(|(cited, _)| cited != found.version) {
            self.reserved[gang] = None;
        }
    }

    /// What takes up a node, by what this replica believes; members of `but` do not count, unless bound.
    fn is_free(&self, node: u8, but: usize, protections: Protections) -> bool {
        let bound = self.pods.iter().any(|pod| pod.node == Some(node));
        let promised = (0..GANGS).filter(|gang| *gang != but).any(|gang| {
            let reserved = self.reserved[gang].map(|(_, plan)| plan);
            let plans = [self.gangs[gang].plan, reserved];
            let mut plans = plans.into_iter().flatten();
            plans.any(|plan| plan.contains(&Some(node)))
        });
        let doubtful = protections.doubt
            && (0..PODS)
                .any(|pod| gang_of(pod) != but && self.sent[pod].is_some_and(|(_, to)| to == node));
        !bound && !promised && !doubtful
    }

    /// The first nodes that have room for the members of a gang that are not bound.
    fn place(&self, gang: usize, protections: Protections) -> Option<Plan> {
        let mut plan = Plan::default();
        let mut free = (0..NODES).filter(|node| self.is_free(*node, gang, protections));
        for pod in MEMBERS[gang] {
            plan[*pod] = Some(free.next()?);
        }
        Some(plan)
    }

    /// Whether the members of a plan that are not bound have their nodes to themselves.
    fn fits(&self, gang: usize, plan: &Plan, protections: Protections) -> bool {
        MEMBERS[gang].iter().all(|pod| {
            let node = plan[*pod];
            self.pods[*pod].node.is_some()
                || node.is_some_and(|node| self.is_free(node, gang, protections))
        })
    }
}

impl Fence {
    fn acts(&self, state: &State, replica: usize) -> bool {
        let clock = !self.protections.deadline || state.holder == Some(replica);
        state.replicas[replica].leads() && clock && state.requests.len() < self.requests_max
    }

    fn of_replica(&self, state: &State, r: usize, actions: &mut Vec<Action>) {
        let replica = &state.replicas[r];
        match replica.role {
            Role::Follows => {
                // The replicas are alike: the first to lead is the first.
                if state.epoch < self.epochs_max && (state.epoch > 0 || r == 0) {
                    actions.push(Action::Acquire(r));
                }
            }
            Role::Stamps(PODS) => actions.push(Action::List(r)),
            Role::Stamps(pod) => {
                let timely = !self.protections.deadline || state.holder == Some(r);
                if timely && !replica.doubts {
                    actions.push(Action::Stamp(r, pod));
                }
            }
            Role::Leads => {}
        }
        if replica.role != Role::Follows && state.holder != Some(r) {
            actions.push(Action::Notice(r));
        }
        if replica.pods != state.pods {
            actions.push(Action::SeePods(r));
        }
        if replica.gangs != state.gangs {
            actions.push(Action::SeeGangs(r));
        }
        if self.acts(state, r) {
            self.of_leader(state, r, actions);
        }
    }

    fn of_leader(&self, state: &State, r: usize, actions: &mut Vec<Action>) {
        let replica = &state.replicas[r];
        for (gang, members) in MEMBERS.iter().enumerate() {
            if replica.reserved[gang].is_some() {
                continue;
            }
            let known = replica.gangs[gang];
            let bound = members.iter().any(|pod| replica.pods[*pod].node.is_some());
            let Some(plan) = known.plan else {
                if !bound && replica.place(gang, self.protections).is_some() {
                    actions.push(Action::Plan(r, gang));
                }
                continue;
            };
            if known.epoch != replica.epoch {
                actions.push(Action::Adopt(r, gang));
                continue;
            }
            let in_doubt = members.iter().any(|pod| replica.sent[*pod].is_some());
            if !bound && state.returns < self.returns_max && !(self.protections.doubt && in_doubt) {
                actions.push(Action::GiveBack(r, gang));
            }
            for pod in *members {
                let free = replica.pods[*pod].node.is_none() && replica.sent[*pod].is_none();
                if free
                    && plan[*pod].is_some_and(|node| replica.is_free(node, gang, self.protections))
                {
                    actions.push(Action::Bind(r, *pod));
                }
                let elsewhere =
                    (0..NODES).any(|node| replica.is_free(node, gang, self.protections));
                if free && bound && state.repairs < state.losses && elsewhere {
                    actions.push(Action::Repair(r, *pod));
                }
            }
        }
    }

    fn put(&self, state: &mut State, from: usize, gang: usize, plan: Option<Plan>) {
        let replica = &mut state.replicas[from];
        // Until the answer is here, what was promised is promised on.
        let version = replica.gangs[gang].version;
        let promised = plan.or(replica.gangs[gang].plan);
        replica.reserved[gang] = promised.map(|plan| (version, plan));
        let epoch = replica.epoch;
        state.requests.insert(Request::Put {
            from,
            epoch,
            gang,
            version,
            plan,
        });
    }

    fn stamp(&self, state: &mut State, r: usize, pod: usize) {
        let epoch = state.replicas[r].epoch;
        let found = &mut state.pods[pod];
        if self.protections.stamp && found.node.is_none() {
            found.version += 1;
            found.stamp = epoch;
        }
        if self.protections.stamp_gangs && pod == 0 {
            for gang in 0..GANGS {
                let found = &mut state.gangs[gang];
                found.version += 1;
                found.stamp = epoch;
                // The answer says what was promised until then.
                state.replicas[r].see_gang(gang, *found, self.protections);
            }
        }
    }

    fn arrive(&self, state: &mut State, request: Request, heard: bool) {
        let protections = self.protections;
        state.requests.remove(&request);
        match request {
            Request::Put {
                from,
                epoch,
                gang,
                version,
                plan,
            } => {
                let found = &mut state.gangs[gang];
                // The CRD refuses an epoch that goes back.
                if found.version == version && epoch >= found.epoch {
                    state.late_plan |= epoch < state.planned;
                    *found = Gang {
                        version: version + 1,
                        epoch,
                        plan,
                        ..*found
                    };
                    if plan.is_some() {
                        state.planned = state.planned.max(epoch);
                    }
                }
                let found = state.gangs[gang];
                let sender = &mut state.replicas[from];
                if sender.epoch == epoch && sender.role == Role::Leads && heard {
                    sender.reserved[gang] = None;
                    sender.see_gang(gang, found, protections);
                }
            }
            Request::Bind {
                from,
                epoch,
                pod,
                version,
                node,
            } => {
                let cited = !protections.version || state.pods[pod].version == version;
                if cited && state.pods[pod].node.is_none() {
                    state.late |= epoch < state.planned;
                    let plan = state.gangs[gang_of(pod)].plan;
                    let says = plan.is_some_and(|plan| plan[pod] == Some(node));
                    state.unplanned |= !says;
                    let found = &mut state.pods[pod];
                    found.version += 1;
                    found.node = Some(node);
                }
                let found = state.pods[pod];
                let sender = &mut state.replicas[from];
                if sender.epoch == epoch && sender.role == Role::Leads && heard {
                    sender.sent[pod] = None;
                    sender.see_pod(pod, found, protections);
                }
            }
        }
    }
}

impl Model for Fence {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State::default();
        for pod in &mut state.pods {
            pod.version = 1;
        }
        for replica in &mut state.replicas {
            replica.pods = state.pods;
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for replica in 0..REPLICAS {
            self.of_replica(state, replica, actions);
        }
        for request in &state.requests {
            actions.push(Action::Arrive(*request, true));
            actions.push(Action::Arrive(*request, false));
        }
        if state.losses < self.losses_max {
            let bound = (0..PODS).filter(|pod| state.pods[*pod].node.is_some());
            actions.extend(bound.map(Action::LosePod));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let protections = self.protections;
        match action {
            Action::Acquire(r) => {
                state.epoch += 1;
                state.holder = Some(r);
                let replica = &mut state.replicas[r];
                replica.epoch = state.epoch;
                replica.role = Role::Stamps(0);
            }
            Action::Notice(r) => state.replicas[r].follow(),
            Action::Stamp(r, pod) => {
                if protections.respect {
                    let gangs = state.gangs.iter().filter(|_| pod == 0);
                    let gangs = gangs.map(|gang| gang.stamp).max().unwrap_or(0);
                    let found = state.pods[pod].stamp.max(gangs);
                    state.replicas[r].see(found, protections);
                    if state.replicas[r].doubts {
                        return Some(state);
                    }
                }
                self.stamp(&mut state, r, pod);
                state.replicas[r].role = Role::Stamps(pod + 1);
            }
            Action::List(r) => {
                let replica = &mut state.replicas[r];
                replica.role = Role::Leads;
                if protections.list {
                    for pod in 0..PODS {
                        replica.see_pod(pod, state.pods[pod], protections);
                    }
                    for gang in 0..GANGS {
                        replica.see_gang(gang, state.gangs[gang], protections);
                    }
                }
            }
            Action::SeePods(r) => {
                for pod in 0..PODS {
                    state.replicas[r].see_pod(pod, state.pods[pod], protections);
                }
            }
            Action::SeeGangs(r) => {
                for gang in 0..GANGS {
                    state.replicas[r].see_gang(gang, state.gangs[gang], protections);
                }
            }
            Action::Plan(r, gang) => {
                let plan = state.replicas[r].place(gang, protections)?;
                self.put(&mut state, r, gang, Some(plan));
            }
            Action::Adopt(r, gang) => {
                let replica = &state.replicas[r];
                let plan = replica.gangs[gang].plan?;
                let fits = replica.fits(gang, &plan, protections);
                self.put(&mut state, r, gang, fits.then_some(plan));
            }
            Action::GiveBack(r, gang) => {
                state.returns += 1;
                self.put(&mut state, r, gang, None);
            }
            Action::Repair(r, pod) => {
                state.repairs += 1;
                let gang = gang_of(pod);
                let replica = &state.replicas[r];
                let mut plan = replica.gangs[gang].plan?;
                let taken = plan;
                let mut others = (0..NODES).filter(|node| {
                    !taken.contains(&Some(*node)) && replica.is_free(*node, gang, protections)
                });
                plan[pod] = Some(others.next()?);
                self.put(&mut state, r, gang, Some(plan));
            }
            Action::Bind(r, pod) => {
                let replica = &mut state.replicas[r];
                let node = replica.gangs[gang_of(pod)].plan?[pod]?;
                let (epoch, version) = (replica.epoch, replica.pods[pod].version);
                replica.sent[pod] = Some((version, node));
                state.requests.insert(Request::Bind {
                    from: r,
                    epoch,
                    pod,
                    version,
                    node,
                });
            }
            Action::Arrive(request, heard) => self.arrive(&mut state, request, heard),
            Action::LosePod(pod) => {
                state.losses += 1;
                let found = &mut state.pods[pod];
                *found = Pod {
                    version: found.version + 1,
                    ..Pod::default()
                };
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no node takes two pods", |_, state: &State| {
                let nodes = state.pods.iter().filter_map(|pod| pod.node);
                let nodes: Vec<u8> = nodes.collect();
                nodes.iter().collect::<BTreeSet<_>>().len() == nodes.len()
            }),
            Property::always(
                "nothing is bound by an earlier leader after a later one has planned",
                |_, state: &State| !state.late,
            ),
            Property::always(
                "nothing is promised by an earlier leader after a later one has planned",
                |_, state: &State| !state.late_plan,
            ),
            Property::always(
                "nothing is bound without a durable plan",
                |_, state: &State| !state.unplanned,
            ),
            Property::sometimes("both gangs run", |_, state: &State| {
                state.pods.iter().all(|pod| pod.node.is_some())
            }),
            Property::sometimes(
                "both gangs run under the last leader",
                |model: &Self, state: &State| {
                    state.planned == model.epochs_max
                        && state.pods.iter().all(|pod| pod.node.is_some())
                },
            ),
        ]
    }
}
