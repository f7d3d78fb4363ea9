//! Tests on the real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
//! training-operator and KWOK, with Muster under its own account and fake agents.
//!
//! Each test has a control plane of its own; four run at a time (`.cargo/config.toml`): they wait most of the time.

// A test that cannot go on stops with the place and the value.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod agent;
mod apart;
mod bad_input;
mod both_clusters;
mod crashes;
mod faults;
mod jobs;
mod lifecycle;
mod local_cluster;
mod network;
mod nodes;
mod operations;
mod replicas;
mod restore;
mod shapes;
mod ways;
