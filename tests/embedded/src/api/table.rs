//! Tables, as `kubectl get` asks for them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::resources::{Column, ResourceType};
use super::server::Target;
use super::store::Stored;
use crate::value;

/// The table of some objects. Dates are given as dates and turned into ages by the caller's clock.
#[must_use]
pub fn table(
    target: &Target,
    objects: &[Arc<Stored>],
    now: Option<jiff::Timestamp>,
    version: &str,
) -> Value {
    let ty = &target.ty;
    let now = now.unwrap_or_else(jiff::Timestamp::now);
    let mut columns = Vec::new();
    let event = ty.plural == "events";
    if !event {
        columns.push(json!({"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "name"}));
    }
    columns.extend(ty.columns.iter().map(|c| {
        json!({"name": c.name, "type": c.kind, "format": c.format, "priority": c.priority, "description": c.name})
    }));
    if ty.custom && ty.columns.is_empty() {
        columns.push(json!({"name": "Age", "type": "date", "format": "", "priority": 0, "description": "age"}));
    }
    let rows: Vec<Value> = objects
        .iter()
        .map(|o| {
            let metadata = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": o.value.get("metadata")});
            json!({"cells": cells(ty, &o.value, now), "object": metadata})
        })
        .collect();
    let version = match objects.first() {
        Some(first) if version.is_empty() => {
            value::text(&first.value, &["metadata", "resourceVersion"]).to_owned()
        }
        _ => version.to_owned(),
    };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": version},
        "columnDefinitions": columns, "rows": rows})
}

fn cells(ty: &ResourceType, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = Vec::new();
    if ty.plural != "events" {
        cells.push(json!(value::name(object)));
    }
    if ty.custom {
        cells.extend(ty.columns.iter().map(|c| custom_cell(c, object, now)));
        if ty.columns.is_empty() {
            cells.push(json!(age(
                value::text(object, &["metadata", "creationTimestamp"]),
                now
            )));
        }
    } else {
        cells.extend(
            ty.columns
                .iter()
                .map(|c| json!(built_in_cell(ty, &c.name, object, now))),
        );
    }
    cells
}

fn custom_cell(column: &Column, object: &Value, now: jiff::Timestamp) -> Value {
    let Some(found) = json_path(object, &column.path) else {
        return Value::Null;
    };
    if column.kind == "date" {
        return json!(age(found.as_str().unwrap_or_default(), now));
    }
    match found {
        Value::Object(_) | Value::Array(_) => json!(found.to_string()),
        other => other.clone(),
    }
}

/// The value at a JSON path with fields, indexes, `[-1:]`, `['a.b/c']` and `[?(@.type=="Ready")]`.
#[must_use]
pub fn json_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut current = object;
    let mut rest = path.trim().trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(tail) = rest.strip_prefix('[') {
            let end = if tail.starts_with('?') {
                tail.find(")]")? + 1
            } else {
                tail.find(']')?
            };
            let inside = tail.get(..end)?;
            rest = tail.get(end + 1..)?;
            current = step_bracket(current, inside)?;
        } else {
            let tail = rest.strip_prefix('.').unwrap_or(rest);
            let mut end = tail.len();
            let mut escaped = false;
            for (at, c) in tail.char_indices() {
                if !escaped && (c == '.' || c == '[') {
                    end = at;
                    break;
                }
                escaped = c == '\\';
            }
            let key = tail.get(..end)?.replace('\\', "");
            rest = tail.get(end..)?;
            if !key.is_empty() {
                current = current.get(&key)?;
            }
        }
    }
    Some(current)
}

fn step_bracket<'a>(current: &'a Value, inside: &str) -> Option<&'a Value> {
    if let Some(key) = inside.strip_prefix(['\'', '"']) {
        return current.get(key.trim_end_matches(['\'', '"']));
    }
    let items = current.as_array()?;
    if let Some(test) = inside.strip_prefix("?(@.") {
        let (key, wanted) = test.trim_end_matches(')').split_once("==")?;
        let wanted = wanted.trim().trim_matches(['\'', '"']);
        return items
            .iter()
            .find(|i| value::text(i, &[key.trim()]) == wanted);
    }
    match inside.trim_end_matches(':').parse::<i64>().ok()? {
        back if back < 0 => items
            .iter()
            .rev()
            .nth(usize::try_from(back.unsigned_abs()).ok()?.checked_sub(1)?),
        ahead => items.get(usize::try_from(ahead).ok()?),
    }
}

/// The age that kubectl prints: `12s`, `3m4s`, `5h`, `2d`.
#[must_use]
pub fn age(stamp: &str, now: jiff::Timestamp) -> String {
    let Ok(then) = stamp.parse::<jiff::Timestamp>() else {
        return "<unknown>".into();
    };
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    let (m, h, d) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |whole: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 {
            format!("{whole}{unit}")
        } else {
            format!("{whole}{unit}{rest}{small}")
        }
    };
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=599 => pair(m, "m", seconds % 60, "s"),
        600..=10_799 => format!("{m}m"),
        10_800..=28_799 => pair(h, "h", m % 60, "m"),
        28_800..=172_799 => format!("{h}h"),
        172_800..=691_199 => pair(d, "d", h % 24, "h"),
        _ => format!("{d}d"),
    }
}

fn built_in_cell(ty: &ResourceType, column: &str, object: &Value, now: jiff::Timestamp) -> String {
    let text = |path: &[&str]| value::text(object, path).to_owned();
    let or_none = |s: String| if s.is_empty() { "<none>".to_owned() } else { s };
    match (ty.kind.as_str(), column) {
        (_, "Age") => age(&text(&["metadata", "creationTimestamp"]), now),
        (_, "Created At") => text(&["metadata", "creationTimestamp"]),
        ("Pod", _) => pod_cell(column, object),
        ("Node", _) => node_cell(column, object),
        ("Event", _) => event_cell(column, object, now),
        ("Namespace" | "PersistentVolumeClaim", "Status") => text(&["status", "phase"]),
        ("PersistentVolumeClaim", "Volume") => text(&["spec", "volumeName"]),
        ("Service", "Type") => text(&["spec", "type"]),
        ("Service", "Cluster-IP") => or_none(text(&["spec", "clusterIP"])),
        ("Service", "Port(s)") => {
            let ports = value::items(object, &["spec", "ports"]).iter();
            let ports: Vec<String> = ports
                .map(|p| {
                    format!(
                        "{}/{}",
                        value::int(p, &["port"]).unwrap_or(0),
                        value::text(p, &["protocol"])
                    )
                })
                .collect();
            or_none(ports.join(","))
        }
        (_, "Data") => object
            .get("data")
            .and_then(Value::as_object)
            .map_or(0, serde_json::Map::len)
            .to_string(),
        (_, "Type") => text(&["type"]),
        ("Lease", "Holder") => text(&["spec", "holderIdentity"]),
        ("PriorityClass", "Value") => object
            .get("value")
            .map(Value::to_string)
            .unwrap_or_default(),
        ("PriorityClass", "Global-Default") => value::flag(object, &["globalDefault"]).to_string(),
        ("PriorityClass", "PreemptionPolicy") => text(&["preemptionPolicy"]),
        ("Deployment", "Ready") => format!(
            "{}/{}",
            value::int(object, &["status", "readyReplicas"]).unwrap_or(0),
            value::int(object, &["spec", "replicas"]).unwrap_or(1)
        ),
        ("Job", "Status") => {
            let last = value::items(object, &["status", "conditions"]).last();
            last.map_or_else(
                || "Running".into(),
                |c| value::text(c, &["type"]).to_owned(),
            )
        }
        _ => String::new(),
    }
}

fn pod_cell(column: &str, pod: &Value) -> String {
    let statuses = value::items(pod, &["status", "containerStatuses"]);
    let dash = |s: &str| {
        if s.is_empty() {
            "<none>".to_owned()
        } else {
            s.to_owned()
        }
    };
    match column {
        "Ready" => {
            let ready = statuses
                .iter()
                .filter(|s| value::flag(s, &["ready"]))
                .count();
            format!(
                "{ready}/{}",
                value::items(pod, &["spec", "containers"]).len()
            )
        }
        "Status" => pod_status(pod),
        "Restarts" => {
            let counts = statuses
                .iter()
                .filter_map(|s| value::int(s, &["restartCount"]));
            counts.fold(0_i64, i64::saturating_add).to_string()
        }
        "IP" => dash(value::text(pod, &["status", "podIP"])),
        "Node" => dash(value::text(pod, &["spec", "nodeName"])),
        "Nominated Node" => dash(value::text(pod, &["status", "nominatedNodeName"])),
        _ => "<none>".into(),
    }
}

fn pod_status(pod: &Value) -> String {
    if value::at(pod, &["metadata", "deletionTimestamp"]).is_some() {
        return "Terminating".into();
    }
    let gated = value::condition(pod, "PodScheduled")
        .is_some_and(|c| value::text(c, &["reason"]) == "SchedulingGated");
    if gated && value::text(pod, &["spec", "nodeName"]).is_empty() {
        return "SchedulingGated".into();
    }
    let reason = value::text(pod, &["status", "reason"]);
    let waiting = value::items(pod, &["status", "containerStatuses"])
        .iter()
        .map(|s| value::text(s, &["state", "waiting", "reason"]))
        .find(|r| !r.is_empty());
    let phase = value::text(pod, &["status", "phase"]);
    match (reason, waiting, phase) {
        (r, _, _) if !r.is_empty() => r.to_owned(),
        (_, Some(w), _) => w.to_owned(),
        (_, _, "Succeeded") => "Completed".into(),
        (_, _, "Failed") => "Error".into(),
        (_, _, phase) => phase.to_owned(),
    }
}

fn node_cell(column: &str, node: &Value) -> String {
    match column {
        "Status" => {
            let ready = value::condition(node, "Ready").map_or("", |c| value::text(c, &["status"]));
            let mut words = vec![match ready {
                "True" => "Ready",
                "" => "Unknown",
                _ => "NotReady",
            }];
            if value::flag(node, &["spec", "unschedulable"]) {
                words.push("SchedulingDisabled");
            }
            words.join(",")
        }
        "Roles" => {
            let labels = value::at(node, &["metadata", "labels"]).and_then(Value::as_object);
            let roles: Vec<&str> = labels
                .into_iter()
                .flat_map(serde_json::Map::keys)
                .filter_map(|k| k.strip_prefix("node-role.kubernetes.io/"))
                .collect();
            if roles.is_empty() {
                "<none>".into()
            } else {
                roles.join(",")
            }
        }
        "Version" => value::text(node, &["status", "nodeInfo", "kubeletVersion"]).into(),
        "OS-Image" => value::text(node, &["status", "nodeInfo", "osImage"]).into(),
        _ => "<none>".into(),
    }
}

fn event_cell(column: &str, event: &Value, now: jiff::Timestamp) -> String {
    let text = |path: &[&str]| value::text(event, path).to_owned();
    match column {
        "Last Seen" => {
            let stamps = [
                text(&["series", "lastObservedTime"]),
                text(&["lastTimestamp"]),
                text(&["eventTime"]),
                text(&["metadata", "creationTimestamp"]),
            ];
            let stamp = stamps
                .into_iter()
                .find(|s| !s.is_empty())
                .unwrap_or_default();
            age(&stamp, now)
        }
        "Type" => text(&["type"]),
        "Reason" => text(&["reason"]),
        "Object" => format!(
            "{}/{}",
            text(&["involvedObject", "kind"]).to_lowercase(),
            text(&["involvedObject", "name"])
        ),
        "Message" => text(&["message"]).trim().to_owned(),
        "Count" => {
            let series = value::int(event, &["series", "count"]);
            series
                .or_else(|| value::int(event, &["count"]))
                .unwrap_or(1)
                .to_string()
        }
        _ => value::name(event).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_paths_of_printer_columns() {
        let object = json!({"a": {"b": [{"type": "X", "v": 1}, {"type": "Y", "v": 2}]}, "m": {"k.d/x": "l"}});
        for (path, wanted) in [
            (".a.b[0].v", json!(1)),
            (".a.b[-1:].type", json!("Y")),
            (".a.b[?(@.type==\"Y\")].v", json!(2)),
            (".m['k.d/x']", json!("l")),
            (".m.k\\.d/x", json!("l")),
        ] {
            assert_eq!(json_path(&object, path), Some(&wanted), "{path}");
        }
        assert_eq!(json_path(&object, ".a.c"), None);
    }

    #[test]
    fn ages_read_as_kubectl_prints_them() {
        let then = jiff::Timestamp::from_second(1_000_000).unwrap();
        let stamp = then.to_string();
        for (seconds, wanted) in [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3600, "60m"),
            (10_800, "3h"),
            (90_000, "25h"),
            (1_000_000, "11d"),
        ] {
            let now = jiff::Timestamp::from_second(1_000_000 + seconds).unwrap();
            assert_eq!(age(&stamp, now), wanted);
        }
        assert_eq!(age("odd", then), "<unknown>");
    }
}
