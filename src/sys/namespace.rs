//! Network namespaces: made and entered on threads that exist only for that.
//!
//! A thread of a pool must never `setns`: whatever runs on it later would be in the wrong namespace.

use super::explain;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The network namespace of the calling thread.
pub fn current_network() -> io::Result<OwnedFd> {
    let path = "/proc/thread-self/ns/net";
    Ok(File::open(path).map_err(|error| explain(path, error))?.into())
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
