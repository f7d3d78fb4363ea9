//! Answers that are no success, in the shape of `v1.Status`.

use serde_json::{Value, json};

use super::resources::ResourceType;

/// A refused request: what Kubernetes would answer, code and reason included.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{reason} ({code}): {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub code: u16,
    /// The machine-readable reason, such as `NotFound`.
    pub reason: String,
    /// The text for people, worded as Kubernetes words it.
    pub message: String,
    /// `details` of the Status; null when there are none.
    pub details: Box<Value>,
}

impl ApiError {
    /// An answer with free code, reason and message.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            details: Box::new(Value::Null),
        }
    }

    fn with(mut self, details: Value) -> Self {
        self.details = Box::new(details);
        self
    }

    /// 404 for an object of a known type.
    #[must_use]
    pub fn not_found(ty: &ResourceType, name: &str) -> Self {
        Self::new(
            404,
            "NotFound",
            format!("{} \"{name}\" not found", ty.qualified()),
        )
        .with(json!({"name": name, "group": ty.group, "kind": ty.plural}))
    }

    /// 404 for a path that leads nowhere.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
        .with(json!({}))
    }

    /// 409 when the name is taken.
    #[must_use]
    pub fn already_exists(ty: &ResourceType, name: &str) -> Self {
        Self::new(
            409,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", ty.qualified()),
        )
        .with(json!({"name": name, "group": ty.group, "kind": ty.plural}))
    }

    /// 409 when the object is not what the writer thought it was.
    #[must_use]
    pub fn conflict(ty: &ResourceType, name: &str, why: &str) -> Self {
        Self::conflict_on(&ty.qualified(), ty, name, why)
    }

    /// 409 on a subresource such as `pods/binding`.
    #[must_use]
    pub fn conflict_on(what: &str, ty: &ResourceType, name: &str, why: &str) -> Self {
        Self::new(
            409,
            "Conflict",
            format!("Operation cannot be fulfilled on {what} \"{name}\": {why}"),
        )
        .with(json!({"name": name, "group": ty.group, "kind": what}))
    }

    /// 409 for a stale resourceVersion.
    #[must_use]
    pub fn stale(ty: &ResourceType, name: &str) -> Self {
        Self::conflict(
            ty,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with one cause per field: (field, reason such as `FieldValueInvalid`, message).
    #[must_use]
    pub fn invalid(ty: &ResourceType, name: &str, causes: &[FieldError]) -> Self {
        let text: Vec<String> = causes
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        let joined = match text.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let list: Vec<Value> = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect();
        let kind = if ty.group.is_empty() {
            ty.kind.clone()
        } else {
            format!("{}.{}", ty.kind, ty.group)
        };
        Self::new(
            422,
            "Invalid",
            format!("{kind} \"{name}\" is invalid: {joined}"),
        )
        .with(json!({"name": name, "group": ty.group, "kind": ty.kind, "causes": list}))
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403.
    #[must_use]
    pub fn forbidden(ty: &ResourceType, name: &str, why: &str) -> Self {
        Self::new(
            403,
            "Forbidden",
            format!("{} \"{name}\" is forbidden: {why}", ty.qualified()),
        )
        .with(json!({"name": name, "group": ty.group, "kind": ty.plural}))
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
        .with(json!({}))
    }

    /// 410 when history was compacted past what the caller asks for.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 415.
    #[must_use]
    pub fn unsupported_media(kind: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml; got {kind:?}"
            ),
        )
    }

    /// 429 with the seconds to wait.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::new(429, "TooManyRequests", message)
            .with(json!({"retryAfterSeconds": retry_after_seconds}))
    }

    /// 500.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// 504 for a resourceVersion that lies in the future.
    #[must_use]
    pub fn too_large_version(wanted: u64, current: u64) -> Self {
        Self::new(
            504,
            "Timeout",
            format!("Too large resource version: {wanted}, current: {current}"),
        )
        .with(json!({"retryAfterSeconds": 1, "causes": [
            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]}))
    }

    /// The body to answer with.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            crate::value::set(&mut body, &["details"], (*self.details).clone());
        }
        body
    }

    /// Whether the object is missing.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Whether the write lost against another one (not: the name is taken).
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.code == 409 && self.reason == "Conflict"
    }
}

/// One field that is not as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The path, such as `spec.containers[0].name`.
    pub field: String,
    /// The reason, such as `FieldValueInvalid`.
    pub reason: &'static str,
    /// The text with the value and the rule.
    pub message: String,
}

impl FieldError {
    /// A value that breaks a rule.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {why}"),
        }
    }

    /// A value that has to be there.
    #[must_use]
    pub fn required(field: impl Into<String>, why: &str) -> Self {
        let tail = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        Self {
            field: field.into(),
            reason: "FieldValueRequired",
            message: format!("Required value{tail}"),
        }
    }

    /// A value that may not be there, or may not change.
    #[must_use]
    pub fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self {
            field: field.into(),
            reason: "FieldValueForbidden",
            message: format!("Forbidden: {why}"),
        }
    }

    /// A value outside of its list.
    #[must_use]
    pub fn not_supported(field: impl Into<String>, value: &Value, allowed: &[String]) -> Self {
        let list: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
        Self {
            field: field.into(),
            reason: "FieldValueNotSupported",
            message: format!(
                "Unsupported value: {value}: supported values: {}",
                list.join(", ")
            ),
        }
    }

    /// A value of another type than the schema says.
    #[must_use]
    pub fn wrong_type(field: impl Into<String>, value: &Value, wanted: &str) -> Self {
        let field = field.into();
        let got = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let message =
            format!("Invalid value: {got:?}: {field} in body must be of type {wanted}: {got:?}");
        Self {
            field,
            reason: "FieldValueTypeInvalid",
            message,
        }
    }
}
