//! Plans under which nothing is bound: room that is reserved for nobody, where it stays so.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use muster_control_plane::history::World;

use super::{LEAK_MAX, epoch_led};
use crate::pairs::Pairs;

/// How often it is looked at them.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long after a Muster has begun to lead kube-scheduler may wait before it comes again, after the errors of before. It carries on the plans of
/// the one before it until then: those had nothing bound in lives of seconds, on a machine that was busy with other things beside.
const COMES_AGAIN: Duration = Duration::from_secs(10);

/// A Gang's name, and the id of its plan.
type Planned = (String, String);

/// For how long each plan that has nothing bound has had nothing bound. Only time in which a Muster led, for longer than [`COMES_AGAIN`], and the
/// API server answered counts: while Muster is down nobody binds, and nobody gives back.
#[derive(Debug, Default)]
pub(super) struct Unused {
    times: BTreeMap<Planned, Duration>,
    longest: Duration,
}

impl Unused {
    /// Longest of all that there were.
    pub(super) fn longest(&self) -> Duration {
        self.longest
    }

    /// The plan has something bound: the record was behind. What it said counts for the longest up to the limit.
    fn forget(&mut self, plan: &Planned) {
        self.times.remove(plan);
        self.longest = self.longest.min(LEAK_MAX);
    }

    /// Takes in which plans have nothing bound, so long after the last look; returns one that has not for too long.
    fn look(
        &mut self,
        now: BTreeMap<Planned, Counts>,
        passed: Duration,
    ) -> Option<(Planned, Duration)> {
        let before = std::mem::take(&mut self.times);
        for (plan, counts) in now {
            let passed = match counts {
                Counts::Whole => passed,
                Counts::AFifth => passed / 5,
            };
            let time = before
                .get(&plan)
                .map_or(Duration::ZERO, |time| *time + passed);
            self.longest = self.longest.max(time);
            self.times.insert(plan, time);
        }
        let mut times = self.times.iter();
        let late = times.find(|(_, time)| **time > LEAK_MAX);
        late.map(|(plan, time)| (plan.clone(), *time))
    }
}

/// How time counts for a plan. A released job that has no pods yet keeps its room for five times as long while its controller makes those
/// of other jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    Whole,
    AFifth,
}

/// Plans of which no member was ever bound.
fn idle(gangs: &[DynamicObject], world: &World) -> BTreeMap<Planned, Counts> {
    let planned = gangs.iter().filter_map(|gang| {
        let plan = gang.data.get("status")?.get("planId")?.as_str()?;
        (!plan.is_empty()).then(|| (gang.name_any(), plan.to_owned()))
    });
    planned
        .filter(|(gang, _)| world.pods_of(gang).all(|pod| pod.node.is_none()))
        .map(|(gang, plan)| {
            let mut jobs = world.jobs.values();
            let is_released = jobs.any(|job| job.name == gang && !job.suspended);
            let counts = match is_released && world.pods_of(&gang).next().is_none() {
                true => Counts::AFifth,
                false => Counts::Whole,
            };
            ((gang, plan), counts)
        })
        .collect()
}

/// Whether the API server, too, says that no member of the gang is bound. After it was killed the record may be behind for many seconds,
/// in which it asks version by version for what it missed: once a gang that ran was said to be idle by that.
async fn is_idle_indeed(pairs: &Pairs, gang: &str) -> anyhow::Result<bool> {
    let pods: Api<Pod> = Api::default_namespaced(pairs.cluster.admin());
    let members = ListParams::default().labels(&format!("training.kubeflow.org/job-name={gang}"));
    let members = pods.list(&members).await?.items;
    let bound = |pod: &Pod| {
        pod.spec
            .as_ref()
            .is_some_and(|spec| spec.node_name.is_some())
    };
    Ok(!members.iter().any(bound))
}

/// Looks at the plans until one has had nothing bound for too long.
pub(super) async fn watch(pairs: &Pairs, unused: &Mutex<Unused>) -> anyhow::Error {
    let kind = GroupVersionKind::gvk("muster.dev", "v1alpha1", "Gang");
    let kind = ApiResource::from_gvk_with_plural(&kind, "gangs");
    let gangs: Api<DynamicObject> = Api::all_with(pairs.cluster.admin(), &kind);
    let mut last: Option<Instant> = None;
    // The epoch that is led, and since when at the latest.
    let mut life: Option<(u64, Instant)> = None;
    loop {
        let all = ListParams::default();
        let listed = tokio::time::timeout(LOOK_EVERY, gangs.list(&all)).await;
        let epoch = epoch_led(pairs).await;
        life = epoch.map(|epoch| match life {
            Some((before, since)) if before == epoch => (epoch, since),
            _ => (epoch, Instant::now()),
        });
        let has_come = life.is_some_and(|(_, since)| since.elapsed() > COMES_AGAIN);
        last = match listed {
            Ok(Ok(listed)) if epoch.is_some() => {
                let idle = pairs.recorder.look(|world| idle(&listed.items, world));
                let passed = last.filter(|_| has_come);
                let passed = passed.map_or(Duration::ZERO, |last| last.elapsed());
                let late = {
                    let mut unused = unused.lock().unwrap_or_else(PoisonError::into_inner);
                    unused.look(idle, passed)
                };
                if let Some(((gang, plan), time)) = late {
                    let indeed = is_idle_indeed(pairs, &gang);
                    match tokio::time::timeout(LOOK_EVERY, indeed).await {
                        Ok(Ok(true)) => {
                            return anyhow::anyhow!(
                                "plan {plan} of gang {gang} has had nothing bound for {time:.1?} in which a Muster led"
                            );
                        }
                        Ok(Ok(false)) => {
                            let mut unused = unused.lock().unwrap_or_else(PoisonError::into_inner);
                            unused.forget(&(gang, plan));
                        }
                        // It is asked again.
                        _ => {}
                    }
                }
                Some(Instant::now())
            }
            _ => None,
        };
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_that_stays_without_a_binding_is_found_and_one_that_goes_on_is_not() {
        let plan = |gang: &str, plan: &str| (gang.to_owned(), plan.to_owned());
        let (stuck, busy) = (plan("stuck", "1"), |id: u32| plan("busy", &id.to_string()));
        let mut unused = Unused::default();
        for turn in 0..4 {
            let now = [stuck.clone(), busy(turn)].map(|plan| (plan, Counts::Whole));
            let now = BTreeMap::from(now);
            assert_eq!(unused.look(now, Duration::from_secs(20)), None);
        }
        let still = BTreeMap::from([(stuck.clone(), Counts::Whole)]);
        let found = unused.look(still.clone(), Duration::from_secs(1));
        assert_eq!(found, Some((stuck.clone(), Duration::from_secs(61))));
        assert_eq!(unused.longest(), Duration::from_secs(61));
        // It runs, as the API server says: the record comes to know that later.
        unused.forget(&stuck);
        assert_eq!(unused.look(still, Duration::from_secs(20)), None);
        assert_eq!(unused.longest(), LEAK_MAX);
        let to_come = BTreeMap::from([(plan("to come", "1"), Counts::AFifth)]);
        for _ in 0..16 {
            assert_eq!(unused.look(to_come.clone(), Duration::from_secs(20)), None);
        }
        let found = unused.look(to_come, Duration::from_secs(1));
        assert_eq!(found.map(|(_, time)| time > LEAK_MAX), Some(true));
    }
}
