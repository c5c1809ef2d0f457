//! The first process of a task (pid 1 of its namespace): builds the root, gives up privileges, starts the
//! command, and then does what an init must: reap orphans, pass signals on, end with the command's code. Its
//! end is the end of everything in the namespace.

use super::{OpenFiles, TaskSpec, become_container, command, hold_no_stdio, open_null, root};
use crate::sys::explain;
use crate::sys::process::{self, Fork};
use crate::sys::seqpacket::SeqPacket;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use std::io::{self, PipeWriter, Write};

/// What is passed on to the command. Blocked signals reach a pid 1 even from its namespace; their default action
/// never does.
const PASSED_ON: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Answers the exit code. `ready` gets a byte when the command is forked.
pub(super) fn run(
    spec: &TaskSpec,
    open_files: OpenFiles,
    control: &SeqPacket,
    mut ready: &PipeWriter,
) -> io::Result<i32> {
    // From here on signals wait for `supervise`.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    sethostname(&spec.hostname).map_err(|error| explain("set the hostname", error))?;
    root::enter(spec)?;
    become_container()?;
    let child = match process::fork()? {
        Fork::Child => process::exit_now(command::execute(&spec.command, open_files, control).unwrap_or(126)),
        Fork::Parent(child) => child,
    };
    ready.write_all(&[1])?;
    // Container code runs: nothing of the helper's may be found here any more. Then we may be looked at.
    hold_no_stdio(&open_null()?)?;
    process::close_from(3)?;
    prctl::set_dumpable(true)?;
    supervise(child)
}

fn supervise(command: Pid) -> io::Result<i32> {
    let signals = SigSet::all();
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(command)? {
                    return Ok(code);
                }
            }
            Ok(signal) if PASSED_ON.contains(&signal) => {
                // It may have just ended; its SIGCHLD follows.
                let _ = kill(command, signal);
            }
            // Nothing that concerns the command, or a real-time signal.
            Ok(_) | Err(_) => {}
        }
    }
}

/// Reaps all that ended; the command's code if it is among them.
fn reap(command: Pid) -> io::Result<Option<i32>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(child, code)) if child == command => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(child, signal, _)) if child == command => return Ok(Some(128 + signal as i32)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
