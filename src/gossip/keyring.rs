//! The keys of gossip: epochs held, one key per direction of a pair, counters and replay windows.
//!
//! Invariant: a pair of (epoch, peer, peer's boot) is created once and lives until the epoch's secret is erased,
//! whatever happens to the peer meanwhile; an erased epoch is never taken again. So no (key, nonce) repeats.

use super::GossipDrop;
use super::sequence::{ReplayWindow, SendCounter};
use crate::crypto::{self, X25519Secret};
use crate::types::{BootId, ClusterId, Epoch, Fork, Key32, NodeId, PublicKey};
use crate::wire::gossip::{self, Party};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Epochs held at once: a whole ring of three while another whole ring takes its place.
pub const EPOCHS_MAX: usize = 6;
/// Pairs kept at once: 16,384 peers with a few boots and epochs each.
pub const PAIRS_MAX: usize = 65_536;
/// Own hellos remembered per epoch, to tell a reflection from a clone.
const OWN_HELLOS_MAX: usize = 8192;
/// Epochs remembered as thrown away before their time; each stands for one removal of a node.
const THROWN_MAX: usize = 1024;

/// The keys of one epoch, told by the managers, and this node's own secret for it.
pub struct EpochKeys {
    /// The epoch.
    pub epoch: Epoch,
    /// The key that all admitted nodes share.
    pub gossip_key: Key32,
    /// This boot's X25519 secret.
    pub secret: Arc<X25519Secret>,
}

/// Why keys of an epoch were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EpochRefused {
    /// Its keys were erased, or it is older than any that lives.
    #[error("epoch is retired")]
    Retired,
    /// It is held with other keys.
    #[error("epoch is held with other keys")]
    Conflict,
    /// [`EPOCHS_MAX`] are held.
    #[error("too many epochs")]
    TooMany,
}

struct Held {
    gossip_key: Key32,
    hello_key: Key32,
    secret: Arc<X25519Secret>,
    /// Marks the nonces of this boot's hellos: any node can send a hello in our name, but only a clone of this process
    /// has the secret that this comes from.
    mark: Option<Key32>,
    hellos: BTreeSet<[u8; 12]>,
    hellos_forgotten: bool,
}

impl Held {
    /// A nonce that shows to this boot, and to nobody else, whose it is.
    fn marked_nonce(&self, random: [u8; 8]) -> Option<[u8; 12]> {
        let mark = crypto::derive_key(&[self.mark.as_ref()?.expose()], &[b"formic hello mark v1", &random]);
        let [a, b, c, d, e, f, g, h] = random;
        let [i, j, k, l, ..] = *mark.expose();
        Some([a, b, c, d, e, f, g, h, i, j, k, l])
    }

    fn is_marked(&self, nonce: &[u8; 12]) -> bool {
        let random = nonce.first_chunk::<8>().copied().unwrap_or_default();
        self.marked_nonce(random).is_some_and(|marked| crypto::equal_in_constant_time(&marked, nonce))
    }
}

/// The keys and state of one pair in one epoch.
pub(super) struct Pair {
    pub(super) send: Key32,
    pub(super) receive: Key32,
    pub(super) counter: SendCounter,
    pub(super) window: ReplayWindow,
    /// The peer has authenticated itself under these keys, so it knows our record too.
    pub(super) confirmed: bool,
}

struct Slot {
    public: PublicKey,
    /// `None`: the public gave no secret, or the peer is gone. The slot stays, so that it never starts again.
    pair: Option<Pair>,
}

pub(super) struct Keyring {
    pub(super) cluster: ClusterId,
    pub(super) fork: Fork,
    node: NodeId,
    boot: BootId,
    pub(super) active: Option<Epoch>,
    held: BTreeMap<Epoch, Held>,
    floor: Epoch,
    thrown: BTreeSet<Epoch>,
    pairs: BTreeMap<(Epoch, NodeId, BootId), Slot>,
}

impl Keyring {
    pub(super) fn new(cluster: ClusterId, fork: Fork, node: NodeId, boot: BootId) -> Keyring {
        Keyring {
            cluster,
            fork,
            node,
            boot,
            active: None,
            held: BTreeMap::new(),
            floor: Epoch(0),
            thrown: BTreeSet::new(),
            pairs: BTreeMap::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(super) fn holds(&self, epoch: Epoch) -> bool {
        self.held.contains_key(&epoch)
    }

    pub(super) fn newest(&self) -> Option<Epoch> {
        self.held.last_key_value().map(|(epoch, _)| *epoch)
    }

    /// Whether records attested in the epoch are void.
    pub(super) fn is_retired(&self, epoch: Epoch) -> bool {
        epoch < self.floor || self.thrown.contains(&epoch)
    }

    pub(super) fn set_epoch(&mut self, keys: EpochKeys) -> Result<(), EpochRefused> {
        if let Some(held) = self.held.get(&keys.epoch) {
            let same = held.gossip_key == keys.gossip_key && held.secret.public() == keys.secret.public();
            return if same { Ok(()) } else { Err(EpochRefused::Conflict) };
        }
        if self.is_retired(keys.epoch) {
            return Err(EpochRefused::Retired);
        }
        if self.held.len() >= EPOCHS_MAX {
            return Err(EpochRefused::TooMany);
        }
        let held = Held {
            hello_key: gossip::hello_key(&keys.gossip_key),
            gossip_key: keys.gossip_key,
            mark: own_secret(&keys.secret),
            secret: keys.secret,
            hellos: BTreeSet::new(),
            hellos_forgotten: false,
        };
        self.held.insert(keys.epoch, held);
        Ok(())
    }

    /// Erases the epoch's keys, pairs, counters and windows.
    pub(super) fn erase(&mut self, epoch: Epoch) {
        self.held.remove(&epoch);
        self.pairs.retain(|(of, _, _), _| *of != epoch);
        if self.active == Some(epoch) {
            self.active = None;
        }
        let floor = self.held.first_key_value().map_or(epoch.next(), |(oldest, _)| *oldest);
        self.thrown.insert(epoch);
        self.raise_floor(floor);
        if self.thrown.len() > THROWN_MAX {
            self.thrown.pop_first();
        }
    }

    /// Notes that all epochs below are retired. Their keys stay until they are erased.
    pub(super) fn raise_floor(&mut self, floor: Epoch) {
        self.floor = self.floor.max(floor);
        self.thrown = self.thrown.split_off(&self.floor);
    }

    /// Starts over in a new life of the replicated state: no key of the old one is used again.
    pub(super) fn enter_fork(&mut self, fork: Fork) {
        *self = Keyring::new(self.cluster, fork, self.node, self.boot);
    }

    /// The epoch to send with to a peer with these publics, knowing ours: the active one, else the newest
    /// before it, else the oldest after it.
    pub(super) fn choose(
        &self,
        theirs: &[(Epoch, PublicKey)],
        ours: &[(Epoch, PublicKey)],
    ) -> Option<(Epoch, PublicKey)> {
        let usable =
            |epoch: &Epoch| self.held.get(epoch).is_some_and(|held| ours.contains(&(*epoch, held.secret.public())));
        let common = || theirs.iter().filter(|(epoch, _)| usable(epoch)).copied();
        let Some(active) = self.active else { return common().next_back() };
        let not_later = common().rfind(|(epoch, _)| *epoch <= active);
        not_later.or_else(|| common().next())
    }

    /// The pair with a peer, made at its first use.
    pub(super) fn pair(&mut self, epoch: Epoch, peer: Party) -> Result<&mut Pair, GossipDrop> {
        let key = (epoch, peer.node, peer.boot);
        if !self.pairs.contains_key(&key) {
            if self.pairs.len() >= PAIRS_MAX {
                return Err(GossipDrop::PairTableFull);
            }
            let slot = Slot { public: peer.public, pair: self.make_pair(epoch, &peer)? };
            self.pairs.insert(key, slot);
        }
        let slot = self.pairs.get_mut(&key).ok_or(GossipDrop::UnknownEpoch)?;
        if slot.public != peer.public {
            return Err(GossipDrop::ConflictingPublic);
        }
        slot.pair.as_mut().ok_or(GossipDrop::BadPublic)
    }

    fn make_pair(&self, epoch: Epoch, peer: &Party) -> Result<Option<Pair>, GossipDrop> {
        let held = self.held.get(&epoch).ok_or(GossipDrop::UnknownEpoch)?;
        let Ok(shared) = held.secret.agree(&peer.public) else { return Ok(None) };
        let own = Party { node: self.node, boot: self.boot, public: held.secret.public() };
        let context = (self.cluster, self.fork, epoch);
        Ok(Some(Pair {
            send: gossip::pair_key(&held.gossip_key, &shared, context, &own, peer),
            receive: gossip::pair_key(&held.gossip_key, &shared, context, peer, &own),
            counter: SendCounter::new(),
            window: ReplayWindow::new(),
            confirmed: false,
        }))
    }

    /// Whether a record's public contradicts one that keys were made of.
    pub(super) fn contradicts(&self, epoch: Epoch, node: NodeId, boot: BootId, public: PublicKey) -> bool {
        self.pairs.get(&(epoch, node, boot)).is_some_and(|slot| slot.public != public)
    }

    /// Erases the keys shared with a node that is gone; nothing is ever sent under them again.
    pub(super) fn close(&mut self, node: NodeId) {
        self.pairs.iter_mut().filter(|((_, of, _), _)| *of == node).for_each(|(_, slot)| slot.pair = None);
    }

    pub(super) fn hello_key(&self, epoch: Epoch) -> Option<&Key32> {
        self.held.get(&epoch).map(|held| &held.hello_key)
    }

    /// The nonce of a hello of this boot, made of fresh random octets. It is remembered.
    pub(super) fn hello_nonce(&mut self, epoch: Epoch, random: [u8; 8]) -> Option<[u8; 12]> {
        let held = self.held.get_mut(&epoch)?;
        let nonce = held.marked_nonce(random)?;
        if held.hellos.len() < OWN_HELLOS_MAX {
            held.hellos.insert(nonce);
        } else {
            held.hellos_forgotten = true;
        }
        Some(nonce)
    }

    /// Whether a hello in this node's name was made with this boot's secret, but not by this process.
    pub(super) fn is_cloned_hello(&self, epoch: Epoch, nonce: &[u8; 12]) -> bool {
        let cloned = |held: &Held| held.is_marked(nonce) && !held.hellos_forgotten && !held.hellos.contains(nonce);
        self.held.get(&epoch).is_some_and(cloned)
    }
}

/// What only the owner of an X25519 secret can compute; everybody knows the public.
fn own_secret(secret: &X25519Secret) -> Option<Key32> {
    let shared = secret.agree(&secret.public()).ok()?;
    Some(crypto::derive_key(&[shared.expose()], &[b"formic hello mark key v1"]))
}
