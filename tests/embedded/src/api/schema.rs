//! Structural schemas of custom resources: defaulting, pruning, and the checks of type, required, enum and bounds.
//! CEL rules (`x-kubernetes-validations`) are not evaluated.

use serde_json::{Map, Value, json};

use super::error::{ApiError, FieldError};
use super::resources::ResourceType;
use crate::value;

const ERRORS_MAX: usize = 32;

/// Defaults, prunes and checks an object of a custom resource.
///
/// # Errors
/// 400 for unknown fields when `strict`, 422 for values that break the schema.
pub fn admit(
    ty: &ResourceType,
    version: &str,
    object: &mut Value,
    strict: bool,
) -> Result<(), ApiError> {
    let Some(schema) = ty
        .schemas
        .get(version)
        .or_else(|| ty.schemas.values().next())
    else {
        return Ok(());
    };
    let name = value::name(object).to_owned();
    let head: Vec<(String, Value)> = ["apiVersion", "kind", "metadata"]
        .iter()
        .filter_map(|k| value::remove(object, &[k]).map(|v| ((*k).to_owned(), v)))
        .collect();
    let mut unknown = Vec::new();
    prune(schema, object, "", &mut unknown);
    fill_defaults(schema, object);
    let mut errors = Vec::new();
    check(schema, object, "", &mut errors);
    let map = value::object(object, &[]);
    map.extend(head);
    if strict && !unknown.is_empty() {
        let list: Vec<String> = unknown
            .iter()
            .map(|u| format!("unknown field {u:?}"))
            .collect();
        return Err(ApiError::bad_request(format!(
            "strict decoding error: {}",
            list.join(", ")
        )));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(ty, &name, &errors))
}

fn keeps_unknown(schema: &Value) -> bool {
    value::flag(schema, &["x-kubernetes-preserve-unknown-fields"])
        || value::flag(schema, &["x-kubernetes-embedded-resource"])
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

fn prune(schema: &Value, object: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match object {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = schema.get("additionalProperties");
            if additional.is_none() && !keeps_unknown(schema) {
                let known = |k: &String| properties.is_some_and(|p| p.contains_key(k));
                unknown.extend(map.keys().filter(|k| !known(k)).map(|k| join(path, k)));
                map.retain(|k, _| known(k));
            }
            for (key, child) in map.iter_mut() {
                let below = properties
                    .and_then(|p| p.get(key))
                    .or(additional.filter(|a| a.is_object()));
                if let Some(below) = below {
                    prune(below, child, &join(path, key), unknown);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                for (at, item) in items.iter_mut().enumerate() {
                    prune(below, item, &format!("{path}[{at}]"), unknown);
                }
            }
        }
        _ => {}
    }
}

fn fill_defaults(schema: &Value, object: &mut Value) {
    match object {
        Value::Object(map) => {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                default_properties(properties, map);
            }
            if let Some(below) = schema.get("additionalProperties").filter(|a| a.is_object()) {
                for child in map.values_mut() {
                    fill_defaults(below, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                items.iter_mut().for_each(|item| fill_defaults(below, item));
            }
        }
        _ => {}
    }
}

fn default_properties(properties: &Map<String, Value>, map: &mut Map<String, Value>) {
    for (key, below) in properties {
        if let Some(default) = below.get("default") {
            let nullable = value::flag(below, &["nullable"]);
            let missing = match map.get(key) {
                None => true,
                Some(v) => v.is_null() && !nullable,
            };
            if missing {
                map.insert(key.clone(), default.clone());
            }
        }
        if let Some(child) = map.get_mut(key) {
            fill_defaults(below, child);
        }
    }
}

fn check(schema: &Value, object: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if errors.len() >= ERRORS_MAX || (object.is_null() && value::flag(schema, &["nullable"])) {
        return;
    }
    if !has_type(schema, object) {
        let wanted = value::text(schema, &["type"]);
        let wanted = if wanted.is_empty() {
            "integer or string"
        } else {
            wanted
        };
        errors.push(FieldError::wrong_type(path, object, wanted));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(object)
    {
        let names: Vec<String> = allowed
            .iter()
            .map(|a| a.as_str().map_or_else(|| a.to_string(), str::to_owned))
            .collect();
        errors.push(FieldError::not_supported(path, object, &names));
    }
    check_bounds(schema, object, path, errors);
    match object {
        Value::Object(map) => check_object(schema, map, path, errors),
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                for (at, item) in items.iter().enumerate() {
                    check(below, item, &format!("{path}[{at}]"), errors);
                }
            }
        }
        _ => {}
    }
}

fn check_object(
    schema: &Value,
    map: &Map<String, Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    for key in value::items(schema, &["required"])
        .iter()
        .filter_map(Value::as_str)
    {
        if !map.contains_key(key) {
            errors.push(FieldError::required(join(path, key), ""));
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties").filter(|a| a.is_object());
    for (key, child) in map {
        if let Some(below) = properties.and_then(|p| p.get(key)).or(additional) {
            check(below, child, &join(path, key), errors);
        }
    }
}

fn has_type(schema: &Value, object: &Value) -> bool {
    if value::flag(schema, &["x-kubernetes-int-or-string"]) {
        return object.is_string() || object.is_i64() || object.is_u64();
    }
    match value::text(schema, &["type"]) {
        "object" => object.is_object(),
        "array" => object.is_array(),
        "string" => object.is_string(),
        "boolean" => object.is_boolean(),
        "integer" => {
            object.is_i64() || object.is_u64() || object.as_f64().is_some_and(|f| f.fract() == 0.0)
        }
        "number" => object.is_number(),
        _ => true,
    }
}

fn check_bounds(schema: &Value, object: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    let mut refuse = |why: String| errors.push(FieldError::invalid(path, object, &why));
    if let Some(number) = object.as_f64() {
        if let Some(min) = bound("minimum").filter(|m| number < *m) {
            refuse(format!(
                "{path} in body should be greater than or equal to {min}"
            ));
        }
        if let Some(max) = bound("maximum").filter(|m| number > *m) {
            refuse(format!(
                "{path} in body should be less than or equal to {max}"
            ));
        }
        let int32 = value::text(schema, &["format"]) == "int32";
        if int32 && (number > f64::from(i32::MAX) || number < f64::from(i32::MIN)) {
            refuse(format!("{path} in body must be of type int32"));
        }
    }
    let (length, low, high, what) = match object {
        Value::String(text) => (text.chars().count(), "minLength", "maxLength", "chars long"),
        Value::Array(items) => (items.len(), "minItems", "maxItems", "items"),
        Value::Object(map) => (map.len(), "minProperties", "maxProperties", "properties"),
        _ => return,
    };
    let limit = |key: &str| schema.get(key).and_then(Value::as_u64);
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if let Some(min) = limit(low).filter(|m| length < *m) {
        refuse(format!("{path} in body should have at least {min} {what}"));
    }
    if let Some(max) = limit(high).filter(|m| length > *m) {
        refuse(format!("{path} in body should have at most {max} {what}"));
    }
}

/// Moves `stringData` of a secret into `data`, in base64.
pub fn encode_string_data(secret: &mut Value) {
    let Some(Value::Object(texts)) = value::remove(secret, &["stringData"]) else {
        return;
    };
    for (key, text) in texts {
        let encoded = base64(text.as_str().unwrap_or_default().as_bytes());
        value::object(secret, &["data"]).insert(key, json!(encoded));
    }
}

/// Standard base64 with padding.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for place in 0..4_usize {
            if place <= chunk.len() {
                let index = (bits >> (18 - 6 * place)) & 63;
                let letter = usize::try_from(index).ok().and_then(|i| ALPHABET.get(i));
                out.push(letter.map_or('=', |b| char::from(*b)));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_agrees_with_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn schema_defaults_prunes_and_names_every_broken_field() {
        let crd = super::super::resources::pytorchjob_crd();
        let ty = ResourceType::from_crd(&crd).unwrap();
        let mut job = json!({"metadata": {"name": "a"}, "spec": {"odd": 1, "runPolicy": {}, "pytorchReplicaSpecs": {"Worker": {"replicas": "x"}}}});
        let error = admit(&ty, "v1", &mut job, false).unwrap_err();
        assert_eq!(error.code, 422);
        assert!(
            error
                .message
                .contains("spec.pytorchReplicaSpecs.Worker.replicas"),
            "{}",
            error.message
        );
        assert_eq!(
            value::at(&job, &["spec", "runPolicy", "suspend"]),
            Some(&json!(false))
        );
        assert_eq!(value::at(&job, &["spec", "odd"]), None);
        let mut job =
            json!({"metadata": {"name": "a"}, "spec": {"odd": 1, "pytorchReplicaSpecs": {}}});
        let error = admit(&ty, "v1", &mut job, true).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (400, "strict decoding error: unknown field \"spec.odd\"")
        );
    }
}
