//! A real Kubernetes control plane for tests and for a person's machine.
//!
//! ```text
//!   tools/go.mod, training-operator/go.mod --go install--> Binaries (built once, under a file lock)
//!                                                            |
//!   Cluster::builder().start() --child processes on loopback-+
//!     etcd <- kube-apiserver <- kube-controller-manager   garbage collection, node lifecycle, Jobs, service accounts
//!                    ^  ^  ^--- kwok                      nodes and pods without kubelets
//!                    |  |  ^--- kube-scheduler            unmodified, one or several, each with its own configuration file
//!                    |  ^------ training-operator         PyTorchJobs, with its webhook, under its own service account
//!                    ^--------- Recorder                  every change of pods, nodes, jobs -> History -> violations, times
//! ```
//! Nothing is simulated but kubelets. Everything lives in one folder in memory, every program dies with this process even when it is
//! killed, and several clusters can run at once. Linux only.
//!
//! | wanted | where |
//! |---|---|
//! | programs from a folder instead of a build | environment `MUSTER_CONTROL_PLANE_BIN` |
//! | logs after a test | kept after a failure, always with `MUSTER_KEEP_LOGS=1`; the place is printed |
//! | nodes | [`ClusterBuilder::nodes`], [`Cluster::add_nodes`], [`Cluster::set_node_ready`], [`Cluster::set_node_resource`] |
//! | pods that end | annotations [`RUN_SECONDS`], [`FAIL_SECONDS`], [`TERMINATE_SECONDS`] |
//! | ways in | [`Cluster::admin`], [`Cluster::client`], [`Cluster::kubeconfig`], [`Cluster::kubectl`], [`Cluster::apply_yaml`] |
//! | a program with its own RBAC | [`Cluster::service_account_kubeconfig`], [`Cluster::service_account_token`] |
//! | mTLS for an extender | [`Cluster::authority`] (serving certificates, the CA file), [`Cluster::kube_scheduler_cert`] |
//! | faults | [`Cluster::kill`], [`Cluster::stop`], [`Cluster::start`], [`Cluster::pause`], [`Cluster::stop_api_server_for`] |
//! | backup and restore | [`Cluster::save_snapshot`], [`Cluster::restore_snapshot`] |
//! | a program without a cluster | [`Child`] |
//! | a program of one's own | [`Cluster::spawn`], then the same faults on [`Program::Other`] |
//! | programs of another Go module | [`build_tools`] |
//! | a scheduler made from kube-scheduler | [`Cluster::start_scheduler`] |
//! | costs | [`Cluster::api_writes`], [`Cluster::audit_writes`], [`Cluster::usage`] |
//! | judgement | [`history::Recorder`], [`history::History`] |
//!
//! ```no_run
//! use std::time::Duration;
//! use muster_control_plane::history::{GangRule, Recorder};
//! use muster_control_plane::{Cluster, NodeTemplate, TrainingOperatorOptions};
//!
//! # async fn example() -> muster_control_plane::Result<()> {
//! let cluster = Cluster::builder().nodes(NodeTemplate::gpu_pool("gpu", 4)).start().await?;
//! cluster.start_training_operator(&TrainingOperatorOptions::default()).await?;
//! cluster.start_kube_scheduler(&cluster.default_kube_scheduler_config()?).await?;
//! let recorder = Recorder::start(cluster.admin()).await?;
//!
//! cluster.apply_yaml("apiVersion: kubeflow.org/v1\nkind: PyTorchJob\nmetadata: {name: train}\n# ...").await?;
//! let minute = Duration::from_secs(60);
//! recorder.wait_for(minute, "5 members bound", |world| world.bound_of("train") == 5).await?;
//!
//! let history = recorder.caught_up(minute).await?;
//! let rule = GangRule::new(Duration::from_secs(30)).outages(cluster.outages());
//! assert_eq!(history.partial_gangs(&rule), []);
//! assert_eq!(history.over_commitments(), []);
//! # Ok(())
//! # }
//! ```

mod binaries;
mod certs;
mod child;
mod cluster;
mod error;
mod go;
pub mod history;
mod kwok;
mod nodes;
mod pdeathsig;
mod ports;
mod probe;
mod process;
mod training_operator;
mod usage;
mod writes;

pub use binaries::{BIN_ENV, Binaries};
pub use certs::{Authority, CertFiles};
pub use child::Child;
pub use cluster::{
    Cluster, ClusterBuilder, Identity, KubectlOutput, Outage, Program, TokenOptions,
};
pub use error::{Error, Result};
pub use go::{Manifest, build_tools};
pub use kwok::{FAIL_SECONDS, RUN_SECONDS, TERMINATE_SECONDS};
pub use nodes::{NODE_SET_LABEL, NVIDIA_GPU, NodeTemplate};
pub use ports::free_port;
pub use training_operator::TrainingOperatorOptions;
pub use usage::{Usage, children};
pub use writes::{AuditPosition, WriteKind, Writes};
