//! The default filters of kube-scheduler on JSON objects: does this pod go onto that node?

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{quantity, value};

/// Amounts by resource, in thousandths.
pub type Resources = BTreeMap<String, i128>;

/// Why a node does not take a pod. The text is kube-scheduler's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What kube-scheduler says.
    pub text: String,
    /// Whether removing pods from the node could help.
    pub resolvable: bool,
}

impl Misfit {
    fn never(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            resolvable: false,
        }
    }
}

fn read(value: Option<&Value>) -> Resources {
    let map = value.and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(resource, amount)| Some((resource.clone(), quantity::of_value(amount)?)))
        .collect()
}

/// Adds `more` to `sum`.
pub fn add(sum: &mut Resources, more: &Resources) {
    for (resource, amount) in more {
        let slot = sum.entry(resource.clone()).or_default();
        *slot = slot.saturating_add(*amount);
    }
}

fn max(sum: &mut Resources, other: &Resources) {
    for (resource, amount) in other {
        let slot = sum.entry(resource.clone()).or_default();
        *slot = (*slot).max(*amount);
    }
}

/// What a pod needs: the sum of its containers and sidecars, or the largest init container, and one pod.
#[must_use]
pub fn requests(pod: &Value) -> Resources {
    let of = |c: &Value| read(value::at(c, &["resources", "requests"]));
    let mut sum = Resources::new();
    value::items(pod, &["spec", "containers"])
        .iter()
        .for_each(|c| add(&mut sum, &of(c)));
    let mut sidecars = Resources::new();
    let mut init = Resources::new();
    for container in value::items(pod, &["spec", "initContainers"]) {
        if value::text(container, &["restartPolicy"]) == "Always" {
            add(&mut sidecars, &of(container));
            max(&mut init, &sidecars);
        } else {
            let mut one = of(container);
            add(&mut one, &sidecars);
            max(&mut init, &one);
        }
    }
    add(&mut sum, &sidecars);
    max(&mut sum, &init);
    add(&mut sum, &read(value::at(pod, &["spec", "overhead"])));
    sum.insert("pods".into(), 1000);
    sum.retain(|_, amount| *amount != 0);
    sum
}

/// What a node gives. Without a `pods` entry it takes 110.
#[must_use]
pub fn allocatable(node: &Value) -> Resources {
    let mut all = read(value::at(node, &["status", "allocatable"]));
    all.entry("pods".into()).or_insert(110_000);
    all
}

/// Host ports of a pod as (protocol, port).
#[must_use]
pub fn host_ports(pod: &Value) -> Vec<(String, i64)> {
    value::items(pod, &["spec", "containers"])
        .iter()
        .flat_map(|c| value::items(c, &["ports"]))
        .filter_map(|p| {
            let port = value::int(p, &["hostPort"]).filter(|n| *n > 0)?;
            let protocol = value::text(p, &["protocol"]);
            Some((
                if protocol.is_empty() { "TCP" } else { protocol }.to_owned(),
                port,
            ))
        })
        .collect()
}

/// What is taken on a node.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// Amounts.
    pub resources: Resources,
    /// Host ports.
    pub ports: Vec<(String, i64)>,
}

/// Runs the filters in kube-scheduler's order and returns the first refusal.
///
/// # Errors
/// The refusal.
pub fn check(pod: &Value, node: &Value, taken: &Taken) -> Result<(), Misfit> {
    check_with(pod, &requests(pod), node, &allocatable(node), taken)
}

/// As `check`, with the amounts read before: for many nodes.
///
/// # Errors
/// The refusal.
pub fn check_with(
    pod: &Value,
    needs: &Resources,
    node: &Value,
    gives: &Resources,
    taken: &Taken,
) -> Result<(), Misfit> {
    let unschedulable = value::flag(node, &["spec", "unschedulable"]);
    if unschedulable && !is_tolerated(pod, "node.kubernetes.io/unschedulable", "", "NoSchedule") {
        return Err(Misfit::never("node(s) were unschedulable"));
    }
    let wanted = value::text(pod, &["spec", "nodeName"]);
    if !wanted.is_empty() && wanted != value::name(node) {
        return Err(Misfit::never(
            "node(s) didn't match the requested node name",
        ));
    }
    if let Some((key, v)) = untolerated(pod, node) {
        return Err(Misfit::never(format!(
            "node(s) had untolerated taint {{{key}: {v}}}"
        )));
    }
    if !matches_affinity(pod, node) {
        return Err(Misfit::never(
            "node(s) didn't match Pod's node affinity/selector",
        ));
    }
    if host_ports(pod).iter().any(|p| taken.ports.contains(p)) {
        return Err(Misfit {
            text: "node(s) didn't have free ports for the requested pod ports".into(),
            resolvable: true,
        });
    }
    check_resources(needs, gives, &taken.resources)
}

fn check_resources(needs: &Resources, gives: &Resources, used: &Resources) -> Result<(), Misfit> {
    for (resource, amount) in needs {
        let have = gives.get(resource).copied().unwrap_or(0);
        let free = have.saturating_sub(used.get(resource).copied().unwrap_or(0));
        if *amount > free {
            let text = if resource == "pods" {
                "Too many pods".to_owned()
            } else {
                format!("Insufficient {resource}")
            };
            return Err(Misfit {
                text,
                resolvable: *amount <= have,
            });
        }
    }
    Ok(())
}

fn is_tolerated(pod: &Value, key: &str, v: &str, effect: &str) -> bool {
    value::items(pod, &["spec", "tolerations"])
        .iter()
        .any(|t| tolerates(t, key, v, effect))
}

/// Key and value of the first taint of the node that keeps the pod away.
#[must_use]
pub fn untolerated<'a>(pod: &Value, node: &'a Value) -> Option<(&'a str, &'a str)> {
    value::items(node, &["spec", "taints"])
        .iter()
        .map(|taint| {
            let of = |k: &str| value::text(taint, &[k]);
            (of("key"), of("value"), of("effect"))
        })
        .find(|(key, v, effect)| {
            matches!(*effect, "NoSchedule" | "NoExecute") && !is_tolerated(pod, key, v, effect)
        })
        .map(|(key, v, _)| (key, v))
}

fn tolerates(toleration: &Value, key: &str, v: &str, effect: &str) -> bool {
    let of = |k: &str| value::text(toleration, &[k]);
    let effect_fits = of("effect").is_empty() || of("effect") == effect;
    let key_fits = of("key").is_empty() || of("key") == key;
    effect_fits
        && key_fits
        && match of("operator") {
            "Exists" => true,
            _ => !of("key").is_empty() && of("value") == v,
        }
}

/// Whether `nodeSelector` and required node affinity take the node.
#[must_use]
pub fn matches_affinity(pod: &Value, node: &Value) -> bool {
    let label = |key: &str| value::text(node, &["metadata", "labels", key]);
    let selector = value::at(pod, &["spec", "nodeSelector"]).and_then(Value::as_object);
    let labels = value::at(node, &["metadata", "labels"]);
    let has = |key: &str| labels.is_some_and(|l| l.get(key).is_some());
    if !selector
        .into_iter()
        .flatten()
        .all(|(k, v)| has(k) && Some(label(k)) == v.as_str())
    {
        return false;
    }
    let required = [
        "spec",
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ];
    let Some(required) = value::at(pod, &required) else {
        return true;
    };
    value::items(required, &["nodeSelectorTerms"])
        .iter()
        .any(|term| {
            let (expressions, fields) = (
                value::items(term, &["matchExpressions"]),
                value::items(term, &["matchFields"]),
            );
            // A term with nothing in it takes no node.
            !(expressions.is_empty() && fields.is_empty())
                && expressions.iter().all(|e| {
                    let key = value::text(e, &["key"]);
                    rule_holds(e, has(key).then(|| label(key)))
                })
                && fields
                    .iter()
                    .all(|f| rule_holds(f, Some(value::name(node))))
        })
}

pub(crate) fn rule_holds(rule: &Value, is: Option<&str>) -> bool {
    let values: Vec<&str> = value::items(rule, &["values"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let number = |t: Option<&str>| t.and_then(|t| t.parse::<i64>().ok());
    match value::text(rule, &["operator"]) {
        "In" => is.is_some_and(|v| values.contains(&v)),
        "NotIn" => is.is_none_or(|v| !values.contains(&v)),
        "Exists" => is.is_some(),
        "DoesNotExist" => is.is_none(),
        "Gt" => number(is)
            .zip(number(values.first().copied()))
            .is_some_and(|(a, b)| a > b),
        "Lt" => number(is)
            .zip(number(values.first().copied()))
            .is_some_and(|(a, b)| a < b),
        _ => false,
    }
}

/// The nodes that required `matchFields` name, when every term names one: only these are looked at.
#[must_use]
pub fn named_nodes(pod: &Value) -> Option<Vec<String>> {
    let required = [
        "spec",
        "affinity",
        "nodeAffinity",
        "requiredDuringSchedulingIgnoredDuringExecution",
    ];
    let terms = value::items(value::at(pod, &required)?, &["nodeSelectorTerms"]);
    let mut names = Vec::new();
    for term in terms {
        let named = value::items(term, &["matchFields"]).iter().find(|f| {
            value::text(f, &["key"]) == "metadata.name" && value::text(f, &["operator"]) == "In"
        })?;
        names.extend(
            value::items(named, &["values"])
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned)),
        );
    }
    names.sort();
    names.dedup();
    (!terms.is_empty()).then_some(names)
}

/// Least-allocated score from 0 to 100 over cpu and memory, after placing the pod.
#[must_use]
pub fn score(needs: &Resources, gives: &Resources, taken: &Taken) -> i128 {
    let mut total: i128 = 0;
    for resource in ["cpu", "memory"] {
        let have = gives.get(resource).copied().unwrap_or(0);
        let used = taken.resources.get(resource).copied().unwrap_or(0);
        let used = used.saturating_add(needs.get(resource).copied().unwrap_or(0));
        if have > 0 && used <= have {
            let free = have.saturating_sub(used).saturating_mul(100);
            total = total.saturating_add(free.checked_div(have).unwrap_or(0));
        }
    }
    total / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(extra: Value) -> Value {
        let mut node = json!({"metadata": {"name": "n1", "labels": {"pool": "a"}}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "8", "pods": "10"}}});
        crate::api::patch::merge(&mut node, &extra);
        node
    }

    fn pod(extra: Value) -> Value {
        let mut pod = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "nvidia.com/gpu": "8"}}}]}});
        crate::api::patch::merge(&mut pod, &extra);
        pod
    }

    #[test]
    fn refusals_have_the_texts_of_kube_scheduler() {
        let free = Taken::default();
        assert_eq!(check(&pod(json!({})), &node(json!({})), &free), Ok(()));
        let mut used = Taken::default();
        used.resources.insert("nvidia.com/gpu".into(), 1000);
        let misfit = check(&pod(json!({})), &node(json!({})), &used).unwrap_err();
        assert_eq!(
            (misfit.text.as_str(), misfit.resolvable),
            ("Insufficient nvidia.com/gpu", true)
        );
        let cases = [
            (
                json!({}),
                json!({"spec": {"unschedulable": true}}),
                "node(s) were unschedulable",
            ),
            (
                json!({}),
                json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}),
                "node(s) had untolerated taint {k: v}",
            ),
            (
                json!({"spec": {"nodeSelector": {"pool": "b"}}}),
                json!({}),
                "node(s) didn't match Pod's node affinity/selector",
            ),
        ];
        for (p, n, text) in cases {
            assert_eq!(check(&pod(p), &node(n), &free).unwrap_err().text, text);
        }
        let tainted =
            node(json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}));
        for toleration in [
            json!({"operator": "Exists"}),
            json!({"key": "k", "value": "v"}),
            json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}),
        ] {
            assert_eq!(
                check(
                    &pod(json!({"spec": {"tolerations": [toleration]}})),
                    &tainted,
                    &free
                ),
                Ok(())
            );
        }
    }

    #[test]
    fn pins_by_match_fields_name_their_nodes() {
        let pinned = pod(
            json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}], "matchExpressions": [{"key": "pool", "operator": "In", "values": ["b"]}]}]}}}}}),
        );
        assert_eq!(named_nodes(&pinned), Some(vec!["n1".into(), "n2".into()]));
        assert!(!matches_affinity(&pinned, &node(json!({}))));
        assert!(matches_affinity(
            &pinned,
            &node(json!({"metadata": {"name": "n2"}}))
        ));
    }

    #[test]
    fn init_containers_and_sidecars_count_as_kubernetes_counts_them() {
        let pod = pod(
            json!({"spec": {"initContainers": [{"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "3"}}}]}}),
        );
        assert_eq!(requests(&pod).get("cpu"), Some(&4000));
    }
}
