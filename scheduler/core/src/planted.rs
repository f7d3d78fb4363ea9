//! Bugs that are planted on purpose, to see whether the tests find them: `cargo run -p muster-tests
//! --bin planted` tries them all. None can be planted in a build without debug assertions, as every
//! release build is; there, [`is`] is `false` and is compiled away.
//!
//! A bug is planted for one thread at a time, so that other tests of the same process do without.

use std::sync::Arc;

use crate::event::Event;
#[cfg(debug_assertions)]
use crate::event::WriteOutcome;

/// A bug, named after what goes wrong. The letter is its class in the list of what other schedulers
/// got wrong: A partial gangs, B double booking, C leaks, D arithmetic, E preemption, F lost wake-ups, G caches,
/// H crashes, I a cluster that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bug {
    /// A: the barrier opens for the first member that comes.
    BarrierOpensEarly,
    /// A: a gang that is bound in part stays so.
    PartialForEver,
    /// A: a restart does not take up what was planned.
    PlansForgotten,
    /// B: a Binding whose outcome is not known counts as refused: its room is free.
    DoubtForgotten,
    /// B: an answer that is lost counts as a refusal, and nothing is read back.
    LostAnswerIsRefusal,
    /// B: an answer that is lost counts as a success, and nothing is read back.
    LostAnswerIsSuccess,
    /// B: a Binding does not name the version of the pod that was seen.
    BindingWithoutVersion,
    /// B: the same, and it does not name the pod's UID either.
    BindingWithoutUid,
    /// B: pods of others are not counted.
    StrangersOverlooked,
    /// B: a new leader plans before it has listed what the one before has bound.
    NoListAfterStamps,
    /// B: a new leader neither stamps nor lists.
    NoFence,
    /// B: writes go out although the leadership is over.
    WritesPassTheFence,
    /// B: a Bind is answered OK before anything is bound.
    AnsweredBeforeBound,
    /// C: a plan whose members do not come keeps its room.
    BarrierWaitsForEver,
    /// C: a plan that is given back keeps its room.
    RoomLeaks,
    /// C: a job that is gone keeps its room.
    JobsGoneOverlooked,
    /// C: a pod that is gone keeps its room.
    PodsGoneOverlooked,
    /// D: sums of what is asked for wrap around.
    SumsWrap,
    /// E: kube-scheduler may preempt members of gangs.
    VetoForgotten,
    /// F: a gang whose plan was given back is never tried again.
    RestsForEver,
    /// F: what an agent says later than its first report is not looked at.
    ReportsOverlooked,
    /// F: kube-scheduler's Binds are not looked at.
    BindsOverlooked,
    /// G: what is missing from a list stays known.
    ListsForgetNothing,
    /// G: nodes that are gone stay.
    NodesGoneOverlooked,
    /// G: an agent that has fallen silent is believed for ever.
    SilenceOverlooked,
    /// G: what an agent said before replaces what it said since.
    OldReportsCount,
    /// G: cordons are not seen.
    CordonsOverlooked,
    /// G: taints are not seen.
    TaintsOverlooked,
    /// G: broken devices count as well.
    BrokenDevicesCount,
    /// H: a write that failed is waited for without end.
    FailuresOverlooked,
    /// H: an annotation that cannot be read ends the process.
    BadInputEndsAll,
    /// I: the text of a refusal is another one each time.
    TextChanges,
    /// I: a Bind of a pod that is bound there already is refused.
    BoundIsRefused,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 33] = [
        Self::BarrierOpensEarly,
        Self::PartialForEver,
        Self::PlansForgotten,
        Self::DoubtForgotten,
        Self::LostAnswerIsRefusal,
        Self::LostAnswerIsSuccess,
        Self::BindingWithoutVersion,
        Self::BindingWithoutUid,
        Self::StrangersOverlooked,
        Self::NoListAfterStamps,
        Self::NoFence,
        Self::WritesPassTheFence,
        Self::AnsweredBeforeBound,
        Self::BarrierWaitsForEver,
        Self::RoomLeaks,
        Self::JobsGoneOverlooked,
        Self::PodsGoneOverlooked,
        Self::SumsWrap,
        Self::VetoForgotten,
        Self::RestsForEver,
        Self::ReportsOverlooked,
        Self::BindsOverlooked,
        Self::ListsForgetNothing,
        Self::NodesGoneOverlooked,
        Self::SilenceOverlooked,
        Self::OldReportsCount,
        Self::CordonsOverlooked,
        Self::TaintsOverlooked,
        Self::BrokenDevicesCount,
        Self::FailuresOverlooked,
        Self::BadInputEndsAll,
        Self::TextChanges,
        Self::BoundIsRefused,
    ];

    /// Its class.
    pub fn class(self) -> char {
        match self {
            Self::BarrierOpensEarly | Self::PartialForEver | Self::PlansForgotten => 'A',
            Self::BarrierWaitsForEver
            | Self::RoomLeaks
            | Self::JobsGoneOverlooked
            | Self::PodsGoneOverlooked => 'C',
            Self::SumsWrap => 'D',
            Self::VetoForgotten => 'E',
            Self::RestsForEver | Self::ReportsOverlooked | Self::BindsOverlooked => 'F',
            Self::ListsForgetNothing
            | Self::NodesGoneOverlooked
            | Self::SilenceOverlooked
            | Self::OldReportsCount
            | Self::CordonsOverlooked
            | Self::TaintsOverlooked
            | Self::BrokenDevicesCount => 'G',
            Self::FailuresOverlooked | Self::BadInputEndsAll => 'H',
            Self::TextChanges | Self::BoundIsRefused => 'I',
            _ => 'B',
        }
    }
}

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread in place of the one before.
#[cfg(debug_assertions)]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(debug_assertions)]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted: never.
#[cfg(not(debug_assertions))]
pub const fn is(_: Bug) -> bool {
    false
}

/// The sum of two amounts; it saturates, but for the planted bug.
pub(crate) fn sum(one: u64, other: u64) -> u64 {
    match is(Bug::SumsWrap) {
        true => one.wrapping_add(other),
        false => one.saturating_add(other),
    }
}

/// Ends the process where the bug is planted that bad input does.
///
/// # Panics
/// Then.
pub fn bad_input() {
    assert!(!is(Bug::BadInputEndsAll), "planted: bad input");
}

/// A text that is to be the same each time; with the planted bug it is another one.
#[cfg(debug_assertions)]
pub(crate) fn told(text: Arc<str>) -> Arc<str> {
    thread_local! {
        static TIMES: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }
    if !is(Bug::TextChanges) {
        return text;
    }
    TIMES.set(TIMES.get().wrapping_add(1));
    format!("{text} ({})", TIMES.get()).into()
}

/// A text that is to be the same each time.
#[cfg(not(debug_assertions))]
pub(crate) fn told(text: Arc<str>) -> Arc<str> {
    text
}

/// An event as an engine with the planted bug takes it; `None` when it overlooks it.
#[cfg(not(debug_assertions))]
pub(crate) fn seen(event: Event) -> Option<Event> {
    Some(event)
}

/// An event as an engine with the planted bug takes it; `None` when it overlooks it.
#[cfg(debug_assertions)]
pub(crate) fn seen(event: Event) -> Option<Event> {
    use crate::inventory::DeviceHealth;

    let Some(bug) = PLANTED.get() else {
        return Some(event);
    };
    Some(match (bug, event) {
        (Bug::JobsGoneOverlooked, Event::WorkloadRemoved(_))
        | (Bug::PodsGoneOverlooked, Event::PodRemoved(_))
        | (Bug::NodesGoneOverlooked, Event::NodeRemoved(_))
        | (Bug::BindsOverlooked, Event::BindAsked(_)) => return None,
        (Bug::StrangersOverlooked, Event::PodApplied(pod)) if !pod.ours => return None,
        (Bug::ReportsOverlooked, Event::Report(report)) if report.order.generation > 1 => {
            return None;
        }
        (Bug::PlansForgotten, Event::RecordApplied(mut record)) => {
            record.plan = record.plan.map(|_| None);
            Event::RecordApplied(record)
        }
        (Bug::CordonsOverlooked, Event::NodeApplied(mut node)) => {
            node.unschedulable = false;
            Event::NodeApplied(node)
        }
        (Bug::TaintsOverlooked, Event::NodeApplied(mut node)) => {
            node.taints = Default::default();
            Event::NodeApplied(node)
        }
        (Bug::BrokenDevicesCount, Event::Report(mut report)) => {
            for device in &mut report.devices {
                device.health = DeviceHealth::Healthy;
            }
            Event::Report(report)
        }
        (Bug::DoubtForgotten, Event::WriteDone { id, outcome }) => {
            let outcome = match outcome {
                WriteOutcome::Unknown(said) | WriteOutcome::BindingUnknown { said, .. } => {
                    WriteOutcome::Refused(said)
                }
                other => other,
            };
            Event::WriteDone { id, outcome }
        }
        (Bug::FailuresOverlooked, Event::WriteDone { outcome, .. })
            if !matches!(outcome, WriteOutcome::Done(_)) =>
        {
            return None;
        }
        (_, event) => event,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Bug;

    #[test]
    fn every_class_of_known_bugs_has_one_and_none_is_listed_twice() {
        let classes: BTreeSet<char> = Bug::ALL.into_iter().map(Bug::class).collect();
        assert_eq!(classes, ('A'..='I').collect());
        let all: BTreeSet<Bug> = Bug::ALL.into_iter().collect();
        assert_eq!(all.len(), Bug::ALL.len());
        assert!(all.len() >= 25);
    }
}
