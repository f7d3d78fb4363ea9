//! The wire format, case by case. Names carry the number of the trap they guard against.

use serde_json::{Value, json};

use super::*;

fn json_of(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("JSON")
}

#[test]
fn t01_any_case_comes_in() {
    for text in [
        r#"{"Pod":{"metadata":{"name":"p","uid":"u"}},"Nodes":null,"NodeNames":["a","b"]}"#,
        r#"{"pod":{"metadata":{"name":"p","uid":"u"}},"nodeNames":["a","b"]}"#,
        r#"{"pod":{"metadata":{"name":"p","uid":"u","managedFields":[{"x":1}]}},"nodenames":["a","b"],"More":[1,{}]}"#,
    ] {
        let args: ExtenderArgs<'_> = serde_json::from_str(text).expect(text);
        assert_eq!(args.offered(), ["a", "b"], "{text}");
        assert_eq!(args.offer(), Offer::Names);
        let pod = args.pod.expect("a pod");
        assert_eq!(pod.metadata.uid.as_deref(), Some("u"));
    }
    for text in [
        r#"{"PodName":"p","PodNamespace":"n","PodUID":"u","Node":"a"}"#,
        r#"{"podName":"p","podNamespace":"n","podUID":"u","node":"a"}"#,
        r#"{"podname":"p","podnamespace":"n","poduid":"u","node":"a"}"#,
    ] {
        let args: BindingArgs = serde_json::from_str(text).expect(text);
        assert_eq!(args.missing(), None, "{text}");
        assert_eq!((args.pod_uid.as_str(), args.node.as_str()), ("u", "a"));
    }
}

#[test]
fn t01_null_and_absent_are_the_same_and_empty_is_not() {
    for (text, offer, names) in [
        ("{}", Offer::Names, 0),
        (r#"{"NodeNames":null,"Nodes":null}"#, Offer::Names, 0),
        (r#"{"NodeNames":[],"Nodes":null}"#, Offer::Names, 0),
        (
            r#"{"NodeNames":[],"Nodes":{"items":[{"metadata":{"name":"a"}}]}}"#,
            Offer::Names,
            0,
        ),
        (r#"{"Nodes":{"items":null}}"#, Offer::Objects, 0),
        (r#"{"Nodes":{"items":[]}}"#, Offer::Objects, 0),
        (
            r#"{"Nodes":{"items":[{"metadata":{"name":"a"}}]}}"#,
            Offer::Objects,
            1,
        ),
    ] {
        let args: ExtenderArgs<'_> = serde_json::from_str(text).expect(text);
        assert_eq!(
            (args.offer(), args.offered().len()),
            (offer, names),
            "{text}"
        );
        assert_eq!(args.pod, None);
    }
}

#[test]
fn t01_pascal_case_goes_out() {
    let args: ExtenderArgs<'_> =
        serde_json::from_str(r#"{"NodeNames":["a","b","c\u0041"]}"#).expect("arguments");
    assert_eq!(
        json_of(&FilterResult::only(&args, "b", "no")),
        json!({"Nodes": null, "NodeNames": ["b"], "FailedNodes": null,
               "FailedAndUnresolvableNodes": {"a": "no", "cA": "no"}, "Error": ""})
    );
    assert_eq!(
        json_of(&FilterResult::nowhere(&args, "no")),
        json!({"Nodes": null, "NodeNames": [], "FailedNodes": null,
               "FailedAndUnresolvableNodes": {"a": "no", "b": "no", "cA": "no"}, "Error": ""})
    );
    assert_eq!(
        json_of(&FilterResult::failed("later")),
        json!({"Nodes": null, "NodeNames": null, "FailedNodes": null,
               "FailedAndUnresolvableNodes": {}, "Error": "later"})
    );
}

#[test]
fn t02_nodes_in_full_are_answered_as_objects() {
    let text = r#"{"Pod":{},"Nodes":{"metadata":{},"items":[
        {"metadata":{"name":"a","labels":{"x":"y"}},"status":{"images":[{"names":["i"]}]}},
        {"metadata":{"name":"b"}},{"metadata":{}}]}}"#;
    let args: ExtenderArgs<'_> = serde_json::from_str(text).expect("arguments");
    assert_eq!(
        json_of(&FilterResult::divide(&args, "no", |name| name == "a")),
        json!({"Nodes": {"items": [{"metadata": {"name": "a"}}]}, "NodeNames": null, "FailedNodes": null,
               "FailedAndUnresolvableNodes": {"b": "no", "": "no"}, "Error": ""})
    );
}

#[test]
fn t04_no_answer_to_bind_reads_as_success_by_accident() {
    assert_eq!(json_of(&BindingResult::bound()), json!({"Error": ""}));
    assert_eq!(
        json_of(&BindingResult::refused("gone")),
        json!({"Error": "gone"})
    );
    assert_ne!(BindingResult::refused("").error(), "");
    for (text, missing) in [
        ("{}", Some("PodName")),
        (
            r#"{"PodName":"p","PodNamespace":"n","PodUID":"","Node":"a"}"#,
            Some("PodUID"),
        ),
        (
            r#"{"PodName":"p","PodNamespace":"n","PodUID":"u"}"#,
            Some("Node"),
        ),
    ] {
        let args: BindingArgs = serde_json::from_str(text).expect(text);
        assert_eq!(args.missing(), missing, "{text}");
    }
}

#[test]
fn t05_no_answer_names_a_node_that_was_not_offered() {
    let args: ExtenderArgs<'_> = serde_json::from_str(r#"{"NodeNames":["a"]}"#).expect("arguments");
    let result = FilterResult::only(&args, "elsewhere", "no");
    assert_eq!((result.passed, result.refused), (vec![], vec!["a"]));
}

#[test]
fn t06_names_are_borrowed_from_the_request() {
    let text = r#"{"NodeNames":["plain"],"Nodes":{"items":[{"metadata":{"name":"plain"}}]}}"#;
    let args: ExtenderArgs<'_> = serde_json::from_str(text).expect("arguments");
    let names = args.node_names.expect("names");
    assert!(matches!(names[0].0, Cow::Borrowed("plain")));
    let items = args.nodes.and_then(|list| list.items).expect("objects");
    assert!(matches!(items[0].metadata.name.0, Cow::Borrowed("plain")));
}

#[test]
fn t08_preemption_is_answered_by_uid_whatever_came() {
    let meta = r#"{"Pod":{},"NodeNameToMetaVictims":{
        "a":{"Pods":[{"UID":"1"},{"UID":"2"}],"NumPDBViolations":1},
        "b":{"Pods":null,"NumPDBViolations":0},"c":null,"d":{"Pods":[]}}}"#;
    let full = r#"{"pod":{},"nodeNameToVictims":{
        "a":{"pods":[{"metadata":{"uid":"1"}},{"metadata":{"uid":"2"}}],"numPDBViolations":1},
        "b":{"pods":[],"numPDBViolations":0}}}"#;
    for text in [meta, full] {
        let args: PreemptionArgs = serde_json::from_str(text).expect(text);
        let result = PreemptionResult {
            meta_victims: args.candidates(),
        };
        assert_eq!(
            json_of(&result),
            json!({"NodeNameToMetaVictims": {"a": {"Pods": [{"UID": "1"}, {"UID": "2"}], "NumPDBViolations": 1}}})
        );
    }
    assert_eq!(
        json_of(&PreemptionResult::default()),
        json!({"NodeNameToMetaVictims": {}})
    );
}

#[test]
fn t10_what_is_no_request_is_an_error_or_has_nothing_to_act_on() {
    for text in [
        "",
        "[",
        "7",
        "null",
        r#"{"NodeNames":"a"}"#,
        r#"{"NodeNames":[1]}"#,
        r#"{"Pod":"p"}"#,
    ] {
        assert!(
            serde_json::from_str::<ExtenderArgs<'_>>(text).is_err(),
            "{text:?}"
        );
    }
    for text in ["null", r#"{"PodName":1}"#] {
        assert!(
            serde_json::from_str::<BindingArgs>(text).is_err(),
            "{text:?}"
        );
    }
    for text in ["{}", "[]"] {
        let filter: ExtenderArgs<'_> = serde_json::from_str(text).expect(text);
        assert!(filter.pod.is_none() && filter.offered().is_empty());
        let bind: BindingArgs = serde_json::from_str(text).expect(text);
        assert_eq!(bind.missing(), Some("PodName"));
    }
}

#[test]
fn t12_the_same_refusal_has_the_same_bytes() {
    let args: ExtenderArgs<'_> =
        serde_json::from_str(r#"{"NodeNames":["b","a"]}"#).expect("arguments");
    let bytes = || serde_json::to_string(&FilterResult::nowhere(&args, "waits")).expect("JSON");
    assert_eq!(bytes(), bytes());
    assert!(bytes().contains(r#"{"b":"waits","a":"waits"}"#));
}
