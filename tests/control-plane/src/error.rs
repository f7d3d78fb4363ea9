//! What can go wrong while a control plane is built, started or used.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// A failure of the control plane or of a request to it, one variant per cause that a caller can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The Go toolchain is needed to build the programs, and no `go` is in PATH.
    #[error(
        "no Go toolchain: `go` is not in PATH, and the control plane is built with it; install Go 1.26 or newer \
         (https://go.dev/doc/install), or set {env} to a folder of ready binaries",
        env = crate::binaries::BIN_ENV
    )]
    NoGoToolchain,
    /// The folder of ready binaries lacks one of the programs.
    #[error("program {program} is missing in {}, the folder named by {env}", folder.display(), env = crate::binaries::BIN_ENV)]
    MissingProgram {
        /// The file name looked for.
        program: String,
        /// The folder looked in.
        folder: PathBuf,
    },
    /// A Go command failed.
    #[error("{what} failed in {}:\n{log}", folder.display())]
    Go {
        /// The command, in words.
        what: String,
        /// The module's folder.
        folder: PathBuf,
        /// The end of what it printed.
        log: String,
    },
    /// A file, folder, socket or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, to what.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A key or certificate could not be made.
    #[error("certificate for {subject}: {source}")]
    Certificate {
        /// Whom the certificate names.
        subject: String,
        /// The generator's answer.
        source: rcgen::Error,
    },
    /// A program ended although it was to go on running.
    #[error("{program} exited with {status}; log {}:\n{tail}", log.display())]
    Exited {
        /// The program's name.
        program: String,
        /// Its exit status, as text.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The last 30 lines of the log.
        tail: String,
    },
    /// A program did not become ready in time.
    #[error("{program} not ready after {waited:?} ({detail}); log {}:\n{tail}", log.display())]
    NotReady {
        /// The program's name.
        program: String,
        /// How long was waited.
        waited: Duration,
        /// The last answer of its probe.
        detail: String,
        /// Its log file.
        log: PathBuf,
        /// The last 30 lines of the log.
        tail: String,
    },
    /// A program that was never started was asked for.
    #[error("program {program} was never started in this cluster")]
    NotStarted {
        /// The program's name.
        program: String,
    },
    /// A program is running already and can't be started twice.
    #[error("program {program} is running already with pid {pid}")]
    AlreadyRunning {
        /// The program's name.
        program: String,
        /// The running process.
        pid: u32,
    },
    /// A request to the API server failed.
    #[error("{what}: {source}")]
    Api {
        /// What was being done, to what.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// A state that was waited for did not come.
    #[error("{what} did not happen within {waited:?}: {detail}")]
    Timeout {
        /// The state waited for.
        what: String,
        /// How long was waited.
        waited: Duration,
        /// The last state seen.
        detail: String,
    },
    /// An argument is out of its range.
    #[error("{field} is {value}, allowed is {limit}")]
    Invalid {
        /// The argument's name.
        field: String,
        /// The value given.
        value: String,
        /// What is allowed.
        limit: String,
    },
    /// The API server refuses objects.
    #[error("{what}: {refused}")]
    Refused {
        /// What was being done.
        what: String,
        /// Each object and what is said of it, a line each.
        refused: String,
    },
    /// A command such as etcdutl ended with an error.
    #[error("{command} exited with {status}: {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status, as text.
        status: String,
        /// What it wrote to standard error.
        stderr: String,
    },
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
        let what = what.into();
        move |source| Error::Api {
            what,
            source: Box::new(source),
        }
    }

    /// The same error, naming the place where the logs were kept instead of the cluster's folder, which is gone.
    pub(crate) fn with_logs_in(mut self, kept: Option<&Path>) -> Self {
        if let (Error::Exited { log, .. } | Error::NotReady { log, .. }, Some(kept)) =
            (&mut self, kept)
            && let Some(name) = log.file_name()
        {
            *log = kept.join(name);
        }
        self
    }

    /// Whether a program died because somebody else took its port between choosing and binding it.
    pub(crate) fn is_port_clash(&self) -> bool {
        matches!(self, Error::Exited { tail, .. } if tail.contains("address already in use"))
    }
}
