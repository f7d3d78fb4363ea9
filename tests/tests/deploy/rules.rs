//! Rules of hardening that every object of an installation holds to.

use clap::Parser;
use muster_scheduler::cli::Cli;
use muster_scheduler::config::Config;
use serde_json::{Value, json};

use crate::files::{documents, id, read, text};
use crate::programs::{KUBE_VERSION, kustomize, template};

/// Objects of both ways to install.
fn installations() -> Vec<Value> {
    let mut objects = kustomize("kustomize/base");
    objects.extend(template("muster-system", KUBE_VERSION, ""));
    objects
}

fn pod_specs(objects: &[Value]) -> Vec<(String, &Value)> {
    let specs: Vec<_> = objects
        .iter()
        .filter_map(|object| Some((id(object), object.pointer("/spec/template/spec")?)))
        .collect();
    assert_eq!(
        specs.len(),
        4,
        "one Deployment and one DaemonSet of each way"
    );
    specs
}

fn items<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

#[test]
fn no_pod_has_more_than_it_needs() {
    let objects = installations();
    for (id, spec) in pod_specs(&objects) {
        for host in ["hostPID", "hostIPC", "hostNetwork"] {
            assert!(spec.get(host).is_none(), "{id} has {host}");
        }
        assert_eq!(
            spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{id}"
        );
        assert!(
            text(spec, "/priorityClassName").starts_with("system-"),
            "{id}"
        );
        for container in items(spec, "/initContainers").chain(items(spec, "/containers")) {
            let name = format!("{id} {}", text(container, "/name"));
            let context = &container["securityContext"];
            assert_ne!(context["privileged"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{name}");
            assert!(
                container["resources"]["requests"]["memory"].is_string(),
                "{name}"
            );
            assert!(
                container["resources"]["limits"]["memory"].is_string(),
                "{name}"
            );
            for mount in items(container, "/volumeMounts") {
                assert_eq!(mount["readOnly"], true, "{name} {mount}");
            }
        }
    }
}

#[test]
fn the_scheduler_pod_holds_to_pod_security_restricted() {
    let objects = installations();
    for (id, spec) in pod_specs(&objects) {
        if !id.starts_with("Deployment") {
            continue;
        }
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{id}");
        assert_ne!(spec["securityContext"]["runAsUser"], 0, "{id}");
        let volumes: Vec<&Value> = items(spec, "/volumes").collect();
        assert_eq!(volumes.len(), 4, "{id}");
        for volume in volumes {
            assert!(
                volume.get("configMap").or(volume.get("secret")).is_some(),
                "{id} {volume}"
            );
        }
        for container in items(spec, "/containers") {
            for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
                assert!(
                    container[probe]["httpGet"].is_object(),
                    "{id} has no {probe}"
                );
            }
        }
    }
}

#[test]
fn the_agent_has_a_token_for_muster_alone_and_one_host_folder() {
    let objects = installations();
    for (id, spec) in pod_specs(&objects) {
        if !id.starts_with("DaemonSet") {
            continue;
        }
        assert_eq!(spec["automountServiceAccountToken"], false, "{id}");
        assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]), "{id}");
        let token = items(spec, "/volumes").find_map(|volume| volume.pointer("/projected/sources"));
        let wanted = json!([{"serviceAccountToken":
            {"path": "token", "audience": "muster-scheduler", "expirationSeconds": 3600}}]);
        assert_eq!(token, Some(&wanted), "{id}");
        let host: Vec<&str> = items(spec, "/volumes")
            .filter_map(|volume| volume.pointer("/hostPath/path")?.as_str())
            .collect();
        assert_eq!(host, ["/var/lib/kubelet/pod-resources"], "{id}");
        let resources = &spec["containers"][0]["resources"];
        let wanted = json!({"requests": {"cpu": "50m", "memory": "64Mi"},
            "limits": {"cpu": "200m", "memory": "256Mi"}});
        assert_eq!(resources, &wanted, "{id} asks for no GPU");
        let secrets = items(spec, "/volumes").filter(|volume| volume.get("secret").is_some());
        assert_eq!(
            secrets.count(),
            0,
            "{id}: the server's key stays away from GPU nodes"
        );
    }
}

#[test]
fn no_right_has_a_wildcard_and_none_reads_secrets() {
    let mut rules = 0;
    for object in installations() {
        for rule in items(&object, "/rules") {
            rules += 1;
            for list in ["apiGroups", "resources", "verbs"] {
                for entry in items(rule, &format!("/{list}")) {
                    assert_ne!(entry, "*", "{}: {rule}", id(&object));
                    assert_ne!(entry, "secrets", "{}: {rule}", id(&object));
                }
            }
            assert!(
                rule.get("nonResourceURLs").is_none(),
                "{}: {rule}",
                id(&object)
            );
        }
        assert_ne!(
            text(&object, "/roleRef/name"),
            "cluster-admin",
            "{}",
            id(&object)
        );
    }
    assert!(rules > 10, "only {rules} rules");
}

/// While a webhook for all pods was down, no pod of the cluster could be made, and the webhook's own neither; one on
/// `pods/binding` kept everything from being scheduled after a reboot.
#[test]
fn f49_f50_nothing_of_ours_that_can_be_down_is_asked_about_anybodys_objects() {
    for object in installations() {
        let kind = text(&object, "/kind");
        assert!(!kind.ends_with("WebhookConfiguration"), "{}", id(&object));
        assert_ne!(kind, "APIService", "{}", id(&object));
        if !kind.ends_with("AdmissionPolicy") {
            continue;
        }
        // The API server evaluates it by itself, and has nothing to look up for it.
        assert!(
            object.pointer("/spec/paramKind").is_none(),
            "{}",
            id(&object)
        );
        let conditions: Vec<&str> = items(&object, "/spec/matchConditions")
            .map(|condition| text(condition, "/expression"))
            .collect();
        let ours = ["schedulerName", "request.userInfo.username"];
        let is_ours = |condition: &&str| ours.iter().any(|word| condition.contains(word));
        let never_refuses = text(&object, "/spec/failurePolicy") == "Ignore";
        assert!(
            conditions.iter().any(is_ours) || never_refuses,
            "{} concerns objects that are not ours: {conditions:?}",
            id(&object)
        );
    }
}

/// A scheduler that was down kept its own pods from starting. Those of Muster are for the cluster's own scheduler, ask
/// for nothing that Muster plans, and its kube-scheduler looks after nobody who does not name it.
#[test]
fn f51_l6_pods_of_muster_and_of_those_who_do_not_name_it_start_without_it() {
    let objects = installations();
    for (id, spec) in pod_specs(&objects) {
        assert!(spec.get("schedulerName").is_none(), "{id}");
        for container in items(spec, "/initContainers").chain(items(spec, "/containers")) {
            let resources = container["resources"].to_string();
            assert!(!resources.contains("nvidia.com"), "{id}: {resources}");
        }
    }
    let configs = objects
        .iter()
        .flat_map(|object| object.get("data").and_then(Value::as_object))
        .flatten()
        .filter_map(|(_, text)| text.as_str())
        .filter(|text| text.contains("KubeSchedulerConfiguration"));
    let mut seen = 0;
    for config in configs {
        seen += 1;
        let config: Value = serde_saphyr::from_str(config).expect("a YAML document");
        let profiles: Vec<&str> = items(&config, "/profiles")
            .map(|profile| text(profile, "/schedulerName"))
            .collect();
        assert_eq!(profiles, ["muster"]);
    }
    assert_eq!(seen, 2, "one of each way to install");
}

#[test]
fn every_name_that_a_pod_refers_to_is_there() {
    let objects = kustomize("kustomize/base");
    let has = |kind: &str, name: &str| {
        let found = |object: &Value| {
            text(object, "/kind") == kind && text(object, "/metadata/name") == name
        };
        objects.iter().any(found)
    };
    for object in &objects {
        let Some(spec) = object.pointer("/spec/template/spec") else {
            continue;
        };
        assert!(
            has("ServiceAccount", text(spec, "/serviceAccountName")),
            "{}",
            id(object)
        );
        for volume in items(spec, "/volumes") {
            let name = text(volume, "/configMap/name");
            // The certificates' objects come from make-certs.
            assert!(
                ["", "muster-ca"].contains(&name) || has("ConfigMap", name),
                "{volume}"
            );
        }
        let mounted: Vec<&Value> = items(spec, "/containers")
            .flat_map(|container| items(container, "/volumeMounts"))
            .map(|mount| &mount["name"])
            .collect();
        for volume in items(spec, "/volumes") {
            assert!(
                mounted.contains(&&volume["name"]),
                "{volume} is mounted nowhere"
            );
        }
    }
}

#[test]
fn the_configuration_is_one_that_muster_takes() {
    let objects = installations();
    let files: Vec<&str> = objects
        .iter()
        .filter_map(|object| object.pointer("/data/muster.yaml")?.as_str())
        .collect();
    assert_eq!(files.len(), 2);
    let extenders = &documents(&read("kube-scheduler/config.yaml"))[0]["extenders"];
    for file in files {
        let config = Config::parse(file).unwrap_or_else(|error| panic!("{error}\n{file}"));
        assert_eq!(config.lease.namespace, "muster-system");
        let agent = pod_specs(&objects)
            .into_iter()
            .find(|(id, _)| id.starts_with("DaemonSet"))
            .map(|(_, spec)| text(spec, "/serviceAccountName").to_owned());
        assert_eq!(
            config.agents.service_account,
            format!("system:serviceaccount:muster-system:{}", agent.unwrap()),
            "Muster believes the account that the DaemonSet runs under"
        );
        let other = text(&extenders[1], "/httpTimeout");
        let other = Config::parse(&format!("extender: {{bindTimeout: {other}}}")).unwrap();
        let both = (config.extender.bind_timeout, other.extender.bind_timeout);
        assert_eq!(
            both.0, both.1,
            "Muster and kube-scheduler give a Bind equally long"
        );
    }
}

#[test]
fn one_of_several_pairs_leads_and_they_are_replaced_one_by_one() {
    let objects = installations();
    let mut checked = 0;
    for object in &objects {
        match text(object, "/kind") {
            "Deployment" => {
                let spec = &object["spec"];
                assert!(spec["replicas"].as_u64().is_some_and(|count| count >= 2));
                let rolling = &spec["strategy"]["rollingUpdate"];
                assert_eq!(rolling, &json!({"maxUnavailable": 0, "maxSurge": 1}));
                // Agents look for addresses every 30 s: a pair counts once they all have found it.
                assert!(
                    spec["minReadySeconds"]
                        .as_u64()
                        .is_some_and(|seconds| seconds > 30)
                );
                let affinity = &spec["template"]["spec"]["affinity"]["podAntiAffinity"];
                let term = &affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
                assert_eq!(term["labelSelector"], spec["selector"], "{term}");
                let arguments = |container: &str| -> Vec<&str> {
                    let path = format!("/template/spec/{container}/args");
                    items(spec, &path).filter_map(Value::as_str).collect()
                };
                for container in ["initContainers/0", "containers/0"] {
                    let arguments = arguments(container);
                    for flag in ["--replica=$(POD_NAME)", "--replica-uid=$(POD_UID)"] {
                        assert!(arguments.contains(&flag), "{container}: {arguments:?}");
                    }
                }
                assert_eq!(arguments("initContainers/0").first(), Some(&"close-gate"));
                // Muster looks for it where its own Lease is.
                let namespace = text(object, "/metadata/namespace");
                let lease = muster_kubernetes::names::kube_scheduler_lease("$(POD_NAME)");
                let arguments = arguments("containers/1");
                for flag in [
                    format!("--leader-elect-resource-name={lease}"),
                    format!("--leader-elect-resource-namespace={namespace}"),
                ] {
                    assert!(arguments.contains(&flag.as_str()), "{flag}: {arguments:?}");
                }
                checked += 1;
            }
            "PodDisruptionBudget" => {
                assert_eq!(object["spec"]["maxUnavailable"], 1);
                checked += 1;
            }
            _ => {}
        }
    }
    assert_eq!(checked, 4);
    let config = &documents(&read("kube-scheduler/config.yaml"))[0];
    assert_eq!(config["leaderElection"]["leaderElect"], true);
}

#[test]
fn the_scheduler_takes_its_arguments() {
    let objects = installations();
    let mut checked = 0;
    for (id, spec) in pod_specs(&objects) {
        let container = &spec["containers"][0];
        if container["name"] != "muster-scheduler" {
            continue;
        }
        let init = &spec["initContainers"][0];
        assert_eq!(init["image"], container["image"], "{id}");
        let closes = items(init, "/args").filter_map(Value::as_str);
        let parsed = Cli::try_parse_from(["muster-scheduler"].into_iter().chain(closes));
        assert!(parsed.is_ok(), "{id}: {}", parsed.unwrap_err());
        let args: Vec<&str> = items(container, "/args")
            .filter_map(Value::as_str)
            .collect();
        let parsed = Cli::try_parse_from(["muster-scheduler"].iter().chain(&args));
        assert!(parsed.is_ok(), "{id}: {}", parsed.unwrap_err());
        assert!(
            !args.iter().any(|arg| arg.contains("insecure")),
            "{id}: {args:?}"
        );
        let extender = args
            .iter()
            .find_map(|arg| arg.strip_prefix("--extender-listen="));
        assert_eq!(
            extender,
            Some("127.0.0.1:8443"),
            "{id}: the extender is on loopback alone"
        );
        checked += 1;
    }
    assert_eq!(checked, 2);
}
