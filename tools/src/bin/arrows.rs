//! Checks src/ against the house rules of `tools::arrows`. Run from the top of the project; exit code 1 on violations.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tools::arrows::check_file;

fn main() -> Result<ExitCode> {
    let root = Path::new("src");
    let mut files = Vec::new();
    rust_files(root, &mut files)?;
    files.sort();
    anyhow::ensure!(!files.is_empty(), "no source files below src/: run from the top of the project");
    let mut violations = 0;
    for file in &files {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let path = file.strip_prefix(root)?.to_string_lossy();
        for violation in check_file(&path, &text) {
            println!("{violation}");
            violations += 1;
        }
    }
    println!("arrows: {} files, {violations} violations", files.len());
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}
