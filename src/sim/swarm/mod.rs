//! A whole swarm in one process and virtual time: a manager and ten nodes out of the production's machines, on a
//! network that loses, delays, reorders, duplicates and parts, with sessions that break.
//!
//! ```text
//! chaos / tests -> Swarm -+- manager   cluster::State, plans, RecordBook, pushes
//!                         +- link      a session per node: ordered, breakable
//!                         +- host x 10 agent::core (keys, gossip), TaskTable, data plane's tables, containers
//!                         +- oracle    what must hold at every step
//! ```
//!
//! A run is determined by its seed. Nothing here decides anything that the production code decides.

mod chaos;
mod host;
mod link;
mod manager;
mod oracle;
mod tests;
mod traffic;

use super::network::{Faults, Network};
use crate::cluster::{Command, NodeState};
use crate::dataplane::simulated::Datagram;
use crate::keys::KeysConfig;
use crate::types::{
    BootId, ClusterSpec, ContainerSpec, Epoch, EpochPhase, Key32, NetworkId, NetworkSpec, NodeAddresses, NodeId,
    Placement, Queues, Resources, Role, ServiceId, ServiceMode, ServiceSpec, TaskState, Time,
};
use host::{Host, Wanted, Work};
use link::Link;
use manager::Manager;
use oracle::Oracle;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const GOSSIP_PORT: u16 = 7946;
const DATA_PORT: u16 = 4500;
/// Turns at one moment that are still no standstill: far more than one moment's datagrams can cause.
const IDLE_TURNS: u32 = 1000;

/// A node of the swarm, running or not.
struct Node {
    id: NodeId,
    addresses: NodeAddresses,
    boot: BootId,
    /// `None` while it is off.
    host: Option<Host>,
    link: Link,
    /// Since when nothing bad has happened to its underlay or its process.
    steady_since: Time,
    /// The managers removed it.
    gone: bool,
    gone_at: Option<Time>,
    /// No gossip comes to it or from it.
    mute: bool,
}

/// The world.
struct Swarm {
    now: Time,
    rng: StdRng,
    network: Network,
    manager: Manager,
    nodes: Vec<Node>,
    oracle: Oracle,
    sessions: u64,
    work: BTreeMap<(Time, u64), (usize, BootId, Work)>,
    drawn: u64,
    packets: u64,
    /// Between two packets of a pair, while traffic flows.
    traffic: Option<(Duration, Time)>,
    /// The last activation that did not wait for all to send with the epoch before, and the current epoch.
    activation: (Epoch, Time, bool),
    /// The network is in parts.
    parted: bool,
    /// A copy of some datagrams goes to a thief.
    thieves: bool,
    last_index: u64,
    idle_turns: u32,
    /// Who has a task on which network, and when who left.
    members: BTreeSet<(NodeId, NetworkId)>,
    left: BTreeMap<(NodeId, NetworkId), Time>,
}

/// The workers of a node's data plane: some number, another one after a restart perhaps.
fn queues_of(boot: BootId) -> Queues {
    let [first, ..] = boot.0;
    Queues::try_from([1, 2, 1, 3][usize::from(first) % 4]).unwrap_or(Queues::ONE)
}

impl Swarm {
    /// A swarm of running nodes with their first sessions still to come. Node 0 is the manager's.
    fn new(seed: u64, count: usize, faults: Faults, spec: ClusterSpec) -> Swarm {
        let now = Time(1_000_000);
        let mut rng = StdRng::seed_from_u64(seed);
        let manager = Manager::new(rng.next_u64(), spec, now);
        let network = Network::new(rng.next_u64(), faults);
        let mut swarm = Swarm {
            now,
            rng,
            network,
            manager,
            nodes: Vec::new(),
            oracle: Oracle::new(seed),
            sessions: 0,
            work: BTreeMap::new(),
            drawn: 0,
            packets: 0,
            traffic: None,
            activation: (Epoch(1), now, false),
            parted: false,
            thieves: true,
            last_index: 0,
            idle_turns: 0,
            members: BTreeSet::new(),
            left: BTreeMap::new(),
        };
        for number in 0..count {
            swarm.add_node(number);
            swarm.boot(number);
        }
        swarm
    }

    fn random<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    fn add_node(&mut self, number: usize) {
        let id = NodeId::from_random(self.random());
        let ip = IpAddr::from([192, 168, 0, 10 + number as u8]);
        let at = |port| SocketAddr::new(ip, port);
        let addresses =
            NodeAddresses { control: at(2377), gossip: at(GOSSIP_PORT), data: at(DATA_PORT), behind_nat: false };
        let role = if number == 0 { Role::Manager } else { Role::Worker };
        self.manager.admit(id, role, number, addresses, self.now);
        self.nodes.push(Node {
            id,
            addresses,
            boot: BootId([0; 8]),
            host: None,
            link: Link::new(self.now),
            steady_since: self.now,
            gone: false,
            gone_at: None,
            mute: false,
        });
    }

    /// Starts a node, or starts it again: whatever ran of it dies without a word.
    fn boot(&mut self, number: usize) {
        let boot = BootId(self.random());
        let rng = StdRng::from_seed(self.random());
        let (cluster, fork) = (self.manager.state.cluster.id, self.manager.state.cluster.fork);
        let now = self.now;
        let node = &mut self.nodes[number];
        node.boot = boot;
        node.host =
            Some(Host::new(KeysConfig { cluster, fork, node: node.id, boot, queues: queues_of(boot) }, now, rng));
        node.link.reset(now);
        node.steady_since = now;
    }

    /// Stops a node without a word. If only its process died, the manager sees the connection end.
    fn kill(&mut self, number: usize) {
        self.nodes[number].host = None;
        if self.rng.random_bool(0.5) && !self.nodes[number].link.cut {
            self.manager.close(self.nodes[number].id);
        }
        self.nodes[number].link.reset(self.now);
    }

    /// Cuts a node from the managers, or mends that.
    fn cut_session(&mut self, number: usize, cut: bool) {
        let link = &mut self.nodes[number].link;
        link.cut = cut;
        link.break_silently(self.sessions);
    }

    fn stop_manager(&mut self) {
        self.manager.stop();
        self.nodes.iter_mut().for_each(|node| node.link.break_silently(self.sessions));
    }

    fn start_manager(&mut self) {
        self.manager.start(self.now);
    }

    /// Parts the underlay: the nodes of a group reach each other only.
    fn part(&mut self, groups: &[Vec<usize>]) {
        let groups: Vec<Vec<IpAddr>> = groups
            .iter()
            .map(|group| group.iter().map(|number| self.nodes[*number].addresses.data.ip()).collect())
            .collect();
        self.network.partition(&groups);
        self.parted = true;
    }

    /// Mends the underlay.
    fn heal(&mut self) {
        self.network.heal();
        self.parted = false;
        let now = self.now;
        self.nodes.iter_mut().for_each(|node| node.steady_since = now);
    }

    /// Commits what a user wants.
    fn command(&mut self, command: Command) -> Result<(), String> {
        let result = self.manager.propose(command, self.now).map(drop).map_err(|refusal| refusal.to_string());
        self.check_state();
        result
    }

    fn create_network(&mut self, name: &str, encrypted: bool) -> NetworkId {
        let id = NetworkId::from_random(self.random());
        let (labels, options) = (BTreeMap::new(), BTreeMap::new());
        let spec = NetworkSpec { name: name.into(), labels, options, encrypted, subnet: None, gateway: None };
        self.command(Command::CreateNetwork { id, spec }).expect("a new network");
        id
    }

    fn create_service(&mut self, name: &str, replicas: u64, networks: &[NetworkId]) -> ServiceId {
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
        let spec =
            ServiceSpec { name: name.into(), labels, container, networks, mode, placement, reservations, api_spec };
        self.command(Command::CreateService { id, spec }).expect("a new service");
        id
    }

    fn remove_node(&mut self, number: usize) {
        let (node, master) = (self.nodes[number].id, Key32::new(self.random()));
        (self.nodes[number].gone, self.nodes[number].gone_at) = (true, Some(self.now));
        self.command(Command::RemoveNode { node, force: true, master }).expect("a node");
    }

    fn epoch(&self, phase: EpochPhase) -> Option<Epoch> {
        self.manager.state.ring.phase(phase).map(|epoch| epoch.epoch)
    }

    /// An operator's rotation, as soon as it is possible; panics when it is not within a minute.
    fn rotate(&mut self, force: bool) {
        let before = self.epoch(EpochPhase::Current);
        let minute = Duration::from_secs(60);
        let asked = self.run_until(minute, |swarm| swarm.command(Command::RequestRotation { force }).is_ok());
        let limit = if force { Duration::from_secs(700) } else { minute };
        let done = asked.and_then(|_| self.run_until(limit, |swarm| swarm.epoch(EpochPhase::Current) > before));
        if done.is_none() {
            let late = crate::cluster::ring::late(&self.manager.state);
            self.oracle.fail(self.now, &format!("no rotation: asked {asked:?}, waits for {late:?}"));
        }
    }

    /// Runs for a while.
    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    /// Runs until a condition holds, looking every 50 ms; how long that took, or `None` if it did not in time.
    fn run_until(&mut self, limit: Duration, mut condition: impl FnMut(&mut Swarm) -> bool) -> Option<Duration> {
        let (start, end) = (self.now, self.now + limit);
        loop {
            if condition(self) {
                return Some(self.now.since(start));
            }
            if self.now >= end {
                return None;
            }
            let look = (self.now + Duration::from_millis(50)).min(end);
            while self.step(look) {}
        }
    }

    /// Goes to the next event, at most to `end`; false when there.
    fn step(&mut self, end: Time) -> bool {
        let hosts = self.nodes.iter().filter_map(|node| node.host.as_ref()?.next_time);
        let work = self.work.first_key_value().map(|((at, _), _)| *at);
        let traffic = self.traffic.map(|(_, at)| at);
        let others = [self.network.next_delivery(), self.manager.next_time(), self.next_link_time(), work, traffic];
        let next = hosts.chain(others.into_iter().flatten()).min().unwrap_or(end);
        if next >= end {
            self.now = end;
            return false;
        }
        self.note_progress(next);
        self.deliver();
        self.turn_links();
        self.turn_manager();
        self.turn_work();
        self.turn_hosts();
        self.turn_traffic();
        true
    }

    /// A machine whose timer does not move on would keep a daemon's processor busy.
    fn note_progress(&mut self, next: Time) {
        self.idle_turns = if next > self.now { 0 } else { self.idle_turns + 1 };
        if self.idle_turns > IDLE_TURNS {
            let busy =
                |node: &Node| node.host.as_ref().and_then(|host| host.next_time).is_some_and(|at| at <= self.now);
            let hosts: Vec<usize> = (0..self.nodes.len()).filter(|number| busy(&self.nodes[*number])).collect();
            self.oracle
                .fail(self.now, &format!("time stands still: timers of nodes {hosts:?} are due again and again"));
        }
        self.now = self.now.max(next);
    }

    fn turn_hosts(&mut self) {
        let now = self.now;
        for number in 0..self.nodes.len() {
            let due = self.nodes[number].host.as_ref().and_then(|host| host.next_time).is_some_and(|at| at <= now);
            if due {
                self.with_host(number, |host| host.core.handle_timeout(now));
            }
        }
    }

    fn turn_manager(&mut self) {
        if self.manager.next_time().is_none_or(|at| at > self.now) {
            return;
        }
        let (frames, removed) = self.manager.turn(self.now);
        for frames in frames {
            if let Some(number) = self.number_of(frames.node) {
                self.send_frames(number, frames.session, frames.frames);
            }
        }
        for (node, session) in removed {
            let frame = crate::wire::frame::encode(&crate::wire::control::ToAgent::Removed).expect("a short frame");
            if let Some(number) = self.number_of(node) {
                self.send_frames(number, session, vec![frame.to_vec()]);
            }
        }
        self.check_state();
    }

    fn number_of(&self, node: NodeId) -> Option<usize> {
        self.nodes.iter().position(|known| known.id == node)
    }

    /// What must hold of the state after each change.
    fn check_state(&mut self) {
        let state = &self.manager.state;
        if state.index == self.last_index {
            return;
        }
        self.last_index = state.index;
        self.oracle.check_state(state, self.now);
        self.check_owners();
        self.note_members();
        let state = &self.manager.state;
        let (epoch, at, _) = self.activation;
        if let Some(current) = self.epoch(EpochPhase::Current).filter(|current| *current != epoch) {
            // What was due by the timer comes a minute after the one before at the least.
            let hasty = self.now.since(at) < Duration::from_secs(50) && state.ring.keep_previous_secs < 600;
            self.activation = (current, self.now, hasty);
        }
    }

    fn turn_work(&mut self) {
        while let Some(entry) = self.work.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (number, boot, work) = entry.remove();
            if self.nodes[number].boot == boot {
                self.oracle.note(self.now, format!("{number} {work:?}").as_bytes());
                let now = self.now;
                self.with_host(number, |host| host.work_done(work, now));
            }
        }
    }

    /// Does what a host wants done.
    fn do_wanted(&mut self, number: usize, wanted: Wanted) {
        let (node, now) = (&self.nodes[number], self.now);
        let Some(host) = &node.host else { return };
        if let Some(reason) = &host.core.new_boot {
            self.oracle.fail(now, &format!("node {number} needs a new boot: {reason}"));
        }
        let boots: BTreeMap<SocketAddr, BootId> = if wanted.gossip.is_empty() {
            BTreeMap::new()
        } else {
            host.core.gossip.members().map(|member| (member.address, member.boot)).collect()
        };
        let (from, boot) = (node.addresses.gossip, node.boot);
        let mute: Vec<SocketAddr> =
            self.nodes.iter().filter(|node| node.mute).map(|node| node.addresses.gossip).collect();
        for transmit in wanted.gossip {
            self.oracle.gossiped(&transmit.payload, transmit.to, boots.get(&transmit.to).copied(), now);
            if !mute.contains(&from) && !mute.contains(&transmit.to) {
                self.network.send(from, transmit.to, transmit.payload, now);
            }
        }
        for datagram in wanted.data {
            self.send_datagram(number, datagram);
        }
        for work in wanted.work {
            self.drawn += 1;
            let delay = Duration::from_millis(self.rng.random_range(2..80));
            self.work.insert((now + delay, self.drawn), (number, boot, work));
        }
        self.tell_manager(number, wanted.messages);
        if wanted.session {
            self.want_session(number);
        }
    }

    fn send_datagram(&mut self, number: usize, datagram: Datagram) {
        let from = self.nodes[number].addresses.data;
        self.oracle.sealed(from, datagram.identity, &datagram.payload, self.now);
        if self.thieves && self.rng.random_ratio(1, 200) {
            self.try_theft(&datagram);
        }
        self.network.send(from, datagram.to, datagram.payload, self.now);
    }

    /// All tasks that shall run do, each node that is there has its session, and nothing else is left anywhere.
    fn is_settled(&self) -> bool {
        let state = &self.manager.state;
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
            && there.clone().all(|node| node.link.is_open())
            && there.clone().all(|node| state.nodes.get(&node.id).is_some_and(|it| it.state == NodeState::Ready))
    }
}
