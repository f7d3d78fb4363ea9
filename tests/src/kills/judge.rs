//! What the API server's own watch tells of it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use muster_control_plane::Outage;
use muster_control_plane::history::{Change, History, Violation};

use super::{Outcome, PAIR, story};
use crate::pairs::Pairs;
use crate::replicas::binding_of_an_earlier_leader;
use crate::stack::{self, PARTIAL_MAX};

/// How long after an outage of the API server a watch that begins afresh may have missed something: on a busy machine one that was just
/// started answers some requests only after many seconds.
const GAP_AFTER: Duration = Duration::from_secs(40);

/// What restarts of Muster add to the time in which a gang may be bound in part. A Muster that is there again, and has read everything, completes
/// the gang as soon as kube-scheduler comes with the member that is missing, rather than count 30 s of its own: mostly within 14 s. But an outage of the
/// API server may cost kube-scheduler its Lease (15 s until the next has it), kube-scheduler leaves a pod that has failed often alone for 10 s,
/// and seven lives in a row may each be too short (8 s at most) for it to come in time ([`super::reaper`]).
const RESTARTS_MAX: Duration = Duration::from_secs(75);

/// For how long a gang stands in part before it is released whole (`gang.repairMax` by default): no Muster that has led for less does that.
const RELEASED_AFTER: Duration = Duration::from_secs(30);

/// Times of either kind, none counted twice.
fn merged(mut all: Vec<Outage>) -> Vec<Outage> {
    all.sort_by_key(|outage| outage.from);
    let mut merged: Vec<Outage> = Vec::new();
    for outage in all {
        match merged.last_mut() {
            Some(last) if last.until.is_none_or(|until| until >= outage.from) => {
                last.until = last.until.zip(outage.until).map(|(a, b)| a.max(b));
            }
            _ => merged.push(outage),
        }
    }
    merged
}

/// Judges what has happened.
pub(super) async fn judge(pairs: &Pairs, leaderless: Vec<Outage>) -> anyhow::Result<Outcome> {
    let history = pairs.recorder.caught_up(Duration::from_secs(30)).await?;
    let outages = pairs.cluster.outages();
    for gap in &history.gaps {
        let explained = outages.iter().any(|outage| {
            let (found, until) = (gap.until, outage.until.unwrap_or(gap.until));
            found >= outage.from
                && found.duration_since(until).as_secs_f64() < GAP_AFTER.as_secs_f64()
        });
        anyhow::ensure!(
            explained,
            "the record has a gap, {gap}, with no outage before it"
        );
    }
    if let Some(first) = history.over_commitments().first() {
        bail!("GPUs were given twice: {first}");
    }
    if let Some(late) = binding_of_an_earlier_leader(&history) {
        bail!(late);
    }
    let outages_seen = outages.clone();
    let longest = |deadline: Duration, outages: Vec<Outage>| {
        let [rule, ..] = stack::gang_rules(deadline);
        let rule = rule.outages(outages);
        if let Some(first) = history.partial_gangs(&rule).first() {
            let story = story_of(first, &history, (&leaderless, &outages_seen));
            bail!("a partial gang: {first}{story}");
        }
        let gangs = history.gangs(&rule);
        let longest = gangs.iter().map(|gang| gang.partial_longest).max();
        anyhow::Ok(longest.unwrap_or_default())
    };
    let partial_longest = longest(PARTIAL_MAX + RESTARTS_MAX, outages.clone())?;
    let none_led = leaderless.iter().filter_map(|none| {
        let until = none.until?;
        Duration::try_from(until.duration_since(none.from)).ok()
    });
    let none_led = none_led.fold(Duration::ZERO, Duration::saturating_add);
    let taken_away = taken_away(&history, &leaderless);
    let both = merged(
        outages
            .into_iter()
            .chain(leaderless.iter().copied())
            .collect(),
    );
    let partial_led = longest(PARTIAL_MAX, both)?;
    // No node is lost, so that nobody has a reason to take a pod away but a Muster that has led for as long as a gang may be in part:
    // few live for so long, on a machine that is very busy some.
    anyhow::ensure!(
        taken_away == 0,
        "{taken_away} bound pods were taken away before their jobs had ended"
    );
    for program in pairs.programs(PAIR)? {
        let log = std::fs::read_to_string(pairs.cluster.log(&program)).unwrap_or_default();
        for word in ["an invariant is broken", "panicked"] {
            if let Some(line) = log.lines().find(|line| line.contains(word)) {
                bail!("{program} says: {line}");
            }
        }
    }
    Ok(Outcome {
        binds: history.binds().len(),
        partial_longest,
        partial_led,
        leaderless: none_led,
        ..Outcome::default()
    })
}

/// What happened while a gang was bound in part.
fn story_of(violation: &Violation, history: &History, away: (&[Outage], &[Outage])) -> String {
    let Violation::PartialGang {
        gang,
        from,
        lasted_ms,
        ..
    } = violation
    else {
        return String::new();
    };
    let lasted = Duration::from_millis(u64::try_from(*lasted_ms).unwrap_or(0));
    story::of(history, gang, (*from, lasted), away)
}

/// Pods that were bound and running when they were taken away, though their job had not ended, by whom no gang can have stood in part
/// for as long as one may.
fn taken_away(history: &History, leaderless: &[Outage]) -> usize {
    let begun = history.events().first().map(|event| event.at);
    let led_for = |at: Timestamp| {
        let ends = leaderless.iter().filter_map(|none| none.until);
        let since = ends.filter(|end| *end <= at).max().or(begun).unwrap_or(at);
        Duration::try_from(at.duration_since(since)).unwrap_or_default()
    };
    let mut finished: BTreeSet<&str> = BTreeSet::new();
    let mut taken = 0_usize;
    for event in history.events() {
        match &event.change {
            Change::Job(job) if job.finished => {
                finished.insert(&job.uid);
            }
            Change::JobGone(job) => {
                finished.insert(&job.uid);
            }
            // In a gap its job, or it itself, may have ended before.
            Change::PodGone(pod)
                if pod.node.is_some() && !pod.is_finished() && !history.is_unseen_at(event.at) =>
            {
                let job = pod.controller.as_ref().map(|(_, _, uid)| uid.as_str());
                let is_open = job.is_some_and(|job| !finished.contains(job));
                if is_open && led_for(event.at) < RELEASED_AFTER {
                    taken = taken.saturating_add(1);
                }
            }
            _ => {}
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_overlap_are_counted_once() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let outage = |from: i64, until: Option<i64>| Outage {
            from: at(from),
            until: until.map(at),
        };
        let all = vec![
            outage(10, Some(20)),
            outage(1, Some(3)),
            outage(15, Some(17)),
            outage(20, Some(25)),
            outage(40, None),
            outage(50, Some(60)),
        ];
        let wanted = [outage(1, Some(3)), outage(10, Some(25)), outage(40, None)];
        assert_eq!(merged(all), wanted);
    }
}
