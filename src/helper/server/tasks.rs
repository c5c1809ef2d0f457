//! Tasks and the commands executed in them: their table, their launchers, their ends.
//!
//! A task goes `Idle` (its network is made) -> `Launched` -> `Ended`; removing it works from each. A launcher is
//! our child; it tells when its command runs and hands over a pidfd, and its own end is the end of everything
//! it started.

use super::workers::Then;
use super::{MAX_EXECS, MAX_TASKS, Outcome, Server, leftovers, network};
use crate::helper::shim::{self, ExecSpec, LaunchSpec, RootSpec, Status, TaskSpec};
use crate::helper::verbs::{
    Answer, CommandSpec, ErrorKind, Event, ExecId, Image, Interface, MAX_MESSAGE_BYTES, SignalTarget, TaskLaunch,
    VerbError, decode,
};
use crate::sys::process::PidFd;
use crate::sys::seqpacket::SeqPacket;
use crate::sys::tun::TunDriver;
use crate::types::{Queues, TaskId};
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A task that has a network here.
#[derive(Debug)]
pub(super) struct Task {
    namespace: OwnedFd,
    addresses: Vec<IpNet>,
    pub(super) image: Option<Image>,
    state: State,
    /// Requests that wait for it to be gone.
    removals: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Launched(Pid),
    Ended,
    /// A worker removes its files.
    Leaving,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Task(TaskId),
    Exec(ExecId),
}

/// A launcher that has not been reaped.
#[derive(Debug)]
pub(super) struct Launcher {
    pid: Pid,
    owner: Owner,
    /// Where it speaks; `None` once it has said all.
    control: Option<SeqPacket>,
    /// The task's init, or the executed command.
    process: Option<PidFd>,
    /// The request to be answered when it runs.
    request: Option<u64>,
    /// What it said went wrong.
    error: String,
    /// When to kill what does not stop.
    pub(super) kill_at: Option<Instant>,
}

impl Launcher {
    pub(super) fn status(&self) -> Option<BorrowedFd<'_>> {
        self.control.as_ref().map(AsFd::as_fd)
    }

    /// Kills what it launched, or itself if that is not known yet: its children die with it.
    pub(super) fn kill(&self) {
        let killed = match &self.process {
            Some(process) => process.signal(Signal::SIGKILL).is_ok(),
            None => false,
        };
        if !killed {
            // Our child, not reaped: the id is its own. An error means that it ended.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

impl Server<'_> {
    fn task(&mut self, id: TaskId) -> Result<&mut Task, VerbError> {
        let unknown = || VerbError::new(ErrorKind::UnknownTask, format!("no such task on this node: {}", id.0));
        self.tasks.get_mut(&id).filter(|task| task.state != State::Leaving).ok_or_else(unknown)
    }

    fn launcher_of(&mut self, task: TaskId) -> Option<&mut Launcher> {
        match self.tasks.get(&task)?.state {
            State::Launched(pid) => self.launchers.get_mut(&pid),
            _ => None,
        }
    }

    fn running_launcher(&mut self, task: TaskId) -> Result<&mut Launcher, VerbError> {
        self.task(task)?;
        let ended = || VerbError::new(ErrorKind::UnknownTask, format!("the task {} does not run", task.0));
        self.launcher_of(task).ok_or_else(ended)
    }

    fn task_dir(&self, task: TaskId) -> PathBuf {
        self.paths.tasks.join(task.0.to_string())
    }

    pub(super) fn create_network(
        &mut self,
        id: TaskId,
        interfaces: &[Interface],
        (driver, queues): (TunDriver, Queues),
    ) -> Outcome {
        if self.tasks.contains_key(&id) {
            return Err(VerbError::new(ErrorKind::Exists, format!("the task {} is on this node already", id.0)));
        }
        if self.tasks.len() >= MAX_TASKS {
            return Err(VerbError::new(ErrorKind::Limit, format!("this node has {MAX_TASKS} tasks already")));
        }
        let (namespace, devices) = network::create(interfaces, driver, queues)?;
        let addresses = interfaces.iter().map(|interface| interface.address).collect();
        let task = Task { namespace, addresses, image: None, state: State::Idle, removals: Vec::new() };
        self.tasks.insert(id, task);
        Ok(Some((Answer::Network, devices.into_iter().map(OwnedFd::from).collect())))
    }

    pub(super) fn start_task(&mut self, request: u64, launch: TaskLaunch, stdio: Vec<OwnedFd>) -> Outcome {
        let id = launch.task;
        if self.task(id)?.state != State::Idle {
            return Err(VerbError::new(ErrorKind::Exists, format!("the task {} was started already", id.0)));
        }
        let root = self.root_spec(&launch.image)?;
        let work_dir = self.task_dir(id);
        leftovers::make_dir(&work_dir.join("root"))?;
        let name = id.0.to_string();
        let hostname =
            if launch.hostname.is_empty() { name.chars().take(12).collect() } else { launch.hostname.clone() };
        let spec = LaunchSpec::Task(TaskSpec {
            root,
            work_dir,
            hostname,
            addresses: self.task(id)?.addresses.clone(),
            command: launch.command,
        });
        let namespace = self.task(id)?.namespace.try_clone()?;
        let pid = self.launch(Owner::Task(id), request, &spec, stdio, namespace.as_fd())?;
        let task = self.task(id)?;
        task.image = Some(launch.image);
        task.state = State::Launched(pid);
        Ok(None)
    }

    fn root_spec(&self, image: &Image) -> Result<RootSpec, VerbError> {
        match image {
            Image::Host if !self.host_image => {
                let text = "the image host is forbidden on this node (--no-host-image)";
                Err(VerbError::new(ErrorKind::ForbiddenImage, text))
            }
            Image::Host => {
                let mut hidden = vec![self.paths.state.clone()];
                hidden.extend(self.hidden.iter().cloned());
                Ok(RootSpec::Host { hidden })
            }
            Image::Named(name) if self.image_path(name).is_dir() => Ok(RootSpec::Image { dir: self.image_path(name) }),
            Image::Named(name) => Err(VerbError::unknown_image(name.as_str())),
        }
    }

    pub(super) fn exec(&mut self, request: u64, task: TaskId, command: CommandSpec, stdio: Vec<OwnedFd>) -> Outcome {
        let execs = self.launchers.values().filter(|launcher| matches!(launcher.owner, Owner::Exec(_))).count();
        if execs >= MAX_EXECS {
            return Err(VerbError::new(ErrorKind::Limit, format!("{MAX_EXECS} commands are executed already")));
        }
        let starting = || VerbError::new(ErrorKind::UnknownTask, format!("the task {} does not run yet", task.0));
        let process = self.running_launcher(task)?.process.as_ref().ok_or_else(starting)?;
        let process = process.as_fd().try_clone_to_owned()?;
        let id = self.next_exec_id();
        let spec = LaunchSpec::Exec(ExecSpec { command });
        self.launch(Owner::Exec(id), request, &spec, stdio, process.as_fd())?;
        Ok(None)
    }

    /// Starts a launcher with its specification in its socket and `target` (a namespace, or a process whose
    /// namespaces are entered) beside it.
    fn launch(
        &mut self,
        owner: Owner,
        request: u64,
        spec: &LaunchSpec,
        stdio: Vec<OwnedFd>,
        target: BorrowedFd<'_>,
    ) -> Result<Pid, VerbError> {
        let stdio = complete_stdio(stdio)?;
        let (ours, theirs) = SeqPacket::pair()?;
        ours.send(&shim::encode_launch(spec, self.open_files)?, &[])?;
        ours.set_nonblocking()?;
        let pid = shim::spawn(&self.program, &stdio, &theirs, target)?;
        let launcher = Launcher {
            pid,
            owner,
            control: Some(ours),
            process: None,
            request: Some(request),
            error: String::new(),
            kill_at: None,
        };
        self.launchers.insert(pid, launcher);
        Ok(pid)
    }

    pub(super) fn stop_task(&mut self, task: TaskId, grace: Duration) -> Outcome {
        self.task(task)?;
        if let Some(launcher) = self.launcher_of(task) {
            match &launcher.process {
                Some(process) => {
                    process.signal(Signal::SIGTERM)?;
                    let kill_at = Instant::now() + grace;
                    launcher.kill_at = Some(launcher.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
                }
                None => launcher.kill(),
            }
        }
        Ok(Some((Answer::Done, Vec::new())))
    }

    pub(super) fn kill_overdue(&mut self, now: Instant) {
        for launcher in self.launchers.values_mut() {
            if launcher.kill_at.is_some_and(|at| at <= now) {
                launcher.kill();
                launcher.kill_at = None;
            }
        }
    }

    pub(super) fn signal(&mut self, target: SignalTarget, signal: Signal) -> Outcome {
        let process = match target {
            SignalTarget::Task(task) => self.running_launcher(task)?.process.as_ref(),
            SignalTarget::Exec(id) => {
                let mut launchers = self.launchers.values();
                let found = launchers.find(|launcher| launcher.owner == Owner::Exec(id));
                let unknown = || VerbError::new(ErrorKind::UnknownTask, "the command has ended");
                found.ok_or_else(unknown)?.process.as_ref()
            }
        };
        match process {
            Some(process) => process.signal(signal)?,
            None => return Err(VerbError::new(ErrorKind::UnknownTask, "the command does not run yet")),
        }
        Ok(Some((Answer::Done, Vec::new())))
    }

    pub(super) fn remove_task(&mut self, request: u64, id: TaskId) -> Outcome {
        let Some(task) = self.tasks.get_mut(&id) else {
            return Ok(Some((Answer::Done, Vec::new())));
        };
        task.removals.push(request);
        match task.state {
            State::Launched(pid) => {
                if let Some(launcher) = self.launchers.get(&pid) {
                    launcher.kill();
                }
            }
            State::Idle | State::Ended => self.clear_task(id)?,
            State::Leaving => {}
        }
        Ok(None)
    }

    /// Removes the files of a task that does not run; it is forgotten when they are gone.
    fn clear_task(&mut self, id: TaskId) -> Result<(), VerbError> {
        let dir = self.task_dir(id);
        self.delegate_removal(Then::ForgetTask(id), dir)?;
        if let Some(task) = self.tasks.get_mut(&id) {
            task.state = State::Leaving;
        }
        Ok(())
    }

    pub(super) fn forget_task(&mut self, id: TaskId, result: Result<(), VerbError>) -> io::Result<()> {
        let removals = match (self.tasks.get_mut(&id), &result) {
            (None, _) => Vec::new(),
            (Some(task), Err(_)) => {
                task.state = State::Ended;
                std::mem::take(&mut task.removals)
            }
            (Some(_), Ok(())) => self.tasks.remove(&id).map(|task| task.removals).unwrap_or_default(),
        };
        if result.is_ok() {
            self.release_images(id);
        }
        removals.into_iter().try_for_each(|request| self.reply(request, result.clone().map(|()| Answer::Done)))
    }

    /// Reads what a launcher said.
    pub(super) fn hear_launcher(&mut self, pid: Pid) -> io::Result<()> {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let Some(launcher) = self.launchers.get_mut(&pid) else { return Ok(()) };
            let Some(control) = &launcher.control else { return Ok(()) };
            let received = match control.receive(&mut buffer) {
                Ok(Some(received)) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Ok(None) | Err(_) => {
                    launcher.control = None;
                    return Ok(());
                }
            };
            match decode::<Status>(buffer.get(..received.length).unwrap_or_default()) {
                Ok(Status::Started { pid: process }) => {
                    launcher.process = received.fds.into_iter().next().map(PidFd::from_fd);
                    let (owner, request) = (launcher.owner, launcher.request.take());
                    if let Some(request) = request {
                        self.reply(request, Ok(started(owner, process)))?;
                    }
                }
                Ok(Status::Failed { text } | Status::NotExecuted { text }) => launcher.error = text,
                Err(error) => launcher.error = error.text,
            }
        }
    }

    /// A launcher was reaped, and with it all that it started is gone.
    pub(super) fn launcher_ended(&mut self, pid: Pid, code: i32) -> io::Result<()> {
        self.hear_launcher(pid)?;
        let Some(launcher) = self.launchers.remove(&pid) else { return Ok(()) };
        let never_ran = launcher.request.is_some();
        match launcher.request {
            Some(request) => {
                let text = match launcher.error.as_str() {
                    "" => format!("the launcher ended with code {code} before the command ran"),
                    error => error.to_owned(),
                };
                self.reply(request, Err(VerbError::new(ErrorKind::System, text)))?;
            }
            None => self.tell(ended(launcher.owner, code, launcher.error))?,
        }
        if let Owner::Task(id) = launcher.owner {
            let Some(task) = self.tasks.get_mut(&id) else { return Ok(()) };
            task.state = if never_ran { State::Idle } else { State::Ended };
            if !task.removals.is_empty()
                && let Err(error) = self.clear_task(id)
            {
                self.forget_task(id, Err(error))?;
            }
        }
        Ok(())
    }
}

fn started(owner: Owner, pid: u32) -> Answer {
    match owner {
        Owner::Task(_) => Answer::Started { pid },
        Owner::Exec(id) => Answer::Exec { id, pid },
    }
}

fn ended(owner: Owner, code: i32, error: String) -> Event {
    match owner {
        Owner::Task(task) => Event::TaskExited { task, code, error },
        Owner::Exec(id) => Event::ExecExited { id, code, error },
    }
}

/// Three descriptors, or `/dev/null` three times.
fn complete_stdio(given: Vec<OwnedFd>) -> Result<[OwnedFd; 3], VerbError> {
    if given.is_empty() {
        let null = OwnedFd::from(OpenOptions::new().read(true).write(true).open("/dev/null")?);
        let input = OwnedFd::from(File::open("/dev/null")?);
        return Ok([input, null.try_clone()?, null]);
    }
    let wrong = |given: Vec<OwnedFd>| {
        VerbError::new(ErrorKind::Invalid, format!("{} descriptors where 3 or none are expected", given.len()))
    };
    <[OwnedFd; 3]>::try_from(given).map_err(wrong)
}
