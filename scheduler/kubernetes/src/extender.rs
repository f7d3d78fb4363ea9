//! What kube-scheduler and an extender say to each other.
//!
//! The Go types have no JSON tags: names go out in PascalCase and come in PascalCase, camelCase or
//! lower case; absent and `null` are the same, an empty list is not. Node names are borrowed from
//! the request where JSON allows it, and a refusal of thousands of nodes is written without
//! building a map.
//!
//! kube-scheduler looks at the body of a 200 only. `null` or `{}` in answer to Bind reads as
//! success, so [`BindingResult`] always spells out its error.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::ser::{Error as _, SerializeMap, SerializeSeq};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::to_raw_value;

use crate::lite::LitePod;

/// A node's name in a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Name<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// Request of the verbs filter and prioritize.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ExtenderArgs<'a> {
    /// The pod to place; absent in a request that cannot be answered.
    #[serde(rename = "Pod", alias = "pod")]
    pub pod: Option<LitePod>,
    /// Nodes by name: `nodeCacheCapable: true`.
    #[serde(borrow, rename = "NodeNames", alias = "nodeNames", alias = "nodenames")]
    pub node_names: Option<Vec<Name<'a>>>,
    /// Nodes in full: `nodeCacheCapable: false`. Only the names are read.
    #[serde(borrow, rename = "Nodes", alias = "nodes")]
    pub nodes: Option<NamedList<'a>>,
}

/// A list of objects of which only the names are read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NamedList<'a> {
    /// The objects; Go writes an empty list as `null`.
    #[serde(borrow, alias = "Items")]
    pub items: Option<Vec<NamedObject<'a>>>,
}

/// An object of which only the name is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NamedObject<'a> {
    /// `metadata`.
    #[serde(borrow)]
    pub metadata: NamedMeta<'a>,
}

/// Metadata of which only the name is read.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NamedMeta<'a> {
    /// `metadata.name`.
    #[serde(borrow)]
    pub name: Name<'a>,
}

/// How nodes were offered, which is how the answer must name them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Offer {
    /// By name.
    #[default]
    Names,
    /// As objects.
    Objects,
}

impl ExtenderArgs<'_> {
    /// How nodes were offered. A request with neither counts as names, none of them.
    pub fn offer(&self) -> Offer {
        match (&self.node_names, &self.nodes) {
            (None, Some(_)) => Offer::Objects,
            _ => Offer::Names,
        }
    }

    /// Names of the nodes offered, in the order they came.
    pub fn offered(&self) -> Vec<&str> {
        match (&self.node_names, &self.nodes) {
            (Some(names), _) => names.iter().map(|name| &*name.0).collect(),
            (None, Some(list)) => list
                .items
                .iter()
                .flatten()
                .map(|object| &*object.metadata.name.0)
                .collect(),
            (None, None) => Vec::new(),
        }
    }
}

/// Answer of the verb filter. Refused nodes are all named in `FailedAndUnresolvableNodes`, with one
/// text, so that none of them becomes a candidate for preemption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilterResult<'a> {
    /// How nodes were offered.
    pub offer: Offer,
    /// Nodes that pass; each was offered.
    pub passed: Vec<&'a str>,
    /// Nodes that do not pass.
    pub refused: Vec<&'a str>,
    /// Why not; the same bytes for the same state.
    pub why: &'a str,
    /// Not empty: the call failed and is tried again. kube-scheduler then ignores the rest.
    pub error: &'a str,
}

impl<'a> FilterResult<'a> {
    /// The offered nodes, divided by `passes`.
    pub fn divide(
        args: &'a ExtenderArgs<'_>,
        why: &'a str,
        mut passes: impl FnMut(&str) -> bool,
    ) -> Self {
        let (passed, refused) = args.offered().into_iter().partition(|name| passes(name));
        Self {
            offer: args.offer(),
            passed,
            refused,
            why,
            error: "",
        }
    }

    /// Only `node`, if it was offered; every other one refused.
    pub fn only(args: &'a ExtenderArgs<'_>, node: &str, why: &'a str) -> Self {
        Self::divide(args, why, |name| name == node)
    }

    /// Every node refused.
    pub fn nowhere(args: &'a ExtenderArgs<'_>, why: &'a str) -> Self {
        Self::divide(args, why, |_| false)
    }

    /// The call failed: try again later.
    pub fn failed(error: &'a str) -> Self {
        Self {
            error,
            ..Self::default()
        }
    }

    /// The answer as JSON, in a buffer that needs not grow: some hundred bytes for each of thousands of nodes.
    ///
    /// # Errors
    /// None that is known; what serde_json says.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let names = self.passed.iter().chain(&self.refused);
        let names: usize = names.map(|name| name.len() + AROUND_NAME).sum();
        let texts = self.refused.len() * (self.why.len() + AROUND_NAME);
        let mut bytes = Vec::with_capacity(AROUND_ANSWER + names + texts + self.error.len());
        serde_json::to_writer(&mut bytes, self)?;
        Ok(bytes)
    }
}

/// Room for quotation marks and a comma or colon, and for an escape or two.
const AROUND_NAME: usize = 4;

/// Room for the fields' names.
const AROUND_ANSWER: usize = 128;

/// Writes names as objects.
struct AsObjects<'a>(&'a [&'a str]);

impl Serialize for AsObjects<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for name in self.0 {
            let object = BTreeMap::from([("metadata", BTreeMap::from([("name", name)]))]);
            seq.serialize_element(&object)?;
        }
        seq.end()
    }
}

/// Writes one text for each name. It is the same thousands of times, and is put into JSON once.
struct SameText<'a>(&'a [&'a str], &'a str);

impl Serialize for SameText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = to_raw_value(self.1).map_err(S::Error::custom)?;
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for name in self.0 {
            map.serialize_entry(name, &text)?;
        }
        map.end()
    }
}

impl Serialize for FilterResult<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(5))?;
        let failed = !self.error.is_empty();
        match self.offer {
            _ if failed => {
                map.serialize_entry("Nodes", &())?;
                map.serialize_entry("NodeNames", &())?;
            }
            Offer::Names => {
                map.serialize_entry("Nodes", &())?;
                map.serialize_entry("NodeNames", &self.passed)?;
            }
            Offer::Objects => {
                let items = BTreeMap::from([("items", AsObjects(&self.passed))]);
                map.serialize_entry("Nodes", &items)?;
                map.serialize_entry("NodeNames", &())?;
            }
        }
        map.serialize_entry("FailedNodes", &())?;
        let refused: &[&str] = if failed { &[] } else { &self.refused };
        map.serialize_entry("FailedAndUnresolvableNodes", &SameText(refused, self.why))?;
        map.serialize_entry("Error", self.error)?;
        map.end()
    }
}

/// Request of the verb preempt. Of the two maps exactly one is there: the second one with
/// `nodeCacheCapable: true`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PreemptionArgs {
    /// The pod that room is to be made for.
    #[serde(rename = "Pod", alias = "pod")]
    pub pod: Option<LitePod>,
    /// Victims in full, by node.
    #[serde(
        rename = "NodeNameToVictims",
        alias = "nodeNameToVictims",
        alias = "nodenametovictims"
    )]
    pub victims: Option<BTreeMap<String, Option<Victims>>>,
    /// Victims by UID, by node.
    #[serde(
        rename = "NodeNameToMetaVictims",
        alias = "nodeNameToMetaVictims",
        alias = "nodenametometavictims"
    )]
    pub meta_victims: Option<BTreeMap<String, Option<MetaVictims>>>,
}

/// Victims on one node, in full.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Victims {
    /// The pods.
    #[serde(rename = "Pods", alias = "pods")]
    pub pods: Option<Vec<LitePod>>,
    /// Disruption budgets that would be violated.
    #[serde(
        rename = "NumPDBViolations",
        alias = "numPDBViolations",
        alias = "numPdbViolations",
        alias = "numpdbviolations"
    )]
    pub pdb_violations: i64,
}

/// Victims on one node, by UID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct MetaVictims {
    /// The pods; `null` reads as none.
    #[serde(rename = "Pods", alias = "pods")]
    pub pods: Option<Vec<MetaPod>>,
    /// Disruption budgets that would be violated.
    #[serde(
        rename = "NumPDBViolations",
        alias = "numPDBViolations",
        alias = "numPdbViolations",
        alias = "numpdbviolations"
    )]
    pub pdb_violations: i64,
}

/// A pod by UID.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct MetaPod {
    /// UID.
    #[serde(rename = "UID", alias = "uid", alias = "Uid")]
    pub uid: String,
}

impl PreemptionArgs {
    /// The candidates as they may be answered: node by node the victims' UIDs. A node without
    /// victims is left out, because kube-scheduler takes it for an error.
    pub fn candidates(self) -> BTreeMap<String, MetaVictims> {
        let meta = self.meta_victims.into_iter().flatten();
        let full = self.victims.into_iter().flatten().map(|(node, victims)| {
            let meta = victims.map(|victims| MetaVictims {
                pdb_violations: victims.pdb_violations,
                pods: victims.pods.map(|pods| {
                    pods.into_iter()
                        .map(|pod| MetaPod {
                            uid: pod.metadata.uid.unwrap_or_default(),
                        })
                        .collect()
                }),
            });
            (node, meta)
        });
        meta.chain(full)
            .filter_map(|(node, victims)| Some((node, victims?)))
            .filter(|(_, victims)| victims.pods.as_ref().is_some_and(|pods| !pods.is_empty()))
            .collect()
    }
}

/// Answer of the verb preempt. An empty map vetoes the preemption.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PreemptionResult {
    /// Victims by UID, by node; of this form whatever the request had.
    #[serde(rename = "NodeNameToMetaVictims")]
    pub meta_victims: BTreeMap<String, MetaVictims>,
}

/// Request of the verb bind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BindingArgs {
    /// Name of the pod.
    #[serde(rename = "PodName", alias = "podName", alias = "podname")]
    pub pod_name: String,
    /// Its namespace.
    #[serde(
        rename = "PodNamespace",
        alias = "podNamespace",
        alias = "podnamespace"
    )]
    pub pod_namespace: String,
    /// Its UID.
    #[serde(
        rename = "PodUID",
        alias = "podUID",
        alias = "podUid",
        alias = "poduid"
    )]
    pub pod_uid: String,
    /// The node that kube-scheduler chose.
    #[serde(rename = "Node", alias = "node")]
    pub node: String,
}

impl BindingArgs {
    /// The first field that is empty: such a request is not carried out.
    pub fn missing(&self) -> Option<&'static str> {
        [
            ("PodName", &self.pod_name),
            ("PodNamespace", &self.pod_namespace),
            ("PodUID", &self.pod_uid),
            ("Node", &self.node),
        ]
        .into_iter()
        .find(|(_, value)| value.is_empty())
        .map(|(field, _)| field)
    }
}

/// Answer of the verb bind. An empty error is success: the pod is bound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BindingResult<'a> {
    #[serde(rename = "Error")]
    error: Cow<'a, str>,
}

impl<'a> BindingResult<'a> {
    /// The pod is bound, and that is confirmed.
    pub fn bound() -> Self {
        Self {
            error: Cow::Borrowed(""),
        }
    }

    /// The pod is not bound. An empty text would read as success, so it is replaced.
    pub fn refused(error: impl Into<Cow<'a, str>>) -> Self {
        let error = error.into();
        Self {
            error: if error.is_empty() {
                Cow::Borrowed("muster: not bound")
            } else {
                error
            },
        }
    }

    /// The error text; empty when bound.
    pub fn error(&self) -> &str {
        &self.error
    }
}

#[cfg(test)]
mod tests;
