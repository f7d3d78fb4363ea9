//! An operator freezes the scheduler by its Lease, whoever leads, and lets it go on.

use muster_embedded::value;
use muster_scheduler::config::Config;
use muster_scheduler::frozen::switch;
use muster_tests::sim::{PODS, SOON, Sim, SimOptions, bound, gang_field};

use super::{MINUTE, paused, train};

#[test]
fn frozen_scheduler_starts_nothing_across_restarts_and_all_when_it_goes_on() -> anyhow::Result<()> {
    paused(async {
        let mut sim = Sim::start(SimOptions::default()).await?;
        let (client, lease) = (sim.cluster.client("operator"), Config::default().lease);
        switch(client.clone(), &lease, Some("we look at rack 7")).await?;
        sim.apply(&train("gang").yaml())?;
        sim.until("the gang says that all is frozen", SOON, |cluster| {
            gang_field(cluster, "gang", "reason") == "Frozen"
        })
        .await?;
        sim.kill_scheduler().await;
        sim.start_scheduler();
        sim.pass(MINUTE).await;
        sim.wait_ready().await?;
        anyhow::ensure!(bound(&sim.cluster, "gang-").is_empty());
        anyhow::ensure!(gang_field(&sim.cluster, "gang", "reason") == "Frozen");
        anyhow::ensure!(sim.counted("muster_frozen") == 1);
        let pods = sim.cluster.list(PODS).into_iter();
        let made = pods.filter(|pod| value::name(pod).starts_with("gang-"));
        anyhow::ensure!(made.count() == 0, "its job is held");
        switch(client, &lease, None).await?;
        sim.until("the gang is whole", SOON, |cluster| {
            bound(cluster, "gang-").len() == 5
        })
        .await?;
        sim.until_phase("gang", "Running").await?;
        sim.judge().await?;
        sim.stop().await;
        Ok(())
    })
}
