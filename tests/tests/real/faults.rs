//! Bytes between Muster, the API server and the agents that are lost, late, cut or stand still, one after the other:
//! the gang that comes meanwhile starts whole.

use std::time::Duration;

use muster_control_plane::TrainingOperatorOptions;
use muster_tests::acts::PATIENCE;
use muster_tests::jobs::{Job, Role};
use muster_tests::pairs::Pairs;
use muster_tests::proxy::{Flow, Weather};

/// Name of the one pair.
const PAIR: &str = "a";

/// What happens between Muster and the API server, for how long, by name.
fn weathers() -> Vec<(&'static str, Weather, Duration)> {
    let half_open = Weather {
        requests: Flow::Stand,
        answers: Flow::Pass,
    };
    let seconds = Duration::from_secs;
    vec![
        (
            "late",
            Weather::late(Duration::from_millis(200)),
            seconds(6),
        ),
        ("lost", Weather::ANSWERS_LOST, seconds(3)),
        ("cut-in-a-frame", Weather::cut_after(777), seconds(4)),
        ("cut-in-a-handshake", Weather::cut_after(99), seconds(3)),
        ("half-open", half_open, seconds(5)),
        ("apart", Weather::APART, seconds(5)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gangs_start_whole_whatever_becomes_of_the_bytes_on_their_way() -> anyhow::Result<()> {
    let operator = TrainingOperatorOptions::default();
    let pairs = Pairs::start_of(&[PAIR], 4, "", Duration::ZERO, &operator).await?;
    pairs.until_jobs_are_held().await?;
    let done = tokio::select! {
        kept = pairs.keep_running(PAIR) => kept,
        done = storm(&pairs) => done,
    };
    done.inspect_err(|_| pairs.cluster.keep_logs())?;
    pairs.judge().await?;
    Ok(())
}

async fn storm(pairs: &Pairs) -> anyhow::Result<()> {
    for (name, weather, span) in weathers() {
        let proxy = pairs.to_api(PAIR)?;
        proxy.set(weather);
        let job = Job::new(name, vec![Role::new("Worker", 4, 1)]);
        let change = async {
            tokio::time::sleep(span).await;
            proxy.set(Weather::default());
            Ok(())
        };
        let started = std::time::Instant::now();
        let (bound, ()) = tokio::try_join!(pairs.run(&job, PATIENCE), change)?;
        eprintln!(
            "step: {name}: bound after {:.1?}",
            bound.duration_since(started)
        );
        pairs.remove(name).await?;
    }
    agents_apart(pairs).await
}

/// Agents that are not heard for longer than a report counts: nothing new comes to their nodes, what runs there is let
/// be, and what waits starts when they are back.
async fn agents_apart(pairs: &Pairs) -> anyhow::Result<()> {
    let runs = Job::new("runs", vec![Role::new("Worker", 2, 8)]);
    pairs.run(&runs, PATIENCE).await?;
    let proxy = pairs.from_agents(PAIR)?;
    proxy.cut(true);
    let silent = async || {
        let page = pairs.page(PAIR, "/metrics").await.unwrap_or_default();
        page.lines().any(|line| line == "muster_nodes_reported 0")
    };
    pairs.wait_until("all agents to be silent", silent).await?;
    let waits = Job::new("waits", vec![Role::new("Worker", 2, 8)]);
    let back = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let bound = pairs
            .recorder
            .look(|world| (world.bound_of("waits"), world.bound_of("runs")));
        anyhow::ensure!(
            bound == (0, 2),
            "{bound:?} of the waiting and the running one"
        );
        proxy.set(Weather::cut_after(2000));
        tokio::time::sleep(Duration::from_secs(5)).await;
        proxy.set(Weather::default());
        Ok(())
    };
    let (_, ()) = tokio::try_join!(pairs.run(&waits, PATIENCE), back)?;
    let kept = pairs.recorder.look(|world| world.bound_of("runs"));
    anyhow::ensure!(kept == 2, "what ran runs on");
    Ok(())
}
