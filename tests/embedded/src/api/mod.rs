//! An API server in memory, on plain JSON objects.
//!
//! ```text
//! kube::Client (in process) ─┐
//! kubectl, HTTP/1 and 2 ─────┴► http ─► routes ─► server (verbs) ─► strategy, pods, schema ─► store ─► watch
//! stand-ins ──────────────────────────────────────┘                                            └─► gc
//! ```

pub mod admission;
pub mod auth;
mod bootstrap;
mod discovery;
pub mod error;
mod events;
pub mod faults;
mod gc;
pub mod history;
pub mod http;
pub mod informer;
mod openapi;
pub mod patch;
mod pods;
mod query;
mod render;
pub mod resources;
mod routes;
mod scale;
mod schema;
pub mod selectors;
pub mod server;
pub mod store;
mod strategy;
mod table;
mod watch;

pub use error::ApiError;
pub use schema::base64;
pub use server::{ApiServer, Caller, DeleteOptions, Limits, Target};
