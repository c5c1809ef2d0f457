//! Writes the manual page and the completions of shells into a directory: `manual DIR`.
#![forbid(unsafe_code)]

use anyhow::{Context as _, Result};
use std::path::PathBuf;

fn main() -> Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from).context("usage: manual DIR")?;
    std::fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
    for (name, text) in tools::manual::files(&formic::cli::definition(), env!("CARGO_PKG_VERSION")) {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
