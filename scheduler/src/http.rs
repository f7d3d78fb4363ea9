//! `/metrics`, `/healthz` and `/readyz`.
//!
//! `/healthz` says 200 while the scheduling cycle turns: a process whose cycle hangs is to be started
//! again. `/readyz` says 200 when this replica could lead, too: every kind has been listed and no
//! watch has been failing for long. Both name what is wrong.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::clock::Clock;
use crate::cycle::Pulse;
use crate::fence::Fence;
use crate::inbox::Inbox;
use crate::metrics::Metrics;
use crate::watch::Health;

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
}

/// The pages as a service.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
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
    let watches = pages.health.problems(pages.clock.now());
    verdict(
        "ready",
        pages.pulse.problem().into_iter().chain(watches).collect(),
    )
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
