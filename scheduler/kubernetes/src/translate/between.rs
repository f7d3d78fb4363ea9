//! Rules between pods: which of them speak of pods in the pod's own namespace, and what they ask for.
//!
//! A rule reads the same on a template and on a pod that was made from it: the API server writes
//! `matchLabelKeys` into the selector of a pod, and here they are read as if it had done so already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_core::interpod::{InterPodKind, InterPodRule, Labels, Spread};
use muster_core::node::{Requirement, SelectorOperator};

use super::shape;
use crate::lite::{LiteLabelSelector, LitePodAffinity, LitePodSpec, LitePodTerm, LiteSpread};

/// Label that every namespace has: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The pod itself, as far as its rules look at it.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub namespace: &'a str,
    pub labels: &'a Labels,
}

/// Labels as core values.
pub(super) fn labels(labels: Option<&BTreeMap<String, String>>) -> Labels {
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str())))
        .collect()
}

/// The rules of a pod with this spec.
pub(super) fn of_spec(spec: &LitePodSpec, whose: Whose) -> BTreeSet<InterPodRule> {
    let affinity = spec.affinity.as_ref();
    let terms = |part: Option<&LitePodAffinity>, kind: InterPodKind| -> Vec<InterPodRule> {
        part.into_iter()
            .flat_map(|part| &part.required)
            .filter_map(|term| of_term(term, &kind, whose))
            .collect()
    };
    let mut rules: BTreeSet<InterPodRule> = BTreeSet::new();
    rules.extend(terms(
        affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref()),
        InterPodKind::AntiAffinity,
    ));
    rules.extend(terms(
        affinity.and_then(|affinity| affinity.pod_affinity.as_ref()),
        InterPodKind::Affinity,
    ));
    rules.extend(
        spec.topology_spread_constraints
            .iter()
            .filter(|spread| spread.when_unsatisfiable == "DoNotSchedule")
            .filter(|spread| !spread.topology_key.is_empty())
            .map(|spread| of_spread(spread, whose)),
    );
    rules
}

/// `None` for a term that speaks of no pod in the pod's own namespace, as far as is known: of the
/// labels of a namespace only its name is.
fn of_term(term: &LitePodTerm, kind: &InterPodKind, whose: Whose) -> Option<InterPodRule> {
    let named = term.namespaces.iter().any(|name| name == whose.namespace);
    let own = match &term.namespace_selector {
        None if term.namespaces.is_empty() => true,
        None => named,
        Some(namespaces) => {
            let labels = BTreeMap::from([(NAMESPACE_NAME.into(), whose.namespace.into())]);
            let rule = InterPodRule {
                kind: InterPodKind::Affinity,
                topology: Arc::from(""),
                selector: selector(namespaces),
            };
            named || rule.matches(&labels)
        }
    };
    if !own || term.topology_key.is_empty() {
        return None;
    }
    let mut selector = selector(term.label_selector.as_ref()?);
    selector.extend(like(&term.match_label_keys, whose, SelectorOperator::In));
    selector.extend(like(
        &term.mismatch_label_keys,
        whose,
        SelectorOperator::NotIn,
    ));
    Some(InterPodRule {
        kind: kind.clone(),
        topology: Arc::from(term.topology_key.as_str()),
        selector,
    })
}

fn of_spread(spread: &LiteSpread, whose: Whose) -> InterPodRule {
    let selector = match &spread.label_selector {
        Some(labels) => {
            let mut selector = selector(labels);
            selector.extend(like(&spread.match_label_keys, whose, SelectorOperator::In));
            selector
        }
        None => BTreeSet::from([nothing()]),
    };
    let at_least_one = |number: i64| u32::try_from(number.max(1)).unwrap_or(u32::MAX);
    InterPodRule {
        kind: InterPodKind::Spread(Spread {
            skew_max: at_least_one(spread.max_skew),
            domains_min: at_least_one(spread.min_domains.unwrap_or(1)),
            ignores_affinity: spread.node_affinity_policy.as_deref() == Some("Ignore"),
            honors_taints: spread.node_taints_policy.as_deref() == Some("Honor"),
        }),
        topology: Arc::from(spread.topology_key.as_str()),
        selector,
    }
}

fn selector(selector: &LiteLabelSelector) -> BTreeSet<Requirement> {
    let equal = selector
        .match_labels
        .iter()
        .map(|(key, value)| Requirement {
            key: Arc::from(key.as_str()),
            operator: SelectorOperator::In(BTreeSet::from([Arc::from(value.as_str())])),
        });
    equal
        .chain(selector.match_expressions.iter().map(shape::requirement))
        .collect()
}

/// The requirement that no labels meet.
fn nothing() -> Requirement {
    Requirement {
        key: Arc::from(""),
        operator: SelectorOperator::In(BTreeSet::new()),
    }
}

/// A requirement for each of `keys` that the pod has, with the pod's own value.
fn like<'a>(
    keys: &'a [String],
    whose: Whose<'a>,
    operator: fn(BTreeSet<Arc<str>>) -> SelectorOperator,
) -> impl Iterator<Item = Requirement> + 'a {
    keys.iter().filter_map(move |key| {
        let (key, value) = whose.labels.get_key_value(key.as_str())?;
        Some(Requirement {
            key: Arc::clone(key),
            operator: operator(BTreeSet::from([Arc::clone(value)])),
        })
    })
}
