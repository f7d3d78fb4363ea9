//! `/metrics`, `/healthz`, `/readyz` and `/debug/dump`.
//!
//! `/healthz` says 200 while the scheduling cycle turns: a process whose cycle hangs is to be started
//! again. `/readyz` says 200 when this replica could lead, too: every kind has been listed and no
//! watch has been failing for long; and when the kube-scheduler beside it, if it keeps one, works while it
//! leads. Both name what is wrong.
//!
//! `/debug/dump` gives what the planner sees, for `muster-scheduler dump`. The other pages may be read by
//! anybody who reaches the port; a dump names every tenant's pods, and costs the cycle a walk over the
//! cluster. So it is given on loopback only: to `kubectl port-forward`, for which the API server asks for the right to
//! do that, and to processes of the Pod. A proxy beside us comes from loopback, too: a request that says it
//! was forwarded, or that was sent to another host, is refused.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::clock::Clock;
use crate::cycle::{Look, Pulse};
use crate::fence::Fence;
use crate::gate;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::server::Peer;
use crate::watch::Health;

/// Longest wait for the cycle to show its state.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// What the pages are made from.
#[derive(Clone, Debug)]
pub struct Pages {
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// State of the watches.
    pub health: Arc<Health>,
    /// For the length of the queue.
    pub inbox: Inbox,
    /// For the epoch.
    pub fence: Arc<Fence>,
    /// For ages.
    pub clock: Clock,
    /// When the view was published last.
    pub published: Arc<std::sync::atomic::AtomicU64>,
    /// Whether the cycle turns.
    pub pulse: Pulse,
    /// Whether the kube-scheduler beside this replica does what it should.
    pub gate: gate::Problem,
    /// For dumps.
    pub looks: Looks,
}

/// Asks the cycle for what the planner sees, one after the other.
#[derive(Clone, Debug)]
pub struct Looks {
    asks: mpsc::Sender<Look>,
    turn: Arc<Semaphore>,
}

/// Looks, and where the cycle finds them.
pub fn looks() -> (Looks, mpsc::Receiver<Look>) {
    let (asks, asked) = mpsc::channel(1);
    let turn = Arc::new(Semaphore::new(1));
    (Looks { asks, turn }, asked)
}

/// The pages as a service.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .route("/debug/dump", get(dump))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let published = pages.published.load(std::sync::atomic::Ordering::Relaxed);
    let age = pages.clock.now().0.saturating_sub(published);
    pages.metrics.refresh(
        pages.inbox.waiting(),
        Duration::from_millis(age),
        pages.fence.led().0,
    );
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], pages.metrics.text())
}

async fn healthy(State(pages): State<Pages>) -> impl IntoResponse {
    verdict("ok", pages.pulse.problem().into_iter().collect())
}

async fn ready(State(pages): State<Pages>) -> impl IntoResponse {
    let own = pages.pulse.problem().into_iter();
    let watches = pages.health.problems(pages.clock.now());
    let problems = own.chain(watches).chain(pages.gate.text());
    verdict("ready", problems.collect())
}

async fn dump(
    State(pages): State<Pages>,
    peer: Option<Extension<Peer>>,
    target: Uri,
    headers: HeaderMap,
) -> Response {
    if let Some(why) = not_local(peer.map(|Extension(peer)| peer), &target, &headers) {
        let said = format!(
            "a dump is given on loopback only, to kubectl port-forward for example: {why}\n"
        );
        return (StatusCode::FORBIDDEN, said).into_response();
    }
    let Ok(_turn) = pages.looks.turn.try_acquire() else {
        let said = "another dump is being made\n";
        return (StatusCode::TOO_MANY_REQUESTS, said).into_response();
    };
    match written(&pages.looks).await {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// Why a request does not come from this machine, as far as can be told.
fn not_local(peer: Option<Peer>, target: &Uri, headers: &HeaderMap) -> Option<String> {
    let Some(Peer(peer)) = peer else {
        return Some("the caller's address is not known".into());
    };
    // A mapped address is what a socket for both families sees.
    if !peer.ip().to_canonical().is_loopback() {
        return Some(format!("the caller is {}", peer.ip()));
    }
    let is_trace = |name: &str| {
        name == "forwarded"
            || name == "via"
            || name == "x-real-ip"
            || name.starts_with("x-forwarded")
    };
    if let Some(name) = headers.keys().find(|name| is_trace(name.as_str())) {
        return Some(format!("the request has a header {name}"));
    }
    let said = headers.get(header::HOST);
    let host = said.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    if said.is_some() && host.is_none() {
        return Some("its Host cannot be read".into());
    }
    let is_local = |host: &Authority| {
        let name = host.host().trim_matches(['[', ']']);
        let address = name.parse::<std::net::IpAddr>();
        name == "localhost" || address.is_ok_and(|address| address.is_loopback())
    };
    // HTTP/2 says it with the target. Without one no browser asks, and no proxy.
    let hosts = host.iter().chain(target.authority());
    let mut foreign = hosts.filter(|host| !is_local(host));
    foreign.next().map(|host| format!("it was sent to {host}"))
}

/// The text of a dump, or why there is none.
async fn written(looks: &Looks) -> Result<String, String> {
    let (look, seen) = oneshot::channel();
    let asked = async {
        looks.asks.send(look).await.ok()?;
        seen.await.ok()
    };
    let seen = tokio::time::timeout(LOOK_MAX, asked).await;
    let seen = seen.map_err(|_| "the scheduling cycle does not answer")?;
    let state = seen.ok_or("the scheduling cycle has ended")?;
    // Tens of megabytes on a large cluster: not on a thread that answers kube-scheduler.
    let text = tokio::task::spawn_blocking(move || muster_dump::write(&state)).await;
    let text = text.map_err(|error| format!("the dump was not written: {error}"))?;
    text.map_err(|error| format!("the dump cannot be written: {error}"))
}

/// 200 with a word, or 503 with every problem in a line.
fn verdict(well: &str, problems: Vec<String>) -> (StatusCode, String) {
    if problems.is_empty() {
        return (StatusCode::OK, format!("{well}\n"));
    }
    let mut text = problems.join("\n");
    text.push('\n');
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn page(page: impl IntoResponse) -> (StatusCode, String) {
        let response = page.into_response();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 4096).await;
        let text = String::from_utf8(body.unwrap().to_vec()).unwrap();
        (status, text)
    }

    #[tokio::test(start_paused = true)]
    async fn pages_fail_when_the_cycle_has_not_turned_for_long() {
        let clock = Clock::start();
        let pages = Pages {
            metrics: Arc::default(),
            health: Arc::new(Health::new(&[], muster_core::time::Millis::from_secs(60))),
            inbox: crate::inbox::inbox().0,
            fence: Arc::default(),
            clock,
            published: Arc::default(),
            pulse: Pulse::new(clock),
            gate: gate::Problem::default(),
            looks: looks().0,
        };
        let both = async || {
            (
                page(healthy(State(pages.clone())).await).await,
                page(ready(State(pages.clone())).await).await,
            )
        };
        tokio::time::advance(Pulse::MAX).await;
        let well = |word: &str| (StatusCode::OK, format!("{word}\n"));
        assert_eq!(both().await, (well("ok"), well("ready")));
        tokio::time::advance(Duration::from_secs(1)).await;
        let said = "the scheduling cycle hangs: its last turn was 31 s ago\n";
        let hangs = (StatusCode::SERVICE_UNAVAILABLE, said.to_owned());
        assert_eq!(both().await, (hangs.clone(), hangs));
    }
}
