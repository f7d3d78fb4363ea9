//! The steps that all writes share: pass the fence, try, read back, wait, try again.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use muster_core::action::{PodTarget, Write};
use muster_core::event::WriteOutcome;
use muster_core::ids::Epoch;
use muster_core::planted::{self, Bug};
use muster_kubernetes::names;
use serde_json::Value;
use tokio::time::Instant;

use super::Writer;
use crate::api::{Answer, Content};

/// First pause between attempts; it doubles up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// Longest pause between attempts, unless the server asks for more.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Text of a write that the fence did not let through. Constant.
pub const NOT_LEADING: &str = "muster: not leading with this epoch any more, nothing was written";

/// A request to try.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub path: String,
    pub content: Content,
    pub body: Option<Value>,
}

impl Request {
    pub fn post(path: String, body: Value) -> Self {
        Self {
            method: Method::POST,
            path,
            content: Content::Json,
            body: Some(body),
        }
    }

    /// Deletes an object by UID.
    pub fn delete(path: String, uid: &str) -> Self {
        Self {
            method: Method::DELETE,
            path,
            content: Content::Json,
            body: Some(serde_json::json!({
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"uid": uid},
            })),
        }
    }

    /// The same of an object as it was seen: by its version too.
    pub fn delete_seen(path: String, uid: &str, version: &str) -> Self {
        Self {
            body: Some(serde_json::json!({
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"uid": uid, "resourceVersion": version},
            })),
            ..Self::delete(path, uid)
        }
    }

    pub fn patch(path: String, body: Value) -> Self {
        Self {
            method: Method::PATCH,
            path,
            content: Content::MergePatch,
            body: Some(body),
        }
    }
}

/// The attempts of one write.
#[derive(Debug)]
pub struct Attempts<'a> {
    writer: &'a Writer,
    write: &'a Write,
    deadline: Instant,
    pause: Duration,
    last: Option<String>,
}

/// What is left after a request was tried.
#[derive(Clone, Debug, PartialEq)]
pub enum Tried {
    /// Done; the body.
    Done(Value),
    /// 404.
    NotFound,
    /// 409.
    Conflict {
        /// `AlreadyExists` or `Conflict`.
        reason: String,
        /// Its words.
        message: String,
    },
    /// It may have been done: read back.
    Doubt,
    /// Over, with this outcome.
    Over(WriteOutcome),
}

impl Writer {
    /// The attempts of a write.
    pub fn attempts<'a>(&'a self, write: &'a Write, deadline: Instant) -> Attempts<'a> {
        Attempts {
            writer: self,
            write,
            deadline,
            pause: PAUSE_FIRST,
            last: None,
        }
    }
}

impl Attempts<'_> {
    /// Tries a request until it has a clear answer, or one that leaves doubt.
    pub async fn send(&mut self, request: &Request) -> Tried {
        loop {
            if self.spent() {
                return Tried::Over(self.unknown());
            }
            let passed =
                tokio::time::timeout_at(self.deadline, self.writer.fence.pass(self.write.epoch));
            match passed.await {
                Ok(true) => {}
                Ok(false) if planted::is(Bug::WritesPassTheFence) => {}
                Ok(false) => return Tried::Over(WriteOutcome::Refused(Arc::from(NOT_LEADING))),
                Err(_) => return Tried::Over(self.unknown()),
            }
            let answer = self
                .writer
                .caller
                .call(
                    request.method.clone(),
                    &request.path,
                    request.content,
                    request.body.as_ref(),
                    self.deadline,
                )
                .await;
            match answer {
                Answer::Ok(value) => return Tried::Done(value),
                Answer::NotFound => return Tried::NotFound,
                Answer::Conflict { reason, message } => {
                    self.last = Some(message.clone());
                    return Tried::Conflict { reason, message };
                }
                Answer::Refused(said) => {
                    return Tried::Over(WriteOutcome::Refused(Arc::from(said)));
                }
                Answer::Later(pause) => {
                    self.last = Some("the API server asks for less (429)".into());
                    self.sleep(pause).await;
                }
                Answer::NotSent(said) => {
                    self.last = Some(said);
                    self.pause().await;
                }
                Answer::Unknown(said) => {
                    self.last = Some(said);
                    return Tried::Doubt;
                }
            }
        }
    }

    /// Reads an object until there is an answer. `Ok(None)`: it is not there. `Err`: no answer by
    /// the deadline, or the reading is refused.
    pub async fn read(&mut self, path: &str) -> Result<Option<Value>, WriteOutcome> {
        loop {
            match self.writer.caller.get(path, self.deadline).await {
                Answer::Ok(value) => return Ok(Some(value)),
                Answer::NotFound => return Ok(None),
                Answer::Refused(said) => return Err(WriteOutcome::Unknown(Arc::from(said))),
                Answer::Later(pause) => self.sleep(pause).await,
                Answer::Conflict { message, .. } => self.last = Some(message),
                Answer::NotSent(said) | Answer::Unknown(said) => self.last = Some(said),
            }
            self.pause().await;
            if self.spent() {
                return Err(self.unknown());
            }
        }
    }

    /// Reads a pod under its name. `Err(Gone)` when it is not there or has another UID. An epoch that is
    /// found on it counts as seen, before the watch brings it: the next attempt of a leader who has been
    /// deposed is not sent.
    pub async fn read_pod(&mut self, pod: &PodTarget) -> Result<Value, WriteOutcome> {
        match self.read(&pod_path(pod)).await? {
            Some(found) if text(&found, "/metadata/uid") == pod.uid.as_str() => {
                if let Some(epoch) = epoch_of(&found) {
                    self.writer.fence.see(epoch);
                }
                Ok(found)
            }
            _ => Err(WriteOutcome::Gone),
        }
    }

    /// Reads a Gang object. An epoch that is found on it counts as seen, as on a pod.
    pub async fn read_record(&mut self, path: &str) -> Result<Option<Value>, WriteOutcome> {
        let found = self.read(path).await?;
        if let Some(epoch) = found.as_ref().and_then(epoch_of) {
            self.writer.fence.see(epoch);
        }
        Ok(found)
    }

    /// A pause that grows.
    pub async fn pause(&mut self) {
        self.sleep(self.pause).await;
        self.pause = self.pause.saturating_mul(2).min(PAUSE_MAX);
    }

    async fn sleep(&mut self, pause: Duration) {
        self.writer.metrics.write_retried();
        tokio::time::sleep_until(self.deadline.min(Instant::now() + pause)).await;
    }

    /// Whether there is no time for another attempt.
    pub fn spent(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// The outcome of a write about which nothing could be found out.
    pub fn unknown(&self) -> WriteOutcome {
        let said = self.last.as_deref().unwrap_or("no answer in time");
        WriteOutcome::Unknown(Arc::from(said))
    }
}

/// A text inside an object; empty when it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// An annotation of an object.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    let annotations = object.pointer("/metadata/annotations")?;
    annotations.get(key)?.as_str()
}

/// The epoch that an object was stamped or bound with.
pub fn epoch_of(object: &Value) -> Option<Epoch> {
    annotation(object, names::EPOCH)?.parse().ok().map(Epoch)
}

/// Path of a pod.
pub fn pod_path(pod: &PodTarget) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}
