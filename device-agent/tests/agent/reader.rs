//! The process that reads GPUs for the agent: it hangs, crashes and is replaced, and the agent goes on.
//!
//! The real agent over the fake library. Its scenario's time goes on from one reader to the next.

use std::path::PathBuf;
use std::time::Duration;

use crate::common::agent::{AGENT, Running, reporting};
use crate::common::{Node, Server, until};
use muster_proto::inventory::{Health, HealthSource, Sampler, Welcome, server_message};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

fn scenario(events: &[(u32, &str)]) -> String {
    let events = events
        .iter()
        .map(|(at, rest)| format!("[[events]]\nat_s={at}\nfault={rest}\n"));
    format!("name='x'\n{}", events.collect::<String>())
}

fn node(server: &Server) -> Node {
    server.node("a", "node-0")
}

/// Has the agent send a heartbeat each second.
fn quicken(server: &Server) {
    let welcome = Welcome {
        heartbeat_interval_ms: 1000,
        ..Welcome::default()
    };
    server.send("a", "node-0", server_message::Kind::Welcome(welcome));
}

/// Processes that the agent has started and that are there still.
fn readers(agent: &Running) -> Vec<i32> {
    let id = agent.0.id();
    let path = PathBuf::from(format!("/proc/{id}/task/{id}/children"));
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

fn is_there(process: i32) -> bool {
    // A zombie has no file that it runs.
    std::fs::read_link(format!("/proc/{process}/exe")).is_ok()
}

fn healths(node: &Node) -> Vec<Health> {
    node.devices
        .values()
        .map(|device| device.health())
        .collect()
}

fn sampler_events(node: &Node) -> Vec<(Sampler, bool)> {
    let of_sampler = |event: &&_| -> bool {
        let event: &muster_proto::inventory::HealthEvent = event;
        event.source() == HealthSource::Sampler && event.device_uuid.is_empty()
    };
    let code = |event: &muster_proto::inventory::HealthEvent| {
        let code = i32::try_from(event.code).unwrap();
        (Sampler::try_from(code).unwrap(), event.fatal)
    };
    node.events.iter().filter(of_sampler).map(code).collect()
}

/// Waits for a condition, and for no heartbeat longer than five seconds.
async fn until_while_alive(server: &Server, what: &str, condition: impl Fn() -> bool) {
    let mut heard = (node(server).heartbeats, Instant::now());
    let start = Instant::now();
    while !condition() {
        let (count, at) = (node(server).heartbeats, Instant::now());
        if count > heard.0 {
            heard = (count, at);
        }
        assert!(
            at - heard.1 < Duration::from_secs(5),
            "no heartbeat: {what}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "not in time: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Thirty seconds of probation by the health table, of which some may be over.
async fn until_trusted_again(server: &Server, reason: &str, right: std::ops::Range<u64>) {
    until_while_alive(server, "the driver answers", || {
        node(server).sampler == Sampler::Ok
    })
    .await;
    let answered = Instant::now();
    let on_probation = node(server);
    assert_eq!(healths(&on_probation), [Health::Suspect; 8]);
    for device in on_probation.devices.values() {
        assert_eq!(device.health_reason, reason);
        assert!(device.health_detail.starts_with("on probation"));
    }
    until_while_alive(server, "trust", || {
        healths(&node(server)) == [Health::Healthy; 8]
    })
    .await;
    let took = answered.elapsed().as_secs();
    assert!(right.contains(&took), "{took} s");
    assert!(node(server).consistent());
}

#[tokio::test]
async fn a_hanging_driver_is_told_its_reader_replaced_and_trusted_again_after_probation() {
    let story = scenario(&[(2, "'hang'"), (12, "'resume'")]);
    let (server, agent, _directory) = reporting(&story, &["--watchdog", "3"]).await;
    quicken(&server);
    let [first] = readers(&agent)[..] else {
        panic!("not one reader")
    };
    until_while_alive(&server, "hung", || node(&server).sampler == Sampler::Hung).await;
    until("suspects", || {
        healths(&node(&server)) == [Health::Suspect; 8]
    })
    .await;
    for device in node(&server).devices.values() {
        assert_eq!(device.health_reason, "sampler-hung");
        assert!(device.health_detail.contains("do not return"));
    }
    until(
        "another reader",
        || matches!(readers(&agent)[..], [next] if next != first),
    )
    .await;
    assert!(!is_there(first), "it was killed");
    until_trusted_again(&server, "sampler-hung", 28..40).await;
    let events = sampler_events(&node(&server));
    assert_eq!(events, [(Sampler::Hung, true), (Sampler::Ok, false)]);
}

/// With the time that the agent has by default.
#[tokio::test]
async fn a_driver_that_hangs_for_good_is_reported_within_45_s() {
    let story = scenario(&[(2, "'hang'")]);
    let (server, _agent, directory) = reporting(&story, &[]).await;
    quicken(&server);
    let started = std::fs::read_to_string(directory.path().join("started")).unwrap();
    let hangs = Duration::from_millis(started.parse::<u64>().unwrap() + 2000);
    until_while_alive(&server, "hung", || node(&server).sampler == Sampler::Hung).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let took = now.unwrap() - hangs;
    assert!(took <= Duration::from_secs(45), "{took:?}");
    assert!(
        took >= Duration::from_secs(30),
        "{took:?}: no call is that slow"
    );
}

#[tokio::test]
async fn a_crash_in_the_drivers_library_costs_the_reader_and_neither_the_agent_nor_a_name() {
    let story = scenario(&[(1, "'uncounted'\ngpu=2"), (8, "'crash'"), (12, "'back'")]);
    let (server, mut agent, _directory) = reporting(&story, &[]).await;
    quicken(&server);
    let names: Vec<String> = node(&server).devices.keys().cloned().collect();
    until("the loss", || node(&server).lost() == 1).await;
    until_while_alive(&server, "the crash", || {
        !sampler_events(&node(&server)).is_empty()
    })
    .await;
    assert_eq!(
        sampler_events(&node(&server)).first(),
        Some(&(Sampler::Crashed, true))
    );
    // The next reader never saw that GPU counted, and knows it all the same.
    until("the next reader", || node(&server).sampler == Sampler::Ok).await;
    assert!(node(&server).devices.keys().eq(names.iter()));
    until("the repair", || node(&server).lost() == 0).await;
    until_trusted_again(&server, "sampler-crashed", 10..40).await;
    assert!(node(&server).devices.keys().eq(names.iter()));
    assert!(agent.0.try_wait().unwrap().is_none(), "the agent ended");
}

#[tokio::test]
async fn a_reader_that_hangs_dies_with_the_agent() {
    let story = scenario(&[(1, "'hang'")]);
    let (server, mut agent, _directory) = reporting(&story, &[]).await;
    let [reader] = readers(&agent)[..] else {
        panic!("not one reader")
    };
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node(&server).sampler, Sampler::Ok, "not seen yet");
    let process = Pid::from_child(&agent.0);
    kill_process(process, Signal::KILL).unwrap();
    agent.0.wait().unwrap();
    until("its end", || !is_there(reader)).await;
}

/// Whoever starts it by hand is told that this is not for them.
#[test]
fn a_reader_that_no_agent_has_started_says_so() {
    let mut reader = std::process::Command::new(AGENT);
    reader.arg("read-nvml").stdin(std::process::Stdio::null());
    let output = reader.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && told.contains("muster-agent run"),
        "{told}"
    );
    assert!(output.stdout.is_empty());
}

/// The floor is 32 MiB; a build without optimisation has more code to load than a released one.
#[tokio::test]
async fn agent_and_reader_together_stay_small_on_eight_gpus() {
    let (server, agent, _directory) = reporting("name='x'", &[]).await;
    quicken(&server);
    let before = node(&server).heartbeats;
    until("some heartbeats", || node(&server).heartbeats > before + 2).await;
    let resident = |process: i32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let [reader] = readers(&agent)[..] else {
        panic!("not one reader")
    };
    let agent = i32::try_from(agent.0.id()).unwrap();
    let (agent, reader) = (resident(agent), resident(reader));
    println!("agent {agent} KiB, reader {reader} KiB");
    let most = if cfg!(debug_assertions) { 64 } else { 32 };
    assert!(agent + reader <= most << 10, "{agent} + {reader} KiB");
}
