//! The filters of kube-scheduler that look at other pods: PodTopologySpread and InterPodAffinity.
//!
//! What they need of the whole cluster is counted once for each attempt at a pod, as their PreFilter
//! does; each node is then a few look-ups.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::fit::{self, Misfit};
use crate::value;

/// A place in the topology: label of nodes, and its value.
type Domain = (String, String);

/// A node, and the pods on it, those assumed included.
pub(crate) struct Populated<'a> {
    pub(crate) node: &'a Value,
    pub(crate) pods: Vec<&'a Value>,
}

/// What the cluster's pods allow to one pod.
#[derive(Debug, Default)]
pub(crate) struct Between {
    spread: Vec<Spread>,
    /// Where pods stand that do not want this one beside them.
    unwelcome: BTreeSet<Domain>,
    /// Where pods stand that this one does not want beside it.
    avoided: BTreeSet<Domain>,
    /// For each term of affinity its label, and where pods stand that all terms speak of.
    sought: Vec<(String, BTreeSet<Domain>)>,
    /// No such pod stands anywhere, and the terms speak of this pod itself: it may be the first.
    may_be_first: bool,
}

#[derive(Debug)]
struct Spread {
    key: String,
    counts: BTreeMap<String, i64>,
    skew_max: i64,
    fewest: i64,
    itself: i64,
}

/// Whether a pod asks for something about other pods that must hold.
pub(crate) fn asks(pod: &Value) -> bool {
    refuses_others(pod) || !terms(pod, "podAffinity").is_empty() || spreads(pod).next().is_some()
}

/// Whether a pod refuses others beside it, also those that come later.
pub(crate) fn refuses_others(pod: &Value) -> bool {
    !terms(pod, "podAntiAffinity").is_empty()
}

fn terms<'a>(pod: &'a Value, kind: &str) -> &'a [Value] {
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    value::items(pod, &["spec", "affinity", kind, required])
}

fn spreads(pod: &Value) -> impl Iterator<Item = &Value> {
    value::items(pod, &["spec", "topologySpreadConstraints"])
        .iter()
        .filter(|spread| value::text(spread, &["whenUnsatisfiable"]) == "DoNotSchedule")
}

fn domain(node: &Value, key: &str) -> Option<Domain> {
    let label = value::at(node, &["metadata", "labels"])?.get(key)?;
    Some((key.to_owned(), label.as_str()?.to_owned()))
}

fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    value::at(object, &["metadata", "labels"])?
        .get(key)?
        .as_str()
}

fn selects(selector: Option<&Value>, pod: &Value) -> bool {
    let Some(selector) = selector.filter(|selector| !selector.is_null()) else {
        return false;
    };
    let equal = value::at(selector, &["matchLabels"]).and_then(Value::as_object);
    equal
        .into_iter()
        .flatten()
        .all(|(key, wanted)| label(pod, key) == wanted.as_str())
        && value::items(selector, &["matchExpressions"])
            .iter()
            .all(|rule| fit::rule_holds(rule, label(pod, value::text(rule, &["key"]))))
}

/// Whether two pods have the same values of the labels that `term` lists at `list`.
fn alike(term: &Value, list: &str, owner: &Value, pod: &Value, wanted: bool) -> bool {
    value::items(term, &[list])
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|key| Some((key, label(owner, key)?)))
        .all(|(key, own)| (label(pod, key) == Some(own)) == wanted)
}

/// Whether a term of `owner` speaks of `pod`. Of the labels of a namespace only its name is known.
fn speaks_of(term: &Value, owner: &Value, pod: &Value) -> bool {
    let there = value::namespace(pod);
    let listed = value::items(term, &["namespaces"]);
    let named = listed.iter().any(|name| name == there);
    let namespace = match value::at(term, &["namespaceSelector"]).filter(|s| !s.is_null()) {
        None if listed.is_empty() => there == value::namespace(owner),
        None => named,
        Some(selector) => {
            let labels =
                serde_json::json!({"metadata": {"labels": {"kubernetes.io/metadata.name": there}}});
            named || selects(Some(selector), &labels)
        }
    };
    namespace
        && selects(value::at(term, &["labelSelector"]), pod)
        && alike(term, "matchLabelKeys", owner, pod, true)
        && alike(term, "mismatchLabelKeys", owner, pod, false)
}

impl Between {
    /// Counts for `pod`, on these nodes.
    pub(crate) fn new(pod: &Value, nodes: &[Populated]) -> Self {
        let key = |term: &Value| value::text(term, &["topologyKey"]).to_owned();
        let mut found = Self {
            spread: spreads(pod)
                .map(|spread| Spread::new(spread, pod, nodes))
                .collect(),
            sought: terms(pod, "podAffinity")
                .iter()
                .map(|term| (key(term), BTreeSet::new()))
                .collect(),
            ..Self::default()
        };
        let sought = |other: &Value| {
            let terms = terms(pod, "podAffinity");
            !terms.is_empty() && terms.iter().all(|term| speaks_of(term, pod, other))
        };
        let mut anywhere = false;
        for Populated { node, pods } in nodes {
            for other in pods {
                for term in terms(other, "podAntiAffinity") {
                    if speaks_of(term, other, pod) {
                        found.unwelcome.extend(domain(node, &key(term)));
                    }
                }
                for term in terms(pod, "podAntiAffinity") {
                    if speaks_of(term, pod, other) {
                        found.avoided.extend(domain(node, &key(term)));
                    }
                }
                if sought(other) {
                    for (key, domains) in &mut found.sought {
                        let domain = domain(node, key);
                        anywhere |= domain.is_some();
                        domains.extend(domain);
                    }
                }
            }
        }
        found.may_be_first = !anywhere && sought(pod);
        found
    }

    /// Whether the node takes the pod, with kube-scheduler's text when it does not.
    pub(crate) fn check(&self, node: &Value) -> Result<(), Misfit> {
        let refuse = |text: &str, resolvable| {
            let text = text.to_owned();
            Err(Misfit { text, resolvable })
        };
        for spread in &self.spread {
            let Some((_, here)) = domain(node, &spread.key) else {
                return refuse(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                    false,
                );
            };
            let count = spread.counts.get(&here).copied().unwrap_or(0);
            if count + spread.itself - spread.fewest > spread.skew_max {
                return refuse("node(s) didn't match pod topology spread constraints", true);
            }
        }
        let found = self.sought.iter().all(|(key, domains)| {
            domain(node, key).is_some_and(|here| self.may_be_first || domains.contains(&here))
        });
        if !found {
            return refuse("node(s) didn't match pod affinity rules", false);
        }
        let stands = |domains: &BTreeSet<Domain>| {
            domains
                .iter()
                .any(|(key, value)| label(node, key) == Some(value))
        };
        if stands(&self.avoided) {
            return refuse("node(s) didn't match pod anti-affinity rules", true);
        }
        if stands(&self.unwelcome) {
            return refuse(
                "node(s) didn't satisfy existing pods anti-affinity rules",
                true,
            );
        }
        Ok(())
    }
}

impl Spread {
    fn new(spread: &Value, pod: &Value, nodes: &[Populated]) -> Self {
        let key = value::text(spread, &["topologyKey"]).to_owned();
        let counts_pod = |other: &Value| {
            value::namespace(other) == value::namespace(pod)
                && selects(value::at(spread, &["labelSelector"]), other)
                && alike(spread, "matchLabelKeys", pod, other, true)
        };
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for Populated { node, pods } in nodes {
            let labelled = spreads(pod)
                .all(|spread| domain(node, value::text(spread, &["topologyKey"])).is_some());
            let selected = value::text(spread, &["nodeAffinityPolicy"]) == "Ignore"
                || fit::matches_affinity(pod, node);
            let untainted = value::text(spread, &["nodeTaintsPolicy"]) != "Honor"
                || fit::untolerated(pod, node).is_none();
            let (Some((_, here)), true) = (domain(node, &key), labelled && selected && untainted)
            else {
                continue;
            };
            let terminating =
                |other: &Value| value::at(other, &["metadata", "deletionTimestamp"]).is_some();
            let here = counts.entry(here).or_default();
            let counted = pods.iter().filter(|p| counts_pod(p) && !terminating(p));
            *here += i64::try_from(counted.count()).unwrap_or(i64::MAX);
        }
        let domains_min = value::int(spread, &["minDomains"]).unwrap_or(1);
        let domains = i64::try_from(counts.len()).unwrap_or(i64::MAX);
        let fewest = if domains < domains_min {
            0
        } else {
            counts.values().min().copied().unwrap_or(0)
        };
        Self {
            key,
            skew_max: value::int(spread, &["maxSkew"]).unwrap_or(1),
            fewest,
            itself: i64::from(counts_pod(pod)),
            counts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, zone: &str) -> Value {
        let mut labels = json!({"kubernetes.io/hostname": name});
        if !zone.is_empty() {
            value::set(&mut labels, &["zone"], zone);
        }
        json!({"metadata": {"name": name, "labels": labels}})
    }

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"namespace": "ns", "labels": {"app": "a"}}, "spec": spec})
    }

    fn term(kind: &str, key: &str) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": key, "labelSelector": {"matchLabels": {"app": "a"}}}]}}})
    }

    /// What becomes of each of three nodes, two in zone x and one in y, with these pods on them.
    fn says(pod: &Value, on: [Vec<&Value>; 3]) -> Vec<String> {
        let nodes = [node("n1", "x"), node("n2", "x"), node("n3", "y")];
        let populated: Vec<Populated> = nodes
            .iter()
            .zip(on)
            .map(|(node, pods)| Populated { node, pods })
            .collect();
        let between = Between::new(pod, &populated);
        let text = |node| match between.check(node) {
            Ok(()) => "fits".to_owned(),
            Err(misfit) => misfit.text,
        };
        nodes.iter().map(text).collect()
    }

    #[test]
    fn anti_affinity_holds_both_ways_within_its_domain() {
        let shy = pod(term("podAntiAffinity", "zone"));
        let calm = pod(json!({}));
        let refused = "node(s) didn't match pod anti-affinity rules";
        let unwelcome = "node(s) didn't satisfy existing pods anti-affinity rules";
        assert_eq!(
            says(&shy, [vec![&calm], vec![], vec![]]),
            [refused, refused, "fits"]
        );
        assert_eq!(
            says(&calm, [vec![], vec![&shy], vec![]]),
            [unwelcome, unwelcome, "fits"]
        );
        let other = json!({"metadata": {"namespace": "else", "labels": {"app": "a"}}});
        assert_eq!(says(&shy, [vec![&other], vec![], vec![]]), ["fits"; 3]);
    }

    #[test]
    fn affinity_lets_the_first_go_anywhere_and_the_others_follow() {
        let close = pod(term("podAffinity", "zone"));
        let refused = "node(s) didn't match pod affinity rules";
        assert_eq!(says(&close, [vec![], vec![], vec![]]), ["fits"; 3]);
        assert_eq!(
            says(&close, [vec![], vec![&close], vec![]]),
            ["fits", "fits", refused]
        );
        let mut stranger = close.clone();
        value::set(&mut stranger, &["metadata", "labels"], json!({"app": "b"}));
        assert_eq!(says(&stranger, [vec![], vec![], vec![]]), [refused; 3]);
    }

    #[test]
    fn spread_compares_with_the_emptiest_domain_that_the_pod_selects() {
        let spread = json!({"topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1,
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]});
        let even = pod(spread.clone());
        let refused = "node(s) didn't match pod topology spread constraints";
        assert_eq!(
            says(&even, [vec![&even], vec![], vec![]]),
            [refused, refused, "fits"]
        );
        let mut confined = pod(spread);
        value::set(
            &mut confined,
            &["spec", "nodeSelector"],
            json!({"zone": "x"}),
        );
        assert_eq!(
            says(&confined, [vec![&even], vec![], vec![]]),
            ["fits"; 3],
            "zone y is none of its domains; that it does not select it is another filter's matter"
        );
    }
}
