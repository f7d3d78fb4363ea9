//! Which resources the API server knows: the built-in ones, and those that CustomResourceDefinitions add.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::value;

/// A column of `kubectl get`.
#[derive(Debug, Clone)]
pub struct Column {
    /// The heading.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// `name` for the first column, else empty.
    pub format: String,
    /// 0 is always shown, 1 only by `-o wide`.
    pub priority: i64,
    /// The JSON path of a custom column; empty for built-in ones.
    pub path: String,
}

/// Where a scale subresource finds its numbers.
#[derive(Debug, Clone)]
pub struct ScalePaths {
    /// Path of the wanted replicas.
    pub spec: Vec<String>,
    /// Path of the replicas there are.
    pub status: Vec<String>,
    /// Path of the selector text.
    pub selector: Vec<String>,
}

/// One resource: how it is spelled, where it lives, and which rules hold for its writes.
#[derive(Debug, Clone)]
pub struct ResourceType {
    /// API group, `""` for the core group.
    pub group: String,
    /// The versions served, the preferred one first; the first one is stored.
    pub versions: Vec<String>,
    /// Plural name, as in paths.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Kind.
    pub kind: String,
    /// Short names, such as `po`.
    pub short: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether `status` is a subresource.
    pub status: bool,
    /// The scale subresource.
    pub scale: Option<ScalePaths>,
    /// Whether `metadata.generation` counts changes of the wanted state.
    pub generation: bool,
    /// Whether the resource follows the rules of custom resources.
    pub custom: bool,
    /// Columns of `kubectl get`, without Name and Age for built-in resources.
    pub columns: Vec<Column>,
    /// Structural schemas by version.
    pub schemas: BTreeMap<String, Value>,
    /// Group and plural of the resource that holds the objects, when this one is only another view of it.
    pub stored_as: Option<(String, String)>,
}

impl ResourceType {
    /// `pods`, or `pytorchjobs.kubeflow.org`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `v1`, or `kubeflow.org/v1`, for the version given.
    #[must_use]
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() {
            version.to_owned()
        } else {
            format!("{}/{version}", self.group)
        }
    }

    /// The version that objects are stored in.
    #[must_use]
    pub fn version(&self) -> &str {
        self.versions.first().map_or("v1", String::as_str)
    }

    /// Whether this is the resource `plural` of `group`.
    #[must_use]
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// Whether objects are pods.
    #[must_use]
    pub fn is_pod(&self) -> bool {
        self.is("", "pods")
    }

    /// Names of the subresources that are served.
    #[must_use]
    pub fn subresources(&self) -> Vec<(&'static str, String, String)> {
        let own = |name| (name, self.kind.clone(), self.api_version(self.version()));
        let mut list = Vec::new();
        if self.status {
            list.push(own("status"));
        }
        if self.scale.is_some() {
            list.push(("scale", "Scale".into(), "autoscaling/v1".into()));
        }
        if self.is_pod() {
            list.push(("binding", "Binding".into(), "v1".into()));
            list.push(("eviction", "Eviction".into(), "policy/v1".into()));
            list.push(own("log"));
        }
        if self.is("", "serviceaccounts") {
            list.push((
                "token",
                "TokenRequest".into(),
                "authentication.k8s.io/v1".into(),
            ));
        }
        if self.is("", "namespaces") {
            list.push(own("finalize"));
        }
        list
    }

    fn new(group: &str, version: &str, kind: &str, plural: &str, short: &[&str]) -> Self {
        Self {
            group: group.into(),
            versions: vec![version.into()],
            plural: plural.into(),
            singular: kind.to_lowercase(),
            kind: kind.into(),
            short: short.iter().map(|s| (*s).into()).collect(),
            categories: Vec::new(),
            namespaced: true,
            status: false,
            scale: None,
            generation: false,
            custom: false,
            columns: Vec::new(),
            schemas: BTreeMap::new(),
            stored_as: None,
        }
    }

    fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    fn status(mut self) -> Self {
        self.status = true;
        self
    }

    fn generation(mut self) -> Self {
        self.generation = true;
        self
    }

    fn all(mut self) -> Self {
        self.categories = vec!["all".into()];
        self
    }

    fn columns(mut self, names: &[(&str, i64)]) -> Self {
        self.columns = names
            .iter()
            .map(|(name, priority)| Column {
                name: (*name).into(),
                kind: "string".into(),
                format: String::new(),
                priority: *priority,
                path: String::new(),
            })
            .collect();
        self
    }

    /// The resource that a CustomResourceDefinition describes; `None` when its names or versions are missing.
    #[must_use]
    pub fn from_crd(crd: &Value) -> Option<Self> {
        let group = value::text(crd, &["spec", "group"]);
        let plural = value::text(crd, &["spec", "names", "plural"]);
        let kind = value::text(crd, &["spec", "names", "kind"]);
        let served: Vec<&Value> = value::items(crd, &["spec", "versions"])
            .iter()
            .filter(|v| value::flag(v, &["served"]))
            .collect();
        let stored = served
            .iter()
            .find(|v| value::flag(v, &["storage"]))
            .or(served.first())?;
        if group.is_empty() || plural.is_empty() || kind.is_empty() {
            return None;
        }
        let mut ty = Self::new(group, value::text(stored, &["name"]), kind, plural, &[]);
        for version in &served {
            let name = value::text(version, &["name"]).to_owned();
            if let Some(schema) = value::at(version, &["schema", "openAPIV3Schema"]) {
                ty.schemas.insert(name.clone(), schema.clone());
            }
            if !ty.versions.contains(&name) {
                ty.versions.push(name);
            }
        }
        let names = |key: &str| -> Vec<String> {
            value::items(crd, &["spec", "names", key])
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect()
        };
        ty.short = names("shortNames");
        ty.categories = names("categories");
        let singular = value::text(crd, &["spec", "names", "singular"]);
        if !singular.is_empty() {
            ty.singular = singular.to_owned();
        }
        ty.namespaced = value::text(crd, &["spec", "scope"]) != "Cluster";
        ty.status = value::at(stored, &["subresources", "status"]).is_some();
        ty.scale = value::at(stored, &["subresources", "scale"]).map(scale_paths);
        ty.generation = true;
        ty.custom = true;
        ty.columns = value::items(stored, &["additionalPrinterColumns"])
            .iter()
            .map(crd_column)
            .collect();
        Some(ty)
    }
}

fn scale_paths(scale: &Value) -> ScalePaths {
    let path = |key: &str| -> Vec<String> {
        value::text(scale, &[key])
            .split('.')
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    };
    ScalePaths {
        spec: path("specReplicasPath"),
        status: path("statusReplicasPath"),
        selector: path("labelSelectorPath"),
    }
}

fn crd_column(column: &Value) -> Column {
    Column {
        name: value::text(column, &["name"]).into(),
        kind: value::text(column, &["type"]).into(),
        format: value::text(column, &["format"]).into(),
        priority: value::int(column, &["priority"]).unwrap_or(0),
        path: value::text(column, &["jsonPath"]).into(),
    }
}

/// Every resource that is there before any CustomResourceDefinition is created.
#[must_use]
pub fn builtin() -> Vec<ResourceType> {
    let mut list = core();
    list.extend(groups());
    list.extend(policies());
    for crd in [pytorchjob_crd(), podgroup_crd()] {
        list.extend(ResourceType::from_crd(&crd));
    }
    list
}

fn core() -> Vec<ResourceType> {
    let t =
        |kind: &str, plural: &str, short: &[&str]| ResourceType::new("", "v1", kind, plural, short);
    vec![
        t("Pod", "pods", &["po"])
            .status()
            .generation()
            .all()
            .columns(&[
                ("Ready", 0),
                ("Status", 0),
                ("Restarts", 0),
                ("Age", 0),
                ("IP", 1),
                ("Node", 1),
                ("Nominated Node", 1),
                ("Readiness Gates", 1),
            ]),
        t("Node", "nodes", &["no"]).cluster().status().columns(&[
            ("Status", 0),
            ("Roles", 0),
            ("Age", 0),
            ("Version", 0),
            ("Internal-IP", 1),
            ("OS-Image", 1),
        ]),
        t("Namespace", "namespaces", &["ns"])
            .cluster()
            .status()
            .columns(&[("Status", 0), ("Age", 0)]),
        t("Event", "events", &["ev"]).columns(&[
            ("Last Seen", 0),
            ("Type", 0),
            ("Reason", 0),
            ("Object", 0),
            ("Message", 0),
            ("Count", 1),
            ("Name", 1),
        ]),
        t("Service", "services", &["svc"]).status().all().columns(&[
            ("Type", 0),
            ("Cluster-IP", 0),
            ("Port(s)", 0),
            ("Age", 0),
        ]),
        t("ConfigMap", "configmaps", &["cm"]).columns(&[("Data", 0), ("Age", 0)]),
        t("Secret", "secrets", &[]).columns(&[("Type", 0), ("Data", 0), ("Age", 0)]),
        t("ServiceAccount", "serviceaccounts", &["sa"]).columns(&[("Age", 0)]),
        t("PersistentVolumeClaim", "persistentvolumeclaims", &["pvc"])
            .status()
            .columns(&[("Status", 0), ("Volume", 0), ("Age", 0)]),
        t("Endpoints", "endpoints", &["ep"]).columns(&[("Age", 0)]),
        t("ReplicationController", "replicationcontrollers", &["rc"])
            .status()
            .generation()
            .all()
            .columns(&[("Age", 0)]),
    ]
}

fn groups() -> Vec<ResourceType> {
    let t = ResourceType::new;
    let mut event = t("events.k8s.io", "v1", "Event", "events", &["ev"]).columns(&[
        ("Last Seen", 0),
        ("Type", 0),
        ("Reason", 0),
        ("Object", 0),
        ("Message", 0),
        ("Count", 1),
        ("Name", 1),
    ]);
    event.stored_as = Some((String::new(), "events".into()));
    let age: &[(&str, i64)] = &[("Age", 0)];
    vec![
        event,
        t("coordination.k8s.io", "v1", "Lease", "leases", &[])
            .columns(&[("Holder", 0), ("Age", 0)]),
        t("apps", "v1", "Deployment", "deployments", &["deploy"])
            .status()
            .generation()
            .all()
            .columns(&[("Ready", 0), ("Age", 0)]),
        t("apps", "v1", "ReplicaSet", "replicasets", &["rs"])
            .status()
            .generation()
            .all()
            .columns(age),
        t("apps", "v1", "StatefulSet", "statefulsets", &["sts"])
            .status()
            .generation()
            .all()
            .columns(age),
        t("apps", "v1", "DaemonSet", "daemonsets", &["ds"])
            .status()
            .generation()
            .all()
            .columns(age),
        t("batch", "v1", "Job", "jobs", &[])
            .status()
            .generation()
            .all()
            .columns(&[("Status", 0), ("Age", 0)]),
        t("batch", "v1", "CronJob", "cronjobs", &["cj"])
            .status()
            .generation()
            .all()
            .columns(age),
        t(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            &["pc"],
        )
        .cluster()
        .columns(&[
            ("Value", 0),
            ("Global-Default", 0),
            ("Age", 0),
            ("PreemptionPolicy", 0),
        ]),
        t(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
            &["pdb"],
        )
        .status()
        .generation()
        .columns(age),
        t(
            "storage.k8s.io",
            "v1",
            "StorageClass",
            "storageclasses",
            &["sc"],
        )
        .cluster()
        .columns(age),
        t(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            &[],
        )
        .columns(age),
        t(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            &["crd", "crds"],
        )
        .cluster()
        .status()
        .generation()
        .columns(&[("Created At", 0)]),
    ]
}

fn policies() -> Vec<ResourceType> {
    let admission = |kind: &str, plural: &str| {
        ResourceType::new("admissionregistration.k8s.io", "v1", kind, plural, &[])
            .cluster()
            .generation()
            .columns(&[("Age", 0)])
    };
    let rbac = |kind: &str, plural: &str| {
        ResourceType::new("rbac.authorization.k8s.io", "v1", kind, plural, &[])
            .columns(&[("Age", 0)])
    };
    vec![
        admission("MutatingAdmissionPolicy", "mutatingadmissionpolicies"),
        admission(
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybindings",
        ),
        admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies").status(),
        admission(
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
        admission(
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
        ),
        admission(
            "ValidatingWebhookConfiguration",
            "validatingwebhookconfigurations",
        ),
        rbac("Role", "roles"),
        rbac("RoleBinding", "rolebindings"),
        rbac("ClusterRole", "clusterroles").cluster(),
        rbac("ClusterRoleBinding", "clusterrolebindings").cluster(),
    ]
}

/// The PyTorchJob of training-operator 1.9, with its subresources and columns and a schema that keeps every field.
#[must_use]
pub fn pytorchjob_crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pytorchjobs.kubeflow.org"},
        "spec": {
            "group": "kubeflow.org", "scope": "Namespaced",
            "names": {"plural": "pytorchjobs", "singular": "pytorchjob", "kind": "PyTorchJob", "listKind": "PyTorchJobList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.pytorchReplicaSpecs.Worker.replicas",
                    "statusReplicasPath": ".status.replicaStatuses.Worker.active",
                    "labelSelectorPath": ".status.replicaStatuses.Worker.selector"}},
                "additionalPrinterColumns": [
                    {"name": "State", "type": "string", "jsonPath": ".status.conditions[-1:].type"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                "schema": {"openAPIV3Schema": pytorchjob_schema()},
            }],
        },
    })
}

fn pytorchjob_schema() -> Value {
    let number = json!({"type": "integer", "format": "int32"});
    json!({"type": "object", "properties": {"spec": {
        "type": "object", "required": ["pytorchReplicaSpecs"],
        "properties": {
            "pytorchReplicaSpecs": {"type": "object", "additionalProperties": {"type": "object", "properties": {
                "replicas": number, "restartPolicy": {"type": "string"},
                "template": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
            "nprocPerNode": {"type": "string"},
            "elasticPolicy": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "runPolicy": {"type": "object", "properties": {
                "activeDeadlineSeconds": {"type": "integer"}, "backoffLimit": number,
                "cleanPodPolicy": {"type": "string"}, "managedBy": {"type": "string"},
                "suspend": {"type": "boolean", "default": false},
                "ttlSecondsAfterFinished": number,
                "schedulingPolicy": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                    "minAvailable": number, "queue": {"type": "string"}, "priorityClass": {"type": "string"},
                    "scheduleTimeoutSeconds": number}}}},
        }},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
}

/// The PodGroup of scheduler-plugins, which training-operator makes with `--gang-scheduler-name`.
#[must_use]
pub fn podgroup_crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "podgroups.scheduling.x-k8s.io"},
        "spec": {
            "group": "scheduling.x-k8s.io", "scope": "Namespaced",
            "names": {"plural": "podgroups", "singular": "podgroup", "kind": "PodGroup", "listKind": "PodGroupList", "shortNames": ["pg", "pgs"]},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": [
                    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
                    {"name": "MinMember", "type": "integer", "jsonPath": ".spec.minMember"},
                    {"name": "Running", "type": "integer", "jsonPath": ".status.running"},
                    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "minMember": {"type": "integer", "format": "int32", "minimum": 1},
                        "minResources": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "scheduleTimeoutSeconds": {"type": "integer", "format": "int32"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
            }],
        },
    })
}
