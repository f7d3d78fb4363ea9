//! A fleet over in-memory pipes on a paused clock, against a server written here.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Server, until};
use futures::future::BoxFuture;
use muster_agent::clock::WallClock;
use muster_agent::connector::{ConnectError, Connector, NoToken, Replica};
use muster_agent::fleet::{Fleet, FleetConfig, FleetNode};
use muster_agent::profile::Profile;
use muster_agent::scenario::FaultEvent;
use muster_agent::scenario::Scenario;
use muster_proto::inventory::server_message::Kind;
use muster_proto::inventory::{Backoff, Health, Holder};
use tonic::transport::Channel;

fn config(server: &Server, nodes: usize) -> FleetConfig {
    let profile = Arc::new(Profile::load("h100-8").unwrap());
    let node = |n| FleetNode {
        name: format!("gpu-{n}"),
        uid: format!("uid-{n}"),
        profile: Arc::clone(&profile),
        scenario: None,
    };
    FleetConfig {
        nodes: (0..nodes).map(node).collect(),
        start_spread: Duration::from_secs(5),
        clock: WallClock::starting_at(1_700_000_000_000),
        ..FleetConfig::new(server.connector(), Arc::new(NoToken))
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_nodes_report_and_faults_and_holders_arrive() {
    let server = Server::start(&["a"]);
    let mut fleet = Fleet::start(config(&server, 200)).unwrap();
    until("200 nodes", || server.nodes("a").len() == 200).await;
    assert!(
        server
            .nodes("a")
            .values()
            .all(|node| node.devices.len() == 8 && node.consistent())
    );

    fleet
        .inject("gpu-17", FaultEvent::Xid { gpu: 3, code: 79 })
        .unwrap();
    let lost = || {
        server
            .node("a", "gpu-17")
            .devices
            .values()
            .filter(|device| device.health() == Health::Lost)
            .count()
    };
    let start = tokio::time::Instant::now();
    until("the lost gpu", || lost() == 1).await;
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    until("its event", || {
        server
            .node("a", "gpu-17")
            .events
            .iter()
            .any(|event| event.code == 79 && event.fatal)
    })
    .await;
    fleet
        .inject("gpu-17", FaultEvent::Back { gpu: None })
        .unwrap();
    until("the repaired gpu", || lost() == 0).await;

    let uuid = fleet.devices("gpu-4").unwrap()[2].uuid.clone();
    let holder = Holder {
        namespace: "team".into(),
        pod: "job-0".into(),
        container: "main".into(),
    };
    fleet
        .set_holders("gpu-4", [(uuid.clone(), vec![holder.clone()])].into())
        .unwrap();
    until("the holder", || {
        server.node("a", "gpu-4").devices[&uuid].holders == [holder.clone()]
    })
    .await;

    fleet.inject("gpu-5", FaultEvent::Silent).unwrap();
    let quiet_since = server.node("a", "gpu-5").last_seen;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(server.node("a", "gpu-5").last_seen <= quiet_since + Duration::from_secs(1));
    assert!(server.node("a", "gpu-6").last_seen.elapsed() <= Duration::from_secs(11));
    fleet.inject("gpu-5", FaultEvent::Resume).unwrap();
    until("a heartbeat again", || {
        server.node("a", "gpu-5").last_seen.elapsed() < Duration::from_secs(1)
    })
    .await;

    fleet.remove_node("gpu-9").await.unwrap();
    until("bye", || server.node("a", "gpu-9").byes == 1).await;
    assert!(fleet.inject("gpu-9", FaultEvent::Silent).is_err());
    assert!(
        server
            .nodes("a")
            .values()
            .all(crate::common::Node::consistent)
    );
    fleet.stop().await;
    until("every bye", || {
        server.nodes("a").values().all(|node| node.byes == 1)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_order_of_arrival() {
    let order = async || {
        let server = Server::start(&["a"]);
        let fleet = Fleet::start(config(&server, 50)).unwrap();
        until("50 nodes", || server.nodes("a").len() == 50).await;
        let mut arrivals: Vec<_> = server
            .nodes("a")
            .into_iter()
            .map(|(name, node)| (node.order, name))
            .collect();
        arrivals.sort();
        fleet.stop().await;
        arrivals
    };
    assert_eq!(order().await, order().await);
}

#[tokio::test(start_paused = true)]
async fn every_replica_gets_its_own_stream_and_a_lost_one_is_found_again() {
    let server = Server::start(&["a", "b", "c"]);
    let fleet = Fleet::start(config(&server, 10)).unwrap();
    until("three replicas", || {
        ["a", "b", "c"]
            .iter()
            .all(|replica| server.nodes(replica).len() == 10)
    })
    .await;
    server.kill("b");
    fleet.inject("gpu-1", FaultEvent::Lost { gpu: 0 }).unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(server.node("a", "gpu-1").lost(), 1);
    assert_eq!(server.node("b", "gpu-1").lost(), 0);
    server.revive("b");
    until("b is told", || server.node("b", "gpu-1").lost() == 1).await;
    assert!(server.node("b", "gpu-1").snapshots >= 2);
}

/// A gang that is submitted right after a restart of the scheduler waits for the inventory.
#[tokio::test(start_paused = true)]
async fn restarted_server_has_the_whole_fleet_again_within_seconds_and_not_all_at_once() {
    let server = Server::start(&["a"]);
    let fleet = Fleet::start(config(&server, 200)).unwrap();
    until("200 streams", || fleet.streams_up() == 200).await;
    for (away, back) in [(20, 5), (180, 10)] {
        server.kill("a");
        tokio::time::sleep(Duration::from_secs(away)).await;
        assert_eq!(fleet.streams_up(), 0);
        server.revive("a");
        let revived = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let early = fleet.streams_up();
        assert!(early < 60, "{early} of 200 came at once");
        until("200 streams again", || fleet.streams_up() == 200).await;
        let took = revived.elapsed();
        assert!(took <= Duration::from_secs(back + 1), "{took:?}");
    }
}

/// Finds one replica of a server, which may change.
struct OneOf {
    inner: Arc<dyn Connector>,
    now: Mutex<Replica>,
}

impl Connector for OneOf {
    fn resolve(&self) -> BoxFuture<'_, Result<Vec<Replica>, ConnectError>> {
        Box::pin(async { Ok(vec![self.now.lock().unwrap().clone()]) })
    }

    fn connect<'a>(&'a self, replica: &'a Replica) -> BoxFuture<'a, Result<Channel, ConnectError>> {
        self.inner.connect(replica)
    }
}

/// A pod that is made again has another address, and the name is only looked up now and then.
#[tokio::test(start_paused = true)]
async fn server_that_starts_again_at_another_address_is_found_within_seconds() {
    let server = Server::start(&["old", "new"]);
    let connector = Arc::new(OneOf {
        inner: server.connector(),
        now: Mutex::new(Replica("old".into())),
    });
    let _fleet = Fleet::start(FleetConfig {
        connector: Arc::<OneOf>::clone(&connector),
        ..config(&server, 50)
    })
    .unwrap();
    until("50 nodes", || server.nodes("old").len() == 50).await;
    // Right after a look: the next one by itself is half a minute away.
    tokio::time::sleep(Duration::from_secs(15)).await;
    server.kill("old");
    *connector.now.lock().unwrap() = Replica("new".into());
    let moved = tokio::time::Instant::now();
    until("50 nodes at the new address", || {
        server.nodes("new").len() == 50
    })
    .await;
    assert!(
        moved.elapsed() <= Duration::from_secs(4),
        "{:?}",
        moved.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lost_track_gets_a_snapshot_and_a_duplicate_changes_nothing() {
    let server = Server::start(&["a"]);
    let fleet = Fleet::start(config(&server, 3)).unwrap();
    until("3 nodes", || server.nodes("a").len() == 3).await;
    server.resync("a", "gpu-1");
    until("a second snapshot", || {
        server.node("a", "gpu-1").snapshots == 2
    })
    .await;
    fleet.inject("gpu-2", FaultEvent::Lost { gpu: 1 }).unwrap();
    until("the loss", || server.node("a", "gpu-2").lost() == 1).await;
    fleet.inject("gpu-2", FaultEvent::Replay).unwrap();
    until("the old report", || server.node("a", "gpu-2").stale == 1).await;
    assert_eq!(server.node("a", "gpu-2").lost(), 1);
    assert!(server.node("a", "gpu-2").consistent());
}

#[tokio::test(start_paused = true)]
async fn a_rotated_token_is_sent_again_and_a_wrong_one_is_tried_until_it_is_right() {
    let server = Server::start(&["a"]);
    let token = Arc::new(Mutex::new("wrong".to_owned()));
    let given = Arc::clone(&token);
    let tokens = move |_: &str| Ok(Some(given.lock().unwrap().clone()));
    let fleet = Fleet::start(FleetConfig {
        tokens: Arc::new(tokens),
        ..config(&server, 1)
    })
    .unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(server.nodes("a").is_empty());
    *token.lock().unwrap() = "first".into();
    until("the first report", || server.nodes("a").len() == 1).await;
    assert_eq!(server.node("a", "gpu-0").token.as_deref(), Some("first"));
    *token.lock().unwrap() = "second".into();
    until("the second token", || {
        server.node("a", "gpu-0").reauths == ["second"]
    })
    .await;
    assert_eq!(server.node("a", "gpu-0").snapshots, 1);
    assert_eq!(fleet.streams_up(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_under_load_is_left_alone_for_as_long_as_it_asks() {
    let server = Server::start(&["a"]);
    let _fleet = Fleet::start(config(&server, 1)).unwrap();
    until("the first report", || server.nodes("a").len() == 1).await;
    server.send(
        "a",
        "gpu-0",
        Kind::Backoff(Backoff {
            min_ms: 20_000,
            jitter_ms: 5_000,
        }),
    );
    let asked = tokio::time::Instant::now();
    until("the second stream", || {
        server.node("a", "gpu-0").snapshots == 2
    })
    .await;
    assert!(
        (20..=26).contains(&asked.elapsed().as_secs()),
        "{:?}",
        asked.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn scenarios_play_on_the_nodes_they_name_and_mig_nodes_report_slices() {
    let server = Server::start(&["a"]);
    let profile = Arc::new(Profile::load("a100-8-mig").unwrap());
    let text = "name='s'\n[[events]]\nat_s=30\nfault='lost'\ngpu=0\nnodes=['gpu-1']\n[[events]]\nat_s=60\nfault='driver_version'\nversion='590.1'";
    let scenario = Arc::new(Scenario::parse("s", text).unwrap());
    let node = |n| FleetNode {
        name: format!("gpu-{n}"),
        uid: String::new(),
        profile: Arc::clone(&profile),
        scenario: Some(Arc::clone(&scenario)),
    };
    let config = FleetConfig {
        nodes: (0..2).map(node).collect(),
        ..config(&server, 0)
    };
    let _fleet = Fleet::start(config).unwrap();
    until("56 devices each", || {
        let nodes = server.nodes("a");
        nodes.len() == 2 && nodes.values().all(|node| node.devices.len() == 56)
    })
    .await;
    until("a lost gpu with its slices", || {
        server.node("a", "gpu-1").lost() == 8
    })
    .await;
    assert_eq!(server.node("a", "gpu-0").lost(), 0);
    let driver = |name: &str| {
        server
            .node("a", name)
            .facts
            .and_then(|facts| facts.driver_version)
    };
    until("another driver", || {
        driver("gpu-0").as_deref() == Some("590.1")
    })
    .await;
    let kubelet = server.node("a", "gpu-0").kubelet.unwrap();
    assert!(
        kubelet.known
            && kubelet
                .allocatable
                .iter()
                .any(|listed| listed.resource_name == "nvidia.com/mig-3g.20gb")
    );
}
