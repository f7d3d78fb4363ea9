//! The seam where faults come in: around every request, and at every event of every watch.
//!
//! ```text
//! request ─► before ─► (refuse | delay | go on | later | parked) ─► applied ─► after ─► (deliver | delay | lose | replace)
//! list ─► page_max                              watch ─► bookmarks
//! watch event ─► watch_event ─► (deliver | lag | twice | cut | expire)
//! an event goes out, or the last page of a list ─► shown
//! ```

use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::store::Change;

/// What a fault may know about a request.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// Counts up from 1 in the order of arrival.
    pub number: u64,
    /// Identity of the client.
    pub client: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// API group, `""` for the core group.
    pub group: String,
    /// Plural name; empty for discovery and the like.
    pub resource: String,
    /// Subresource or `""`.
    pub subresource: String,
    /// Namespace or `""`.
    pub namespace: String,
    /// Name or `""`.
    pub name: String,
    /// A list that goes on from a page before.
    pub continued: bool,
    /// A list or watch that is content with an older state (`resourceVersion=0`).
    pub any_version: bool,
    /// The body.
    pub body: Bytes,
}

/// What to do before a request is applied.
#[derive(Debug, Clone)]
pub enum Before {
    /// Apply it.
    Proceed,
    /// Wait, then apply it; not when the caller gives up meanwhile.
    Delay(Duration),
    /// Wait, then apply it, whether the caller still waits or not: it had arrived.
    Slow(Duration),
    /// Break the connection now, and apply it after this time all the same.
    Late(Duration),
    /// The same, at the moment that somebody says, or with the end of the time after which a request is given up.
    Parked(CancellationToken),
    /// Answer this; nothing is applied.
    Refuse(ApiError),
    /// Break the connection; nothing is applied.
    Disconnect,
}

/// What to do with the answer of an applied request.
#[derive(Debug, Clone, PartialEq)]
pub enum After {
    /// Deliver it.
    Deliver,
    /// Wait, then deliver it.
    Delay(Duration),
    /// Break the connection: the request is applied, and the caller does not know.
    Lose,
    /// Answer this in its place: the request is applied, and the caller is told otherwise.
    Replace(ApiError),
}

/// What to do with one event of one watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnEvent {
    /// Deliver it.
    Deliver,
    /// Hold it, and everything behind it, for this long.
    Lag(Duration),
    /// Deliver it twice.
    Duplicate,
    /// End the watch before it, without an error.
    Cut,
    /// End the watch before it with 410, as one that fell behind a compaction.
    Expire,
}

/// Decides about faults. Called in the order of requests; keeps its own state and chance behind a lock.
pub trait Faults: Send + Sync {
    /// Before a request is applied.
    fn before(&self, _request: &RequestInfo) -> Before {
        Before::Proceed
    }

    /// After a request was applied; `code` is the status it would be answered with.
    fn after(&self, _request: &RequestInfo, _code: u16) -> After {
        After::Deliver
    }

    /// Most objects of one page of a list that asks for pages.
    fn page_max(&self, _request: &RequestInfo) -> Option<usize> {
        None
    }

    /// Whether a watch that asks for bookmarks gets them.
    fn bookmarks(&self, _request: &RequestInfo) -> bool {
        true
    }

    /// Before an event is sent on the watch that `request` opened.
    fn watch_event(&self, _request: &RequestInfo, _change: &Change) -> OnEvent {
        OnEvent::Deliver
    }

    /// Whoever sent `request`, a list or a watch, is being shown its resource up to this version.
    fn shown(&self, _request: &RequestInfo, _version: u64) {}
}

/// No faults at all.
#[derive(Debug, Default, Clone, Copy)]
pub struct NoFaults;

impl Faults for NoFaults {}
