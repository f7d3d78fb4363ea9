//! Lists and watches.

use futures::{StreamExt, TryStreamExt};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::core::WatchEvent;
use kube::runtime::watcher;
use serde_json::json;

use super::{pod, pods, server, status_of};

#[tokio::test(start_paused = true)]
async fn lists_are_filtered_and_paged_on_one_snapshot() {
    let server = server();
    let api = pods(&server);
    for at in 0..25 {
        let labels = json!({"metadata": {"labels": {"half": (at % 2).to_string()}}});
        api.create(&PostParams::default(), &pod(&format!("p{at:02}"), labels))
            .await
            .unwrap();
    }
    let odd = api
        .list(&ListParams::default().labels("half in (1)"))
        .await
        .unwrap();
    assert_eq!(odd.items.len(), 12);
    assert_eq!(
        api.list(&ListParams::default().fields("metadata.name=p03"))
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    assert_eq!(
        api.list(&ListParams::default().fields("spec.nodeName=,status.phase=Pending"))
            .await
            .unwrap()
            .items
            .len(),
        25
    );
    assert_eq!(
        status_of(
            api.list(&ListParams::default().fields("spec.odd=1"))
                .await
                .unwrap_err()
        )
        .code,
        400
    );

    let mut params = ListParams::default().limit(10);
    let first = api.list(&params).await.unwrap();
    assert_eq!(
        (first.items.len(), first.metadata.remaining_item_count),
        (10, Some(15))
    );
    api.delete("p15", &DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &pod("p12a", json!({})))
        .await
        .unwrap();
    params = params.continue_token(first.metadata.continue_.as_deref().unwrap());
    let second = api.list(&params).await.unwrap();
    let names: Vec<_> = second
        .items
        .iter()
        .filter_map(|p| p.metadata.name.clone())
        .collect();
    assert_eq!(names.first().map(String::as_str), Some("p10"));
    assert!(
        names.contains(&"p15".to_owned()) && !names.contains(&"p12a".to_owned()),
        "{names:?}"
    );
    assert_eq!(
        second.metadata.resource_version,
        first.metadata.resource_version
    );
    server.compact();
    assert_eq!(status_of(api.list(&params).await.unwrap_err()).code, 410);
}

#[tokio::test(start_paused = true)]
async fn watches_resume_bookmark_expire_and_follow_selectors() {
    let server = server();
    let api = pods(&server);
    let start = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let params = WatchParams::default().labels("on=yes").timeout(90);
    let mut stream = api.watch(&params, &start).await.unwrap().boxed();
    let on = |v: &str| Patch::Merge(json!({"metadata": {"labels": {"on": v}}}));
    api.create(&PostParams::default(), &pod("a", json!({})))
        .await
        .unwrap();
    api.patch("a", &PatchParams::default(), &on("yes"))
        .await
        .unwrap();
    api.patch("a", &PatchParams::default(), &on("no"))
        .await
        .unwrap();
    assert!(
        matches!(stream.try_next().await.unwrap(), Some(WatchEvent::Added(p)) if p.metadata.name.as_deref() == Some("a"))
    );
    assert!(matches!(
        stream.try_next().await.unwrap(),
        Some(WatchEvent::Deleted(_))
    ));
    let before = tokio::time::Instant::now();
    assert!(matches!(
        stream.try_next().await.unwrap(),
        Some(WatchEvent::Bookmark(_))
    ));
    assert_eq!(before.elapsed().as_secs(), 60);
    assert!(matches!(
        stream.try_next().await.unwrap(),
        Some(WatchEvent::Bookmark(_))
    ));
    assert!(
        stream.try_next().await.unwrap().is_none(),
        "the watch ends after its timeout"
    );
    server.compact();
    let mut stream = api
        .watch(&WatchParams::default(), &start)
        .await
        .unwrap()
        .boxed();
    assert!(
        matches!(stream.try_next().await.unwrap(), Some(WatchEvent::Error(e)) if e.code == 410 && e.reason == "Expired")
    );
}

#[tokio::test(start_paused = true)]
async fn the_watcher_of_kube_runtime_follows_in_both_modes_and_survives_compaction() {
    for streaming in [false, true] {
        let server = server();
        let api = pods(&server);
        api.create(&PostParams::default(), &pod("a", json!({})))
            .await
            .unwrap();
        let config = if streaming {
            watcher::Config::default().streaming_lists()
        } else {
            watcher::Config::default()
        };
        let mut events = watcher::watcher(api.clone(), config).boxed();
        let mut seen = Vec::new();
        while seen.last().is_none_or(|l| l != "done") {
            match events.try_next().await.unwrap().unwrap() {
                watcher::Event::Init => seen.push("init".to_owned()),
                watcher::Event::InitApply(p) => seen.push(p.metadata.name.unwrap()),
                watcher::Event::InitDone => seen.push("done".to_owned()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, ["init", "a", "done"]);
        api.create(&PostParams::default(), &pod("b", json!({})))
            .await
            .unwrap();
        assert!(
            matches!(events.try_next().await.unwrap(), Some(watcher::Event::Apply(p)) if p.metadata.name.as_deref() == Some("b"))
        );
        api.delete("b", &DeleteParams::default()).await.unwrap();
        assert!(
            matches!(events.try_next().await.unwrap(), Some(watcher::Event::Delete(p)) if p.metadata.name.as_deref() == Some("b"))
        );
    }
}
