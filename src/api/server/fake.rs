//! A daemon for tests: the real replicated state, tasks that run at once on one node without being anything, and
//! `exec` that runs on this host. Serves the real API on a socket of its own.

use super::backend::{Answer, Backend};
use super::{bind, serve_backend};
use crate::agent::{
    AttachedNamespace, Examination, ExecIo, ExecRequest, ImageInfo, InitRequest, JoinTarget, LocalTask, NodeError,
    Status, SwarmInfo, SwarmState,
};
use crate::cluster::{Command, Entry, NewRoot, NewTokens, NodeState, Reply, Rollout, State, schedule};
use crate::manager::ManagerError;
use crate::types::{
    AttachRequest, BootId, ClusterId, ClusterSpec, Fork, Key32, Machine, NetworkId, NetworkName, NodeAddresses, NodeId,
    Queues, Resources, Role, TaskAssignment, TaskId, TaskState, TaskStatus, UnixTime, UnlockKey,
};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use zeroize::Zeroizing;

/// When everything in the fake begins; time passes there only while tasks are replaced.
pub(crate) const NOW: UnixTime = UnixTime(1_700_000_000);

/// A subnet that the fake's host has a route for.
pub(crate) const HOST_ROUTE: &str = "192.168.77.0/24";

/// Plans after one command at most: an update whose tasks no node suits never ends.
const MAX_ROUNDS: usize = 100;

/// What stands for the keys of every network.
pub(crate) const ESP_KEYS: &str = "a table of keys";

const NODE: [u8; 17] = [7; 17];
const WORKER: [u8; 17] = [8; 17];

#[derive(Clone)]
pub(crate) struct Fake(Arc<Inner>);

struct Inner {
    state: Mutex<Option<Arc<State>>>,
    /// The state while it waits for its unlock key.
    locked: Mutex<Option<Arc<State>>>,
    swarm: Mutex<SwarmInfo>,
    names: Mutex<Vec<NetworkName>>,
    images: Mutex<Vec<ImageInfo>>,
    /// Images of tasks that do not come up.
    broken_image: &'static str,
    drawn: AtomicU64,
    passed_secs: AtomicU64,
    /// The leader changes while the next so many commands are told.
    changing: AtomicU64,
}

impl Fake {
    /// In no swarm.
    pub(crate) fn new() -> Fake {
        let swarm = SwarmInfo {
            state: SwarmState::Inactive,
            node: None,
            address: None,
            role: None,
            error: String::new(),
            managers: Vec::new(),
        };
        Fake(Arc::new(Inner {
            state: Mutex::new(None),
            locked: Mutex::new(None),
            swarm: Mutex::new(swarm),
            names: Mutex::new(Vec::new()),
            images: Mutex::new(Vec::new()),
            broken_image: "broken:latest",
            drawn: AtomicU64::new(1),
            passed_secs: AtomicU64::new(0),
            changing: AtomicU64::new(0),
        }))
    }

    /// The leader changes while the next so many commands are told: they are lost.
    pub(crate) fn change_leaders(&self, times: u64) {
        self.0.changing.store(times, Ordering::Relaxed);
    }

    /// The manager of a swarm of two: itself (`ant-1`) and a worker that never spoke (`ant-2`).
    pub(crate) fn manager() -> Fake {
        let fake = Fake::new();
        fake.make_swarm(ClusterSpec::default());
        fake
    }

    /// A worker that has heard of networks.
    pub(crate) fn worker(networks: &[&str]) -> Fake {
        let fake = Fake::new();
        fake.become_member(Role::Worker);
        let named = networks.iter().zip(1u8..).map(|(name, number)| NetworkName {
            id: NetworkId::from_random([number; 17]),
            name: (*name).to_owned(),
            attachable: name.starts_with("open"),
        });
        *fake.0.names.lock().unwrap() = named.collect();
        fake
    }

    /// The manager of a swarm of two that both take tasks.
    pub(crate) fn manager_of_two() -> Fake {
        let fake = Fake::manager();
        fake.open_session(NodeId::from_random(WORKER), 2);
        fake
    }

    fn become_member(&self, role: Role) {
        let mut swarm = self.0.swarm.lock().unwrap();
        swarm.state = SwarmState::Active;
        swarm.role = Some(role);
        swarm.node = Some(NodeId::from_random(NODE));
        swarm.address = Some(IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1)));
        swarm.managers = vec![(NodeId::from_random(NODE), control(1))];
    }

    fn make_swarm(&self, mut spec: ClusterSpec) {
        let autolock = std::mem::take(&mut spec.autolock);
        self.become_member(Role::Manager);
        let cluster = ClusterId::from_random([1; 17]);
        let init = Command::Init {
            cluster,
            fork: Fork(NOW.0),
            spec,
            worker_secret: Zeroizing::new([1; 16]),
            manager_secret: Zeroizing::new([2; 16]),
            authority: crate::manager::first_authority(cluster),
            attestation: Key32::new([5; 32]),
            current: Key32::new([6; 32]),
            next: Key32::new([7; 32]),
        };
        let mut state = State::init(&Entry { at: NOW, command: init }).unwrap();
        let seat = crate::cluster::Manager { seat: 2, voter: true, address: addresses(1).control };
        state.managers.insert(NodeId::from_random(NODE), seat);
        *self.0.state.lock().unwrap() = Some(Arc::new(state));
        self.add_node(NODE, Role::Manager, 1);
        self.add_node(WORKER, Role::Worker, 2);
        let node = NodeId::from_random(NODE);
        self.open_session(node, 1);
        self.apply(Command::SetNodeState { node, state: NodeState::Ready, message: String::new() }).unwrap();
        if autolock {
            let (version, spec) = (1, ClusterSpec { autolock, ..self.current().cluster.spec.clone() });
            let tokens = NewTokens { unlock: Some(Zeroizing::new([9; 32])), ..NewTokens::default() };
            self.apply(Command::UpdateCluster { version, spec, tokens, root: None }).unwrap();
        }
    }

    /// Its daemon starts again: it is locked if its files are.
    pub(crate) fn restart(&self) {
        let mut state = self.0.state.lock().unwrap();
        if state.as_ref().is_some_and(|state| state.cluster.lock.key.is_some()) {
            *self.0.locked.lock().unwrap() = state.take();
            self.0.swarm.lock().unwrap().state = SwarmState::Locked;
        }
    }

    fn add_node(&self, id: [u8; 17], role: Role, number: u8) {
        let command = Command::AddNode {
            id: NodeId::from_random(id),
            role,
            hostname: format!("ant-{number}"),
            software: "0.1.0".into(),
            addresses: addresses(number),
            availability: crate::types::Availability::Active,
            certificate_expires: UnixTime(NOW.0 + 1_000_000),
            root: self.current().root_digest(),
        };
        self.apply(command).unwrap();
    }

    fn open_session(&self, node: NodeId, number: u8) {
        let resources = Resources { nano_cpus: 4_000_000_000, memory_bytes: 8 << 30 };
        let machine = Machine { os: "linux".into(), architecture: "x86_64".into(), resources };
        let (hostname, software, addresses) = (format!("ant-{number}"), "0.1.0".to_owned(), addresses(number));
        let boot = BootId([number; 8]);
        self.apply(Command::OpenSession { node, boot, hostname, software, addresses, machine, queues: Queues::ONE })
            .unwrap();
    }

    /// Commits a command, and all that the scheduler and the node make of it.
    pub(crate) fn apply(&self, command: Command) -> Result<Reply, ManagerError> {
        let mut guard = self.0.state.lock().unwrap();
        let mut state = guard.as_ref().unwrap().duplicate().unwrap();
        let reply = state.apply(&Entry { at: self.now(), command }).0.map_err(ManagerError::Refused);
        self.settle(&mut state);
        *guard = Some(Arc::new(state));
        reply
    }

    fn now(&self) -> UnixTime {
        UnixTime(NOW.0 + self.0.passed_secs.load(Ordering::Relaxed))
    }

    fn settle(&self, state: &mut State) {
        if state.cluster.rotation.is_some() {
            let root = state.root_digest();
            for node in state.nodes.keys().copied().collect::<Vec<_>>() {
                let command = Command::SetCertificateRoot { node, root };
                state.apply(&Entry { at: NOW, command }).0.unwrap();
            }
            state.apply(&Entry { at: NOW, command: Command::FinishRootRotation }).0.unwrap();
        }
        let is_updated = |state: &State| {
            state.services.values().any(|service| service.rollout.as_ref().is_some_and(Rollout::is_in_progress))
        };
        for _ in 0..MAX_ROUNDS {
            if !self.work(state) && !is_updated(state) {
                return;
            }
            self.0.passed_secs.fetch_add(u64::from(is_updated(state)), Ordering::Relaxed);
        }
    }

    /// One plan of the scheduler, and what the nodes do about it. Tells whether there was anything to do.
    fn work(&self, state: &mut State) -> bool {
        let at = self.now();
        let mut draw = || TaskId::from_random([0x40 + self.0.drawn.fetch_add(1, Ordering::Relaxed) as u8; 17]);
        let commands = schedule::plan(state, at, &mut draw);
        let planned = !commands.is_empty();
        for command in commands {
            state.apply(&Entry { at, command }).0.unwrap();
        }
        let placed: Vec<_> = state
            .tasks
            .values()
            .filter_map(|task| {
                let node = state.nodes.get(&task.node?)?;
                Some((task.id, node.id, node.boot?, task.desired, task.container.image.clone()))
            })
            .collect();
        for (id, node, boot, desired, image) in placed {
            let command = if desired > TaskState::Running {
                Command::ConfirmTaskGone { node, boot, id }
            } else {
                Command::ReportTasks { node, boot, statuses: vec![(id, self.report(&image))] }
            };
            // What was reported already is refused.
            let _ = state.apply(&Entry { at, command });
        }
        planned
    }

    fn report(&self, image: &str) -> TaskStatus {
        let broken = image == self.0.broken_image;
        TaskStatus {
            state: if broken { TaskState::Rejected } else { TaskState::Running },
            message: if broken { "preparing" } else { "started" }.into(),
            error: if broken { format!("No such image: {image}") } else { String::new() },
            exit_code: None,
            pid: (!broken).then_some(4242),
            at: NOW,
        }
    }

    /// The state of the manager.
    pub(crate) fn current(&self) -> Arc<State> {
        self.state().unwrap()
    }

    /// Serves it on a socket of its own until dropped.
    pub(crate) fn serve(self, name: &str) -> Served {
        let directory = std::env::temp_dir().join(format!("formic-api-{name}-{}", process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s");
        let socket = bind(&path, None).unwrap();
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let serving = std::thread::spawn(move || {
            let until = async {
                let _ = stopped.recv().await;
                Ok(())
            };
            smol::block_on(smol::future::or(until, serve_backend(socket, Box::new(self)))).unwrap();
        });
        Served { directory, path, stop: Some(stop), serving: Some(serving) }
    }
}

/// A served fake. Ends with its owner.
pub(crate) struct Served {
    directory: PathBuf,
    path: PathBuf,
    stop: Option<smol::channel::Sender<()>>,
    serving: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    pub(crate) fn socket(&self) -> &Path {
        &self.path
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.serving.take().map(std::thread::JoinHandle::join);
        let _ = std::fs::remove_dir_all(&self.directory);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the server ended badly");
        }
    }
}

fn control(number: u8) -> SocketAddr {
    (Ipv4Addr::new(10, 77, 0, number), 2377).into()
}

fn addresses(number: u8) -> NodeAddresses {
    let at = |port| (Ipv4Addr::new(10, 77, 0, number), port).into();
    NodeAddresses { control: at(2377), gossip: at(7946), data: at(4500), behind_nat: false }
}

fn ready<'a, T: Send + 'a>(value: T) -> Answer<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Backend for Fake {
    fn swarm(&self) -> SwarmInfo {
        self.0.swarm.lock().unwrap().clone()
    }

    fn state(&self) -> Option<Arc<State>> {
        self.0.state.lock().unwrap().clone()
    }

    fn refresh(&self) -> Answer<'_, Result<(), ManagerError>> {
        ready(Ok(()))
    }

    fn leader(&self) -> Option<NodeId> {
        self.swarm().node
    }

    fn propose(&self, command: Command) -> Answer<'_, Result<Reply, ManagerError>> {
        let lost =
            self.0.changing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        ready(if lost { Err(ManagerError::LeadLost) } else { self.apply(command) })
    }

    fn new_root(&self) -> Result<NewRoot, ManagerError> {
        crate::manager::new_root(&self.current())
    }

    fn join_tokens(&self) -> Option<(String, String)> {
        self.state().map(|_| ("SWMTKN-1-worker".into(), "SWMTKN-1-manager".into()))
    }

    fn network_names(&self) -> Vec<NetworkName> {
        self.0.names.lock().unwrap().clone()
    }

    fn init(&self, request: InitRequest) -> Answer<'_, Result<NodeId, NodeError>> {
        self.make_swarm(request.spec);
        ready(Ok(NodeId::from_random(NODE)))
    }

    fn join(&self, target: JoinTarget) -> Answer<'_, Result<(), NodeError>> {
        if target.token != "SWMTKN-1-worker" {
            return ready(Err(NodeError::Invalid("the join token is not that of this swarm".into())));
        }
        self.become_member(Role::Worker);
        ready(Ok(()))
    }

    fn leave(&self, force: bool) -> Answer<'_, Result<(), NodeError>> {
        let mut state = self.0.state.lock().unwrap();
        if state.is_some() && !force {
            return ready(Err(NodeError::Unavailable("this is the last manager: use --force".into())));
        }
        *state = None;
        *self.0.locked.lock().unwrap() = None;
        self.0.swarm.lock().unwrap().state = SwarmState::Inactive;
        ready(Ok(()))
    }

    fn unlock(&self, key: UnlockKey) -> Answer<'_, Result<(), NodeError>> {
        let mut locked = self.0.locked.lock().unwrap();
        if locked.as_ref().unwrap().cluster.lock.key.as_ref() != Some(&key.0) {
            return ready(Err(NodeError::WrongKey("swarm could not be unlocked: invalid key provided".into())));
        }
        *self.0.state.lock().unwrap() = locked.take();
        self.0.swarm.lock().unwrap().state = SwarmState::Active;
        ready(Ok(()))
    }

    fn status(&self) -> Answer<'_, Status> {
        ready(Status {
            version: "0.1.0".into(),
            swarm: self.swarm(),
            hostname: "ant-1".into(),
            boot: "0101010101010101".into(),
            boot_index: Some(4),
            manager_heard_ms_ago: Some(1234),
            clock_ahead_secs: Some(0),
            underlay_mtu_bytes: Some(1500),
            inner_mtu_bytes: Some(1438),
            peers: Vec::new(),
            networks: Vec::new(),
            sas: Vec::new(),
            epochs: vec![(1, "current".into()), (2, "next".into())],
            drops: BTreeMap::from([("gossip.unauthentic".to_owned(), 3)]),
            tasks: Vec::new(),
            data_path: vec![("cipher".into(), "aws-lc, 7.3 GB/s".into()), ("tso".into(), "on".into())],
        })
    }

    fn esp_keys(&self, _network: NetworkId) -> Answer<'_, Result<Zeroizing<String>, NodeError>> {
        ready(Ok(Zeroizing::new(format!("{ESP_KEYS}\n"))))
    }

    fn examine(&self) -> Answer<'_, Examination> {
        Box::pin(async move { Examination { asked_for_ms: 100, status: self.status().await, managers: Vec::new() } })
    }

    fn tasks(&self) -> Vec<LocalTask> {
        let Some(state) = self.state() else { return Vec::new() };
        let own = state.tasks.values().filter(|task| task.node == Some(NodeId::from_random(NODE)));
        own.filter_map(|task| Some(LocalTask { assignment: state.assignment(task)?, status: task.status.clone() }))
            .collect()
    }

    fn exec(&self, request: ExecRequest, io: ExecIo) -> Answer<'_, Result<i32, NodeError>> {
        let [program, arguments @ ..] = request.command.as_slice() else {
            return ready(Err(NodeError::Invalid("no command".into())));
        };
        let mut command = process::Command::new(program);
        command.args(arguments).envs(request.env.iter().filter_map(|entry| entry.split_once('=')));
        command.stdin(Stdio::from(io.stdin)).stdout(Stdio::from(io.stdout)).stderr(Stdio::from(io.stderr));
        let program = program.clone();
        Box::pin(smol::unblock(move || {
            let child = command.spawn();
            drop(command);
            let mut child = child.map_err(|error| NodeError::Failed(format!("cannot run {program}: {error}")))?;
            let status = child.wait().map_err(|error| NodeError::Failed(error.to_string()))?;
            Ok(status.code().unwrap_or(137))
        }))
    }

    fn attach(&self, wanted: AttachedNamespace) -> Answer<'_, Result<TaskAssignment, NodeError>> {
        let AttachedNamespace { namespace, network, address, aliases } = wanted;
        let id = TaskId::from_random([self.0.drawn.fetch_add(1, Ordering::Relaxed) as u8; 17]);
        let (node, boot) = (NodeId::from_random(NODE), BootId([1; 8]));
        let request = AttachRequest { image: format!("netns:{namespace}"), name: namespace, network, address, aliases };
        let answer = self.apply(Command::Attach { node, boot, id, request });
        let task = || self.current().assignment(&self.current().tasks[&id]).unwrap();
        ready(answer.map(|_| task()).map_err(|error| NodeError::Invalid(error.to_string())))
    }

    fn detach(&self, namespace: String, network: NetworkId) -> Answer<'_, Result<(), NodeError>> {
        let state = self.current();
        let is_it = |task: &&crate::cluster::Task| {
            task.standalone.as_ref() == Some(&namespace) && task.attachments.iter().any(|at| at.network == network)
        };
        let Some(task) = state.tasks.values().find(is_it) else {
            return ready(Err(NodeError::NotFound(format!("the namespace {namespace} is not on this network"))));
        };
        let (node, boot) = (NodeId::from_random(NODE), BootId([1; 8]));
        let gone = self.apply(Command::ConfirmTaskGone { node, boot, id: task.id });
        ready(gone.map(drop).map_err(|error| NodeError::Failed(error.to_string())))
    }

    fn import_image(&self, name: String, _directory: PathBuf) -> Answer<'_, Result<ImageInfo, NodeError>> {
        let image = ImageInfo { name, size_bytes: Some(1_234_567), created_at: NOW.0 };
        self.0.images.lock().unwrap().push(image.clone());
        ready(Ok(image))
    }

    fn images(&self) -> Answer<'_, Result<Vec<ImageInfo>, NodeError>> {
        ready(Ok(self.0.images.lock().unwrap().clone()))
    }

    fn remove_image(&self, name: String) -> Answer<'_, Result<(), NodeError>> {
        let mut images = self.0.images.lock().unwrap();
        let before = images.len();
        images.retain(|image| image.name != name);
        ready(if images.len() < before { Ok(()) } else { Err(NodeError::NotFound(format!("No such image: {name}"))) })
    }

    fn host_routes(&self) -> Vec<Ipv4Net> {
        vec![HOST_ROUTE.parse().unwrap()]
    }
}
