//! The API server is away for longer than a gang may be bound in part, between two Bindings of one.

use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use muster_scheduler::config::Config;
use muster_scheduler::span::Span;
use muster_tests::sim::{SOON, Sim, SimOptions, Trap, bound};
use tokio::time::sleep;
use tower::ServiceExt as _;

use super::{MINUTE, paused, train};

/// The sixth write is the third Binding: before it come the Gang, its status, the job and two more.
const THIRD_BINDING: u32 = 6;

/// Time that the API server is away for.
const AWAY: u64 = 45;

fn options(config: Config) -> SimOptions {
    SimOptions {
        config,
        ..SimOptions::default()
    }
}

/// Submits a gang of five, and waits until the API server is gone with some of it bound.
async fn bound_in_part(sim: &Sim) -> anyhow::Result<()> {
    sim.script.set(Trap::AwayAt(THIRD_BINDING, AWAY));
    sim.apply(&train("gang").yaml())?;
    anyhow::ensure!(sim.sprung(MINUTE).await, "no third Binding");
    let what = sim.script.what();
    anyhow::ensure!(what.contains("binding"), "away at {what}");
    let members = bound(&sim.cluster, "gang-").len();
    anyhow::ensure!((1..5).contains(&members), "{members} are bound");
    Ok(())
}

/// The gang becomes whole, and none of its members was ever taken away for that.
async fn ends_whole(sim: &Sim, before: &[(String, String)]) -> anyhow::Result<()> {
    sim.until("the gang is whole", SOON, |c| bound(c, "gang-").len() == 5)
        .await?;
    sim.until_phase("gang", "Running").await?;
    let after = bound(&sim.cluster, "gang-");
    for (pod, node) in before {
        let now = after.get(pod).context("it was released")?;
        anyhow::ensure!(now == node, "{pod} was released and bound anew");
    }
    let writes = sim.cluster.api().writes_since(0);
    let deleted = writes
        .iter()
        .find(|write| write.verb == "delete" && write.resource == "pods");
    anyhow::ensure!(deleted.is_none(), "{deleted:?}");
    Ok(())
}

fn members(sim: &Sim) -> Vec<(String, String)> {
    bound(&sim.cluster, "gang-").into_iter().collect()
}

#[test]
fn a_leader_that_keeps_its_lease_finishes_the_gang_after_the_outage() -> anyhow::Result<()> {
    paused(async {
        let mut config = Config::default();
        config.lease.duration = Span::secs(120);
        config.lease.renew_deadline = Span::secs(100);
        let sim = Sim::start(options(config)).await?;
        bound_in_part(&sim).await?;
        let before = members(&sim);
        sim.pass(Duration::from_secs(AWAY)).await;
        anyhow::ensure!(!sim.script.is_away(), "it is back");
        ends_whole(&sim, &before).await?;
        sim.stop().await;
        Ok(())
    })
}

#[test]
fn the_next_leader_finishes_the_gang_when_the_outage_has_cost_the_lease() -> anyhow::Result<()> {
    paused(async {
        let mut sim = Sim::start(options(Config::default())).await?;
        bound_in_part(&sim).await?;
        let before = members(&sim);
        sim.restart_when_ended().await?;
        anyhow::ensure!(!sim.script.is_away(), "it ends when the Lease was read");
        sim.wait_ready().await?;
        ends_whole(&sim, &before).await?;
        sim.stop().await;
        Ok(())
    })
}

/// The status and the text of a page.
async fn page(pages: &Router, path: &str) -> anyhow::Result<(u16, String)> {
    let request = Request::get(path).body(Body::empty())?;
    let answer = pages.clone().oneshot(request).await?;
    let status = answer.status().as_u16();
    let text = axum::body::to_bytes(answer.into_body(), 4096).await?;
    Ok((status, String::from_utf8(text.to_vec())?))
}

/// The kubelet ends what does not answer. What it started in its place would not know that the store was restored.
#[test]
fn a_leader_that_has_lost_its_lease_lives_without_leading_until_it_could_read_it()
-> anyhow::Result<()> {
    paused(async {
        let mut sim = Sim::start(options(Config::default())).await?;
        sim.script.set(Trap::AwayAt(1, 600));
        sim.apply(&train("gang").yaml())?;
        anyhow::ensure!(sim.sprung(MINUTE).await, "it is not away");
        let pages = sim.pages()?;
        let lives = async {
            sleep(MINUTE).await;
            for _ in 0..50 {
                let healthy = page(&pages, "/healthz").await?;
                anyhow::ensure!(healthy.0 == 200, "{healthy:?}");
                let (status, text) = page(&pages, "/readyz").await?;
                anyhow::ensure!(status == 503, "{text}");
                anyhow::ensure!(text.contains("the leadership is lost"), "{text}");
                sleep(Duration::from_secs(10)).await;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(lives, sim.restart_when_ended())?;
        sim.wait_ready().await?;
        sim.until("the gang is whole", SOON, |c| bound(c, "gang-").len() == 5)
            .await?;
        sim.stop().await;
        Ok(())
    })
}
