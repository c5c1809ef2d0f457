//! The launcher: what the helper executes (from a sealed copy of this program) to start a task, or a command in
//! one. It receives its specification over a socket, never in argv: the environment may hold secrets.
//!
//! For a task: enter the network namespace, make the mount, UTS, IPC, pid (and cgroup) namespaces, fork the
//! init that builds the root and runs the command; then wait and end with its code. For a command: enter the
//! namespaces of the task's init, fork it, wait.
//!
//! Descriptors at its start: 0-2 of the command, 3 the socket to the helper, 4 the network namespace or the
//! pidfd of the task's init. It is not traceable and holds nothing that a container should get hold of once
//! container code runs.

mod command;
mod init;
mod root;

use crate::helper::verbs::{CommandSpec, MAX_MESSAGE_BYTES, VerbError, decode, encode};
use crate::sys::process::{self, Fork, PidFd};
use crate::sys::seqpacket::SeqPacket;
use crate::sys::{explain, privileges};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::rlim_t;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, setgroups};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// How a launcher is told from the `formic` that people run.
const NAME: &CStr = c"formic-task";
const CONTROL_FD: i32 = 3;
const TARGET_FD: i32 = 4;
/// Exit code of a launcher that could not do its work; the helper reports the text, not the code.
const FAILED: i32 = 125;
/// Bytes by which a specification may exceed the request it comes from: paths and addresses.
const SPEC_EXTRA_BYTES: usize = 16 * 1024;

/// Whose files a task sees.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum RootSpec {
    /// The host's, but for these paths.
    Host { hidden: Vec<PathBuf> },
    /// An image's, copy-on-write.
    Image { dir: PathBuf },
}

/// A task to be launched.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TaskSpec {
    pub(super) root: RootSpec,
    /// The task's own directory on the host; `root` in it is where its root is mounted.
    pub(super) work_dir: PathBuf,
    pub(super) hostname: String,
    pub(super) addresses: Vec<IpNet>,
    pub(super) command: CommandSpec,
}

/// A command to be executed in a task.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ExecSpec {
    pub(super) command: CommandSpec,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum LaunchSpec {
    Task(TaskSpec),
    Exec(ExecSpec),
}

/// What a launcher says to the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Status {
    /// The init or command runs under this id of the host; its pidfd is beside the message.
    Started { pid: u32 },
    /// It could not be made; the launcher ends.
    Failed { text: String },
    /// The command could not be executed; its process ends with 126 or 127.
    NotExecuted { text: String },
}

type OpenFiles = (rlim_t, rlim_t);

/// The bytes of the message that a launcher reads first.
pub(super) fn encode_launch(spec: &LaunchSpec, open_files: OpenFiles) -> Result<Vec<u8>, VerbError> {
    encode(&(spec, open_files))
}

/// Executes a launcher. The specification waits in its socket.
pub(super) fn spawn(
    program: &OwnedFd,
    stdio: &[OwnedFd; 3],
    control: &SeqPacket,
    target: BorrowedFd<'_>,
) -> io::Result<Pid> {
    let [input, output, error] = stdio;
    process::spawn_program(program, NAME, &[input.as_fd(), output.as_fd(), error.as_fd(), control.as_fd(), target])
}

/// Runs as a launcher when this process was executed as one, and never returns then. The first thing in `main`:
/// a launcher parses no arguments, starts no threads and reads no configuration.
pub fn run_if_shim() {
    let is_launcher = std::env::args_os().next().is_some_and(|name| name.as_encoded_bytes() == NAME.to_bytes());
    if is_launcher {
        process::exit_now(run().unwrap_or_else(|error| {
            eprintln!("formic-task: {error} (only the formic daemon starts it)");
            FAILED
        }));
    }
}

/// Answers the exit code. Errors only when there is no helper to tell.
fn run() -> io::Result<i32> {
    let control = SeqPacket::from_fd(process::inherited_fd(CONTROL_FD)?)?;
    let target = process::inherited_fd(TARGET_FD)?;
    process::set_close_on_exec(&control)?;
    process::set_close_on_exec(&target)?;
    // The host's, opened before a container's could be meant.
    let null = open_null()?;
    let launched = prepare(&control).and_then(|(spec, open_files)| match spec {
        LaunchSpec::Task(spec) => launch_task(&spec, open_files, &control, target),
        LaunchSpec::Exec(spec) => launch_exec(&spec, open_files, &control, target),
    });
    match launched {
        Ok(child) => {
            drop(control);
            hold_no_stdio(&null)?;
            wait_for(&child)
        }
        Err(error) => {
            tell(&control, &Status::Failed { text: error.to_string() });
            Ok(FAILED)
        }
    }
}

fn prepare(control: &SeqPacket) -> io::Result<(LaunchSpec, OpenFiles)> {
    prctl::set_dumpable(false)?;
    // The sealed copy's name would be shown otherwise.
    prctl::set_name(NAME)?;
    // Executing this program may have cleared it.
    process::die_with_parent()?;
    if control.is_peer_closed()? {
        return Err(io::Error::other("the helper is gone"));
    }
    let mut buffer = vec![0; MAX_MESSAGE_BYTES + SPEC_EXTRA_BYTES];
    let received = control.receive(&mut buffer)?.ok_or_else(|| io::Error::other("no specification"))?;
    decode(buffer.get(..received.length).unwrap_or_default()).map_err(|error| io::Error::other(error.text))
}

fn tell(control: &SeqPacket, status: &Status) {
    if let Ok(bytes) = encode(status) {
        // A helper that is gone has taken us along already.
        let _ = control.send(&bytes, &[]);
    }
}

fn launch_task(spec: &TaskSpec, open_files: OpenFiles, control: &SeqPacket, namespace: OwnedFd) -> io::Result<Child> {
    setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|error| explain("enter the task's network", error))?;
    drop(namespace);
    let namespaces =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWPID;
    unshare(namespaces).map_err(|error| explain("make the task's namespaces", error))?;
    // A comfort: without it the container sees the host's cgroup paths.
    let _ = unshare(CloneFlags::CLONE_NEWCGROUP);
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|error| explain("make the mounts private", error))?;
    let (mut ready, writer) = io::pipe()?;
    let child = fork_child(control, || init::run(spec, open_files, control, &writer))?;
    drop(writer);
    // Without a word the init has failed and said why; its end is ours.
    if let Ok(1) = ready.read(&mut [0]) {
        announce(control, &child)?;
    }
    Ok(child)
}

fn launch_exec(spec: &ExecSpec, open_files: OpenFiles, control: &SeqPacket, process: OwnedFd) -> io::Result<Child> {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET;
    setns(&process, namespaces | CloneFlags::CLONE_NEWCGROUP).or_else(|_| setns(&process, namespaces)).map_err(
        |error| match error {
            Errno::ESRCH => io::Error::other("the task has just ended"),
            error => explain("enter the task's namespaces", error),
        },
    )?;
    drop(process);
    let child = fork_child(control, || {
        become_container()?;
        command::execute(&spec.command, open_files, control)
    })?;
    announce(control, &child)?;
    Ok(child)
}

/// A forked child that dies with this process.
struct Child {
    pid: Pid,
    /// Its end tells the child that we are gone, should that be so before it asked to die with us.
    _alive: PipeWriter,
}

/// Forks; the child does `work` and ends with the code that it answers.
fn fork_child(control: &SeqPacket, work: impl FnOnce() -> io::Result<i32>) -> io::Result<Child> {
    let (parent, alive) = io::pipe()?;
    match process::fork()? {
        Fork::Parent(pid) => Ok(Child { pid, _alive: alive }),
        Fork::Child => {
            drop(alive);
            let done = process::die_with_parent().and_then(|()| {
                if process::is_hung_up(&parent)? { Err(io::Error::other("the launcher is gone")) } else { work() }
            });
            process::exit_now(done.unwrap_or_else(|error| {
                tell(control, &Status::Failed { text: error.to_string() });
                FAILED
            }))
        }
    }
}

/// The last step down: no other groups, Docker's capabilities, no keys of the host.
fn become_container() -> io::Result<()> {
    process::new_session_keyring();
    match setgroups(&[]) {
        // A user namespace may forbid it; then there are no groups worth dropping.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(error) => return Err(explain("drop the groups", error)),
    }
    privileges::become_container().map_err(|error| explain("drop capabilities", error))?;
    process::die_with_parent()
}

fn announce(control: &SeqPacket, child: &Child) -> io::Result<()> {
    let pidfd = PidFd::of_child(child.pid)?;
    let message = encode(&Status::Started { pid: child.pid.as_raw().unsigned_abs() });
    control.send(&message.map_err(|error| io::Error::other(error.text))?, &[pidfd.as_fd()])
}

/// Waits with empty hands: nothing privileged is kept.
fn wait_for(child: &Child) -> io::Result<i32> {
    // The child is ours to wait for without any right; a failure leaves an idle process with more than it needs.
    let _ = privileges::become_network_process();
    loop {
        match waitpid(child.pid, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_null() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|error| explain("/dev/null", error))
}

/// A pipe must end when the command closes it, not when we do.
fn hold_no_stdio(null: &File) -> io::Result<()> {
    dup2_stdin(null)?;
    dup2_stdout(null)?;
    dup2_stderr(null)?;
    Ok(())
}

#[cfg(test)]
mod tests;
