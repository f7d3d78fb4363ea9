//! Replays in virtual time: scenarios, traces, dumps taken out of them, and the published experiment.

mod common;

mod dump;
mod openb;
mod replay;
mod scenarios;
