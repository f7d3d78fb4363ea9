//! Tests on the real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
//! training-operator and KWOK, with Muster under its own account and fake agents.
//!
//! Each test has a control plane of its own; as many run at a time as there are processors.

// A test that cannot go on stops with the place and the value.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod agent;
mod apart;
mod bad_input;
mod both_clusters;
mod crashes;
mod jobs;
mod lifecycle;
mod network;
mod nodes;
mod replicas;
mod shapes;
mod ways;
