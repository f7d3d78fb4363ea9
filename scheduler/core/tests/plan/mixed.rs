//! The planner against trying everything where all kinds of constraints come together: GPUs, cores, taints,
//! selectors, cordons, a level of the network, and rules between members. What may be where is worked out here from
//! what kube-scheduler does, not by anything of the planner.

use std::collections::{BTreeMap, BTreeSet};

use muster_core::plan::{Placement, plan};
use muster_core::reason::Unplaceable;

use super::{Rng, config, read};

struct SmallNode {
    gpus: u64,
    cores: u64,
    zone: Option<u64>,
    rack: Option<u64>,
    in_pool: bool,
    infra: bool,
    cordoned: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Apart,
    Together,
    /// `maxSkew` and `minDomains`.
    Spread(usize, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Host,
    Zone,
}

/// A rule about all members with this `app`.
#[derive(Clone, PartialEq, Eq)]
struct Rule {
    kind: Kind,
    by: By,
    of: String,
}

struct SmallRole {
    count: usize,
    gpus: u64,
    cores: u64,
    app: String,
    in_pool: bool,
    infra: bool,
    rules: Vec<Rule>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Free,
    Preferred,
    Required,
}

struct Case {
    nodes: Vec<SmallNode>,
    roles: Vec<SmallRole>,
    topology: Topology,
}

/// Members of each role on each node.
type Counts = Vec<Vec<usize>>;

impl Case {
    /// At most six nodes and eight members.
    fn random(rng: &mut Rng) -> Self {
        let one_in = |rng: &mut Rng, count: u64| rng.below(count) == 0;
        let nodes = (0..1 + rng.below(6))
            .map(|_| SmallNode {
                gpus: rng.below(9),
                cores: 2 + rng.below(15),
                zone: (!one_in(rng, 6)).then(|| rng.below(3)),
                rack: (!one_in(rng, 8)).then(|| rng.below(2)),
                in_pool: !one_in(rng, 4),
                infra: one_in(rng, 5),
                cordoned: one_in(rng, 8),
            })
            .collect();
        let mut left = 8;
        let mut roles: Vec<SmallRole> = Vec::new();
        for at in 0..1 + rng.below(3) {
            let count = 1 + rng.below(5);
            if count > left {
                break;
            }
            left -= count;
            roles.push(SmallRole {
                count: count as usize,
                gpus: rng.below(4),
                cores: 1 + rng.below(4),
                app: if one_in(rng, 2) {
                    "job".to_owned()
                } else {
                    format!("r{at}")
                },
                in_pool: one_in(rng, 5),
                infra: one_in(rng, 2),
                rules: Vec::new(),
            });
        }
        let apps: Vec<String> = roles.iter().map(|role| role.app.clone()).collect();
        for role in &mut roles {
            for _ in 0..rng.below(3) {
                let kind = match rng.below(4) {
                    0 => Kind::Apart,
                    1 => Kind::Together,
                    _ => Kind::Spread(1 + rng.below(2) as usize, 1 + rng.below(3) as usize),
                };
                // All in one place on one node is another matter than a rule.
                let by_zone = kind == Kind::Together || one_in(rng, 2);
                let of = &apps[rng.below(apps.len() as u64) as usize];
                let rule = Rule {
                    kind,
                    by: if by_zone { By::Zone } else { By::Host },
                    of: of.clone(),
                };
                if !role.rules.contains(&rule) {
                    role.rules.push(rule);
                }
            }
        }
        let topology = match rng.below(4) {
            0 => Topology::Required,
            1 => Topology::Preferred,
            _ => Topology::Free,
        };
        Self {
            nodes,
            roles,
            topology,
        }
    }

    fn text(&self) -> String {
        let word = |yes: bool, word: &'static str| if yes { word } else { "" };
        let label = |key: &str, value: Option<u64>| {
            value.map_or(String::new(), |value| format!("label={key}:{key}{value}"))
        };
        let mut text = String::from("levels rack\n");
        for (at, node) in self.nodes.iter().enumerate() {
            text += &format!(
                "node n{at} gpu=8 used={} cpu={} {} {} {} {} {}\n",
                8 - node.gpus,
                node.cores,
                label("zone", node.zone),
                label("rack", node.rack),
                word(node.in_pool, "label=pool:p"),
                word(node.infra, "taint=infra"),
                word(node.cordoned, "cordoned"),
            );
        }
        for (at, role) in self.roles.iter().enumerate() {
            let rules = role.rules.iter().map(|rule| {
                let by = match rule.by {
                    By::Host => "host",
                    By::Zone => "zone",
                };
                let of = &rule.of;
                match rule.kind {
                    Kind::Apart => format!(" apart={by}@{of}"),
                    Kind::Together => format!(" together={by}@{of}"),
                    Kind::Spread(skew, domains) => format!(" spread={by}@{of}:{skew}:{domains}"),
                }
            });
            text += &format!(
                "role r{at} {}x{} cpu={} app={} tolerate=gpu {} {}{}\n",
                role.count,
                role.gpus,
                role.cores,
                role.app,
                word(role.in_pool, "select=pool:p"),
                word(role.infra, "tolerate=infra"),
                rules.collect::<String>(),
            );
        }
        text += match self.topology {
            Topology::Free => "",
            Topology::Preferred => "topology preferred=rack\n",
            Topology::Required => "topology required=rack\n",
        };
        text
    }

    fn domain(&self, by: By, node: usize) -> Option<u64> {
        match by {
            By::Host => Some(node as u64),
            By::Zone => self.nodes[node].zone,
        }
    }

    fn may_stand(&self, role: usize, node: usize) -> bool {
        let (role, node) = (&self.roles[role], &self.nodes[node]);
        !node.cordoned && (role.infra || !node.infra) && (!role.in_pool || node.in_pool)
    }

    /// Whether the node carries what is on it.
    fn carries(&self, node: usize, counts: &Counts) -> bool {
        let sum = |each: fn(&SmallRole) -> u64| -> u64 {
            let roles = self.roles.iter().zip(counts);
            roles
                .map(|(role, counts)| each(role) * counts[node] as u64)
                .sum()
        };
        sum(|role| role.gpus) <= self.nodes[node].gpus
            && sum(|role| role.cores) <= self.nodes[node].cores
    }

    /// Nodes that a spread of the role counts: those with the labels of all its spreads that it selects.
    fn counted(&self, role: usize) -> Vec<usize> {
        let role = &self.roles[role];
        let spreads = role
            .rules
            .iter()
            .filter(|rule| matches!(rule.kind, Kind::Spread(..)));
        let keys: Vec<By> = spreads.map(|rule| rule.by).collect();
        (0..self.nodes.len())
            .filter(|node| keys.iter().all(|by| self.domain(*by, *node).is_some()))
            .filter(|node| !role.in_pool || self.nodes[*node].in_pool)
            .collect()
    }

    /// Members with this `app` on these nodes, by domain.
    fn by_domain(
        &self,
        of: &str,
        by: By,
        nodes: impl Iterator<Item = usize>,
        counts: &Counts,
    ) -> BTreeMap<Option<u64>, usize> {
        let mut found = BTreeMap::new();
        for node in nodes {
            let roles = self
                .roles
                .iter()
                .zip(counts)
                .filter(|(role, _)| role.app == of);
            let here: usize = roles.map(|(_, counts)| counts[node]).sum();
            *found.entry(self.domain(by, node)).or_insert(0) += here;
        }
        found
    }

    /// How far the domain of the node is above the one with the fewest, by a spread of the role; not at all where
    /// the node is none that counts.
    fn skew(
        &self,
        role: usize,
        rule: &Rule,
        domains_min: usize,
        node: usize,
        counts: &Counts,
    ) -> Option<usize> {
        let counted = self.counted(role);
        if !counted.contains(&node) {
            return None;
        }
        let by_domain = self.by_domain(&rule.of, rule.by, counted.into_iter(), counts);
        let fewest = match by_domain.len() < domains_min {
            true => 0,
            false => by_domain.values().copied().min().unwrap_or(0),
        };
        Some(by_domain[&self.domain(rule.by, node)] - fewest)
    }

    /// Whether some member carries the affinity and is one of those that it speaks of. Such a rule is to hold in
    /// whatever order members come, so whoever has to do with it is in one domain.
    fn is_mutual(&self, rule: &Rule) -> bool {
        let mut roles = self.roles.iter();
        roles.any(|role| role.rules.contains(rule) && role.app == rule.of)
    }

    /// Whether kube-scheduler takes a member of the role on the node, after those that are there.
    fn accepts(&self, role: usize, node: usize, counts: &Counts) -> bool {
        let all = || 0..self.nodes.len();
        let own = &self.roles[role];
        let is_kept_off = self.roles.iter().zip(counts).any(|(other, counts)| {
            other.rules.iter().any(|rule| {
                let domain = self.domain(rule.by, node).filter(|_| rule.of == own.app);
                rule.kind == Kind::Apart
                    && domain.is_some()
                    && all().any(|at| counts[at] > 0 && self.domain(rule.by, at) == domain)
            })
        });
        !is_kept_off
            && own.rules.iter().all(|rule| {
                let domain = self.domain(rule.by, node);
                match rule.kind {
                    Kind::Apart => {
                        let there = self.by_domain(&rule.of, rule.by, all(), counts);
                        domain.is_none() || there[&domain] == 0
                    }
                    Kind::Together => {
                        let there = self.by_domain(&rule.of, rule.by, all(), counts);
                        let anywhere = there.iter().any(|(domain, n)| domain.is_some() && *n > 0);
                        domain.is_some() && (there[&domain] > 0 || !anywhere && rule.of == own.app)
                    }
                    Kind::Spread(skew_max, domains_min) => {
                        let skew = self.skew(role, rule, domains_min, node, counts);
                        let itself = usize::from(rule.of == own.app);
                        skew.is_some_and(|skew| skew + itself <= skew_max)
                    }
                }
            })
    }

    /// Whether everybody has what he asks for, whoever came last.
    fn is_kept(&self, counts: &Counts) -> bool {
        let on = |role: usize| (0..self.nodes.len()).filter(move |node| counts[role][*node] > 0);
        let holds = |role: usize, rule: &Rule| match rule.kind {
            Kind::Apart => true,
            Kind::Together if self.is_mutual(rule) => {
                let roles = 0..self.roles.len();
                let concerned = roles.filter(|other| {
                    let other = &self.roles[*other];
                    other.app == rule.of || other.rules.contains(rule)
                });
                let domains: BTreeSet<_> = concerned
                    .flat_map(on)
                    .map(|node| self.domain(rule.by, node))
                    .collect();
                domains.len() == 1 && !domains.contains(&None)
            }
            Kind::Together => true,
            Kind::Spread(skew_max, domains_min) => on(role).all(|node| {
                let skew = self.skew(role, rule, domains_min, node, counts);
                skew.is_some_and(|skew| skew <= skew_max)
            }),
        };
        let is_in_one_rack = || {
            let used = (0..self.roles.len()).flat_map(on);
            let racks: BTreeSet<_> = used.map(|node| self.nodes[node].rack).collect();
            racks.len() == 1 && !racks.contains(&None)
        };
        (self.topology != Topology::Required || is_in_one_rack())
            && (0..self.roles.len())
                .all(|role| self.roles[role].rules.iter().all(|rule| holds(role, rule)))
    }

    /// Whether all members find a place, with at most so many of each role on each node.
    fn fits(
        &self,
        most: &dyn Fn(usize, usize) -> usize,
        counts: &mut Counts,
        seen: &mut BTreeSet<Counts>,
    ) -> bool {
        let left: Vec<usize> = self
            .roles
            .iter()
            .zip(&*counts)
            .map(|(role, counts)| role.count - counts.iter().sum::<usize>())
            .collect();
        if left.iter().all(|left| *left == 0) {
            return self.is_kept(counts);
        }
        if !seen.insert(counts.clone()) {
            return false;
        }
        for role in (0..left.len()).filter(|role| left[*role] > 0) {
            for node in 0..self.nodes.len() {
                if counts[role][node] >= most(role, node)
                    || !self.may_stand(role, node)
                    || !self.accepts(role, node, counts)
                {
                    continue;
                }
                counts[role][node] += 1;
                let found = self.carries(node, counts) && self.fits(most, counts, seen);
                counts[role][node] -= 1;
                if found {
                    return true;
                }
            }
        }
        false
    }

    fn nobody(&self) -> Counts {
        vec![vec![0; self.nodes.len()]; self.roles.len()]
    }

    /// Whether there is a place, by trying everything.
    fn is_possible(&self) -> bool {
        let racks: BTreeSet<Option<u64>> = match self.topology {
            Topology::Required => self.nodes.iter().map(|node| node.rack).collect(),
            Topology::Free | Topology::Preferred => [None].into(),
        };
        racks.into_iter().any(|rack| {
            let most = |_: usize, node: usize| {
                let may = self.topology != Topology::Required || self.nodes[node].rack == rack;
                if may { usize::MAX } else { 0 }
            };
            self.fits(&most, &mut self.nobody(), &mut BTreeSet::new())
        })
    }

    /// Every member has one place, where kube-scheduler takes it in some order, and all have what they ask for.
    fn assert_valid(&self, found: &Placement) {
        let mut counts = self.nobody();
        let mut seats = BTreeSet::new();
        for member in &found.members {
            let role: usize = member.role.as_str()[1..].parse().unwrap();
            let node: usize = member.node.as_str()[1..].parse().unwrap();
            assert!((member.index as usize) < self.roles[role].count);
            assert!(seats.insert((role, member.index)), "{} twice", member.role);
            assert_eq!(member.devices.len() as u64, self.roles[role].gpus);
            counts[role][node] += 1;
        }
        let members: usize = self.roles.iter().map(|role| role.count).sum();
        assert_eq!(seats.len(), members);
        let most = |role: usize, node: usize| counts[role][node];
        let is_taken = self.fits(&most, &mut self.nobody(), &mut BTreeSet::new());
        assert!(is_taken, "{}\n{counts:?} is not allowed", self.text());
    }
}

#[test]
fn gangs_with_everything_at_once_are_placed_exactly_when_they_can_be() {
    let mut rng = Rng(31);
    let (mut placed, mut ruled, mut gave_up) = (0u32, 0u32, 0u32);
    for _ in 0..CASES {
        let case = Case::random(&mut rng);
        let text = case.text();
        let (snapshot, gang) = read(&text);
        let possible = case.is_possible();
        match plan(&snapshot, &gang, &config(&text)) {
            Ok(found) => {
                case.assert_valid(&found);
                assert!(possible, "{text}cannot fit and is placed");
                placed += 1;
                ruled += u32::from(case.roles.iter().any(|role| !role.rules.is_empty()));
            }
            Err(Unplaceable::TooComplex { .. }) => gave_up += u32::from(possible),
            Err(why) => assert!(!possible, "{text}fits, and the answer is: {why}"),
        }
    }
    println!(
        "{placed} of {CASES} placed, {ruled} of these by rules; {gave_up} that fit were given up"
    );
    assert!(
        ruled > CASES / 8,
        "only {ruled} of {CASES} were placed by rules"
    );
    assert!(
        gave_up * 1000 <= CASES,
        "{gave_up} of {CASES} were given up"
    );
}

const CASES: u32 = 10_000;
