//! The scale subresource: one number of an object, in the shape of `autoscaling/v1`.

use std::sync::Arc;

use serde_json::{Value, json};

use super::error::{ApiError, FieldError};
use super::patch::{self, PatchKind};
use super::resources::ScalePaths;
use super::server::{ApiServer, Caller, Target};
use super::store::Stored;
use crate::value;

fn paths(target: &Target) -> Result<&ScalePaths, ApiError> {
    target.ty.scale.as_ref().ok_or_else(ApiError::no_such_path)
}

fn strs(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

/// The Scale of an object.
///
/// # Errors
/// 404 when the resource has no scale.
pub fn show(target: &Target, object: &Value) -> Result<Value, ApiError> {
    let paths = paths(target)?;
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": value::name(object), "namespace": value::namespace(object), "uid": value::uid(object),
            "resourceVersion": value::text(object, &["metadata", "resourceVersion"]),
            "creationTimestamp": value::text(object, &["metadata", "creationTimestamp"])},
        "spec": {},
        "status": {"replicas": value::int(object, &strs(&paths.status)).unwrap_or(0)},
    });
    if let Some(wanted) = value::int(object, &strs(&paths.spec)) {
        value::set(&mut scale, &["spec", "replicas"], wanted);
    }
    let selector = value::text(object, &strs(&paths.selector));
    if !selector.is_empty() {
        value::set(&mut scale, &["status", "selector"], selector);
    }
    Ok(scale)
}

/// Writes the Scale that comes out of `change`.
///
/// # Errors
/// 404, 409 for a stale resourceVersion, 422 for a number that is none or below 0.
pub fn write(
    server: &ApiServer,
    caller: &Caller,
    target: &Target,
    verb: &str,
    change: impl FnOnce(&mut Value) -> Result<(), ApiError>,
) -> Result<(Value, Arc<Stored>), ApiError> {
    let path = strs(&paths(target)?.spec);
    let stored = server.modify(caller, target, verb, |old| {
        let mut scale = show(target, old)?;
        change(&mut scale)?;
        let version = value::text(&scale, &["metadata", "resourceVersion"]);
        if !version.is_empty() && version != value::text(old, &["metadata", "resourceVersion"]) {
            return Err(ApiError::stale(&target.ty, &target.name));
        }
        let wanted = value::at(&scale, &["spec", "replicas"])
            .cloned()
            .unwrap_or_default();
        let good = wanted
            .as_i64()
            .is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n));
        if !good {
            let cause = FieldError::invalid(
                "spec.replicas",
                &wanted,
                "must be a whole number from 0 to 2147483647",
            );
            return Err(ApiError::invalid(&target.ty, &target.name, &[cause]));
        }
        let mut new = old.clone();
        value::set(&mut new, &path, wanted);
        Ok(new)
    })?;
    Ok((show(target, &stored.value)?, stored))
}

/// Applies a patch to a Scale.
///
/// # Errors
/// 415 for apply, and what the patch itself refuses.
pub fn patch(scale: &mut Value, kind: PatchKind, body: &Value) -> Result<(), ApiError> {
    match kind {
        PatchKind::Json => patch::json_patch(scale, body),
        PatchKind::Merge | PatchKind::Strategic | PatchKind::Apply => {
            patch::merge(scale, body);
            Ok(())
        }
    }
}
