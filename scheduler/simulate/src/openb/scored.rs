//! The published policies, and two simple ones. Each node with room gets a score; of those with the
//! highest the one with the smallest name is taken (`selectHost` in the source's kube-scheduler).

use super::board::{Board, Devices, State};
use super::fragments::Typicals;
use super::run::{Placement, Policy};
use super::trace::{Machine, Request, Trace};
use crate::error::Error;
use crate::random::Random;

/// CPU and GPU of the largest node, thousandths. Source: `MaxSpecCpu`, `MaxSpecGpu`.
const LARGEST: [f64; 2] = [128_000.0, 8_000.0];

/// Keeps the draws of the policy `random` apart from those of the arrivals, which all policies share.
const POLICY_STREAM: u64 = 0x9d5c_0fb1_73a2_e846;

/// How a node and its GPUs are chosen.
#[derive(Debug)]
pub(super) enum Rule {
    /// `fgd_score.go`.
    Fgd(Typicals),
    /// `best_fit_score.go`; GPUs by best fit, as `gpuSelMethod` is by default.
    BestFit,
    /// `random_score.go`; GPUs at random too.
    Random(Random),
    /// The smallest name, the lowest GPU with room. Not published.
    FirstFit,
}

impl Rule {
    pub(super) fn fgd(trace: &Trace) -> Self {
        Self::Fgd(Typicals::of(trace))
    }

    pub(super) fn random(seed: u64) -> Self {
        Self::Random(Random::new(seed ^ POLICY_STREAM))
    }

    /// Score of a node in a state that has room, the higher the better.
    fn score(&self, state: &State, request: &Request) -> i16 {
        match self {
            Self::Fgd(typicals) => fgd(typicals, state, request).0,
            Self::BestFit => best_fit(state, request),
            Self::Random(_) | Self::FirstFit => 0,
        }
    }

    /// GPUs for a pod on a node that has room.
    fn devices(&mut self, state: &State, request: &Request) -> Devices {
        match self {
            Self::Fgd(typicals) => fgd(typicals, state, request).1,
            Self::BestFit => state.best_fit(request),
            Self::FirstFit => state.lowest(request),
            Self::Random(random) if request.is_share() => {
                let all: Devices = state.with_room(request).collect();
                let drawn = random.below(all.len());
                all.get(drawn).copied().into_iter().collect()
            }
            Self::Random(_) => state.lowest(request),
        }
    }
}

/// Score of FGD: 100 times the sigmoid of the GPUs by which fragments become fewer, cut to a whole number.
/// A share goes to the first GPU with the highest of these numbers; whole GPUs are the lowest.
/// `calculateGpuShareFragExtendScore`.
fn fgd(typicals: &Typicals, state: &State, request: &Request) -> (i16, Devices) {
    let before = typicals.fragments(state);
    let score = |after: &State| {
        let fewer = (before - typicals.fragments(after)) / 1000.0;
        whole(100.0 * (1.0 / (1.0 + (-fewer).exp())))
    };
    if !request.is_share() {
        let devices = state.lowest(request);
        let after = state.after(request, &devices);
        return (after.map_or(0, |after| score(&after)), devices);
    }
    let mut best: Option<(i16, usize)> = None;
    let mut seen = Vec::new();
    for device in state.with_room(request) {
        // GPUs with the same left give the same score, and the first of them is taken.
        let left = state.left().get(device);
        if seen.contains(&left) {
            continue;
        }
        seen.push(left);
        if let Some(after) = state.after(request, &[device]) {
            let score = score(&after);
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, device));
            }
        }
    }
    best.map_or((0, Devices::new()), |(score, device)| (score, vec![device]))
}

/// Score of BestFit: 100, less half of the CPU and half of the GPUs that would be left, each as a percentage
/// of those of the largest node, cut to a whole number. `getBestFitScore`.
///
/// The source then maps the scores of all nodes with room from lowest..highest to 0..100
/// (`NormalizeScore`: `(score - lowest) * 100 / (highest - lowest)`, cut to a whole number). That reaches 100 for
/// the highest score alone, so that who is first, and who ties with it, stays the same: it is left out.
fn best_fit(state: &State, request: &Request) -> i16 {
    let cpu = f64::from(state.cpu_milli) - f64::from(request.cpu_milli);
    let gpu = f64::from(state.idle_milli()) - crate::record::as_f64(request.milli());
    let [largest_cpu, largest_gpu] = LARGEST;
    let left = 0.0 + cpu / largest_cpu * 0.5 + gpu / largest_gpu * 0.5;
    whole((1.0 - left) * 100.0)
}

/// A score without its digits after the point.
fn whole(score: f64) -> i16 {
    // At least -292, where a node has the most cores that a trace may have, and at most 100.
    #[allow(clippy::cast_possible_truncation)]
    let whole = score.clamp(-30_000.0, 30_000.0) as i16;
    whole
}

/// What is known of a request and a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    NoRoom,
    Score(i16),
}

/// A policy that scores nodes. Nodes in the same state are scored once for each request.
#[derive(Debug)]
pub(super) struct Scored<'a> {
    trace: &'a Trace,
    board: Board,
    rule: Rule,
    /// By request, then by state.
    known: Vec<Vec<Known>>,
}

impl<'a> Scored<'a> {
    pub(super) fn new(trace: &'a Trace, nodes: &[Machine], rule: Rule) -> Self {
        Self {
            trace,
            board: Board::new(nodes),
            rule,
            known: vec![Vec::new(); trace.requests.len()],
        }
    }

    /// The node with the highest score, by its position, with the number of its state.
    fn best(&mut self, position: usize, request: &Request) -> Option<(usize, usize)> {
        let known = self.known.get_mut(position)?;
        let mut best: Option<(i16, usize, usize)> = None;
        for (id, state, nodes) in self.board.live() {
            if known.len() <= id {
                known.resize(id.saturating_add(1), Known::Nothing);
            }
            let Some(entry) = known.get_mut(id) else {
                continue;
            };
            if *entry == Known::Nothing {
                *entry = match state.fits(request) {
                    true => Known::Score(self.rule.score(state, request)),
                    false => Known::NoRoom,
                };
            }
            let Known::Score(score) = *entry else {
                continue;
            };
            if best.is_some_and(|(highest, _, _)| score < highest) {
                continue;
            }
            let Some(node) = nodes.first().copied() else {
                continue;
            };
            if best.is_none_or(|(highest, first, _)| score > highest || node < first) {
                best = Some((score, node, id));
            }
        }
        best.map(|(_, node, id)| (node, id))
    }

    /// Any of the nodes with room.
    fn any(&mut self, request: &Request) -> Option<(usize, usize)> {
        let Rule::Random(random) = &mut self.rule else {
            return None;
        };
        let with_room = || {
            let live = self.board.live();
            live.filter(|(_, state, _)| state.fits(request))
        };
        let count = with_room().fold(0, |sum: usize, (_, _, nodes)| {
            sum.saturating_add(nodes.len())
        });
        let mut drawn = random.below(count);
        for (id, _, nodes) in with_room() {
            if let Some(node) = nodes.iter().nth(drawn) {
                return Some((*node, id));
            }
            drawn = drawn.saturating_sub(nodes.len());
        }
        None
    }
}

impl Policy for Scored<'_> {
    fn place(&mut self, position: usize) -> Result<Option<Placement>, Error> {
        let trace = self.trace;
        let Some(request) = trace.requests.get(position) else {
            return Ok(None);
        };
        let found = match self.rule {
            Rule::Random(_) => self.any(request),
            _ => self.best(position, request),
        };
        let Some((node, id)) = found else {
            return Ok(None);
        };
        let Some(state) = self.board.state(id).copied() else {
            return Ok(None);
        };
        let devices = self.rule.devices(&state, request);
        let taken = self.board.take(node, id, request, &devices);
        Ok(taken.map(|()| Placement { node, devices }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::read;
    use super::*;

    /// A trace with one node of 2 GPUs, and that node with these thousandths left of them.
    fn case(pods: &str, left: [u32; 2]) -> (Trace, State) {
        let trace = read("n,8000,1024,2,T4\n", pods).unwrap();
        let mut state = State::empty(&trace.nodes[0]);
        for (device, left) in left.into_iter().enumerate() {
            let mut taken = trace.requests[0].clone();
            (taken.cpu_milli, taken.memory_mib, taken.gpu_milli) = (0, 0, 1000 - left);
            state = state.after(&taken, &[device]).unwrap();
        }
        (trace, state)
    }

    /// Request 0 is half a GPU. 1000 and 600 are left; for half of the pods, which want a whole GPU, the 600 are
    /// fragments: 300.
    /// - On the first GPU, 500 and 600 are left: 1100 are of no use for whole GPUs, 550. 0.25 GPUs more are
    ///   fragments: 100 / (1 + e^0.25) = 43.8.
    /// - On the second, 1000 and 100: 100 are too small for all, 100. 0.2 fewer: 100 / (1 + e^-0.2) = 54.98.
    #[test]
    fn fgd_scores_are_those_worked_out_by_hand() {
        let pods = "a,1000,1,1,500,\nb,1000,1,1,1000,\n";
        let (trace, state) = case(pods, [1000, 600]);
        let typicals = Typicals::of(&trace);
        assert_eq!(typicals.fragments(&state), 300.0);
        assert_eq!(fgd(&typicals, &state, &trace.requests[0]), (54, vec![1]));
        let (_, only_first) = case(pods, [1000, 400]);
        // 400 are fragments for all before; then 500 and 400: 900 for whole GPUs, 400 for halves. 0.25 more.
        assert_eq!(typicals.fragments(&only_first), 400.0);
        assert_eq!(
            fgd(&typicals, &only_first, &trace.requests[0]),
            (43, vec![0])
        );
        // A whole GPU: of 400 and 1000 the second. 400 remain, of use for nobody, as before: 50.
        let (_, turned) = case(pods, [400, 1000]);
        assert_eq!(fgd(&typicals, &turned, &trace.requests[1]), (50, vec![1]));
    }

    /// 520 and 510 are left, and only halves come. The first GPU would keep 20 that are too small, the second
    /// 10: 49.50 and 49.75, both 49.
    #[test]
    fn fgd_takes_the_first_gpu_of_those_with_the_same_whole_number() {
        let (trace, state) = case("a,1000,1,1,500,\n", [520, 510]);
        let typicals = Typicals::of(&trace);
        assert_eq!(fgd(&typicals, &state, &trace.requests[0]), (49, vec![0]));
    }

    #[test]
    fn bestfit_scores_are_those_worked_out_by_hand() {
        let trace = read("n,96000,1024,8,G2\n", "a,12000,1,1,1000,\n").unwrap();
        let empty = State::empty(&trace.nodes[0]);
        // 84 of 128 cores and 7 of 8 GPUs are left: 100 - 50 x 0.65625 - 50 x 0.875 = 23.4.
        assert_eq!(best_fit(&empty, &trace.requests[0]), 23);
        let (trace, state) = case("a,1000,1,1,300,\n", [400, 300]);
        assert_eq!(state.best_fit(&trace.requests[0]), [1]);
        let (_, state) = case("a,1000,1,1,300,\n", [400, 200]);
        assert_eq!(state.best_fit(&trace.requests[0]), [0]);
        // The source maps scores to 0..100 before it chooses; that makes nobody first who was not.
        for (lowest, highest) in [(0i64, 100i64), (23, 24), (-292, 99)] {
            let mapped = |score: i64| (score - lowest) * 100 / (highest - lowest);
            assert_eq!(mapped(highest), 100);
            assert!((lowest..highest).all(|score| mapped(score) < 100));
        }
    }
}
