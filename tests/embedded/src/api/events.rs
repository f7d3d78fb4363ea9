//! One event, two spellings: `v1` and `events.k8s.io/v1` show the same objects. They are stored in the former.

use serde_json::Value;

use super::resources::ResourceType;
use crate::value;

/// (name in events.k8s.io/v1, name in v1)
const NAMES: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
];

fn is_view(ty: &ResourceType) -> bool {
    ty.is("events.k8s.io", "events")
}

/// The stored form of an object that came in through `ty`.
#[must_use]
pub fn incoming(ty: &ResourceType, mut object: Value) -> Value {
    if is_view(ty) {
        for (view, stored) in NAMES {
            if let Some(v) = value::remove(&mut object, &[view]) {
                value::set(&mut object, &[stored], v);
            }
        }
        value::set(&mut object, &["apiVersion"], "v1");
        value::set(&mut object, &["kind"], "Event");
    }
    object
}

/// The form of a stored object as `ty` shows it.
#[must_use]
pub fn outgoing(ty: &ResourceType, object: &Value) -> Value {
    let mut object = object.clone();
    if is_view(ty) {
        for (view, stored) in NAMES {
            if let Some(v) = value::remove(&mut object, &[stored]) {
                value::set(&mut object, &[view], v);
            }
        }
        value::set(&mut object, &["apiVersion"], "events.k8s.io/v1");
    }
    object
}
