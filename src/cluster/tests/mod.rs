//! A swarm made of commands. After every command the invariants of the module are checked, a refused one is checked
//! to have changed nothing, and the entry is kept so that the log can be replayed.

mod exposure;
mod fuzz_tests;
mod keys;
mod networks;
mod nodes;
mod properties;
mod rollout;
mod roots;
mod schedule;
mod services;
mod standalone;
mod tasks;

use super::*;
use crate::crypto;
use crate::types::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use zeroize::Zeroizing;

const START: u64 = 1_700_000_000;

pub(super) struct Swarm {
    pub(super) state: State,
    pub(super) now: UnixTime,
    pub(super) log: Vec<Vec<u8>>,
    drawn: u64,
    highest_epoch: Epoch,
}

impl Swarm {
    pub(super) fn new() -> Swarm {
        let now = UnixTime(START);
        let entry = Entry { at: now, command: init_command(ClusterSpec::default()) };
        let state = State::init(&entry).unwrap();
        let log = vec![postcard::to_stdvec(&entry).unwrap()];
        let swarm = Swarm { state, now, log, drawn: 1000, highest_epoch: Epoch(2) };
        swarm.check();
        swarm
    }

    /// A swarm with `count` workers that have a session, ids `node(1)` and on.
    pub(super) fn with_workers(count: u64) -> Swarm {
        let mut swarm = Swarm::new();
        for number in 1..=count {
            swarm.ok(add_node(number, Role::Worker));
            swarm.ok(open_session(number, number));
        }
        swarm
    }

    pub(super) fn apply(&mut self, command: Command) -> (Result<Reply, Refusal>, Vec<Effect>) {
        let entry = Entry { at: self.now, command };
        self.log.push(postcard::to_stdvec(&entry).unwrap());
        let before = self.state.duplicate().unwrap();
        let (result, effects) = self.state.apply(&entry);
        assert_eq!(self.state.index, before.index + 1);
        if result.is_err() {
            assert!(effects.is_empty());
            assert!(same_but_index(&before, &self.state), "a refused command changed the state");
        }
        self.check_step(&before);
        (result, effects)
    }

    pub(super) fn ok(&mut self, command: Command) -> Vec<Effect> {
        let (result, effects) = self.apply(command);
        result.unwrap();
        effects
    }

    pub(super) fn refused(&mut self, command: Command) -> String {
        self.apply(command).0.unwrap_err().to_string()
    }

    /// Applies without the checks of every step, which are slow on a large state.
    pub(super) fn quick(&mut self, command: Command) {
        self.state.apply(&Entry { at: self.now, command }).0.unwrap();
    }

    /// A command that may be refused.
    pub(super) fn propose(&mut self, command: Command) {
        drop(self.apply(command));
    }

    pub(super) fn pass(&mut self, secs: u64) {
        self.now = UnixTime(self.now.0 + secs);
    }

    pub(super) fn draw_task(&mut self) -> TaskId {
        self.drawn += 1;
        TaskId(id(self.drawn))
    }

    /// Applies plans until one is empty, which must be the second; but the second may say that updates are through.
    pub(super) fn schedule(&mut self) -> usize {
        let commands = self.plan();
        let count = commands.len();
        for command in commands {
            self.ok(command);
        }
        // What a plan does may be what an update waited for.
        let finished = self.plan();
        assert!(finished.iter().all(|command| matches!(command, Command::FinishRollout { .. })));
        for command in finished {
            self.ok(command);
        }
        assert_eq!(self.plan().len(), 0, "the plan after a plan is empty");
        count
    }

    pub(super) fn plan(&mut self) -> Vec<Command> {
        let mut drawn = self.drawn;
        let commands = crate::cluster::schedule::plan(&self.state, self.now, &mut || {
            drawn += 1;
            TaskId(id(drawn))
        });
        self.drawn = drawn;
        for command in &commands {
            if let Command::ShutDownTask { id, remove: false } = command {
                check_reason(&self.state, self.task(*id));
            }
        }
        commands
    }

    pub(super) fn task(&self, id: TaskId) -> &Task {
        &self.state.tasks[&id]
    }

    /// The live tasks of a service by slot.
    pub(super) fn live(&self, service: ServiceId) -> BTreeMap<u64, TaskId> {
        let tasks = self.state.tasks.values().filter(|task| task.service == service && task.is_live());
        tasks.map(|task| (task.slot, task.id)).collect()
    }

    pub(super) fn report(&mut self, task: TaskId, state: TaskState) {
        let node = self.task(task).node.unwrap();
        self.ok(Command::ReportTasks { node, boot: self.boot_of(node), statuses: vec![(task, said(state))] });
    }

    pub(super) fn confirm(&mut self, task: TaskId) {
        let node = self.task(task).node.unwrap();
        self.ok(Command::ConfirmTaskGone { node, boot: self.boot_of(node), id: task });
    }

    /// The node's newest boot.
    pub(super) fn boot_of(&self, node: NodeId) -> BootId {
        self.state.nodes.get(&node).and_then(|node| node.boot).unwrap_or(boot(0))
    }

    /// What must hold between two steps.
    fn check_step(&mut self, before: &State) {
        for (id, task) in &self.state.tasks {
            let placed = task.node.filter(|_| before.tasks.get(id).is_none_or(|old| old.node.is_none()));
            if let Some(node) = placed {
                check_room(&self.state, task, node);
            }
            if let Some(old) = before.tasks.get(id) {
                assert!(task.status.state >= old.status.state, "{id}: {} -> {}", old.status.state, task.status.state);
                assert!(task.desired >= old.desired && task.gone >= old.gone);
            }
        }
        let known: BTreeSet<Epoch> = before.ring.epochs.iter().map(|epoch| epoch.epoch).collect();
        for epoch in self.state.ring.epochs.iter().map(|epoch| epoch.epoch).filter(|epoch| !known.contains(epoch)) {
            assert!(epoch > self.highest_epoch, "epoch {epoch} was used before");
            self.highest_epoch = epoch;
        }
        self.check();
    }

    /// What must hold always.
    pub(super) fn check(&self) {
        check_addresses(&self.state);
        check_tasks(&self.state);
        check_ring(&self.state);
    }
}

fn check_addresses(state: &State) {
    let mut live = BTreeMap::new();
    for task in state.tasks.values() {
        for attachment in &task.attachments {
            let twice = live.insert((attachment.network, attachment.address.addr()), task.id);
            assert_eq!(twice, None, "an address with two owners");
        }
        if task.gone || task.node.is_none() {
            assert_eq!(task.attachments.len(), 0);
        } else if task.standalone.is_some() {
            assert_eq!(task.attachments.len(), 1);
        } else {
            let service = state.services.get(&task.service).expect("a task has its service");
            if task.template == service.template {
                assert_eq!(task.attachments.len(), service.spec.networks.len());
            }
        }
    }
    let mut allocated = BTreeMap::new();
    for network in state.networks.values() {
        assert_eq!(network.free() + network.addresses.len() as u128, network.capacity());
        for (address, task) in &network.addresses {
            assert!(network.subnet.contains(address) && *address != network.gateway);
            assert!(*address != network.subnet.network() && *address != network.subnet.broadcast());
            allocated.insert((network.id, *address), *task);
        }
        for other in state.networks.values().filter(|other| other.id != network.id) {
            assert!(!network.subnet.contains(&other.subnet), "{} and {} overlap", network.subnet, other.subnet);
            assert_ne!(network.spec.name, other.spec.name);
        }
    }
    assert_eq!(allocated, live, "allocated and live addresses differ");
}

/// Nothing is told to stop without a reason.
fn check_reason(state: &State, task: &Task) {
    let service = &state.services[&task.service];
    if task.template != service.template {
        let rollout = service.rollout.as_ref();
        let late = service.spec.mode == ServiceMode::Global && !rollout.is_some_and(Rollout::is_paused);
        let replaced = rollout.is_some_and(Rollout::is_in_progress);
        if replaced || late || task.node.is_none() {
            return;
        }
    }
    let host = &state.nodes[&task.node.or(task.bound_to).expect("what waits on any node stays")];
    let there = host.state != NodeState::Down && host.availability != Availability::Drain;
    let suits = suit::meets(host, &state.services[&task.service].spec.placement.constraints);
    let here = state.tasks.values().filter(|other| other.node == Some(host.id) && other.is_live());
    let reserved = here.fold(Resources::default(), |sum, other| sum.plus(other.reservations));
    assert!(!there || !suits || !reserved.fits(host.machine.resources), "{} moves for nothing", task.id);
}

/// What a placement must never exceed.
fn check_room(state: &State, task: &Task, node: NodeId) {
    if task.standalone.is_some() {
        return;
    }
    let host = &state.nodes[&node];
    let spec = &state.services[&task.service].spec;
    let used = state.used(node, task.service);
    assert!(used.reserved.fits(host.machine.resources) || spec.reservations == Resources::default(), "{used:?}");
    assert!(spec.placement.max_per_node == 0 || used.live <= spec.placement.max_per_node, "{used:?}");
    assert!(suit::meets(host, &spec.placement.constraints) && host.takes_tasks());
}

fn check_tasks(state: &State) {
    let mut live = BTreeSet::new();
    for task in state.tasks.values() {
        assert!(!task.is_live() || live.insert((task.service, task.slot, task.bound_to)), "two live tasks in a place");
        let nodes = [task.node, task.bound_to];
        assert!(nodes.iter().flatten().all(|node| state.nodes.contains_key(node)), "a task on a node that is gone");
        assert!(task.bound_to.is_none() || task.node.is_none() || task.node == task.bound_to, "on another node");
        assert!(task.standalone.is_none() || !state.services.contains_key(&task.service), "attached, and of a service");
        assert!(!task.gone || (task.status.state.is_terminal() && task.desired > TaskState::Running));
    }
    for service in state.services.values().filter(|service| service.removing) {
        assert!(state.tasks.values().any(|task| task.service == service.id), "an empty service on its way out");
    }
}

fn check_ring(state: &State) {
    let epochs = &state.ring.epochs;
    assert!(state.ring.phase(EpochPhase::Current).is_some());
    assert!(epochs.len() <= 3);
    assert!(epochs.is_sorted_by(|one, other| one.phase < other.phase && one.epoch < other.epoch));
    for epoch in epochs {
        assert!(epoch.ready.is_subset(&epoch.participants));
        assert_eq!(epoch.activated_at.is_none(), epoch.phase == EpochPhase::Next);
    }
    for node in state.nodes.values() {
        assert!(node.publics.keys().all(|public| epochs.iter().any(|epoch| epoch.epoch == *public)));
        assert!(node.former_boots.len() <= limits::FORMER_BOOTS);
        assert!(node.boot.is_none_or(|boot| !node.former_boots.contains(&boot)));
    }
}

/// Whether two states differ in nothing but the index.
fn same_but_index(one: &State, other: &State) -> bool {
    let mut one = one.duplicate().unwrap();
    one.index = other.index;
    *one.to_bytes().unwrap() == *other.to_bytes().unwrap()
}

pub(super) fn id(number: u64) -> Id {
    let mut bytes = [0; 17];
    bytes[9..].copy_from_slice(&number.to_be_bytes());
    Id::from_random(bytes)
}

pub(super) fn node(number: u64) -> NodeId {
    NodeId(id(number))
}

pub(super) fn network(number: u64) -> NetworkId {
    NetworkId(id(100 + number))
}

pub(super) fn service(number: u64) -> ServiceId {
    ServiceId(id(200 + number))
}

pub(super) fn boot(number: u64) -> BootId {
    BootId(number.to_be_bytes())
}

pub(super) fn key(number: u8) -> Key32 {
    Key32::new([number; 32])
}

pub(super) fn addresses(number: u64) -> NodeAddresses {
    let at = |port| (IpAddr::from([192, 0, 2, number as u8]), port).into();
    NodeAddresses { control: at(2377), gossip: at(7946), data: at(4500), behind_nat: false }
}

pub(super) fn init_command(spec: ClusterSpec) -> Command {
    Command::Init {
        cluster: ClusterId(id(1)),
        fork: Fork(START),
        spec,
        worker_secret: Zeroizing::new([1; 16]),
        manager_secret: Zeroizing::new([2; 16]),
        authority: CertificateAuthority { certificate: vec![3; 64], key: Zeroizing::new(vec![4; 64]) },
        attestation: key(5),
        current: key(6),
        next: key(7),
    }
}

pub(super) fn add_node(number: u64, role: Role) -> Command {
    Command::AddNode {
        id: node(number),
        role,
        hostname: format!("host{number}"),
        software: "0.1.0".into(),
        addresses: addresses(number),
        availability: Availability::Active,
        certificate_expires: UnixTime(START + 90 * 86_400),
        root: crypto::sha256(&[&[3; 64]]),
    }
}

pub(super) fn open_session(number: u64, boot_number: u64) -> Command {
    Command::OpenSession {
        node: node(number),
        boot: boot(boot_number),
        hostname: format!("host{number}"),
        software: "0.1.0".into(),
        addresses: addresses(number),
        machine: machine(4, 1 << 30),
        queues: Queues::ONE,
    }
}

pub(super) fn machine(processors: u64, memory_bytes: u64) -> Machine {
    let resources = Resources { nano_cpus: processors * 1_000_000_000, memory_bytes };
    Machine { os: "linux".into(), architecture: "x86_64".into(), resources }
}

pub(super) fn set_state(number: u64, state: NodeState) -> Command {
    Command::SetNodeState { node: node(number), state, message: "as tested".into() }
}

pub(super) fn network_spec(name: &str, subnet: Option<&str>) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        labels: BTreeMap::new(),
        options: BTreeMap::from([("encrypted".into(), String::new())]),
        encrypted: true,
        subnet: subnet.map(|subnet| subnet.parse().unwrap()),
        gateway: None,
        ..NetworkSpec::default()
    }
}

pub(super) fn create_network(number: u64, subnet: Option<&str>) -> Command {
    Command::CreateNetwork { id: network(number), spec: network_spec(&format!("net{number}"), subnet) }
}

pub(super) fn service_spec(name: &str, networks: &[u64], replicas: u64) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        labels: BTreeMap::new(),
        container: ContainerSpec {
            image: "my-image:latest".into(),
            command: vec![],
            args: vec!["sleep".into(), "infinity".into()],
            env: vec!["A=b".into()],
            dir: String::new(),
            hostname: String::new(),
        },
        networks: networks.iter().map(|number| (network(*number), vec!["alias".into()])).collect(),
        mode: ServiceMode::Replicated { replicas },
        placement: Placement::default(),
        reservations: Resources::default(),
        renewal: Renewal::default(),
        api_spec: "{}".into(),
    }
}

pub(super) fn create_service(number: u64, networks: &[u64], replicas: u64) -> Command {
    let spec = service_spec(&format!("svc{number}"), networks, replicas);
    Command::CreateService { id: service(number), spec }
}

/// What a node says, with a clock of its own that is far off.
pub(super) fn said(state: TaskState) -> TaskStatus {
    TaskStatus {
        state,
        message: state.to_string(),
        error: String::new(),
        exit_code: state.is_terminal().then_some(1),
        pid: (state == TaskState::Running).then_some(42),
        at: UnixTime(9),
    }
}
