//! The network process's side of the helper: calls for async code, events in a channel.
//!
//! [`super::start`] makes a [`HelperHandle`] before any thread exists; [`HelperHandle::connect`] starts the one
//! thread that receives. Its end is the helper's end: every call in flight answers [`ErrorKind::Gone`], and
//! [`Event::Gone`] is the last event.

use super::verbs::{
    Answer, CommandSpec, ErrorKind, Event, ExecId, ImageInfo, ImageName, ImportSummary, Interface, MAX_MESSAGE_BYTES,
    Message, NamespaceName, SignalTarget, TaskLaunch, Verb, VerbError, decode, encode_request,
};
use crate::sys::seqpacket::SeqPacket;
use crate::sys::tun::{TunDevice, TunDriver};
use crate::types::{Queues, TaskId};
use ipnet::IpNet;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use smol::Async;
use smol::channel::{Receiver, Sender, bounded};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Events that wait to be read; the receiving thread waits when there are more. A task has one event.
const MAX_WAITING_EVENTS: usize = 4096;

type ReplySender = Sender<(Result<Answer, VerbError>, Vec<OwnedFd>)>;

/// The helper as [`super::start`] left it: running, not yet spoken to.
#[derive(Debug)]
pub struct HelperHandle {
    pub(super) socket: SeqPacket,
    pub(super) helper: Pid,
}

/// Standard input, output and error of a command.
pub type Stdio = [OwnedFd; 3];

/// Asks the helper; cheap to clone. Dropping a call does not undo it.
#[derive(Debug, Clone)]
pub struct HelperClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: Async<SeqPacket>,
    calls: Mutex<Calls>,
}

/// Replies that are waited for, by request id. Bounded by the callers: one entry for each future.
#[derive(Debug, Default)]
struct Calls {
    last_id: u64,
    waiting: HashMap<u64, ReplySender>,
    gone: bool,
}

impl HelperHandle {
    /// Starts the receiving thread. Call it after the privileges are dropped: threads inherit them.
    pub fn connect(self) -> io::Result<(HelperClient, Receiver<Event>)> {
        let (events, receiver) = bounded(MAX_WAITING_EVENTS);
        let incoming = self.socket.try_clone()?;
        let shared = Arc::new(Shared { socket: Async::new(self.socket)?, calls: Mutex::default() });
        let client = HelperClient(shared.clone());
        let helper = self.helper;
        std::thread::Builder::new().name("helper".into()).spawn(move || {
            receive_all(&incoming, &shared, &events);
            shared.calls().close();
            // A zombie otherwise; a failure means that it is none of ours any more.
            let _ = waitpid(helper, None);
            let _ = events.send_blocking(Event::Gone);
        })?;
        Ok((client, receiver))
    }

    /// The socket itself, for tests that say what no client says.
    pub fn socket(&self) -> &SeqPacket {
        &self.socket
    }

    /// The helper's process id.
    pub fn pid(&self) -> u32 {
        self.helper.as_raw().unsigned_abs()
    }
}

fn receive_all(incoming: &SeqPacket, shared: &Shared, events: &Sender<Event>) {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    loop {
        let received = match incoming.receive(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if incoming.wait_readable(None).is_err() {
                    return;
                }
                continue;
            }
            Ok(Some(received)) => received,
            // A helper that is out of step cannot be trusted with the next message either.
            Ok(None) | Err(_) => return,
        };
        match buffer.get(..received.length).map(decode::<Message>) {
            Some(Ok(Message::Reply { id, result })) => shared.calls().answer(id, result, received.fds),
            Some(Ok(Message::Event(event))) => {
                if events.send_blocking(event).is_err() {
                    // Nobody reads events any more; replies still matter.
                    continue;
                }
            }
            Some(Ok(Message::Ready(_))) => {}
            Some(Err(_)) | None => return,
        }
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Calls {
    fn open(&mut self, reply: ReplySender) -> Result<u64, VerbError> {
        if self.gone {
            return Err(gone());
        }
        self.last_id += 1;
        self.waiting.insert(self.last_id, reply);
        Ok(self.last_id)
    }

    fn answer(&mut self, id: u64, result: Result<Answer, VerbError>, fds: Vec<OwnedFd>) {
        if let Some(reply) = self.waiting.remove(&id) {
            // The caller may have given up; the descriptors are closed then.
            let _ = reply.try_send((result, fds));
        }
    }

    fn close(&mut self) {
        self.gone = true;
        self.waiting.clear();
    }
}

fn gone() -> VerbError {
    VerbError::new(ErrorKind::Gone, "the helper process is gone")
}

fn unexpected(answer: &Answer) -> VerbError {
    VerbError::new(ErrorKind::Malformed, format!("the helper answered something else: {answer:?}"))
}

impl HelperClient {
    /// Asks for one verb. The methods below are what callers use.
    async fn call(&self, verb: &Verb, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Vec<OwnedFd>), VerbError> {
        let (sender, receiver) = bounded(1);
        let id = self.0.calls().open(sender)?;
        let sent = match encode_request(id, verb) {
            Ok(bytes) => {
                let write = self.0.socket.write_with(|socket| socket.send(&bytes, fds));
                write.await.map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => gone(),
                    _ => VerbError::from(error),
                })
            }
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            self.0.calls().waiting.remove(&id);
            return Err(error);
        }
        let (result, fds) = receiver.recv().await.map_err(|_| gone())?;
        result.map(|answer| (answer, fds))
    }

    async fn call_done(&self, verb: Verb) -> Result<(), VerbError> {
        match self.call(&verb, &[]).await? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Makes the task's network namespace; the devices' queues come back in the order of the interfaces.
    pub async fn create_task_network(
        &self,
        task: TaskId,
        interfaces: Vec<Interface>,
        driver: TunDriver,
        queues: Queues,
    ) -> Result<Vec<Vec<TunDevice>>, VerbError> {
        let (devices, each) = (interfaces.len(), usize::from(driver.queues(queues).count()));
        match self.call(&Verb::CreateTaskNetwork { task, interfaces, driver, queues }, &[]).await? {
            (Answer::Network, fds) if fds.len() == devices * each => {
                let mut fds = fds.into_iter().map(|fd| TunDevice::from_fd(fd, driver));
                Ok((0..devices).map(|_| fds.by_ref().take(each).collect()).collect())
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Makes a device in a network namespace of somebody else; its queues.
    pub async fn attach_namespace(
        &self,
        namespace: NamespaceName,
        (address, mtu): (IpNet, u32),
        driver: TunDriver,
        queues: Queues,
    ) -> Result<Vec<TunDevice>, VerbError> {
        let each = usize::from(driver.queues(queues).count());
        match self.call(&Verb::AttachNamespace { namespace, address, mtu, driver, queues }, &[]).await? {
            (Answer::Network, fds) if fds.len() == each => {
                Ok(fds.into_iter().map(|fd| TunDevice::from_fd(fd, driver)).collect())
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Starts the task in its network; answers the id of its first process. Without `stdio` it gets `/dev/null`.
    pub async fn start_task(&self, launch: TaskLaunch, stdio: Option<Stdio>) -> Result<u32, VerbError> {
        match self.call(&Verb::StartTask(launch), &borrow(stdio.as_ref())).await? {
            (Answer::Started { pid }, _) => Ok(pid),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// SIGTERM now, SIGKILL after the grace; does not wait for the end.
    pub async fn stop_task(&self, task: TaskId, grace: Duration) -> Result<(), VerbError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.call_done(Verb::StopTask { task, grace_ms }).await
    }

    /// Kills the task if it runs, and removes its namespaces and files.
    pub async fn remove_task(&self, task: TaskId) -> Result<(), VerbError> {
        self.call_done(Verb::RemoveTask { task }).await
    }

    /// Executes a command in a running task; answers its number and process id.
    pub async fn exec(
        &self,
        task: TaskId,
        command: CommandSpec,
        stdio: Option<Stdio>,
    ) -> Result<(ExecId, u32), VerbError> {
        match self.call(&Verb::Exec { task, command }, &borrow(stdio.as_ref())).await? {
            (Answer::Exec { id, pid }, _) => Ok((id, pid)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Sends a signal, one of [`super::verbs::SIGNALS`].
    pub async fn signal(&self, target: SignalTarget, signal: i32) -> Result<(), VerbError> {
        self.call_done(Verb::Signal { target, signal }).await
    }

    /// Copies a directory into the images under this name.
    pub async fn import_image(&self, name: ImageName, source: &Path) -> Result<ImportSummary, VerbError> {
        match self.call(&Verb::ImportImage { name, source: source.to_owned() }, &[]).await? {
            (Answer::Imported(summary), _) => Ok(summary),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The imported images by name.
    pub async fn list_images(&self) -> Result<Vec<ImageInfo>, VerbError> {
        match self.call(&Verb::ListImages, &[]).await? {
            (Answer::Images(images), _) => Ok(images),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Removes an image that no task uses.
    pub async fn remove_image(&self, name: ImageName) -> Result<(), VerbError> {
        self.call_done(Verb::RemoveImage { name }).await
    }

    /// Tells the helper to kill all tasks, clean up and end; [`Event::Gone`] says that it did.
    pub fn shut_down(&self) -> io::Result<()> {
        self.0.socket.get_ref().shutdown_write()
    }
}

fn borrow(stdio: Option<&Stdio>) -> Vec<BorrowedFd<'_>> {
    stdio.into_iter().flatten().map(AsFd::as_fd).collect()
}
