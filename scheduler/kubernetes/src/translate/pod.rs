//! Pods, and to which gang each belongs.
//!
//! The evidence, strongest first; pods of other schedulers belong to no gang:
//!
//! 1. controller owner reference to a PyTorchJob: that job's gang, whatever labels say. Role and
//!    index come from training-operator's labels if they agree with the owner's name.
//! 2. label `muster.dev/gang`: the labelled gang of that name in the pod's namespace.
//! 3. label `scheduling.x-k8s.io/pod-group`: the PodGroup of that name in the pod's namespace.
//! 4. it asks for devices, or carries our gate: a gang of one.
//! 5. otherwise none.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use muster_core::failure::ON_GPU_FAILURE;
use muster_core::ids::{
    DeviceUuid, Epoch, GangKey, Namespace, NodeName, PlanId, PodUid, ResourceVersion, RoleName,
};
use muster_core::planted;
use muster_core::pod::{BindRecord, Membership, MembershipSource, Pod, PodPhase, PodShape};
use muster_core::topology;
use muster_core::workload::MEMBERS_MAX;

use super::between::{self, Whose};
use super::{PodRules, annotation, created_seconds, group, label, shape, shortened, text, unread};
use crate::lite::LitePod;
use crate::names;

/// Most devices that are read from a pod's annotation.
const DEVICES_MAX: usize = 1024;

/// A Pod. A request that cannot be read makes it fit nowhere.
pub fn pod(pod: &LitePod, rules: &PodRules) -> Pod {
    let meta = &pod.metadata;
    let labels = between::labels(meta.labels.as_ref());
    let whose = Whose {
        namespace: text(meta.namespace.as_ref()),
        labels: &labels,
    };
    let (mut shape, _) = shape::of_spec(&pod.spec, whose);
    let ours = pod.spec.scheduler_name.as_deref() == Some(rules.scheduler_name.as_str());
    let gates = &pod.spec.scheduling_gates;
    let gated = gates.iter().any(|gate| gate.name == names::GATE);
    let node = pod
        .spec
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .map(NodeName::from);
    let membership = ours
        .then(|| membership(pod, &shape, gated, rules))
        .flatten();
    if membership.is_none() {
        // Nobody is placed by its rules.
        shape.between_pods.clear();
    }
    let is_known_by_pods = membership.as_ref().is_some_and(|membership| {
        !matches!(
            membership.source,
            MembershipSource::Job | MembershipSource::Alone
        )
    });
    let epoch = super::stamp(meta);
    Pod {
        uid: PodUid::from(text(meta.uid.as_ref())),
        namespace: Namespace::from(text(meta.namespace.as_ref())),
        name: Arc::from(text(meta.name.as_ref())),
        resource_version: ResourceVersion::from(text(meta.resource_version.as_ref())),
        created_seconds: created_seconds(meta),
        phase: phase(pod.status.phase.as_deref()),
        terminating: meta.deletion_timestamp.is_some(),
        shape: Arc::new(shape),
        priority: pod.spec.priority.unwrap_or(0),
        ours,
        membership,
        labels: Arc::new(if is_known_by_pods {
            labels
        } else {
            BTreeMap::new()
        }),
        gated,
        gated_by_others: gates.iter().any(|gate| gate.name != names::GATE),
        controlled: controller(meta).is_some(),
        record: node.as_ref().and_then(|_| bind_record(meta, epoch?)),
        stamp: if node.is_none() { epoch } else { None },
        unschedulable: unschedulable(pod),
        status_reason: pod
            .status
            .reason
            .as_deref()
            .filter(|reason| !reason.is_empty())
            .map(Arc::from),
        settings: if ours {
            own_settings(meta)
        } else {
            BTreeMap::new()
        },
        node,
    }
}

/// What a pod asks of the topology and for its gang's GPUs, and its keys that nobody reads.
fn own_settings(meta: &ObjectMeta) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut found = unread(meta);
    for key in topology::KEYS.into_iter().chain([ON_GPU_FAILURE]) {
        if let Some(value) = annotation(meta, key) {
            found.insert(Arc::from(key), Arc::from(value));
        }
    }
    found
}

fn phase(text: Option<&str>) -> PodPhase {
    match text {
        Some("Running") => PodPhase::Running,
        Some("Succeeded") => PodPhase::Succeeded,
        Some("Failed") => PodPhase::Failed,
        _ => PodPhase::Pending,
    }
}

fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

fn bind_record(meta: &ObjectMeta, epoch: Epoch) -> Option<BindRecord> {
    Some(BindRecord {
        plan: PlanId::from(annotation(meta, names::PLAN)?),
        epoch,
        devices: annotation(meta, names::DEVICES)
            .unwrap_or_default()
            .split(',')
            .filter(|uuid| !uuid.is_empty())
            .take(DEVICES_MAX)
            .map(DeviceUuid::from)
            .collect(),
    })
}

fn unschedulable(pod: &LitePod) -> Option<Arc<str>> {
    pod.status
        .conditions
        .iter()
        .find(|condition| {
            condition.type_ == "PodScheduled"
                && condition.status == "False"
                && condition.reason.as_deref() == Some("Unschedulable")
        })
        .map(|condition| Arc::from(condition.message.as_deref().unwrap_or_default()))
}

/// The job that controls the pod, if it is a PyTorchJob.
fn owning_job(meta: &ObjectMeta) -> Option<&OwnerReference> {
    controller(meta).filter(|owner| {
        owner.kind == "PyTorchJob"
            && owner
                .api_version
                .split_once('/')
                .is_some_and(|(group, _)| group == names::KUBEFLOW_GROUP)
    })
}

fn membership(
    pod: &LitePod,
    shape: &PodShape,
    gated: bool,
    rules: &PodRules,
) -> Option<Membership> {
    let meta = &pod.metadata;
    let namespace = text(meta.namespace.as_ref());
    if let Some(owner) = owning_job(meta) {
        return Some(of_job(meta, namespace, owner));
    }
    let (gang, source) = if let Some(name) = named(meta, names::GANG_LABEL) {
        let source = MembershipSource::Label {
            name: Arc::from(name),
            size: stated_size(meta),
        };
        (GangKey::labelled(namespace, name), source)
    } else if let Some(name) = named(meta, names::POD_GROUP_LABEL) {
        let source = MembershipSource::PodGroup {
            name: Arc::from(name),
        };
        (group::key(namespace, name), source)
    } else if gated || asks_for_devices(shape, rules) {
        let key = GangKey::new(namespace, text(meta.uid.as_ref()));
        return Some(Membership {
            gang: key,
            source: MembershipSource::Alone,
            role: None,
            index: None,
        });
    } else {
        return None;
    };
    Some(Membership {
        gang,
        source,
        role: named(meta, names::ROLE_LABEL).map(RoleName::from),
        index: label(meta, names::INDEX_LABEL).and_then(|index| index.parse().ok()),
    })
}

fn named<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    label(meta, key).filter(|name| !name.is_empty())
}

fn asks_for_devices(shape: &PodShape, rules: &PodRules) -> bool {
    shape
        .requests
        .extended
        .keys()
        .any(|name| rules.config.is_device(name))
}

fn of_job(meta: &ObjectMeta, namespace: &str, owner: &OwnerReference) -> Membership {
    let agrees = label(meta, names::JOB_NAME) == Some(owner.name.as_str());
    let role = match label(meta, names::REPLICA_TYPE) {
        Some("master") if agrees => Some("Master"),
        Some("worker") if agrees => Some("Worker"),
        _ => None,
    };
    let index = role.and_then(|_| label(meta, names::REPLICA_INDEX)?.parse().ok());
    Membership {
        gang: GangKey::new(namespace, &owner.uid),
        source: MembershipSource::Job,
        role: role.map(RoleName::from),
        index,
    }
}

/// Size of a labelled gang as stated on the pod.
fn stated_size(meta: &ObjectMeta) -> Result<u32, Arc<str>> {
    let Some(stated) = annotation(meta, names::GANG_SIZE).or(label(meta, names::GANG_SIZE)) else {
        return Err(Arc::from(format!(
            "{} is missing: must be the number of members, 1 to {MEMBERS_MAX}",
            names::GANG_SIZE
        )));
    };
    match stated.parse::<u32>() {
        Ok(size) if (1..=MEMBERS_MAX).contains(&size) => Ok(size),
        _ => {
            planted::bad_input();
            Err(Arc::from(format!(
                "{} is {}: must be the number of members, 1 to {MEMBERS_MAX}",
                names::GANG_SIZE,
                shortened(stated)
            )))
        }
    }
}
