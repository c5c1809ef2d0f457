//! What one (network, peer) sends and receives with.

use crate::esp::SaIdentity;
use crate::types::{BootId, Epoch, Queues, Time};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The SAs of an epoch: those of queue 0, which stand for the others.
struct Sas {
    outbound: SaIdentity,
    inbound: SaIdentity,
}

/// One peer on one network, in one boot of the peer.
pub(super) struct Pair {
    pub(super) boot: BootId,
    own_queues: Queues,
    peer_queues: Queues,
    /// The epoch traffic goes by.
    pub(super) sending: Option<Epoch>,
    /// When to probe again; `None` before the first time.
    pub(super) probe_at: Option<Time>,
    /// When the peer last answered a probe.
    pub(super) answered: Option<Time>,
    sas: BTreeMap<Epoch, Sas>,
    /// Epochs under which the peer has been heard.
    confirmed: BTreeSet<Epoch>,
    /// Epochs whose public of the peer is bad.
    refused: BTreeSet<Epoch>,
    /// The epoch whose activation the peer was told of.
    announced: Option<Epoch>,
}

impl Pair {
    pub(super) fn new(boot: BootId, own_queues: Queues, peer_queues: Queues) -> Pair {
        Pair {
            boot,
            own_queues,
            peer_queues,
            sending: None,
            probe_at: None,
            answered: None,
            sas: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            refused: BTreeSet::new(),
            announced: None,
        }
    }

    /// Whether the epoch's SAs exist or cannot.
    pub(super) fn knows(&self, epoch: Epoch) -> bool {
        self.sas.contains_key(&epoch) || self.refused.contains(&epoch)
    }

    pub(super) fn insert(&mut self, epoch: Epoch, outbound: SaIdentity, inbound: SaIdentity) {
        self.sas.insert(epoch, Sas { outbound, inbound });
    }

    pub(super) fn refuse(&mut self, epoch: Epoch) {
        self.refused.insert(epoch);
    }

    pub(super) fn is_refused(&self, epoch: Epoch) -> bool {
        self.refused.contains(&epoch)
    }

    /// The SA that control messages go by: queue 0's.
    pub(super) fn outbound(&self, epoch: Epoch) -> Option<SaIdentity> {
        self.sas.get(&epoch).map(|sas| sas.outbound)
    }

    /// The SAs of an epoch that this node sends with, one for each of its queues.
    pub(super) fn outbounds(&self, epoch: Epoch) -> impl Iterator<Item = SaIdentity> {
        of_queues(self.outbound(epoch), self.own_queues)
    }

    /// The SAs of an epoch that the peer sends with, one for each of its queues.
    pub(super) fn inbounds(&self, epoch: Epoch) -> impl Iterator<Item = SaIdentity> {
        of_queues(self.sas.get(&epoch).map(|sas| sas.inbound), self.peer_queues)
    }

    /// All SAs.
    pub(super) fn identities(&self) -> impl Iterator<Item = SaIdentity> {
        self.sas.keys().flat_map(|&epoch| self.inbounds(epoch).chain(self.outbounds(epoch)))
    }

    pub(super) fn forget(&mut self, epoch: Epoch) {
        self.sas.remove(&epoch);
        self.confirmed.remove(&epoch);
        self.refused.remove(&epoch);
        self.sending = self.sending.filter(|sending| *sending != epoch);
    }

    /// Notes that the peer was heard by this SA; whether that is news. The SA of any queue will do: who has one holds
    /// the epoch, and has the SAs of all queues.
    pub(super) fn confirm(&mut self, inbound: &SaIdentity) -> bool {
        let ours = self.inbounds(inbound.epoch).any(|known| known == *inbound);
        ours && self.confirmed.insert(inbound.epoch)
    }

    /// Chooses the epoch to send with; it, if the choice changed.
    pub(super) fn choose(&mut self, active: Epoch) -> Option<Epoch> {
        let before = self.sas.range(..active).next_back().map(|(&epoch, _)| epoch);
        let with_active = self.sas.contains_key(&active).then_some(active);
        let choice = if self.confirmed.contains(&active) { with_active } else { before.or(with_active) }?;
        if self.sending == Some(choice) {
            return None;
        }
        self.sending = Some(choice);
        Some(choice)
    }

    /// The dummy packet that is due: on activation, then again until the pair is confirmed, and once in a while after
    /// that, so that a path that was cut is seen on idle pairs too.
    pub(super) fn probe(&mut self, active: Epoch, now: Time, intervals: &ProbeIntervals) -> Option<SaIdentity> {
        let Some(outbound) = self.outbound(active) else {
            // Nothing to probe with: the peer's public will bring the pair back, no timer.
            self.probe_at = None;
            return None;
        };
        let news = self.announced != Some(active);
        if !news && self.probe_at.is_some_and(|at| at > now) {
            return None;
        }
        self.announced = Some(active);
        let confirmed = self.confirmed.contains(&active);
        self.probe_at = Some(now + if confirmed { intervals.confirmed } else { intervals.unconfirmed });
        Some(outbound)
    }
}

/// The SAs like this one of each queue.
fn of_queues(identity: Option<SaIdentity>, queues: Queues) -> impl Iterator<Item = SaIdentity> {
    identity.into_iter().flat_map(move |identity| queues.numbers().map(move |queue| SaIdentity { queue, ..identity }))
}

/// When a pair is probed again.
pub(super) struct ProbeIntervals {
    pub(super) unconfirmed: Duration,
    pub(super) confirmed: Duration,
}
