//! What a node does about keys, gossip, records and its data plane's tables (pure): inputs come in, what is to be done
//! comes out as commands of the data plane and messages to the managers. The engine runs it on sockets and the
//! system's clock, the simulation on a virtual network.
//!
//! It needs no manager to go on: without a session it keeps tables and keys, and follows signed records.
//!
//! Order matters in two places. A push is acted upon keys first, so that an endpoint never appears before it can be
//! sealed for. And [`Core::settle`] goes on until no machine wants anything, since each may set the others going.

use super::push::Push;
use crate::dataplane::{DataCommand, DataEvent, MAX_INNER_BYTES, SaRefusal};
use crate::esp::Direction;
use crate::gossip::{EpochKeys, Gossip, GossipConfig, GossipEvent, Timing};
use crate::keys::{KeyEvent, KeysConfig, NodeKeys};
use crate::path::{Bounds, PathEvent, PathMtus};
use crate::types::{Epoch, Fork, Key32, NetworkId, NetworkName, NodeId, TaskAssignment, TaskId, Time};
use crate::wire::control::{FromAgent, NetworkView, SwarmView};
use crate::wire::esp::{ControlMessage, inner_mtu_bytes};
use crate::wire::record::{
    EndpointRecord, NodeRecord, RecordBody, RecordKey, SignedRecord, TrustBundle, VerifiedRecord,
};
use std::collections::{BTreeMap, BTreeSet};

/// Records handed to gossip at once; each causes two events at most.
const RECORDS_AT_ONCE: usize = crate::gossip::EVENTS_MAX / 4;

/// The underlay's MTU when its interface does not tell.
pub(crate) const DEFAULT_UNDERLAY_MTU_BYTES: u32 = 1500;

/// The shortest inner packet that a way is asked for, where the host's own interface carries it: what every IPv4 host
/// has to take (RFC 791); a Linux told of less than 552 octets does not go below these. An underlay has to carry 1280 octets
/// (gossip is as long), but one that carries less is told of rather than losing packets.
const LEAST_INNER_BYTES: u16 = 576;

/// The machines of one boot of a node, and what they were told.
pub(crate) struct Core {
    config: KeysConfig,
    pub(crate) keys: NodeKeys,
    pub(crate) gossip: Gossip,
    pub(crate) paths: PathMtus,
    /// The MTU of this host's own interface.
    underlay_mtu_bytes: u32,
    pub(crate) swarm: Option<SwarmView>,
    gone: BTreeSet<NodeId>,
    pub(crate) networks: BTreeMap<NetworkId, NetworkView>,
    pub(crate) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(crate) names: Vec<NetworkName>,
    /// To be applied to the data plane as one, in order.
    pub(crate) commands: Vec<DataCommand>,
    /// For the managers; without a session it is told at the next one.
    pub(crate) outgoing: Vec<FromAgent>,
    /// Peers use a ring that this node lacks: a session is wanted now.
    pub(crate) wants_session: bool,
    /// The newest epoch with an SA past its soft limit, which is said once.
    worn: Option<Epoch>,
    /// Only a new boot helps: why.
    pub(crate) new_boot: Option<String>,
    /// A later life of the managers' state than this node's.
    pub(crate) forked: Option<Fork>,
}

impl Core {
    /// A node that was told nothing yet. `seed` is secret and never used twice.
    pub(crate) fn new(config: KeysConfig, now: Time, seed: [u8; 32]) -> Core {
        let KeysConfig { cluster, fork, node, boot, .. } = config;
        let gossip = GossipConfig { cluster, fork, node, boot, timing: Timing::default() };
        Core {
            config,
            keys: NodeKeys::new(config),
            gossip: Gossip::new(gossip, now, seed),
            paths: PathMtus::default(),
            underlay_mtu_bytes: DEFAULT_UNDERLAY_MTU_BYTES,
            swarm: None,
            gone: BTreeSet::new(),
            networks: BTreeMap::new(),
            nodes: BTreeMap::new(),
            names: Vec::new(),
            commands: Vec::new(),
            outgoing: Vec::new(),
            wants_session: false,
            worn: None,
            new_boot: None,
            forked: None,
        }
    }

    /// A session with the managers is open: they are told again what they may have missed.
    pub(crate) fn handle_session(&mut self, now: Time) {
        self.keys.report_again(now);
        if self.worn.is_some() && self.worn >= self.keys.active() {
            self.outgoing.push(FromAgent::RotateEarly);
        }
    }

    /// Acts on a complete push; gives the tasks that it wants, or nothing when it is refused.
    pub(crate) fn apply(
        &mut self,
        push: Push,
        draw: &mut dyn FnMut() -> Key32,
        now: Time,
    ) -> Option<BTreeMap<TaskId, TaskAssignment>> {
        let Push { swarm, ring, names, networks, tasks, records } = push;
        let swarm = swarm.filter(|swarm| self.is_of_our_fork(swarm))?;
        self.gossip.set_trust(TrustBundle { keys: swarm.attestation.clone(), fork: swarm.fork });
        self.remove_nodes(&swarm.gone, now);
        self.swarm = Some(swarm);
        self.names = names;
        let new: BTreeMap<NetworkId, NetworkView> = networks.iter().map(|view| (view.id, view.clone())).collect();
        let networks_changed = new != self.networks;
        let held: BTreeSet<Epoch> = self.keys.epochs().into_iter().map(|(epoch, _)| epoch).collect();
        self.apply_networks(new);
        self.keys.handle_networks(&networks, now);
        if let Some(ring) = ring {
            self.keys.handle_ring(ring, draw, now);
        }
        self.hand_over_key_events(now);
        self.insert_records(&records, now);
        // Records may have come by gossip before the keys that open them.
        let keys_are_new = self.keys.epochs().iter().any(|(epoch, _)| !held.contains(epoch));
        if networks_changed || keys_are_new {
            self.rescan_endpoints();
        }
        Some(tasks)
    }

    fn insert_records(&mut self, encoded: &[Vec<u8>], now: Time) {
        let records = encoded.iter().filter_map(|encoded| match SignedRecord::parse(encoded) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::error!(%error, "a manager sent a malformed record");
                None
            }
        });
        let records: Vec<SignedRecord> = records.collect();
        if let Some(own) = records.iter().rev().find(|record| record.key() == RecordKey::Node(self.config.node))
            && let Err(error) = self.gossip.set_own_record(own.clone(), now)
        {
            tracing::warn!(%error, "this node's own record was not taken");
        }
        // What gossip reports is taken from it in between: of more than it can report it would take none, and the
        // managers tell a record once.
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            self.gossip.insert_records(records.by_ref().take(RECORDS_AT_ONCE), now);
            self.settle(now);
        }
    }

    /// A lower fork is refused; a higher one ends this life.
    fn is_of_our_fork(&mut self, swarm: &SwarmView) -> bool {
        let ours = self.config.fork;
        if swarm.fork > ours {
            self.forked = Some(swarm.fork);
            self.new_boot = Some(format!("the swarm's state began a new life ({})", swarm.fork.0));
        } else if swarm.fork < ours {
            tracing::error!(
                theirs = swarm.fork.0,
                ours = ours.0,
                "a manager speaks for an older life of the swarm's state: refused"
            );
        }
        swarm.fork == ours
    }

    /// Drops all that belongs to removed nodes, at once.
    fn remove_nodes(&mut self, gone: &[NodeId], now: Time) {
        let news: Vec<NodeId> = gone.iter().copied().filter(|node| self.gone.insert(*node)).collect();
        if news.is_empty() {
            return;
        }
        for &node in &news {
            tracing::info!(%node, "node is gone: its records, keys and SAs are dropped");
            self.gossip.remove_node(node);
            self.nodes.remove(&node);
            self.commands.extend(self.networks.keys().map(|&network| DataCommand::RemovePeer { network, peer: node }));
        }
        let all: Vec<NodeId> = self.gone.iter().copied().collect();
        self.keys.handle_gone(&all, now);
    }

    fn apply_networks(&mut self, new: BTreeMap<NetworkId, NetworkView>) {
        for id in self.networks.keys().filter(|id| !new.contains_key(id)) {
            self.commands.push(DataCommand::RemoveNetwork { network: *id });
        }
        for view in new.values().filter(|view| !self.networks.contains_key(&view.id)) {
            self.commands.push(DataCommand::SetNetwork {
                network: view.id,
                transform: view.transform,
                subnet: Some(view.subnet),
            });
        }
        self.networks = new;
    }

    /// Takes in what the data plane tells about keys; other events are not for this machine.
    pub(crate) fn handle_data(&mut self, event: DataEvent, now: Time) {
        match event {
            DataEvent::Authenticated { identity } => self.keys.handle_authenticated(&identity, now),
            DataEvent::Control { identity, message } => {
                self.keys.handle_control(&identity, message, now);
                match message {
                    ControlMessage::PathAnswer { inner_bytes } => {
                        self.paths.handle_answer(identity.src, inner_bytes, now);
                    }
                    ControlMessage::Probe { answer_wanted: false } => self.paths.handle_alive(identity.src),
                    _ => {}
                }
            }
            DataEvent::PathUsed { peer } => self.paths.handle_used(peer, now),
            DataEvent::SoftLimit { identity } => {
                self.worn = self.worn.max(Some(identity.epoch));
                self.outgoing.push(FromAgent::RotateEarly);
            }
            DataEvent::SaRefused { identity, reason } => {
                tracing::error!(peer = %identity.dst, %reason, "an SA was refused");
                if let SaRefusal::Install(error) = reason
                    && error.needs_new_boot()
                {
                    self.new_boot = Some(error.to_string());
                }
            }
            DataEvent::EndpointLost { .. } | DataEvent::WorkerFailed { .. } => {}
        }
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.keys.handle_timeout(now);
        self.gossip.handle_timeout(now);
        self.paths.handle_timeout(now);
    }

    /// Asks all peers for an answer, by gossip and by ESP.
    pub(crate) fn probe_all(&mut self, now: Time) {
        self.keys.probe_all();
        self.gossip.greet_all(now);
    }

    /// When [`Core::handle_timeout`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let timeouts = [self.keys.poll_timeout(), self.gossip.poll_timeout(), self.paths.poll_timeout()];
        timeouts.into_iter().flatten().min()
    }

    /// To be called after every input: until no machine wants anything.
    pub(crate) fn settle(&mut self, now: Time) {
        loop {
            self.hand_over_key_events(now);
            self.hand_over_path_events();
            match self.gossip.poll_event() {
                Some(event) => self.handle_gossip(event, now),
                None => break,
            }
        }
    }

    /// This host's own interface has this MTU now.
    pub(crate) fn set_underlay_mtu(&mut self, mtu_bytes: u32, now: Time) {
        if std::mem::replace(&mut self.underlay_mtu_bytes, mtu_bytes) != mtu_bytes {
            let nodes = &self.nodes;
            self.paths.set_bounds(|peer| Some(path_bounds(mtu_bytes, nodes.get(&peer)?)), now);
        }
    }

    fn hand_over_path_events(&mut self) {
        while let Some(event) = self.paths.poll_event() {
            match event {
                PathEvent::Probe { peer, inner_bytes } => {
                    if let Some(outbound) = self.keys.outbound_to(peer) {
                        let message = ControlMessage::PathProbe { inner_bytes };
                        self.commands.push(DataCommand::SendControl { outbound, message });
                    }
                }
                PathEvent::Carries { peer, inner_bytes } => {
                    tracing::debug!(%peer, inner_bytes, "what the way to a peer carries");
                    self.commands.push(DataCommand::SetPathMtu { peer, inner_bytes });
                }
            }
        }
    }

    fn hand_over_key_events(&mut self, now: Time) {
        while let Some(event) = self.keys.poll_event() {
            match event {
                KeyEvent::Held { epoch, gossip_key, secret } => {
                    if let Err(error) = self.gossip.set_epoch(EpochKeys { epoch, gossip_key, secret }) {
                        tracing::error!(%epoch, %error, "gossip refuses the epoch");
                    }
                }
                KeyEvent::Active(epoch) => {
                    tracing::info!(%epoch, "epoch is active");
                    self.gossip.set_active(epoch);
                }
                KeyEvent::Erase(epoch) => {
                    tracing::info!(%epoch, "epoch is erased");
                    self.gossip.erase_epoch(epoch);
                    self.commands.push(DataCommand::EraseEpoch(epoch));
                }
                KeyEvent::Install(keys) => {
                    let (identity, keys) = (*keys.identity(), *keys);
                    let outbound = identity.src == self.config.node;
                    let direction = if outbound { Direction::Outbound } else { Direction::Inbound };
                    self.commands.push(DataCommand::InstallSa { identity, keys, direction });
                }
                KeyEvent::Suspend(identity) => self.commands.push(DataCommand::SuspendSa { identity }),
                KeyEvent::Send(outbound) => {
                    let (network, peer) = (outbound.network, outbound.dst);
                    self.commands.push(DataCommand::SetSending { network, peer, outbound });
                    if let Some(record) = self.nodes.get(&peer) {
                        self.paths.add(peer, path_bounds(self.underlay_mtu_bytes, record), now);
                    }
                }
                KeyEvent::StopSending { network, peer } => {
                    if self.keys.outbound_to(peer).is_none() {
                        self.paths.remove(peer);
                    }
                    self.commands.push(DataCommand::StopSending { network, peer });
                }
                KeyEvent::Control { outbound, message } => {
                    self.commands.push(DataCommand::SendControl { outbound, message });
                }
                KeyEvent::ReportPublic { epoch, public } => self.outgoing.push(FromAgent::Public { epoch, public }),
                KeyEvent::ReportReady(epoch) => self.outgoing.push(FromAgent::Ready { epoch }),
                KeyEvent::ReportSending(epoch) => self.outgoing.push(FromAgent::Sending { epoch }),
            }
        }
    }

    fn handle_gossip(&mut self, event: GossipEvent, now: Time) {
        match event {
            GossipEvent::RecordAccepted(record) => self.handle_record(&record, now),
            GossipEvent::NodeDown { node, .. } => tracing::info!(%node, "gossip: node does not answer"),
            GossipEvent::NodeUp { node, .. } => tracing::info!(%node, "gossip: node answers"),
            GossipEvent::ClonedIdentity => {
                let text =
                    "another host uses this node's identity (a running node must not be cloned): a new boot is needed";
                self.new_boot = Some(text.into());
            }
            GossipEvent::NewBootNeeded => {
                self.new_boot = Some("gossip ran out of room for its counters: a new boot is needed".into());
            }
            GossipEvent::NeedRing { epoch } => {
                tracing::warn!(%epoch, "peers use an epoch that this node lacks");
                self.wants_session = true;
            }
            GossipEvent::RecordExpired(RecordKey::Endpoint(_) | RecordKey::Ring | RecordKey::Node(_))
            | GossipEvent::NodeSuspect { .. } => {}
        }
    }

    fn handle_record(&mut self, record: &VerifiedRecord, now: Time) {
        match record.body() {
            RecordBody::Node(node) => self.handle_node_record(node.clone(), now),
            RecordBody::Gone(node) => self.remove_nodes(&[*node], now),
            RecordBody::Endpoint(endpoint) => self.handle_endpoint(record, &endpoint.clone()),
            RecordBody::Ring(ring) => self.keys.handle_activation(ring.active, now),
        }
    }

    fn handle_node_record(&mut self, node: NodeRecord, now: Time) {
        if node.node == self.config.node || self.gone.contains(&node.node) {
            return;
        }
        if !self.keys.handle_record(&node, now) {
            tracing::error!(node = %node.node, "a second, different public for one boot and epoch, or number of queues for one boot: refused");
            return;
        }
        self.commands.push(DataCommand::SetPeerAddress { peer: node.node, address: node.addresses.data });
        let (peer, address) = (node.node, node.addresses.data);
        if self.nodes.insert(peer, node).is_some_and(|known| known.addresses.data != address) {
            self.paths.restart(peer, now);
        }
    }

    /// Enters an endpoint into the data plane's tables, if it is on a network of this node.
    fn handle_endpoint(&mut self, record: &VerifiedRecord, endpoint: &EndpointRecord) {
        let network = endpoint.key.network;
        if endpoint.node == self.config.node || !self.networks.contains_key(&network) {
            return;
        }
        let Some(key) = self.keys.network_key(record.version().epoch, network) else { return };
        match record.open_endpoint(key, self.config.cluster) {
            Ok(body) => self.commands.push(DataCommand::SetRemote {
                network,
                address: body.address,
                peer: endpoint.node,
                generation: endpoint.generation,
                alive: endpoint.alive,
            }),
            Err(error) => tracing::error!(%error, "an endpoint record does not open with its network's key"),
        }
    }

    /// Enters the endpoints that were known before their network was.
    fn rescan_endpoints(&mut self) {
        let records: Vec<VerifiedRecord> =
            self.gossip.records().filter(|record| record.endpoint().is_some()).cloned().collect();
        for record in &records {
            if let Some(endpoint) = record.endpoint() {
                self.handle_endpoint(record, &endpoint.clone());
            }
        }
    }
}

/// What the way to a peer may turn out to carry, over an interface of this MTU.
fn path_bounds(underlay_mtu_bytes: u32, record: &NodeRecord) -> Bounds {
    let inner = inner_mtu_bytes(underlay_mtu_bytes as usize, record.addresses.data.is_ipv6()).min(MAX_INNER_BYTES);
    let ceiling_bytes = u16::try_from(inner).unwrap_or(u16::MAX);
    Bounds { floor_bytes: ceiling_bytes.min(LEAST_INNER_BYTES), ceiling_bytes }
}

#[cfg(test)]
mod tests;
