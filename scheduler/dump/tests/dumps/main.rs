//! Dumps of the worlds of the core's own tests.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::manual_is_multiple_of,
    clippy::type_complexity
)]

#[path = "../../../core/tests/engine/chaos/mod.rs"]
#[allow(dead_code)]
mod chaos;
#[path = "../../../core/tests/engine/world/mod.rs"]
mod world;

mod again;
mod bad;
mod redacted;
mod storms;
