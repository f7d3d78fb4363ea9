//! Free loopback ports that stay free while a program is down.

use std::fs::{File, create_dir_all};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// First port used. Ports of the kernel's ephemeral range (32768 and up) are avoided: an outgoing connection could take the port of
/// the API server while it is restarted.
const FIRST: u16 = 12_000;
/// Ports that a process takes at a time.
const BLOCK: u16 = 500;
/// How many times so many there are.
const BLOCKS: u16 = 40;

/// What this process has taken.
struct Taken {
    /// Of those blocks that are its own, as long as these files are open.
    locks: Vec<File>,
    /// The block that it takes ports of.
    ports: std::ops::Range<u16>,
}

static TAKEN: Mutex<Taken> = Mutex::new(Taken {
    locks: Vec::new(),
    ports: 0..0,
});

/// A port on 127.0.0.1 that nobody listens on at this moment, and that no other process gets from here as long as this one runs: each
/// has blocks of its own, by locks on files. One that is asked for twice gets another one.
pub fn free_port() -> Result<u16> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let free = |port: &u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
        if let Some(port) = taken.ports.find(free) {
            return Ok(port);
        }
        let (lock, ports) = next_block()?;
        taken.locks.push(lock);
        taken.ports = ports;
    }
}

/// The first block that no process has.
fn next_block() -> Result<(File, std::ops::Range<u16>)> {
    let folder = folder();
    create_dir_all(&folder).map_err(Error::io(format!("create {}", folder.display())))?;
    for block in 0..BLOCKS {
        let path = folder.join(block.to_string());
        let file = File::create(&path).map_err(Error::io(format!("open {}", path.display())))?;
        // Another one's, this process's own among them.
        if file.try_lock().is_ok() {
            let first = FIRST + block * BLOCK;
            return Ok((file, first..first + BLOCK));
        }
    }
    Err(Error::Invalid {
        field: "blocks of free loopback ports".into(),
        value: "0".into(),
        limit: format!("at least 1 of {BLOCKS}, of {BLOCK} ports each from {FIRST} on"),
    })
}

/// Locks are seen by all processes of a user.
fn folder() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    std::env::temp_dir().join(format!("muster-ports-{user}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two processes took one port for training-operator, which does not start then.
    #[test]
    fn ports_differ_and_a_block_that_is_taken_is_left_out() {
        let (lock, mine) = next_block().unwrap();
        let (_other, others) = next_block().unwrap();
        assert!(mine.end <= others.start || others.end <= mine.start);
        let ports: Vec<u16> = (0..BLOCK + 1).map(|_| free_port().unwrap()).collect();
        let mut different = ports.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), ports.len(), "more than one block of them");
        assert!(!ports.iter().any(|port| mine.contains(port)));
        drop(lock);
    }
}
