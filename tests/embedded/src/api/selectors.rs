//! Label and field selectors of list, watch and deletecollection.

use serde_json::Value;

use super::error::ApiError;
use super::resources::ResourceType;
use crate::value;

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelRule {
    /// The value is one of these.
    In(String, Vec<String>),
    /// The value is none of these, or the label is not there.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is not there.
    Missing(String),
    /// The value is a whole number above this.
    Above(String, i64),
    /// The value is a whole number below this.
    Below(String, i64),
}

impl LabelRule {
    fn holds(&self, labels: Option<&Value>) -> bool {
        let get = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
        let number = |key: &str| get(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => get(key).is_some_and(|v| values.iter().any(|x| x == v)),
            Self::NotIn(key, values) => get(key).is_none_or(|v| values.iter().all(|x| x != v)),
            Self::Exists(key) => get(key).is_some(),
            Self::Missing(key) => get(key).is_none(),
            Self::Above(key, limit) => number(key).is_some_and(|v| v > *limit),
            Self::Below(key, limit) => number(key).is_some_and(|v| v < *limit),
        }
    }
}

/// Which objects a request is about.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only this namespace; all when `None`.
    pub namespace: Option<String>,
    labels: Vec<LabelRule>,
    fields: Vec<(Vec<String>, bool, String)>,
}

impl Filter {
    /// A filter from the texts of the query; empty texts select everything.
    ///
    /// # Errors
    /// 400 when a selector cannot be parsed or names a field that the resource cannot be selected by.
    pub fn parse(
        ty: &ResourceType,
        namespace: Option<String>,
        labels: &str,
        fields: &str,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            namespace,
            labels: parse_labels(labels)?,
            fields: parse_fields(ty, fields)?,
        })
    }

    /// Whether the object is selected.
    #[must_use]
    pub fn holds(&self, object: &Value) -> bool {
        if let Some(namespace) = &self.namespace
            && value::namespace(object) != namespace
        {
            return false;
        }
        let labels = value::at(object, &["metadata", "labels"]);
        self.labels.iter().all(|rule| rule.holds(labels))
            && self.fields.iter().all(|(path, equal, wanted)| {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                (field_text(object, &path) == *wanted) == *equal
            })
    }
}

fn field_text(object: &Value, path: &[&str]) -> String {
    match value::at(object, path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Number(n)) => n.to_string(),
        // Booleans and numbers that are not written count as their zero, as in Go.
        _ if path == ["spec", "unschedulable"] => "false".into(),
        _ => String::new(),
    }
}

fn parse_fields(
    ty: &ResourceType,
    text: &str,
) -> Result<Vec<(Vec<String>, bool, String)>, ApiError> {
    let mut rules = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (key, equal, wanted) = if let Some((k, v)) = part.split_once("!=") {
            (k, false, v)
        } else if let Some((k, v)) = part.split_once("==") {
            (k, true, v)
        } else if let Some((k, v)) = part.split_once('=') {
            (k, true, v)
        } else {
            return Err(ApiError::bad_request(format!(
                "invalid field selector {part:?}: can't understand it"
            )));
        };
        let key = key.trim();
        if !selectable(ty, key) {
            return Err(ApiError::bad_request(format!(
                "field label not supported: {key}"
            )));
        }
        let path = match (ty.group.as_str(), key) {
            ("events.k8s.io", k) => k.replace("regarding.", "involvedObject."),
            (_, k) => k.to_owned(),
        };
        rules.push((
            path.split('.').map(str::to_owned).collect(),
            equal,
            wanted.trim().to_owned(),
        ));
    }
    Ok(rules)
}

fn selectable(ty: &ResourceType, key: &str) -> bool {
    if matches!(key, "metadata.name" | "metadata.namespace") {
        return true;
    }
    match (ty.group.as_str(), ty.plural.as_str()) {
        ("", "pods") => matches!(
            key,
            "spec.nodeName"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "spec.serviceAccountName"
                | "spec.hostNetwork"
                | "status.phase"
                | "status.podIP"
                | "status.nominatedNodeName"
        ),
        ("", "nodes") => key == "spec.unschedulable",
        ("", "namespaces") => key == "status.phase",
        ("", "secrets") => key == "type",
        (_, "events") => {
            key.starts_with("involvedObject.")
                || key.starts_with("regarding.")
                || matches!(key, "reason" | "type" | "source" | "reportingComponent")
        }
        ("batch", "jobs") => key == "status.successful",
        _ => false,
    }
}

/// The rules of a selector such as `a=b,c in (d,e),!f`.
///
/// # Errors
/// 400 with the part that is not understood.
pub fn parse_labels(text: &str) -> Result<Vec<LabelRule>, ApiError> {
    split_top(text).into_iter().map(parse_label).collect()
}

/// Splits at the commas that stand outside of parentheses.
fn split_top(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text.get(start..at).unwrap_or_default().trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or_default().trim());
    parts.retain(|p| !p.is_empty());
    parts
}

fn parse_label(part: &str) -> Result<LabelRule, ApiError> {
    let bad = || {
        ApiError::bad_request(format!(
            "unable to parse requirement: found {part:?}, expected: key, '!key', 'key=value', 'key!=value', 'key in (..)' or 'key notin (..)'"
        ))
    };
    if let Some((head, tail)) = part.split_once('(') {
        let values: Vec<String> = tail
            .trim_end()
            .strip_suffix(')')
            .ok_or_else(bad)?
            .split(',')
            .map(|v| v.trim().to_owned())
            .collect();
        let words: Vec<&str> = head.split_whitespace().collect();
        return match words.as_slice() {
            [key, "in"] => Ok(LabelRule::In((*key).into(), values)),
            [key, "notin"] => Ok(LabelRule::NotIn((*key).into(), values)),
            _ => Err(bad()),
        };
    }
    let one = |v: &str| vec![v.trim().to_owned()];
    if let Some((key, v)) = part.split_once("!=") {
        return Ok(LabelRule::NotIn(key.trim().into(), one(v)));
    }
    if let Some((key, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(LabelRule::In(key.trim().into(), one(v)));
    }
    if let Some((key, v)) = part.split_once('>') {
        return Ok(LabelRule::Above(
            key.trim().into(),
            v.trim().parse().map_err(|_| bad())?,
        ));
    }
    if let Some((key, v)) = part.split_once('<') {
        return Ok(LabelRule::Below(
            key.trim().into(),
            v.trim().parse().map_err(|_| bad())?,
        ));
    }
    if let Some(key) = part.strip_prefix('!') {
        return Ok(LabelRule::Missing(key.trim().into()));
    }
    if part.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok(LabelRule::Exists(part.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn holds(selector: &str, labels: &Value) -> bool {
        parse_labels(selector)
            .unwrap()
            .iter()
            .all(|r| r.holds(Some(labels)))
    }

    #[test]
    fn label_selectors_follow_the_set_rules() {
        let labels = json!({"pool": "h100", "zone": "a", "rank": "3"});
        for yes in [
            "",
            "pool",
            "pool=h100",
            "pool==h100,zone!=b",
            "pool in (a100,h100),!gone",
            "zone notin (b, c)",
            "gone!=x",
            "rank>2",
            "rank<4",
        ] {
            assert!(holds(yes, &labels), "{yes}");
        }
        for no in ["gone", "pool!=h100", "pool notin (h100)", "!pool", "rank>3"] {
            assert!(!holds(no, &labels), "{no}");
        }
        assert_eq!(parse_labels("a b").unwrap_err().code, 400);
        assert_eq!(parse_labels("a in (b").unwrap_err().code, 400);
    }
}
