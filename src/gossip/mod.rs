//! Gossip: who is there, and the managers' signed records, spread over encrypted UDP without a manager's help.
//!
//! A pure machine: datagrams, records, keys and time come in, [`Gossip::poll_transmit`], [`Gossip::poll_timeout`] and
//! [`Gossip::poll_event`] say what to do. It opens no socket and reads no clock, so the same code runs in the daemon
//! and, by the dozen, in a simulation.
//!
//! ```text
//!  datagram -> header -> key of (epoch, sender, boot) -> replay window -> open -> mark -> payload        receive
//!     payload -> liveness (members, probe) | records (accept) | differences (sync)
//!  record  -> newer? -> not void, future, gone, contradictory? -> budget -> signature -> store -> event  accept
//!  time    -> probe a member, pass on news, compare records with a peer                                  probe, sync
//!  message -> news and fresh records beside it -> pair's counter -> seal -> to the recorded address      send
//! ```
//!
//! Invariants: only the fixed header is read before a tag has verified; only verified records are stored, passed on
//! or acted upon; addresses and publics come from them alone; no (key, nonce) repeats (see `keyring`); no message
//! grows with the swarm. What SWIM thinks of a node is a hint: it never decides keys, records or ownership.
//!
//! The SWIM part is our own: `foca` learns its members from its peers' messages, where here signed records say who
//! exists; its timers, codec and packet budget could not be shared with records and their comparison, and it stops
//! probing the dead, where here a healed partition must be found without outside help.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod accept;
mod drops;
mod keyring;
mod members;
mod probe;
mod receive;
mod send;
mod sequence;
mod store;
mod sync;

pub use drops::{Drops, GossipDrop};
pub use keyring::{EPOCHS_MAX, EpochKeys, EpochRefused, PAIRS_MAX};
pub use members::MemberState;
pub use store::RECORDS_MAX;

use crate::types::{BootId, ClusterId, Epoch, Fork, Generation, NodeId, Time};
use crate::wire::record::{RecordError, RecordKey, SignedRecord, TrustBundle, VerifiedRecord};
use keyring::Keyring;
use members::{Change, Members};
use probe::{NeedRing, Probe, Relay, Timers};
use rand::SeedableRng;
use rand::rngs::StdRng;
use sequence::TokenBucket;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use store::Store;

/// Events that wait for the owner of the machine. Beyond them no record is accepted; it comes again.
pub const EVENTS_MAX: usize = 16_384;
/// Datagrams that wait for the owner of the machine: one second's worth at the fastest.
pub const TRANSMITS_MAX: usize = 2048;
/// Hellos per second of unknown senders that are opened: each costs a decryption and perhaps a signature check.
const HELLOS_PER_SEC: u32 = 100;
/// Removed nodes remembered beside the records that say so.
const REMOVED_MAX: usize = 4096;

/// Who this node is, and how patient.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// The swarm.
    pub cluster: ClusterId,
    /// The present life of its state.
    pub fork: Fork,
    /// This node.
    pub node: NodeId,
    /// This start of its daemon.
    pub boot: BootId,
    /// Intervals.
    pub timing: Timing,
}

/// The intervals of gossip. The defaults notice a dead node in 5 to 8 s in a small swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two probes of members.
    pub probe_interval: Duration,
    /// After which a probe without an answer is repeated through others.
    pub ack_timeout: Duration,
    /// What a suspect has to contradict in, times log10 of the swarm's size where that is above 1.
    pub suspicion: Duration,
    /// Between two probes of members thought down.
    pub revival_interval: Duration,
    /// Between two rounds of news, while there are any.
    pub news_interval: Duration,
    /// Between two comparisons of records with a peer.
    pub sync_interval: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            probe_interval: Duration::from_secs(1),
            ack_timeout: Duration::from_millis(400),
            suspicion: Duration::from_secs(3),
            revival_interval: Duration::from_secs(2),
            news_interval: Duration::from_millis(200),
            sync_interval: Duration::from_secs(2),
        }
    }
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to: an address of a verified node record.
    pub to: SocketAddr,
    /// The datagram.
    pub payload: Vec<u8>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipEvent {
    /// A record is new or newer than the known one. Bodies of endpoints may be sealed for networks that this node
    /// has no key of.
    RecordAccepted(VerifiedRecord),
    /// A record no longer holds: its epoch was retired, or its node is gone.
    RecordExpired(RecordKey),
    /// A node answers.
    NodeUp {
        /// It.
        node: NodeId,
        /// Its boot.
        boot: BootId,
    },
    /// A node does not answer; it may contradict.
    NodeSuspect {
        /// It.
        node: NodeId,
        /// Its boot.
        boot: BootId,
    },
    /// A node did not contradict in time, or that boot of it is over.
    NodeDown {
        /// It.
        node: NodeId,
        /// Its boot.
        boot: BootId,
    },
    /// Peers use an epoch that this node lacks: ask the managers, if they do not tell by themselves. At most once
    /// in 30 s.
    NeedRing {
        /// The epoch that was seen, unauthenticated.
        epoch: Epoch,
    },
    /// Somebody else uses this node's identity: draw a new boot.
    ClonedIdentity,
    /// State that must not be lost would be: draw a new boot.
    NewBootNeeded,
}

/// Why this node's own record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnRecordError {
    /// It is no node record of this node and boot.
    #[error("not a record of this node and boot")]
    NotOwn,
    /// No attestation key is trusted yet.
    #[error("no attestation key is known")]
    NoTrust,
    /// It is not authentic.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// One member, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberView {
    /// It.
    pub node: NodeId,
    /// Its newest boot.
    pub boot: BootId,
    /// Where its gossip goes to.
    pub address: SocketAddr,
    /// How it is.
    pub state: MemberState,
    /// When an authenticated datagram of it last came.
    pub last_heard: Option<Time>,
    /// When it last acknowledged something that this node had sent it.
    pub last_answered: Option<Time>,
}

/// The machine of one boot of one node.
pub struct Gossip {
    config: GossipConfig,
    rng: StdRng,
    trust: Option<TrustBundle>,
    own: Option<VerifiedRecord>,
    /// The newest generation that the managers have attested: that of the newest ring record seen in this fork.
    head: Option<Generation>,
    incarnation: u32,
    keyring: Keyring,
    store: Store,
    members: Members,
    /// Nodes that the managers removed, and the newest version of their records that stays refused.
    removed: BTreeMap<NodeId, Generation>,
    /// Members that shall hear from us soon.
    greet: BTreeSet<NodeId>,
    timers: Timers,
    probe: Option<Probe>,
    probe_order: Vec<NodeId>,
    sequence: u32,
    relays: VecDeque<Relay>,
    need_ring: NeedRing,
    hellos: TokenBucket,
    transmits: VecDeque<Transmit>,
    events: VecDeque<GossipEvent>,
    drops: Drops,
}

impl Gossip {
    /// A machine without keys, records or peers. `seed` is secret and never used twice.
    pub fn new(config: GossipConfig, now: Time, seed: [u8; 32]) -> Gossip {
        Gossip {
            keyring: Keyring::new(config.cluster, config.fork, config.node, config.boot),
            timers: Timers::new(now),
            hellos: TokenBucket::new(HELLOS_PER_SEC, HELLOS_PER_SEC, now),
            config,
            rng: StdRng::from_seed(seed),
            trust: None,
            own: None,
            head: None,
            incarnation: 0,
            store: Store::new(),
            members: Members::default(),
            removed: BTreeMap::new(),
            greet: BTreeSet::new(),
            probe: None,
            probe_order: Vec::new(),
            sequence: 0,
            relays: VecDeque::new(),
            need_ring: NeedRing::default(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            drops: Drops::new(),
        }
    }

    /// Takes the keys of an epoch. The same again changes nothing.
    pub fn set_epoch(&mut self, keys: EpochKeys) -> Result<(), EpochRefused> {
        self.keyring.set_epoch(keys)
    }

    /// Says which epoch to send with. A peer that has no public for it is sent to under the newest one before it.
    pub fn set_active(&mut self, epoch: Epoch) {
        if self.keyring.active != Some(epoch) {
            self.keyring.active = Some(epoch);
            self.greet.extend(self.members.iter().map(|(node, _)| node));
        }
    }

    /// Erases the keys of an epoch. Records attested in it are void.
    pub fn erase_epoch(&mut self, epoch: Epoch) {
        self.keyring.erase(epoch);
        self.expire_void();
    }

    /// Says whose signatures count. A higher fork than before voids all records and keys; a lower one is ignored.
    pub fn set_trust(&mut self, trust: TrustBundle) {
        if trust.fork < self.keyring.fork {
            return;
        }
        if trust.fork > self.keyring.fork {
            self.keyring.enter_fork(trust.fork);
            (self.own, self.head) = (None, None);
            self.removed.clear();
            for key in self.store.keys_where(|_| true) {
                self.expire(key);
            }
        }
        self.trust = Some(trust);
    }

    /// Takes this node's own record; nothing is sent before.
    pub fn set_own_record(&mut self, record: SignedRecord, now: Time) -> Result<(), OwnRecordError> {
        let trust = self.trust.as_ref().ok_or(OwnRecordError::NoTrust)?;
        let record = record.verify(trust, self.config.cluster)?;
        let is_own = record.node().is_some_and(|own| own.node == self.config.node && own.boot == self.config.boot);
        if !is_own {
            return Err(OwnRecordError::NotOwn);
        }
        if self.own.as_ref().is_none_or(|own| own.version() < record.version()) {
            self.greet.extend(self.members.iter().map(|(node, _)| node));
            self.apply(record, now);
        }
        Ok(())
    }

    /// Takes records from the managers, the ring record first. They are verified like any other.
    pub fn insert_records(&mut self, records: impl IntoIterator<Item = SignedRecord>, now: Time) {
        for record in records {
            self.accept(record, None, now);
        }
    }

    /// Drops everything of a node that the managers removed, at once: records, keys, membership. It can come back
    /// only with a record newer than all that are known now.
    pub fn remove_node(&mut self, node: NodeId) {
        if self.removed.len() < REMOVED_MAX && !self.removed.contains_key(&node) {
            let about_nodes = self.store.iter().filter(|record| record.key() != RecordKey::Ring);
            let newest = about_nodes.map(|record| record.version().generation).max();
            let nothing = Generation { fork: Fork(0), index: 0 };
            self.removed.insert(node, newest.unwrap_or(nothing));
        }
        self.forget_node(node);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<GossipEvent> {
        self.events.pop_front()
    }

    /// Asks every member for an acknowledgement, a few at a time, beside the regular probes.
    pub fn greet_all(&mut self, now: Time) {
        self.greet.extend(self.members.iter().map(|(node, _)| node));
        self.handle_timeout(now);
    }

    /// All known members but this node.
    pub fn members(&self) -> impl Iterator<Item = MemberView> + '_ {
        self.members.iter().map(|(node, member)| MemberView {
            node,
            boot: member.boot,
            address: member.address,
            state: member.state,
            last_heard: member.last_heard,
            last_answered: member.last_answered,
        })
    }

    /// All records that hold.
    pub fn records(&self) -> impl Iterator<Item = &VerifiedRecord> {
        self.store.iter()
    }

    /// The record that holds for a key.
    pub fn record(&self, key: &RecordKey) -> Option<&VerifiedRecord> {
        self.store.get(key)
    }

    /// The epoch that gossip to a member goes under now.
    pub fn sending_epoch(&self, node: NodeId) -> Option<Epoch> {
        self.choose_epoch(node).map(|(epoch, _)| epoch)
    }

    /// What was dropped, by reason.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    fn event(&mut self, event: GossipEvent) {
        if self.events.len() < 2 * EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.drops.count(GossipDrop::EventQueueFull);
        }
    }

    fn report(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Up(node, boot)) => self.event(GossipEvent::NodeUp { node, boot }),
            Some(Change::Suspect(node, boot)) => self.event(GossipEvent::NodeSuspect { node, boot }),
            Some(Change::Down(node, boot)) => self.event(GossipEvent::NodeDown { node, boot }),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
