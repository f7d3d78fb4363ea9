//! The gang scheduler's values and decisions, and nothing else.
//!
//! ```text
//!   events ──> Engine ──> actions          (handle, poll_action, next_deadline)
//!                │
//!                └──> View, published      (Filter and Preempt read it)
//!
//!   Engine owns:  Inventory  what the agents say, with the age of each belief
//!                 Ledger     what pods hold and what plans have reserved, node by node
//!                 gangs      each with its workload, members, plan, and stage
//!   and calls:    plan(snapshot, gang)  one gang, all of it or nothing
//! ```
//!
//! There is no I/O here: no client, no clock, no randomness, no serialisation, no hash map whose
//! order could decide anything. Time is an argument. The same events at the same times give the
//! same actions.

pub mod action;
pub mod breaker;
pub mod config;
pub mod engine;
pub mod event;
pub mod failure;
pub mod ids;
pub mod interpod;
pub mod inventory;
pub mod ledger;
pub mod links;
pub mod node;
pub mod plan;
pub mod planted;
pub mod pod;
pub mod reason;
pub mod record;
pub mod resources;
pub mod settings;
pub mod sharing;
pub mod snapshot;
pub mod state;
pub mod time;
pub mod topology;
pub mod view;
pub mod workload;

// The world of the integration tests calls this crate by its name, and unit tests use that world.
#[cfg(test)]
extern crate self as muster_core;
