//! Reading what is to be replayed.

mod civil;
pub mod scenario;
pub(crate) mod table;
pub mod trace;
