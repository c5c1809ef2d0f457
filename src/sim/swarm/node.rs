//! One node: its process with agent and perhaps manager, its disk, its clocks; how it starts, dies and changes its role.

use super::client::Rpc;
use super::link::Link;
use super::{
    BootId, CONTROL_PORT, DATA_PORT, Disk, Duration, GOSSIP_PORT, Host, KeysConfig, Manager, NodeAddresses, NodeId,
    Papers, Rng, RngExt, START, SeedableRng, Snapshot, SocketAddr, State, StdRng, Swarm, Time, UnixTime, members,
    queues_of,
};
use std::net::IpAddr;

/// Pause before a change of the role that failed is tried again, as the agent's.
const ROLE_RETRY: Duration = Duration::from_secs(1);

/// A node of the swarm, running or not.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) addresses: NodeAddresses,
    pub(super) boot: BootId,
    /// Counts its processes.
    pub(super) life: u64,
    /// `None` while it is off.
    pub(super) host: Option<Host>,
    /// While its process runs and it is one.
    pub(super) manager: Option<Manager>,
    /// What its manager has stored, while its process is off.
    pub(super) disk: Option<Disk>,
    /// The managers, as it last heard.
    pub(super) known: Vec<SocketAddr>,
    /// When it looks at its role again.
    pub(super) role_at: Option<Time>,
    asked: usize,
    /// How far its monotonic clock is ahead of the world's.
    pub(super) ahead: Duration,
    /// How far its wall clock is off.
    pub(super) wall_off_secs: i64,
    pub(super) link: Link,
    /// Its certificate, and the roots that it believes.
    pub(super) papers: Papers,
    /// Since when nothing bad has happened to its underlay or its process.
    pub(super) steady_since: Time,
    /// The managers removed it.
    pub(super) gone: bool,
    pub(super) gone_at: Option<Time>,
    /// No gossip comes to it or from it.
    pub(super) mute: bool,
}

impl Node {
    pub(super) fn new(id: NodeId, number: usize, now: Time) -> Node {
        let ip = IpAddr::from([192, 168, 0, 10 + number as u8]);
        let at = |port| SocketAddr::new(ip, port);
        let (control, gossip, data) = (at(CONTROL_PORT), at(GOSSIP_PORT), at(DATA_PORT));
        Node {
            id,
            addresses: NodeAddresses { control, gossip, data, behind_nat: false },
            boot: BootId([0; 8]),
            life: 0,
            host: None,
            manager: None,
            disk: None,
            known: Vec::new(),
            role_at: None,
            asked: 0,
            ahead: Duration::ZERO,
            wall_off_secs: 0,
            link: Link::new(now),
            papers: Papers::default(),
            steady_since: now,
            gone: false,
            gone_at: None,
            mute: false,
        }
    }

    /// Its monotonic clock.
    pub(super) fn local(&self, now: Time) -> Time {
        now + self.ahead
    }

    /// When its clock shows this, in the world's time.
    pub(super) fn global(&self, local: Time) -> Time {
        Time(local.0.saturating_sub(self.ahead.as_micros() as u64))
    }
}

impl Swarm {
    /// A node's monotonic clock.
    pub(super) fn local(&self, number: usize) -> Time {
        self.nodes[number].local(self.now)
    }

    /// A node's wall clock.
    pub(super) fn wall(&self, number: usize) -> UnixTime {
        wall(self.now, self.nodes[number].wall_off_secs)
    }

    /// Starts a node's process.
    pub(super) fn boot(&mut self, number: usize) {
        self.nodes[number].life += 1;
        self.unlock(number);
        self.begin_boot(number);
        let rng = StdRng::seed_from_u64(self.rng.next_u64());
        let (now, planted) = (self.local(number), self.planted);
        let node = &mut self.nodes[number];
        node.manager = node.disk.take().map(|disk| Manager::start(disk, rng, planted, now));
        if node.manager.is_some() {
            self.turn_manager(number);
        }
    }

    /// A new boot of the agent: whatever ran of it dies without a word.
    pub(super) fn begin_boot(&mut self, number: usize) {
        let boot = BootId(self.random());
        let rng = StdRng::from_seed(self.random());
        let (cluster, fork) = (self.state().cluster.id, self.state().cluster.fork);
        let (now, local, planted) = (self.now, self.local(number), self.planted);
        let node = &mut self.nodes[number];
        node.boot = boot;
        let config = KeysConfig { cluster, fork, node: node.id, boot, queues: queues_of(boot) };
        node.host = Some(Host::new(config, (local, node.wall_off_secs), rng, planted));
        node.link.reset(now);
        node.steady_since = now;
    }

    /// Stops a node's process without a word. If only the process died, the other ends of its connections see it.
    pub(super) fn kill(&mut self, number: usize) {
        let seen = self.rng.random_bool(0.5);
        self.nodes[number].life += 1;
        self.nodes[number].host = None;
        self.nodes[number].papers.forget();
        if let Some(manager) = self.nodes[number].manager.take() {
            self.nodes[number].disk = Some(manager.replica.shell.disk);
            self.break_links_to(number, seen);
        }
        if seen {
            self.close_at_manager(number);
        }
        self.nodes[number].link.reset(self.now);
        self.note_leader();
    }

    /// The host was asleep, or its process was stopped: its clocks are ahead of what it has done.
    pub(super) fn jump(&mut self, number: usize, by: Duration) {
        self.nodes[number].ahead += by;
        self.nodes[number].steady_since = self.now;
    }

    /// Its wall clock is set. The agent takes a step of it for a restored virtual machine, and begins a new boot.
    pub(super) fn set_wall(&mut self, number: usize, off_secs: i64) {
        self.nodes[number].wall_off_secs = off_secs;
        if self.nodes[number].host.is_some() {
            self.close_at_manager(number);
            self.begin_boot(number);
        }
    }

    /// Parts the underlay: the nodes of a group reach each other only.
    pub(super) fn part(&mut self, groups: &[Vec<usize>]) {
        let groups: Vec<Vec<IpAddr>> = groups
            .iter()
            .map(|group| group.iter().map(|number| self.nodes[*number].addresses.data.ip()).collect())
            .collect();
        self.network.partition(&groups);
        self.parted = true;
    }

    /// Nothing comes from one node to another any more.
    pub(super) fn block(&mut self, from: usize, to: usize) {
        self.network.block(self.nodes[from].addresses.data.ip(), self.nodes[to].addresses.data.ip());
        self.parted = true;
    }

    /// Mends the underlay.
    pub(super) fn heal(&mut self) {
        self.network.heal();
        self.network.unblock_all();
        self.parted = false;
        let now = self.now;
        self.nodes.iter_mut().for_each(|node| node.steady_since = now);
    }

    /// What nodes were told about their role.
    pub(super) fn turn_roles(&mut self) {
        for number in 0..self.nodes.len() {
            if self.nodes[number].role_at.is_some_and(|at| at <= self.now) {
                self.follow_role(number);
                self.follow_roots(number);
            }
        }
    }

    fn follow_role(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        node.role_at = None;
        let Some(told) = node.host.as_ref().and_then(|host| host.core.swarm.as_ref()) else { return };
        let own = told.managers.iter().find(|manager| manager.node == node.id).copied();
        node.known = told.managers.iter().map(|manager| manager.address).collect();
        if node.manager.as_ref().is_some_and(|manager| own.is_some_and(|own| own.seat != manager.member().0)) {
            node.manager = None;
            self.break_links_to(number, true);
            self.note_leader();
        }
        let node = &mut self.nodes[number];
        match (own.is_some(), node.manager.is_some()) {
            (true, false) => {
                let others: Vec<SocketAddr> =
                    node.known.iter().copied().filter(|address| *address != node.addresses.control).collect();
                let address = others.get(node.asked % others.len().max(1)).copied();
                node.asked += 1;
                node.role_at = Some(self.now + ROLE_RETRY);
                if let Some(other) = address.and_then(|address| self.number_at(address)) {
                    self.call(number, other, Rpc::State);
                }
            }
            (false, true) => {
                node.manager = None;
                self.break_links_to(number, true);
                self.note_leader();
            }
            _ => {}
        }
    }

    /// A node that was told to be a manager has the state to begin with.
    pub(super) fn become_manager(&mut self, number: usize, snapshot: Snapshot) {
        let rng = StdRng::seed_from_u64(self.rng.next_u64());
        let (now, planted) = (self.local(number), self.planted);
        let node = &mut self.nodes[number];
        let told = node.host.as_ref().and_then(|host| host.core.swarm.as_ref());
        let listed = told.is_some_and(|swarm| swarm.managers.iter().any(|manager| manager.node == node.id));
        let state = State::from_bytes(snapshot.data.bytes()).expect("a state");
        let Some(member) = members::seat_of(&state, node.id).filter(|_| listed && node.manager.is_none()) else {
            return;
        };
        node.manager = Some(Manager::start(Disk::new(member, snapshot, &state), rng, planted, now));
        self.turn_manager(number);
    }
}

/// A wall clock that is off by so much.
pub(super) fn wall(now: Time, off_secs: i64) -> UnixTime {
    UnixTime((START + now.0 / 1_000_000).saturating_add_signed(off_secs))
}
