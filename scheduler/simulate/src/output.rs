//! The folder with the results.

use std::path::Path;

use muster_core::state::State;

use crate::error::Error;

/// Makes sure that the folder is there, and empty unless `force` is given.
pub fn prepare(folder: &Path, force: bool) -> Result<(), Error> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    if !force && entries.next().is_some() {
        let limit = "must be empty or not there yet; --force writes into it nevertheless";
        return Err(Error::flag("--out", folder.display(), limit));
    }
    Ok(())
}

/// Writes a file of the folder.
pub fn write(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(Error::io(&path))
}

/// Writes what the planner sees.
pub fn write_dump(path: &Path, state: &State) -> Result<(), Error> {
    let text = muster_dump::write(state).map_err(std::io::Error::other);
    let written = text.and_then(|text| std::fs::write(path, text));
    written.map_err(Error::io(path))
}
