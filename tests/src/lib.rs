//! What the tests on the real control plane share: Muster and its kube-scheduler on a real API
//! server, with fake agents, as an operator would run them.

pub mod acts;
pub mod crowd;
pub mod fleet;
pub mod fuzz;
pub mod gangs;
pub mod guide;
pub mod jobs;
pub mod kills;
pub mod pairs;
pub mod pods;
pub mod programs;
pub mod proxy;
pub mod replicas;
pub mod rights;
pub mod rng;
pub mod sim;
pub mod soak;
pub mod stack;
