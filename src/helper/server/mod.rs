//! The helper's main loop: one thread that waits for requests, for words of the launchers, for ended children
//! and for deadlines, and never for anything else. What takes long (copying files, removing them) is done by
//! forked workers ([`workers`]), what concerns processes is in [`tasks`], what concerns files in [`images`].

mod images;
mod leftovers;
mod network;
mod tasks;
mod workers;

use super::HelperOptions;
use super::verbs::{
    Answer, ErrorKind, Event, ExecId, MAX_MESSAGE_BYTES, Message, Verb, VerbError, decode_request, encode,
};
use crate::sys::seqpacket::{Received, SeqPacket};
use crate::sys::{explain, memfd, process};
use crate::types::TaskId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, setsid};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Tasks that one node holds: each costs some descriptors and two small processes.
const MAX_TASKS: usize = 1024;
/// Commands executed in tasks at the same time.
const MAX_EXECS: usize = 256;
/// How long the end waits for killed tasks. What still runs then is beyond SIGKILL.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Where things are below the state directory.
#[derive(Debug)]
struct Paths {
    state: PathBuf,
    tasks: PathBuf,
    images: PathBuf,
}

struct Server<'a> {
    socket: &'a SeqPacket,
    signals: SignalFd,
    paths: Paths,
    hidden: Vec<PathBuf>,
    host_image: bool,
    program: OwnedFd,
    /// The limit that tasks get back; the helper raised its own.
    open_files: (rlim_t, rlim_t),
    tasks: BTreeMap<TaskId, tasks::Task>,
    launchers: BTreeMap<Pid, tasks::Launcher>,
    workers: BTreeMap<Pid, workers::Worker>,
    retired: Vec<images::Retired>,
    last_exec: u64,
    last_temporary: u64,
    /// Held, not read: the state directory is ours while it is open.
    _lock: leftovers::Lock,
}

/// The answer to a verb now, with descriptors beside it; `None` when it comes later.
type Outcome = Result<Option<(Answer, Vec<OwnedFd>)>, VerbError>;

/// Serves until the other end closes, then kills all tasks and cleans up. The process ends after it.
pub(super) fn run(socket: &SeqPacket, options: &HelperOptions) -> io::Result<()> {
    let prepared = Server::prepare(socket, options);
    let word = prepared.as_ref().map(drop).map_err(ToString::to_string);
    if let Ok(bytes) = encode(&Message::Ready(word)) {
        socket.send(&bytes, &[])?;
    }
    let mut server = prepared?;
    let served = server.serve();
    server.end();
    served
}

impl<'a> Server<'a> {
    fn prepare(socket: &'a SeqPacket, options: &HelperOptions) -> io::Result<Server<'a>> {
        process::close_inherited(&[socket.as_fd()])?;
        let signals = leave_the_session()?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        leftovers::make_dir(&options.state_dir)?;
        let state = options.state_dir.canonicalize().map_err(|error| explain(options.state_dir.display(), error))?;
        let paths = Paths { tasks: state.join("tasks"), images: state.join("images"), state };
        let lock = leftovers::lock(&paths.state)?;
        leftovers::remove(&paths)?;
        leftovers::make_dir(&paths.tasks)?;
        leftovers::make_dir(&paths.images)?;
        Ok(Server {
            socket,
            signals,
            hidden: options.hidden.clone(),
            host_image: options.host_image,
            program: memfd::sealed_self()?,
            open_files: (soft, hard),
            tasks: BTreeMap::new(),
            launchers: BTreeMap::new(),
            workers: BTreeMap::new(),
            retired: Vec::new(),
            last_exec: 0,
            last_temporary: 0,
            paths,
            _lock: lock,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let ready = self.wait()?;
            for launcher in ready.launchers {
                self.hear_launcher(launcher)?;
            }
            if ready.children {
                self.reap()?;
            }
            self.kill_overdue(Instant::now());
            if ready.request {
                match self.socket.receive(&mut buffer) {
                    Ok(Some(Received { length, fds })) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        self.handle(bytes, fds)?;
                    }
                    Ok(None) => return Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        self.reply(0, Err(VerbError::new(ErrorKind::Malformed, error.to_string())))?;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Waits for the next thing to do.
    fn wait(&self) -> io::Result<Ready> {
        let speaking: Vec<(Pid, BorrowedFd<'_>)> =
            self.launchers.iter().filter_map(|(&pid, launcher)| Some((pid, launcher.status()?))).collect();
        let mut entries = vec![
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        entries.extend(speaking.iter().map(|&(_, fd)| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut entries, self.poll_timeout(Instant::now())) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(explain("poll", error)),
        }
        let mut fired = entries.iter().map(|entry| entry.any().unwrap_or(false));
        let (request, children) = (fired.next().unwrap_or(false), fired.next().unwrap_or(false));
        let launchers = speaking.iter().zip(fired).filter(|(_, fired)| *fired).map(|(&(pid, _), _)| pid).collect();
        Ok(Ready { request, children, launchers })
    }

    fn poll_timeout(&self, now: Instant) -> PollTimeout {
        let next = self.launchers.values().filter_map(|launcher| launcher.kill_at).min();
        let wait = next.map(|at| at.saturating_duration_since(now).as_millis().saturating_add(1));
        wait.map_or(PollTimeout::NONE, |millis| PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX))
    }

    fn handle(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> io::Result<()> {
        let (id, verb) = decode_request(bytes);
        match verb.and_then(|verb| self.perform(id, verb, fds)) {
            Ok(None) => Ok(()),
            Ok(Some((answer, fds))) => {
                let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                self.send(&Message::Reply { id, result: Ok(answer) }, &borrowed)
            }
            Err(error) => self.reply(id, Err(error)),
        }
    }

    fn perform(&mut self, id: u64, verb: Verb, fds: Vec<OwnedFd>) -> Outcome {
        match verb {
            Verb::CreateTaskNetwork { task, interfaces, driver, queues } => {
                self.create_network(task, &interfaces, (driver, queues))
            }
            Verb::StartTask(launch) => self.start_task(id, launch, fds),
            Verb::StopTask { task, grace_ms } => self.stop_task(task, Duration::from_millis(grace_ms.into())),
            Verb::RemoveTask { task } => self.remove_task(id, task),
            Verb::Exec { task, command } => self.exec(id, task, command, fds),
            Verb::Signal { target, signal } => {
                let signal = Signal::try_from(signal).map_err(|error| VerbError::from(io::Error::from(error)))?;
                self.signal(target, signal)
            }
            Verb::ImportImage { name, source } => self.import_image(id, name, &source),
            Verb::ListImages => self.list_images(),
            Verb::RemoveImage { name } => self.remove_image(id, &name),
            Verb::AttachNamespace { namespace, address, mtu, driver, queues } => {
                let devices = network::attach_to(&namespace, (address, mtu), driver, queues)?;
                Ok(Some((Answer::Network, devices.into_iter().map(OwnedFd::from).collect())))
            }
        }
    }

    fn reply(&self, id: u64, result: Result<Answer, VerbError>) -> io::Result<()> {
        self.send(&Message::Reply { id, result }, &[])
    }

    fn tell(&self, event: Event) -> io::Result<()> {
        self.send(&Message::Event(event), &[])
    }

    fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message).map_err(|error| io::Error::other(error.text))?;
        self.socket.send(&bytes, fds)
    }

    /// Takes leave of every child that ended.
    fn reap(&mut self) -> io::Result<()> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((child, code)) = next_ended_child()? {
            if self.launchers.contains_key(&child) {
                self.launcher_ended(child, code)?;
            } else if let Some(worker) = self.workers.remove(&child) {
                self.worker_ended(worker)?;
            }
        }
        Ok(())
    }

    fn next_exec_id(&mut self) -> ExecId {
        self.last_exec += 1;
        ExecId(self.last_exec)
    }

    /// Kills all that runs, waits for it, and removes what is left on disk.
    fn end(&mut self) {
        for launcher in self.launchers.values() {
            launcher.kill();
        }
        for &worker in self.workers.keys() {
            // It ended and waits to be reaped, or dies now.
            let _ = nix::sys::signal::kill(worker, Signal::SIGKILL);
        }
        let deadline = Instant::now() + LAST_WAIT;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            while let Ok(Some((child, _))) = next_ended_child() {
                self.launchers.remove(&child);
                self.workers.remove(&child);
            }
            if self.launchers.is_empty() && self.workers.is_empty() {
                break;
            }
            let mut entries = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut entries, PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX));
            while let Ok(Some(_)) = self.signals.read_signal() {}
        }
        self.tasks.clear();
        if let Err(error) = leftovers::remove(&self.paths) {
            eprintln!("formic: clean up {}: {error}", self.paths.state.display());
        }
    }
}

/// What [`Server::wait`] found.
struct Ready {
    request: bool,
    children: bool,
    launchers: Vec<Pid>,
}

/// A child that ended and its exit code, 128 + signal when killed.
fn next_ended_child() -> io::Result<Option<(Pid, i32)>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(child, code)) => return Ok(Some((child, code))),
            Ok(WaitStatus::Signaled(child, signal, _)) => return Ok(Some((child, 128 + signal as i32))),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The helper ends with its socket, not with the signals that a terminal or a service manager sends to all: the
/// daemon decides what they mean.
fn leave_the_session() -> io::Result<SignalFd> {
    // Fails for the leader of a process group, who has no terminal to leave.
    let _ = setsid();
    dup2_stdin(File::open("/dev/null")?)?;
    umask(Mode::from_bits_truncate(0o022));
    nix::sys::prctl::set_name(c"formic-helper")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}
