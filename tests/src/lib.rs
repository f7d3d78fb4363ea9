//! What the tests on the real control plane share: Muster and its kube-scheduler on a real API
//! server, with fake agents, as an operator would run them.

pub mod jobs;
pub mod programs;
pub mod sim;
pub mod stack;
