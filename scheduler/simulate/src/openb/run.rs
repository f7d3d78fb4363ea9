//! One run: pods arrive, a policy places them, and the experiment writes down what is left.

use super::arrivals::Arrivals;
use super::board::State;
use super::trace::{Machine, Request, Trace};
use super::{PODS_MAX, Setting};
use crate::error::Error;

/// CPU without which no pod of the traces can start, thousandths of a core.
pub(super) const CORE_MILLI: u32 = 1000;

/// How often `progress` is told, arrivals.
const PROGRESS_EVERY: usize = 100;

/// Where a pod goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Position of the node, in the order in which the policy was given them.
    pub node: usize,
    /// Positions of its GPUs: as many different ones as the pod asks for.
    pub devices: Vec<usize>,
}

/// Chooses node and GPUs for one pod after the other; what it has placed stays.
///
/// It keeps its own account of what is taken. The experiment keeps another and accepts no placement that
/// has no room there.
pub trait Policy {
    /// Places a pod that asks for [`Trace::requests`] at this position. `None`: it finds room nowhere.
    fn place(&mut self, request: usize) -> Result<Option<Placement>, Error>;
}

/// GPUs that nobody has, thousandths, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    /// On nodes with less than one core left.
    pub without_core: u64,
    /// Whole GPUs on other nodes.
    pub whole: u64,
    /// Parts of GPUs on other nodes.
    pub part: u64,
}

impl Idle {
    fn of(state: &State) -> Self {
        let all = u64::from(state.idle_milli());
        let is_whole = |left: &&u32| **left == super::MILLI;
        let whole = state.left().iter().filter(is_whole);
        let whole = whole.fold(0, |sum: u64, left| sum.saturating_add(u64::from(*left)));
        match state.cpu_milli < CORE_MILLI {
            true => Self {
                without_core: all,
                ..Self::default()
            },
            false => Self {
                without_core: 0,
                whole,
                part: all.saturating_sub(whole),
            },
        }
    }

    fn change(&mut self, before: Self, after: Self) {
        let step = |sum: &mut u64, before: u64, after: u64| {
            *sum = sum.saturating_sub(before).saturating_add(after);
        };
        step(
            &mut self.without_core,
            before.without_core,
            after.without_core,
        );
        step(&mut self.whole, before.whole, after.whole);
        step(&mut self.part, before.part, after.part);
    }

    /// All of them.
    pub fn all(&self) -> u64 {
        let sum = self.without_core.saturating_add(self.whole);
        sum.saturating_add(self.part)
    }
}

/// How things are after an arrival. GPUs in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// GPUs that all pods together have asked for.
    pub arrived_milli: u64,
    /// GPUs that pods have.
    pub allocated_milli: u64,
    /// Pods that were placed.
    pub placed: usize,
    /// Pods that found no room.
    pub dropped: usize,
    /// GPUs that nobody has.
    pub idle: Idle,
}

/// A node has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Arrivals before it.
    pub arrival: usize,
    /// Position of the node.
    pub node: usize,
    /// GPUs of it that pods have, thousandths.
    pub allocated_milli: u64,
}

/// What was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The nodes, in order of the names that they had.
    pub nodes: Vec<Machine>,
    /// GPU models of the nodes.
    pub models: Vec<std::sync::Arc<str>>,
    /// After each arrival.
    pub samples: Vec<Sample>,
    /// Each time that a pod with GPUs was placed.
    pub changes: Vec<Change>,
    /// Pods that were dropped although a node had room for them.
    pub dropped_with_room: usize,
}

impl Run {
    /// GPUs of all nodes.
    pub fn gpus(&self) -> u64 {
        self.nodes.iter().fold(0, |sum: u64, node| {
            sum.saturating_add(u64::try_from(node.gpus).unwrap_or(u64::MAX))
        })
    }

    /// How things are at the end.
    pub fn last(&self) -> Sample {
        self.samples.last().copied().unwrap_or_default()
    }
}

/// The experiment's own account of the nodes.
struct Account {
    states: Vec<State>,
    pods: Vec<u32>,
    idle: Idle,
}

impl Account {
    fn new(nodes: &[Machine]) -> Self {
        let states: Vec<State> = nodes.iter().map(State::empty).collect();
        let mut idle = Idle::default();
        for state in &states {
            idle.change(Idle::default(), Idle::of(state));
        }
        Self {
            pods: vec![0; states.len()],
            states,
            idle,
        }
    }

    fn has_room(&self, node: usize, request: &Request) -> bool {
        let state = self.states.get(node);
        state.is_some_and(|state| state.fits(request))
            && self.pods.get(node).is_some_and(|pods| *pods < PODS_MAX)
    }

    /// Puts a pod on a node. The GPUs of it that pods have then, thousandths; `None`, and nothing changes,
    /// where the pod has no room there.
    fn take(&mut self, request: &Request, placement: &Placement) -> Option<u64> {
        let Placement { node, devices } = placement;
        let mut different = devices.clone();
        different.sort_unstable();
        different.dedup();
        if different.len() != request.gpus || !self.has_room(*node, request) {
            return None;
        }
        let state = self.states.get_mut(*node)?;
        if devices.iter().any(|device| *device >= state.gpus) {
            return None;
        }
        let after = state.after(request, devices)?;
        self.idle.change(Idle::of(state), Idle::of(&after));
        *state = after;
        let pods = self.pods.get_mut(*node)?;
        *pods = pods.saturating_add(1);
        let gpus = u64::try_from(after.gpus).unwrap_or(u64::MAX);
        let all = gpus.saturating_mul(u64::from(super::MILLI));
        Some(all.saturating_sub(u64::from(after.idle_milli())))
    }
}

/// Plays a trace. `progress` is told how many pods of how many have arrived, now and then.
///
/// # Errors
/// A value of `setting` is outside its limits, the policy cannot place what the trace asks for, or it placed
/// a pod where there is no room (which would be a bug of it).
pub fn play(
    trace: &Trace,
    setting: &Setting,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Run, Error> {
    setting.check()?;
    let Arrivals { pods, nodes } = Arrivals::new(trace, setting)?;
    let mut policy = setting.policy(trace, &nodes);
    let mut account = Account::new(&nodes);
    let mut now = Sample::default();
    let (mut samples, mut changes) = (Vec::with_capacity(pods.len()), Vec::new());
    let mut dropped_with_room = 0usize;
    for (arrival, pod) in pods.iter().enumerate() {
        if arrival.is_multiple_of(PROGRESS_EVERY) {
            progress(arrival, pods.len());
        }
        let Some((position, request)) = trace.request_of(*pod) else {
            continue;
        };
        now.arrived_milli = now.arrived_milli.saturating_add(request.milli());
        match policy.place(position)? {
            Some(placement) => {
                let allocated_milli = account
                    .take(request, &placement)
                    .ok_or_else(|| misplaced(setting, trace, *pod, &nodes, &placement))?;
                now.allocated_milli = now.allocated_milli.saturating_add(request.milli());
                now.placed = now.placed.saturating_add(1);
                if request.gpus > 0 {
                    changes.push(Change {
                        arrival,
                        node: placement.node,
                        allocated_milli,
                    });
                }
            }
            None => {
                now.dropped = now.dropped.saturating_add(1);
                if (0..nodes.len()).any(|node| account.has_room(node, request)) {
                    dropped_with_room = dropped_with_room.saturating_add(1);
                }
            }
        }
        now.idle = account.idle;
        samples.push(now);
    }
    Ok(Run {
        nodes,
        models: trace.models.clone(),
        samples,
        changes,
        dropped_with_room,
    })
}

fn misplaced(
    setting: &Setting,
    trace: &Trace,
    pod: usize,
    nodes: &[Machine],
    placement: &Placement,
) -> Error {
    let name = |name: Option<&std::sync::Arc<str>>| name.map_or("?", |name| &**name).to_owned();
    Error::Misplaced {
        policy: setting.policy.as_str(),
        pod: name(trace.pods.get(pod).map(|pod| &pod.name)),
        node: name(nodes.get(placement.node).map(|node| &node.name)),
        devices: placement.devices.clone(),
    }
}
