//! Measurements on a real control plane: what a scheduler costs, against others in the same run.
//!
//! ```text
//!   Case (gangs x pods x GPUs, nodes) --+
//!   Contender (which scheduler, how) ---+--> stage: a fresh cluster, the scheduler, one gang to warm up
//!                                              |
//!            load: jobs -> controller -> pods  |  recorder: every change of a pod, from a watch
//!                                              v
//!                        measure: counters before and after --> Row --> table, JSON
//! ```
//! A row exists only when the scheduler bound what it should have; anything else is an error.
//! Rows are compared within one run only: the machine's speed is part of every figure.
//!
//! [`openb`] stands apart: it needs no cluster, and its figures are the same on every machine. So does
//! [`scale`]: it measures Muster alone, with an API server in memory.

pub mod analysis;
pub mod case;
pub mod cli;
pub mod contender;
pub mod controller;
pub mod coscheduling;
pub mod fleet;
pub mod goals;
pub mod http;
pub mod kai;
pub mod load;
pub mod machine;
pub mod measure;
pub mod muster;
pub mod objects;
pub mod openb;
pub mod peers;
pub mod programs;
pub mod raw;
pub mod report;
pub mod row;
pub mod scale;
pub mod stage;
pub mod verdict;
