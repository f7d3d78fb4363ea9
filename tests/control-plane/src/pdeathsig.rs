//! The one place with unsafe code: a child asks the kernel to be killed when its parent dies.

#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

/// Makes the child of `command` receive SIGKILL when the thread that spawned it ends.
///
/// The kernel ties the signal to the spawning *thread*, so the command is to be spawned by a thread that lives as long as the
/// process; [`crate::process::spawn`] has one.
pub(crate) fn kill_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: between fork and exec only async-signal-safe work is allowed. The closure makes two system calls (prctl and
    // getppid, through rustix, which calls the kernel directly), compares two integers that were copied in, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above; its death then sends nothing.
            if getppid() == Some(parent) {
                Ok(())
            } else {
                Err(std::io::Error::from(rustix::io::Errno::SRCH))
            }
        });
    }
}
