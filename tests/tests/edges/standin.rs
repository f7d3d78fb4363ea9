//! A stand-in for the API server: a function from calls to replies behind the real client.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// A call as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub body: Value,
}

impl Call {
    /// Method and path, for matching.
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn is_watch(&self) -> bool {
        self.query.contains("watch=true") || self.query.contains("watch=1")
    }
}

/// What the stand-in does with a call.
pub enum Reply {
    /// Answers.
    Json(u16, Value),
    /// Answers 429 with `Retry-After`, seconds.
    Later(u64),
    /// The connection breaks without an answer.
    Lost,
    /// Answers after so long.
    Slow(Duration, Value),
    /// No answer ever comes.
    Hang,
    /// A watch that sends these lines and stays open.
    Lines(Vec<Value>),
}

pub fn ok(value: Value) -> Reply {
    Reply::Json(200, value)
}

pub fn status(code: u16, reason: &str) -> Reply {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": format!("said {reason}"), "code": code,
    });
    Reply::Json(code, body)
}

type Answering = dyn FnMut(&Call) -> Reply + Send;

/// A stand-in, and everything it was asked.
#[derive(Clone)]
pub struct Standin {
    pub calls: Arc<Mutex<Vec<Call>>>,
    answering: Arc<Mutex<Box<Answering>>>,
}

impl Standin {
    pub fn new(answering: impl FnMut(&Call) -> Reply + Send + 'static) -> Self {
        Self {
            calls: Arc::default(),
            answering: Arc::new(Mutex::new(Box::new(answering))),
        }
    }

    /// The lines of all calls so far.
    pub fn lines(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(Call::line).collect()
    }

    pub fn client(&self) -> Client {
        let standin = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let standin = standin.clone();
            async move { standin.answer(request).await }
        });
        Client::new(service, "default")
    }

    async fn answer(
        &self,
        request: Request<Body>,
    ) -> Result<
        Response<http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>>,
        std::io::Error,
    > {
        let (parts, body) = request.into_parts();
        let bytes = body
            .collect()
            .await
            .map_err(std::io::Error::other)?
            .to_bytes();
        let call = Call {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        };
        self.calls.lock().unwrap().push(call.clone());
        let reply = (self.answering.lock().unwrap())(&call);
        let full = |bytes: Vec<u8>| {
            Full::new(Bytes::from(bytes))
                .map_err(|never| match never {})
                .boxed_unsync()
        };
        let mut response = Response::new(full(Vec::new()));
        match reply {
            Reply::Json(code, value) => {
                *response.status_mut() = StatusCode::from_u16(code).unwrap();
                *response.body_mut() = full(serde_json::to_vec(&value).unwrap());
            }
            Reply::Later(seconds) => {
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                response.headers_mut().insert("retry-after", seconds.into());
            }
            Reply::Lost => {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::ConnectionReset,
                    "connection reset",
                ));
            }
            Reply::Slow(after, value) => {
                tokio::time::sleep(after).await;
                *response.body_mut() = full(serde_json::to_vec(&value).unwrap());
            }
            Reply::Hang => std::future::pending().await,
            Reply::Lines(lines) => {
                let mut text = String::new();
                for line in lines {
                    text.push_str(&line.to_string());
                    text.push('\n');
                }
                let first =
                    futures::stream::iter([Ok(hyper::body::Frame::data(Bytes::from(text)))]);
                let open = futures::StreamExt::chain(first, futures::stream::pending());
                *response.body_mut() = BodyExt::boxed_unsync(http_body_util::StreamBody::new(open));
            }
        }
        Ok(response)
    }
}

/// Hands what this thread logs to a subscriber, until both are dropped.
///
/// While there is one subscriber alone, a test of another thread that comes to a line first switches that line off for all of them
/// (tracing-core 0.1.36, `callsite.rs`, `has_just_one`): so there are two.
pub fn listen(
    subscriber: impl Into<tracing::Dispatch>,
) -> (tracing::subscriber::DefaultGuard, tracing::Dispatch) {
    let another = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let guard = tracing::dispatcher::set_default(&subscriber.into());
    (guard, another)
}
