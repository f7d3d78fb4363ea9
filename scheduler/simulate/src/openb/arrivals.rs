//! Who arrives, in which order, and in which order nodes are looked at.

use super::trace::{Machine, Trace};
use super::{ARRIVALS_MAX, Setting};
use crate::error::Error;
use crate::random::Random;

/// What a seed makes of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrivals {
    /// Positions of pods in [`Trace::pods`], in order of arrival.
    pub pods: Vec<usize>,
    /// The nodes in order of their names; the seed has given each a new one.
    pub nodes: Vec<Machine>,
}

impl Arrivals {
    /// Follows `Simulate` in `pkg/simulator/core.go`: pods in order of name are shuffled
    /// (`SortClusterPods`), then some are added or taken away (`TunePodsByNodeTotalResource`), then each node
    /// gets the number of its place in a random order before its name (`syncClusterResourceList`).
    ///
    /// That last step decides much: of nodes with the same score the one with the smallest name is
    /// taken. With names as in the file, published FGD leaves a quarter more GPUs idle on the trace cpu250.
    pub(super) fn new(trace: &Trace, setting: &Setting) -> Result<Self, Error> {
        let mut random = Random::new(setting.seed);
        let mut pods: Vec<usize> = (0..trace.pods.len()).collect();
        random.shuffle(&mut pods);
        tune(trace, setting.inflate, &mut pods, &mut random)?;
        let mut nodes = trace.nodes.clone();
        random.shuffle(&mut nodes);
        let width = nodes.len().saturating_sub(1).to_string().len().max(4);
        for (place, node) in nodes.iter_mut().enumerate() {
            node.name = format!("{place:0width$}-{}", node.name).into();
        }
        Ok(Self { pods, nodes })
    }
}

/// Brings the GPUs of all arrivals to a share of those that there are. Too few: pods of the trace arrive
/// again, any of them, until the next would be too many; that one is measured by one of its GPUs, as in the
/// source (`tuneUpPods`). Too many: pods go, any of them, until they are not (`tuneDownPods`).
fn tune(
    trace: &Trace,
    inflate: f64,
    pods: &mut Vec<usize>,
    random: &mut Random,
) -> Result<(), Error> {
    let wanted = inflate * crate::record::as_f64(trace.capacity_milli());
    let exceeds = |milli: u64| crate::record::as_f64(milli) > wanted;
    let milli_of = |pod: usize| trace.request_of(pod).map_or(0, |(_, r)| r.milli());
    let mut sum = pods
        .iter()
        .fold(0, |sum: u64, pod| sum.saturating_add(milli_of(*pod)));
    if exceeds(sum) {
        while exceeds(sum) && !pods.is_empty() {
            let gone = pods.remove(random.below(pods.len()));
            sum = sum.saturating_sub(milli_of(gone));
        }
        return Ok(());
    }
    while crate::record::as_f64(sum) != wanted || pods.len() > trace.pods.len() {
        let pod = random.below(trace.pods.len());
        let of_one = trace.request_of(pod).map_or(0, |(_, r)| r.gpu_milli);
        if exceeds(sum.saturating_add(u64::from(of_one))) {
            break;
        }
        if pods.len() >= ARRIVALS_MAX {
            let limit = format!(
                "is too much for this trace: more than {ARRIVALS_MAX} pods would have to arrive"
            );
            return Err(Error::flag("--inflate", inflate, limit));
        }
        sum = sum.saturating_add(milli_of(pod));
        pods.push(pod);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::PolicyKind;
    use super::super::trace::tests::read;
    use super::*;

    fn setting(inflate: f64, seed: u64) -> Setting {
        Setting {
            policy: PolicyKind::FirstFit,
            inflate,
            seed,
        }
    }

    fn trace(gpus_each: u32) -> Trace {
        let nodes: String = (0..5).map(|i| format!("n{i},8000,1024,4,T4\n")).collect();
        let pods: String = (0..10)
            .map(|i| format!("p{i},1000,1,{gpus_each},1000,\n"))
            .collect();
        read(&nodes, &pods).unwrap()
    }

    #[test]
    fn gpus_that_arrive_are_the_share_that_was_asked_for() {
        let arrive = |inflate, gpus_each| {
            let arrivals = Arrivals::new(&trace(gpus_each), &setting(inflate, 42)).unwrap();
            arrivals.pods.len()
        };
        // 20 GPUs, 10 pods of one or two GPUs: more or fewer come.
        assert_eq!(arrive(1.3, 1), 26);
        assert_eq!(arrive(0.25, 1), 5);
        assert_eq!(arrive(0.26, 1), 5);
        assert_eq!(arrive(1.0, 2), 10);
        // 26 of 26 are reached by 13 pods. 25 by 12, and another begins while one GPU more is not too
        // many: 26.
        assert_eq!(arrive(1.3, 2), 13);
        assert_eq!(arrive(1.25, 2), 13);
    }

    #[test]
    fn pods_and_nodes_come_in_an_order_that_the_seed_decides_alone() {
        let trace = trace(1);
        let of = |seed| Arrivals::new(&trace, &setting(1.3, seed)).unwrap();
        assert_eq!(of(42), of(42));
        assert_ne!(of(42).pods, of(43).pods);
        assert_ne!(of(42).nodes, of(43).nodes);
        let arrivals = of(42);
        let mut first = arrivals.pods[..10].to_vec();
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
        let mut ends: Vec<&str> = arrivals.nodes.iter().map(|n| &n.name[4..]).collect();
        assert!(arrivals.nodes.is_sorted_by(|a, b| a.name < b.name));
        ends.sort_unstable();
        assert_eq!(ends, ["-n0", "-n1", "-n2", "-n3", "-n4"]);
    }

    #[test]
    fn a_trace_of_crumbs_cannot_be_inflated_without_end() {
        let nodes: String = (0..1000).map(|i| format!("n{i},1,1,8,T4\n")).collect();
        let trace = read(&nodes, "p,1,1,1,1,\n").unwrap();
        let said = Arrivals::new(&trace, &setting(10.0, 1)).unwrap_err();
        assert_eq!(
            said.to_string(),
            "--inflate is 10: is too much for this trace: more than 1000000 pods would have to arrive"
        );
    }
}
