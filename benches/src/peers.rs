//! Other gang schedulers, built from the Go modules in `benches/peers` when somebody asks for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use muster_control_plane::build_tools;

use crate::contender::Contender;
use crate::{coscheduling, kai};

/// Folder below cargo's target folder in which they are kept.
const KIND: &str = "peers";

/// Where each peer's programs are, or why they are not.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    folders: BTreeMap<Contender, Result<PathBuf, String>>,
}

impl Peers {
    /// Builds those that are among the contenders; finds them when that was done before. One that
    /// cannot be built is remembered with the reason, so that the others still run.
    pub fn build(contenders: &[Contender]) -> Peers {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let mut folders = BTreeMap::new();
        for contender in contenders {
            let manifests: &[_] = match contender {
                Contender::Coscheduling => &coscheduling::MANIFESTS,
                Contender::Kai => &kai::MANIFESTS,
                _ => continue,
            };
            let built = build_tools(KIND, &source.join(contender.name()), manifests);
            folders.insert(*contender, built.map_err(|error| error.to_string()));
        }
        Peers { folders }
    }

    /// The folder with a peer's programs.
    ///
    /// # Errors
    /// When the build failed, with what it said.
    pub fn folder(&self, contender: Contender) -> anyhow::Result<&Path> {
        let built = self.folders.get(&contender);
        match built.with_context(|| format!("{} was not built", contender.name()))? {
            Ok(folder) => Ok(folder),
            Err(why) => bail!("{why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_could_not_be_built_says_why_where_it_was_to_run() {
        let peers = Peers {
            folders: [(Contender::Kai, Err("no Go toolchain".to_owned()))].into(),
        };
        let said = peers.folder(Contender::Kai).unwrap_err();
        assert_eq!(said.to_string(), "no Go toolchain");
        let said = peers.folder(Contender::Coscheduling).unwrap_err();
        assert_eq!(said.to_string(), "coscheduling was not built");
        assert!(Peers::build(&[Contender::Plain]).folders.is_empty());
    }
}
