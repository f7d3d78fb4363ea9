//! The real control plane that tests run on.

mod history;
mod jobs;
mod lifecycle;
mod policies;
