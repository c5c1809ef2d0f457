//! Copies a directory tree: modes, times, hard links, symbolic links as they are, owners where permitted.
//! Devices, pipes and sockets are left out and counted; extended attributes are not copied.
//!
//! Every step goes from an open directory by one name and never through a link, so a tree that changes while it
//! is copied cannot lead outside.

use super::verbs::ImportSummary;
use crate::sys::explain;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Directories inside each other; each level costs two descriptors.
const MAX_DEPTH: usize = 200;
/// Entries of one tree: several times the largest images, and a stop for a tree without end.
const MAX_ENTRIES: u64 = 5_000_000;
/// Files with several names that are remembered to keep them one; beyond it they become copies.
const MAX_HARD_LINKS: usize = 100_000;

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

struct Copier {
    summary: ImportSummary,
    /// By device and inode: where the first name was copied to, relative to the target.
    links: HashMap<(u64, u64), PathBuf>,
    target: OwnedFd,
}

/// Copies `source` to the new directory `target`. On an error the part that was copied stays.
pub(super) fn copy_tree(source: &Path, target: &Path) -> io::Result<ImportSummary> {
    let from = open(source, DIRECTORY, Mode::empty()).map_err(|error| explain(source.display(), error))?;
    nix::unistd::mkdir(target, Mode::S_IRWXU).map_err(|error| explain(target.display(), error))?;
    let to = open(target, DIRECTORY, Mode::empty()).map_err(|error| explain(target.display(), error))?;
    let mut copier = Copier { summary: ImportSummary::default(), links: HashMap::new(), target: to.try_clone()? };
    copier.directory(&from, &to, Path::new(""), 0)?;
    Ok(copier.summary)
}

impl Copier {
    /// Copies what is in a directory, then what describes it: filling it changes its times.
    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!("{}: nested deeper than {MAX_DEPTH} directories", path.display())));
        }
        for name in names_in(from)? {
            self.summary.entries += 1;
            if self.summary.entries > MAX_ENTRIES {
                return Err(io::Error::other(format!("more than {MAX_ENTRIES} entries")));
            }
            let path = path.join(OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, &name, &path, depth).map_err(|error| explain(path.display(), error))?;
        }
        describe(to, &fstat(from)?)
    }

    fn entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path, depth: usize) -> io::Result<()> {
        let status = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        match SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => {
                mkdirat(to, name, Mode::S_IRWXU)?;
                let from = openat(from, name, DIRECTORY, Mode::empty())?;
                let to = openat(to, name, DIRECTORY, Mode::empty())?;
                self.directory(&from, &to, path, depth + 1)
            }
            SFlag::S_IFREG => self.file(from, to, name, path, &status),
            SFlag::S_IFLNK => {
                symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?;
                let (uid, gid) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
                permitted(fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW))
            }
            _ => {
                self.summary.entries -= 1;
                self.summary.skipped += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path, status: &FileStat) -> io::Result<()> {
        let identity = (status.st_dev, status.st_ino);
        if status.st_nlink > 1 {
            if let Some(first) = self.links.get(&identity) {
                return Ok(linkat(&self.target, first, to, name, AtFlags::empty())?);
            }
            if self.links.len() < MAX_HARD_LINKS {
                self.links.insert(identity, path.to_owned());
            }
        }
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mut source = File::from(openat(from, name, read, Mode::empty())?);
        let status = fstat(&source)?;
        if SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) != SFlag::S_IFREG {
            return Err(io::Error::other("changed while it was copied"));
        }
        let mut target = File::from(openat(to, name, write, Mode::S_IRUSR | Mode::S_IWUSR)?);
        self.summary.bytes += io::copy(&mut source, &mut target)?;
        describe(&target, &status)
    }
}

fn names_in(directory: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut dir = Dir::openat(directory, ".", DIRECTORY, Mode::empty())?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Gives an open file the owner, mode and times. The owner first: changing it takes the setuid bit away.
fn describe(file: &impl AsFd, status: &FileStat) -> io::Result<()> {
    permitted(fchown(file, Some(Uid::from_raw(status.st_uid)), Some(Gid::from_raw(status.st_gid))))?;
    fchmod(file, Mode::from_bits_truncate(status.st_mode))?;
    let accessed = TimeSpec::new(status.st_atime, status.st_atime_nsec);
    let modified = TimeSpec::new(status.st_mtime, status.st_mtime_nsec);
    permitted(futimens(file, &accessed, &modified))
}

/// In a user namespace most owners do not exist.
fn permitted(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::EPERM | Errno::EINVAL | Errno::EOVERFLOW) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
