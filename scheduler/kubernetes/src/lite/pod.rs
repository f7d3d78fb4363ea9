//! Pods, and the pod templates inside jobs.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{meta, nullable, resource};

/// A Pod: what decides where it may stand, whom it belongs to, and how it fares.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct LitePod {
    /// Name, UID, resourceVersion, owners, labels, Muster's annotations.
    #[serde(default, deserialize_with = "meta::of_object")]
    pub metadata: ObjectMeta,
    /// What decides where it may stand.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: LitePodSpec,
    /// How it fares.
    #[serde(default, deserialize_with = "nullable")]
    pub status: LitePodStatus,
}
resource!(LitePod, NamespaceResourceScope, "Pod", "", "v1", "pods");

/// `spec` of a Pod or of a pod template.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LitePodSpec {
    /// Node it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Scheduler; absent in templates that leave it to the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler_name: Option<String>,
    /// Labels that the node has.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub node_selector: BTreeMap<String, String>,
    /// Affinity, of which the required parts are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<LiteAffinity>,
    /// Topology spread constraints.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub topology_spread_constraints: Vec<LiteSpread>,
    /// Tolerations.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<LiteToleration>,
    /// Containers.
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<LiteContainer>,
    /// Init containers, sidecars among them.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<LiteContainer>,
    /// Overhead of the runtime class.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub overhead: BTreeMap<String, RawQuantity>,
    /// Resources of the pod as a whole; CPU, memory and huge pages only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<LiteResources>,
    /// Priority, resolved by admission; absent in templates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Name of the PriorityClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// The node's network: container ports are then ports of the node.
    #[serde(deserialize_with = "nullable")]
    pub host_network: bool,
    /// Gates that keep the pod from being scheduled.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub scheduling_gates: Vec<LiteGate>,
}

/// `spec.affinity`, of which the required parts are kept.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiteAffinity {
    /// Node affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity: Option<LiteNodeAffinity>,
    /// Affinity between pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_affinity: Option<LitePodAffinity>,
    /// Anti-affinity between pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_anti_affinity: Option<LitePodAffinity>,
}

/// `podAffinity` or `podAntiAffinity`, of which the required part is kept.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LitePodAffinity {
    /// Required part.
    #[serde(
        rename = "requiredDuringSchedulingIgnoredDuringExecution",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub required: Vec<LitePodTerm>,
}

/// A term of affinity or anti-affinity between pods.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LitePodTerm {
    /// The pods it speaks of; absent for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LiteLabelSelector>,
    /// Namespaces of these pods.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// More namespaces, by label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LiteLabelSelector>,
    /// Label of nodes.
    #[serde(deserialize_with = "nullable")]
    pub topology_key: String,
    /// Labels that these pods have like the pod itself.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub match_label_keys: Vec<String>,
    /// Labels that these pods do not have like the pod itself.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub mismatch_label_keys: Vec<String>,
}

/// A label selector.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiteLabelSelector {
    /// Labels with their values.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements: `In`, `NotIn`, `Exists` or `DoesNotExist`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LiteRequirement>,
}

/// A topology spread constraint.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiteSpread {
    /// How many pods more one domain may have than another.
    #[serde(deserialize_with = "nullable")]
    pub max_skew: i64,
    /// Label of nodes.
    #[serde(deserialize_with = "nullable")]
    pub topology_key: String,
    /// `DoNotSchedule` or `ScheduleAnyway`.
    #[serde(deserialize_with = "nullable")]
    pub when_unsatisfiable: String,
    /// The pods that are counted; absent for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LiteLabelSelector>,
    /// With fewer domains than this, the fewest counts as none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_domains: Option<i64>,
    /// `Honor`, the default, or `Ignore`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_affinity_policy: Option<String>,
    /// `Honor`, or `Ignore`, the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_taints_policy: Option<String>,
    /// Labels that the counted pods have like the pod itself.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub match_label_keys: Vec<String>,
}

/// `nodeAffinity`, of which the required part is kept.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteNodeAffinity {
    /// Required part.
    #[serde(
        rename = "requiredDuringSchedulingIgnoredDuringExecution",
        skip_serializing_if = "Option::is_none"
    )]
    pub required: Option<LiteSelector>,
}

/// A node selector: one of its terms matches.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiteSelector {
    /// Terms.
    #[serde(deserialize_with = "nullable")]
    pub node_selector_terms: Vec<LiteTerm>,
}

/// A term of a node selector: every requirement holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiteTerm {
    /// Requirements on labels.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LiteRequirement>,
    /// Requirements on fields.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub match_fields: Vec<LiteRequirement>,
}

/// A requirement of a term.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteRequirement {
    /// Label key or field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// Values.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// A toleration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteToleration {
    /// Key; absent or empty for every key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `Exists` or `Equal`, the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// Value to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Effect; absent or empty for every effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LiteContainer {
    /// Name.
    pub name: String,
    /// Requests and limits.
    #[serde(deserialize_with = "nullable")]
    pub resources: LiteResources,
    /// Ports.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<LitePort>,
    /// `Always` on an init container makes it a sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
}

/// Requests and limits.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteResources {
    /// Requests.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub requests: BTreeMap<String, RawQuantity>,
    /// Limits.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub limits: BTreeMap<String, RawQuantity>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LitePort {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Port inside the container.
    #[serde(deserialize_with = "nullable")]
    pub container_port: i64,
    /// Port of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<i64>,
    /// Address of the node; absent or empty for all.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
    /// `TCP`, the default, `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// A scheduling gate.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteGate {
    /// Name.
    pub name: String,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LitePodStatus {
    /// Phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Reason, for example `UnexpectedAdmissionError`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Condition `PodScheduled`; the others are dropped.
    #[serde(
        deserialize_with = "scheduled_only",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub conditions: Vec<LiteCondition>,
}

/// A condition of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct LiteCondition {
    /// Type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

fn scheduled_only<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<LiteCondition>, D::Error> {
    let mut all: Vec<LiteCondition> = nullable(deserializer)?;
    all.retain(|condition| condition.type_ == "PodScheduled");
    Ok(all)
}

/// A quantity as it came: text, or a bare number. Anything else is kept as a text that is no
/// quantity, so that it is noticed where it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RawQuantity(pub String);

impl From<&str> for RawQuantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for RawQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyKind;

        impl<'de> Visitor<'de> for AnyKind {
            type Value = RawQuantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawQuantity, E> {
                Ok(RawQuantity(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<RawQuantity, E> {
                Ok(RawQuantity(text))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<RawQuantity, E> {
                Ok(RawQuantity(number.to_string()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<RawQuantity, E> {
                Ok(RawQuantity(number.to_string()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<RawQuantity, E> {
                Ok(RawQuantity(number.to_string()))
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<RawQuantity, E> {
                Ok(RawQuantity(value.to_string()))
            }

            fn visit_unit<E: de::Error>(self) -> Result<RawQuantity, E> {
                Ok(RawQuantity("0".to_owned()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<RawQuantity, A::Error> {
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(RawQuantity("[...]".to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<RawQuantity, A::Error> {
                while map
                    .next_entry::<de::IgnoredAny, de::IgnoredAny>()?
                    .is_some()
                {}
                Ok(RawQuantity("{...}".to_owned()))
            }
        }

        deserializer.deserialize_any(AnyKind)
    }
}
