//! From a message to a sealed datagram.

use super::{Gossip, GossipDrop, GossipEvent, TRANSMITS_MAX, Transmit};
use crate::types::{Epoch, NodeId, PublicKey, Time};
use crate::wire::gossip::{self, Form, Header, Hello, Message, PLAINTEXT_MAX, Party, Payload};
use crate::wire::record::{RecordKey, VerifiedRecord};
use rand::Rng;
use std::net::SocketAddr;

/// News of members in one datagram.
const NEWS_PER_DATAGRAM: usize = 8;
/// Octets that one [`gossip::Update`] takes at most.
const UPDATE_LEN_MAX: usize = 17 + 8 + 5 + 1;

impl Gossip {
    /// Sends a message to a member, with as much news and as many fresh records as fit beside it.
    pub(super) fn send(&mut self, to: NodeId, message: Message, now: Time) {
        let mut payload = self.payload(message);
        let mut room = PLAINTEXT_MAX.saturating_sub(payload.emit().len());
        payload.updates = self.members.take_news(to, NEWS_PER_DATAGRAM.min(room / UPDATE_LEN_MAX));
        room -= payload.updates.len() * UPDATE_LEN_MAX;
        payload.records = self.store.take_fresh(room, self.members.transmissions());
        self.send_payload(to, &payload, now);
    }

    /// Sends records to a member, in as many datagrams as they need.
    pub(super) fn send_records(&mut self, to: NodeId, records: Vec<VerifiedRecord>, now: Time) {
        let mut payload = self.payload(Message::Records);
        let empty = PLAINTEXT_MAX.saturating_sub(payload.emit().len());
        let mut room = empty;
        for record in records {
            let encoded = record.signed().encoded().to_vec();
            let length = encoded.len() + super::store::RECORD_OVERHEAD;
            if length > room {
                self.send_payload(to, &payload, now);
                payload.records.clear();
                room = empty;
            }
            room = room.saturating_sub(length);
            payload.records.push(encoded);
        }
        if !payload.records.is_empty() {
            self.send_payload(to, &payload, now);
        }
    }

    fn payload(&self, message: Message) -> Payload {
        Payload { incarnation: self.incarnation, message, updates: Vec::new(), records: Vec::new() }
    }

    fn send_payload(&mut self, to: NodeId, payload: &Payload, now: Time) {
        match self.seal(to, payload, now) {
            Ok(()) => {}
            Err(reason) => {
                self.drops.count(reason);
                if matches!(reason, GossipDrop::PairTableFull | GossipDrop::CounterExhausted) {
                    self.event(GossipEvent::NewBootNeeded);
                }
            }
        }
    }

    fn seal(&mut self, to: NodeId, payload: &Payload, now: Time) -> Result<(), GossipDrop> {
        let (epoch, public) = self.choose_epoch(to).ok_or(GossipDrop::NoCommonEpoch)?;
        let member = self.members.get(to).ok_or(GossipDrop::NoCommonEpoch)?;
        let (boot, address) = (member.boot, member.address);
        let party = Party { node: to, boot, public };
        if !self.keyring.pair(epoch, party)?.confirmed {
            self.send_hello(to, now);
        }
        let pair = self.keyring.pair(epoch, party)?;
        let counter = pair.counter.next().ok_or(GossipDrop::CounterExhausted)?;
        let header = Header { epoch, node: self.config.node, boot: self.config.boot, form: Form::Pair { counter } };
        let datagram = gossip::seal_pair(&pair.send, &header, (to, boot), &payload.emit());
        self.transmit(address, datagram)
    }

    /// Says hello to a member, if it was not said a moment ago.
    pub(super) fn send_hello(&mut self, to: NodeId, now: Time) -> bool {
        let Some((epoch, _)) = self.choose_epoch(to) else { return false };
        let Some(member) = self.members.get_mut(to).filter(|_| self.own.is_some()) else { return false };
        if !member.hello_due(now) {
            return false;
        }
        let address = member.address;
        let mut random = [0; 8];
        self.rng.fill_bytes(&mut random);
        let Some(nonce) = self.keyring.hello_nonce(epoch, random) else { return false };
        let header = Header { epoch, node: self.config.node, boot: self.config.boot, form: Form::Hello { nonce } };
        let (Some(key), Some(own)) = (self.keyring.hello_key(epoch), &self.own) else { return false };
        let ring = self.store.get(&RecordKey::Ring).map_or(&[][..], |ring| ring.signed().encoded());
        let hello = Hello { ring, node: own.signed().encoded() };
        let datagram = gossip::seal_hello(key, &header, &hello.emit());
        let sent = self.transmit(address, datagram);
        sent.map_err(|reason| self.drops.count(reason)).is_ok()
    }

    pub(super) fn choose_epoch(&self, to: NodeId) -> Option<(Epoch, PublicKey)> {
        let ours = &self.own.as_ref()?.node()?.publics;
        self.keyring.choose(&self.members.get(to)?.publics, ours)
    }

    fn transmit(&mut self, to: SocketAddr, payload: Vec<u8>) -> Result<(), GossipDrop> {
        if self.transmits.len() >= TRANSMITS_MAX {
            return Err(GossipDrop::TransmitQueueFull);
        }
        self.transmits.push_back(Transmit { to, payload });
        Ok(())
    }
}
