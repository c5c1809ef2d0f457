//! The handle that the API holds on this node.

use super::engine::{End, Request, TaskExit};
use super::held::Held;
use super::membership::MembershipStore;
use super::model::{ExecIo, ExecRequest, ImageInfo, LocalTask, NodeError, Status, SwarmInfo, SwarmState};
use super::runtime::{Environment, Runtime};
use super::spawn::spawn;
use crate::dataplane::Offloads;
use crate::helper::HelperClient;
use crate::helper::verbs::{self, CommandSpec, ErrorKind, Event as HelperEvent, ExecId, ImageName, VerbError};
use crate::manager::Manager;
use crate::sys::clock::Clock;
use crate::types::{NetworkId, NetworkName, Queues, Role, TaskState, UnlockKey};
use arc_swap::ArcSwapOption;
use smol::channel::{Receiver, Sender, bounded};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long the daemon waits for its tasks at its end: their grace, and time to remove what they leave.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// How this node is set up.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// This host's name.
    pub hostname: String,
    /// UDP port of gossip.
    pub gossip_port: u16,
    /// UDP port of ESP; `None` takes the swarm's.
    pub data_path_port: Option<u16>,
    /// Worker threads of the data plane.
    pub workers: Queues,
    /// What the data plane may use of what kernel and devices can do.
    pub offloads: Offloads,
    /// Whether root may be shown the keys of ESP.
    pub key_export: bool,
    /// The daemon's clock.
    pub clock: Clock,
}

/// This node. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(super) inner: Arc<Inner>,
}

/// Where the exit code of an exec, and what kept it from running, is told, and where it is awaited.
type ExitChannel = (Sender<(i32, String)>, Receiver<(i32, String)>);

pub(super) struct Inner {
    pub(super) settings: NodeSettings,
    pub(super) environment: Environment,
    /// Namespaces are attached and detached one at a time.
    pub(super) attaching: smol::lock::Mutex<()>,
    /// Init, join, leave and restarts happen one at a time.
    pub(super) changing: smol::lock::Mutex<()>,
    pub(super) runtime: ArcSwapOption<Runtime>,
    /// A manager's membership that is not taken up. Beside a runtime: of a node that was to become a manager, and goes on
    /// as a worker meanwhile.
    pub(super) held: ArcSwapOption<Held>,
    /// See [`Node::keep_unlock_key`].
    pub(super) unlock_key: Mutex<Option<UnlockKey>>,
    execs: Mutex<BTreeMap<ExecId, ExitChannel>>,
    /// Told why, once, when the daemon must end.
    fatal: Sender<String>,
    /// Closed once the helper process is gone.
    helper_ended: Receiver<()>,
}

impl Node {
    /// This host's node. `fatal` hears why the daemon must end, should that come.
    pub fn new(
        settings: NodeSettings,
        helper: HelperClient,
        events: Receiver<HelperEvent>,
        fatal: Sender<String>,
    ) -> Node {
        let environment = Environment {
            clock: settings.clock,
            helper,
            hostname: settings.hostname.clone(),
            store: MembershipStore::new(&settings.state_dir),
            workers: settings.workers,
            offloads: settings.offloads,
        };
        let (helper_alive, helper_ended) = bounded(1);
        let inner = Inner {
            settings,
            environment,
            attaching: smol::lock::Mutex::new(()),
            changing: smol::lock::Mutex::new(()),
            runtime: ArcSwapOption::empty(),
            held: ArcSwapOption::empty(),
            unlock_key: Mutex::default(),
            execs: Mutex::default(),
            fatal,
            helper_ended,
        };
        let node = Node { inner: Arc::new(inner) };
        spawn("helper events", node.clone().route_helper_events(events, helper_alive));
        node
    }

    /// Stops everything, for the daemon's end. The membership stays on disk.
    pub async fn shut_down(&self) {
        let _changing = self.inner.changing.lock().await;
        self.inner.held.store(None);
        // In place until it has stopped: the exits of its tasks are routed to it.
        if let Some(runtime) = self.inner.runtime.load_full() {
            runtime.stop(STOP_PATIENCE).await;
            self.inner.runtime.store(None);
        }
    }

    /// Ends the helper process, and with it whatever tasks are left.
    pub async fn end_helper(&self) {
        if let Err(error) = self.inner.environment.helper.shut_down() {
            tracing::debug!(%error, "the helper process is gone already");
        }
        let _ = self.inner.helper_ended.recv().await;
    }

    /// This node's part in a swarm.
    pub fn swarm(&self) -> SwarmInfo {
        if let Some(held) = self.inner.held.load_full() {
            return held.info();
        }
        let Some(runtime) = self.inner.runtime.load_full() else {
            return SwarmInfo {
                state: SwarmState::Inactive,
                error: String::new(),
                node: None,
                address: None,
                role: None,
                managers: Vec::new(),
            };
        };
        let view = runtime.view.load();
        let failure = runtime.manager.load_full().and_then(|manager| manager.failure());
        SwarmInfo {
            state: if view.settled { SwarmState::Active } else { SwarmState::Pending },
            node: Some(runtime.membership.node),
            address: Some(runtime.membership.addresses.control.ip()),
            role: Some(runtime.role()),
            error: failure.unwrap_or_else(|| view.error.clone()),
            managers: view.managers.clone(),
        }
    }

    /// The manager that runs in this daemon, if it is one.
    pub fn manager(&self) -> Option<Manager> {
        let manager = self.inner.runtime.load_full()?.manager.load_full()?;
        Some((*manager).clone())
    }

    /// Every network of the swarm, as the managers last told.
    pub fn network_names(&self) -> Vec<NetworkName> {
        self.inner.runtime.load_full().map(|runtime| runtime.view.load().names.clone()).unwrap_or_default()
    }

    /// What `formic status` shows.
    pub async fn status(&self) -> Status {
        if let Some(runtime) = self.inner.runtime.load_full() {
            let (reply, answer) = bounded(1);
            if runtime.requests.send(Request::Status(reply)).await.is_ok()
                && let Ok(mut status) = answer.recv().await
            {
                status.swarm = self.swarm();
                let manager = runtime.manager.load_full();
                let control = manager.iter().flat_map(|manager| manager.drops());
                status.drops.extend(control.map(|(name, count)| (format!("control.{name}"), count)));
                return status;
            }
        }
        Status::inactive(self.swarm(), self.inner.settings.hostname.clone())
    }

    /// The keys of this node's SAs on a network, in both directions, as Wireshark reads them. Only if the daemon was
    /// started so; that keys are handed out is logged, which ones is not.
    pub async fn esp_keys(&self, network: NetworkId) -> Result<Zeroizing<String>, NodeError> {
        if !self.inner.settings.key_export {
            return Err(NodeError::Forbidden(
                "this daemon hands out no keys: it has to be started with --allow-key-export".into(),
            ));
        }
        let not_running = || NodeError::Unavailable("this node is in no swarm, or stops".into());
        let runtime = self.inner.runtime.load_full().ok_or_else(not_running)?;
        let (reply, answer) = bounded(1);
        let outer_ipv6 = runtime.membership.addresses.data.is_ipv6();
        let sent = runtime.requests.send(Request::EspKeys { network, outer_ipv6, reply }).await;
        sent.map_err(|_| not_running())?;
        let table = answer.recv().await.map_err(|_| not_running())?;
        let table = table.map_err(|reason| NodeError::Invalid(reason.to_string()))?;
        tracing::warn!(%network, sas = table.lines().count(), "the keys of a network's ESP are shown to root");
        Ok(table)
    }

    /// The tasks of this node.
    pub fn tasks(&self) -> Vec<LocalTask> {
        self.inner.runtime.load_full().map(|runtime| runtime.view.load().tasks.clone()).unwrap_or_default()
    }

    /// Runs a command in a running task; resolves to its exit code when it ends.
    pub async fn exec(&self, request: ExecRequest, io: ExecIo) -> Result<i32, NodeError> {
        let task = self.tasks().into_iter().find(|task| task.assignment.id == request.task);
        let task = task.ok_or_else(|| NodeError::NotFound(format!("No such container: {}", request.task)))?;
        if task.status.state != TaskState::Running {
            return Err(NodeError::Invalid(format!(
                "container {} is not running: it is {}",
                request.task, task.status.state
            )));
        }
        let container = task.assignment.container;
        let env = verbs::Environment(container.env.into_iter().chain(request.env).collect());
        let command = CommandSpec { argv: request.command, env, dir: container.dir, tty: false };
        let mut complaints =
            io.stderr.try_clone().map(std::fs::File::from).map_err(|error| NodeError::Failed(error.to_string()))?;
        let started =
            self.inner.environment.helper.exec(request.task, command, Some([io.stdin, io.stdout, io.stderr])).await;
        let (id, _) = started.map_err(verb_error)?;
        let exit = self.inner.exec_exit(id).1;
        let ended = exit.recv().await;
        lock(&self.inner.execs).remove(&id);
        let (code, error) = ended.map_err(|_| NodeError::Failed("the helper process is gone".into()))?;
        if !error.is_empty() {
            // To where the command would have complained itself; a reader that is gone needs no word.
            let _ = writeln!(complaints, "formic: {error}");
        }
        Ok(code)
    }

    /// Copies a root directory of this host into the image store.
    pub async fn import_image(&self, name: String, directory: PathBuf) -> Result<ImageInfo, NodeError> {
        let image = ImageName::try_from(name.clone()).map_err(verb_error)?;
        let summary = self.inner.environment.helper.import_image(image, &directory).await.map_err(verb_error)?;
        Ok(ImageInfo { name, size_bytes: Some(summary.bytes), created_at: self.inner.settings.clock.unix().0 })
    }

    /// The images of this node.
    pub async fn images(&self) -> Result<Vec<ImageInfo>, NodeError> {
        let images = self.inner.environment.helper.list_images().await.map_err(verb_error)?;
        Ok(images
            .into_iter()
            .map(|image| ImageInfo { name: image.name.into(), size_bytes: None, created_at: image.imported_at.0 })
            .collect())
    }

    /// Removes an image.
    pub async fn remove_image(&self, name: String) -> Result<(), NodeError> {
        let image = ImageName::try_from(name).map_err(verb_error)?;
        self.inner.environment.helper.remove_image(image).await.map_err(verb_error)
    }

    /// Watches over a runtime: what must not end has ended, or the managers want a new life of this node.
    pub(super) async fn watch(self, runtime: Arc<Runtime>) {
        let Ok(end) = runtime.ended.recv().await else { return };
        match end {
            End::Stopped => {}
            End::Broken(reason) => self.die(reason).await,
            End::Removed => {
                let _changing = self.inner.changing.lock().await;
                if !self.is_current(&runtime) {
                    return;
                }
                tracing::warn!("leaving the swarm: this node was removed from it");
                self.forget_after(&runtime).await;
            }
            End::NewBoot { reason, fork } => self.begin_new_boot(&runtime, &reason, fork).await,
        }
    }

    /// The role that this daemon has now.
    pub fn role(&self) -> Option<Role> {
        self.swarm().role
    }

    pub(super) async fn die(&self, reason: String) {
        let _ = self.inner.fatal.send(reason).await;
    }

    async fn route_helper_events(self, events: Receiver<HelperEvent>, alive: Sender<()>) {
        while let Ok(event) = events.recv().await {
            match event {
                HelperEvent::TaskExited { task, code, error } => {
                    if let Some(runtime) = self.inner.runtime.load_full() {
                        let _ = runtime.exits.send(TaskExit { task, code, error }).await;
                    }
                }
                HelperEvent::ExecExited { id, code, error } => {
                    let _ = self.inner.exec_exit(id).0.try_send((code, error));
                }
                HelperEvent::Warning(text) => tracing::warn!("helper: {text}"),
                HelperEvent::Gone => break,
            }
        }
        lock(&self.inner.execs).clear();
        drop(alive);
        self.die("the helper process is gone, and the tasks with it".into()).await;
    }
}

impl Inner {
    /// Where the exit of an exec is told; whoever comes first makes it.
    fn exec_exit(&self, id: ExecId) -> ExitChannel {
        lock(&self.execs).entry(id).or_insert_with(|| bounded(1)).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn verb_error(error: VerbError) -> NodeError {
    match error.kind {
        ErrorKind::UnknownImage | ErrorKind::UnknownTask => NodeError::NotFound(error.text),
        ErrorKind::Malformed | ErrorKind::System => NodeError::Failed(error.text),
        ErrorKind::Gone => NodeError::Unavailable(error.text),
        _ => NodeError::Invalid(error.text),
    }
}
