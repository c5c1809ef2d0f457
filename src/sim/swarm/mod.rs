//! A whole swarm in one process and virtual time: managers and nodes out of the production's machines, on a network
//! that loses, delays, reorders, duplicates and parts, with disks that crash, clocks that jump, sessions that break.
//!
//! ```text
//! chaos, tests -> Swarm -+- manager   the production's replica (consensus, state, log) on a virtual disk;
//!                        |  leading   plans, sessions, records and pushes of the one that leads
//!                        +- client    users: commands and reads through any manager
//!                        +- link      a session per node: ordered, breakable, finds the leader
//!                        +- trust     certificates' roots and the managers' locks, as operators change them
//!                        +- host      agent::core (keys, gossip), TaskTable, data plane's tables, containers
//!                        +- oracle    what must hold at every step: packets, nonces, addresses
//!                           ledger    one leader a term, one log;  rotation: the key life by the world's clock
//! ```
//!
//! A run is determined by its seed. Nothing here decides anything that the production code decides. `Planted` faults
//! live in the shell that is simulated, and show that the oracle sees them.
//!
//! # What is simulated
//!
//! - The production's machines as they are: consensus and replica, state, planner, book of records, pushes; the agent's
//!   core, task table, search for a manager, gossip and keys; the data plane's tables with real ESP. Not its shells:
//!   TLS, files, threads and the API are stood in for by what they promise (a stream is in order or breaks; who knows a
//!   root believes what stands under it; what is locked opens with its key).
//! - The underlay, for consensus, gossip and ESP alike: loss, delay and so reordering, duplication, partitions, cuts of
//!   one direction. Sessions and calls between managers break, seen or unseen by the other end.
//! - Processes that die at any moment, and managers at any write: what was being written is there or not, all of it, as
//!   the store promises, and nothing that follows from it has left the process.
//! - Clocks, in a quarter of the runs: a node's monotonic clock leaps ahead, its wall clock is set by up to two days.
//! - Leaders killed, cut off, asked to hand over; nodes that join, are promoted, demoted, removed.
//! - New root certificates, by users' wish and after each demotion, with answers that get lost; autolock on, off, with
//!   another key, shown to an operator or not.
//!
//! # What must hold
//!
//! | what | where |
//! |---|---|
//! | one leader a term; one log, of which nothing is lost; replicas with the same index are the same | `ledger`, `check_replicas` |
//! | reads and writes through any manager are linearizable | `client` |
//! | no address has two owners, nor an owner while another's container has it still | `oracle`, `traffic` |
//! | no (key, nonce) twice, in ESP and in gossip, over all boots | `oracle` |
//! | on a path that was well for a while no packet is turned away; none reaches whom it is not for | `traffic` |
//! | a due rotation happens at once when all are ready, once, not before its time, not without those it waits for | `rotation` |
//! | a retired master is nowhere in the state; keys only where a task is; nothing of a removed node is in use | `oracle`, `traffic` |
//! | a new root shuts no node out, no lock needs a key that nobody was shown | `trust`, `chaos` |
//! | after the last fault all is in its place within a minute, and every two containers reach each other | `chaos` |

mod chaos;
mod client;
mod day;
mod host;
mod leading;
mod ledger;
mod link;
mod manager;
mod node;
mod oracle;
mod rotation;
mod run;
#[cfg(test)]
mod tests;
mod traffic;
mod trust;

pub use chaos::{Options, Report, run};
pub use day::day;

use super::network::{Faults, Network};
use crate::cluster::{CertificateAuthority, Command, Entry, NodeState, Reply, State};
use crate::dataplane::simulated::Datagram;
use crate::keys::KeysConfig;
use crate::manager::handle::{FIRST_TERM, ManagerError};
use crate::manager::members;
use crate::raft::{Membership, Payload, Peer, Position, Snapshot};
use crate::types::{
    Availability, BootId, ClusterId, ClusterSpec, ContainerSpec, Epoch, EpochPhase, Fork, Key32, NetworkId,
    NetworkSpec, NodeAddresses, NodeId, Placement, Queues, Renewal, Resources, Role, ServiceId, ServiceMode,
    ServiceSpec, TaskState, Time, UnixTime,
};
use client::{Clients, Rpc};
use host::{Host, Wanted, Work};
use ledger::Ledger;
use manager::{Disk, Manager};
use node::Node;
use oracle::Oracle;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use trust::{EXPIRES, Papers, Shown};
use zeroize::Zeroizing;

const CONTROL_PORT: u16 = 2377;
const GOSSIP_PORT: u16 = 7946;
const DATA_PORT: u16 = 4500;
/// The wall clock at the start of a simulation.
const START: u64 = 1_800_000_000;
/// Turns at one moment that are still no standstill: far more than one moment's datagrams can cause.
const IDLE_TURNS: u32 = 2000;
/// Between two looks at what is overdue.
const AUDIT: Duration = Duration::from_secs(1);

/// A fault of the simulated shell, planted to show that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Planted {
    /// None.
    #[default]
    Nothing,
    /// The leader activates what is due, whoever is ready.
    SkipAcknowledgement,
    /// A new leader counts the age of the active epoch from its election.
    ResetTimerAtElection,
    /// A node takes a ring only if it is one step from the last one.
    RingAsDifference,
}

/// How a swarm is made.
#[derive(Clone)]
struct Setup {
    nodes: usize,
    managers: usize,
    faults: Faults,
    spec: ClusterSpec,
    planted: Planted,
}

/// The leader, as seen from above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leader {
    number: usize,
    term: u64,
    since: Time,
}

/// The process that called, the one that is called: a connection does not outlive either.
type Lives = (u64, u64);

/// The world.
struct Swarm {
    now: Time,
    rng: StdRng,
    network: Network,
    ledger: Ledger,
    leader: Option<Leader>,
    nodes: Vec<Node>,
    clients: Clients,
    calls: BTreeMap<(Time, u64), (usize, usize, Lives, Rpc)>,
    /// Processes that died over a write.
    crashed: Vec<usize>,
    planted: Planted,
    oracle: Oracle,
    sessions: u64,
    work: BTreeMap<(Time, u64), (usize, BootId, Work)>,
    drawn: u64,
    packets: u64,
    /// Between two packets of a pair, while traffic flows.
    traffic: Option<(Duration, Time)>,
    /// The last activation that did not wait for all to send with the epoch before, and the current epoch.
    activation: (Epoch, Time, bool),
    /// Rotations are forced, or clocks jump: epochs may follow each other faster than nodes do.
    hasty: bool,
    /// The network is in parts.
    parted: bool,
    /// A copy of some datagrams goes to a thief.
    thieves: bool,
    /// What operators know.
    shown: Shown,
    idle_turns: u32,
    audit_at: Time,
    /// Who has a task on which network, and when who left.
    members: BTreeSet<(NodeId, NetworkId)>,
    left: BTreeMap<(NodeId, NetworkId), Time>,
}

/// The workers of a node's data plane: some number, another one after a restart perhaps.
fn queues_of(boot: BootId) -> Queues {
    let [first, ..] = boot.0;
    Queues::try_from([1, 2, 1, 3][usize::from(first) % 4]).unwrap_or(Queues::ONE)
}

fn random<const N: usize>(rng: &mut StdRng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

impl Swarm {
    /// A swarm of running nodes with their first sessions still to come. The first ones are managers.
    fn new(seed: u64, setup: Setup) -> Swarm {
        let now = Time(1_000_000);
        let mut rng = StdRng::seed_from_u64(seed);
        let network = Network::new(rng.next_u64(), setup.faults);
        let (state, nodes) = first_state(&mut rng, &setup, now);
        let mut swarm = Swarm {
            now,
            rng,
            network,
            ledger: Ledger::new(state, now),
            leader: None,
            nodes,
            clients: Clients::default(),
            calls: BTreeMap::new(),
            crashed: Vec::new(),
            planted: setup.planted,
            oracle: Oracle::new(seed),
            sessions: 0,
            work: BTreeMap::new(),
            drawn: 0,
            packets: 0,
            traffic: None,
            activation: (Epoch(1), now, false),
            hasty: false,
            parted: false,
            thieves: true,
            shown: Shown::default(),
            idle_turns: 0,
            audit_at: now,
            members: BTreeSet::new(),
            left: BTreeMap::new(),
        };
        swarm.form_managers();
        (0..setup.nodes).for_each(|number| swarm.boot(number));
        swarm
    }

    /// All managers begin with the same snapshot, and a vote.
    fn form_managers(&mut self) {
        let state = &self.ledger.truth;
        let managers = state.nodes.values().filter(|node| node.role == Role::Manager);
        let seat = |node: &crate::cluster::Node| members::seat_of(state, node.id).expect("a manager");
        let peers: BTreeMap<_, _> =
            managers.map(|node| (seat(node), Peer { node: node.id, address: node.addresses.control })).collect();
        let membership = Membership { voters: peers.keys().copied().collect(), peers, ..Membership::default() };
        self.ledger.truth.managers = members::seats(&membership);
        let data = Payload::new(self.ledger.truth.to_bytes().expect("a state"));
        let position = Position { term: FIRST_TERM, index: self.ledger.truth.index };
        let snapshot = Snapshot { position, membership, data };
        for node in &mut self.nodes {
            node.known = snapshot.membership.peers.values().map(|peer| peer.address).collect();
            let seat = snapshot.membership.member_on(node.id);
            node.disk = seat.map(|member| Disk::new(member, snapshot.clone(), &self.ledger.truth));
        }
    }

    fn random<const N: usize>(&mut self) -> [u8; N] {
        random(&mut self.rng)
    }

    /// What the managers have committed.
    fn state(&self) -> &State {
        &self.ledger.truth
    }

    /// The node whose manager leads.
    fn leading_node(&self) -> Option<usize> {
        self.leader.map(|leader| leader.number)
    }

    /// A manager to talk to: the leader's, or any.
    fn some_manager(&self) -> Option<usize> {
        self.leading_node().or_else(|| self.nodes.iter().position(|node| node.manager.is_some()))
    }

    /// Has a user's command committed, and waits for it.
    fn command(&mut self, command: Command) -> Result<Reply, String> {
        let limit = Duration::from_secs(20);
        let ready = self.run_until(limit, |swarm| swarm.leader.is_some());
        let origin = self.some_manager().filter(|_| ready.is_some()).ok_or("no manager")?;
        let op = self.ask(origin, command);
        self.run_until(limit, |swarm| swarm.clients.ends.contains_key(&op)).ok_or("no answer")?;
        let end = self.clients.ends.remove(&op).unwrap_or(Err(ManagerError::NoLeader));
        end.map(|(reply, _)| reply).map_err(|error| error.to_string())
    }

    fn create_network(&mut self, name: &str, encrypted: bool) -> NetworkId {
        let id = NetworkId::from_random(self.random());
        let (labels, options) = (BTreeMap::new(), BTreeMap::new());
        let spec = NetworkSpec { name: name.into(), labels, options, encrypted, ..NetworkSpec::default() };
        self.command(Command::CreateNetwork { id, spec }).expect("a new network");
        id
    }

    fn service(&mut self, name: &str, replicas: u64, networks: &[NetworkId]) -> Command {
        let id = ServiceId::from_random(self.random());
        let container = ContainerSpec {
            image: "host:latest".into(),
            command: vec![],
            args: vec![],
            env: vec![],
            dir: String::new(),
            hostname: String::new(),
        };
        let networks = networks.iter().map(|network| (*network, vec![])).collect();
        let (labels, api_spec) = (BTreeMap::new(), String::new());
        let mode = ServiceMode::Replicated { replicas };
        let (placement, reservations) = (Placement::default(), Resources::default());
        let (name, renewal) = (name.into(), Renewal::default());
        let spec = ServiceSpec { name, labels, container, networks, mode, placement, reservations, renewal, api_spec };
        Command::CreateService { id, spec }
    }

    /// A service on nodes that meet this condition.
    fn bound_service(&mut self, name: &str, replicas: u64, network: NetworkId, constraint: &str) -> Command {
        let mut command = self.service(name, replicas, &[network]);
        if let Command::CreateService { spec, .. } = &mut command {
            spec.placement.constraints = vec![constraint.parse().expect("a constraint")];
        }
        command
    }

    #[cfg(test)]
    fn create_service(&mut self, name: &str, replicas: u64, networks: &[NetworkId]) -> ServiceId {
        let command = self.service(name, replicas, networks);
        let Command::CreateService { id, .. } = &command else { unreachable!("it is one") };
        let id = *id;
        self.command(command).expect("a new service");
        id
    }

    fn removal(&mut self, number: usize) -> Command {
        let (node, master) = (self.nodes[number].id, Key32::new(self.random()));
        Command::RemoveNode { node, force: true, master }
    }

    fn epoch(&self, phase: EpochPhase) -> Option<Epoch> {
        self.state().ring.phase(phase).map(|epoch| epoch.epoch)
    }

    fn number_of(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|known| known.id == node)
    }

    fn number_at(&self, address: SocketAddr) -> Option<usize> {
        self.nodes.iter().position(|known| known.addresses.control.ip() == address.ip())
    }

    /// What must hold of the state after each change.
    fn check_state(&mut self) {
        for number in 0..self.nodes.len() {
            let node = &self.nodes[number];
            if !node.gone && self.state().gone.contains_key(&node.id) {
                (self.nodes[number].gone, self.nodes[number].gone_at) = (true, Some(self.now));
            }
        }
        self.oracle.check_state(&self.ledger.truth, self.now);
        self.check_owners();
        self.note_members();
        let (epoch, at, _) = self.activation;
        if let Some(current) = self.epoch(EpochPhase::Current).filter(|current| *current != epoch) {
            // What was due by the timer comes an interval after the one before, give or take what clocks do.
            let interval = Duration::from_secs(self.state().cluster.spec.key_rotation_secs.into());
            let soon = self.now.since(at) < interval * 5 / 6;
            let hasty = soon && (self.hasty || self.state().ring.keep_previous_secs < 600);
            self.activation = (current, self.now, hasty);
        }
    }

    /// All tasks that shall run do, each node that is there has its session, the managers are those that shall be and
    /// agree, and nothing else is left anywhere.
    fn is_settled(&self) -> bool {
        let state = self.state();
        let replicas = |service: &crate::cluster::Service| match service.spec.mode {
            ServiceMode::Replicated { replicas } => replicas,
            ServiceMode::Global => 0,
        };
        let wanted: u64 = state.services.values().filter(|it| !it.removing).map(replicas).sum();
        let running = state.tasks.values().filter(|task| task.is_live() && task.status.state == TaskState::Running);
        let leaving = |task: &&crate::cluster::Task| task.desired != TaskState::Running && !task.gone;
        let there = self.nodes.iter().filter(|node| !node.gone && node.host.is_some());
        running.count() as u64 == wanted
            && !state.tasks.values().any(|task| leaving(&task))
            && self.are_in_touch()
            && there.clone().all(|node| state.nodes.get(&node.id).is_some_and(|it| it.state == NodeState::Ready))
            && self.managers_agree()
            && self.root_is_replaced()
    }

    /// Each node that is there has a session that works.
    fn are_in_touch(&self) -> bool {
        let there = |number: &usize| !self.nodes[*number].gone && self.nodes[*number].host.is_some();
        (0..self.nodes.len()).filter(there).all(|number| self.in_touch_since(number).is_some())
    }

    /// The managers are those that shall be, and hold what is committed.
    fn managers_agree(&self) -> bool {
        let state = self.state();
        let agrees = |node: &Node| {
            let wanted = members::seat_of(state, node.id);
            match (&node.manager, wanted) {
                (None, None) => true,
                (Some(manager), Some(seat)) => {
                    let voter = manager.replica.raft.membership().is_voter(seat);
                    let locked = manager.replica.shell.disk.lock == state.cluster.lock;
                    manager.member() == seat && voter && locked && manager.state().index == state.index
                }
                _ => node.host.is_none(),
            }
        };
        let extra = state.managers.keys().any(|node| members::seat_of(state, *node).is_none());
        self.leader.is_some() && !extra && self.nodes.iter().filter(|node| !node.gone).all(agrees)
    }

    /// Two managers with the same index hold the same state.
    fn check_replicas(&self) {
        let truth = self.state();
        let expected = truth.to_bytes().expect("a state");
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(manager) = node.manager.as_ref().filter(|it| it.state().index == truth.index) else { continue };
            if manager.state().to_bytes().expect("a state") != expected {
                self.oracle.fail(self.now, &format!("the state of node {number} is not what was committed"));
            }
        }
    }
}

/// The state of a new swarm, and its nodes.
fn first_state(rng: &mut StdRng, setup: &Setup, now: Time) -> (State, Vec<Node>) {
    let at = UnixTime(START + now.0 / 1_000_000);
    let command = Command::Init {
        cluster: ClusterId::from_random(random(rng)),
        fork: Fork(START),
        spec: setup.spec.clone(),
        worker_secret: Zeroizing::new(random(rng)),
        manager_secret: Zeroizing::new(random(rng)),
        authority: CertificateAuthority { certificate: vec![3; 64], key: Zeroizing::new(vec![4; 64]) },
        attestation: Key32::new(random(rng)),
        current: Key32::new(random(rng)),
        next: Key32::new(random(rng)),
    };
    let mut state = State::init(&Entry { at, command }).expect("a first entry");
    let mut nodes = Vec::new();
    for number in 0..setup.nodes {
        let mut node = Node::new(NodeId::from_random(random(rng)), number, now);
        node.papers = Papers::issued(&state);
        let role = if number < setup.managers { Role::Manager } else { Role::Worker };
        let (added, _) = state.apply(&Entry { at, command: admission(&node, number, role, state.root_digest()) });
        added.expect("a new node");
        nodes.push(node);
    }
    (state, nodes)
}

/// The command that admits a node, with a certificate under this root.
fn admission(node: &Node, number: usize, role: Role, root: [u8; 32]) -> Command {
    Command::AddNode {
        id: node.id,
        role,
        hostname: format!("host{number}"),
        software: "sim".into(),
        addresses: node.addresses,
        availability: Availability::Active,
        certificate_expires: EXPIRES,
        root,
    }
}
