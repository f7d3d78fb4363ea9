//! `muster-scheduler demo`: a whole cluster in this process, with fake GPUs, to watch.
//!
//! ```text
//!   laptop: the embedded API server, stand-ins for kube-scheduler, training-operator and kubelets,
//!           a fleet of fake agents over real gRPC, and this scheduler, unchanged
//!   story:  what is submitted and what goes wrong, second by second
//!   look:   the API's objects, read twice a second: picture, changes, and what must always hold
//! ```
//!
//! The scheduler that runs here is the one that runs in production: it knows nothing of the demo.

mod laptop;
mod look;
mod screen;
mod story;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use laptop::Laptop;
use look::Look;
use story::Story;

/// Exit code of a demo that Ctrl-C ends before the end of its story, as shells have it: 128 and the signal's
/// number.
pub const INTERRUPTED: u8 = 130;

/// How often the picture is drawn.
const FRAME: Duration = Duration::from_millis(500);

/// Show gangs being placed on fake GPUs, in this process, for about 50 seconds.
#[derive(Debug, Args)]
pub struct Demo {
    /// Keep the cluster up after the story, until Ctrl-C, for kubectl.
    #[arg(long)]
    hold: bool,
    /// GPU nodes, with 8 fake H100s each, in two tainted pools.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(30..=2000))]
    nodes: u16,
    /// Print a line per change instead of the picture. The default where the output is no terminal.
    #[arg(long)]
    plain: bool,
}

/// The exit code of a demo; an error, which is another one, when something broke, whoever ended it, or when it was told to
/// its end and `missing` did not come out.
fn outcome(broken: &[String], interrupted: bool, missing: Option<String>) -> anyhow::Result<u8> {
    if let Some(first) = broken.first() {
        anyhow::bail!("{} invariants broke, the first: {first}", broken.len());
    }
    if interrupted {
        return Ok(INTERRUPTED);
    }
    match missing {
        Some(what) => anyhow::bail!("the story did not end as it should: {what}"),
        None => Ok(0),
    }
}

impl Demo {
    /// Runs the story. An error when something that must always hold did not, or the story did not
    /// end as it should. [`INTERRUPTED`] when its user ended it before.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        crate::cli::install_provider();
        if std::env::var_os("RUST_LOG").is_some() {
            crate::logs::start();
        }
        let plain = self.plain || !std::io::stdout().is_terminal();
        let mut out = std::io::stdout();
        let mut laptop = Laptop::start(usize::from(self.nodes)).await?;
        let how = format!(
            "A cluster of {} nodes with 8 fake H100s each, and 2 without GPUs, runs in this process. Look at it with:\n  \
             export KUBECONFIG={}\n  kubectl get gangs\n  muster-scheduler dump --from {} | muster-scheduler plan --dump -\n\n",
            self.nodes,
            laptop.kubeconfig.display(),
            laptop.pages
        );
        out.write_all(how.as_bytes())?;
        let started = Instant::now();
        let mut look = Look::new(started);
        let mut story = Story::new();
        // One for all of it: a signal that comes while something is drawn is not lost.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut interrupted = false;
        loop {
            let said = story.tell(&laptop, started.elapsed())?;
            look.note(said);
            look.take(&laptop);
            if plain {
                look.print_changes(&mut out)?;
            } else {
                screen::draw(&mut out, &look, started.elapsed(), &how)?;
            }
            if story.is_over(started.elapsed()) {
                break;
            }
            tokio::select! {
                biased;
                ended = laptop.scheduler.ended() => anyhow::bail!("the scheduler ended: {ended}"),
                _ = interrupt.recv() => {
                    interrupted = true;
                    break;
                }
                () = tokio::time::sleep(FRAME) => {}
            }
        }
        look.summary(&laptop, &mut out)?;
        let ended = story.missing(&look);
        if self.hold && !interrupted {
            self.hold(&mut laptop, &mut look, &mut out, &mut interrupt)
                .await?;
        }
        // What broke while it was held counts as well.
        let broken = look.broken(&laptop);
        laptop.stop().await;
        let code = outcome(&broken, interrupted, ended)?;
        if code == INTERRUPTED {
            let after = started.elapsed().as_secs();
            writeln!(
                out,
                "Ended by Ctrl-C after {after} s, before the end of the story."
            )?;
        }
        Ok(ExitCode::from(code))
    }

    /// Keeps the cluster up and prints what changes, until Ctrl-C.
    async fn hold(
        &self,
        laptop: &mut Laptop,
        look: &mut Look,
        out: &mut impl std::io::Write,
        interrupt: &mut Signal,
    ) -> anyhow::Result<()> {
        writeln!(
            out,
            "\nThe cluster stays up until Ctrl-C. Try your own job:"
        )?;
        writeln!(
            out,
            "  export KUBECONFIG={}\n  kubectl apply -f my-pytorchjob.yaml\n  kubectl get gangs -w\n  muster-scheduler dump --from {} | muster-scheduler plan --dump -\n",
            laptop.kubeconfig.display(),
            laptop.pages
        )?;
        loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => return Ok(()),
                ended = laptop.scheduler.ended() => anyhow::bail!("the scheduler ended: {ended}"),
                () = tokio::time::sleep(FRAME) => {}
            }
            look.take(laptop);
            look.print_changes(out)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_demo_in_which_something_broke_or_did_not_come_out_fails() {
        let broke = vec!["DEV-1: one".to_owned(), "GANG-1: another".to_owned()];
        let missing = Some("gang train should be Running".to_owned());
        let cases = [
            (&[][..], false, None, Ok(0)),
            (&[], true, None, Ok(INTERRUPTED)),
            // Nobody can say how it would have ended.
            (&[], true, missing.clone(), Ok(INTERRUPTED)),
            (
                &[],
                false,
                missing.clone(),
                Err("the story did not end as it should: gang train should be Running"),
            ),
            (
                &broke,
                false,
                None,
                Err("2 invariants broke, the first: DEV-1: one"),
            ),
            (
                &broke,
                true,
                missing,
                Err("2 invariants broke, the first: DEV-1: one"),
            ),
        ];
        for (broken, interrupted, missing, wanted) in cases {
            let found = outcome(broken, interrupted, missing).map_err(|error| error.to_string());
            assert_eq!(
                found,
                wanted.map_err(str::to_owned),
                "{broken:?} {interrupted}"
            );
        }
    }
}
