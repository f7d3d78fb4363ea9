//! The API server as a tower service: from a path, a method and a query to a verb, and from its result to bytes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::oneshot;

use super::discovery;
use super::error::ApiError;
use super::faults::{After, Before, RequestInfo};
use super::query::Query;
use super::routes::{self, Call};
use super::server::ApiServer;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The connection broke, by the will of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection reset by the fault injection")]
pub struct Disconnected;

/// The body of an answer.
#[derive(Debug)]
pub enum Answer {
    /// A document.
    Document(u16, Bytes),
    /// A list; the last page of it tells its version.
    List(Option<u64>, Bytes),
    /// A document with a content type of its own.
    Typed(&'static str, Bytes),
    /// A stream of lines.
    Stream(Body),
}

/// The API server as a service that `kube::Client::new` and hyper take.
#[derive(Debug, Clone)]
pub struct ApiService {
    server: ApiServer,
    client: Option<Arc<str>>,
}

impl ApiServer {
    /// A service whose requests carry the identity `client`; without one it comes from the bearer token or the user agent.
    #[must_use]
    pub fn service(&self, client: Option<&str>) -> ApiService {
        ApiService {
            server: self.clone(),
            client: client.map(Arc::from),
        }
    }

    /// A kube client that talks to this server in process, under the identity `client`.
    #[must_use]
    pub fn client(&self, client: &str) -> kube::Client {
        kube::Client::new(self.service(Some(client)), "default")
    }
}

impl<B> tower::Service<Request<B>> for ApiService
where
    B: http_body_util::BodyExt<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let limit = service.server.inner.limits.body_bytes;
            let body = http_body_util::Limited::new(Body::new(body.map_err(Into::into)), limit);
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) => {
                    let why = format!(
                        "the request is too large or broke off (limit {limit} bytes): {error}"
                    );
                    return Ok(refusal(&ApiError::new(413, "RequestEntityTooLarge", why)));
                }
            };
            service
                .handle(&parts.method, &parts.uri, &parts.headers, &body)
                .await
        })
    }
}

impl ApiService {
    async fn handle(
        &self,
        method: &Method,
        uri: &http::Uri,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Response<Body>, BoxError> {
        let query = Query::parse(uri.query().unwrap_or(""));
        let header = |name| {
            headers
                .get(name)
                .and_then(|v: &http::HeaderValue| v.to_str().ok())
                .unwrap_or("")
        };
        let accept = header(header::ACCEPT);
        let call = match routes::route(&self.server, method, uri.path(), &query) {
            Ok(call) => call,
            Err(error) => match discovery::answer(&self.server, method, uri.path(), accept) {
                Some(Answer::Typed(kind, text)) => return respond(200, kind, Body::from(text)),
                Some(Answer::Document(code, text)) => {
                    return respond(code, "application/json", Body::from(text));
                }
                _ => return Ok(refusal(&error)),
            },
        };
        let info = self.info(&call, headers, &query, body);
        let request = Arrived {
            server: self.server.clone(),
            call,
            info: info.clone(),
            query,
            accept: accept.to_owned(),
            content_type: header(header::CONTENT_TYPE).to_owned(),
        };
        let faults = self.server.faults();
        let answer = match faults.before(&info) {
            Before::Proceed => request.apply(),
            Before::Delay(time) => {
                tokio::time::sleep(time).await;
                request.apply()
            }
            Before::Slow(time) => request.apply_after(tokio::time::sleep(time)).await?,
            Before::Late(time) => {
                drop(request.apply_after(tokio::time::sleep(time)));
                return Err(Disconnected.into());
            }
            Before::Parked(until) => {
                let told = tokio::time::timeout(REQUEST_TIMEOUT, until.cancelled_owned());
                drop(request.apply_after(told.map(|_| ())));
                return Err(Disconnected.into());
            }
            Before::Refuse(error) => return Ok(refusal(&error)),
            Before::Disconnect => return Err(Disconnected.into()),
        };
        let code = match &answer {
            Ok(Answer::Document(code, _)) => *code,
            Ok(_) => 200,
            Err(error) => error.code,
        };
        match faults.after(&info, code) {
            After::Deliver => {}
            After::Delay(time) => tokio::time::sleep(time).await,
            After::Lose => return Err(Disconnected.into()),
            After::Replace(error) => return Ok(refusal(&error)),
        }
        match answer {
            Ok(Answer::Document(code, text)) => respond(code, "application/json", Body::from(text)),
            Ok(Answer::List(version, text)) => {
                if let Some(version) = version {
                    faults.shown(&info, version);
                }
                respond(200, "application/json", Body::from(text))
            }
            Ok(Answer::Typed(kind, text)) => respond(200, kind, Body::from(text)),
            Ok(Answer::Stream(body)) => respond(200, "application/json", body),
            Err(error) => Ok(refusal(&error)),
        }
    }

    fn info(&self, call: &Call, headers: &HeaderMap, query: &Query, body: &Bytes) -> RequestInfo {
        let text = |name| {
            headers
                .get(name)
                .and_then(|v: &http::HeaderValue| v.to_str().ok())
        };
        let client = match &self.client {
            Some(client) => client.to_string(),
            None => text(header::AUTHORIZATION)
                .and_then(|a| a.strip_prefix("Bearer "))
                .and_then(|token| self.server.user_of(token))
                .or_else(|| {
                    let agent = text(header::USER_AGENT)?;
                    agent.split(['/', ' ']).next().map(str::to_owned)
                })
                .unwrap_or_else(|| "anonymous".into()),
        };
        let (group, resource, subresource, namespace, name) = call.place();
        RequestInfo {
            number: self.server.inner.requests.fetch_add(1, Ordering::Relaxed) + 1,
            client,
            verb: call.verb().into(),
            group,
            resource,
            subresource,
            namespace,
            name,
            continued: !query.get("continue").is_empty(),
            any_version: query.get("resourceVersion") == "0",
            body: body.clone(),
        }
    }
}

/// A request that has reached the server.
struct Arrived {
    server: ApiServer,
    call: Call,
    info: RequestInfo,
    query: Query,
    accept: String,
    content_type: String,
}

impl Arrived {
    fn apply(self) -> Result<Answer, ApiError> {
        let info = &self.info;
        self.server.count(&info.client, &info.verb, &info.resource);
        let faults = self.server.faults();
        let context = routes::RequestContext {
            info,
            query: &self.query,
            accept: &self.accept,
            content_type: &self.content_type,
            body: &info.body,
            page_max: faults.page_max(info),
            bookmarks: faults.bookmarks(info),
        };
        routes::run(&self.server, self.call, &context)
    }

    /// Is applied after a while, whether anybody waits for the answer or not.
    fn apply_after(
        self,
        wait: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = Result<Result<Answer, ApiError>, Disconnected>> {
        let (tell, told) = oneshot::channel();
        let server = self.server.clone();
        let stop = server.stopped();
        server.own(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = wait => {
                    // Whoever asked may have left.
                    let _ = tell.send(self.apply());
                }
            }
        });
        async move { told.await.map_err(|_| Disconnected) }
    }
}

fn respond(code: u16, kind: &str, body: Body) -> Result<Response<Body>, BoxError> {
    let code = StatusCode::from_u16(code)?;
    Ok(Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, kind)
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(body)?)
}

fn refusal(error: &ApiError) -> Response<Body> {
    let mut response = Response::new(Body::from(error.status().to_string()));
    *response.status_mut() =
        StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    let wait = error
        .details
        .get("retryAfterSeconds")
        .and_then(Value::as_u64);
    if let Some(wait) = wait {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, http::HeaderValue::from(wait));
    }
    response
}

/// A body of lines that never fails.
pub(crate) fn stream_body(stream: impl futures::Stream<Item = Bytes> + Send + 'static) -> Answer {
    Answer::Stream(Body::from_stream(
        stream.map(Ok::<_, std::convert::Infallible>),
    ))
}

/// An API server gives up a request after this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest time that a watch stays open when the caller names none.
pub(crate) const WATCH_TIMEOUT_DEFAULT: Duration = Duration::from_secs(1800);
