//! What happens to an object on its way into the store: names, metadata, defaults, and the rules per resource.

use serde_json::{Value, json};

use super::error::{ApiError, FieldError};
use super::resources::ResourceType;
use super::server::{Caller, DeleteOptions, Target};
use super::store::{Key, Store};
use super::{pods, schema};
use crate::clock::{Chance, Clock};
use crate::value;

/// Refuses an object of another kind or group than the path says. Subresources with kinds of their own are not checked.
///
/// # Errors
/// 400 when kind or apiVersion differ.
pub fn check_kind(target: &Target, body: &Value) -> Result<(), ApiError> {
    if !body.is_object() {
        return Err(ApiError::bad_request(
            "the object provided is not a JSON object",
        ));
    }
    let (kind, api_version) = (
        value::text(body, &["kind"]),
        value::text(body, &["apiVersion"]),
    );
    let wanted = target.ty.api_version(&target.version);
    if (!kind.is_empty() && kind != target.ty.kind)
        || (!api_version.is_empty() && api_version != wanted)
    {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}, kind {kind}) does not match the expected API version ({wanted}, kind {})",
            target.ty.kind
        )));
    }
    Ok(())
}

/// Makes namespace and name of the object agree with the path.
///
/// # Errors
/// 400 when they name something else.
pub fn check_path(target: &Target, object: &mut Value) -> Result<(), ApiError> {
    let namespace = value::namespace(object).to_owned();
    if target.ty.namespaced {
        if !namespace.is_empty() && namespace != target.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        value::set(object, &["metadata", "namespace"], target.namespace.clone());
    } else if !namespace.is_empty() {
        value::remove(object, &["metadata", "namespace"]);
    }
    let name = value::name(object);
    if !target.name.is_empty() && !name.is_empty() && name != target.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    if !target.name.is_empty() {
        value::set(object, &["metadata", "name"], target.name.clone());
    }
    Ok(())
}

/// Gives a new object its generated name, and checks the name it has.
///
/// # Errors
/// 422 when there is no name, or when it breaks the rules of DNS subdomains.
pub fn name_new(object: &mut Value, target: &Target, chance: &Chance) -> Result<(), ApiError> {
    if value::name(object).is_empty() {
        let base = value::text(object, &["metadata", "generateName"]).to_owned();
        if base.is_empty() {
            let cause = FieldError::required("metadata.name", "name or generateName is required");
            return Err(ApiError::invalid(&target.ty, "", &[cause]));
        }
        let head: String = base.chars().take(58).collect();
        value::set(
            object,
            &["metadata", "name"],
            format!("{head}{}", chance.suffix()),
        );
    }
    let name = value::name(object);
    // Names of RBAC objects are path segments (they hold colons); all others are DNS subdomains.
    let free = target.ty.group == "rbac.authorization.k8s.io";
    let label = target.ty.is("", "namespaces") || target.ty.is("", "services");
    let good = if free {
        !name.contains(['/', '%'])
    } else {
        is_subdomain(name)
    };
    if !good || (label && (name.len() > 63 || name.contains('.'))) {
        let cause = FieldError::invalid(
            "metadata.name",
            &json!(name),
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (at most 253 characters; labels 63)",
        );
        return Err(ApiError::invalid(&target.ty, name, &[cause]));
    }
    check_labels(object, &target.ty)
}

/// Whether `name` is an RFC 1123 subdomain of at most 253 characters.
#[must_use]
pub fn is_subdomain(name: &str) -> bool {
    let part = |p: &str| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(p.chars().next())
            && edge(p.chars().last())
            && p.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    !name.is_empty() && name.len() <= 253 && name.split('.').all(part)
}

fn check_labels(object: &Value, ty: &ResourceType) -> Result<(), ApiError> {
    let Some(labels) = value::at(object, &["metadata", "labels"]).and_then(Value::as_object) else {
        return Ok(());
    };
    for (key, v) in labels {
        let Some(text) = v.as_str() else {
            return Err(ApiError::bad_request(format!(
                "label {key:?} has the value {v}, labels are strings"
            )));
        };
        if text.len() > 63 {
            let cause = FieldError::invalid("metadata.labels", v, "must be no more than 63 bytes");
            return Err(ApiError::invalid(ty, value::name(object), &[cause]));
        }
    }
    Ok(())
}

/// Refuses objects in namespaces that are not there or on their way out.
///
/// # Errors
/// 404 or 403.
pub fn check_namespace(store: &Store, target: &Target) -> Result<(), ApiError> {
    if !target.ty.namespaced {
        return Ok(());
    }
    let Some(index) = store.find("", "namespaces") else {
        return Ok(());
    };
    let Some(namespace) = store.get(index, &Key::new("", &target.namespace)) else {
        let ty = store.tables.get(index).map_or(&target.ty, |t| &t.ty);
        return Err(ApiError::not_found(ty, &target.namespace));
    };
    if value::at(&namespace.value, &["metadata", "deletionTimestamp"]).is_some() {
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            target.namespace
        );
        return Err(ApiError::forbidden(&target.ty, &target.name, &why));
    }
    Ok(())
}

/// Sets what the server alone decides about a new object.
///
/// # Errors
/// 400 when the object brings a resourceVersion.
pub fn fresh_metadata(
    object: &mut Value,
    ty: &ResourceType,
    clock: &Clock,
    chance: &Chance,
) -> Result<(), ApiError> {
    if !value::text(object, &["metadata", "resourceVersion"]).is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    for key in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
    ] {
        value::remove(object, &["metadata", key]);
    }
    value::set(object, &["metadata", "uid"], chance.uid());
    value::set(object, &["metadata", "creationTimestamp"], clock.stamp());
    if ty.generation {
        value::set(object, &["metadata", "generation"], 1);
    }
    Ok(())
}

/// Defaults and rules of a new object, by resource.
///
/// # Errors
/// 422 and 403 as the resource's rules say; 400 for unknown fields under strict validation.
pub fn prepare_create(
    store: &Store,
    caller: &Caller,
    target: &Target,
    object: &mut Value,
    clock: &Clock,
) -> Result<(), ApiError> {
    let ty = &target.ty;
    if ty.custom {
        if ty.status {
            value::remove(object, &["status"]);
        }
        return schema::admit(ty, &target.version, object, caller.strict);
    }
    match (ty.group.as_str(), ty.plural.as_str()) {
        ("", "pods") => {
            pods::default_pod(object);
            pods::set_priority(store, ty, object)?;
            pods::start_status(object, clock);
            pods::check_new(ty, object)?;
        }
        ("", "namespaces") => {
            value::set(object, &["spec", "finalizers"], json!(["kubernetes"]));
            value::set(object, &["status", "phase"], "Active");
            let name = value::name(object).to_owned();
            value::set(
                object,
                &["metadata", "labels", "kubernetes.io/metadata.name"],
                name,
            );
        }
        ("", "nodes") => {
            if let Some(capacity) = value::at(object, &["status", "capacity"]).cloned() {
                value::set_default(object, &["status", "allocatable"], capacity);
            }
            value::set_default(object, &["spec"], json!({}));
            value::set_default(object, &["status"], json!({}));
        }
        ("", "secrets") => {
            value::set_default(object, &["type"], "Opaque");
            schema::encode_string_data(object);
        }
        ("", "services") => {
            value::set_default(object, &["spec", "type"], "ClusterIP");
            value::set_default(object, &["spec", "clusterIP"], "10.0.0.10");
        }
        ("scheduling.k8s.io", "priorityclasses") => {
            value::set_default(object, &["preemptionPolicy"], "PreemptLowerPriority");
        }
        ("apiextensions.k8s.io", _) => check_crd(ty, object, clock)?,
        ("policy", _) | ("apps" | "batch", _) => {
            value::remove(object, &["status"]);
            value::set_default(object, &["status"], json!({}));
        }
        _ => {}
    }
    Ok(())
}

fn check_crd(ty: &ResourceType, crd: &mut Value, clock: &Clock) -> Result<(), ApiError> {
    let name = value::name(crd).to_owned();
    let Some(new) = ResourceType::from_crd(crd) else {
        let cause = FieldError::required(
            "spec",
            "group, names.plural, names.kind and one served version are needed",
        );
        return Err(ApiError::invalid(ty, &name, &[cause]));
    };
    if name != new.qualified() {
        let cause = FieldError::invalid(
            "metadata.name",
            &json!(name),
            &format!(
                "must be spec.names.plural+\".\"+spec.group = {:?}",
                new.qualified()
            ),
        );
        return Err(ApiError::invalid(ty, &name, &[cause]));
    }
    if let Some(version) = new.versions.iter().find(|v| !new.schemas.contains_key(*v)) {
        let cause = FieldError::required(
            "spec.versions",
            &format!("schemas are required, version {version} has none"),
        );
        return Err(ApiError::invalid(ty, &name, &[cause]));
    }
    value::set_default(
        crd,
        &["spec", "names", "listKind"],
        format!("{}List", new.kind),
    );
    value::set_default(crd, &["spec", "names", "singular"], new.singular.clone());
    value::set_default(crd, &["spec", "conversion"], json!({"strategy": "None"}));
    let names = value::at(crd, &["spec", "names"])
        .cloned()
        .unwrap_or_default();
    value::set(crd, &["status", "acceptedNames"], names);
    value::set(crd, &["status", "storedVersions"], json!([new.version()]));
    let now = clock.stamp();
    for (kind, reason, text) in [
        ("NamesAccepted", "NoConflicts", "no conflicts found"),
        (
            "Established",
            "InitialNamesAccepted",
            "the initial names have been accepted",
        ),
    ] {
        let condition = json!({"type": kind, "status": "True", "reason": reason, "message": text});
        value::set_condition(crd, condition, &now);
    }
    Ok(())
}

/// The checks of a whole-object write against the stored object.
///
/// # Errors
/// 409 when uid or resourceVersion differ, 422 when a resource needs a resourceVersion and none came.
pub fn check_update_metadata(target: &Target, old: &Value, new: &Value) -> Result<(), ApiError> {
    let (uid, name) = (value::uid(new), value::name(old));
    if !uid.is_empty() && uid != value::uid(old) {
        return Err(precondition("UID", uid, value::uid(old), target, name));
    }
    let version = value::text(new, &["metadata", "resourceVersion"]);
    if version.is_empty() {
        let strict = target.ty.custom || target.ty.group == "coordination.k8s.io";
        if strict && target.subresource.is_empty() {
            let cause = FieldError::invalid(
                "metadata.resourceVersion",
                &json!(0),
                "must be specified for an update",
            );
            return Err(ApiError::invalid(&target.ty, name, &[cause]));
        }
        return Ok(());
    }
    if version != value::text(old, &["metadata", "resourceVersion"]) {
        return Err(ApiError::stale(&target.ty, name));
    }
    Ok(())
}

fn precondition(what: &str, wanted: &str, is: &str, target: &Target, name: &str) -> ApiError {
    let field = if what == "UID" {
        "UID"
    } else {
        "ResourceVersion"
    };
    let why = format!(
        "Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {is}"
    );
    ApiError::conflict(&target.ty, name, &why)
}

/// Checks uid and resourceVersion that a caller gave as preconditions.
///
/// # Errors
/// 409 when one of them differs.
pub fn check_preconditions(
    target: &Target,
    object: &Value,
    uid: Option<&str>,
    version: Option<&str>,
) -> Result<(), ApiError> {
    let name = value::name(object);
    let is_version = value::text(object, &["metadata", "resourceVersion"]);
    if let Some(uid) = uid.filter(|u| !u.is_empty() && *u != value::uid(object)) {
        return Err(precondition("UID", uid, value::uid(object), target, name));
    }
    if let Some(version) = version.filter(|v| !v.is_empty() && *v != is_version) {
        return Err(precondition(
            "ResourceVersion",
            version,
            is_version,
            target,
            name,
        ));
    }
    Ok(())
}

/// Restores in `new` what no update may change.
pub fn keep_metadata(new: &mut Value, old: &Value, target: &Target) {
    for key in [
        "uid",
        "creationTimestamp",
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "name",
        "namespace",
        "generateName",
        "selfLink",
    ] {
        restore(new, &["metadata", key], value::at(old, &["metadata", key]));
    }
    for key in ["apiVersion", "kind"] {
        restore(new, &[key], Some(old.get(key).unwrap_or(&Value::Null)));
    }
    if value::at(new, &["metadata", "managedFields"]).is_none()
        && let Some(fields) = value::at(old, &["metadata", "managedFields"])
    {
        value::set(new, &["metadata", "managedFields"], fields.clone());
    }
    if target.ty.status {
        keep_other_half(new, old, target);
    }
}

/// The status endpoint writes only the status, the main endpoint only the rest.
fn keep_other_half(new: &mut Value, old: &Value, target: &Target) {
    if target.subresource == "status" {
        let mut metadata = value::remove(new, &["metadata"]).unwrap_or_default();
        let before = old.get("metadata").unwrap_or(&Value::Null);
        restore_all(&mut metadata, before, |key, is_there| {
            let written = match key {
                "labels" | "annotations" => !target.ty.custom,
                _ => key == "managedFields",
            };
            written && is_there
        });
        restore_all(new, old, |key, _| matches!(key, "metadata" | "status"));
        value::set(new, &["metadata"], metadata);
    } else if target.subresource.is_empty() || target.subresource == "scale" {
        restore(new, &["status"], old.get("status"));
    }
}

/// Makes the value at `path` what it was. Most are as they were, and to look is much cheaper than to copy.
fn restore(new: &mut Value, path: &[&str], was: Option<&Value>) {
    match was {
        Some(was) if value::at(new, path) == Some(was) => {}
        Some(was) => value::set(new, path, was.clone()),
        None => {
            value::remove(new, path);
        }
    }
}

/// Makes every key of an object what it was, but for those that may be other ones: by name, and whether they are there.
fn restore_all(new: &mut Value, old: &Value, may_differ: impl Fn(&str, bool) -> bool) {
    let none = serde_json::Map::new();
    let old = old.as_object().unwrap_or(&none);
    let map = value::object(new, &[]);
    map.retain(|key, _| old.contains_key(key) || may_differ(key, true));
    for (key, was) in old {
        let is = map.get(key);
        if is != Some(was) && !may_differ(key, is.is_some()) {
            map.insert(key.clone(), was.clone());
        }
    }
}

/// Rules of a changed object, and its generation.
///
/// # Errors
/// 422 when a rule of the resource is broken.
pub fn prepare_update(
    caller: &Caller,
    target: &Target,
    new: &mut Value,
    old: &Value,
) -> Result<(), ApiError> {
    let ty = &target.ty;
    check_labels(new, ty)?;
    if ty.custom {
        schema::admit(ty, &target.version, new, caller.strict)?;
    }
    if ty.is_pod() && target.subresource.is_empty() {
        pods::default_pod(new);
        pods::check_update(ty, new, old)?;
    }
    if ty.is("", "secrets") {
        schema::encode_string_data(new);
    }
    if ty.is("apiextensions.k8s.io", "customresourcedefinitions")
        && ResourceType::from_crd(new).is_none()
    {
        return Err(ApiError::bad_request(
            "the definition has no served version",
        ));
    }
    let differs = |key: &str| new.get(key) != old.get(key);
    let bump = if ty.custom {
        let keys = new
            .as_object()
            .into_iter()
            .chain(old.as_object())
            .flat_map(serde_json::Map::keys);
        let keys: Vec<&String> = keys.collect();
        keys.into_iter()
            .filter(|k| *k != "metadata" && !(ty.status && *k == "status"))
            .any(|k| differs(k))
    } else {
        differs("spec")
    };
    if ty.generation && bump {
        let next = value::int(old, &["metadata", "generation"])
            .unwrap_or(0)
            .saturating_add(1);
        value::set(new, &["metadata", "generation"], next);
    }
    Ok(())
}

/// Whether an object that is being deleted has nothing left to wait for.
#[must_use]
pub fn is_finished(object: &Value) -> bool {
    value::at(object, &["metadata", "deletionTimestamp"]).is_some()
        && value::items(object, &["metadata", "finalizers"]).is_empty()
        && value::items(object, &["spec", "finalizers"]).is_empty()
        && value::int(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) == 0
}

/// The object marked for deletion, or `None` when it can go at once.
#[must_use]
pub fn mark_deleted(
    old: &Value,
    target: &Target,
    options: &DeleteOptions,
    clock: &Clock,
) -> Option<Value> {
    let grace = grace_seconds(old, target, options);
    let foreground = options.propagation == "Foreground";
    let mut new = old.clone();
    if foreground {
        let finalizers = value::list(&mut new, &["metadata", "finalizers"]);
        let name = json!("foregroundDeletion");
        if !finalizers.contains(&name) {
            finalizers.push(name);
        }
    }
    let waits = !value::items(&new, &["metadata", "finalizers"]).is_empty()
        || !value::items(&new, &["spec", "finalizers"]).is_empty();
    if grace == 0 && !waits {
        return None;
    }
    let before = value::int(old, &["metadata", "deletionGracePeriodSeconds"]);
    let marked = value::at(old, &["metadata", "deletionTimestamp"]).is_some();
    if !marked || before.is_some_and(|b| grace < b) {
        let ahead = std::time::Duration::from_secs(u64::try_from(grace).unwrap_or(0));
        value::set(
            &mut new,
            &["metadata", "deletionTimestamp"],
            clock.stamp_after(ahead),
        );
        value::set(&mut new, &["metadata", "deletionGracePeriodSeconds"], grace);
        if target.ty.generation && !marked {
            let next = value::int(old, &["metadata", "generation"])
                .unwrap_or(0)
                .saturating_add(1);
            value::set(&mut new, &["metadata", "generation"], next);
        }
    }
    if target.ty.is("", "namespaces") {
        value::set(&mut new, &["status", "phase"], "Terminating");
    }
    Some(new)
}

fn grace_seconds(old: &Value, target: &Target, options: &DeleteOptions) -> i64 {
    if !target.ty.is_pod() {
        return 0;
    }
    let own = value::int(old, &["spec", "terminationGracePeriodSeconds"]);
    let wanted = options.grace_seconds.or(own).unwrap_or(30);
    let unbound = value::text(old, &["spec", "nodeName"]).is_empty();
    let over = matches!(
        value::text(old, &["status", "phase"]),
        "Succeeded" | "Failed"
    );
    if unbound || over {
        0
    } else if wanted < 0 {
        1
    } else {
        wanted
    }
}

/// What a stored object changes in the server itself: a definition adds or changes a resource.
pub fn after_write(store: &mut Store, target: &Target, object: &Value) {
    if target
        .ty
        .is("apiextensions.k8s.io", "customresourcedefinitions")
        && let Some(ty) = ResourceType::from_crd(object)
    {
        store.define(ty);
    }
}

/// What a deleted object changes in the server itself.
pub fn after_delete(store: &mut Store, target: &Target, object: &Value) {
    if target
        .ty
        .is("apiextensions.k8s.io", "customresourcedefinitions")
    {
        let group = value::text(object, &["spec", "group"]).to_owned();
        let plural = value::text(object, &["spec", "names", "plural"]).to_owned();
        store.undefine(&group, &plural);
    }
}
