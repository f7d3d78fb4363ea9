//! What happened to one gang, and to whom it depended on meanwhile: a run that failed elsewhere leaves nothing but its words.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use muster_control_plane::Outage;
use muster_control_plane::history::{Change, History, PodState};

/// How long before it was bound in part the story begins.
const BEFORE: Duration = Duration::from_secs(10);
/// How long after the time that counts it ends: without outages, that is not all of the time.
const AFTER: Duration = Duration::from_secs(30);
/// The story ends after so many lines.
const LINES_MAX: usize = 120;

/// A line for each change of a pod of the gang that matters, and for each time without a leader or an API server, in order of time:
/// seconds from when it was bound in part. `gang` is `namespace/name` of the pods' controller, `lasted` how long it was bound in part.
pub(super) fn of(
    history: &History,
    gang: &str,
    (from, lasted): (Timestamp, Duration),
    (leaderless, outages): (&[Outage], &[Outage]),
) -> String {
    let seconds = |at: Timestamp| at.duration_since(from).as_secs_f64();
    let end = lasted.as_secs_f64() + AFTER.as_secs_f64();
    let is_told = |at: Timestamp| (-BEFORE.as_secs_f64()..=end).contains(&seconds(at));
    let mut lines: Vec<(Timestamp, String)> = Vec::new();
    let mut known: BTreeMap<&str, String> = BTreeMap::new();
    for event in history.events() {
        let (pod, is_gone) = match &event.change {
            Change::Pod(pod) => (pod, false),
            Change::PodGone(pod) => (pod, true),
            _ => continue,
        };
        if !is_of(pod, gang) {
            continue;
        }
        let words = if is_gone {
            String::from("gone")
        } else {
            words(pod)
        };
        if known.get(pod.uid.as_str()) != Some(&words) && is_told(event.at) {
            lines.push((event.at, format!("pod {}: {words}", pod.name)));
        }
        known.insert(&pod.uid, words);
    }
    for (times, what) in [
        (leaderless, "no Muster leads"),
        (outages, "API server down"),
    ] {
        for time in times {
            let until = time.until.map_or(f64::INFINITY, seconds);
            if until > -BEFORE.as_secs_f64() && seconds(time.from) < end {
                lines.push((time.from, format!("{what} until {until:+.1} s")));
            }
        }
    }
    lines.sort();
    let mut story = String::new();
    for (at, line) in lines.iter().take(LINES_MAX) {
        // A String takes whatever is written to it.
        let _ = write!(story, "\n  {:+.1} s {line}", seconds(*at));
    }
    story
}

fn is_of(pod: &PodState, gang: &str) -> bool {
    let controller = pod.controller.as_ref();
    controller.is_some_and(|(_, name, _)| {
        gang.split_once('/') == Some((pod.namespace.as_str(), name.as_str()))
    })
}

fn words(pod: &PodState) -> String {
    let node = pod.node.as_deref().unwrap_or("no node");
    let leaving = if pod.terminating {
        ", being deleted"
    } else {
        ""
    };
    let gated = if pod.gates.is_empty() { "" } else { ", gated" };
    format!("{} on {node}{gated}{leaving}", pod.phase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_control_plane::history::Event;

    fn pod(name: &str, of: &str, node: Option<&str>) -> PodState {
        PodState {
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            name: name.into(),
            node: node.map(Into::into),
            phase: "Pending".into(),
            terminating: false,
            gates: Vec::new(),
            scheduler: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            controller: Some(("PyTorchJob".into(), of.into(), "j".into())),
            requests: BTreeMap::new(),
            created: None,
        }
    }

    #[test]
    fn a_story_tells_of_its_own_pods_and_of_who_was_away() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let event = |second: i64, change: Change| Event {
            resource_version: u64::try_from(second).unwrap(),
            at: at(second),
            change,
        };
        let history = History::new(vec![
            event(100, Change::Pod(pod("a-0", "a", None))),
            event(103, Change::Pod(pod("b-0", "b", Some("n9")))),
            event(105, Change::Pod(pod("a-0", "a", Some("n1")))),
            event(106, Change::Pod(pod("a-0", "a", Some("n1")))),
            event(120, Change::PodGone(pod("a-0", "a", Some("n1")))),
            event(900, Change::Pod(pod("a-1", "a", None))),
        ]);
        let away = |from: i64, until: Option<i64>| Outage {
            from: at(from),
            until: until.map(at),
        };
        let leaderless = [away(1, Some(2)), away(110, Some(112))];
        let outages = [away(118, None)];
        let told = of(
            &history,
            "default/a",
            (at(105), Duration::from_secs(20)),
            (&leaderless, &outages),
        );
        let wanted = "\n  -5.0 s pod a-0: Pending on no node\n  +0.0 s pod a-0: Pending on n1\n  +5.0 s no Muster leads until +7.0 s\n  \
                      +13.0 s API server down until +inf s\n  +15.0 s pod a-0: gone";
        assert_eq!(told, wanted);
    }
}
