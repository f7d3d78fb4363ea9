//! What a pod asks for, counted as Kubernetes counts it.
//!
//! ```text
//!   running = sum of containers + sidecars
//!   init    = largest over init containers, in order, of
//!             (itself + sidecars started before it)
//!   pod     = max(running, init), CPU/memory/hugepages replaced by pod-level requests,
//!             + overhead, + 1 pod
//! ```
//!
//! A limit without a request is a request of the same amount, as the API server defaults it. An
//! amount that cannot be read counts as more than any node has.

use std::collections::BTreeMap;

use muster_core::ids::ResourceName;
use muster_core::resources::Resources;

use super::Problem;
use crate::lite::{LiteContainer, LitePodSpec, LiteResources, RawQuantity};
use crate::quantity::{self, QuantityError};

/// Reads amounts by name into `resources`, each by `put`; notes the first that cannot be read.
fn read_amounts<'a>(
    amounts: impl IntoIterator<Item = (&'a String, &'a RawQuantity, &'a str)>,
    path: &str,
    unreadable: u64,
    problem: &mut Option<Problem>,
) -> Resources {
    let mut resources = Resources::default();
    for (name, amount, part) in amounts {
        let mut read = |parse: fn(&str) -> Result<u64, QuantityError>| {
            parse(&amount.0).unwrap_or_else(|error| {
                problem.get_or_insert_with(|| {
                    Problem::new(
                        format!("{path}{part}[{}]", super::shortened(name)),
                        &amount.0,
                        error.to_string(),
                    )
                });
                unreadable
            })
        };
        match name.as_str() {
            "cpu" => resources.milli_cpu = read(quantity::milli),
            "memory" => resources.memory_bytes = read(quantity::units),
            "ephemeral-storage" => resources.ephemeral_bytes = read(quantity::units),
            "pods" => resources.pods = read(quantity::units),
            other => {
                let units = read(quantity::units);
                if units > 0 {
                    resources.extended.insert(ResourceName::from(other), units);
                }
            }
        }
    }
    resources
}

/// What a node offers; an amount that cannot be read counts as nothing.
pub(super) fn offered(allocatable: &BTreeMap<String, RawQuantity>) -> Resources {
    let amounts = allocatable.iter().map(|(name, amount)| (name, amount, ""));
    read_amounts(amounts, "status.allocatable", 0, &mut None)
}

/// Requests with the defaults that limits stand for.
fn effective(resources: &LiteResources) -> impl Iterator<Item = (&String, &RawQuantity, &str)> {
    let requests = resources
        .requests
        .iter()
        .map(|(name, amount)| (name, amount, ".requests"));
    let limits = resources
        .limits
        .iter()
        .filter(|(name, _)| !resources.requests.contains_key(*name))
        .map(|(name, amount)| (name, amount, ".limits"));
    requests.chain(limits)
}

fn of_container(container: &LiteContainer, path: &str, problem: &mut Option<Problem>) -> Resources {
    let path = format!("{path}.resources");
    let mut resources = read_amounts(effective(&container.resources), &path, u64::MAX, problem);
    resources.pods = 0;
    resources
}

/// Whether an init container goes on running beside the others.
pub(super) fn is_sidecar(container: &LiteContainer) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What a pod with this spec asks for, and the first amount that cannot be read.
pub(super) fn of_spec(spec: &LitePodSpec) -> (Resources, Option<Problem>) {
    let mut problem = None;
    let mut running = Resources::default();
    for (index, container) in spec.containers.iter().enumerate() {
        let path = format!("containers[{index}]");
        running.add(&of_container(container, &path, &mut problem));
    }
    let mut sidecars = Resources::default();
    let mut starting = Resources::default();
    for (index, container) in spec.init_containers.iter().enumerate() {
        let path = format!("initContainers[{index}]");
        let own = of_container(container, &path, &mut problem);
        if is_sidecar(container) {
            running.add(&own);
            sidecars.add(&own);
            starting.raise_to(&sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            with_sidecars.add(&own);
            starting.raise_to(&with_sidecars);
        }
    }
    running.raise_to(&starting);
    if let Some(level) = &spec.resources {
        replace_by_pod_level(&mut running, level, &mut problem);
    }
    let overhead = spec
        .overhead
        .iter()
        .map(|(name, amount)| (name, amount, ""));
    running.add(&read_amounts(overhead, "overhead", u64::MAX, &mut problem));
    running.pods = 1;
    (running, problem)
}

/// Puts pod-level requests in place of the containers'. A pod-level limit alone counts where no
/// container asks for the resource.
fn replace_by_pod_level(
    running: &mut Resources,
    level: &LiteResources,
    problem: &mut Option<Problem>,
) {
    let read = read_amounts(effective(level), "resources", u64::MAX, problem);
    let named = |name: &str, current: u64| {
        level.requests.contains_key(name) || (current == 0 && level.limits.contains_key(name))
    };
    if named("cpu", running.milli_cpu) {
        running.milli_cpu = read.milli_cpu;
    }
    if named("memory", running.memory_bytes) {
        running.memory_bytes = read.memory_bytes;
    }
    for (name, amount) in &read.extended {
        let huge = name.as_str().starts_with("hugepages-");
        if huge && named(name.as_str(), running.extended(name.as_str())) {
            running.extended.insert(name.clone(), *amount);
        }
    }
}

/// What the API server will refuse when pods are made from this template, of what touches extended
/// resources: parts of a device, a request without a limit, a request other than the limit.
pub(super) fn refused_by_api_server(spec: &LitePodSpec) -> Option<Problem> {
    let parts = [
        ("containers", &spec.containers),
        ("initContainers", &spec.init_containers),
    ];
    for (kind, containers) in parts {
        for (index, container) in containers.iter().enumerate() {
            let path = format!("{kind}[{index}].resources");
            if let Some(problem) = extended_problem(&container.resources, &path) {
                return Some(problem);
            }
        }
    }
    None
}

fn extended_problem(resources: &LiteResources, path: &str) -> Option<Problem> {
    let all = effective(resources).filter(|(name, _, _)| name.contains('/'));
    for (name, amount, part) in all {
        let field = || format!("{path}{part}[{}]", super::shortened(name));
        let Ok(milli) = quantity::milli(&amount.0) else {
            continue;
        };
        if milli % 1000 != 0 && milli != u64::MAX {
            return Some(Problem::new(field(), &amount.0, "must be a whole number"));
        }
        match resources.limits.get(name) {
            None => {
                return Some(Problem::new(
                    field(),
                    &amount.0,
                    "must have a limit of the same amount",
                ));
            }
            Some(limit) if quantity::milli(&limit.0).is_ok_and(|limit| limit != milli) => {
                let expected = format!("must equal its limit of {}", super::shortened(&limit.0));
                return Some(Problem::new(field(), &amount.0, expected));
            }
            Some(_) => {}
        }
    }
    None
}
