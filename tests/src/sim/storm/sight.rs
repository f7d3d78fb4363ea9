//! What a scheduler had been shown when it made up its mind: what can be held against it, and what not.
//!
//! ```text
//!   weather: event delivered, list answered ──► shown: kind and version, by client and time
//!   weather: first request with a plan or a Binding ──► sent: what its sender had been shown by then, less some seconds
//!   judge: the plan is in the store ──► is what is wrong with the node older than that?
//! ```
//! The weather decides over each event of each watch, so it knows. A decision is in flight for some seconds: between it
//! and its first request there may be a reading, or a leadership in doubt. A process that stood still wakes with what it
//! had decided before.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use muster_embedded::api::faults::RequestInfo;
use muster_embedded::value;
use muster_kubernetes::names;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

/// Longest time between a plan and the first request that carries it, readings of its Gang object apart: as long as a
/// leadership may be in doubt, and a little.
const PLAN_IN_FLIGHT: Duration = Duration::from_secs(12);
/// The same for a Binding: it may stand in line behind another write to its pod, for as long as a write may take.
const BINDING_IN_FLIGHT: Duration = Duration::from_secs(25);
/// Longest time for which a Gang object is read before its status is written: a write has no longer.
const READ_MAX: Duration = Duration::from_secs(20);
/// How long it is kept when something was shown.
const KEPT: Duration = Duration::from_secs(90);

/// A change, and when it came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// When.
    pub at: Instant,
    /// Its version.
    pub version: u64,
}

/// What can be held against whoever decided something.
#[derive(Clone, Copy, Debug)]
pub enum Grounds {
    /// What it had been shown.
    Shown(Shown),
    /// Nobody saw it being sent: whatever is older than this.
    Older(Duration, Instant),
}

/// What a scheduler had been shown when it made up its mind.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// Version up to which it had seen nodes.
    nodes: u64,
    /// Version up to which it had seen pods.
    pods: u64,
    /// Time by which an agent must have said something for it to have been heard.
    heard: Instant,
    /// When the process began, or went on: until then it may have heard what was said long before.
    awake: Instant,
}

impl Grounds {
    /// Whether a change of a node was known.
    pub fn know_node(&self, since: Since) -> bool {
        match self {
            Self::Shown(shown) => since.version <= shown.nodes,
            Self::Older(lag, now) => since.at + *lag < *now,
        }
    }

    /// Whether a change of a pod was known.
    pub fn know_pod(&self, since: Since) -> bool {
        match self {
            Self::Shown(shown) => since.version <= shown.pods,
            Self::Older(lag, now) => since.at + *lag < *now,
        }
    }

    /// Whether something of their own was in the store before it was made up.
    pub fn know_plan(&self, since: Instant) -> bool {
        match self {
            Self::Shown(shown) => since < shown.heard,
            Self::Older(lag, now) => since + *lag < *now,
        }
    }

    /// Whether what has been so at a node's agent since then was known, where reports are believed for so long.
    pub fn know_agent(&self, since: Instant, believed: Duration) -> bool {
        match self {
            Self::Shown(shown) => since.max(shown.awake) + believed < shown.heard,
            Self::Older(lag, now) => since + believed + *lag < *now,
        }
    }
}

/// When each version was shown, newest last.
type Times = VecDeque<(Instant, u64)>;

/// What was shown to whom, and what they knew of it when they sent something.
#[derive(Debug, Default)]
pub struct Sight {
    /// By client and kind.
    shown: BTreeMap<(String, String), Times>,
    /// When a client's process began, and when it last went on after it had stood still.
    begun: BTreeMap<String, Instant>,
    woken: BTreeMap<String, Instant>,
    /// Gang objects that a client has read since it last wrote their status: since when.
    reads: BTreeMap<(String, String), Instant>,
    /// By plan, and by plan, epoch and UID of a Binding's pod.
    sent: BTreeMap<String, Shown>,
}

impl Sight {
    /// A client has been shown a kind of object up to a version.
    pub fn show(&mut self, client: &str, resource: &str, version: u64, now: Instant) {
        let key = (client.to_owned(), resource.to_owned());
        let times = self.shown.entry(key).or_default();
        if times.back().is_some_and(|(_, newest)| *newest >= version) {
            return;
        }
        times.push_back((now, version));
        // The last that is too old to matter tells what was known before the others.
        while times.get(1).is_some_and(|(at, _)| *at + KEPT < now) {
            times.pop_front();
        }
    }

    /// A client's process begins: it knows nothing.
    pub fn begin(&mut self, client: &str, now: Instant) {
        self.shown.retain(|(of, _), _| of != client);
        self.reads.retain(|(of, _), _| of != client);
        self.woken.remove(client);
        self.begun.insert(client.to_owned(), now);
    }

    /// A client's process goes on after it stood still.
    pub fn wake(&mut self, client: &str, now: Instant) {
        self.woken.insert(client.to_owned(), now);
    }

    /// A scheduler's request has arrived, whatever becomes of it.
    pub fn send(&mut self, request: &RequestInfo, now: Instant) {
        match (request.resource.as_str(), request.subresource.as_str()) {
            ("gangs", "") if request.verb == "get" => {
                let read = (request.client.clone(), request.name.clone());
                self.reads.entry(read).or_insert(now);
            }
            ("gangs", "status") => {
                let read = (request.client.clone(), request.name.clone());
                let read = self.reads.remove(&read);
                let decided = read.filter(|at| *at + READ_MAX > now).unwrap_or(now);
                let Some(body) = parsed::<GangBody>(request) else {
                    return;
                };
                if let Some(plan) = body.status.plan_id.filter(|plan| !plan.is_empty()) {
                    self.note(&plan, request, decided, PLAN_IN_FLIGHT);
                }
            }
            ("pods", "binding") => {
                let Some(body) = parsed::<Value>(request) else {
                    return;
                };
                let of = |key: &str| value::text(&body, &["metadata", "annotations", key]);
                let key = binding(of(names::PLAN), of(names::EPOCH), value::uid(&body));
                self.note(&key, request, now, BINDING_IN_FLIGHT);
            }
            _ => {}
        }
    }

    /// What is sent for the first time was decided by what had been shown before.
    fn note(&mut self, key: &str, request: &RequestInfo, decided: Instant, in_flight: Duration) {
        if self.sent.contains_key(key) {
            return;
        }
        let woken = self.woken.get(&request.client).copied();
        let known = |resource: &str| self.known(&request.client, resource, decided, in_flight);
        let begun = self.begun.get(&request.client).copied();
        let shown = Shown {
            nodes: known("nodes"),
            pods: known("pods"),
            heard: decided.checked_sub(in_flight).unwrap_or(decided),
            awake: begun.into_iter().chain(woken).max().unwrap_or(decided),
        };
        self.sent.insert(key.to_owned(), shown);
    }

    /// Version up to which a client had seen a kind some time before.
    fn known(&self, client: &str, resource: &str, at: Instant, before: Duration) -> u64 {
        // What it had decided when it stood still goes out when it goes on.
        let woken = self.woken.get(client);
        if woken.is_some_and(|woken| *woken + before >= at) {
            return 0;
        }
        let key = (client.to_owned(), resource.to_owned());
        let times = self.shown.get(&key).into_iter().flatten().rev();
        let mut old = times.filter(|(shown, _)| *shown + before < at);
        old.next().map_or(0, |(_, version)| *version)
    }

    /// What can be held against a plan.
    pub fn of_plan(&self, plan: &str) -> Option<Shown> {
        self.sent.get(plan).copied()
    }

    /// What can be held against a Binding.
    pub fn of_binding(&self, plan: &str, epoch: u64, pod_uid: &str) -> Option<Shown> {
        let key = binding(plan, &epoch.to_string(), pod_uid);
        self.sent.get(&key).copied()
    }
}

fn binding(plan: &str, epoch: &str, pod_uid: &str) -> String {
    format!("{plan} {epoch} {pod_uid}")
}

fn parsed<T: DeserializeOwned>(request: &RequestInfo) -> Option<T> {
    serde_json::from_slice(&request.body).ok()
}

/// What is looked at of a Gang's status that is sent. A whole document would be read for each.
#[derive(Deserialize)]
struct GangBody {
    #[serde(default)]
    status: StatusBody,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusBody {
    plan_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CLIENT: &str = "muster-scheduler";

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    fn request(verb: &str, subresource: &str, body: &Value) -> RequestInfo {
        RequestInfo {
            number: 1,
            client: CLIENT.into(),
            verb: verb.into(),
            group: "muster.dev".into(),
            resource: "gangs".into(),
            subresource: subresource.into(),
            namespace: "ns".into(),
            name: "train".into(),
            continued: false,
            any_version: false,
            body: body.to_string().into(),
        }
    }

    fn plan(id: &str) -> RequestInfo {
        request("update", "status", &json!({"status": {"planId": id}}))
    }

    /// Whether a plan's sender is held to a change of a node in this version.
    fn knew(sight: &Sight, plan: &str, version: u64) -> Option<bool> {
        let at = Instant::now();
        let grounds = Grounds::Shown(sight.of_plan(plan)?);
        Some(grounds.know_node(Since { at, version }))
    }

    #[test]
    fn plan_is_held_to_what_was_shown_some_time_before_its_first_request() {
        let (mut sight, start) = (Sight::default(), Instant::now());
        sight.begin(CLIENT, start);
        sight.show(CLIENT, "nodes", 5, start);
        sight.show(CLIENT, "nodes", 7, start + second(10));
        sight.send(&plan("e1-1"), start + second(13));
        // Sent once more, which says nothing new.
        sight.show(CLIENT, "nodes", 8, start + second(14));
        sight.send(&plan("e1-1"), start + second(60));
        assert_eq!(knew(&sight, "e1-1", 5), Some(true));
        assert_eq!(knew(&sight, "e1-1", 7), Some(false), "3 s before");
        sight.send(&plan("e1-2"), start + second(23));
        assert_eq!(knew(&sight, "e1-2", 7), Some(true));
        assert_eq!(knew(&sight, "e1-3", 5), None, "it was never sent");
    }

    #[test]
    fn statuses_without_a_plan_note_none() {
        let mut sight = Sight::default();
        for body in [
            json!({}),
            json!({"status": {}}),
            json!({"status": {"planId": null}}),
            json!({"status": {"planId": ""}}),
        ] {
            sight.send(&request("update", "status", &body), Instant::now());
        }
        assert!(sight.sent.is_empty());
        sight.send(&plan("e1-1"), Instant::now());
        assert_eq!(sight.sent.len(), 1);
    }

    #[test]
    fn time_for_reading_a_gang_before_its_plan_is_written_counts_as_in_flight() {
        let (mut sight, start) = (Sight::default(), Instant::now());
        sight.show(CLIENT, "nodes", 5, start + second(3));
        sight.send(&request("get", "", &Value::Null), start + second(4));
        sight.send(&plan("e1-1"), start + second(18));
        assert_eq!(knew(&sight, "e1-1", 5), Some(false));
        sight.send(&plan("e1-2"), start + second(18));
        assert_eq!(knew(&sight, "e1-2", 5), Some(true), "nothing was read");
    }

    #[test]
    fn process_that_stood_still_or_is_new_is_held_to_nothing_at_first() {
        let (mut sight, start) = (Sight::default(), Instant::now());
        sight.show(CLIENT, "nodes", 5, start);
        sight.wake(CLIENT, start + second(40));
        sight.send(&plan("e1-1"), start + second(41));
        assert_eq!(knew(&sight, "e1-1", 5), Some(false));
        sight.send(&plan("e1-2"), start + second(60));
        assert_eq!(knew(&sight, "e1-2", 5), Some(true));
        sight.begin(CLIENT, start + second(61));
        sight.send(&plan("e2-1"), start + second(80));
        assert_eq!(knew(&sight, "e2-1", 5), Some(false));
    }

    #[test]
    fn agent_counts_as_heard_for_as_long_as_it_is_believed_and_a_standstill_adds_to_that() {
        let (mut sight, start) = (Sight::default(), Instant::now());
        let silent = start + second(5);
        let believed = second(10);
        sight.begin(CLIENT, start);
        let known = |sight: &Sight, plan: &str| {
            let grounds = sight.of_plan(plan).map(Grounds::Shown);
            grounds.map(|grounds| grounds.know_agent(silent, believed))
        };
        sight.send(&plan("e1-1"), start + second(25));
        assert_eq!(known(&sight, "e1-1"), Some(false));
        sight.send(&plan("e1-2"), start + second(28));
        assert_eq!(known(&sight, "e1-2"), Some(true));
        sight.wake(CLIENT, start + second(29));
        sight.send(&plan("e1-3"), start + second(45));
        assert_eq!(known(&sight, "e1-3"), Some(false));
    }
}
