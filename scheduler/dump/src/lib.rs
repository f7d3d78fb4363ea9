//! What the planner sees, as a file, and planned again from it.
//!
//! ```text
//!   Engine::state ──> State ──> form ──> write ──> a dump, JSON
//!                       ▲                             │
//!                       └──── form::read, checked <── read
//!   State ──> replay ──> Replay ──> in_words, json
//!   State ──> redact ──> State without names, planned alike
//! ```
//!
//! The core has no serialisation: [`form`] mirrors its values field by field, so that a field that is
//! added there without a place here does not compile. [`replay`] calls the production planner, gang by
//! gang in order of the queue, and decides nothing itself.
//!
//! A dump holds names, labels of nodes and what pods ask for. It holds no annotation, environment, image or
//! Secret, because the scheduler does not keep them.

pub mod error;
mod form;
pub mod redact;
pub mod replay;
pub mod report;

pub use self::error::Error;
pub use self::form::{FILE_MAX, FORMAT, read, write};
pub use self::redact::redact;
pub use self::replay::{Replay, replay};
