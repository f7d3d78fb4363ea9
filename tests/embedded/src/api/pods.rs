//! The rules of pods: defaults, what may be created, what may change, binding and eviction.

use serde_json::{Value, json};

use super::error::{ApiError, FieldError};
use super::resources::ResourceType;
use super::server::{ApiServer, Caller, DeleteOptions, Target};
use super::store::{Key, Store, Stored};
use super::strategy;
use crate::clock::Clock;
use crate::{quantity, value};

/// Whether a resource name is an extended one: it has a domain that is not Kubernetes' own.
#[must_use]
pub fn is_extended(resource: &str) -> bool {
    resource
        .split_once('/')
        .is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

/// Fills in what Kubernetes fills in when it reads a pod.
pub fn default_pod(pod: &mut Value) {
    for (key, text) in [
        ("restartPolicy", "Always"),
        ("dnsPolicy", "ClusterFirst"),
        ("schedulerName", "default-scheduler"),
        ("serviceAccountName", "default"),
    ] {
        value::set_default(pod, &["spec", key], text);
    }
    value::set_default(pod, &["spec", "terminationGracePeriodSeconds"], 30);
    value::set_default(pod, &["spec", "enableServiceLinks"], true);
    value::set_default(pod, &["spec", "securityContext"], json!({}));
    let host_network = value::flag(pod, &["spec", "hostNetwork"]);
    for list in ["initContainers", "containers"] {
        if value::items(pod, &["spec", list]).is_empty() {
            continue;
        }
        for container in value::list(pod, &["spec", list]) {
            default_container(container, host_network);
        }
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    let image = value::text(container, &["image"]);
    let name = image.rsplit('/').next().unwrap_or_default();
    let latest = !name.contains([':', '@']) || name.ends_with(":latest");
    let policy = if latest { "Always" } else { "IfNotPresent" };
    value::set_default(container, &["imagePullPolicy"], policy);
    value::set_default(
        container,
        &["terminationMessagePath"],
        "/dev/termination-log",
    );
    value::set_default(container, &["terminationMessagePolicy"], "File");
    value::set_default(container, &["resources"], json!({}));
    let limits = value::at(container, &["resources", "limits"])
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    for (resource, quantity) in limits {
        value::set_default(container, &["resources", "requests", &resource], quantity);
    }
    if value::items(container, &["ports"]).is_empty() {
        return;
    }
    for port in value::list(container, &["ports"]) {
        value::set_default(port, &["protocol"], "TCP");
        if host_network && let Some(number) = value::int(port, &["containerPort"]) {
            value::set_default(port, &["hostPort"], number);
        }
    }
}

/// Resolves the priority class of a new pod.
///
/// # Errors
/// 403 when the class is not there.
pub fn set_priority(store: &Store, ty: &ResourceType, pod: &mut Value) -> Result<(), ApiError> {
    let table = store
        .find("scheduling.k8s.io", "priorityclasses")
        .and_then(|i| store.tables.get(i));
    let name = value::text(pod, &["spec", "priorityClassName"]).to_owned();
    let class = if name.is_empty() {
        table.and_then(|t| {
            t.objects
                .values()
                .find(|c| value::flag(&c.value, &["globalDefault"]))
        })
    } else {
        let found = table.and_then(|t| t.objects.get(&Key::new("", &name)));
        if found.is_none() {
            let why = format!("no PriorityClass with name {name} was found");
            return Err(ApiError::forbidden(ty, value::name(pod), &why));
        }
        found
    };
    let (number, policy) = class.map_or((0, "PreemptLowerPriority"), |c| {
        (
            value::int(&c.value, &["value"]).unwrap_or(0),
            value::text(&c.value, &["preemptionPolicy"]),
        )
    });
    if let Some(c) = class {
        value::set(pod, &["spec", "priorityClassName"], value::name(&c.value));
    }
    value::set(pod, &["spec", "priority"], number);
    let policy = if policy.is_empty() {
        "PreemptLowerPriority"
    } else {
        policy
    };
    value::set_default(pod, &["spec", "preemptionPolicy"], policy);
    Ok(())
}

/// The status that a new pod starts with.
pub fn start_status(pod: &mut Value, clock: &Clock) {
    let class = qos_class(pod);
    value::set(
        pod,
        &["status"],
        json!({"phase": "Pending", "qosClass": class}),
    );
    if !value::items(pod, &["spec", "schedulingGates"]).is_empty() {
        let condition = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"});
        value::set_condition(pod, condition, &clock.stamp());
    }
}

fn qos_class(pod: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in value::items(pod, &["spec", "containers"]) {
        for resource in ["cpu", "memory"] {
            let request = value::at(container, &["resources", "requests", resource])
                .and_then(quantity::of_value);
            let limit = value::at(container, &["resources", "limits", resource])
                .and_then(quantity::of_value);
            any |= request.is_some_and(|q| q > 0) || limit.is_some_and(|q| q > 0);
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Checks a new pod, defaults included.
///
/// # Errors
/// 422 with every broken field.
pub fn check_new(ty: &ResourceType, pod: &Value) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let containers = value::items(pod, &["spec", "containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required("spec.containers", ""));
    }
    for list in ["initContainers", "containers"] {
        let mut seen = std::collections::BTreeSet::new();
        for (at, container) in value::items(pod, &["spec", list]).iter().enumerate() {
            let path = format!("spec.{list}[{at}]");
            let name = value::text(container, &["name"]);
            if name.is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            } else if !seen.insert(name.to_owned()) {
                errors.push(FieldError {
                    field: format!("{path}.name"),
                    reason: "FieldValueDuplicate",
                    message: format!("Duplicate value: {name:?}"),
                });
            }
            check_resources(container, &path, &mut errors);
        }
    }
    let policy = value::at(pod, &["spec", "restartPolicy"])
        .cloned()
        .unwrap_or_default();
    let allowed = ["Always", "OnFailure", "Never"].map(str::to_owned);
    if !allowed.iter().any(|a| policy.as_str() == Some(a)) {
        errors.push(FieldError::not_supported(
            "spec.restartPolicy",
            &policy,
            &allowed,
        ));
    }
    let gated = !value::items(pod, &["spec", "schedulingGates"]).is_empty();
    if gated && !value::text(pod, &["spec", "nodeName"]).is_empty() {
        errors.push(FieldError::forbidden(
            "spec.nodeName",
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
    check_match_fields(pod, &mut errors);
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(ty, value::name(pod), &errors))
}

fn check_resources(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for part in ["requests", "limits"] {
        let Some(map) = value::at(container, &["resources", part]).and_then(Value::as_object)
        else {
            continue;
        };
        for (resource, quantity) in map {
            let field = format!("{path}.resources.{part}[{resource}]");
            let Some(amount) = quantity::of_value(quantity) else {
                errors.push(FieldError::invalid(field, quantity, "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"));
                continue;
            };
            if amount < 0 {
                errors.push(FieldError::invalid(
                    &field,
                    quantity,
                    "must be greater than or equal to 0",
                ));
            }
            if is_extended(resource) && amount % 1000 != 0 {
                errors.push(FieldError::invalid(&field, quantity, "must be an integer"));
            }
            let other = if part == "requests" {
                "limits"
            } else {
                "requests"
            };
            let other =
                value::at(container, &["resources", other, resource]).and_then(quantity::of_value);
            let unequal = is_extended(resource) && other != Some(amount);
            if part == "requests" && unequal {
                let why = if other.is_none() {
                    "Limit must be set for non overcommitable resources".to_owned()
                } else {
                    format!("must be equal to {resource} limit")
                };
                errors.push(FieldError::invalid(&field, quantity, &why));
            } else if part == "requests" && other.is_some_and(|limit| amount > limit) {
                errors.push(FieldError::invalid(
                    &field,
                    quantity,
                    &format!("must be less than or equal to {resource} limit"),
                ));
            }
        }
    }
}

const REQUIRED_AFFINITY: &[&str] = &[
    "spec",
    "affinity",
    "nodeAffinity",
    "requiredDuringSchedulingIgnoredDuringExecution",
];

fn required_terms(pod: &Value) -> &[Value] {
    value::at(pod, REQUIRED_AFFINITY).map_or(&[], |r| value::items(r, &["nodeSelectorTerms"]))
}

fn check_match_fields(pod: &Value, errors: &mut Vec<FieldError>) {
    let base = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    if value::at(pod, REQUIRED_AFFINITY).is_some() && required_terms(pod).is_empty() {
        errors.push(FieldError::required(
            base,
            "must have at least one node selector term",
        ));
    }
    for (t, term) in required_terms(pod).iter().enumerate() {
        for (r, rule) in value::items(term, &["matchFields"]).iter().enumerate() {
            let path = format!("{base}[{t}].matchFields[{r}]");
            if value::items(rule, &["values"]).len() != 1 {
                errors.push(FieldError::required(format!("{path}.values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"));
            }
            if value::text(rule, &["key"]) != "metadata.name" {
                errors.push(FieldError::invalid(
                    format!("{path}.key"),
                    &json!(value::text(rule, &["key"])),
                    "not a valid field selector key",
                ));
            }
        }
    }
}

const SPEC_FORBIDDEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn spec_alone(pod: &Value) -> Value {
    let spec = pod.get("spec").cloned().unwrap_or_default();
    Value::Object(serde_json::Map::from_iter([("spec".to_owned(), spec)]))
}

/// Checks what an update changes in a pod's spec.
///
/// # Errors
/// 422 with every field that may not change.
pub fn check_update(ty: &ResourceType, new: &Value, old: &Value) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    let gates = |pod| value::items(pod, &["spec", "schedulingGates"]);
    let gated = !gates(old).is_empty();
    if gates(new).iter().any(|g| !gates(old).contains(g)) {
        errors.push(FieldError::forbidden(
            "spec.schedulingGates",
            "only deletion is allowed, but found new scheduling gate",
        ));
    }
    let tolerations = |pod| value::items(pod, &["spec", "tolerations"]);
    if tolerations(old)
        .iter()
        .any(|t| !tolerations(new).contains(t))
    {
        errors.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let (mut a, mut b) = (spec_alone(old), spec_alone(new));
    for pod in [&mut a, &mut b] {
        for key in [
            "schedulingGates",
            "tolerations",
            "activeDeadlineSeconds",
            "ephemeralContainers",
        ] {
            value::remove(pod, &["spec", key]);
        }
        for list in ["initContainers", "containers"] {
            if value::items(pod, &["spec", list]).is_empty() {
                continue;
            }
            for container in value::list(pod, &["spec", list]) {
                value::remove(container, &["image"]);
                value::remove(container, &["imagePullPolicy"]);
            }
        }
    }
    if gated {
        check_gated(new, old, &mut errors);
        for pod in [&mut a, &mut b] {
            value::remove(pod, &["spec", "nodeSelector"]);
            value::remove(pod, &["spec", "affinity", "nodeAffinity"]);
            if value::at(pod, &["spec", "affinity"])
                .and_then(Value::as_object)
                .is_some_and(serde_json::Map::is_empty)
            {
                value::remove(pod, &["spec", "affinity"]);
            }
        }
    }
    if a.get("spec") != b.get("spec") {
        errors.push(FieldError::forbidden("spec", SPEC_FORBIDDEN));
    }
    check_match_fields(new, &mut errors);
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(ty, value::name(new), &errors))
}

/// A gated pod may be narrowed: more node selector keys, more requirements in each affinity term.
fn check_gated(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    if let Some(Value::Object(keys)) = value::at(old, &["spec", "nodeSelector"])
        && keys
            .iter()
            .any(|(k, v)| value::at(new, &["spec", "nodeSelector", k]) != Some(v))
    {
        errors.push(FieldError::invalid(
            "spec.nodeSelector",
            &json!(keys),
            "only additions to spec.nodeSelector are allowed (no mutations or deletions)",
        ));
    }
    let (before, after) = (required_terms(old), required_terms(new));
    if before.is_empty() {
        return;
    }
    let field = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    if before.len() != after.len() {
        errors.push(FieldError::invalid(
            field,
            &json!(after.len()),
            "no additions/deletions to non-empty NodeSelectorTerms list are allowed",
        ));
        return;
    }
    let grows = |a: &Value, b: &Value, key: &str| {
        value::items(b, &[key]).starts_with(value::items(a, &[key]))
    };
    let fine = before
        .iter()
        .zip(after)
        .all(|(a, b)| grows(a, b, "matchExpressions") && grows(a, b, "matchFields"));
    if !fine {
        errors.push(FieldError::invalid(
            field,
            &json!("terms"),
            "only additions are allowed (no mutations or deletions)",
        ));
    }
}

impl ApiServer {
    /// Binds a pod to a node, as `POST pods/{name}/binding` does: uid and resourceVersion of the binding are
    /// preconditions, and its annotations and labels are merged into the pod in the same write.
    ///
    /// # Errors
    /// 404 when the pod is not there; 409 when a precondition fails, or when the pod is being deleted, is bound, or has
    /// scheduling gates; 422 when the target is no node.
    pub fn bind(
        &self,
        caller: &Caller,
        pod: &Target,
        binding: &Value,
    ) -> Result<std::sync::Arc<Stored>, ApiError> {
        let node = value::text(binding, &["target", "name"]).to_owned();
        let kind = value::text(binding, &["target", "kind"]);
        if node.is_empty() || !(kind.is_empty() || kind == "Node") {
            let cause = if node.is_empty() {
                FieldError::required("target.name", "")
            } else {
                FieldError::not_supported(
                    "target.kind",
                    &json!(kind),
                    &["Node".into(), "<empty>".into()],
                )
            };
            return Err(ApiError::invalid(&pod.ty, &pod.name, &[cause]));
        }
        let mut target = pod.clone();
        target.subresource = "binding".into();
        let now = self.inner.clock.stamp();
        let refuse = |why: &str| ApiError::conflict_on("pods/binding", &pod.ty, &pod.name, why);
        self.modify(caller, &target, "create", |old| {
            let uid = value::text(binding, &["metadata", "uid"]);
            let version = value::text(binding, &["metadata", "resourceVersion"]);
            strategy::check_preconditions(&target, old, Some(uid), Some(version)).map_err(|e| {
                refuse(
                    e.message
                        .split_once("\": ")
                        .map_or(e.message.as_str(), |(_, why)| why),
                )
            })?;
            if value::at(old, &["metadata", "deletionTimestamp"]).is_some() {
                return Err(refuse(&format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    pod.name
                )));
            }
            let bound = value::text(old, &["spec", "nodeName"]);
            if !bound.is_empty() {
                return Err(refuse(&format!(
                    "pod {} is already assigned to node {bound:?}",
                    pod.name
                )));
            }
            if !value::items(old, &["spec", "schedulingGates"]).is_empty() {
                return Err(refuse(&format!(
                    "pod {} has non-empty .spec.schedulingGates",
                    pod.name
                )));
            }
            let mut new = old.clone();
            value::set(&mut new, &["spec", "nodeName"], node.clone());
            value::remove(&mut new, &["status", "nominatedNodeName"]);
            for part in ["annotations", "labels"] {
                if let Some(Value::Object(more)) = value::at(binding, &["metadata", part]) {
                    value::object(&mut new, &["metadata", part]).extend(more.clone());
                }
            }
            value::set_condition(
                &mut new,
                json!({"type": "PodScheduled", "status": "True"}),
                &now,
            );
            Ok(new)
        })
    }

    /// Evicts a pod, as `POST pods/{name}/eviction` does: the condition DisruptionTarget, then a delete.
    ///
    /// # Errors
    /// 404 when the pod is not there, 409 when a precondition fails.
    pub fn evict(
        &self,
        caller: &Caller,
        pod: &Target,
        options: &DeleteOptions,
    ) -> Result<(), ApiError> {
        let stored = self.get(pod)?;
        strategy::check_preconditions(
            pod,
            &stored.value,
            options.uid.as_deref(),
            options.version.as_deref(),
        )?;
        let mut status = pod.clone();
        status.subresource = "status".into();
        let now = self.inner.clock.stamp();
        self.modify(caller, &status, "patch", |old| {
            let mut new = old.clone();
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting"});
            value::set_condition(&mut new, condition, &now);
            Ok(new)
        })?;
        let mut options = options.clone();
        options.version = None;
        self.delete(caller, pod, &options).map(|_| ())
    }
}
