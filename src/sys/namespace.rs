//! Network namespaces: made and entered on threads that exist only for that.
//!
//! A thread of a pool must never `setns`: whatever runs on it later would be in the wrong namespace.

use super::{check, explain};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

/// The network namespace of the calling thread.
pub fn current_network() -> io::Result<OwnedFd> {
    let path = "/proc/thread-self/ns/net";
    Ok(File::open(path).map_err(|error| explain(path, error))?.into())
}

/// Where `ip netns add` keeps the namespaces that it makes.
const NAMED: &str = "/run/netns";
/// linux/nsfs.h: `_IO(0xb7, 1)`, the user namespace that a namespace belongs to; `_IO(0xb7, 3)`, what kind it is.
const NS_GET_USERNS: libc::c_ulong = 0xb701;
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// Opens the network namespace with this name, one file name, if somebody with this process's rights made it: neither
/// one of another user namespace, nor this process's own, nor anything that lies in a directory where others can put
/// files. Such are `PermissionDenied`, one that is not there `NotFound`.
pub fn open_named(name: &str) -> io::Result<OwnedFd> {
    let path = format!("{NAMED}/{name}");
    let refused = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, format!("{path}: {why}"));
    let directory = std::fs::metadata(NAMED).map_err(|error| explain(NAMED, error))?;
    if directory.uid() != nix::unistd::geteuid().as_raw() || directory.mode() & 0o022 != 0 {
        return Err(refused("others can put files in that directory"));
    }
    let mut options = std::fs::OpenOptions::new();
    // Not a link, and nothing whose opening does something: a pipe would wait for its writer.
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
    let file = options.open(&path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => refused("it is a link"),
        _ => explain(&path, error),
    })?;
    // SAFETY: NS_GET_NSTYPE takes no argument; a file that is no namespace answers ENOTTY.
    let kind = check(unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) });
    if kind.ok() != Some(libc::CLONE_NEWNET) {
        return Err(refused("it is no network namespace"));
    }
    // SAFETY: NS_GET_USERNS takes no argument.
    let owner = check(unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS as _) })
        .map_err(|_| refused("it belongs to a user namespace outside of this one"))?;
    // SAFETY: the call made this descriptor, and nobody else has it.
    let owner = File::from(unsafe { OwnedFd::from_raw_fd(owner) });
    if !same_file(&owner, &File::open("/proc/self/ns/user")?)? {
        return Err(refused("it belongs to another user namespace"));
    }
    if same_file(&file, &File::open("/proc/self/ns/net")?)? {
        return Err(refused("it is the host's own network"));
    }
    Ok(file.into())
}

fn same_file(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Runs `work` on a fresh thread in a fresh network namespace; answers its result and the namespace, which lives
/// as long as the descriptor or anything in it. The thread is gone when this returns.
pub fn in_new_network<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<(OwnedFd, T)> {
    on_fresh_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
            let missing = error == nix::errno::Errno::EPERM;
            let advice = if missing { " (the capability CAP_SYS_ADMIN is missing)" } else { "" };
            explain(format_args!("make a network namespace{advice}"), error)
        })?;
        Ok((current_network()?, work()?))
    })
}

/// Runs `work` on a fresh thread in the given network namespace.
pub fn in_network<T: Send>(namespace: impl AsFd, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = namespace.as_fd();
    on_fresh_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|error| explain("enter a network namespace", error))?;
        work()
    })
}

fn on_fresh_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("the namespace thread panicked"))?
    })
}
