//! The two mount operations that `nix` does not wrap: attributes of a whole tree, and the mount table.

use super::{check, explain};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// `struct mount_attr` of `linux/mount.h`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const AT_RECURSIVE: libc::c_uint = 0x8000;

/// Makes the mount at `path` and all below it read-only and free of devices. Linux 5.12 does it at once; before
/// that each mount is remounted.
pub fn lock_tree(path: &Path) -> io::Result<()> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let attributes =
        MountAttributes { set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, clear: 0, propagation: 0, user_namespace: 0 };
    // SAFETY: the path and the attributes outlive the call; the size is that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            text.as_ptr(),
            AT_RECURSIVE,
            &attributes,
            std::mem::size_of::<MountAttributes>(),
        )
    };
    match check(result as libc::c_int) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            for point in mounts_below(path)? {
                remount(&point, MsFlags::MS_RDONLY | MsFlags::MS_NODEV)?;
            }
            Ok(())
        }
        Err(error) => Err(explain(format_args!("make {} read-only", path.display()), error)),
    }
}

/// Adds flags to a bind mount and keeps those it has: in a user namespace they are locked.
pub fn remount(path: &Path, add: MsFlags) -> io::Result<()> {
    let has = statvfs(path).map_err(|error| explain(path.display(), error))?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | add;
    for (set, flag) in [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if has.contains(set) {
            flags |= flag;
        }
    }
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .map_err(|error| explain(format_args!("remount {}", path.display()), error))
}

/// The mount points at or below `path` in this mount namespace, the upper ones first.
pub fn mounts_below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(|error| explain("/proc/self/mountinfo", error))?;
    Ok(mount_points(&table).into_iter().filter(|point| point.starts_with(path)).collect())
}

/// The mount points in the text of `/proc/self/mountinfo`, in its order: parents before what is mounted on them.
pub(super) fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsString::from_vec(unescape(field))))
        .collect()
}

/// Space, tab, newline and backslash stand as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                out.push(value);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}
