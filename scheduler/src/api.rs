//! One call to the API server with a deadline, and its answer as what it means for a write.
//!
//! The client underneath must not retry by itself: a hidden second try could outlive the deadline,
//! and a write whose answer was lost must be read back, not repeated.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::time::Instant;

use crate::inbox::Inbox;

/// Largest answer that is read, bytes. Objects are limited to 1.5 MiB by etcd; a job of many roles
/// stays far below.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// An attempt that was cut sooner, by the end of its write, says nothing about the API server.
const FAIR: Duration = Duration::from_secs(1);

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// 2xx with the body.
    Ok(Value),
    /// 404.
    NotFound,
    /// 409, with reason and message of the Status.
    Conflict {
        /// `AlreadyExists` or `Conflict`.
        reason: String,
        /// Its words.
        message: String,
    },
    /// 429 (or 503 with `Retry-After`): not done; try again after this time.
    Later(Duration),
    /// Any other 4xx: refused for good, with its words.
    Refused(String),
    /// 5xx, a broken connection or a timeout: it may have been done, or not.
    Unknown(String),
    /// The connection could not be made: it was not done.
    NotSent(String),
}

/// Calls the API server.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    attempt: Duration,
    inbox: Option<Inbox>,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller")
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Kind of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A whole object.
    Json,
    /// A JSON merge patch.
    MergePatch,
}

impl Caller {
    /// A caller whose attempts take at most `attempt`.
    pub fn new(client: Client, attempt: Duration) -> Self {
        Self {
            client,
            attempt,
            inbox: None,
        }
    }

    /// Tells the cycle whether the API server answers.
    #[must_use]
    pub fn telling(mut self, inbox: Inbox) -> Self {
        self.inbox = Some(inbox);
        self
    }

    /// Reads an object.
    pub async fn get(&self, path: &str, deadline: Instant) -> Answer {
        self.call(Method::GET, path, Content::Json, None, deadline)
            .await
    }

    /// One attempt, ending by `deadline` at the latest.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content: Content,
        body: Option<&Value>,
        deadline: Instant,
    ) -> Answer {
        let bytes = match body.map(serde_json::to_vec).transpose() {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => return Answer::Refused(format!("not serialisable: {error}")),
        };
        let kind = match content {
            Content::Json => "application/json",
            Content::MergePatch => "application/merge-patch+json",
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, kind)
            .header(http::header::ACCEPT, "application/json")
            .body(Body::from(bytes));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Answer::Refused(format!("no valid request: {error}")),
        };
        let sent = Instant::now();
        let end = deadline.min(sent + self.attempt);
        let Ok(answer) = tokio::time::timeout_at(end, self.exchange(request)).await else {
            let had = end.saturating_duration_since(sent);
            if let Some(inbox) = self
                .inbox
                .as_ref()
                .filter(|_| had >= FAIR.min(self.attempt))
            {
                inbox.unanswered(sent);
            }
            return Answer::Unknown("no answer in time".into());
        };
        match (&self.inbox, &answer) {
            (Some(inbox), Answer::Unknown(_) | Answer::NotSent(_)) => inbox.unanswered(sent),
            (Some(inbox), _) => inbox.answered(),
            (None, _) => {}
        }
        answer
    }

    async fn exchange(&self, request: Request<Body>) -> Answer {
        let response = match self.client.send(request).await {
            Ok(response) => response,
            Err(error) => return transport(&error),
        };
        let status = response.status();
        let retry_after = response
            .headers()
            .get(http::header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<u64>().ok())
            .map(|seconds| Duration::from_secs(seconds.min(60)));
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let bytes = match body.collect().await {
            Ok(body) => body.to_bytes(),
            // The request has arrived; what became of it is not known.
            Err(error) => return Answer::Unknown(format!("broken answer: {error}")),
        };
        read(status, retry_after, &bytes)
    }
}

fn transport(error: &kube::Error) -> Answer {
    let text = chain(error);
    // A refused connection has carried nothing.
    let refused = text.contains("Connection refused") || text.contains("dns error");
    if refused {
        Answer::NotSent(text)
    } else {
        Answer::Unknown(text)
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    shorten(&text)
}

/// At most 512 characters, control characters taken out.
pub fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(512).collect()
}

fn read(status: StatusCode, retry_after: Option<Duration>, bytes: &[u8]) -> Answer {
    if status.is_success() {
        return match serde_json::from_slice(bytes) {
            Ok(value) => Answer::Ok(value),
            Err(error) => Answer::Unknown(format!("unreadable answer: {error}")),
        };
    }
    let said: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let field = |name: &str| said.get(name).and_then(Value::as_str).unwrap_or_default();
    let message = match field("message") {
        "" => format!("code {}", status.as_u16()),
        message => shorten(message),
    };
    match status {
        StatusCode::NOT_FOUND => Answer::NotFound,
        StatusCode::CONFLICT => Answer::Conflict {
            reason: field("reason").to_owned(),
            message,
        },
        StatusCode::TOO_MANY_REQUESTS => {
            Answer::Later(retry_after.unwrap_or(Duration::from_secs(1)))
        }
        // An expired login is renewed by the client; it is no verdict on the write.
        StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT => Answer::Unknown(message),
        status if status.is_client_error() => Answer::Refused(message),
        _ => Answer::Unknown(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_they_mean_for_a_write() {
        let code = |code: u16| StatusCode::from_u16(code).unwrap();
        let status = br#"{"reason":"AlreadyExists","message":"it is\u0000 there"}"#;
        assert_eq!(
            read(code(409), None, status),
            Answer::Conflict {
                reason: "AlreadyExists".into(),
                message: "it is there".into()
            }
        );
        assert_eq!(read(code(404), None, b""), Answer::NotFound);
        assert_eq!(
            read(code(429), Some(Duration::from_secs(3)), b""),
            Answer::Later(Duration::from_secs(3))
        );
        assert!(matches!(read(code(422), None, b"{}"), Answer::Refused(_)));
        assert!(matches!(read(code(403), None, b"{}"), Answer::Refused(_)));
        assert!(matches!(read(code(500), None, b"{}"), Answer::Unknown(_)));
        assert!(matches!(read(code(504), None, b"{}"), Answer::Unknown(_)));
        assert!(matches!(
            read(code(200), None, b"<html>"),
            Answer::Unknown(_)
        ));
    }
}
