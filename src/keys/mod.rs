//! A node's side of the key life (pure): which X25519 pairs it holds, which SAs exist, and which epoch each pair of
//! nodes sends with. The rules are those of the design's "Rotation":
//!
//! 1. The managers hand over the whole ring ([`NodeKeys::handle_ring`]); a new epoch draws an X25519 pair, once.
//! 2. For every peer on every network, and every epoch that both hold, SAs each way are installed at once: a node
//!    can receive long before anyone sends. There is one for each queue of the sender (RFC 9611), which its record
//!    tells; their number is fixed for a boot.
//! 3. On activation (told by the managers or by a signed ring record) each peer gets a dummy packet under the new
//!    epoch. A pair is *confirmed* once a packet of that peer under it has been authenticated, by whichever queue.
//! 4. A sender uses the active epoch for confirmed pairs, and the one before for the others while it has one.
//! 5. An epoch that left the ring is erased, secret first; it can never be made again in this boot.
//!
//! Not here: counters and windows (the SA database of the data plane keeps them as long as the epoch lives, so
//! installing an identity twice continues it), sockets, gossip, clocks.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod export;
mod pair;
#[cfg(test)]
mod tests;

pub use export::NoTable;

use crate::crypto::X25519Secret;
use crate::esp::{SaIdentity, SaKeys};
use crate::types::{
    BootId, ClusterId, Epoch, EpochPhase, Fork, Key32, NetworkId, NodeId, PublicKey, Queues, Time, Transform,
};
use crate::wire::control::{EpochView, NetworkView, RingView};
use crate::wire::esp::ControlMessage;
use crate::wire::record::NodeRecord;
use pair::{Pair, ProbeIntervals};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// An unconfirmed pair is probed often: one lost dummy costs at most a second. A confirmed one is probed so that
/// `formic status` can name a path that was cut, also where there is no traffic.
const PROBE_INTERVALS: ProbeIntervals =
    ProbeIntervals { unconfirmed: Duration::from_secs(1), confirmed: Duration::from_secs(5) };

/// Which node, in which life.
#[derive(Debug, Clone, Copy)]
pub struct KeysConfig {
    /// The swarm.
    pub cluster: ClusterId,
    /// The life of its state.
    pub fork: Fork,
    /// This node.
    pub node: NodeId,
    /// This start of its daemon.
    pub boot: BootId,
    /// The queues it sends with.
    pub queues: Queues,
}

/// What the owner of the machine has to do, in order.
pub enum KeyEvent {
    /// A new epoch is held: gossip needs its key, the managers its public.
    Held {
        /// The epoch.
        epoch: Epoch,
        /// The key of gossip.
        gossip_key: Key32,
        /// The node's X25519 pair of this epoch.
        secret: Arc<X25519Secret>,
    },
    /// Gossip and new pairs go by this epoch from now on.
    Active(Epoch),
    /// Forget everything derived from this epoch.
    Erase(Epoch),
    /// Have this SA; an existing one goes on where it was.
    /// It is outbound when its source is this node.
    Install(Box<SaKeys>),
    /// Accept and send nothing with this SA until it is installed again.
    Suspend(SaIdentity),
    /// Traffic of its queue to the peer on the network goes by this SA.
    Send(SaIdentity),
    /// Nothing goes to the peer on this network.
    StopSending {
        /// The network.
        network: NetworkId,
        /// The peer.
        peer: NodeId,
    },
    /// Send a dummy packet.
    Control {
        /// By this SA.
        outbound: SaIdentity,
        /// What it says.
        message: ControlMessage,
    },
    /// Tell the managers the public of an epoch.
    ReportPublic {
        /// The epoch.
        epoch: Epoch,
        /// The public.
        public: PublicKey,
    },
    /// Tell the managers that this node is ready for an epoch.
    ReportReady(Epoch),
    /// Tell the managers that this node sends with an epoch to every live peer.
    ReportSending(Epoch),
}

/// One epoch as this node holds it.
struct Held {
    secret: Arc<X25519Secret>,
    networks: BTreeMap<NetworkId, Key32>,
    participants: BTreeSet<NodeId>,
    told_ready: bool,
    told_sending: bool,
}

/// A network with a task here.
struct Membership {
    transform: Transform,
    /// Other nodes with a task on it, and whether each has a session.
    members: BTreeMap<NodeId, bool>,
}

/// What the newest verified record says of a peer.
struct Peer {
    boot: BootId,
    boot_index: u64,
    queues: Queues,
    publics: BTreeMap<Epoch, PublicKey>,
}

/// The machine.
pub struct NodeKeys {
    config: KeysConfig,
    active: Option<Epoch>,
    /// The highest epoch ever held: what is not above it and not held was erased, and stays so.
    highest: Option<Epoch>,
    held: BTreeMap<Epoch, Held>,
    networks: BTreeMap<NetworkId, Membership>,
    peers: BTreeMap<NodeId, Peer>,
    gone: BTreeSet<NodeId>,
    pairs: BTreeMap<(NetworkId, NodeId), Pair>,
    bad_publics: u64,
    events: VecDeque<KeyEvent>,
}

impl NodeKeys {
    /// A node that holds nothing yet.
    pub fn new(config: KeysConfig) -> NodeKeys {
        NodeKeys {
            config,
            active: None,
            highest: None,
            held: BTreeMap::new(),
            networks: BTreeMap::new(),
            peers: BTreeMap::new(),
            gone: BTreeSet::new(),
            pairs: BTreeMap::new(),
            bad_publics: 0,
            events: VecDeque::new(),
        }
    }

    /// Takes over the whole ring, whatever was held before. `draw` gives 32 random bytes for each new epoch.
    pub fn handle_ring(&mut self, ring: RingView, draw: &mut dyn FnMut() -> Key32, now: Time) {
        let kept: BTreeSet<Epoch> = ring.epochs.iter().map(|view| view.epoch).collect();
        let told = ring.epochs.iter().find(|view| view.phase == EpochPhase::Current).map(|view| view.epoch);
        for view in ring.epochs {
            self.hold(view, draw);
        }
        self.activate(told);
        let stale: Vec<Epoch> = self.held.keys().copied().filter(|epoch| !kept.contains(epoch)).collect();
        stale.into_iter().for_each(|epoch| self.erase(epoch));
        self.reconcile(now);
    }

    /// A signed ring record names the active epoch: this is how a node without managers follows.
    pub fn handle_activation(&mut self, active: Epoch, now: Time) {
        if !self.held.contains_key(&active) || self.active.is_some_and(|own| own >= active) {
            return;
        }
        let previous = self.active;
        self.activate(Some(active));
        let older: Vec<Epoch> = self.held.keys().copied().filter(|epoch| Some(*epoch) < previous).collect();
        older.into_iter().for_each(|epoch| self.erase(epoch));
        self.reconcile(now);
    }

    /// Takes over the networks with a task here and who else is on them.
    pub fn handle_networks(&mut self, networks: &[NetworkView], now: Time) {
        let own = self.config.node;
        let membership = |view: &NetworkView| Membership {
            transform: view.transform,
            members: view.members.iter().copied().filter(|(node, _)| *node != own).collect(),
        };
        self.networks = networks.iter().map(|view| (view.id, membership(view))).collect();
        self.reconcile(now);
    }

    /// Takes over a verified node record. The newest boot wins, an older one is never installed again; a second,
    /// different public for one (boot, epoch), or another number of queues for one boot, is refused and `false`
    /// returned.
    pub fn handle_record(&mut self, record: &NodeRecord, now: Time) -> bool {
        if record.node == self.config.node || self.gone.contains(&record.node) {
            return true;
        }
        let publics: BTreeMap<Epoch, PublicKey> = record.publics.iter().copied().collect();
        match self.peers.get_mut(&record.node) {
            Some(peer) if peer.boot_index > record.boot_index => return true,
            Some(peer) if peer.boot == record.boot => {
                let other = |(epoch, public)| peer.publics.get(epoch).is_some_and(|known| known != public);
                if peer.queues != record.queues || publics.iter().any(other) {
                    return false;
                }
                peer.publics.extend(publics);
                let held = &self.held;
                peer.publics.retain(|epoch, _| held.contains_key(epoch) || record.public(*epoch).is_some());
            }
            _ => {
                let NodeRecord { boot, boot_index, queues, .. } = *record;
                let peer = Peer { boot, boot_index, queues, publics };
                self.peers.insert(record.node, peer);
            }
        }
        self.reconcile(now);
        true
    }

    /// Nothing of these nodes is used from now on.
    pub fn handle_gone(&mut self, nodes: &[NodeId], now: Time) {
        self.gone = nodes.iter().copied().collect();
        self.peers.retain(|node, _| !nodes.contains(node));
        self.reconcile(now);
    }

    /// An inbound SA has authenticated a packet.
    pub fn handle_authenticated(&mut self, inbound: &SaIdentity, now: Time) {
        let Some(pair) = self.pairs.get_mut(&(inbound.network, inbound.src)) else { return };
        if pair.confirm(inbound) {
            self.reconcile(now);
        }
    }

    /// An inbound SA has authenticated a dummy packet.
    pub fn handle_control(&mut self, inbound: &SaIdentity, message: ControlMessage, now: Time) {
        self.handle_authenticated(inbound, now);
        let Some(pair) = self.pairs.get_mut(&(inbound.network, inbound.src)) else { return };
        match message {
            ControlMessage::Probe { answer_wanted: true } => {
                if let Some(outbound) = pair.outbound(inbound.epoch) {
                    let message = ControlMessage::Probe { answer_wanted: false };
                    self.events.push_back(KeyEvent::Control { outbound, message });
                }
            }
            ControlMessage::Probe { answer_wanted: false } => pair.answered = Some(now),
            ControlMessage::PathProbe { inner_bytes } => {
                if let Some(outbound) = pair.outbound(inbound.epoch) {
                    let message = ControlMessage::PathAnswer { inner_bytes };
                    self.events.push_back(KeyEvent::Control { outbound, message });
                }
            }
            ControlMessage::Nothing | ControlMessage::PathAnswer { .. } | ControlMessage::Unknown(_) => {}
        }
    }

    /// Asks every peer on every network for an answer, beside the regular probes.
    pub fn probe_all(&mut self) {
        let outbounds = self.pairs.values().filter_map(|pair| pair.outbound(pair.sending?));
        let message = ControlMessage::Probe { answer_wanted: true };
        self.events.extend(outbounds.map(|outbound| KeyEvent::Control { outbound, message }));
    }

    /// When a peer last answered a probe on any network: it had heard this node, and was heard.
    pub fn answered(&self, peer: NodeId) -> Option<Time> {
        self.pairs.iter().filter(|((_, node), _)| *node == peer).filter_map(|(_, pair)| pair.answered).max()
    }

    /// An SA that this node can send a peer something with, on whatever network; `None` when they share none, or the keys
    /// are not there yet.
    pub fn outbound_to(&self, peer: NodeId) -> Option<SaIdentity> {
        let pairs = self.pairs.iter().filter(|((_, node), _)| *node == peer);
        pairs.filter_map(|(_, pair)| pair.outbound(pair.sending?)).next()
    }

    /// Probes the pairs whose time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        self.reconcile(now);
    }

    /// A new session with the managers: tells them again all that they may have missed.
    pub fn report_again(&mut self, now: Time) {
        for (&epoch, held) in &mut self.held {
            held.told_ready = false;
            held.told_sending = false;
            self.events.push_back(KeyEvent::ReportPublic { epoch, public: held.secret.public() });
        }
        self.reconcile(now);
    }

    /// When [`NodeKeys::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.pairs.values().filter_map(|pair| pair.probe_at).min()
    }

    /// The next thing to do.
    pub fn poll_event(&mut self) -> Option<KeyEvent> {
        self.events.pop_front()
    }

    /// The epoch this node goes by.
    pub fn active(&self) -> Option<Epoch> {
        self.active
    }

    /// The epochs held, oldest first, with the phase they are in here.
    pub fn epochs(&self) -> Vec<(Epoch, EpochPhase)> {
        let phase = |epoch: Epoch| match Some(epoch).cmp(&self.active) {
            std::cmp::Ordering::Less => EpochPhase::Previous,
            std::cmp::Ordering::Equal => EpochPhase::Current,
            std::cmp::Ordering::Greater => EpochPhase::Next,
        };
        self.held.keys().map(|&epoch| (epoch, phase(epoch))).collect()
    }

    /// The key of a network in an epoch, if this node holds it.
    pub fn network_key(&self, epoch: Epoch, network: NetworkId) -> Option<&Key32> {
        self.held.get(&epoch)?.networks.get(&network)
    }

    /// The SA that carries the traffic of this node's first queue to a peer on a network.
    pub fn sending(&self, network: NetworkId, peer: NodeId) -> Option<SaIdentity> {
        let pair = self.pairs.get(&(network, peer))?;
        pair.outbound(pair.sending?)
    }

    /// Publics of peers that gave no shared secret (RFC 7748, section 6.1: all-zero result).
    pub fn bad_publics(&self) -> u64 {
        self.bad_publics
    }

    fn hold(&mut self, view: EpochView, draw: &mut dyn FnMut() -> Key32) {
        let EpochView { epoch, gossip_key, networks, participants, .. } = view;
        let networks: BTreeMap<NetworkId, Key32> =
            networks.into_iter().map(|entry| (entry.network, entry.key)).collect();
        let participants: BTreeSet<NodeId> = participants.into_iter().collect();
        if let Some(held) = self.held.get_mut(&epoch) {
            (held.networks, held.participants) = (networks, participants);
            return;
        }
        if self.highest.is_some_and(|highest| epoch <= highest) {
            return;
        }
        self.highest = Some(epoch);
        let secret = Arc::new(X25519Secret::new(&draw()));
        let public = secret.public();
        self.events.push_back(KeyEvent::Held { epoch, gossip_key, secret: secret.clone() });
        self.events.push_back(KeyEvent::ReportPublic { epoch, public });
        self.held.insert(epoch, Held { secret, networks, participants, told_ready: false, told_sending: false });
    }

    fn activate(&mut self, told: Option<Epoch>) {
        let Some(epoch) = told.filter(|epoch| Some(*epoch) > self.active && self.held.contains_key(epoch)) else {
            return;
        };
        self.active = Some(epoch);
        self.events.push_back(KeyEvent::Active(epoch));
    }

    fn erase(&mut self, epoch: Epoch) {
        self.held.remove(&epoch);
        self.pairs.values_mut().for_each(|pair| pair.forget(epoch));
        self.peers.values_mut().for_each(|peer| {
            peer.publics.remove(&epoch);
        });
        self.events.push_back(KeyEvent::Erase(epoch));
    }

    /// Brings SAs, sending epochs, probes and reports in line with what is known. Idempotent.
    fn reconcile(&mut self, now: Time) {
        self.drop_strangers();
        let wanted: Vec<(NetworkId, NodeId)> = self
            .networks
            .iter()
            .flat_map(|(&network, membership)| membership.members.keys().map(move |&peer| (network, peer)))
            .collect();
        for (network, peer) in wanted {
            self.reconcile_pair(network, peer, now);
        }
        self.report();
    }

    /// Suspends the pairs whose peer left the network or the swarm.
    fn drop_strangers(&mut self) {
        let (networks, peers) = (&self.networks, &self.peers);
        let stays = |network: &NetworkId, peer: &NodeId| {
            peers.contains_key(peer)
                && networks.get(network).is_some_and(|membership| membership.members.contains_key(peer))
        };
        let strangers: Vec<(NetworkId, NodeId)> =
            self.pairs.keys().copied().filter(|(network, peer)| !stays(network, peer)).collect();
        for (network, peer) in strangers {
            if let Some(pair) = self.pairs.remove(&(network, peer)) {
                self.events.push_back(KeyEvent::StopSending { network, peer });
                self.events.extend(pair.identities().map(KeyEvent::Suspend));
            }
        }
    }

    fn reconcile_pair(&mut self, network: NetworkId, peer: NodeId, now: Time) {
        let Some(known) = self.peers.get(&peer) else { return };
        let Some(membership) = self.networks.get(&network) else { return };
        let new = || Pair::new(known.boot, self.config.queues, known.queues);
        let pair = self.pairs.entry((network, peer)).or_insert_with(new);
        if pair.boot != known.boot {
            let old = std::mem::replace(pair, new());
            self.events.push_back(KeyEvent::StopSending { network, peer });
            self.events.extend(old.identities().map(KeyEvent::Suspend));
        }
        for (&epoch, held) in &self.held {
            let (Some(key), Some(public)) = (held.networks.get(&network), known.publics.get(&epoch)) else { continue };
            if pair.knows(epoch) {
                continue;
            }
            let Ok(shared) = held.secret.agree(public) else {
                pair.refuse(epoch);
                self.bad_publics += 1;
                continue;
            };
            let (outbound, inbound) = identities(
                &self.config,
                network,
                membership.transform,
                peer,
                known.boot,
                (epoch, held.secret.public(), *public),
            );
            pair.insert(epoch, outbound, inbound);
            for identity in pair.inbounds(epoch).chain(pair.outbounds(epoch)) {
                self.events.push_back(KeyEvent::Install(Box::new(SaKeys::derive(key, &shared, &identity))));
            }
        }
        let Some(active) = self.active else { return };
        if let Some(epoch) = pair.choose(active) {
            self.events.extend(pair.outbounds(epoch).map(KeyEvent::Send));
        }
        if let Some(outbound) = pair.probe(active, now, &PROBE_INTERVALS) {
            let message = ControlMessage::Probe { answer_wanted: true };
            self.events.push_back(KeyEvent::Control { outbound, message });
        }
    }

    fn report(&mut self) {
        let ready: Vec<Epoch> =
            self.held.iter().filter(|(_, held)| !held.told_ready).map(|(&epoch, _)| epoch).collect();
        for epoch in ready.into_iter().filter(|&epoch| self.is_ready(epoch)).collect::<Vec<_>>() {
            if let Some(held) = self.held.get_mut(&epoch) {
                held.told_ready = true;
                self.events.push_back(KeyEvent::ReportReady(epoch));
            }
        }
        let Some(active) = self.active.filter(|&active| self.sends_everywhere(active)) else { return };
        if let Some(held) = self.held.get_mut(&active).filter(|held| !held.told_sending) {
            held.told_sending = true;
            self.events.push_back(KeyEvent::ReportSending(active));
        }
    }

    /// Whether the node holds its keys of the epoch and the records with publics of the participants on its networks.
    fn is_ready(&self, epoch: Epoch) -> bool {
        let Some(held) = self.held.get(&epoch) else { return false };
        self.networks.iter().all(|(network, membership)| {
            held.networks.contains_key(network)
                && membership
                    .members
                    .keys()
                    .filter(|node| held.participants.contains(node) && !self.gone.contains(node))
                    .all(|node| self.peers.get(node).is_some_and(|peer| peer.publics.contains_key(&epoch)))
        })
    }

    /// Whether every live peer is sent to with the epoch. A peer whose public is bad does not hold this up.
    fn sends_everywhere(&self, epoch: Epoch) -> bool {
        self.networks.iter().all(|(network, membership)| {
            membership.members.iter().filter(|(node, live)| **live && !self.gone.contains(node)).all(|(node, _)| {
                self.pairs
                    .get(&(*network, *node))
                    .is_some_and(|pair| pair.sending == Some(epoch) || pair.is_refused(epoch))
            })
        })
    }
}

/// The identities of a pair's SAs of queue 0 in one epoch: outbound, inbound.
fn identities(
    config: &KeysConfig,
    network: NetworkId,
    transform: Transform,
    peer: NodeId,
    peer_boot: BootId,
    (epoch, own_public, peer_public): (Epoch, PublicKey, PublicKey),
) -> (SaIdentity, SaIdentity) {
    let outbound = SaIdentity {
        transform,
        cluster: config.cluster,
        fork: config.fork,
        network,
        src: config.node,
        dst: peer,
        src_boot: config.boot,
        dst_boot: peer_boot,
        src_public: own_public,
        dst_public: peer_public,
        epoch,
        queue: 0,
    };
    let inbound = SaIdentity {
        src: peer,
        dst: config.node,
        src_boot: peer_boot,
        dst_boot: config.boot,
        src_public: peer_public,
        dst_public: own_public,
        ..outbound
    };
    (outbound, inbound)
}
