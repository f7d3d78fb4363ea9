//! Watches: a cursor into the ring of a resource, turned into a stream of JSON lines.
//!
//! ```text
//! start ─► [ADDED for each object] ─► [BOOKMARK initial-events-end] ─► changes after the cursor ─► BOOKMARK, end
//!                                                        ring compacted past the cursor ─► ERROR 410, end
//! ```
//! Nothing is queued for a slow reader: it reads on from its cursor, or is told 410 when the ring has moved past it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::error::ApiError;
use super::faults::{OnEvent, RequestInfo};
use super::render::Render;
use super::selectors::Filter;
use super::server::{ApiServer, Target};
use super::store::{Change, ChangeKind, Stored};
use crate::signal::Listener;
use crate::value;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
const CHANGES_AT_ONCE: usize = 512;

/// What a watch is asked for.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// Changes after this version; `None` starts with the objects that are there.
    pub since: Option<u64>,
    /// Whether the initial objects end with a marked bookmark (`sendInitialEvents=true`).
    pub mark_initial: bool,
    /// Whether bookmarks are wanted.
    pub bookmarks: bool,
    /// The watch ends after this time.
    pub timeout: Duration,
    /// How objects are shown.
    pub render: Render,
}

struct Cursor {
    server: ApiServer,
    target: Target,
    filter: Filter,
    options: WatchOptions,
    info: RequestInfo,
    at: u64,
    pending: VecDeque<Bytes>,
    held: VecDeque<Arc<Change>>,
    hold_until: Option<Instant>,
    passed: bool,
    signal: Listener,
    deadline: Instant,
    bookmark: Instant,
    over: bool,
}

/// Opens a watch.
///
/// # Errors
/// 404 when the resource is not served.
pub fn open(
    server: &ApiServer,
    target: Target,
    filter: Filter,
    options: WatchOptions,
    info: RequestInfo,
) -> Result<impl Stream<Item = Bytes> + Send + use<>, ApiError> {
    let mut pending = VecDeque::new();
    let store = server.store();
    let table = store
        .tables
        .get(target.table)
        .ok_or_else(ApiError::no_such_path)?;
    let at = options.since.unwrap_or(store.version);
    if options.since.is_none() {
        let objects = table.objects.values().filter(|o| filter.holds(&o.value));
        pending.extend(objects.map(|o| line("ADDED", &options.render.object(&target, o))));
        if options.mark_initial {
            pending.push_back(bookmark(&target, &options.render, at, true));
        }
    }
    let now = Instant::now();
    let cursor = Cursor {
        signal: table.subscribe(),
        at,
        pending,
        held: VecDeque::new(),
        hold_until: None,
        passed: false,
        deadline: now + options.timeout,
        bookmark: now + BOOKMARK_EVERY,
        over: false,
        server: server.clone(),
        target,
        filter,
        options,
        info,
    };
    drop(store);
    Ok(stream::unfold(cursor, |mut cursor| async move {
        let chunk = cursor.next().await?;
        Some((chunk, cursor))
    }))
}

impl Cursor {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(first) = self.pending.pop_front() {
                if self.pending.is_empty() {
                    return Some(first);
                }
                let all: Vec<Bytes> = std::iter::once(first)
                    .chain(self.pending.drain(..))
                    .collect();
                return Some(all.concat().into());
            }
            if self.over {
                return None;
            }
            let mut more = false;
            if self.held.is_empty() {
                self.signal.mark_seen();
                self.fill();
                more = !self.held.is_empty();
            }
            self.release();
            // Changes that the filter left out may have hidden others behind them: look again before waiting.
            let held_back = !self.held.is_empty();
            if self.pending.is_empty() && !self.over && (held_back || !more) {
                self.wait().await;
            }
        }
    }

    /// Takes the next changes from the ring.
    fn fill(&mut self) {
        let server = self.server.clone();
        let store = server.store();
        let Some(table) = store.tables.get(self.target.table) else {
            self.over = true;
            return;
        };
        match table.changes_after(self.at, CHANGES_AT_ONCE) {
            Some(changes) => self.held.extend(changes),
            None => {
                self.expire(table.compacted);
                return;
            }
        }
        if !table.served && self.held.is_empty() {
            self.over = true;
        }
    }

    /// Ends the watch with 410.
    fn expire(&mut self, compacted: u64) {
        let why = format!("too old resource version: {} ({compacted})", self.at);
        let status = ApiError::expired(why).status();
        self.pending
            .push_back(line("ERROR", status.to_string().as_bytes()));
        self.over = true;
    }

    /// Turns held changes into lines until one of them has to wait.
    fn release(&mut self) {
        let faults = self.server.faults();
        while let Some(change) = self.held.front().cloned() {
            if self.hold_until.is_some_and(|t| t > Instant::now()) {
                return;
            }
            self.hold_until = None;
            let event = self.event(&change);
            if let Some(text) = event {
                let decided = if self.passed {
                    OnEvent::Deliver
                } else {
                    faults.watch_event(&self.info, &change)
                };
                self.passed = false;
                match decided {
                    OnEvent::Deliver => {
                        faults.shown(&self.info, change.version);
                        self.pending.push_back(text);
                    }
                    OnEvent::Duplicate => {
                        faults.shown(&self.info, change.version);
                        self.pending.extend([text.clone(), text]);
                    }
                    OnEvent::Lag(time) => {
                        self.hold_until = Some(Instant::now() + time);
                        self.passed = true;
                        return;
                    }
                    OnEvent::Cut => {
                        self.over = true;
                        return;
                    }
                    OnEvent::Expire => {
                        self.expire(self.at);
                        return;
                    }
                }
            }
            self.at = change.version;
            self.held.pop_front();
        }
    }

    /// The line of a change as this watch sees it: an object that leaves the selection is deleted for it.
    fn event(&self, change: &Change) -> Option<Bytes> {
        let was = change
            .before
            .as_ref()
            .is_some_and(|b| self.filter.holds(&b.value));
        let is = change.kind != ChangeKind::Deleted && self.filter.holds(&change.object.value);
        let kind = match (was, is) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        Some(line(
            kind,
            &self.options.render.object(&self.target, &change.object),
        ))
    }

    async fn wait(&mut self) {
        let now = Instant::now();
        if now >= self.deadline {
            if self.options.bookmarks && self.held.is_empty() {
                self.pending.push_back(bookmark(
                    &self.target,
                    &self.options.render,
                    self.at,
                    false,
                ));
            }
            self.over = true;
            return;
        }
        if now >= self.bookmark {
            self.bookmark = now + BOOKMARK_EVERY;
            if self.options.bookmarks && self.held.is_empty() {
                // Every change of this resource up to the store's version was seen, so the bookmark may name it.
                let store_version = self.server.store().version;
                if !self.signal.has_changed() {
                    self.at = self.at.max(store_version);
                }
                self.pending.push_back(bookmark(
                    &self.target,
                    &self.options.render,
                    self.at,
                    false,
                ));
            }
            return;
        }
        let wake = self
            .hold_until
            .unwrap_or(self.deadline)
            .min(self.deadline)
            .min(self.bookmark);
        let stop = self.server.stopped();
        let held = !self.held.is_empty();
        tokio::select! {
            biased;
            () = stop.cancelled() => self.over = true,
            () = self.signal.changed(), if !held => {}
            () = tokio::time::sleep_until(wake) => {}
        }
    }
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(object.len() + 40);
    text.extend_from_slice(b"{\"type\":\"");
    text.extend_from_slice(kind.as_bytes());
    text.extend_from_slice(b"\",\"object\":");
    text.extend_from_slice(object);
    text.extend_from_slice(b"}\n");
    text.into()
}

fn bookmark(target: &Target, render: &Render, version: u64, initial: bool) -> Bytes {
    let mut object: Value = json!({
        "kind": target.ty.kind, "apiVersion": target.ty.api_version(&target.version),
        "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
    });
    if initial {
        value::set(
            &mut object,
            &["metadata", "annotations", "k8s.io/initial-events-end"],
            "true",
        );
    }
    let stored = Arc::new(Stored::unsaved(object));
    line("BOOKMARK", &render.object(target, &stored))
}
