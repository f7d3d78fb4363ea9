//! Rules between the members of one gang, and what they allow while a placement is built.
//!
//! kube-scheduler checks each member when it comes, against those that it has accepted before and
//! holds. What is planned here passes that check:
//!
//! - anti-affinity and affinity in any order of arrival, except that a member with affinity to
//!   others than itself must not come first;
//! - spread in order of index, and in any order where no domain gets more than `maxSkew` members.
//!   A pod that is confined to its one node when its gate goes sees only the domain of that node,
//!   and passes, unless `minDomains` asks for more domains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::GangRequest;
use crate::interpod::{InterPodKind, InterPodRule, Labels, Spread};
use crate::node::{SelectorTerm, Toleration, untolerated};
use crate::pod::PodShape;
use crate::snapshot::{Eligibility, NodeCapacity, Snapshot};

/// Most rules of one gang that are looked at. Pods made from a few templates have a handful; what is
/// beyond this is left to kube-scheduler, so that pods with a rule of their own each cost no memory.
const RULES_MAX: usize = 32;

/// What a member has to do with a rule.
#[derive(Clone, Copy, Default)]
struct Side {
    /// It carries the rule.
    holds: bool,
    /// The rule speaks of it.
    matches: bool,
}

impl Side {
    fn both(self) -> bool {
        self.holds && self.matches
    }

    fn any(self) -> bool {
        self.holds || self.matches
    }
}

/// What does not change about a rule while a placement is built.
struct Terms {
    rule: InterPodRule,
    /// Domain of each node, by position in the snapshot; `None` where the node lacks the label.
    domains: Arc<Vec<Option<u32>>>,
    /// Whether pods on the node count, by position; empty: all do.
    counted: Vec<bool>,
    /// Domains of the nodes that count.
    live: Vec<u32>,
    /// By position of the role in the request.
    sides: Vec<Side>,
    /// Whether a member both carries it and is spoken of by it.
    mutual: bool,
    /// Whether it speaks of any member.
    spoken: bool,
}

/// A rule, with the members that have a place.
#[derive(Clone)]
pub(super) struct Rule {
    terms: Arc<Terms>,
    /// Members that carry it, by domain.
    holders: Vec<u32>,
    /// Members that it speaks of, by domain.
    matched: Vec<u32>,
    /// How many there are of the former, on nodes with the label, and of the latter.
    holding: u32,
    matching: u32,
}

/// What of a node decides how a rule looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    /// The domain, where other nodes are in it.
    shared: Option<u32>,
    is_labelled: bool,
    counts: bool,
    holders: u32,
    matched: u32,
}

/// Every rule that members of the gang carry about members of the gang.
#[derive(Clone, Default)]
pub(super) struct Rules {
    rules: Vec<Rule>,
}

/// A rule, and for a spread the shape of those who carry it, which decides which nodes count.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Asked<'a> {
    rule: &'a InterPodRule,
    by: Option<By<'a>>,
}

/// What of a shape decides which nodes count in its spreads.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct By<'a> {
    node_selector: &'a Labels,
    required_affinity: &'a Option<Vec<SelectorTerm>>,
    tolerations: &'a [Toleration],
    rules: &'a BTreeSet<InterPodRule>,
}

impl<'a> Asked<'a> {
    fn of(rule: &'a InterPodRule, shape: &'a PodShape) -> Self {
        let by = match &rule.kind {
            InterPodKind::Spread(_) => Some(By {
                node_selector: &shape.node_selector,
                required_affinity: &shape.required_affinity,
                tolerations: &shape.tolerations,
                rules: &shape.between_pods,
            }),
            InterPodKind::AntiAffinity | InterPodKind::Affinity => None,
        };
        Self { rule, by }
    }

    fn side(&self, shape: &PodShape, labels: &Labels) -> Side {
        let carried = shape.between_pods.get(self.rule);
        Side {
            holds: carried.is_some_and(|rule| Asked::of(rule, shape) == *self),
            matches: self.rule.matches(labels),
        }
    }
}

/// What several rules of one gang have in common, worked out once.
struct Known<'a> {
    /// Shapes and labels among the members that have a place.
    kinds: Vec<(&'a PodShape, &'a Labels)>,
    /// Those members: which of the kinds, and the position of the node.
    placed: Vec<(usize, usize)>,
    /// Domain of each node, by label.
    domains: BTreeMap<&'a str, Arc<Vec<Option<u32>>>>,
    /// Whether each node has the labels of all spreads, by the rules of a shape.
    labelled: BTreeMap<&'a BTreeSet<InterPodRule>, Vec<bool>>,
}

impl<'a> Known<'a> {
    fn of(snapshot: &Snapshot, gang: &'a GangRequest) -> Self {
        let mut numbers: BTreeMap<(&PodShape, &Labels), usize> = BTreeMap::new();
        let mut kinds: Vec<(&'a PodShape, &'a Labels)> = Vec::new();
        let mut placed = Vec::with_capacity(gang.placed.len());
        for standing in &gang.placed {
            let Some(at) = snapshot.position(&standing.node) else {
                continue;
            };
            let kind: (&PodShape, &Labels) = (&standing.shape, &standing.labels);
            let number = *numbers.entry(kind).or_insert_with(|| {
                kinds.push(kind);
                kinds.len().saturating_sub(1)
            });
            placed.push((number, at));
        }
        Self {
            kinds,
            placed,
            domains: BTreeMap::new(),
            labelled: BTreeMap::new(),
        }
    }

    fn domains(&mut self, snapshot: &Snapshot, rule: &'a InterPodRule) -> Arc<Vec<Option<u32>>> {
        let known = self.domains.entry(&rule.topology);
        Arc::clone(known.or_insert_with(|| Arc::new(domains_of(snapshot, rule))))
    }

    fn labelled(&mut self, snapshot: &Snapshot, rules: &'a BTreeSet<InterPodRule>) -> &[bool] {
        self.labelled.entry(rules).or_insert_with(|| {
            let spreads: BTreeSet<&Arc<str>> = rules
                .iter()
                .filter(|rule| matches!(rule.kind, InterPodKind::Spread(_)))
                .map(|rule| &rule.topology)
                .collect();
            let has = |capacity: &Arc<NodeCapacity>| {
                let labels = &capacity.node.labels;
                spreads.iter().all(|key| labels.contains_key(*key))
            };
            snapshot.nodes().iter().map(has).collect()
        })
    }
}

impl Rules {
    /// The rules of a gang. Empty for nearly every gang.
    pub fn of<'g>(snapshot: &'g Snapshot, gang: &'g GangRequest) -> Self {
        let each = |shape: &'g PodShape| {
            let rules = shape.between_pods.iter();
            rules.map(move |rule| (Asked::of(rule, shape), shape))
        };
        let mut all: BTreeMap<Asked, &PodShape> = gang
            .roles
            .iter()
            .flat_map(|role| each(&role.shape))
            .collect();
        // Of those that stand already, only anti-affinity is held against newcomers.
        all.extend(
            gang.placed
                .iter()
                .flat_map(|standing| each(&standing.shape))
                .filter(|(asked, _)| asked.rule.kind == InterPodKind::AntiAffinity),
        );
        let mut known = Known::of(snapshot, gang);
        let rules = all
            .into_iter()
            .take(RULES_MAX)
            .filter_map(|(asked, shape)| Rule::of(snapshot, gang, &asked, shape, &mut known))
            .collect();
        Self { rules }
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Each rule, with the others.
    pub fn each_left_out(&self) -> impl Iterator<Item = (&InterPodRule, Self)> {
        self.rules.iter().enumerate().map(|(position, rule)| {
            let mut others = self.clone();
            others.rules.remove(position);
            (&rule.terms.rule, others)
        })
    }

    /// Whether a member of the role may come to the node, beside those that have a place.
    pub fn admit(&self, role: usize, at: usize) -> bool {
        self.rules.iter().all(|rule| rule.admits(role, at))
    }

    /// Whether at most one member of the role may stand on the node.
    pub fn one_on_node(&self, role: usize, at: usize) -> bool {
        self.rules.iter().any(|rule| {
            rule.terms.rule.kind == InterPodKind::AntiAffinity
                && rule.terms.rule.is_by_node()
                && rule.side(role).both()
                && rule.domain(at).is_some()
        })
    }

    /// Rules by which the members of the role come together, while it is open where.
    pub fn open(&self, role: usize) -> Vec<usize> {
        self.positions(|rule| {
            rule.terms.rule.kind == InterPodKind::Affinity
                && rule.side(role).any()
                && !rule.has().any()
        })
    }

    /// Rules by which members of the role are counted against each other, node by node aside.
    pub fn counting(&self, role: usize) -> Vec<usize> {
        self.positions(|rule| {
            rule.side(role).both()
                && match rule.terms.rule.kind {
                    InterPodKind::AntiAffinity => !rule.terms.rule.is_by_node(),
                    InterPodKind::Affinity => false,
                    InterPodKind::Spread(_) => true,
                }
        })
    }

    fn positions(&self, wanted: impl Fn(&Rule) -> bool) -> Vec<usize> {
        let all = self.rules.iter().enumerate();
        all.filter(|(_, rule)| wanted(rule))
            .map(|(position, _)| position)
            .collect()
    }

    /// Domain of a node by each of the rules at `positions`.
    pub fn domains(&self, positions: &[usize], at: usize) -> Vec<Option<u32>> {
        positions
            .iter()
            .map(|position| self.rules.get(*position).and_then(|rule| rule.domain(at)))
            .collect()
    }

    /// A member of the role has its place on the node.
    pub fn add(&mut self, role: usize, at: usize) {
        for rule in &mut self.rules {
            let side = rule.side(role);
            rule.count(side, at);
        }
    }

    /// The member has it no more.
    pub fn remove(&mut self, role: usize, at: usize) {
        for rule in &mut self.rules {
            let side = rule.side(role);
            rule.discount(side, at);
        }
    }

    /// Whether kube-scheduler takes a member of the role on the node next, after those that have a place.
    pub fn accept(&self, role: usize, at: usize) -> bool {
        self.rules.iter().all(|rule| rule.accepts(role, at))
    }

    /// Whether members of roles that stand on nodes have what their rules ask for, whoever came last.
    pub fn keep(&self, members: &[(usize, usize)]) -> bool {
        let mut members = members.iter();
        members.all(|(role, at)| self.rules.iter().all(|rule| rule.is_kept(*role, *at)))
    }

    /// Whether a member may be taken after another one only: then it matters who comes first.
    pub fn asks_for_order(&self) -> bool {
        self.rules.iter().any(|rule| match rule.terms.rule.kind {
            InterPodKind::AntiAffinity => false,
            InterPodKind::Affinity => !rule.terms.mutual,
            InterPodKind::Spread(_) => true,
        })
    }

    /// Whether there is no place for the members of this role alone where sharing them out has found none:
    /// all rules by which they are counted cut the cluster into the same domains, and of domains in which they
    /// may come together none was left out.
    pub fn settles(&self, role: usize, homes_max: usize) -> bool {
        let is_tried = |rule: &Rule| rule.matched.len() <= homes_max;
        let counting = self.counting(role);
        let mut rules = self.at(&counting).into_iter();
        let first = rules.next();
        let mut alike = rules.zip(first.into_iter().cycle());
        let open = self.open(role);
        alike.all(|(rule, first)| rule.cuts_as(first))
            && (open.len() <= 1 && self.at(&open).into_iter().all(is_tried))
            && !self.rules.iter().any(|rule| rule.is_one_sided(role))
    }

    /// Whether members of the role ask for a spread that does not count them, or are counted by one that
    /// others ask for: sharing out does not look at that.
    pub fn is_one_sided(&self, role: usize) -> bool {
        self.rules.iter().any(|rule| rule.is_one_sided(role))
    }

    /// The first of the roles of which no member is ever taken: by affinity each waits for members of another one that
    /// waits for it, too.
    pub fn stuck(&self, mut roles: Vec<usize>) -> Option<usize> {
        let affinity = |rule: &&Rule| rule.terms.rule.kind == InterPodKind::Affinity;
        let mut taken: Vec<usize> = Vec::new();
        loop {
            let may_come = |role: &usize| {
                self.rules.iter().filter(affinity).all(|rule| {
                    let side = rule.side(*role);
                    let is_there = || taken.iter().any(|other| rule.side(*other).matches);
                    !side.holds || side.matches || rule.matching > 0 || is_there()
                })
            };
            let (come, wait): (Vec<usize>, Vec<usize>) =
                roles.iter().partition(|role| may_come(role));
            if come.is_empty() {
                return wait.first().copied();
            }
            taken.extend(come);
            roles = wait;
        }
    }

    /// What of a node decides how the rules look at it: nodes with the same marks are alike.
    pub fn marks(&self, sizes: &[Vec<u32>], at: usize) -> Vec<Mark> {
        let mark = |(rule, sizes): (&Rule, &Vec<u32>)| {
            let domain = rule.domain(at);
            Mark {
                shared: domain.filter(|domain| count_in(sizes, Some(*domain)) > 1),
                is_labelled: domain.is_some(),
                counts: rule.is_counted(at),
                holders: count_in(&rule.holders, domain),
                matched: count_in(&rule.matched, domain),
            }
        };
        self.rules.iter().zip(sizes).map(mark).collect()
    }

    /// How many nodes are in each domain of each rule.
    pub fn sizes(&self) -> Vec<Vec<u32>> {
        let sizes = |rule: &Rule| {
            let mut sizes = vec![0; rule.matched.len()];
            for domain in rule.terms.domains.iter() {
                raise(&mut sizes, *domain);
            }
            sizes
        };
        self.rules.iter().map(sizes).collect()
    }

    /// Members that spreads count in the domains of the node: where there are few, more may come.
    pub fn level(&self, at: usize) -> u64 {
        let spreads = self.rules.iter().filter(|rule| rule.spread().is_some());
        spreads.fold(0u64, |sum, rule| {
            sum.saturating_add(u64::from(count_in(&rule.matched, rule.domain(at))))
        })
    }

    /// The rules at `positions`, to share members out by.
    pub fn at(&self, positions: &[usize]) -> Vec<&Rule> {
        positions
            .iter()
            .filter_map(|position| self.rules.get(*position))
            .collect()
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }
}

impl Rule {
    /// `None` for a rule that speaks of no member of the gang.
    fn of<'a>(
        snapshot: &'a Snapshot,
        gang: &GangRequest,
        asked: &Asked<'a>,
        shape: &'a PodShape,
        known: &mut Known<'a>,
    ) -> Option<Self> {
        let sides: Vec<Side> = gang
            .roles
            .iter()
            .map(|role| asked.side(&role.shape, &role.labels))
            .collect();
        let placed: Vec<Side> = known
            .kinds
            .iter()
            .map(|(shape, labels)| asked.side(shape, labels))
            .collect();
        let spread = match &asked.rule.kind {
            InterPodKind::Spread(spread) => Some(spread),
            _ => None,
        };
        // A spread that counts no member still keeps its holders to nodes with the label.
        if spread.is_none() && !sides.iter().chain(&placed).any(|side| side.matches) {
            return None;
        }
        let domains = known.domains(snapshot, asked.rule);
        let counted: Vec<bool> = spread.map_or_else(Vec::new, |spread| {
            let labelled = known.labelled(snapshot, &shape.between_pods);
            let nodes = snapshot.nodes().iter().zip(labelled);
            nodes
                .map(|(capacity, labelled)| *labelled && counts_for(spread, shape, capacity))
                .collect()
        });
        let live: BTreeSet<u32> = domains
            .iter()
            .zip(&counted)
            .filter_map(|(domain, counted)| domain.filter(|_| *counted))
            .collect();
        let size = domains.iter().flatten().max().map_or(0, |domain| {
            usize::try_from(*domain).unwrap_or(0).saturating_add(1)
        });
        let mut rule = Self {
            terms: Arc::new(Terms {
                rule: asked.rule.clone(),
                domains,
                counted,
                live: live.into_iter().collect(),
                mutual: sides.iter().chain(&placed).any(|side| side.both()),
                spoken: sides.iter().chain(&placed).any(|side| side.matches),
                sides,
            }),
            holders: vec![0; size],
            matched: vec![0; size],
            holding: 0,
            matching: 0,
        };
        for (kind, at) in &known.placed {
            rule.count(placed.get(*kind).copied().unwrap_or_default(), *at);
        }
        Some(rule)
    }

    fn side(&self, role: usize) -> Side {
        self.terms.sides.get(role).copied().unwrap_or_default()
    }

    fn domain(&self, at: usize) -> Option<u32> {
        self.terms.domains.get(at).copied().flatten()
    }

    /// What there is of members on nodes with the label.
    fn has(&self) -> Side {
        Side {
            holds: self.holding > 0,
            matches: self.matching > 0,
        }
    }

    fn is_counted(&self, at: usize) -> bool {
        self.terms.counted.get(at).copied().unwrap_or(true)
    }

    fn count(&mut self, side: Side, at: usize) {
        let domain = self.domain(at);
        if side.holds {
            raise(&mut self.holders, domain);
            let more = u32::from(domain.is_some());
            self.holding = self.holding.saturating_add(more);
        }
        if side.matches {
            if self.is_counted(at) {
                raise(&mut self.matched, domain);
            }
            let more = u32::from(domain.is_some());
            self.matching = self.matching.saturating_add(more);
        }
    }

    /// The opposite of [`Self::count`].
    fn discount(&mut self, side: Side, at: usize) {
        let domain = self.domain(at);
        if side.holds {
            lower(&mut self.holders, domain);
            let fewer = u32::from(domain.is_some());
            self.holding = self.holding.saturating_sub(fewer);
        }
        if side.matches {
            if self.is_counted(at) {
                lower(&mut self.matched, domain);
            }
            let fewer = u32::from(domain.is_some());
            self.matching = self.matching.saturating_sub(fewer);
        }
    }

    /// Whether kube-scheduler takes a member of the role on the node next.
    fn accepts(&self, role: usize, at: usize) -> bool {
        let (side, domain) = (self.side(role), self.domain(at));
        let here = count_in(&self.matched, domain);
        match &self.terms.rule.kind {
            InterPodKind::AntiAffinity => self.admits(role, at),
            // In whatever order they come: who asks for its like, and whoever is one, are together.
            InterPodKind::Affinity if self.terms.mutual => {
                let is_first = side.matches && self.matching == 0;
                self.admits(role, at) && (!side.holds || here > 0 || is_first)
            }
            InterPodKind::Affinity => !side.holds || domain.is_some() && here > 0,
            InterPodKind::Spread(spread) => {
                let with = here.saturating_add(u32::from(side.matches));
                self.admits(role, at)
                    && (!side.holds || with.saturating_sub(self.fewest(spread)) <= spread.skew_max)
            }
        }
    }

    /// Whether a member of the role that stands on the node has what it asks for.
    fn is_kept(&self, role: usize, at: usize) -> bool {
        let Some(spread) = self.spread().filter(|_| self.side(role).holds) else {
            return true;
        };
        let here = count_in(&self.matched, self.domain(at));
        here.saturating_sub(self.fewest(spread)) <= spread.skew_max
    }

    /// Members in the domain that has the fewest.
    fn fewest(&self, spread: &Spread) -> u32 {
        let live = &self.terms.live;
        if u32::try_from(live.len()).unwrap_or(u32::MAX) < spread.domains_min {
            return 0;
        }
        let counts = live
            .iter()
            .map(|domain| count_in(&self.matched, Some(*domain)));
        counts.min().unwrap_or(0)
    }

    fn admits(&self, role: usize, at: usize) -> bool {
        let (side, domain) = (self.side(role), self.domain(at));
        let (holders, matched) = (
            count_in(&self.holders, domain),
            count_in(&self.matched, domain),
        );
        match self.terms.rule.kind {
            InterPodKind::AntiAffinity => {
                !(side.holds && matched > 0 || side.matches && holders > 0)
            }
            InterPodKind::Affinity => {
                !side.any()
                    || domain.is_some()
                        && (matched > 0 || !self.has().any() || holders > 0 && !self.has().matches)
            }
            InterPodKind::Spread(_) => {
                !side.holds || self.terms.counted.get(at).copied().unwrap_or(false)
            }
        }
    }

    fn is_one_sided(&self, role: usize) -> bool {
        let side = self.side(role);
        self.spread().is_some() && self.terms.spoken && side.any() && !side.both()
    }

    /// Whether both have the same domains, with as many members that count.
    fn cuts_as(&self, other: &Self) -> bool {
        let (mine, others) = (&self.terms, &other.terms);
        (Arc::ptr_eq(&mine.domains, &others.domains) || mine.domains == others.domains)
            && mine.live == others.live
            && self.matched == other.matched
    }

    /// Members that it speaks of, by domain.
    pub fn matched(&self) -> &[u32] {
        &self.matched
    }

    /// How it counts, for a spread.
    pub fn spread(&self) -> Option<&Spread> {
        match &self.terms.rule.kind {
            InterPodKind::Spread(spread) => Some(spread),
            InterPodKind::AntiAffinity | InterPodKind::Affinity => None,
        }
    }

    /// Domains of the nodes that count, in order.
    pub fn live(&self) -> &[u32] {
        &self.terms.live
    }
}

pub(super) fn count_in(counts: &[u32], domain: Option<u32>) -> u32 {
    domain
        .and_then(|domain| counts.get(usize::try_from(domain).ok()?))
        .copied()
        .unwrap_or(0)
}

pub(super) fn raise(counts: &mut [u32], domain: Option<u32>) {
    if let Some(count) = domain.and_then(|domain| counts.get_mut(usize::try_from(domain).ok()?)) {
        *count = count.saturating_add(1);
    }
}

fn lower(counts: &mut [u32], domain: Option<u32>) {
    if let Some(count) = domain.and_then(|domain| counts.get_mut(usize::try_from(domain).ok()?)) {
        *count = count.saturating_sub(1);
    }
}

/// The domain of each node of the snapshot.
fn domains_of(snapshot: &Snapshot, rule: &InterPodRule) -> Vec<Option<u32>> {
    let mut known: BTreeMap<&str, u32> = BTreeMap::new();
    if rule.is_by_node() {
        let nodes = snapshot.nodes().iter().zip(0u32..);
        return nodes
            .map(|(capacity, at)| capacity.node.labels.get(&rule.topology).map(|_| at))
            .collect();
    }
    snapshot
        .nodes()
        .iter()
        .map(|capacity| {
            let value = capacity.node.labels.get(&rule.topology)?;
            let next = u32::try_from(known.len()).unwrap_or(u32::MAX);
            Some(*known.entry(value).or_insert(next))
        })
        .collect()
}

/// Whether pods on the node count in a spread of a pod that selects nodes like `by`, as far as labels
/// of its spreads leave it open.
fn counts_for(spread: &Spread, by: &PodShape, capacity: &NodeCapacity) -> bool {
    let node = &capacity.node;
    let is_kept_off = || match capacity.eligibility {
        // As it is, or as it is thought to be when it is asked whether a gang could ever fit.
        Eligibility::Eligible => untolerated(node.own_taints(), &by.tolerations).is_some(),
        _ => untolerated(&node.taints, &by.tolerations).is_some(),
    };
    (spread.ignores_affinity || by.selects(node)) && !(spread.honors_taints && is_kept_off())
}
