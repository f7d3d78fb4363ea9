//! PyTorchJobs.
//!
//! The object is read as it was stored, so the defaults that training-operator applies in memory
//! are applied here too: one replica, `init-pytorch` in workers beside a Master, the rendezvous
//! port. What is wrong becomes one [`InvalidWorkload`], the first one found.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use muster_core::ids::{GangKey, NodeName, PlanId, ResourceVersion, RoleName};
use muster_core::interpod::{Labels, looked_at};
use muster_core::workload::{
    Hold, InvalidWorkload, MEMBERS_MAX, MemberSource, Outcome, RoleSpec, Shown, Workload,
    WorkloadKind,
};
use serde_json::{Map, Value};

use super::between::Whose;
use super::{PodRules, Problem, annotation, created_seconds, requests, settings, shape, text};
use crate::lite::{LiteContainer, LitePodSpec, LitePort, LitePyTorchJob, LiteResources};
use crate::names;
use crate::pins::{self, Pinned};

const REPLICA_SPECS: &str = "spec.pytorchReplicaSpecs";
const SCHEDULING_POLICY: &str = "spec.runPolicy.schedulingPolicy";
/// `spec.runPolicy.managedBy` of jobs that training-operator runs.
const OPERATOR: &str = "kubeflow.org/training-operator";
/// Largest value of a PriorityClass that is not Kubernetes' own.
const USER_PRIORITY_MAX: i32 = 1_000_000_000;
/// Scheduler of a template that names none.
const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// Container, and the name and number of its port, that training-operator expects or adds.
const CONTAINER: &str = "pytorch";
const PORT_NAME: &str = "pytorchjob-port";
const PORT: i64 = 23_456;

/// A PyTorchJob as the gang it asks for. `None` when `managedBy` names another controller, and when it is being deleted: its controller
/// makes no more pods for it, and those that it has go before it.
///
/// It says itself that it is ours when a template names our scheduler, or when Muster has marked
/// it, whatever its templates now say. Of any other job only its pods tell: training-operator with
/// `--gang-scheduler-name` puts a name into those whose template has none.
pub fn pytorchjob(job: &LitePyTorchJob, rules: &PodRules) -> Option<Workload> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let policy = job.spec.get("runPolicy");
    let managed_by = policy.and_then(|policy| policy.get("managedBy"));
    if managed_by.is_some_and(|by| !by.is_null() && by != "" && by != OPERATOR) {
        return None;
    }
    let empty = Map::new();
    let specs = job
        .spec
        .get("pytorchReplicaSpecs")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    let meta = &job.metadata;
    let named = |unnamed: &str| {
        specs
            .values()
            .any(|spec| scheduler_of(spec, unnamed) == rules.scheduler_name)
    };
    let unnamed = if rules.unnamed_jobs_are_ours {
        rules.scheduler_name.as_str()
    } else {
        DEFAULT_SCHEDULER
    };
    let ours = named(unnamed) || annotation(meta, names::HOLD).is_some();
    let mut reading = Reading::default();
    if ours {
        reading.mixed_schedulers(specs, unnamed, rules);
    } else {
        // It becomes ours by a pod that names us: then the operator does so where nobody else did.
        reading.mixed_schedulers(specs, &rules.scheduler_name, rules);
    }
    let pinned = pins::recorded(annotation(meta, names::PINNED));
    let roles = reading.roles(meta, specs, &pinned);
    let minimum = reading.minimum(job, &roles);
    let name = text(meta.name.as_ref());
    Some(Workload {
        key: GangKey::new(text(meta.namespace.as_ref()), text(meta.uid.as_ref())),
        kind: WorkloadKind::PyTorchJob,
        name: Arc::from(name),
        uid: Arc::from(text(meta.uid.as_ref())),
        resource_version: ResourceVersion::from(text(meta.resource_version.as_ref())),
        generation: meta.generation.unwrap_or(0),
        created_seconds: created_seconds(meta),
        priority: priority(policy, specs, rules),
        ours,
        members: MemberSource::Roles(roles),
        minimum,
        hold: hold(job),
        shown: shown_by(&job.status),
        finished: finished(&job.status),
        invalid: reading.problem.map(InvalidWorkload::from),
        settings: all_settings(meta, specs),
    })
}

/// The job's own settings, and keys of its templates that nobody reads.
fn all_settings(meta: &ObjectMeta, specs: &Map<String, Value>) -> BTreeMap<Arc<str>, Arc<str>> {
    let mut found = settings(meta);
    let templates = specs
        .values()
        .filter_map(|spec| spec.get("template")?.get("metadata"));
    for part in templates.flat_map(|meta| [meta.get("labels"), meta.get("annotations")]) {
        for key in part
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(|part| part.keys())
        {
            if key.starts_with(names::PREFIX) && !muster_core::settings::is_known(key) {
                found.entry(Arc::from(key.as_str())).or_default();
            }
        }
    }
    found
}

/// A value as a number of members, 0 to [`MEMBERS_MAX`].
pub(super) fn count(value: &Value) -> Option<u32> {
    value
        .as_u64()
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| *number <= MEMBERS_MAX)
}

fn count_limit() -> String {
    format!("must be a whole number from 0 to {MEMBERS_MAX}")
}

/// A text as itself, anything else as JSON.
pub(super) fn shown(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn present<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|value| !value.is_null())
}

/// Scheduler that the pods of a replica spec will name; `unnamed` where it names none.
fn scheduler_of<'a>(spec: &'a Value, unnamed: &'a str) -> &'a str {
    spec.get("template")
        .and_then(|template| template.get("spec"))
        .and_then(|spec| spec.get("schedulerName"))
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty())
        .unwrap_or(unnamed)
}

fn hold(job: &LitePyTorchJob) -> Hold {
    let suspended = job
        .spec
        .get("runPolicy")
        .and_then(|policy| policy.get("suspend"))
        .and_then(Value::as_bool)
        .unwrap_or(false);
    let mark = annotation(&job.metadata, names::HOLD);
    let plan = annotation(&job.metadata, names::PLAN);
    match (suspended, mark, plan) {
        (true, Some(names::HOLD_QUEUED), _) => Hold::Held,
        (true, _, _) => Hold::SuspendedByUser,
        (false, Some(names::HOLD_RELEASED), Some(plan)) => Hold::Released(PlanId::from(plan)),
        (false, _, _) => Hold::Free,
    }
}

/// Whether a condition with these fields is there and true.
fn holds(status: &Value, fields: &[(&str, &str)]) -> bool {
    let is = |condition: &Value, key: &str, value: &str| {
        condition.get(key).is_some_and(|found| found == value)
    };
    status
        .get("conditions")
        .and_then(Value::as_array)
        .is_some_and(|conditions| {
            conditions.iter().any(|condition| {
                is(condition, "status", "True")
                    && fields.iter().all(|(key, value)| is(condition, key, value))
            })
        })
}

fn finished(status: &Value) -> Option<Outcome> {
    if holds(status, &[("type", "Failed")]) {
        Some(Outcome::Failed)
    } else {
        holds(status, &[("type", "Succeeded")]).then_some(Outcome::Succeeded)
    }
}

/// What is Muster's is known by its reason: training-operator or anybody else may write a condition
/// of the same type.
fn shown_by(status: &Value) -> Shown {
    let queued = [
        ("type", names::QUEUED_CONDITION),
        ("reason", names::QUEUED_REASON),
    ];
    if !holds(status, &[("type", "Suspended")]) {
        Shown::Nothing
    } else if holds(status, &queued) {
        Shown::Queued
    } else {
        Shown::Suspended
    }
}

/// Priority of the class that the job names, else the largest of the classes that its templates
/// name, else the cluster's default. A class that is not known counts as 0, and so does one of the
/// values that Kubernetes reserves for itself: nobody has checked yet that this user may have pods of
/// it. Pods that are made with it have been checked, and count.
fn priority(policy: Option<&Value>, specs: &Map<String, Value>, rules: &PodRules) -> i32 {
    let value = |name: &str| {
        let value = rules.priority_classes.get(name).copied();
        value.filter(|value| *value <= USER_PRIORITY_MAX)
    };
    let class = policy
        .and_then(|policy| {
            policy
                .get("schedulingPolicy")?
                .get("priorityClass")?
                .as_str()
        })
        .filter(|name| !name.is_empty());
    if let Some(class) = class {
        return value(class).unwrap_or(0);
    }
    let default = value("").unwrap_or(0);
    specs
        .values()
        .map(|spec| {
            spec.get("template")
                .and_then(|template| template.get("spec")?.get("priorityClassName")?.as_str())
                .filter(|name| !name.is_empty())
                .map_or(default, |class| value(class).unwrap_or(0))
        })
        .max()
        .unwrap_or(default)
}

/// Reads on after the first problem and keeps that one.
#[derive(Default)]
struct Reading {
    problem: Option<Problem>,
}

impl Reading {
    fn note(&mut self, problem: Problem) {
        self.problem.get_or_insert(problem);
    }

    fn mixed_schedulers(&mut self, specs: &Map<String, Value>, unnamed: &str, rules: &PodRules) {
        let ours = specs
            .iter()
            .find(|(_, spec)| scheduler_of(spec, unnamed) == rules.scheduler_name);
        let other = specs
            .iter()
            .find(|(_, spec)| scheduler_of(spec, unnamed) != rules.scheduler_name);
        if let Some((role, spec)) = other {
            let beside = ours.map_or_else(String::new, |(name, _)| {
                format!(" as {} does", super::shortened(name))
            });
            self.note(Problem::new(
                format!("{}.template.spec.schedulerName", role_path(role)),
                scheduler_of(spec, unnamed),
                format!("must be {}{beside}", rules.scheduler_name),
            ));
        }
    }

    fn roles(
        &mut self,
        meta: &ObjectMeta,
        specs: &Map<String, Value>,
        pinned: &Pinned,
    ) -> Vec<RoleSpec> {
        if specs.is_empty() {
            self.note(Problem::new(
                REPLICA_SPECS,
                "{}",
                "must have Master or Worker",
            ));
        }
        let master = specs.contains_key("Master");
        let mut roles = Vec::new();
        for (name, spec) in specs {
            if name != "Master" && name != "Worker" {
                self.note(Problem::new(
                    REPLICA_SPECS,
                    name,
                    "must be Master or Worker",
                ));
                continue;
            }
            let count = self.replicas(name, spec);
            let pins = pinned.get(name);
            let (template, found) = self.template(name, spec, pins, master);
            let labels = labels_of_pods(meta, name, spec);
            let whose = Whose {
                namespace: text(meta.namespace.as_ref()),
                labels: &labels,
            };
            let (shape, problem) = shape::of_spec(&template, whose);
            let refused = || requests::refused_by_api_server(&template);
            if let Some(problem) = problem.or_else(refused) {
                self.note(problem.below(&format!("{}.template.spec", role_path(name))));
            }
            if count > 0 {
                roles.push(RoleSpec {
                    name: RoleName::from(name.as_str()),
                    count,
                    shape: Arc::new(shape),
                    labels: Arc::new(labels),
                    pinned: (!found.is_empty()).then_some(found),
                });
            }
        }
        keep_labels_looked_at(&mut roles);
        let total = roles
            .iter()
            .fold(0_u32, |sum, role| sum.saturating_add(role.count));
        if total > MEMBERS_MAX {
            let limit = format!("must have at most {MEMBERS_MAX} replicas in all");
            self.note(Problem::new(REPLICA_SPECS, &total.to_string(), limit));
        } else if total == 0 {
            let limit = "must have at least one replica in all";
            self.note(Problem::new(REPLICA_SPECS, "0", limit));
        }
        roles
    }

    fn replicas(&mut self, role: &str, spec: &Value) -> u32 {
        match present(spec, "replicas") {
            None => 1,
            Some(value) => count(value).unwrap_or_else(|| {
                let field = format!("{}.replicas", role_path(role));
                self.note(Problem::new(field, &shown(value), count_limit()));
                0
            }),
        }
    }

    /// The role's pod spec as the user wrote it, with the operator's additions, and the nodes that
    /// our pins in it name.
    fn template(
        &mut self,
        role: &str,
        spec: &Value,
        pins: Option<&pins::RolePins>,
        master: bool,
    ) -> (LitePodSpec, Vec<NodeName>) {
        let mut raw = spec
            .get("template")
            .and_then(|template| template.get("spec"))
            .cloned()
            .unwrap_or(Value::Null);
        let path = format!("{}.template.spec", role_path(role));
        if raw.is_null() {
            self.note(Problem::new(path, "null", "must be a pod spec"));
            return (LitePodSpec::default(), Vec::new());
        }
        let found = match (pins, raw.as_object_mut()) {
            (Some(pins), Some(object)) => pins::strip(object, pins),
            _ => Vec::new(),
        };
        let mut template = match typed(&raw) {
            Ok(template) => template,
            Err(problem) => {
                self.note(problem.below(&path));
                LitePodSpec::default()
            }
        };
        if master && role == "Worker" {
            template.init_containers.push(init_container());
        }
        add_port(&mut template);
        let found = found
            .iter()
            .map(|node| NodeName::from(node.as_str()))
            .collect();
        (template, found)
    }

    /// Members that must run together; `None` means all of them.
    fn minimum(&mut self, job: &LitePyTorchJob, roles: &[RoleSpec]) -> Option<u32> {
        let policy = job
            .spec
            .get("runPolicy")
            .and_then(|policy| present(policy, "schedulingPolicy"));
        if let Some(value) = policy.and_then(|policy| present(policy, "minAvailable")) {
            let field = format!("{SCHEDULING_POLICY}.minAvailable");
            let minimum = self.counted(field, value);
            return (minimum > 0).then_some(minimum);
        }
        if annotation(&job.metadata, names::ELASTIC_MINIMUM) != Some("true") {
            return None;
        }
        let elastic = present(&job.spec, "elasticPolicy")?;
        let value = present(elastic, "minReplicas")?;
        let workers = self.counted("spec.elasticPolicy.minReplicas".to_owned(), value);
        let others = roles
            .iter()
            .filter(|role| role.name.as_str() != "Worker")
            .fold(0_u32, |sum, role| sum.saturating_add(role.count));
        (workers > 0).then_some(workers.saturating_add(others))
    }

    fn counted(&mut self, field: String, value: &Value) -> u32 {
        count(value).unwrap_or_else(|| {
            self.note(Problem::new(field, &shown(value), count_limit()));
            0
        })
    }
}

/// Labels that every pod of the role has: its template's, and over them those of training-operator.
/// Its index is not among them, nor `job-role`, which of workers only the first may have.
fn labels_of_pods(meta: &ObjectMeta, role: &str, spec: &Value) -> Labels {
    let own = spec
        .get("template")
        .and_then(|template| template.get("metadata")?.get("labels")?.as_object());
    let mut labels: Labels = own
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((Arc::from(key.as_str()), Arc::from(value.as_str()?))))
        .collect();
    let lower = role.to_lowercase();
    let mut put = |key: &str, value: &str| labels.insert(Arc::from(key), Arc::from(value));
    put(names::JOB_NAME, text(meta.name.as_ref()));
    put(names::OPERATOR_NAME, "pytorchjob-controller");
    put(names::REPLICA_TYPE, &lower);
    if role == "Master" {
        put(names::JOB_ROLE, "master");
    }
    labels
}

/// Leaves to each role the labels that a rule of one of the roles looks at: none, nearly always, so
/// that jobs with the same wants are alike.
fn keep_labels_looked_at(roles: &mut [RoleSpec]) {
    let shapes: Vec<_> = roles.iter().map(|role| Arc::clone(&role.shape)).collect();
    for role in roles {
        let rules = shapes.iter().flat_map(|shape| &shape.between_pods);
        role.labels = Arc::new(looked_at(&role.labels, rules));
    }
}

fn role_path(role: &str) -> String {
    format!("{REPLICA_SPECS}.{}", super::shortened(role))
}

/// A pod spec with types; where a type is wrong, the field, its value and what was expected.
fn typed(raw: &Value) -> Result<LitePodSpec, Problem> {
    serde_path_to_error::deserialize(raw).map_err(|error| {
        let mut at = Some(raw);
        for segment in error.path() {
            at = match segment {
                serde_path_to_error::Segment::Seq { index } => {
                    at.and_then(|value| value.get(*index))
                }
                serde_path_to_error::Segment::Map { key } => at.and_then(|value| value.get(key)),
                _ => None,
            };
        }
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        let value = at.map(shown).unwrap_or_default();
        let limit = expected(&error.inner().to_string());
        Problem::new(super::shortened(&field), &value, limit)
    })
}

/// What a parser's message says was expected, in words of JSON.
fn expected(message: &str) -> String {
    let Some((_, what)) = message.rsplit_once("expected ") else {
        return super::shortened(message);
    };
    let what = match what {
        "a sequence" => "a list",
        "a map" => "an object",
        "a string" => "a text",
        "a boolean" => "true or false",
        "i32" | "i64" => "a whole number",
        what if what.starts_with("struct ") => "an object",
        what => what,
    };
    format!("must be {what}")
}

/// What training-operator adds to the workers of a job with a Master: it waits for the Master's
/// name to resolve.
fn init_container() -> LiteContainer {
    let amounts = |cpu: &str, memory: &str| {
        [("cpu", cpu), ("memory", memory)]
            .map(|(name, amount)| (name.to_owned(), amount.into()))
            .into()
    };
    LiteContainer {
        name: "init-pytorch".to_owned(),
        resources: LiteResources {
            requests: amounts("50m", "10Mi"),
            limits: amounts("100m", "20Mi"),
        },
        ..LiteContainer::default()
    }
}

/// The rendezvous port that training-operator adds where it is missing. With the node's network it
/// becomes a port of the node.
fn add_port(template: &mut LitePodSpec) {
    for container in &mut template.containers {
        let there = container
            .ports
            .iter()
            .any(|port| port.name.as_deref() == Some(PORT_NAME));
        if container.name == CONTAINER && !there {
            container.ports.push(LitePort {
                name: Some(PORT_NAME.to_owned()),
                container_port: PORT,
                ..LitePort::default()
            });
        }
    }
}
