//! Packets between containers, and what has to become of them; a thief that tries to open them.

use super::oracle::Packet;
use super::{CONTROL_PORT, DATA_PORT, GOSSIP_PORT, Swarm};
use crate::crypto::X25519Secret;
use crate::dataplane::simulated::Datagram;
use crate::esp::{SaDatabase, SaKeys, WorkerShare};
use crate::types::{EndpointKey, Epoch, Key32, NetworkId, NodeId, TaskState, Time};
use rand::RngExt;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// Octets of a test packet: an IPv4 header and a number.
const PACKET_BYTES: usize = 28;
/// A path that was well for this long has to carry packets.
const SETTLING: Duration = Duration::from_secs(10);
/// By then everybody has heard of a removal: some comparisons of records, of which some are lost.
const GONE_HEARD: Duration = Duration::from_secs(15);
/// A task that was announced so long ago is known where sessions are open.
const KNOWN_SECS: u64 = 5;

/// An endpoint of a task that runs, as the managers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) key: EndpointKey,
    pub(super) node: usize,
    address: IpAddr,
    running_since: Time,
}

impl Swarm {
    /// The endpoints of the tasks that run both by the managers' word and in fact.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let state = self.state();
        let mut found = Vec::new();
        for task in state.tasks.values() {
            if !task.is_live() || task.status.state != TaskState::Running {
                continue;
            }
            let Some(node) = task.node.and_then(|node| self.number_of(node)) else { continue };
            for attachment in &task.attachments {
                let key = EndpointKey { network: attachment.network, task: task.id };
                let host = self.nodes[node].host.as_ref();
                if host.is_some_and(|host| host.containers.contains_key(&key)) {
                    let running_since = self.ledger.running_since(task.id).unwrap_or(self.now);
                    found.push(Endpoint { key, node, address: attachment.address.addr(), running_since });
                }
            }
        }
        found
    }

    /// The ordered pairs of endpoints of one network.
    pub(super) fn pairs(&self) -> Vec<(Endpoint, Endpoint)> {
        let all = self.endpoints();
        let pair = |a: &Endpoint, b: &Endpoint| a.key.network == b.key.network && a.key != b.key;
        all.iter().flat_map(|a| all.iter().filter(|b| pair(a, b)).map(|b| (*a, *b))).collect()
    }

    /// Whether a packet from one to the other has to arrive, unless the network loses it.
    fn is_expected(&self, from: &Endpoint, to: &Endpoint) -> bool {
        let well = |endpoint: &Endpoint| {
            let node = &self.nodes[endpoint.node];
            !node.gone
                && self.now.since(node.steady_since) > SETTLING
                && self.in_touch_since(endpoint.node).is_some_and(|since| self.now.since(since) > SETTLING)
                && self.now.since(endpoint.running_since) > Duration::from_secs(KNOWN_SECS)
        };
        let (_, at, hasty) = self.activation;
        let hasty = hasty && self.now.since(at) < SETTLING;
        !self.parted && !hasty && well(from) && well(to)
    }

    /// A container sends a packet to another; gives its number.
    pub(super) fn send_packet(&mut self, from: &Endpoint, to: &Endpoint, expected: bool) -> u64 {
        self.packets += 1;
        let number = self.packets;
        let to_boot = self.nodes[to.node].host.as_ref().map(|_| self.nodes[to.node].boot);
        let packet = Packet { from: from.key, to: to.key, to_boot, expected, delivered: None };
        self.oracle.packets.insert(number, packet);
        let (now, local) = (self.now, self.local(from.node));
        let Some(host) = &mut self.nodes[from.node].host else { return number };
        let Some(container) = host.containers.get(&from.key) else { return number };
        let inner = inner_packet(from.address, to.address, number);
        let written = nix::unistd::write(&container.device, &inner);
        if written.is_err() && !expected {
            return number;
        }
        match host.plane.transmit(from.key, number, local) {
            Some(datagram) => {
                let held: Vec<Epoch> = host.core.keys.epochs().into_iter().map(|(epoch, _)| epoch).collect();
                self.oracle.check_confirmed(&datagram.identity, &held, now);
                self.oracle.departed(self.nodes[from.node].addresses.data, &datagram.payload, number);
                self.send_datagram(from.node, datagram);
            }
            None => {
                self.read_devices(from.node);
                if expected && self.is_missing(number) {
                    self.explain(number, from.node, to.node, "was not sent");
                }
            }
        }
        number
    }

    fn is_missing(&self, number: u64) -> bool {
        self.oracle.packets.get(&number).is_some_and(|packet| packet.delivered.is_none())
    }

    pub(super) fn explain(&self, number: u64, from: usize, to: usize, what: &str) -> ! {
        let Some(packet) = self.oracle.packets.get(&number) else { self.oracle.fail(self.now, what) };
        let network = packet.from.network;
        let view = |own: usize, other: usize| {
            let Some(host) = &self.nodes[own].host else { return "off".to_owned() };
            let keys = &host.core.keys;
            let sending = keys.sending(network, self.nodes[other].id).map(|sa| (sa.epoch, sa.src_boot, sa.dst_boot));
            let peer = host.core.nodes.get(&self.nodes[other].id);
            let told = peer.map(|peer| (peer.boot, peer.publics.iter().map(|it| it.0.0).collect::<Vec<_>>()));
            let members = host.core.networks.get(&network).map(|view| view.members.len());
            let drops = host.plane.drops();
            let drops: Vec<_> = drops.iter().filter(|(_, count)| *count > 0).collect();
            format!(
                "epochs {:?}, active {:?}, sends with {sending:?}, boot {}, knows {told:?} of the other and {members:?} \
                 members, drops {drops:?}",
                keys.epochs(),
                keys.active(),
                self.nodes[own].boot
            )
        };
        let text = format!(
            "packet {number} of {:?} to {:?} {what}\nsender {from}: {}\nreceiver {to}: {}",
            packet.from,
            packet.to,
            view(from, to),
            view(to, from)
        );
        self.oracle.fail(self.now, &text)
    }

    /// Takes in what has arrived.
    pub(super) fn deliver(&mut self) {
        while let Some(delivery) = self.network.deliver(self.now) {
            let Some(number) = self.nodes.iter().position(|node| node.addresses.data.ip() == delivery.to.ip()) else {
                continue;
            };
            self.oracle.note(self.now, &delivery.payload);
            let now = self.local(number);
            match delivery.to.port() {
                CONTROL_PORT => self.take_consensus_message(number, delivery.from.ip(), &delivery.payload),
                GOSSIP_PORT => self.with_host(number, |host| {
                    host.core.gossip.handle_datagram(delivery.from, &delivery.payload, now);
                }),
                DATA_PORT => {
                    self.oracle.arrived(delivery.from, &delivery.payload);
                    self.with_host(number, |host| host.plane.receive(&delivery.payload, now));
                    self.read_devices(number);
                    self.judge_arrival(number, delivery.from, &delivery.payload);
                }
                port => unreachable!("nobody sends to port {port}"),
            }
        }
    }

    /// A datagram that arrives on a path that is well has to be taken.
    fn judge_arrival(&mut self, at: usize, from: std::net::SocketAddr, datagram: &[u8]) {
        let Some(number) = self.oracle.packet_in(from, datagram) else { return };
        let Some(packet) = self.oracle.packets.get(&number) else { return };
        let there = self.nodes[at].host.as_ref().is_some_and(|host| host.containers.contains_key(&packet.to));
        let same_boot = packet.to_boot == Some(self.nodes[at].boot);
        let live = |key: &EndpointKey| self.state().tasks.get(&key.task).is_some_and(|task| task.is_live());
        let over = !live(&packet.from) || !live(&packet.to) || self.nodes[at].gone;
        if !packet.expected || !there || !same_boot || over {
            return;
        }
        if packet.delivered.is_none() {
            let sender = self.nodes.iter().position(|node| node.addresses.data == from).unwrap_or(at);
            self.explain(number, sender, at, "arrived and was dropped");
        }
        self.oracle.held_to += 1;
    }

    /// Reads what the containers of a node got.
    fn read_devices(&mut self, number: usize) {
        let Some(host) = &self.nodes[number].host else { return };
        let mut buffer = [0; 2048];
        for (key, container) in &host.containers {
            while let Ok(length) = nix::unistd::read(&container.device, &mut buffer) {
                if length == 0 {
                    // The data plane has closed the device: the network is over, and the task about to end.
                    break;
                }
                let packet = buffer.get(..length).unwrap_or_default();
                let content = packet.get(20..PACKET_BYTES).and_then(|bytes| bytes.try_into().ok());
                let Some(content) = content.map(u64::from_be_bytes) else {
                    let text = format!("{key:?} of node {number} got {length} octets");
                    self.oracle.fail(self.now, &text)
                };
                self.oracle.received(*key, content, self.now);
            }
        }
    }

    /// The steady stream: each pair, each period.
    pub(super) fn turn_traffic(&mut self) {
        let Some((period, at)) = self.traffic.filter(|(_, at)| *at <= self.now) else { return };
        self.traffic = Some((period, at + period));
        for (from, to) in self.pairs() {
            let expected = self.is_expected(&from, &to);
            self.send_packet(&from, &to, expected);
        }
        self.check_holders();
        self.check_gone();
    }

    /// Lets packets flow between all pairs, each so often.
    pub(super) fn stream(&mut self, period: Option<Duration>) {
        self.traffic = period.map(|period| (period, self.now));
    }

    /// The pairs that cannot reach each other within a time; each tries every 200 ms.
    pub(super) fn unreachable(&mut self, limit: Duration) -> Vec<(Endpoint, Endpoint)> {
        let end = self.now + limit;
        let mut missing: Vec<(Endpoint, Endpoint, Vec<u64>)> =
            self.pairs().into_iter().map(|(from, to)| (from, to, Vec::new())).collect();
        while !missing.is_empty() && self.now < end {
            for (from, to, sent) in &mut missing {
                sent.push(self.send_packet(from, to, false));
            }
            self.run_for(Duration::from_millis(200));
            let arrived = |number: &u64| self.oracle.packets.get(number).is_some_and(|it| it.delivered.is_some());
            missing.retain(|(_, _, sent)| !sent.iter().any(arrived));
        }
        missing.into_iter().map(|(from, to, _)| (from, to)).collect()
    }

    /// Only nodes with a task on a network hold a key of it; a node that has no session may not know yet that its
    /// last task is forgotten.
    fn check_holders(&self) {
        let networks: Vec<NetworkId> = self.state().networks.keys().copied().collect();
        for (number, node) in self.nodes.iter().enumerate() {
            let told = self.in_touch_since(number).is_some_and(|since| self.now.since(since) > Duration::from_secs(1));
            let Some(host) = node.host.as_ref().filter(|_| told) else { continue };
            for network in &networks {
                let member = self.was_member(number, *network);
                if host.holds(*network) && !member {
                    self.oracle.fail(self.now, &format!("node {number} holds a key of {network} without a task on it"));
                }
            }
        }
    }

    /// Of the containers of nodes that still belong to the swarm.
    pub(super) fn check_owners(&self) {
        let live = self.nodes.iter().filter(|node| !node.gone).filter_map(|node| node.host.as_ref());
        let containers = live.flat_map(|host| &host.containers);
        let there: Vec<_> = containers.map(|(key, container)| (*key, container.address)).collect();
        self.oracle.check_owners(self.state(), &there, self.now);
    }

    /// Nothing of a removed node is used by a node that has heard of it, by the managers or by gossip.
    fn check_gone(&self) {
        // Since when there is a node that the managers tell and that tells others.
        let spread = |number: usize| Some(self.in_touch_since(number)?.max(self.nodes[number].steady_since));
        let spread_since = (0..self.nodes.len()).filter_map(spread).min();
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(host) = node.host.as_ref().filter(|_| !node.gone) else { continue };
            for gone in self.nodes.iter().filter_map(|node| node.gone_at.map(|at| (node.id, at))) {
                let told = |since: Time| self.now.since(since.max(gone.1)) > GONE_HEARD;
                let by_session = self.in_touch_since(number).is_some_and(told);
                let by_gossip = !self.parted && told(node.steady_since) && spread_since.is_some_and(told);
                if (by_session || by_gossip) && host.uses(gone.0) {
                    let text = format!("node {number} uses node {} which is gone since {}", gone.0, gone.1.0);
                    self.oracle.fail(self.now, &text);
                }
            }
        }
    }

    /// Whether the node has a task on the network, or had one a moment ago.
    fn was_member(&self, number: usize, network: NetworkId) -> bool {
        let member = (self.nodes[number].id, network);
        let left = self.left.get(&member);
        self.members.contains(&member) || left.is_some_and(|at| self.now.since(*at) < Duration::from_secs(1))
    }

    /// Notes who has just left a network: a node has a moment to forget the key.
    pub(super) fn note_members(&mut self) {
        let state = &self.ledger.truth;
        let on =
            |network: &NetworkId| state.members(*network).into_iter().map(|node| (node, *network)).collect::<Vec<_>>();
        let members: BTreeSet<(NodeId, NetworkId)> = state.networks.keys().flat_map(on).collect();
        for left in self.members.difference(&members) {
            self.left.insert(*left, self.now);
        }
        self.members = members;
    }

    /// A third node has the network's key, its own secrets and a copy of a datagram: it cannot open it.
    pub(super) fn try_theft(&mut self, datagram: &Datagram) {
        let identity = datagram.identity;
        let thief = self.rng.random_range(0..self.nodes.len());
        let node = &self.nodes[thief];
        let Some(host) = node.host.as_ref().filter(|_| node.id != identity.src && node.id != identity.dst) else {
            return;
        };
        let Some(key) = host.core.keys.network_key(identity.epoch, identity.network) else { return };
        let publics = [identity.src_public, identity.dst_public];
        for secret in &host.secrets {
            let secret = X25519Secret::new(&Key32::new(*secret.expose()));
            for shared in publics.iter().filter_map(|public| secret.agree(public).ok()) {
                let mut sas = SaDatabase::new(identity.dst_boot, WorkerShare::WHOLE);
                let keys = SaKeys::derive(key, &shared, &identity);
                sas.install_inbound(&identity, &keys).expect("a fresh database");
                if sas.open(&mut datagram.payload.clone(), self.now).is_ok() {
                    self.oracle.fail(self.now, &format!("node {thief} opened a packet of {identity:?}"));
                }
            }
        }
    }
}

fn inner_packet(from: IpAddr, to: IpAddr, number: u64) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    packet[0] = 0x45;
    packet[3] = PACKET_BYTES as u8;
    packet[8] = 64;
    packet[9] = 253;
    for (at, address) in [(12, from), (16, to)] {
        if let IpAddr::V4(address) = address {
            packet[at..at + 4].copy_from_slice(&address.octets());
        }
    }
    packet[20..].copy_from_slice(&number.to_be_bytes());
    packet
}
