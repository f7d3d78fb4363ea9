//! What pods ask for, as the file has it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::ids::ResourceName;
use muster_core::interpod as rules;
use muster_core::node;
use muster_core::pod;
use muster_core::resources as core;
use muster_core::snapshot;
use serde::{Deserialize, Serialize};

use super::{Text, Words, is_default, text, texts, word, words};
use crate::error::Error;

/// Amounts of resources.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resources {
    milli_cpu: u64,
    memory_bytes: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    ephemeral_bytes: u64,
    pods: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    extended: BTreeMap<String, u64>,
}

impl Resources {
    pub fn of(resources: &core::Resources) -> Self {
        let core::Resources {
            milli_cpu,
            memory_bytes,
            ephemeral_bytes,
            pods,
            extended,
        } = resources;
        let extended = extended.iter();
        Self {
            milli_cpu: *milli_cpu,
            memory_bytes: *memory_bytes,
            ephemeral_bytes: *ephemeral_bytes,
            pods: *pods,
            extended: extended
                .map(|(name, amount)| (name.as_str().to_owned(), *amount))
                .collect(),
        }
    }

    pub fn read(self, path: &str) -> Result<core::Resources, Error> {
        let mut extended = BTreeMap::new();
        for (name, amount) in self.extended {
            if amount == 0 {
                let path = format!("{path}.extended[{name}]");
                return Err(Error::field(path, 0, "must be left out or at least 1"));
            }
            extended.insert(ResourceName::from(name), amount);
        }
        Ok(core::Resources {
            milli_cpu: self.milli_cpu,
            memory_bytes: self.memory_bytes,
            ephemeral_bytes: self.ephemeral_bytes,
            pods: self.pods,
            extended,
        })
    }
}

/// What of a pod decides where it may stand.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shape {
    requests: Resources,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<Share>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    node_selector: Words,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    required_affinity: Option<Vec<Term>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tolerations: Vec<Toleration>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    host_ports: Vec<HostPort>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    between_pods: Vec<Rule>,
}

impl Shape {
    pub fn of(shape: &pod::PodShape) -> Self {
        let pod::PodShape {
            requests,
            share,
            node_selector,
            required_affinity,
            tolerations,
            host_ports,
            between_pods,
        } = shape;
        let terms = |terms: &Vec<node::SelectorTerm>| terms.iter().map(Term::of).collect();
        Self {
            requests: Resources::of(requests),
            share: share.as_ref().map(Share::of),
            node_selector: words(node_selector),
            required_affinity: required_affinity.as_ref().map(terms),
            tolerations: tolerations.iter().map(Toleration::of).collect(),
            host_ports: host_ports.iter().map(HostPort::of).collect(),
            between_pods: between_pods.iter().map(Rule::of).collect(),
        }
    }

    pub fn read(self, path: &str) -> Result<pod::PodShape, Error> {
        let rules = self.between_pods.into_iter().enumerate();
        let rules = rules.map(|(at, rule)| rule.read(&format!("{path}.between_pods[{at}]")));
        let terms = |terms: Vec<Term>| terms.into_iter().map(Term::read).collect();
        Ok(pod::PodShape {
            requests: self.requests.read(&format!("{path}.requests"))?,
            share: self
                .share
                .map(|share| share.read(&format!("{path}.share")))
                .transpose()?,
            node_selector: texts(self.node_selector),
            required_affinity: self.required_affinity.map(terms),
            tolerations: self.tolerations.into_iter().map(Toleration::read).collect(),
            host_ports: self.host_ports.into_iter().map(HostPort::read).collect(),
            between_pods: rules.collect::<Result<_, _>>()?,
        })
    }
}

/// A part of one device.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Share {
    resource: String,
    milli: u32,
}

impl Share {
    fn of(share: &pod::Share) -> Self {
        Self {
            resource: share.resource.as_str().to_owned(),
            milli: share.milli(),
        }
    }

    fn read(self, path: &str) -> Result<pod::Share, Error> {
        let share = pod::Share::new(ResourceName::from(self.resource), self.milli);
        let path = format!("{path}.milli");
        share.ok_or_else(|| Error::field(path, self.milli, "must be 1 to 999"))
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Term {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    expressions: Vec<Requirement>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    fields: Vec<Requirement>,
}

impl Term {
    fn of(term: &node::SelectorTerm) -> Self {
        let node::SelectorTerm {
            expressions,
            fields,
        } = term;
        Self {
            expressions: expressions.iter().map(Requirement::of).collect(),
            fields: fields.iter().map(Requirement::of).collect(),
        }
    }

    fn read(self) -> node::SelectorTerm {
        node::SelectorTerm {
            expressions: self
                .expressions
                .into_iter()
                .map(Requirement::read)
                .collect(),
            fields: self.fields.into_iter().map(Requirement::read).collect(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Operator {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
}

impl Requirement {
    fn of(requirement: &node::Requirement) -> Self {
        let node::Requirement { key, operator } = requirement;
        let set = |values: &BTreeSet<Text>| values.iter().map(word).collect();
        Self {
            key: word(key),
            operator: match operator {
                node::SelectorOperator::In(values) => Operator::In(set(values)),
                node::SelectorOperator::NotIn(values) => Operator::NotIn(set(values)),
                node::SelectorOperator::Exists => Operator::Exists,
                node::SelectorOperator::DoesNotExist => Operator::DoesNotExist,
                node::SelectorOperator::Gt(bound) => Operator::Gt(*bound),
                node::SelectorOperator::Lt(bound) => Operator::Lt(*bound),
            },
        }
    }

    fn read(self) -> node::Requirement {
        let set = |values: BTreeSet<String>| values.into_iter().map(text).collect();
        node::Requirement {
            key: text(self.key),
            operator: match self.operator {
                Operator::In(values) => node::SelectorOperator::In(set(values)),
                Operator::NotIn(values) => node::SelectorOperator::NotIn(set(values)),
                Operator::Exists => node::SelectorOperator::Exists,
                Operator::DoesNotExist => node::SelectorOperator::DoesNotExist,
                Operator::Gt(bound) => node::SelectorOperator::Gt(bound),
                Operator::Lt(bound) => node::SelectorOperator::Lt(bound),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Effect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

impl Effect {
    fn of(effect: node::TaintEffect) -> Self {
        match effect {
            node::TaintEffect::NoSchedule => Self::NoSchedule,
            node::TaintEffect::PreferNoSchedule => Self::PreferNoSchedule,
            node::TaintEffect::NoExecute => Self::NoExecute,
        }
    }

    fn read(self) -> node::TaintEffect {
        match self {
            Self::NoSchedule => node::TaintEffect::NoSchedule,
            Self::PreferNoSchedule => node::TaintEffect::PreferNoSchedule,
            Self::NoExecute => node::TaintEffect::NoExecute,
        }
    }
}

/// A taint of a node.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Taint {
    key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    value: String,
    effect: Effect,
}

impl Taint {
    pub fn of(taint: &node::Taint) -> Self {
        let node::Taint { key, value, effect } = taint;
        Self {
            key: word(key),
            value: word(value),
            effect: Effect::of(*effect),
        }
    }

    pub fn read(self) -> node::Taint {
        node::Taint {
            key: text(self.key),
            value: text(self.value),
            effect: self.effect.read(),
        }
    }
}

/// Without a value it tolerates every value.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Toleration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    effect: Option<Effect>,
}

impl Toleration {
    fn of(toleration: &node::Toleration) -> Self {
        let node::Toleration {
            key,
            operator,
            effect,
        } = toleration;
        Self {
            key: key.as_ref().map(word),
            value: match operator {
                node::TolerationOperator::Exists => None,
                node::TolerationOperator::Equal(value) => Some(word(value)),
            },
            effect: effect.map(Effect::of),
        }
    }

    fn read(self) -> node::Toleration {
        node::Toleration {
            key: self.key.map(text),
            operator: match self.value {
                None => node::TolerationOperator::Exists,
                Some(value) => node::TolerationOperator::Equal(text(value)),
            },
            effect: self.effect.map(Effect::read),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct HostPort {
    protocol: String,
    address: String,
    port: u16,
}

impl HostPort {
    fn of(port: &node::HostPort) -> Self {
        let node::HostPort {
            protocol,
            address,
            port,
        } = port;
        Self {
            protocol: word(protocol),
            address: word(address),
            port: *port,
        }
    }

    fn read(self) -> node::HostPort {
        node::HostPort {
            protocol: text(self.protocol),
            address: text(self.address),
            port: self.port,
        }
    }
}

/// A rule between pods.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    kind: RuleKind,
    topology: String,
    selector: Vec<Requirement>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum RuleKind {
    AntiAffinity,
    Affinity,
    Spread(Spread),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Spread {
    skew_max: u32,
    domains_min: u32,
    ignores_affinity: bool,
    honors_taints: bool,
}

impl Rule {
    fn of(rule: &rules::InterPodRule) -> Self {
        let rules::InterPodRule {
            kind,
            topology,
            selector,
        } = rule;
        Self {
            kind: match kind {
                rules::InterPodKind::AntiAffinity => RuleKind::AntiAffinity,
                rules::InterPodKind::Affinity => RuleKind::Affinity,
                rules::InterPodKind::Spread(spread) => {
                    let rules::Spread {
                        skew_max,
                        domains_min,
                        ignores_affinity,
                        honors_taints,
                    } = spread;
                    RuleKind::Spread(Spread {
                        skew_max: *skew_max,
                        domains_min: *domains_min,
                        ignores_affinity: *ignores_affinity,
                        honors_taints: *honors_taints,
                    })
                }
            },
            topology: word(topology),
            selector: selector.iter().map(Requirement::of).collect(),
        }
    }

    fn read(self, path: &str) -> Result<rules::InterPodRule, Error> {
        let kind = match self.kind {
            RuleKind::AntiAffinity => rules::InterPodKind::AntiAffinity,
            RuleKind::Affinity => rules::InterPodKind::Affinity,
            RuleKind::Spread(spread) => {
                if spread.skew_max == 0 {
                    let path = format!("{path}.kind.spread.skew_max");
                    return Err(Error::field(path, 0, "must be at least 1"));
                }
                rules::InterPodKind::Spread(rules::Spread {
                    skew_max: spread.skew_max,
                    domains_min: spread.domains_min,
                    ignores_affinity: spread.ignores_affinity,
                    honors_taints: spread.honors_taints,
                })
            }
        };
        Ok(rules::InterPodRule {
            kind,
            topology: text(self.topology),
            selector: self.selector.into_iter().map(Requirement::read).collect(),
        })
    }
}

/// What many members ask for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Usual {
    shape: usize,
    members: u64,
    weight: u32,
}

/// Largest weight of what is asked for: all that is asked of a resource together.
const WEIGHT_MAX: u32 = 1 << 20;

impl Usual {
    pub fn of(usual: &snapshot::Usual, shapes: &Shapes) -> Self {
        let snapshot::Usual {
            shape,
            members,
            weight,
        } = usual;
        Self {
            shape: shapes.position(shape),
            members: *members,
            weight: *weight,
        }
    }

    pub fn read(self, path: &str, shapes: &Shapes) -> Result<snapshot::Usual, Error> {
        if self.weight > WEIGHT_MAX {
            let path = format!("{path}.weight");
            let limit = format!("must be at most {WEIGHT_MAX}");
            return Err(Error::field(path, self.weight, limit));
        }
        Ok(snapshot::Usual {
            shape: shapes.get(&format!("{path}.shape"), self.shape)?,
            members: self.members,
            weight: self.weight,
        })
    }
}

/// The shapes of a file. Many pods share one; each stands in the file once and is named by its position.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    /// In order.
    shapes: Vec<Arc<pod::PodShape>>,
}

impl Shapes {
    pub fn new(shapes: BTreeSet<Arc<pod::PodShape>>) -> Self {
        Self {
            shapes: shapes.into_iter().collect(),
        }
    }

    pub fn read(shapes: Vec<Shape>) -> Result<Self, Error> {
        let read = |(at, shape): (usize, Shape)| shape.read(&format!("shapes[{at}]")).map(Arc::new);
        Ok(Self {
            shapes: shapes
                .into_iter()
                .enumerate()
                .map(read)
                .collect::<Result<_, _>>()?,
        })
    }

    pub fn forms(&self) -> Vec<Shape> {
        self.shapes.iter().map(|shape| Shape::of(shape)).collect()
    }

    /// Position of a shape that is there.
    pub fn position(&self, shape: &Arc<pod::PodShape>) -> usize {
        self.shapes.binary_search(shape).unwrap_or_else(|next| next)
    }

    pub fn get(&self, path: &str, position: usize) -> Result<Arc<pod::PodShape>, Error> {
        self.shapes.get(position).cloned().ok_or_else(|| {
            let limit = format!(
                "must be the position of a shape, of {} from 0",
                self.shapes.len()
            );
            Error::field(path, position, limit)
        })
    }
}
