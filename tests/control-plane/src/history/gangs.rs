//! Is any gang ever bound in part for longer than allowed, and how long did each take?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use crate::cluster::Outage;

use super::{Change, Event, History, PodState, Violation, World};

/// Who belongs together: the gang's key, or nothing for a pod that is in none.
type Group = Box<dyn Fn(&PodState) -> Option<String> + Send + Sync>;

/// How many members a gang needs.
#[derive(Clone, Debug)]
pub enum Minimum {
    /// What the PyTorchJob with the gang's key as UID asks for at that moment; without such a job, the most members that ever existed
    /// at one time.
    Job,
    /// A number for each key; a gang that is not listed is not checked.
    Fixed(BTreeMap<String, u32>),
    /// What an annotation of this name on its pods states; without one, the most members that ever existed at one time.
    Stated(String),
}

/// What to hold a history against.
pub struct GangRule {
    group: Group,
    minimum: Minimum,
    deadline: Duration,
    outages: Vec<Outage>,
}

impl std::fmt::Debug for GangRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GangRule")
            .field("minimum", &self.minimum)
            .field("deadline", &self.deadline)
            .field("outages", &self.outages)
            .finish_non_exhaustive()
    }
}

/// What became of one gang.
#[derive(Clone, Debug, PartialEq)]
pub struct GangTimeline {
    /// The gang's key.
    pub key: String,
    /// Namespace and name of its controller, or of its first pod.
    pub name: String,
    /// Pods that ever belonged to it.
    pub pods: u32,
    /// Its minimum when it was last known.
    pub minimum: u32,
    /// When its job, or else its first pod, was seen.
    pub first_seen: Timestamp,
    /// When its first member was bound.
    pub first_bound: Option<Timestamp>,
    /// When it first had its minimum bound.
    pub whole: Option<Timestamp>,
    /// When its last member was bound.
    pub last_bound: Option<Timestamp>,
    /// Longest time in which it was bound in part, without outages.
    pub partial_longest: Duration,
}

impl GangTimeline {
    /// From first sight to the minimum bound.
    pub fn latency(&self) -> Option<Duration> {
        self.whole.map(|whole| between(self.first_seen, whole))
    }
}

impl GangRule {
    /// Gangs by controller UID with the minimum of their PyTorchJob; partial for longer than `deadline` is a violation.
    pub fn new(deadline: Duration) -> Self {
        GangRule {
            group: Box::new(|pod| pod.controller.as_ref().map(|(_, _, uid)| uid.clone())),
            minimum: Minimum::Job,
            deadline,
            outages: Vec::new(),
        }
    }

    /// Groups pods in another way.
    #[must_use]
    pub fn group_by(
        mut self,
        group: impl Fn(&PodState) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.group = Box::new(group);
        self
    }

    /// Groups pods by namespace and the value of a label; the key is `namespace/value`.
    #[must_use]
    pub fn group_by_label(self, label: &str) -> Self {
        let label = label.to_owned();
        self.group_by(move |pod| {
            let value = pod.labels.get(&label)?;
            Some(format!("{}/{value}", pod.namespace))
        })
    }

    /// Takes the minimum from elsewhere.
    #[must_use]
    pub fn minimum(mut self, minimum: Minimum) -> Self {
        self.minimum = minimum;
        self
    }

    /// Times in which no deadline runs, because nobody could have written anything ([`crate::Cluster::outages`]).
    #[must_use]
    pub fn outages(mut self, outages: Vec<Outage>) -> Self {
        self.outages = outages;
        self
    }

    /// The part of a time span that counts.
    fn counted(&self, from: Timestamp, until: Timestamp) -> Duration {
        let lost = self
            .outages
            .iter()
            .map(|outage| {
                between(
                    outage.from.max(from),
                    outage.until.unwrap_or(until).min(until),
                )
            })
            .fold(Duration::ZERO, Duration::saturating_add);
        between(from, until).saturating_sub(lost)
    }
}

/// The time from one moment to a later one; zero when it is not later.
fn between(from: Timestamp, until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(from)).unwrap_or(Duration::ZERO)
}

/// A gang while the history is walked.
struct Walk {
    timeline: GangTimeline,
    members: BTreeSet<String>,
    ever: BTreeSet<String>,
    bound_ever: BTreeSet<String>,
    partial: Option<Partial>,
    violations: Vec<Violation>,
}

struct Partial {
    from: Timestamp,
    bound: u32,
    nodes: BTreeSet<String>,
}

impl History {
    /// Gangs that were bound in part for longer than the rule allows: some members bound and live, fewer than the minimum together with
    /// those that have succeeded. The members of a finished job are nobody's gang any more.
    pub fn partial_gangs(&self, rule: &GangRule) -> Vec<Violation> {
        self.walk(rule)
            .into_values()
            .flat_map(|walk| walk.violations)
            .collect()
    }

    /// What became of each gang, in order of key.
    pub fn gangs(&self, rule: &GangRule) -> Vec<GangTimeline> {
        self.walk(rule)
            .into_values()
            .map(|walk| walk.timeline)
            .collect()
    }

    fn walk(&self, rule: &GangRule) -> BTreeMap<String, Walk> {
        let largest = self.largest(rule);
        let mut world = World::default();
        let mut walks: BTreeMap<String, Walk> = BTreeMap::new();
        let mut job_seen: BTreeMap<String, Timestamp> = BTreeMap::new();
        for event in &self.events {
            world.apply(&event.change);
            let key = match &event.change {
                Change::Pod(pod) | Change::PodGone(pod) => {
                    let Some(key) = (rule.group)(pod) else {
                        continue;
                    };
                    let seen = job_seen.get(&key).copied().unwrap_or(event.at);
                    let walk = walks
                        .entry(key.clone())
                        .or_insert_with(|| Walk::new(&key, pod, seen));
                    walk.member(event, pod);
                    key
                }
                Change::Job(job) | Change::JobGone(job) => {
                    job_seen.entry(job.uid.clone()).or_insert(event.at);
                    job.uid.clone()
                }
                Change::Node(_) | Change::NodeGone(_) => continue,
            };
            let Some(walk) = walks.get_mut(&key) else {
                continue;
            };
            let most = largest.get(&key).copied().unwrap_or(0);
            let minimum = match &rule.minimum {
                Minimum::Fixed(minimums) => minimums.get(&key).copied().unwrap_or(0),
                Minimum::Job => match world.jobs.get(&key) {
                    Some(job) if job.finished => 0,
                    Some(job) => job.minimum,
                    None => most,
                },
                Minimum::Stated(annotation) => walk.stated(&world, annotation).unwrap_or(most),
            };
            walk.judge(event.at, &world, minimum, rule);
        }
        for walk in walks.values_mut() {
            if let Some(end) = self.until {
                walk.end_partial(end, rule);
            }
        }
        walks
    }

    /// The most members that each gang had at one time.
    fn largest(&self, rule: &GangRule) -> BTreeMap<String, u32> {
        let mut members: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let mut largest: BTreeMap<String, u32> = BTreeMap::new();
        for event in &self.events {
            let (pod, gone) = match &event.change {
                Change::Pod(pod) => (pod, false),
                Change::PodGone(pod) => (pod, true),
                _ => continue,
            };
            let Some(key) = (rule.group)(pod) else {
                continue;
            };
            let set = members.entry(key.clone()).or_default();
            if gone {
                set.remove(pod.uid.as_str());
            } else {
                set.insert(pod.uid.as_str());
            }
            let size = u32::try_from(set.len()).unwrap_or(u32::MAX);
            let entry = largest.entry(key).or_default();
            *entry = (*entry).max(size);
        }
        largest
    }
}

impl Walk {
    fn new(key: &str, pod: &PodState, seen: Timestamp) -> Walk {
        let name = pod
            .controller
            .as_ref()
            .map_or(&pod.name, |(_, name, _)| name);
        Walk {
            timeline: GangTimeline {
                key: key.to_owned(),
                name: format!("{}/{name}", pod.namespace),
                pods: 0,
                minimum: 0,
                first_seen: seen,
                first_bound: None,
                whole: None,
                last_bound: None,
                partial_longest: Duration::ZERO,
            },
            members: BTreeSet::new(),
            ever: BTreeSet::new(),
            bound_ever: BTreeSet::new(),
            partial: None,
            violations: Vec::new(),
        }
    }

    fn member(&mut self, event: &Event, pod: &PodState) {
        if matches!(event.change, Change::PodGone(_)) {
            self.members.remove(&pod.uid);
            return;
        }
        self.members.insert(pod.uid.clone());
        if self.ever.insert(pod.uid.clone()) {
            self.timeline.pods = self.timeline.pods.saturating_add(1);
        }
        if pod.node.is_some() && self.bound_ever.insert(pod.uid.clone()) {
            self.timeline.first_bound.get_or_insert(event.at);
            self.timeline.last_bound = Some(event.at);
        }
    }

    /// The largest number that its members' annotation states.
    fn stated(&self, world: &World, annotation: &str) -> Option<u32> {
        let members = self.members.iter().filter_map(|uid| world.pods.get(uid));
        let stated = members.filter_map(|pod| pod.annotations.get(annotation)?.parse().ok());
        stated.max()
    }

    fn judge(&mut self, at: Timestamp, world: &World, minimum: u32, rule: &GangRule) {
        let mut live = 0_u32;
        let mut succeeded = 0_u32;
        let mut nodes = BTreeSet::new();
        for pod in self.members.iter().filter_map(|uid| world.pods.get(uid)) {
            if pod.is_bound_and_live() {
                live = live.saturating_add(1);
                nodes.extend(pod.node.clone());
            } else if pod.phase == "Succeeded" {
                succeeded = succeeded.saturating_add(1);
            }
        }
        if minimum > 0 {
            self.timeline.minimum = minimum;
        }
        let enough = live.saturating_add(succeeded) >= minimum;
        if live > 0 && enough {
            self.timeline.whole.get_or_insert(at);
        }
        if live == 0 || enough {
            self.end_partial(at, rule);
            return;
        }
        let partial = self.partial.get_or_insert_with(|| Partial {
            from: at,
            bound: 0,
            nodes: BTreeSet::new(),
        });
        partial.bound = partial.bound.max(live);
        partial.nodes.extend(nodes);
    }

    fn end_partial(&mut self, at: Timestamp, rule: &GangRule) {
        let Some(partial) = self.partial.take() else {
            return;
        };
        let lasted = rule.counted(partial.from, at);
        self.timeline.partial_longest = self.timeline.partial_longest.max(lasted);
        if lasted <= rule.deadline {
            return;
        }
        let milliseconds = |time: Duration| i128::try_from(time.as_millis()).unwrap_or(i128::MAX);
        self.violations.push(Violation::PartialGang {
            gang: self.timeline.name.clone(),
            from: partial.from,
            lasted_ms: milliseconds(lasted),
            deadline_ms: milliseconds(rule.deadline),
            bound: partial.bound,
            minimum: self.timeline.minimum,
            nodes: partial.nodes.into_iter().collect(),
        });
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
