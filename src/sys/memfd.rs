//! A sealed copy of this program in memory.
//!
//! Task launchers run from the copy, so that a container that opens `/proc/1/exe` for writing meets seals and not
//! the host's binary (CVE-2019-5736). It also pins the version: an upgrade of the file on disk does not change
//! what a running daemon starts.

use super::{check, explain};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `MFD_EXEC` of Linux 6.3, where `vm.memfd_noexec` may otherwise take the execute bit away.
const MFD_EXEC: libc::c_uint = 0x10;

/// Copies this process's executable into a memfd and seals it against every change.
pub fn sealed_self() -> io::Result<OwnedFd> {
    let mut source = File::open("/proc/self/exe").map_err(|error| explain("open /proc/self/exe", error))?;
    let mut copy = File::from(create(c"formic")?);
    io::copy(&mut source, &mut copy).map_err(|error| explain("copy the program into memory", error))?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: F_ADD_SEALS takes an integer.
    check(unsafe { libc::fcntl(copy.as_raw_fd(), libc::F_ADD_SEALS, seals) })
        .map_err(|error| explain("seal the program's copy", error))?;
    Ok(copy.into())
}

fn create(name: &CStr) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    let with = |flags| {
        // SAFETY: the name is a C string that outlives the call.
        check(unsafe { libc::memfd_create(name.as_ptr(), flags) })
    };
    let fd = with(flags | MFD_EXEC)
        .or_else(|error| if error.raw_os_error() == Some(libc::EINVAL) { with(flags) } else { Err(error) })
        .map_err(|error| explain("memfd_create", error))?;
    // SAFETY: memfd_create has just opened it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
