//! Tests of what deploy/ holds.
//!
//! ```text
//!   muster_kubernetes::manifests --(same bytes)--> deploy/{crds,rbac,admission,kube-scheduler}
//!                                                  deploy/helm/muster/files
//!   kubectl kustomize, helm template --> objects --> parse strictly into the types of Kubernetes 1.37
//!                                                --> the same objects from both
//!                                                --> hold to the rules of hardening
//!                                                --> accepted by a real API server (dry run)
//! ```
//! Helm and kubectl are built from the Go modules that declare them. `MUSTER_UPDATE_DEPLOY=1`
//! writes the printed files anew instead of comparing them.

// A test that cannot go on stops with the place and the value.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod absent;
mod account;
mod certs;
mod examples;
mod files;
mod parity;
mod printed;
mod programs;
mod real_api;
mod rules;
mod strict;
