//! The embedded cluster, asked as an API server is, by its stand-ins, and by kubectl.

mod api;
mod cluster;
mod faults;
mod kubectl;
