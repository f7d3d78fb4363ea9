//! What the tests on the real control plane share: Muster and its kube-scheduler on a real API
//! server, with fake agents, as an operator would run them.

pub mod acts;
pub mod fleet;
pub mod gangs;
pub mod jobs;
pub mod link;
pub mod pairs;
pub mod pods;
pub mod programs;
pub mod replicas;
pub mod rights;
pub mod sim;
pub mod stack;
