//! Gang objects: making them, and replacing their status.

use std::sync::Arc;

use muster_core::action::Write;
use muster_core::event::WriteOutcome;
use muster_core::ids::ResourceVersion;
use muster_core::record::{self, GangRecord};
use muster_core::workload::WorkloadKind;
use muster_kubernetes::gang::Gang;
use muster_kubernetes::{names, translate, write};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Writer;
use super::step::{Attempts, Request, Tried, annotation, text};
use crate::api::Content;

fn path(namespace: &str, object: &str) -> String {
    format!("/apis/muster.dev/v1alpha1/namespaces/{namespace}/gangs/{object}")
}

#[allow(clippy::result_large_err)] // The error is the write's outcome, made once per write.
fn parse(value: Value) -> Result<(Gang, GangRecord), WriteOutcome> {
    let unreadable = |error: String| {
        WriteOutcome::Unknown(Arc::from(format!(
            "the Gang object is not understood: {error}"
        )))
    };
    let gang: Gang =
        serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
    let record = translate::record(&gang).map_err(unreadable)?;
    Ok((gang, record))
}

impl Writer {
    pub(super) async fn create_record(
        &self,
        write: &Write,
        object: &str,
        kind: WorkloadKind,
        name: &str,
        deadline: Instant,
    ) -> WriteOutcome {
        let mut attempts = self.attempts(write, deadline);
        let namespace = write.gang.namespace.as_str();
        let collection = format!("/apis/muster.dev/v1alpha1/namespaces/{namespace}/gangs");
        let mut object = object.to_owned();
        let mut clashes: u32 = 0;
        let owner = match self
            .pod_group_uid(&mut attempts, namespace, kind, name)
            .await
        {
            Ok(owner) => owner,
            Err(outcome) => return outcome,
        };
        loop {
            let mut gang = write::gang_object(&write.gang, kind, name, &object);
            if let Some(uid) = &owner {
                write::own(&mut gang, kind, name, uid);
            }
            let body = match serde_json::to_value(gang) {
                Ok(body) => body,
                Err(error) => return WriteOutcome::Refused(Arc::from(error.to_string())),
            };
            match attempts
                .send(&Request::post(collection.clone(), body))
                .await
            {
                Tried::Done(value) => {
                    return match parse(value) {
                        Ok((gang, record)) => {
                            self.remembered.keep_made(&write.gang, &object, gang.status);
                            WriteOutcome::Done(Some(record))
                        }
                        Err(outcome) => outcome,
                    };
                }
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } => {}
                Tried::Doubt => attempts.pause().await,
            }
            match attempts.read_record(&path(namespace, &object)).await {
                Err(outcome) => return outcome,
                Ok(None) => {}
                Ok(Some(value)) => match parse(value) {
                    Ok((gang, record)) if record.key == write.gang => {
                        self.remembered.keep_made(&write.gang, &object, gang.status);
                        return WriteOutcome::Done(Some(record));
                    }
                    // The name is taken by another gang's object, or by something unreadable.
                    _ if clashes == 0 => {
                        clashes = 1;
                        object = apart(&object, &write.gang.uid);
                    }
                    _ => {
                        let said = format!("the name {object} is taken by another Gang object");
                        return WriteOutcome::Refused(Arc::from(said));
                    }
                },
            }
            if attempts.spent() {
                return attempts.unknown();
            }
        }
    }

    /// UID of a PodGroup, whose gang's key does not hold it. `None`: another kind, or it is gone.
    async fn pod_group_uid(
        &self,
        attempts: &mut Attempts<'_>,
        namespace: &str,
        kind: WorkloadKind,
        name: &str,
    ) -> Result<Option<String>, WriteOutcome> {
        if kind != WorkloadKind::PodGroup {
            return Ok(None);
        }
        let path =
            format!("/apis/scheduling.x-k8s.io/v1alpha1/namespaces/{namespace}/podgroups/{name}");
        let found = attempts.read_record(&path).await?;
        Ok(found
            .map(|group| text(&group, "/metadata/uid").to_owned())
            .filter(|uid| !uid.is_empty()))
    }

    pub(super) async fn put_status(
        &self,
        write: &Write,
        object: &str,
        expected: &ResourceVersion,
        status: &record::GangStatus,
        deadline: Instant,
    ) -> WriteOutcome {
        let mut attempts = self.attempts(write, deadline);
        let namespace = write.gang.namespace.as_str();
        let path = path(namespace, object);
        let previous = match self.remembered.recall(&write.gang, object) {
            Some(previous) => Some(previous),
            None => match attempts.read_record(&path).await {
                Ok(Some(value)) => match parse(value) {
                    Ok((gang, _)) => gang.status,
                    Err(outcome) => return outcome,
                },
                Ok(None) => return WriteOutcome::Gone,
                Err(outcome) => return outcome,
            },
        };
        let wanted = write::status(status, previous.as_ref(), self.wall.now());
        let request = Request {
            method: http::Method::PUT,
            path: format!("{path}/status"),
            content: Content::Json,
            body: Some(json!({
                "apiVersion": "muster.dev/v1alpha1",
                "kind": "Gang",
                "metadata": {
                    "name": object,
                    "namespace": namespace,
                    "resourceVersion": expected.as_str(),
                },
                "status": wanted,
            })),
        };
        loop {
            let doubt = match attempts.send(&request).await {
                Tried::Done(value) => return self.stored(write, object, value),
                Tried::NotFound => {
                    self.remembered.forget(&write.gang);
                    return WriteOutcome::Gone;
                }
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } => false,
                Tried::Doubt => {
                    attempts.pause().await;
                    true
                }
            };
            let value = match attempts.read_record(&path).await {
                Ok(Some(value)) => value,
                Ok(None) => {
                    self.remembered.forget(&write.gang);
                    return WriteOutcome::Conflict(None);
                }
                Err(outcome) => return outcome,
            };
            let unchanged = text(&value, "/metadata/resourceVersion") == expected.as_str();
            if doubt && unchanged {
                if attempts.spent() {
                    return attempts.unknown();
                }
                continue;
            }
            let (gang, record) = match parse(value) {
                Ok(parsed) => parsed,
                Err(outcome) => return outcome,
            };
            // Our own write whose answer was lost says exactly what was wanted.
            let ours = gang.status.as_ref() == Some(&wanted);
            self.remembered.keep(&write.gang, object, gang.status);
            return if ours {
                WriteOutcome::Done(Some(record))
            } else {
                WriteOutcome::Conflict(Some(record))
            };
        }
    }

    /// Writes our epoch on a Gang object. The answer says what was promised until then.
    pub(super) async fn stamp_record(
        &self,
        write: &Write,
        object: &str,
        uid: &str,
        expected: &ResourceVersion,
        deadline: Instant,
    ) -> WriteOutcome {
        let mut attempts = self.attempts(write, deadline);
        let path = path(write.gang.namespace.as_str(), object);
        let mut version = expected.clone();
        loop {
            let mark = format!("{version}.{}", self.wall.now().as_nanosecond());
            let patch = write::stamp_patch(uid, version.as_str(), write.epoch, &mark);
            match attempts.send(&Request::patch(path.clone(), patch)).await {
                Tried::Done(value) => return self.stored(write, object, value),
                Tried::NotFound => return WriteOutcome::Gone,
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } | Tried::Doubt => attempts.pause().await,
            }
            let found = match attempts.read_record(&path).await {
                Ok(Some(found)) if text(&found, "/metadata/uid") == uid => found,
                Ok(_) => return WriteOutcome::Gone,
                Err(outcome) => return outcome,
            };
            if annotation(&found, names::STAMP_MARK) == Some(mark.as_str()) {
                return self.stored(write, object, found);
            }
            if attempts.spent() {
                return attempts.unknown();
            }
            version = ResourceVersion::from(text(&found, "/metadata/resourceVersion"));
        }
    }

    /// Deletes a Gang object as it was seen: one that a later leader has stamped or written since stays.
    pub(super) async fn delete_record(
        &self,
        write: &Write,
        object: &str,
        uid: &str,
        expected: &ResourceVersion,
        deadline: Instant,
    ) -> WriteOutcome {
        let path = path(write.gang.namespace.as_str(), object);
        let mut attempts = self.attempts(write, deadline);
        let mut version = expected.clone();
        loop {
            let request = Request::delete_seen(path.clone(), uid, version.as_str());
            match attempts.send(&request).await {
                Tried::Done(_) => {
                    self.remembered.forget(&write.gang);
                    return WriteOutcome::Done(None);
                }
                Tried::NotFound => {
                    self.remembered.forget(&write.gang);
                    return WriteOutcome::Gone;
                }
                Tried::Over(outcome) => return outcome,
                Tried::Conflict { .. } | Tried::Doubt => attempts.pause().await,
            }
            match attempts.read_record(&path).await {
                Err(outcome) => return outcome,
                Ok(Some(found)) if text(&found, "/metadata/uid") == uid => {
                    version = ResourceVersion::from(text(&found, "/metadata/resourceVersion"));
                }
                Ok(_) => return WriteOutcome::Gone,
            }
            if attempts.spent() {
                return attempts.unknown();
            }
        }
    }

    fn stored(&self, write: &Write, object: &str, value: Value) -> WriteOutcome {
        match parse(value) {
            Ok((gang, record)) => {
                self.remembered.keep(&write.gang, object, gang.status);
                WriteOutcome::Done(Some(record))
            }
            Err(outcome) => outcome,
        }
    }
}

/// Another name for a Gang object whose name is taken.
fn apart(object: &str, uid: &str) -> String {
    let end: String = uid
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(5)
        .collect::<String>()
        .to_ascii_lowercase();
    let stem: String = object.chars().take(240).collect();
    format!("{stem}-{end}")
}
