//! The four kinds of patch: JSON patch, merge patch, strategic merge patch and server-side apply.
//!
//! Strategic merge and apply merge the lists that Kubernetes merges by key (`LIST_KEYS`); every other list is replaced
//! whole. Apply keeps one `managedFields` entry per manager with the paths it applied, and takes out what a manager
//! applied before and no longer names, unless another manager names it too; it reports no ownership conflicts.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::error::ApiError;
use crate::value;

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own merge, with lists merged by key.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    /// The kind of a content type.
    #[must_use]
    pub fn from_content_type(text: &str) -> Option<Self> {
        match text.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// Applies an RFC 7386 merge patch.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let map = value::object(target, &[]);
    for (key, new) in patch {
        if new.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), new);
        }
    }
}

/// Key fields of the lists that are merged by key, by the name of the list. `finalizers` is a set.
const LIST_KEYS: &[(&str, &[&str])] = &[
    ("containers", &["name"]),
    ("initContainers", &["name"]),
    ("ephemeralContainers", &["name"]),
    ("env", &["name"]),
    ("volumes", &["name"]),
    ("volumeMounts", &["mountPath"]),
    ("volumeDevices", &["devicePath"]),
    ("imagePullSecrets", &["name"]),
    ("hostAliases", &["ip"]),
    ("schedulingGates", &["name"]),
    ("resourceClaims", &["name"]),
    (
        "topologySpreadConstraints",
        &["topologyKey", "whenUnsatisfiable"],
    ),
    ("ownerReferences", &["uid"]),
    ("conditions", &["type"]),
    ("addresses", &["type"]),
    ("podIPs", &["ip"]),
    ("hostIPs", &["ip"]),
    ("taints", &["key", "effect"]),
    ("secrets", &["name"]),
];

/// Keys of `name` below the list `list`; ports differ between containers and services.
fn list_keys(name: &str, items: &[Value]) -> Option<&'static [&'static str]> {
    if name == "ports" {
        let container = items.iter().any(|i| i.get("containerPort").is_some());
        return Some(if container {
            &["containerPort", "protocol"]
        } else {
            &["port", "protocol"]
        });
    }
    LIST_KEYS
        .iter()
        .find(|(n, _)| *n == name)
        .map(|(_, keys)| *keys)
}

fn same_item(a: &Value, b: &Value, keys: &[&str]) -> bool {
    keys.iter().all(|key| {
        let default = (*key == "protocol").then(|| json!("TCP"));
        let get = |v: &Value| v.get(*key).cloned().or_else(|| default.clone());
        get(a) == get(b)
    })
}

/// Applies a strategic merge patch with the directives `$patch: delete|replace`, `$retainKeys`,
/// `$deleteFromPrimitiveList/…` and `$setElementOrder/…` (order is kept as it is, new items come last).
pub fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        let mut whole = patch.clone();
        whole.remove("$patch");
        *target = Value::Object(whole);
        return;
    }
    let map = value::object(target, &[]);
    if let Some(Value::Array(keep)) = patch.get("$retainKeys") {
        map.retain(|key, _| keep.iter().any(|k| k.as_str() == Some(key)));
    }
    for (key, new) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(Value::Array(items)) = map.get_mut(list) {
                let gone = new.as_array().map_or(&[] as &[Value], Vec::as_slice);
                items.retain(|i| !gone.contains(i));
            }
        } else if key.starts_with('$') {
        } else if new.is_null() {
            map.remove(key);
        } else if let Value::Array(items) = new {
            strategic_list(map, key, items);
        } else {
            strategic(map.entry(key.clone()).or_insert(Value::Null), new);
        }
    }
    map.retain(|_, v| v.get("$patch").and_then(Value::as_str) != Some("delete"));
}

fn strategic_list(map: &mut Map<String, Value>, name: &str, items: &[Value]) {
    let replace = |i: &Value| i.get("$patch").and_then(Value::as_str) == Some("replace");
    if items.iter().any(replace) {
        let whole = items.iter().filter(|i| !replace(i)).cloned().collect();
        map.insert(name.to_owned(), Value::Array(whole));
        return;
    }
    let slot = map.entry(name.to_owned()).or_insert_with(|| json!([]));
    if name == "finalizers" {
        let old = value::list(slot_holder(slot), &["_"]).clone();
        let mut all = old;
        for item in items {
            if !all.contains(item) {
                all.push(item.clone());
            }
        }
        *slot = Value::Array(all);
        return;
    }
    let Some(keys) = list_keys(name, items) else {
        *slot = Value::Array(items.to_vec());
        return;
    };
    if !slot.is_array() {
        *slot = json!([]);
    }
    let Value::Array(current) = slot else { return };
    for item in items {
        let at = current.iter().position(|c| same_item(c, item, keys));
        if item.get("$patch").and_then(Value::as_str) == Some("delete") {
            current.retain(|c| !same_item(c, item, keys));
        } else if let Some(old) = at.and_then(|at| current.get_mut(at)) {
            strategic(old, item);
        } else {
            let mut new = json!({});
            strategic(&mut new, item);
            current.push(if item.is_object() { new } else { item.clone() });
        }
    }
}

/// Wraps a list so that it can be reached as `_`.
fn slot_holder(slot: &mut Value) -> &mut Value {
    if slot.is_array() {
        let items = slot.take();
        *slot = json!({"_": items});
    }
    slot
}

/// Applies an RFC 6902 patch, all of it or nothing.
///
/// # Errors
/// 400 when the patch is malformed, 422 when a path is missing or a test fails.
pub fn json_patch(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let steps = patch
        .as_array()
        .ok_or_else(|| ApiError::bad_request("a JSON patch is a list of operations"))?;
    let mut work = target.clone();
    for step in steps {
        json_step(&mut work, step)?;
    }
    *target = work;
    Ok(())
}

fn json_step(work: &mut Value, step: &Value) -> Result<(), ApiError> {
    let refuse = |what: &str, path: &str| {
        ApiError::new(
            422,
            "Invalid",
            format!(
                "the server rejected our request due to an error in our request: {what}: {path:?}"
            ),
        )
    };
    let path = value::text(step, &["path"]);
    let wanted = || {
        step.get("value")
            .cloned()
            .ok_or_else(|| ApiError::bad_request(format!("operation on {path:?} has no value")))
    };
    match value::text(step, &["op"]) {
        "test" => {
            if work.pointer(path) != step.get("value") {
                return Err(refuse("testing path failed", path));
            }
        }
        "add" => {
            json_add(work, path, wanted()?).ok_or_else(|| refuse("add to missing path", path))?
        }
        "replace" => {
            let new = wanted()?;
            *work
                .pointer_mut(path)
                .ok_or_else(|| refuse("replace of missing path", path))? = new;
        }
        "remove" => {
            json_remove(work, path).ok_or_else(|| refuse("remove of missing path", path))?;
        }
        "move" => {
            let from = value::text(step, &["from"]);
            let moved =
                json_remove(work, from).ok_or_else(|| refuse("move of missing path", from))?;
            json_add(work, path, moved).ok_or_else(|| refuse("move to missing path", path))?;
        }
        "copy" => {
            let from = value::text(step, &["from"]);
            let copy = work
                .pointer(from)
                .cloned()
                .ok_or_else(|| refuse("copy of missing path", from))?;
            json_add(work, path, copy).ok_or_else(|| refuse("copy to missing path", path))?;
        }
        other => {
            return Err(ApiError::bad_request(format!(
                "unknown operation {other:?}"
            )));
        }
    }
    Ok(())
}

fn split_pointer(path: &str) -> Option<(&str, String)> {
    let (head, last) = path.rsplit_once('/')?;
    Some((head, last.replace("~1", "/").replace("~0", "~")))
}

fn json_add(work: &mut Value, path: &str, new: Value) -> Option<()> {
    if path.is_empty() {
        *work = new;
        return Some(());
    }
    let (head, last) = split_pointer(path)?;
    match work.pointer_mut(head)? {
        Value::Object(map) => {
            map.insert(last, new);
        }
        Value::Array(items) if last == "-" => items.push(new),
        Value::Array(items) => {
            let at: usize = last.parse().ok()?;
            if at > items.len() {
                return None;
            }
            items.insert(at, new);
        }
        _ => return None,
    }
    Some(())
}

fn json_remove(work: &mut Value, path: &str) -> Option<Value> {
    let (head, last) = split_pointer(path)?;
    match work.pointer_mut(head)? {
        Value::Object(map) => map.remove(&last),
        Value::Array(items) => {
            let at: usize = last.parse().ok()?;
            (at < items.len()).then(|| items.remove(at))
        }
        _ => None,
    }
}

/// Server-side apply of `config` by `manager` on `target` (which may be an empty object when it is created).
pub fn apply(target: &mut Value, config: &Value, manager: &str, subresource: &str, now: &str) {
    let mut config = config.clone();
    value::remove(&mut config, &["metadata", "managedFields"]);
    let mut mine = json!({});
    own(&config, "", &mut mine);
    let entries = value::items(target, &["metadata", "managedFields"]).to_vec();
    let is_mine = |e: &Value| {
        value::text(e, &["manager"]) == manager
            && value::text(e, &["operation"]) == "Apply"
            && value::text(e, &["subresource"]) == subresource
    };
    let before = entries
        .iter()
        .find(|e| is_mine(e))
        .and_then(|e| e.get("fieldsV1"))
        .cloned();
    if let Some(before) = &before {
        let others: Vec<&Value> = entries
            .iter()
            .filter(|e| !is_mine(e))
            .filter_map(|e| e.get("fieldsV1"))
            .collect();
        drop_left_out(target, before, &mine, &others);
    }
    strategic(target, &config);
    let mut entry = json!({
        "manager": manager, "operation": "Apply", "apiVersion": config.get("apiVersion"),
        "time": now, "fieldsType": "FieldsV1", "fieldsV1": mine,
    });
    if !subresource.is_empty() {
        value::set(&mut entry, &["subresource"], subresource);
    }
    let list = value::list(target, &["metadata", "managedFields"]);
    match list.iter_mut().find(|e| is_mine(e)) {
        Some(old)
            if before == old.get("fieldsV1").cloned()
                && old.get("fieldsV1") == entry.get("fieldsV1") => {}
        Some(old) => *old = entry,
        None => list.push(entry),
    }
}

/// The fields of `config` in the form of FieldsV1.
fn own(config: &Value, name: &str, out: &mut Value) {
    match config {
        Value::Object(map) => {
            for (key, v) in map {
                let identity = matches!(key.as_str(), "apiVersion" | "kind") && name.is_empty();
                let meta = name == "metadata" && matches!(key.as_str(), "name" | "namespace");
                if identity || meta {
                    continue;
                }
                let mut below = json!({});
                own(v, key, &mut below);
                value::set(out, &[format!("f:{key}").as_str()], below);
            }
        }
        Value::Array(items) => {
            let Some(keys) = list_keys(name, items) else {
                return;
            };
            for item in items {
                let id: Map<String, Value> = keys
                    .iter()
                    .filter_map(|k| item.get(*k).map(|v| ((*k).to_owned(), v.clone())))
                    .collect();
                let mut below = json!({".": {}});
                own(item, "item", &mut below);
                value::set(out, &[format!("k:{}", Value::Object(id)).as_str()], below);
            }
        }
        _ => {}
    }
}

/// Takes out of `target` what `before` holds and neither `now` nor any of `others` does.
fn drop_left_out(target: &mut Value, before: &Value, now: &Value, others: &[&Value]) {
    let Value::Object(fields) = before else {
        return;
    };
    let mut gone = BTreeSet::new();
    for (key, below) in fields {
        let Some(name) = key.strip_prefix("f:") else {
            continue;
        };
        let still = now.get(key).is_some();
        let shared: Vec<&Value> = others.iter().filter_map(|o| o.get(key)).collect();
        let Some(child) = target.get_mut(name) else {
            continue;
        };
        if let Value::Array(items) = child {
            let keyed = below
                .as_object()
                .is_some_and(|m| m.keys().any(|k| k.starts_with("k:")));
            if keyed {
                drop_items(items, below, now.get(key), &shared);
                if items.is_empty() && !still {
                    gone.insert(name.to_owned());
                }
                continue;
            }
        }
        let leaf = below.as_object().is_none_or(Map::is_empty);
        if !still && shared.is_empty() && (leaf || !child.is_object()) {
            gone.insert(name.to_owned());
        } else if !leaf {
            let none = json!({});
            drop_left_out(child, below, now.get(key).unwrap_or(&none), &shared);
            if !still && shared.is_empty() && child.as_object().is_some_and(Map::is_empty) {
                gone.insert(name.to_owned());
            }
        }
    }
    if let Value::Object(map) = target {
        map.retain(|k, _| !gone.contains(k));
    }
}

fn drop_items(items: &mut Vec<Value>, before: &Value, now: Option<&Value>, others: &[&Value]) {
    let Value::Object(fields) = before else {
        return;
    };
    for (key, below) in fields {
        let Some(id) = key
            .strip_prefix("k:")
            .and_then(|t| serde_json::from_str::<Value>(t).ok())
        else {
            continue;
        };
        let matches = |item: &Value| {
            id.as_object()
                .is_some_and(|m| m.iter().all(|(k, v)| item.get(k) == Some(v)))
        };
        let shared: Vec<&Value> = others.iter().filter_map(|o| o.get(key)).collect();
        let kept = now.and_then(|n| n.get(key));
        if kept.is_none() && shared.is_empty() {
            items.retain(|item| !matches(item));
        } else if let Some(item) = items.iter_mut().find(|i| matches(i)) {
            let none = json!({});
            drop_left_out(item, below, kept.unwrap_or(&none), &shared);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_patch_replaces_lists_and_removes_nulls() {
        let mut v = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(
            &mut v,
            &json!({"a": {"b": null, "c": [3]}, "d": {"e": {"f": null}}}),
        );
        assert_eq!(v, json!({"a": {"c": [3]}, "d": {"e": {}}}));
    }

    #[test]
    fn strategic_merge_goes_by_key() {
        let mut v = json!({"spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}],
            "tolerations": [{"key": "x"}]}, "metadata": {"finalizers": ["one"]}});
        strategic(
            &mut v,
            &json!({"spec": {"containers": [{"name": "b", "image": "2"}, {"name": "a", "$patch": "delete"}],
            "tolerations": [{"key": "y"}], "$setElementOrder/containers": []}, "metadata": {"finalizers": ["two"]}}),
        );
        assert_eq!(
            v,
            json!({"spec": {"containers": [{"name": "b", "image": "2"}], "tolerations": [{"key": "y"}]},
            "metadata": {"finalizers": ["one", "two"]}})
        );
    }

    #[test]
    fn json_patch_is_all_or_nothing() {
        let mut v = json!({"a": [1, 2], "b": {"x/y": 1}});
        json_patch(
            &mut v,
            &json!([{"op": "add", "path": "/a/1", "value": 9}, {"op": "remove", "path": "/b/x~1y"},
            {"op": "move", "from": "/a/0", "path": "/c"}]),
        )
        .unwrap();
        assert_eq!(v, json!({"a": [9, 2], "b": {}, "c": 1}));
        let before = v.clone();
        let error = json_patch(
            &mut v,
            &json!([{"op": "add", "path": "/z", "value": 1}, {"op": "test", "path": "/c", "value": 2}]),
        );
        assert_eq!(error.unwrap_err().code, 422);
        assert_eq!(v, before);
    }

    #[test]
    fn apply_takes_out_what_its_manager_leaves_out() {
        let mut v = json!({"metadata": {"name": "a"}});
        let config = |spec: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec});
        apply(
            &mut v,
            &config(json!({"x": 1, "y": {"z": 1}, "containers": [{"name": "a"}, {"name": "b"}]})),
            "me",
            "",
            "t",
        );
        apply(&mut v, &config(json!({"x": 1})), "other", "", "t");
        apply(
            &mut v,
            &config(json!({"containers": [{"name": "b", "image": "i"}]})),
            "me",
            "",
            "t",
        );
        assert_eq!(
            v.get("spec").unwrap(),
            &json!({"x": 1, "containers": [{"name": "b", "image": "i"}]})
        );
        assert_eq!(value::items(&v, &["metadata", "managedFields"]).len(), 2);
    }
}
