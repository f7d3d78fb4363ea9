//! The manifests as structures: they parse, and say what an installation relies on.

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use serde_json::{Value, json};

use super::*;
use crate::names;

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).expect("a YAML document"))
        .collect()
}

fn find<T: serde::de::DeserializeOwned>(text: &str, kind: &str, name: &str) -> T {
    let found = documents(text)
        .into_iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"));
    serde_json::from_value(found).expect("the kind's own type")
}

/// `group/resource: verbs` of each rule, with resource names where they are limited.
fn rights(rules: Option<Vec<PolicyRule>>) -> Vec<String> {
    let mut lines = Vec::new();
    for rule in rules.unwrap_or_default() {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                let names = rule.resource_names.clone().unwrap_or_default().join(",");
                lines.push(format!(
                    "{group}/{resource}[{names}]: {}",
                    rule.verbs.join(" ")
                ));
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn scheduler_has_the_least_rights() {
    let role: ClusterRole = find(&rbac(), "ClusterRole", "muster-scheduler");
    assert_eq!(
        rights(role.rules),
        [
            "/events[]: create patch",
            "/nodes[]: list watch",
            "/pods/binding[]: create",
            "/pods[]: get list watch",
            "/pods[]: patch delete",
            "authentication.k8s.io/tokenreviews[]: create",
            "kubeflow.org/pytorchjobs/status[]: patch",
            "kubeflow.org/pytorchjobs[]: get list watch patch",
            "muster.dev/gangs/status[]: update",
            "muster.dev/gangs[]: get list watch create patch delete",
            "scheduling.k8s.io/priorityclasses[]: list watch",
            "scheduling.x-k8s.io/podgroups[]: get list watch",
        ]
    );
    let role: Role = find(&rbac(), "Role", "muster-scheduler");
    assert_eq!(role.metadata.namespace.as_deref(), Some(names::NAMESPACE));
    assert_eq!(
        rights(role.rules),
        ["coordination.k8s.io/leases[]: get create update"]
    );
}

/// A kube-scheduler has its rights where it runs: in the Deployment's pod, by the installation.
#[test]
fn no_account_is_made_that_nothing_runs_under() {
    let all = documents(&rbac());
    let accounts: Vec<&Value> = all
        .iter()
        .filter(|object| object["kind"] == "ServiceAccount")
        .map(|object| &object["metadata"]["name"])
        .collect();
    assert_eq!(accounts, ["muster-scheduler", "muster-agent"]);
    assert!(!rbac().contains("system:"), "no role of Kubernetes itself");
}

#[test]
fn no_right_is_a_wildcard_or_reads_secrets_and_the_agent_has_none() {
    let text = rbac();
    assert!(!text.contains('*') && !text.contains("secrets"));
    let agents: Vec<_> = documents(&text)
        .into_iter()
        .filter(|object| {
            object["subjects"]
                .as_array()
                .is_some_and(|subjects| subjects.iter().any(|who| who["name"] == "muster-agent"))
        })
        .collect();
    assert_eq!(agents, Vec::<Value>::new());
}

#[test]
fn every_binding_names_a_role_and_account_that_exist() {
    let all = documents(&rbac());
    let accounts: Vec<&Value> = all
        .iter()
        .filter(|object| object["kind"] == "ServiceAccount")
        .map(|object| &object["metadata"]["name"])
        .collect();
    let bindings = all.iter().filter(|object| {
        object["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("Binding"))
    });
    let mut count = 0;
    for binding in bindings {
        count += 1;
        let role = &binding["roleRef"];
        let built_in = role["name"].as_str().is_some_and(|name| {
            name.starts_with("system:") || name == "extension-apiserver-authentication-reader"
        });
        let here = all.iter().any(|object| {
            object["kind"] == role["kind"] && object["metadata"]["name"] == role["name"]
        });
        assert!(built_in || here, "{role}");
        for subject in binding["subjects"].as_array().expect("subjects") {
            assert!(accounts.contains(&&subject["name"]), "{subject}");
            assert_eq!(subject["namespace"], names::NAMESPACE);
        }
    }
    assert_eq!(count, 2);
}

fn policy(name: &str) -> Value {
    let all = documents(&admission_policy());
    assert!(
        all.iter().any(|object| {
            object["kind"] == "MutatingAdmissionPolicyBinding"
                && object["spec"]["policyName"] == name
        }),
        "{name} is bound"
    );
    let policy: Value = find(&admission_policy(), "MutatingAdmissionPolicy", name);
    assert_eq!(policy["apiVersion"], "admissionregistration.k8s.io/v1");
    assert_eq!(policy["spec"]["reinvocationPolicy"], "Never");
    policy
}

#[test]
fn policies_that_hold_are_bound_labelled_and_fail_closed() {
    for (name, label, operations) in [
        (
            "muster-suspend-pytorchjobs",
            names::EMULATE_SUSPEND,
            json!(["CREATE", "UPDATE"]),
        ),
        ("muster-gate-pods", names::EMULATE_GATE, json!(["CREATE"])),
    ] {
        let policy = policy(name);
        assert_eq!(policy["metadata"]["labels"][names::EMULATE], label);
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        let rules = &policy["spec"]["matchConstraints"]["resourceRules"];
        assert_eq!(rules[0]["operations"], operations);
        // Only what names our scheduler can match, so failing closed stops nobody else.
        let first = policy["spec"]["matchConditions"][0]["expression"]
            .as_str()
            .expect("an expression");
        assert!(first.contains("schedulerName == 'muster'"), "{first}");
    }
    let gate = policy("muster-gate-pods").to_string();
    assert!(gate.contains(names::GATE) && gate.contains(names::POD_GROUP_LABEL));
    let suspend = policy("muster-suspend-pytorchjobs").to_string();
    for name in [names::HOLD, names::HOLD_QUEUED, names::HOLD_RELEASED] {
        assert!(suspend.contains(name), "{name}");
    }
}

/// It may not stand in the way of the operator's status.
#[test]
fn the_policy_that_shows_who_is_queued_never_refuses_and_touches_status_alone() {
    let show = policy("muster-show-queued");
    assert_eq!(
        show["metadata"]["labels"][names::EMULATE],
        names::EMULATE_SHOW
    );
    assert_eq!(show["spec"]["failurePolicy"], "Ignore");
    assert_eq!(
        show["spec"]["matchConstraints"]["resourceRules"],
        json!([{"apiGroups": ["kubeflow.org"], "apiVersions": ["v1"], "operations": ["UPDATE"],
                "resources": ["pytorchjobs/status"]}])
    );
    let mutations = show["spec"]["mutations"].as_array().expect("mutations");
    assert_eq!(mutations.len(), 1);
    let text = mutations[0].to_string();
    for name in [
        "/status/conditions",
        names::QUEUED_CONDITION,
        names::QUEUED_REASON,
    ] {
        assert!(text.contains(name), "{name}");
    }
}

#[test]
fn f50_policies_of_our_account_concern_nobody_else_and_deny() {
    let all = documents(&account_policy());
    let account: Value = find(&rbac(), "ServiceAccount", "muster-scheduler");
    let user = format!(
        "request.userInfo.username == 'system:serviceaccount:{}:{}'",
        names::NAMESPACE,
        account["metadata"]["name"].as_str().expect("a name")
    );
    let mut limited = Vec::new();
    for name in [
        "muster-limit-pods",
        "muster-limit-bindings",
        "muster-limit-jobs",
    ] {
        let policy: Value = find(&account_policy(), "ValidatingAdmissionPolicy", name);
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
        let conditions = policy["spec"]["matchConditions"]
            .as_array()
            .expect("conditions");
        assert_eq!(conditions.len(), 1, "{name}");
        assert_eq!(conditions[0]["expression"], user.as_str(), "{name}");
        let binding: Value = find(&account_policy(), "ValidatingAdmissionPolicyBinding", name);
        assert_eq!(
            binding["spec"],
            json!({"policyName": name, "validationActions": ["Deny"]})
        );
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
            .as_array()
            .expect("rules")
        {
            for resource in rule["resources"].as_array().expect("resources") {
                limited.push(resource.as_str().expect("a name").to_owned());
            }
        }
    }
    assert_eq!(all.len(), 6);
    // What is ours alone, Gangs and Leases, needs no limit; Events and reviews change nothing.
    let role: ClusterRole = find(&rbac(), "ClusterRole", "muster-scheduler");
    for rule in role.rules.unwrap_or_default() {
        let writes = ["patch", "update", "delete", "create"];
        if !rule
            .verbs
            .iter()
            .any(|verb| writes.contains(&verb.as_str()))
        {
            continue;
        }
        for resource in rule.resources.iter().flatten() {
            let free = ["gangs", "gangs/status", "events", "tokenreviews"];
            assert!(
                limited.contains(resource) || free.contains(&resource.as_str()),
                "{resource} may be written without a limit"
            );
        }
    }
}

#[test]
fn gangs_read_well_in_kubectl() {
    let crd: Value = serde_saphyr::from_str(&crds()).expect("a YAML document");
    assert_eq!(crd["metadata"]["name"], "gangs.muster.dev");
    assert_eq!(crd["spec"]["scope"], "Namespaced");
    assert_eq!(crd["spec"]["names"]["shortNames"], json!(["gg"]));
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    assert_eq!(version["subresources"], json!({"status": {}}));
    let columns: Vec<(&str, i64)> = version["additionalPrinterColumns"]
        .as_array()
        .expect("columns")
        .iter()
        .map(|column| {
            (
                column["name"].as_str().expect("a name"),
                column["priority"].as_i64().unwrap_or(0),
            )
        })
        .collect();
    assert_eq!(
        columns,
        [
            ("Phase", 0),
            ("Members", 0),
            ("Reason", 0),
            ("Message", 1),
            ("Age", 0)
        ]
    );
}

#[test]
fn gang_schema_is_structural_bounded_and_has_its_rules() {
    fn walk(path: &str, schema: &Value) {
        let Some(object) = schema.as_object() else {
            return;
        };
        if object.get("type") == Some(&json!("array")) {
            assert!(object.contains_key("maxItems"), "{path} has no maxItems");
            walk(&format!("{path}[]"), &object["items"]);
        }
        if object.get("type") == Some(&json!("string")) {
            let bounded = ["maxLength", "enum", "format"]
                .iter()
                .any(|key| object.contains_key(*key));
            assert!(bounded, "{path} has no limit");
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            assert!(field.get("type").is_some(), "{path}.{name} has no type");
            walk(&format!("{path}.{name}"), field);
        }
    }
    let crd: Value = serde_saphyr::from_str(&crds()).expect("a YAML document");
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    walk("spec", &schema["properties"]["spec"]);
    walk("status", &schema["properties"]["status"]);
    let rules = |field: &str| -> Vec<String> {
        schema["properties"][field]["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|rule| rule["rule"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(rules("spec"), ["self.workload == oldSelf.workload"]);
    assert_eq!(rules("status").len(), 2);
    assert!(rules("status")[1].contains("self.epoch >= oldSelf.epoch"));
}

#[test]
fn t17_kube_scheduler_offers_every_node_by_name_and_never_binds_alone() {
    let config = |options| -> Value {
        serde_saphyr::from_str(&kube_scheduler_config(&options)).expect("a YAML document")
    };
    let plain = config(KubeSchedulerConfigOptions {
        extender_url: "http://127.0.0.1:9000/".into(),
        ..Default::default()
    });
    assert_eq!(plain["profiles"], json!([{"schedulerName": "muster"}]));
    assert_eq!(plain["percentageOfNodesToScore"], 100);
    assert_eq!(
        plain["clientConnection"],
        json!({"qps": 5000, "burst": 10000})
    );
    assert_eq!(plain["leaderElection"]["leaderElect"], false);
    assert_eq!(
        plain["extenders"],
        json!([
            {"urlPrefix": "http://127.0.0.1:9000/v1/short", "filterVerb": "filter", "preemptVerb": "preempt",
             "httpTimeout": "5s", "nodeCacheCapable": true, "ignorable": false, "enableHTTPS": false},
            {"urlPrefix": "http://127.0.0.1:9000/v1/bind", "bindVerb": "bind",
             "httpTimeout": "300s", "nodeCacheCapable": true, "ignorable": false, "enableHTTPS": false},
        ])
    );
    let secure = config(KubeSchedulerConfigOptions {
        extender_url: "https://muster: #odd".into(),
        tls_dir: Some("/etc/tls/".into()),
        kubeconfig: Some("/etc/kubeconfig".into()),
        filter_timeout: std::time::Duration::from_millis(2500),
        leader_elect: true,
        ..Default::default()
    });
    assert_eq!(secure["clientConnection"]["kubeconfig"], "/etc/kubeconfig");
    assert_eq!(
        secure["leaderElection"],
        json!({"leaderElect": true, "resourceName": "muster-kube-scheduler", "resourceNamespace": "muster-system",
               "leaseDuration": "15s", "renewDeadline": "10s", "retryPeriod": "500ms"})
    );
    for entry in secure["extenders"].as_array().expect("extenders") {
        assert_eq!(entry["enableHTTPS"], true);
        assert_eq!(
            entry["tlsConfig"],
            json!({"insecure": false, "caFile": "/etc/tls/ca.crt",
                   "certFile": "/etc/tls/tls.crt", "keyFile": "/etc/tls/tls.key"})
        );
    }
    assert_eq!(secure["extenders"][0]["httpTimeout"], "2500ms");
    assert_eq!(
        secure["extenders"][0]["urlPrefix"],
        "https://muster: #odd/v1/short"
    );
}
