//! Where the binary under test is.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// The release binary: `FORMIC_BIN`, or the newest `formic` of the target directory.
pub fn formic() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(find)
}

fn find() -> PathBuf {
    if let Some(path) = std::env::var_os("FORMIC_BIN") {
        return PathBuf::from(path);
    }
    let target = target_directory();
    let mut found: Vec<(SystemTime, PathBuf)> = candidates(&target)
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .collect();
    found.sort();
    match found.pop() {
        Some((_, path)) => path,
        None => panic!("no release binary below {}: run cargo build --release, or set FORMIC_BIN", target.display()),
    }
}

/// With a named target cargo puts a level between: `target/x86_64-unknown-linux-gnu/release`.
fn candidates(target: &Path) -> Vec<PathBuf> {
    let mut paths = vec![target.join("release/formic")];
    if let Ok(entries) = std::fs::read_dir(target) {
        paths.extend(entries.flatten().map(|entry| entry.path().join("release/formic")));
    }
    paths
}

fn target_directory() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).join("target"),
    }
}
