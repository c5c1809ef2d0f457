//! Which records are believed, and what follows from them.

use super::store::key_hash;
use super::{EVENTS_MAX, Gossip, GossipDrop, GossipEvent};
use crate::types::{NodeId, Time};
use crate::wire::gossip::Message;
use crate::wire::record::{NodeRecord, RecordBody, RecordKey, SignedRecord, VerifiedRecord};

impl Gossip {
    /// Judges a record from a peer, or from the managers (`None`). Returns whether it was new.
    pub(super) fn accept(&mut self, record: SignedRecord, from: Option<NodeId>, now: Time) -> bool {
        self.try_accept(record, from, now) == Ok(true)
    }

    /// The same; tells why it was dropped.
    fn try_accept(&mut self, record: SignedRecord, from: Option<NodeId>, now: Time) -> Result<bool, GossipDrop> {
        match self.judge(record, from, now) {
            Ok(Some(record)) => {
                self.apply(record, now);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(reason) => {
                self.drops.count(reason);
                Err(reason)
            }
        }
    }

    /// Judges the records of one datagram, the ring record first: the others may be newer than the head known so far.
    /// Those that still are come again with the sender's ring record, which is asked for. Returns how many were new.
    pub(super) fn accept_all(&mut self, mut records: Vec<SignedRecord>, from: NodeId, now: Time) -> usize {
        records.sort_by_key(|record| record.key() != RecordKey::Ring);
        let (mut news, mut early) = (0, vec![key_hash(&RecordKey::Ring).to_be_bytes()]);
        for record in records {
            let key = record.key();
            match self.try_accept(record, Some(from), now) {
                Ok(new) => news += usize::from(new),
                Err(GossipDrop::AboveHead) => early.push(key_hash(&key).to_be_bytes()),
                Err(_) => {}
            }
        }
        if early.len() > 1 {
            self.send(from, Message::Want { hashes: early }, now);
        }
        news
    }

    /// `Ok(None)`: known already. Cheap checks first; the signature last.
    fn judge(
        &mut self,
        record: SignedRecord,
        from: Option<NodeId>,
        now: Time,
    ) -> Result<Option<VerifiedRecord>, GossipDrop> {
        let trust = self.trust.as_ref().ok_or(GossipDrop::NoTrust)?;
        if record.version().fork != trust.fork {
            return Err(GossipDrop::OtherFork);
        }
        if self.keyring.is_retired(record.version().epoch) {
            return Err(GossipDrop::RetiredEpoch);
        }
        let known = self.store.get(&record.key());
        match known.map(|known| known.version().cmp(&record.version())) {
            Some(std::cmp::Ordering::Equal) => {
                self.store.echo(&record.key(), self.members.transmissions());
                return Ok(None);
            }
            Some(std::cmp::Ordering::Greater) => return Err(GossipDrop::StaleRecord),
            _ => {}
        }
        self.check_head(&record)?;
        self.check_gone(&record)?;
        if self.store.is_full() && known.is_none() {
            return Err(GossipDrop::StoreFull);
        }
        if self.events.len() >= EVENTS_MAX {
            return Err(GossipDrop::EventQueueFull);
        }
        let budget = from.and_then(|from| self.members.get_mut(from));
        if budget.is_some_and(|member| !member.signatures.take(now)) {
            return Err(GossipDrop::SignatureBudget);
        }
        let record = record.verify(trust, self.config.cluster).map_err(|_| GossipDrop::BadSignature)?;
        if let Some(node) = record.node() {
            self.check_node(node, &record)?;
        }
        Ok(Some(record))
    }

    /// The managers' head is told by the ring record alone.
    fn check_head(&self, record: &SignedRecord) -> Result<(), GossipDrop> {
        let told = self.head.is_some_and(|head| record.version().generation <= head);
        if told || record.key() == RecordKey::Ring { Ok(()) } else { Err(GossipDrop::AboveHead) }
    }

    /// Nothing of a node that is gone comes back but what is newer than its end.
    fn check_gone(&self, record: &SignedRecord) -> Result<(), GossipDrop> {
        let generation = record.version().generation;
        let node = match record.body() {
            RecordBody::Node(record) => record.node,
            RecordBody::Endpoint(record) if record.alive => record.node,
            _ => return Ok(()),
        };
        let tombstone = self.store.get(&RecordKey::Node(node)).filter(|known| known.node().is_none());
        let is_endpoint = matches!(record.body(), RecordBody::Endpoint(_));
        let gone = tombstone.is_some_and(|tombstone| is_endpoint || tombstone.version().generation >= generation)
            || self.removed.get(&node).is_some_and(|removed| *removed >= generation);
        if gone { Err(GossipDrop::GoneNode) } else { Ok(()) }
    }

    /// Boots are ordered, and a (boot, epoch) has one public for ever.
    fn check_node(&mut self, node: &NodeRecord, record: &VerifiedRecord) -> Result<(), GossipDrop> {
        if node.node == self.config.node && node.boot != self.config.boot {
            let own = self.own.as_ref().ok_or(GossipDrop::OwnIdentity)?;
            if own.version() < record.version() {
                self.event(GossipEvent::ClonedIdentity);
            }
            return Err(GossipDrop::OwnIdentity);
        }
        if let Some(known) = self.store.get(&RecordKey::Node(node.node)).and_then(VerifiedRecord::node) {
            if known.boot_index > node.boot_index || (known.boot_index == node.boot_index && known.boot != node.boot) {
                return Err(GossipDrop::OlderBoot);
            }
            let changed = |(epoch, public)| node.public(epoch).is_some_and(|other| other != public);
            if known.boot == node.boot && known.publics.iter().copied().any(changed) {
                return Err(GossipDrop::ConflictingPublic);
            }
        }
        let contradicts =
            node.publics.iter().any(|(epoch, public)| self.keyring.contradicts(*epoch, node.node, node.boot, *public));
        if contradicts { Err(GossipDrop::ConflictingPublic) } else { Ok(()) }
    }

    /// Stores a verified record that is newer than the known one, and does what it says.
    pub(super) fn apply(&mut self, record: VerifiedRecord, now: Time) {
        self.store.insert(record.clone());
        match record.body() {
            RecordBody::Node(node) if node.node == self.config.node => self.own = Some(record.clone()),
            RecordBody::Node(node) => {
                self.removed.remove(&node.node);
                let change = self.members.upsert(node, now);
                self.report(change);
                self.greet.insert(node.node);
            }
            RecordBody::Gone(node) => self.forget_node(*node),
            RecordBody::Ring(ring) => {
                self.head = self.head.max(Some(record.version().generation));
                if !self.keyring.holds(ring.active) {
                    self.need_ring.ask(ring.active, now, &mut self.rng);
                }
                self.keyring.raise_floor(ring.oldest);
                self.expire_void();
            }
            RecordBody::Endpoint(_) => {}
        }
        self.event(GossipEvent::RecordAccepted(record));
    }

    /// Drops membership, keys and records of a node; what says that it is gone stays.
    pub(super) fn forget_node(&mut self, node: NodeId) {
        self.keyring.close(node);
        self.drop_member(node);
        let of_node = |record: &VerifiedRecord| match record.body() {
            RecordBody::Node(record) => record.node == node,
            RecordBody::Endpoint(record) => record.alive && record.node == node,
            _ => false,
        };
        for key in self.store.keys_where(of_node) {
            self.expire(key);
        }
    }

    fn drop_member(&mut self, node: NodeId) {
        let change = self.members.remove(node);
        self.report(change);
        self.greet.remove(&node);
    }

    /// Drops the records whose attestation is void.
    pub(super) fn expire_void(&mut self) {
        for key in self.store.keys_where(|record| self.keyring.is_retired(record.version().epoch)) {
            self.expire(key);
        }
    }

    pub(super) fn expire(&mut self, key: RecordKey) {
        self.store.remove(&key);
        if let RecordKey::Node(node) = key {
            self.drop_member(node);
        }
        self.event(GossipEvent::RecordExpired(key));
    }
}
