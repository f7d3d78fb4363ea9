//! What of a pod decides where it may stand.

use std::collections::BTreeSet;
use std::sync::Arc;

use muster_core::node::{
    HostPort, Requirement, SelectorOperator, SelectorTerm, TaintEffect, Toleration,
    TolerationOperator,
};
use muster_core::pod::PodShape;

use super::between::{self, Whose};
use super::{Problem, requests};
use crate::lite::{
    LiteContainer, LitePodSpec, LitePort, LiteRequirement, LiteSelector, LiteTerm, LiteToleration,
};

/// The shape of a pod with this spec, and the first amount in it that cannot be read. With such an
/// amount the shape fits nowhere.
pub(super) fn of_spec(spec: &LitePodSpec, whose: Whose) -> (PodShape, Option<Problem>) {
    let (requests, problem) = requests::of_spec(spec);
    let shape = PodShape {
        requests,
        share: None,
        node_selector: spec
            .node_selector
            .iter()
            .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
            .collect(),
        required_affinity: required(spec)
            .map(|selector| selector.node_selector_terms.iter().map(term).collect()),
        tolerations: spec.tolerations.iter().filter_map(toleration).collect(),
        host_ports: host_ports(spec),
        between_pods: between::of_spec(spec, whose),
    };
    (shape, problem)
}

/// Required node affinity of a spec.
pub(super) fn required(spec: &LitePodSpec) -> Option<&LiteSelector> {
    spec.affinity
        .as_ref()?
        .node_affinity
        .as_ref()?
        .required
        .as_ref()
}

fn term(term: &LiteTerm) -> SelectorTerm {
    SelectorTerm {
        expressions: term.match_expressions.iter().map(requirement).collect(),
        fields: term.match_fields.iter().map(requirement).collect(),
    }
}

/// A requirement that cannot be understood holds nowhere: `In` with no values.
pub(super) fn requirement(requirement: &LiteRequirement) -> Requirement {
    let values = || -> BTreeSet<Arc<str>> {
        requirement
            .values
            .iter()
            .map(|value| Arc::from(value.as_str()))
            .collect()
    };
    let bound = || match requirement.values.as_slice() {
        [only] => only.parse::<i64>().ok(),
        _ => None,
    };
    let operator = match requirement.operator.as_str() {
        "In" => Some(SelectorOperator::In(values())),
        "NotIn" => Some(SelectorOperator::NotIn(values())),
        "Exists" => Some(SelectorOperator::Exists),
        "DoesNotExist" => Some(SelectorOperator::DoesNotExist),
        "Gt" => bound().map(SelectorOperator::Gt),
        "Lt" => bound().map(SelectorOperator::Lt),
        _ => None,
    };
    Requirement {
        key: Arc::from(requirement.key.as_str()),
        operator: operator.unwrap_or_else(|| SelectorOperator::In(BTreeSet::new())),
    }
}

/// The effect with this name.
pub(super) fn effect(text: &str) -> Option<TaintEffect> {
    match text {
        "NoSchedule" => Some(TaintEffect::NoSchedule),
        "PreferNoSchedule" => Some(TaintEffect::PreferNoSchedule),
        "NoExecute" => Some(TaintEffect::NoExecute),
        _ => None,
    }
}

/// A toleration; one that cannot be understood tolerates nothing and is left out.
fn toleration(toleration: &LiteToleration) -> Option<Toleration> {
    let key = toleration.key.as_deref().filter(|key| !key.is_empty());
    let operator = match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => TolerationOperator::Exists,
        "Equal" | "" if key.is_some() => {
            TolerationOperator::Equal(Arc::from(toleration.value.as_deref().unwrap_or_default()))
        }
        _ => return None,
    };
    let effect = match toleration.effect.as_deref().unwrap_or_default() {
        "" => None,
        name => Some(effect(name)?),
    };
    Some(Toleration {
        key: key.map(Arc::from),
        operator,
        effect,
    })
}

/// Ports of the node that the containers and sidecars take.
fn host_ports(spec: &LitePodSpec) -> BTreeSet<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .filter(|container| requests::is_sidecar(container));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container: &LiteContainer| &container.ports)
        .filter_map(|port| host_port(port, spec.host_network))
        .collect()
}

fn host_port(port: &LitePort, host_network: bool) -> Option<HostPort> {
    let number = match port.host_port {
        Some(number) if number != 0 => number,
        _ if host_network => port.container_port,
        _ => return None,
    };
    let or = |text: &Option<String>, default: &str| {
        Arc::from(
            text.as_deref()
                .filter(|text| !text.is_empty())
                .unwrap_or(default),
        )
    };
    Some(HostPort {
        protocol: or(&port.protocol, "TCP"),
        address: or(&port.host_ip, "0.0.0.0"),
        port: u16::try_from(number).ok().filter(|number| *number > 0)?,
    })
}
