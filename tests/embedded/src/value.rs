//! Small, panic-free helpers to read and write JSON trees by path.

use serde_json::{Map, Value};

/// The value at `path`, when every step is an object that has the key.
#[must_use]
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |v, key| v.get(key))
}

/// The text at `path`, or `""` when there is none.
#[must_use]
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or("")
}

/// The whole number at `path`.
#[must_use]
pub fn int(value: &Value, path: &[&str]) -> Option<i64> {
    at(value, path).and_then(Value::as_i64)
}

/// Whether the value at `path` is the boolean true.
#[must_use]
pub fn flag(value: &Value, path: &[&str]) -> bool {
    at(value, path).and_then(Value::as_bool).unwrap_or(false)
}

/// The items of the list at `path`; empty when there is no list.
#[must_use]
pub fn items<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The object at `path` for writing; missing steps and steps that are no objects become empty objects.
pub fn object<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut current = as_object(value);
    for key in path {
        current = as_object(current.entry((*key).to_owned()).or_insert(Value::Null));
    }
    current
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("the value was made an object above"),
    }
}

/// The list at `path` for writing; whatever else stands there becomes an empty list.
pub fn list<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Vec<Value> {
    let (last, head) = match path.split_last() {
        Some((last, head)) => (*last, head),
        None => ("", path),
    };
    let slot = object(value, head)
        .entry(last.to_owned())
        .or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    match slot {
        Value::Array(items) => items,
        _ => unreachable!("the value was made a list above"),
    }
}

/// Writes `new` at `path`, making the objects on the way.
pub fn set(value: &mut Value, path: &[&str], new: impl Into<Value>) {
    if let Some((last, head)) = path.split_last() {
        object(value, head).insert((*last).to_owned(), new.into());
    }
}

/// Writes `new` at `path` when nothing, or null, stands there.
pub fn set_default(value: &mut Value, path: &[&str], new: impl Into<Value>) {
    if at(value, path).is_none_or(Value::is_null) {
        set(value, path, new);
    }
}

/// Takes the value at `path` out of the tree.
pub fn remove(value: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, head) = path.split_last()?;
    let mut current = value;
    for key in head {
        current = current.get_mut(key)?;
    }
    current.as_object_mut()?.remove(*last)
}

/// The value at `path` for writing, when it is there.
pub fn at_mut<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |v, key| v.get_mut(key))
}

/// `metadata.name`.
#[must_use]
pub fn name(value: &Value) -> &str {
    text(value, &["metadata", "name"])
}

/// `metadata.namespace`, `""` for what lives in no namespace.
#[must_use]
pub fn namespace(value: &Value) -> &str {
    text(value, &["metadata", "namespace"])
}

/// `metadata.uid`.
#[must_use]
pub fn uid(value: &Value) -> &str {
    text(value, &["metadata", "uid"])
}

/// The owner reference that controls the object, when there is one.
#[must_use]
pub fn controller(value: &Value) -> Option<&Value> {
    items(value, &["metadata", "ownerReferences"])
        .iter()
        .find(|owner| flag(owner, &["controller"]))
}

/// Sets a condition by type in `status.conditions`; `lastTransitionTime` moves only when the status changes.
/// Returns true when anything but the time differs from before.
pub fn set_condition(value: &mut Value, condition: Value, now: &str) -> bool {
    let kind = text(&condition, &["type"]).to_owned();
    let conditions = list(value, &["status", "conditions"]);
    let mut new = condition;
    match conditions.iter_mut().find(|c| text(c, &["type"]) == kind) {
        Some(old) => {
            let moved = old.get("status") != new.get("status");
            let since = if moved {
                Value::from(now)
            } else {
                old.get("lastTransitionTime")
                    .cloned()
                    .unwrap_or_else(|| Value::from(now))
            };
            set(&mut new, &["lastTransitionTime"], since);
            if let Some(seen) = old.get("observedGeneration")
                && new.get("observedGeneration").is_none()
            {
                set(&mut new, &["observedGeneration"], seen.clone());
            }
            if *old == new {
                return false;
            }
            *old = new;
        }
        None => {
            set_default(&mut new, &["lastTransitionTime"], now);
            conditions.push(new);
        }
    }
    true
}

/// The condition of that type in `status.conditions`.
#[must_use]
pub fn condition<'a>(value: &'a Value, kind: &str) -> Option<&'a Value> {
    items(value, &["status", "conditions"])
        .iter()
        .find(|c| text(c, &["type"]) == kind)
}
