//! The engine: events in, actions out.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::action::Action;
use crate::config::Config;
use crate::event::Event;
use crate::time::Timestamp;
use crate::view::View;

/// Owns everything that is believed and promised. One task calls it; nobody else sees inside.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    actions: VecDeque<Action>,
    view: Arc<View>,
}

impl Engine {
    /// An engine that knows nothing and does not lead.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            actions: VecDeque::new(),
            view: Arc::default(),
        }
    }

    /// Takes one event in. Decides nothing yet: see [`Engine::decide`].
    pub fn handle(&mut self, _event: Event, _now: Timestamp) {}

    /// Decides on everything taken in so far: plans, commits, releases, answers. Called once after
    /// each batch of events, and when the deadline passes.
    pub fn decide(&mut self, _now: Timestamp) {}

    /// The next thing to do outside.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Engine::decide`] wants to be called even if nothing happens.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        None
    }

    /// The picture for readers, as of the last [`Engine::decide`].
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    /// Limits and choices.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
