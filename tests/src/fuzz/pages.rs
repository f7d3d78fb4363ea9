//! `/metrics`, `/healthz`, `/readyz` and `/debug/dump` of a scheduler whose API server answers nothing: requests with
//! any method, target, headers and body. The input is a request as HTTP/1.1 writes it.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::Extension;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use kube::Client;
use muster_scheduler::clock::Wall;
use muster_scheduler::config::Config;
use muster_scheduler::scheduler::{Clients, Options, Scheduler};
use muster_scheduler::server::Peer;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

use super::{Target, corpus, runtime};

/// Most bytes of a page: it is as large as Muster makes it, whatever was asked.
const PAGE_MAX: usize = 256 << 10;

/// The pages.
pub(super) struct Pages {
    runtime: Runtime,
    router: Router,
    /// Ends with its runtime.
    _scheduler: Scheduler,
}

impl Pages {
    pub(super) fn new() -> anyhow::Result<Self> {
        let runtime = runtime()?;
        let scheduler = {
            let _guard = runtime.enter();
            let away = tower::service_fn(|_: Request<kube::client::Body>| async {
                let mut response = axum::http::Response::new(Body::from("away"));
                *response.status_mut() = axum::http::StatusCode::SERVICE_UNAVAILABLE;
                Ok::<_, Infallible>(response)
            });
            let client = Client::new(away, "default");
            let options = Options {
                identity: "fuzz".into(),
                seed: 1,
                wall: Wall::following(jiff::Timestamp::UNIX_EPOCH),
                agents_believed: true,
            };
            Scheduler::start(&Clients::from(client), &Config::default(), &options)
        };
        let router = scheduler.pages();
        Ok(Self {
            runtime,
            router,
            _scheduler: scheduler,
        })
    }
}

/// The request that a text writes; what is none as HTTP writes it does not come as far as to a page.
fn request(input: &[u8]) -> Option<Request<Body>> {
    let (head, body) = match input.windows(4).position(|four| four == b"\r\n\r\n") {
        Some(at) => (input.get(..at)?, input.get(at + 4..)?),
        None => (input, &[][..]),
    };
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = lines.next()?.strip_suffix(b"\r").unwrap_or_default();
    let mut words = first.split(|byte| *byte == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    let target = Uri::try_from(words.next()?).ok()?;
    let mut request = Request::builder().method(method).uri(target);
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        let name = HeaderName::from_bytes(name).ok()?;
        let value = HeaderValue::from_bytes(value.get(1..)?.trim_ascii()).ok()?;
        request = request.header(name, value);
    }
    request.body(Body::from(body.to_vec())).ok()
}

impl Target for Pages {
    fn name(&self) -> &'static str {
        "pages"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        corpus::pages()
    }

    fn words(&self) -> &'static [&'static str] {
        corpus::PAGE_WORDS
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let Some(request) = request(input) else {
            return Ok("no request".into());
        };
        // From another machine: whatever it says, it gets no dump.
        let stranger = Peer(([10, 0, 0, 7], 1234).into());
        let is_dump = request.uri().path() == "/debug/dump";
        let router = self.router.clone().layer(Extension(stranger));
        let (code, page) = self.runtime.block_on(async {
            let response = match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let code = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), PAGE_MAX).await;
            (
                code,
                bytes.map_err(|error| format!("a page without end: {error}")),
            )
        });
        let page = page?;
        if is_dump && !matches!(code, 403 | 405) {
            return Err(format!("a stranger gets a dump: {code}"));
        }
        let text = String::from_utf8_lossy(&page);
        Ok(format!(
            "{code} {}",
            text.chars().take(60).collect::<String>()
        ))
    }
}
