//! A real Kubernetes control plane for tests and for a person's machine.
mod binaries;
mod certs;
mod cluster;
mod error;
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
pub use cluster::{
    Cluster, ClusterBuilder, Identity, KubectlOutput, Outage, Program, TokenOptions,
};
pub use error::{Error, Result};
pub use kwok::{FAIL_SECONDS, RUN_SECONDS, TERMINATE_SECONDS};
pub use nodes::{NODE_SET_LABEL, NVIDIA_GPU, NodeTemplate};
pub use training_operator::TrainingOperatorOptions;
pub use usage::Usage;
pub use writes::{AuditPosition, WriteKind, Writes};
