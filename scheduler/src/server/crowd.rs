//! The connections of one door, and which of them gives way when all places are taken.
//!
//! ```text
//!   enter ──> never asked ──visit──> asking ──last answer sent──> idle ──visit──> asking ...
//!                  │ first to go         │ never goes               │ goes when nobody of the first is left
//! ```
//! Who opens connections and asks nothing, however many, so keeps nobody out for longer than
//! [`GRACE`], and ends no connection that has asked something while there is one that has not. Who asks once on each
//! and comes again takes part in the queue like everybody else: places come free a few times a second.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Time that a connection has to ask something before it gives way to another one: many times what a
/// TLS handshake takes, also where thousands of agents come at once.
const GRACE: Duration = Duration::from_secs(1);
/// Pause between two looks for somebody who may give way.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The connections of one door.
#[derive(Debug)]
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    all: BTreeMap<u64, Arc<Guest>>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Guest {
    /// Is cancelled when the connection is to end.
    pub(super) leave: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    asked: bool,
    /// Requests whose answers have not been sent.
    visits: u32,
    /// Since when nothing has been asked.
    idle_since: Instant,
}

/// The place of a connection; free for another one when dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    id: u64,
    /// The connection.
    pub(super) guest: Arc<Guest>,
    _permit: OwnedSemaphorePermit,
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Visit(Arc<Guest>);

impl Crowd {
    /// A door for so many connections at once.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(places)),
            guests: Mutex::default(),
        })
    }

    /// Waits for a place, for which somebody else may have to leave. `None` when stopped.
    pub(super) async fn enter(self: &Arc<Self>, stop: &CancellationToken) -> Option<Place> {
        let place = Arc::clone(&self.places).acquire_owned();
        let mut place = std::pin::pin!(place);
        let permit = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                permit = place.as_mut() => break permit.ok()?,
                () = std::future::ready(()) => {}
            }
            self.make_room();
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                permit = place.as_mut() => break permit.ok()?,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        };
        let guest = Arc::new(Guest {
            leave: stop.child_token(),
            state: Mutex::new(State {
                asked: false,
                visits: 0,
                idle_since: Instant::now(),
            }),
        });
        let mut guests = crate::locked(&self.guests);
        let id = guests.next;
        guests.next = id.wrapping_add(1);
        guests.all.insert(id, Arc::clone(&guest));
        Some(Place {
            crowd: Arc::clone(self),
            id,
            guest,
            _permit: permit,
        })
    }

    /// Asks all that had time to ask something and have not to leave; where there is none and nobody has
    /// still time, the one that has asked nothing for the longest.
    fn make_room(&self) {
        let now = Instant::now();
        let guests = crate::locked(&self.guests);
        let mut young = false;
        let mut leaving = false;
        let mut longest: Option<(Instant, &Arc<Guest>)> = None;
        for guest in guests.all.values() {
            let state = crate::locked(&guest.state);
            if state.visits > 0 {
                continue;
            }
            if guest.leave.is_cancelled() {
                leaving = true;
            } else if now.saturating_duration_since(state.idle_since) < GRACE {
                young |= !state.asked;
            } else if !state.asked {
                guest.leave.cancel();
                leaving = true;
            } else if longest.is_none_or(|(since, _)| state.idle_since < since) {
                longest = Some((state.idle_since, guest));
            }
        }
        if let Some((_, guest)) = longest.filter(|_| !young && !leaving) {
            guest.leave.cancel();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        crate::locked(&self.crowd.guests).all.remove(&self.id);
    }
}

impl Guest {
    /// A request has come; it counts until the [`Visit`] is dropped.
    pub(super) fn visit(self: &Arc<Self>) -> Visit {
        let mut state = crate::locked(&self.state);
        state.asked = true;
        state.visits = state.visits.saturating_add(1);
        Visit(Arc::clone(self))
    }

    /// Whether any request has come.
    pub(super) fn has_asked(&self) -> bool {
        crate::locked(&self.state).asked
    }

    /// Whether an answer has not been sent yet.
    pub(super) fn is_asking(&self) -> bool {
        crate::locked(&self.state).visits > 0
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut state = crate::locked(&self.0.state);
        state.visits = state.visits.saturating_sub(1);
        state.idle_since = Instant::now();
    }
}

/// The body of an answer, with which its request ends.
#[derive(Debug)]
pub(super) struct Answered {
    body: Body,
    _visit: Visit,
}

impl Answered {
    /// A body that ends a visit.
    pub(super) fn wrap(body: Body, visit: Visit) -> Body {
        Body::new(Self {
            body,
            _visit: visit,
        })
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
