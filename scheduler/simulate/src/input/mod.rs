//! Reading what is to be replayed.

mod civil;
pub mod scenario;
pub mod trace;
