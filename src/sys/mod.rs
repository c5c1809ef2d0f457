//! Every `unsafe` and every raw system call of Formic, behind safe wrappers: one folder to audit.
//!
//! It holds no policy: who may ask for a device, a namespace or a capability is decided by the callers
//! ([`crate::helper`] above all). Each file wraps one family of calls, each `unsafe` block says why it is sound,
//! and each error names its cause.
//!
//! Linux 5.10 or newer is expected (`close_range`, `pidfd_open`, `setns` on a pidfd).

pub mod clock;
pub mod confine;
pub mod erase;
pub mod interface;
pub mod memfd;
pub mod mount;
pub mod namespace;
pub mod poll;
pub mod privileges;
pub mod process;
pub mod random;
pub mod seqpacket;
pub mod steer;
pub mod tun;
pub mod udp;
pub mod uevent;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Opens a file that is there to be locked, and makes it if there is none. For reading: a file that is open for writing
/// keeps its file system from being made read-only.
pub(crate) fn open_lock_file(path: &Path) -> io::Result<File> {
    let make = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make().and_then(|_| File::open(path)),
        other => other,
    }
}

/// An error with the same kind, and the words of what was being done before it.
pub(crate) fn explain(what: impl std::fmt::Display, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// The result of a libc call that answers -1 and sets `errno`.
pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests;
