//! What is written: patches as the API server applies them, and Gang objects.

mod gangs;
mod jobs;
mod pods;

use serde_json::{Map, Value};

/// Applies a merge patch as RFC 7386 says.
fn merged(target: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else {
        return patch.clone();
    };
    let mut result = target.as_object().cloned().unwrap_or_default();
    for (key, change) in changes {
        if change.is_null() {
            result.remove(key);
        } else {
            let old = result.remove(key).unwrap_or(Value::Object(Map::new()));
            result.insert(key.clone(), merged(&old, change));
        }
    }
    Value::Object(result)
}

fn yaml(text: &str) -> Value {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).expect(text)
}

#[test]
fn merge_of_the_standard() {
    for (target, patch, expected) in [
        ("{a: b}", "{a: c}", "{a: c}"),
        ("{a: b}", "{b: c}", "{a: b, b: c}"),
        ("{a: b, b: c}", "{a: null}", "{b: c}"),
        ("{a: [b]}", "{a: [c, d]}", "{a: [c, d]}"),
        ("{a: {b: c}}", "{a: {b: d, c: null}}", "{a: {b: d}}"),
        ("{}", "{a: {b: {c: null}}}", "{a: {b: {}}}"),
    ] {
        assert_eq!(merged(&yaml(target), &yaml(patch)), yaml(expected));
    }
}
