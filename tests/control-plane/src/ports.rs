//! Free loopback ports that stay free while a program is down.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

/// First port used. Ports of the kernel's ephemeral range (32768 and up) are avoided: an outgoing connection could take the port of
/// the API server while it is restarted.
const FIRST: u32 = 12_000;
/// Number of ports used.
const COUNT: u32 = 20_000;

/// A port on 127.0.0.1 that nobody listens on at this moment.
///
/// Processes start at different places and walk in different steps, so that clusters of parallel tests rarely want the same one; a
/// clash that happens anyway shows as a program that can't bind, and the whole start is tried again.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = std::process::id().wrapping_mul(2_654_435_761) % COUNT;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(7, Ordering::Relaxed);
        let port = FIRST + (base.wrapping_add(step)) % COUNT;
        let Ok(port) = u16::try_from(port) else {
            continue;
        };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(Error::Invalid {
        field: "free loopback ports".into(),
        value: "0".into(),
        limit: format!("at least 1 of {FIRST} to {}", FIRST + COUNT - 1),
    })
}
