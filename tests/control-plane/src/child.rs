//! A program of the caller's without a cluster around it.

use std::path::Path;
use std::process::Command;

use crate::error::{Error, Result};
use crate::process::{ProgramSpec, Running};
use crate::usage::Usage;

/// A child process that ends with this process at the latest, its output in a log. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    name: String,
    spec: ProgramSpec,
    running: Running,
}

impl Child {
    /// Starts a program. Arguments and changed environment variables of `command` are kept for
    /// [`Child::start_again`]; its standard streams and working folder are not. Output is appended to `log`.
    ///
    /// # Errors
    /// The program or its log cannot be opened.
    pub fn start(name: &str, command: &Command, log: &Path) -> Result<Self> {
        let spec = ProgramSpec::of(command, log);
        let running = spec.start()?;
        Ok(Self {
            name: name.to_owned(),
            spec,
            running,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// What it costs, with the processes that it has started.
    ///
    /// # Errors
    /// It has ended.
    pub fn usage(&mut self) -> Result<Usage> {
        self.check_running()?;
        Usage::with_children(self.pid()).ok_or_else(|| self.exited("no status"))
    }

    /// An error with the end of its log when it has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.running.exited() {
            None => Ok(()),
            Some(status) => Err(self.exited(&status.to_string())),
        }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// Starts it again in the same way, after it was killed.
    ///
    /// # Errors
    /// The program or its log cannot be opened.
    pub fn start_again(&mut self) -> Result<()> {
        self.running.kill();
        self.running = self.spec.start()?;
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        self.spec.log_tail()
    }

    fn exited(&self, status: &str) -> Error {
        Error::Exited {
            program: self.name.clone(),
            status: status.to_owned(),
            log: self.spec.log.clone(),
            tail: self.spec.log_tail(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_can_be_killed_started_again_and_seen_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo $WORD; exec sleep 600"]);
        command.env("WORD", "hello");
        let mut child = Child::start("sleeper", &command, &log).unwrap();
        let first = child.pid();
        assert!(child.usage().unwrap().rss_bytes > 0);
        child.kill();
        let said = child.usage().unwrap_err().to_string();
        assert!(said.contains("sleeper exited"), "{said}");
        child.start_again().unwrap();
        assert_ne!(child.pid(), first);
        child.check_running().unwrap();
    }
}
