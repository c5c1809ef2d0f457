//! The helper's directories: made, locked, and freed of what a killed predecessor left.

use super::Paths;
use crate::sys::{explain, mount, open_lock_file};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, umount2};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A predecessor whose daemon was killed needs a moment to end; a second daemon never gives way.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Ownership of a state directory.
pub(super) type Lock = Flock<File>;

/// Makes a directory that only root enters, and its parents.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| explain(format_args!("make {}", path.display()), error))
}

/// Takes the state directory for this helper alone.
pub(super) fn lock(state: &Path) -> io::Result<Lock> {
    let path = state.join("helper.lock");
    let mut file = open_lock_file(&path).map_err(|error| explain(path.display(), error))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = back;
                std::thread::sleep(LOCK_RETRY);
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                let text = format!("another formic daemon uses the state directory {}", state.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            Err((_, error)) => return Err(explain(path.display(), error)),
        }
    }
}

/// Removes all tasks' directories and unfinished or replaced images, unmounting what is mounted below.
pub(super) fn remove(paths: &Paths) -> io::Result<()> {
    unmount_below(&paths.tasks)?;
    unmount_below(&paths.images)?;
    remove_tree(&paths.tasks)?;
    let entries = match std::fs::read_dir(&paths.images) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|error| explain(paths.images.display(), error))?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a directory and all in it, never following links. Nothing to remove is no error.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| explain(format_args!("remove {}", path.display()), error)),
    }
}

fn unmount_below(path: &Path) -> io::Result<()> {
    for point in mount::mounts_below(path)?.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)
            .map_err(|error| explain(format_args!("unmount {}", point.display()), error))?;
    }
    // Removing files through a mount that stayed would remove someone else's.
    match mount::mounts_below(path)?.first() {
        None => Ok(()),
        Some(point) => Err(io::Error::other(format!("{} cannot be unmounted", point.display()))),
    }
}
