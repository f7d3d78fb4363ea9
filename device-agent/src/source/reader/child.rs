//! The reader's side: `muster-agent read-nvml`, started by the agent and by nobody else.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::wire::{Garbled, MESSAGE_MAX, Start, Word};
use crate::source::Update;
use crate::source::nvml::{self, Outlet};

/// Why a reader cannot read.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// Somebody else has started it.
    #[error(
        "standard input does not say what to read: the agent starts this by itself (see muster-agent run)"
    )]
    NotStarted(#[source] Garbled),
    /// Nobody is there to listen.
    #[error("the agent is gone")]
    Alone,
    /// The pipe.
    #[error("cannot speak with the agent")]
    Pipe(#[from] io::Error),
}

/// Reads until the agent ends this process, or the driver cannot be asked from it any more.
pub fn read() -> Result<(), NotRead> {
    let start = hear_start()?;
    die_with(start.parent)?;
    let outlet = Pipe {
        sign_interval: start.sign_interval,
        out: RefCell::new(io::stdout()),
        said: RefCell::new(Instant::now()),
    };
    nvml::run(&start.config, start.known, &outlet)?;
    Ok(())
}

fn hear_start() -> Result<Start, NotRead> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MESSAGE_MAX).unwrap_or(u64::MAX);
    io::stdin().take(limit).read_to_end(&mut bytes)?;
    let start = Start::decode(&bytes).map_err(NotRead::NotStarted)?;
    if start.parent == 0 {
        return Err(NotRead::NotStarted(Garbled::Empty));
    }
    Ok(start)
}

/// Has the kernel kill this process when the one that has started it is gone: it may hang in the driver just then.
fn die_with(parent: i32) -> Result<(), NotRead> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    // It may have gone before that.
    if getppid() != Pid::from_raw(parent) {
        return Err(NotRead::Alone);
    }
    Ok(())
}

/// Words to the agent, by standard output.
struct Pipe {
    sign_interval: Duration,
    out: RefCell<io::Stdout>,
    said: RefCell<Instant>,
}

impl Pipe {
    fn say(&self, word: &Word) -> io::Result<()> {
        let mut out = self.out.borrow_mut();
        out.write_all(&word.encode())?;
        out.flush()?;
        *self.said.borrow_mut() = Instant::now();
        Ok(())
    }
}

impl Outlet for Pipe {
    fn tell(&self, update: Update) -> io::Result<()> {
        self.say(&Word::Update(update))
    }

    fn alive(&self) -> io::Result<()> {
        if self.said.borrow().elapsed() < self.sign_interval {
            return Ok(());
        }
        self.say(&Word::Alive)
    }
}
