//! Fragmentation, as the paper and `pkg/utils/frag.go` have it: how much of a node's idle GPUs the pods
//! that usually come could not use.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::board::State;
use super::trace::{Request, Trace};

/// The specs that make up this share of all pods count, percent. Source: `podPopularityThreshold` in
/// `scripts/generate_config_and_run.py`.
const POPULARITY_PERCENT: f64 = 95.0;

/// A spec that usually comes. Memory plays no part.
#[derive(Clone, Debug, PartialEq)]
struct Typical {
    request: Request,
    /// Share of all typical pods, 0 to 1.
    share: f64,
}

/// The specs that usually come.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Typicals(Vec<Typical>);

/// How a pod and a node get along; idle GPUs are added up for each way, and then in this order. The order
/// matters: sums of floats depend on it, and a score is cut to a whole number. Source: `FragRatioDataMap`.
#[derive(Clone, Copy)]
enum Way {
    LacksBoth,
    LacksGpu,
    LacksCpu,
    NoGpuWanted,
    NoGpuWantedLacksCpu,
    OtherModel,
}

/// Number of [`Way`]s.
const WAYS: usize = 6;

impl Typicals {
    /// The most frequent specs of a trace, before anything of it arrives again: `GetTypicalPods`. Of specs
    /// that are as frequent the larger goes first (`SortTargetPodInDecreasingCount`).
    pub(super) fn of(trace: &Trace) -> Self {
        type Spec = (u32, u32, usize, Arc<str>);
        let mut counts: BTreeMap<Spec, (u32, &Request)> = BTreeMap::new();
        for pod in &trace.pods {
            let Some(request) = trace.requests.get(pod.request) else {
                continue;
            };
            let spec = (
                request.cpu_milli,
                request.gpu_milli,
                request.gpus,
                Arc::clone(&request.spec),
            );
            let (count, _) = counts.entry(spec).or_insert((0, request));
            *count = count.saturating_add(1);
        }
        let mut sorted: Vec<(u32, &Request)> = counts.into_values().rev().collect();
        sorted.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let all = sorted
            .iter()
            .map(|(count, _)| f64::from(*count))
            .sum::<f64>();
        let enough = POPULARITY_PERCENT * all / 100.0;
        let mut found = 0.0;
        let mut list = Vec::new();
        for (count, request) in &sorted {
            if found >= enough {
                break;
            }
            found += f64::from(*count);
            list.push(Typical {
                request: (*request).clone(),
                share: f64::from(*count) / all,
            });
        }
        if list.len() < sorted.len() {
            for typical in &mut list {
                typical.share /= found / all;
            }
        }
        Self(list)
    }

    /// Fragments of a node, thousandths of GPUs: over all typical pods, by their shares, its idle GPUs where
    /// such a pod cannot run there or wants no GPU, else those that are too small for it.
    /// `NodeGpuShareFragAmountScore`.
    pub(super) fn fragments(&self, state: &State) -> f64 {
        let idle = f64::from(state.idle_milli());
        let mut sums = [0.0; WAYS];
        for Typical { request, share } in &self.0 {
            let (way, amount) = match way(state, request) {
                None => (Way::LacksGpu, small(state, request)),
                Some(way) => (way, idle),
            };
            if let Some(sum) = sums.get_mut(way as usize) {
                *sum += share * amount;
            }
        }
        sums.iter().fold(0.0, |all, sum| all + sum)
    }
}

/// Why a pod cannot run on a node, or why it is none of its GPUs' business; `None` where it can use them.
/// `GetNodePodFrag`.
fn way(state: &State, request: &Request) -> Option<Way> {
    let has_cpu = state.cpu_milli >= request.cpu_milli;
    if request.gpu_milli == 0 {
        return Some(match has_cpu {
            true => Way::NoGpuWanted,
            false => Way::NoGpuWantedLacksCpu,
        });
    }
    if !request.accepts(state.model) {
        return Some(Way::OtherModel);
    }
    match (state.has_gpus(request), has_cpu) {
        (true, true) => None,
        (true, false) => Some(Way::LacksCpu),
        (false, true) => Some(Way::LacksGpu),
        (false, false) => Some(Way::LacksBoth),
    }
}

/// What is left of GPUs that are too small for a pod, thousandths. `GetGpuFragMilliByNodeResAndPodRes`.
fn small(state: &State, request: &Request) -> f64 {
    let small = state
        .left()
        .iter()
        .filter(|left| **left < request.gpu_milli);
    small.fold(0.0, |sum, left| sum + f64::from(*left))
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::read;
    use super::*;

    /// Rows of the same pod.
    fn rows(name: &str, count: usize, rest: &str) -> String {
        (0..count)
            .map(|i| format!("{name}{i:03},{rest}\n"))
            .collect()
    }

    #[test]
    fn typical_pods_are_the_most_frequent_that_make_up_95_of_100() {
        let pods = rows("a", 60, "4000,1,1,1000,")
            + &rows("b", 20, "2000,1,1,500,")
            // As frequent as the next, and larger: more CPU.
            + &rows("c", 8, "9000,1,0,0,")
            + &rows("d", 8, "1000,1,1,300,T4")
            // 96 have come by now. Memory makes no other spec.
            + &rows("e", 4, "1000,1,1,300,")
            + &rows("f", 0, "");
        let trace = read("n,8000,1024,2,T4\n", &pods).unwrap();
        let found: Vec<(u32, u32, f64)> = Typicals::of(&trace)
            .0
            .iter()
            .map(|t| (t.request.cpu_milli, t.request.gpu_milli, t.share))
            .collect();
        let of_96 = |count: f64| count / 100.0 / (96.0 / 100.0);
        assert_eq!(
            found,
            [
                (4000, 1000, of_96(60.0)),
                (2000, 500, of_96(20.0)),
                (9000, 0, of_96(8.0)),
                (1000, 300, of_96(8.0)),
            ]
        );
        let one = read("n,8000,1024,2,T4\n", &rows("a", 3, "4000,9,1,1000,")).unwrap();
        assert_eq!(Typicals::of(&one).0[0].share, 1.0);
    }

    #[test]
    fn fragments_are_those_worked_out_by_hand() {
        let pods = rows("a", 2, "4000,1,1,1000,")
            + &rows("b", 1, "2000,1,1,500,")
            + &rows("c", 1, "1000,1,0,0,");
        let trace = read("n,8000,1024,2,T4\n", &pods).unwrap();
        let typicals = Typicals::of(&trace);
        let empty = State::empty(&trace.nodes[0]);
        // 2000 idle: whole GPUs and halves can be used; a quarter of the pods wants no GPU.
        assert_eq!(typicals.fragments(&empty), 500.0);
        let share = |cpu_milli, gpu_milli| Request {
            cpu_milli,
            memory_mib: 0,
            gpus: 1,
            gpu_milli,
            spec: Arc::from(""),
            accepted: u64::MAX,
        };
        // 600 of one GPU are taken, 5 cores left. Whole: 400 are too small. Half: 400 too. No GPU: 1400.
        let used = empty.after(&share(3000, 600), &[0]).unwrap();
        assert_eq!(
            typicals.fragments(&used),
            0.5 * 400.0 + 0.25 * 400.0 + 0.25 * 1400.0
        );
        // 3 cores left, too few for whole GPUs: all 1400 count.
        let used = empty.after(&share(5000, 600), &[1]).unwrap();
        assert_eq!(
            typicals.fragments(&used),
            0.5 * 1400.0 + 0.25 * 400.0 + 0.25 * 1400.0
        );
        // No core left: nobody can use the 1400.
        let used = empty.after(&share(8000, 600), &[1]).unwrap();
        assert_eq!(typicals.fragments(&used), 1400.0);
    }

    #[test]
    fn gpus_of_a_model_that_a_pod_does_not_want_are_fragments_for_it() {
        let pods = rows("a", 1, "1000,1,1,1000,G2") + &rows("b", 1, "1000,1,1,1000,T4");
        let trace = read("n,8000,1024,2,T4\nm,8000,1024,4,P100\n", &pods).unwrap();
        let typicals = Typicals::of(&trace);
        let of = |node: usize| typicals.fragments(&State::empty(&trace.nodes[node]));
        assert_eq!((&*trace.nodes[1].name, of(1)), ("n", 1000.0));
        assert_eq!((&*trace.nodes[0].name, of(0)), ("m", 4000.0));
    }
}
