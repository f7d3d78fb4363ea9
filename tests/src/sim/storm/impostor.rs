//! Agents that say what is not so of others: they bear the token of their own node, and name another one.

use std::sync::Arc;

use muster_agent::clock::WallClock;
use muster_agent::connector::TokenProvider;
use muster_agent::fleet::{Fleet, FleetConfig, FleetNode};
use muster_agent::profile::Profile;
use muster_embedded::value;

use super::Storm;
use super::mischief::Undo;
use crate::sim::{NODES, connector};

impl Storm {
    /// An agent of one node speaks for another: all devices well, nobody on them, and later begun than the true one.
    pub(super) fn rename_agent(&mut self) {
        let (own, other) = (self.a_node(), self.a_node());
        let Some(node) = self.cluster.get(NODES, "", &other) else {
            return;
        };
        if own == other || self.impostors.contains_key(&other) {
            return;
        }
        let Ok(profile) = Profile::load("h100-8") else {
            return;
        };
        let token = self.cluster.mint_node_token(&own);
        let tokens: Arc<dyn TokenProvider> = Arc::new(move |_: &str| Ok(Some(token.clone())));
        let names: Vec<&str> = self.replicas.iter().map(|replica| replica.door).collect();
        let mut config = FleetConfig::new(connector(&self.doors, &names), tokens);
        config.seed = self.rng.number();
        config.clock = WallClock::starting_at(self.cluster.api().clock().now().as_millisecond());
        config.nodes.push(FleetNode {
            name: other.clone(),
            uid: value::uid(&node).to_owned(),
            profile: Arc::new(profile),
            scenario: None,
        });
        let Ok(fleet) = Fleet::start(config) else {
            return;
        };
        self.did(format!("the agent of {own} speaks for {other}"));
        self.impostors.insert(other.clone(), fleet);
        self.later(Undo::Impostor(other), 40);
    }
}
