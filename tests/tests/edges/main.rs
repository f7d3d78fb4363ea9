//! The edges, each against stand-ins for what is on its other side.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod agents;
mod client;
mod door;
mod extender;
mod gate;
mod lease;
mod standin;
mod watch;
mod writer;
