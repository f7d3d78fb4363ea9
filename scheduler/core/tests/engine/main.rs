//! The engine in a small world around it: what happens is told event by event, and audited after each.

mod chaos;
mod world;

mod apart;
mod awaited;
mod busy;
mod changed;
mod claims;
mod completing;
mod controllers;
mod doubt;
mod flows;
mod foreign;
mod frozen;
mod gpu_failure;
mod ignored;
mod kept;
mod leftovers;
mod network;
mod order;
mod outage;
mod peers;
mod predictions;
mod quarantine;
mod refusals;
mod restarts;
mod review;
mod shares;
mod shown;
mod storm;
mod traps;
mod waking;
