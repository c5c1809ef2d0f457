//! What must hold all the time, checked as it happens: nonces, deliveries, confirmed pairs, owners of addresses, the
//! ring. A broken rule panics with the seed that shows it again.

use crate::cluster::State;
use crate::crypto;
use crate::esp::SaIdentity;
use crate::types::{BootId, EndpointKey, Epoch, Time};
use crate::wire::gossip::{Form, Header};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// What tells a datagram on the data path from all others of its sender: SPI, sequence, IV.
type Flight = (IpAddr, [u8; 16]);

/// A packet of a container.
pub(super) struct Packet {
    pub(super) from: EndpointKey,
    pub(super) to: EndpointKey,
    /// The boot of the receiving node when it was sent.
    pub(super) to_boot: Option<BootId>,
    /// Everything was well for a while: what the network doesn't lose has to be delivered.
    pub(super) expected: bool,
    /// When it was delivered.
    pub(super) delivered: Option<Time>,
}

/// The book of all that happened.
pub(super) struct Oracle {
    pub(super) seed: u64,
    pub(super) packets: BTreeMap<u64, Packet>,
    /// Delivered packets.
    pub(super) delivered: u64,
    /// Datagrams that arrived and had to be delivered.
    pub(super) held_to: u64,
    flights: BTreeMap<Flight, u64>,
    /// Under way: datagrams of pairs and epochs of which nothing has arrived yet, by the SA of queue 0.
    unheard: BTreeMap<Flight, SaIdentity>,
    /// Pairs and epochs of which something has arrived, by the SA of queue 0.
    heard: BTreeSet<SaIdentity>,
    counters: BTreeMap<SaIdentity, u64>,
    pairs: BTreeSet<Vec<u8>>,
    /// The newest epoch seen to be active, and the masters that were in the ring.
    masters: BTreeMap<Epoch, Vec<u8>>,
    hash: [u8; 32],
}

impl Oracle {
    pub(super) fn new(seed: u64) -> Oracle {
        Oracle {
            seed,
            packets: BTreeMap::new(),
            delivered: 0,
            held_to: 0,
            flights: BTreeMap::new(),
            unheard: BTreeMap::new(),
            heard: BTreeSet::new(),
            counters: BTreeMap::new(),
            pairs: BTreeSet::new(),
            masters: BTreeMap::new(),
            hash: [0; 32],
        }
    }

    /// Ends the run.
    pub(super) fn fail(&self, now: Time, what: &str) -> ! {
        let seed = self.seed;
        panic!("seed {seed}, {:.3} s: {what}\nrun again with FORMIC_SIM_SEED={seed}", now.0 as f64 / 1e6)
    }

    /// Something happened: two runs of one seed must agree on all of it.
    pub(super) fn note(&mut self, now: Time, what: &[u8]) {
        self.hash = crypto::sha256(&[&self.hash, &now.0.to_be_bytes(), what]);
    }

    /// What happened so far, in short.
    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// A node sealed a datagram: its sequence is above all that were ever used under this identity, in any boot.
    pub(super) fn sealed(&mut self, from: SocketAddr, identity: SaIdentity, datagram: &[u8], now: Time) {
        let Some(iv) = datagram.get(8..16).and_then(|iv| iv.try_into().ok()).map(u64::from_be_bytes) else {
            self.fail(now, "a datagram without header")
        };
        if self.counters.insert(identity, iv).is_some_and(|used| used >= iv) {
            self.fail(now, &format!("a (key, nonce) twice: {identity:?}, {iv}"));
        }
        // The SA of any queue confirms a pair.
        let of_pair = SaIdentity { queue: 0, ..identity };
        if let Some(flight) = flight(from, datagram).filter(|_| !self.heard.contains(&of_pair)) {
            self.unheard.insert(flight, of_pair);
        }
    }

    /// A datagram has arrived.
    pub(super) fn arrived(&mut self, from: SocketAddr, datagram: &[u8]) {
        let identity = flight(from, datagram).and_then(|flight| self.unheard.remove(&flight));
        self.heard.extend(identity);
    }

    /// A packet goes to a peer under an epoch: the peer was heard under it, or there was nothing before it. `held` are
    /// the epochs that the sender has.
    pub(super) fn check_confirmed(&self, identity: &SaIdentity, held: &[Epoch], now: Time) {
        let before = held.iter().filter(|epoch| **epoch < identity.epoch);
        let of_pair = |used: &SaIdentity, epoch: Epoch| {
            (used.network, used.src, used.dst, used.src_boot, used.dst_boot, used.epoch)
                == (identity.network, identity.src, identity.dst, identity.src_boot, identity.dst_boot, epoch)
        };
        let back = SaIdentity {
            src: identity.dst,
            dst: identity.src,
            src_boot: identity.dst_boot,
            dst_boot: identity.src_boot,
            src_public: identity.dst_public,
            dst_public: identity.src_public,
            queue: 0,
            ..*identity
        };
        if !self.heard.contains(&back)
            && before.into_iter().any(|epoch| self.counters.keys().any(|used| of_pair(used, *epoch)))
        {
            self.fail(now, &format!("a packet under an epoch that the peer was not heard under: {identity:?}"));
        }
    }

    /// A node sealed a datagram of gossip for a peer of this boot.
    pub(super) fn gossiped(&mut self, datagram: &[u8], to: SocketAddr, boot: Option<BootId>, now: Time) {
        let Ok((header, _)) = Header::parse(datagram) else { self.fail(now, "gossip without header") };
        let mut identity = header.emit();
        if let Form::Pair { .. } = header.form {
            identity.extend_from_slice(to.to_string().as_bytes());
            identity.extend(boot.into_iter().flat_map(|boot| boot.0));
        }
        if !self.pairs.insert(identity) {
            self.fail(now, "a (key, nonce) of gossip twice");
        }
    }

    /// A packet left its host in this datagram.
    pub(super) fn departed(&mut self, from: SocketAddr, datagram: &[u8], packet: u64) {
        if let Some(flight) = flight(from, datagram) {
            self.flights.insert(flight, packet);
        }
    }

    /// The packet in a datagram.
    pub(super) fn packet_in(&self, from: SocketAddr, datagram: &[u8]) -> Option<u64> {
        self.flights.get(&flight(from, datagram)?).copied()
    }

    /// A container of `at` got a packet.
    pub(super) fn received(&mut self, at: EndpointKey, number: u64, now: Time) {
        let Some(packet) = self.packets.get_mut(&number) else { self.fail(now, "a packet that nobody sent") };
        let again = packet.delivered.replace(now).is_some();
        let (from, to) = (packet.from, packet.to);
        if from.network != at.network {
            self.fail(now, &format!("a packet of {from:?} came to another network: {at:?}"));
        }
        if again {
            self.fail(now, &format!("packet {number} came twice to {at:?}"));
        }
        if to != at {
            self.fail(now, &format!("a packet for {to:?} came to {at:?}"));
        }
        self.delivered += 1;
    }

    /// The managers' state after a change.
    pub(super) fn check_state(&mut self, state: &State, now: Time) {
        if state.ring.epochs.len() > 3 {
            self.fail(now, "more than three epochs");
        }
        let mut owners: BTreeMap<(_, IpAddr), _> = BTreeMap::new();
        for task in state.tasks.values().filter(|task| !task.gone) {
            for attachment in &task.attachments {
                let address = attachment.address.addr();
                if let Some(other) = owners.insert((attachment.network, address), task.id) {
                    self.fail(now, &format!("{address} belongs to {other} and {}", task.id));
                }
                let owner = state.networks.get(&attachment.network).and_then(|net| net.addresses.get(&address));
                if owner != Some(&task.id) {
                    self.fail(now, &format!("{address} of task {} is not reserved", task.id));
                }
            }
        }
        self.check_masters(state, now);
    }

    /// A master that left the ring is nowhere in the stored state.
    fn check_masters(&mut self, state: &State, now: Time) {
        let held: BTreeSet<Epoch> = state.ring.epochs.iter().map(|epoch| epoch.epoch).collect();
        let retired: Vec<Epoch> = self.masters.keys().copied().filter(|epoch| !held.contains(epoch)).collect();
        if !retired.is_empty() {
            let bytes = state.to_bytes().unwrap_or_default();
            for epoch in retired {
                let master = self.masters.remove(&epoch).unwrap_or_default();
                if bytes.windows(master.len()).any(|window| window == master.as_slice()) {
                    self.fail(now, &format!("the master of epoch {epoch} outlived its retirement"));
                }
            }
        }
        for epoch in &state.ring.epochs {
            let master = epoch.master.expose().to_vec();
            if self.masters.entry(epoch.epoch).or_insert_with(|| master.clone()) != &master {
                self.fail(now, &format!("epoch {} changed its master", epoch.epoch));
            }
        }
    }

    /// The address of a container that is there belongs to its task, and so to nobody else: it is free only once the
    /// node has said that nothing is left.
    pub(super) fn check_owners(&self, state: &State, there: &[(EndpointKey, IpAddr)], now: Time) {
        for (endpoint, address) in there {
            let owner = state.networks.get(&endpoint.network).and_then(|network| network.addresses.get(address));
            if owner != Some(&endpoint.task) {
                self.fail(now, &format!("{endpoint:?} has {address} still, which belongs to {owner:?} already"));
            }
        }
    }
}

fn flight(from: SocketAddr, datagram: &[u8]) -> Option<Flight> {
    Some((from.ip(), *datagram.first_chunk()?))
}
