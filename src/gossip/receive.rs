//! From a datagram to what it means.

use super::{Gossip, GossipDrop, GossipEvent};
use crate::types::{Epoch, NodeId, Time};
use crate::wire::gossip::{self, DatagramError, Form, Header, Hello, Liveness, Message, Party, Payload, Update};
use crate::wire::record::{RecordBody, RecordKey, SignedRecord};
use std::net::SocketAddr;

impl Gossip {
    /// Takes a datagram. `from` is where it seems to come from; nothing is ever sent there for that reason.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Time) {
        let _ = from;
        if let Err(reason) = self.receive(datagram, now) {
            self.drops.count(reason);
            if reason == GossipDrop::PairTableFull {
                self.event(GossipEvent::NewBootNeeded);
            }
        }
    }

    fn receive(&mut self, datagram: &[u8], now: Time) -> Result<(), GossipDrop> {
        let (header, sealed) = Header::parse(datagram).map_err(|error| match error {
            DatagramError::Version => GossipDrop::Version,
            DatagramError::Source => GossipDrop::Source,
            DatagramError::Length | DatagramError::Payload => GossipDrop::Length,
        })?;
        if !self.keyring.holds(header.epoch) {
            self.miss_epoch(header.epoch, now);
            return Err(GossipDrop::UnknownEpoch);
        }
        match header.form {
            Form::Pair { counter } => self.receive_pair(&header, counter, sealed, now),
            Form::Hello { nonce } => self.receive_hello(&header, nonce, sealed, now),
        }
    }

    fn receive_pair(&mut self, header: &Header, counter: u64, sealed: &[u8], now: Time) -> Result<(), GossipDrop> {
        if header.node == self.config.node {
            return Err(GossipDrop::OwnIdentity);
        }
        let member = self.members.get(header.node).filter(|member| member.boot == header.boot);
        let public = member.ok_or(GossipDrop::UnknownSender)?.public(header.epoch).ok_or(GossipDrop::NoPublic)?;
        let pair = self.keyring.pair(header.epoch, Party { node: header.node, boot: header.boot, public })?;
        if !pair.window.is_new(counter) {
            return Err(GossipDrop::Replayed);
        }
        let own = (self.config.node, self.config.boot);
        let plain = gossip::open_pair(&pair.receive, header, own, sealed).map_err(|_| GossipDrop::Forged)?;
        pair.window.mark(counter);
        pair.confirmed = true;
        let payload = Payload::parse(&plain).map_err(|_| GossipDrop::MalformedPayload)?;
        self.handle_payload(header.node, payload, now);
        Ok(())
    }

    fn receive_hello(&mut self, header: &Header, nonce: [u8; 12], sealed: &[u8], now: Time) -> Result<(), GossipDrop> {
        let known = self.members.get(header.node).is_some_and(|member| member.boot == header.boot);
        if !known && !self.hellos.take(now) {
            return Err(GossipDrop::HelloBudget);
        }
        let key = self.keyring.hello_key(header.epoch).ok_or(GossipDrop::UnknownEpoch)?;
        let plain = gossip::open_hello(key, header, sealed).map_err(|_| GossipDrop::Forged)?;
        if header.node == self.config.node {
            if header.boot == self.config.boot && self.keyring.is_cloned_hello(header.epoch, &nonce) {
                self.event(GossipEvent::ClonedIdentity);
            }
            return Err(GossipDrop::OwnIdentity);
        }
        let (ring, record) = hello_records(header, &plain).ok_or(GossipDrop::HelloContent)?;
        if let Some(ring) = ring {
            self.accept(ring, Some(header.node), now);
        }
        self.accept(record, Some(header.node), now);
        self.answer_hello(header.node, now);
        Ok(())
    }

    /// Whoever says hello has not authenticated us yet: say hello too, and show that their hello was understood.
    fn answer_hello(&mut self, node: NodeId, now: Time) {
        if self.send_hello(node, now) {
            let sequence = self.next_sequence();
            self.send(node, Message::Ping { sequence }, now);
        }
    }

    fn handle_payload(&mut self, from: NodeId, payload: Payload, now: Time) {
        let change = self.members.heard(from, payload.incarnation, now);
        self.report(change);
        for update in &payload.updates {
            self.handle_update(update, now);
        }
        let mut records = Vec::with_capacity(payload.records.len());
        for encoded in &payload.records {
            match SignedRecord::parse(encoded) {
                Ok(record) => records.push(record),
                Err(_) => self.drops.count(GossipDrop::MalformedRecord),
            }
        }
        let news = self.accept_all(records, from, now);
        if news > 0 && payload.message == Message::Records {
            self.sync_again(now);
        }
        self.handle_message(from, payload.message, now);
    }

    fn handle_update(&mut self, update: &Update, now: Time) {
        if update.node == self.config.node {
            let about_us = update.boot == self.config.boot && update.liveness != Liveness::Alive;
            if about_us && update.incarnation >= self.incarnation {
                self.incarnation = update.incarnation.saturating_add(1);
                self.members.announce(Update { incarnation: self.incarnation, liveness: Liveness::Alive, ..*update });
            }
            return;
        }
        let change = self.members.apply(update, self.patience(), now);
        self.report(change);
    }

    fn handle_message(&mut self, from: NodeId, message: Message, now: Time) {
        let costs = !matches!(message, Message::News | Message::Ack { .. } | Message::Records);
        if costs && !self.members.get_mut(from).is_some_and(|member| member.requests.take(now)) {
            self.drops.count(GossipDrop::RequestBudget);
            return;
        }
        match message {
            Message::News | Message::Records => {}
            Message::Ping { sequence } => self.send(from, Message::Ack { sequence }, now),
            Message::Ack { sequence } => self.handle_ack(from, sequence, now),
            Message::PingRequest { sequence, target } => self.handle_ping_request(from, sequence, target, now),
            Message::Root { hash } => self.handle_root(from, hash, now),
            Message::Digest { level, bucket, hashes } => self.handle_digest(from, level, bucket, &hashes, now),
            Message::Items { from: first, to: last, items } => {
                self.handle_items(from, u64::from_be_bytes(first)..=u64::from_be_bytes(last), &items, now);
            }
            Message::Want { hashes } => self.handle_want(from, &hashes, now),
        }
    }

    /// Somebody uses an epoch that is not here. Its header may be forged, so it starts at most one question in 30 s.
    fn miss_epoch(&mut self, epoch: Epoch, now: Time) {
        let Some(newest) = self.keyring.newest() else { return };
        if epoch > newest && epoch.0 - newest.0 <= super::probe::EPOCHS_AHEAD_MAX && !self.keyring.is_retired(epoch) {
            self.need_ring.ask(epoch, now, &mut self.rng);
        }
    }
}

/// The records of a hello: the ring's, if there is one, and the node record of the sender named in the header.
fn hello_records(header: &Header, plain: &[u8]) -> Option<(Option<SignedRecord>, SignedRecord)> {
    let Hello { ring, node } = Hello::parse(plain).ok()?;
    let ring = if ring.is_empty() { None } else { Some(SignedRecord::parse(ring).ok()?) };
    let record = SignedRecord::parse(node).ok()?;
    let RecordBody::Node(node) = record.body() else { return None };
    let of_sender = (node.node, node.boot) == (header.node, header.boot) && node.public(header.epoch).is_some();
    let is_ring = ring.as_ref().is_none_or(|ring| ring.key() == RecordKey::Ring);
    (of_sender && is_ring).then_some((ring, record))
}
