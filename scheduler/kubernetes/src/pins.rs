//! Pins: what Muster puts into a job's templates, and how it is taken out again exactly.
//!
//! ```text
//!   user:      [A, B]                  (any of these terms)
//!   released:  [A@n1, A@n2, B@n1, B@n2]    X@n = X with matchFields metadata.name In [n] appended
//!   stripped:  [A, B]
//!
//!   user:      nothing
//!   released:  [@n1, @n2]
//!   stripped:  nothing, and the empty affinity around it goes too
//! ```
//!
//! A matchFields requirement takes exactly one value, so several nodes are several terms. The job's
//! annotation `muster.dev/pinned` records per role the nodes and how much of the affinity Muster
//! made. By it Muster's requirements are recognised whatever the user has changed in between; terms
//! without them are the user's and stay. A term of the user without any requirement matches nothing
//! and stays as it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::names;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const TERMS: &str = "nodeSelectorTerms";

/// The outermost part of the affinity that Muster made, because the user had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Made {
    /// `requiredDuringSchedulingIgnoredDuringExecution`.
    Required,
    /// `nodeAffinity`.
    NodeAffinity,
    /// `affinity`.
    Affinity,
}

/// What was put into one role's template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct RolePins {
    /// Nodes, each once, in the order of the terms.
    pub(crate) nodes: Vec<String>,
    /// What was made; nothing where the user's own terms were extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<Made>,
}

/// What was put into a job's templates, by role.
pub(crate) type Pinned = BTreeMap<String, RolePins>;

/// Reads the annotation; one that cannot be read says nothing.
pub(crate) fn recorded(annotation: Option<&str>) -> Pinned {
    annotation
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// The object under `key`, made where it is absent; `None` where something else is there.
fn child<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    let slot = parent.entry(key.to_owned()).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut()
}

fn is_there(parent: &Map<String, Value>, key: &str) -> bool {
    parent.get(key).is_some_and(|value| !value.is_null())
}

fn pin(node: &str) -> Value {
    json!({"key": names::NODE_NAME_FIELD, "operator": "In", "values": [node]})
}

/// Whether a term has no requirement: it matches nothing.
fn is_empty(term: &Value) -> bool {
    let none = |key: &str| {
        term.get(key)
            .and_then(Value::as_array)
            .is_none_or(Vec::is_empty)
    };
    none("matchExpressions") && none("matchFields")
}

/// The term confined to one node; `None` where it is no object.
pub(crate) fn confined(term: &Value, node: &str) -> Option<Value> {
    let mut term = term.clone();
    let object = term.as_object_mut()?;
    let fields = object.entry("matchFields").or_insert(Value::Null);
    if fields.is_null() {
        *fields = Value::Array(Vec::new());
    }
    fields.as_array_mut()?.push(pin(node));
    Some(term)
}

/// Confines a pod spec to `nodes`. Returns what was done; `None` when nothing was, because there
/// are no nodes, or because the affinity is something that the API server would not take either.
pub(crate) fn apply(spec: &mut Map<String, Value>, nodes: &[String]) -> Option<RolePins> {
    let mut unique: Vec<String> = Vec::with_capacity(nodes.len());
    for node in nodes {
        if !unique.contains(node) {
            unique.push(node.clone());
        }
    }
    if unique.is_empty() {
        return None;
    }
    // Looked at in full before anything is changed.
    let affinity = spec.get("affinity").filter(|value| !value.is_null());
    let node_affinity = affinity
        .and_then(|value| value.get("nodeAffinity"))
        .filter(|value| !value.is_null());
    let required = node_affinity
        .and_then(|value| value.get(REQUIRED))
        .filter(|value| !value.is_null());
    if [affinity, node_affinity, required]
        .into_iter()
        .flatten()
        .any(|value| !value.is_object())
    {
        return None;
    }
    let made = match (affinity, node_affinity, required) {
        (None, _, _) => Some(Made::Affinity),
        (_, None, _) => Some(Made::NodeAffinity),
        (_, _, None) => Some(Made::Required),
        _ => None,
    };
    let terms = match required.map(|required| required.get(TERMS)) {
        None => unique
            .iter()
            .map(|node| json!({"matchFields": [pin(node)]}))
            .collect(),
        Some(terms) => multiplied(terms?.as_array()?, &unique)?,
    };
    child(child(child(spec, "affinity")?, "nodeAffinity")?, REQUIRED)?
        .insert(TERMS.to_owned(), Value::Array(terms));
    Some(RolePins {
        nodes: unique,
        made,
    })
}

/// Each of the user's terms once per node; `None` when none of them can match anything.
fn multiplied(users: &[Value], nodes: &[String]) -> Option<Vec<Value>> {
    if users.iter().all(is_empty) {
        return None;
    }
    let mut terms = Vec::with_capacity(users.len().saturating_mul(nodes.len()));
    for term in users {
        if is_empty(term) {
            terms.push(term.clone());
            continue;
        }
        for node in nodes {
            terms.push(confined(term, node)?);
        }
    }
    Some(terms)
}

/// Takes out of a pod spec what [`apply`] put in, whatever else has changed. Returns the nodes that
/// were found there.
pub(crate) fn strip(spec: &mut Map<String, Value>, pins: &RolePins) -> Vec<String> {
    let Some(terms) = spec
        .get_mut("affinity")
        .and_then(|value| value.get_mut("nodeAffinity"))
        .and_then(|value| value.get_mut(REQUIRED))
        .and_then(|value| value.get_mut(TERMS))
        .and_then(Value::as_array_mut)
    else {
        return Vec::new();
    };
    let (kept, found) = without_pins(terms, pins);
    if found.is_empty() {
        return found;
    }
    let emptied = kept.is_empty();
    *terms = kept;
    if emptied && let Some(made) = pins.made {
        remove_made(spec, made);
    }
    found
}

/// The terms without our requirements, and the nodes of those.
fn without_pins(terms: &[Value], pins: &RolePins) -> (Vec<Value>, Vec<String>) {
    let mut kept: Vec<Value> = Vec::new();
    let mut bases: Vec<Value> = Vec::new();
    let mut found: Vec<String> = Vec::new();
    for term in terms {
        let Some((base, node)) = split(term, pins) else {
            kept.push(term.clone());
            continue;
        };
        // The first node's copy stands for the user's term; another one's does where the user has
        // taken the first away.
        let first = pins.nodes.first() == Some(&node);
        if !is_empty(&base) && (first || !bases.contains(&base)) {
            kept.push(base.clone());
            bases.push(base);
        }
        if !found.contains(&node) {
            found.push(node);
        }
    }
    (kept, found)
}

/// A term of ours as the user's term and the node; `None` for a term that is not ours.
fn split(term: &Value, pins: &RolePins) -> Option<(Value, String)> {
    let last = term.get("matchFields")?.as_array()?.last()?;
    let node = last.get("values")?.as_array()?.first()?.as_str()?;
    if *last != pin(node) || !pins.nodes.iter().any(|ours| ours == node) {
        return None;
    }
    let node = node.to_owned();
    let mut base = term.clone();
    let object = base.as_object_mut()?;
    let fields = object.get_mut("matchFields")?.as_array_mut()?;
    fields.pop();
    if fields.is_empty() {
        object.remove("matchFields");
    }
    // Where the user had terms, a term with nothing but a pin is not ours.
    if is_empty(&base) && pins.made.is_none() {
        return None;
    }
    Some((base, node))
}

/// Removes the affinity that Muster made, as far out as it made it and as it is empty.
fn remove_made(spec: &mut Map<String, Value>, made: Made) {
    let Some(affinity) = spec.get_mut("affinity").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(node_affinity) = affinity
        .get_mut("nodeAffinity")
        .and_then(Value::as_object_mut)
    {
        node_affinity.remove(REQUIRED);
        if made >= Made::NodeAffinity && node_affinity.is_empty() {
            affinity.remove("nodeAffinity");
        }
    }
    if made >= Made::Affinity && affinity.is_empty() {
        spec.remove("affinity");
    }
}

/// The pod spec of a role's template, to be changed; `None` where there is none.
pub(crate) fn template_spec_mut<'a>(
    job: &'a mut Value,
    role: &str,
) -> Option<&'a mut Map<String, Value>> {
    job.get_mut("spec")?
        .get_mut("pytorchReplicaSpecs")?
        .get_mut(role)?
        .get_mut("template")?
        .get_mut("spec")?
        .as_object_mut()
}

/// Sets a field to a value, or removes it. Makes the objects on the way; does nothing where one of
/// them is something else.
pub(crate) fn set(object: &mut Value, path: &[&str], value: Option<Value>) {
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    let mut at = object.as_object_mut();
    for key in parents {
        at = match at {
            Some(map) if value.is_some() || is_there(map, key) => child(map, key),
            _ => None,
        };
    }
    let Some(map) = at else {
        return;
    };
    match value {
        Some(value) => {
            map.insert((*last).to_owned(), value);
        }
        None => {
            map.remove(*last);
        }
    }
}
