//! What stands in every new cluster: namespaces, default service accounts, priority classes.

use serde_json::{Value, json};

use super::server::{ApiServer, Caller};

/// Fills a new server.
pub fn fill(server: &ApiServer) {
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        make(
            server,
            "",
            "namespaces",
            "",
            &json!({"metadata": {"name": name}}),
        );
    }
    make(
        server,
        "",
        "serviceaccounts",
        "default",
        &json!({"metadata": {"name": "default"}}),
    );
    for (name, number) in [
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ] {
        let class = json!({"metadata": {"name": name}, "value": number, "description": "Used for system critical pods."});
        make(server, "scheduling.k8s.io", "priorityclasses", "", &class);
    }
    let service = json!({"metadata": {"name": "kubernetes"}, "spec": {"type": "ClusterIP", "clusterIP": "10.0.0.1",
        "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}]}});
    make(server, "", "services", "default", &service);
    for crd in [
        super::resources::pytorchjob_crd(),
        super::resources::podgroup_crd(),
    ] {
        make(
            server,
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "",
            &crd,
        );
    }
}

fn make(server: &ApiServer, group: &str, plural: &str, namespace: &str, object: &Value) {
    let made = server
        .target(group, plural, namespace, "")
        .and_then(|target| {
            server.create(&Caller::new("system:apiserver"), &target, object.clone())
        });
    debug_assert!(made.is_ok(), "the built-in {plural} are valid: {made:?}");
}
