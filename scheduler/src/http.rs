//! `/metrics`, `/healthz` and `/readyz`.
//!
//! `/healthz` says that the process answers. `/readyz` says 200 when this replica could lead: every
//! kind has been listed and no watch has been failing for long. It names what is missing.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::clock::Clock;
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
}

/// The pages as a service.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
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

async fn ready(State(pages): State<Pages>) -> impl IntoResponse {
    match pages.health.problems(pages.clock.now()) {
        problems if problems.is_empty() => (StatusCode::OK, "ready\n".to_owned()),
        problems => {
            let mut text = problems.join("\n");
            text.push('\n');
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}
