//! The privileged helper: the second process of the daemon, and the only one that may make namespaces, mounts and
//! devices.
//!
//! [`start`] forks it before the daemon has threads; the daemon then gives up every capability
//! ([`crate::sys::privileges::become_network_process`]) and asks over a `SOCK_SEQPACKET` socket for the fixed
//! [`verbs`]. The helper takes the asking process for possibly hostile: it acts only on tasks and images that it
//! made, below its own state directory.
//!
//! ```text
//!  network process  --verbs-->  helper  --fork, exec of a sealed copy-->  launcher  --fork-->  init (pid 1)
//!  (no capabilities) <-events-  (one thread)                              (waits)              |- command
//!                    <-TUN fds-                                                                '- orphans
//! ```
//!
//! Lives end downwards: when the daemon ends, its socket closes and the helper kills all tasks, cleans up and
//! ends; when the helper is killed, PDEATHSIG ends the launchers and with them the inits, whose pid namespaces
//! take everything else along. What a killed helper leaves on disk, the next one removes at its start.
//!
//! Invariants: one thread (a PDEATHSIG follows the forking *thread*; the network namespaces' threads end before
//! the verb is answered); the state directory belongs to one helper at a time (a lock); nothing secret in argv.

mod client;
mod copy;
mod server;
pub mod shim;
pub mod verbs;

pub use client::{HelperClient, HelperHandle, Stdio};

use crate::sys::process::{self, Fork};
use crate::sys::seqpacket::SeqPacket;
use crate::sys::tun::TunDevice;
use crate::sys::{explain, privileges};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// How long the daemon waits for the helper's first word: it may wait for a predecessor to end and remove what
/// that left.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How the helper is set up.
#[derive(Debug, Clone)]
pub struct HelperOptions {
    /// The daemon's state directory; made when missing. The helper uses `tasks/` and `images/` below it.
    pub state_dir: PathBuf,
    /// What tasks with image `host` must not see beside the state directory: the API's socket.
    pub hidden: Vec<PathBuf>,
    /// Whether tasks may use the host's own files as their image.
    pub host_image: bool,
}

/// Forks the helper and waits until it is ready. To be called first, while the process has one thread and all its
/// capabilities. Errors name the cause: a missing capability, a state directory in use.
pub fn start(options: &HelperOptions) -> io::Result<HelperHandle> {
    process::require_single_thread()?;
    privileges::check_needed()?;
    TunDevice::check_available()?;
    let (ours, theirs) = SeqPacket::pair()?;
    match process::fork()? {
        Fork::Child => {
            drop(ours);
            let result = std::panic::catch_unwind(|| server::run(&theirs, options));
            process::exit_now(i32::from(!matches!(result, Ok(Ok(())))))
        }
        Fork::Parent(helper) => {
            drop(theirs);
            wait_until_ready(&ours)?;
            Ok(HelperHandle { socket: ours, helper })
        }
    }
}

fn wait_until_ready(socket: &SeqPacket) -> io::Result<()> {
    if !socket.wait_readable(Some(READY_TIMEOUT))? {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the helper process does not get ready"));
    }
    let mut buffer = vec![0; verbs::MAX_MESSAGE_BYTES];
    let received = socket.receive(&mut buffer)?.ok_or_else(|| io::Error::other("the helper process ended"))?;
    match verbs::decode(buffer.get(..received.length).unwrap_or_default()) {
        Ok(verbs::Message::Ready(Ok(()))) => Ok(()),
        Ok(verbs::Message::Ready(Err(text))) => Err(io::Error::other(text)),
        _ => Err(explain("the helper process", io::Error::other("spoke out of turn"))),
    }
}
