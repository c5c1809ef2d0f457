//! A snapshot of the data plane's counters and tables, for `formic status`.

use super::offloads::OffloadStatus;
use crate::esp::{CipherReport, SaIdentity, SaSummary};
use crate::overlay::DropCounters;
use crate::types::{EndpointKey, NetworkId, NodeId, Time};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Packets and their octets, of inner packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Octets.
    pub bytes: u64,
}

impl Traffic {
    pub(super) fn count(&mut self, bytes: usize) {
        self.add(Traffic { packets: 1, bytes: bytes as u64 });
    }

    pub(super) fn add(&mut self, more: Traffic) {
        self.packets = self.packets.saturating_add(more.packets);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

/// This node and one peer on one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStats {
    /// The network.
    pub network: NetworkId,
    /// The peer.
    pub peer: NodeId,
    /// Where the peer's data path is.
    pub address: Option<SocketAddr>,
    /// The SA that carries the traffic of the first queue to the peer.
    pub sending: Option<SaIdentity>,
    /// When the last authentic packet came from the peer.
    pub last_received: Option<Time>,
    /// When the last packet went to it.
    pub last_sent: Option<Time>,
    /// Authentic packets, control messages included.
    pub received: Traffic,
    /// Sealed packets, control messages included.
    pub sent: Traffic,
}

/// One SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaStats {
    /// What the database knows of it.
    pub summary: SaSummary,
    /// Whether it is what its pair sends with.
    pub sending: bool,
}

/// One local endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointStats {
    /// Which.
    pub endpoint: EndpointKey,
    /// Its address.
    pub address: IpAddr,
    /// What it sent, dropped packets included.
    pub sent: Traffic,
    /// What was delivered to it.
    pub received: Traffic,
    /// Packets dropped of those that it sent.
    pub sent_dropped: u64,
}

/// Everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// When it was taken.
    pub now: Time,
    /// Every (network, peer) that has or had an SA, in order.
    pub links: Vec<LinkStats>,
    /// Every SA.
    pub sas: Vec<SaStats>,
    /// Every local endpoint, in order.
    pub endpoints: Vec<EndpointStats>,
    /// Dropped packets by reason.
    pub drops: DropCounters,
    /// Every offload.
    pub offloads: Vec<OffloadStatus>,
    /// What does the packets' AES-GCM.
    pub cipher: CipherReport,
    /// System calls for packets and what they were good for.
    pub calls: CallStats,
}

/// System calls of the data plane that carried packets, or would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallStats {
    /// read on devices.
    pub device_reads: u64,
    /// writev on devices.
    pub device_writes: u64,
    /// recvmmsg.
    pub receives: u64,
    /// sendmmsg.
    pub sends: u64,
    /// Trains of datagrams that the kernel refused.
    pub refused_trains: u64,
    /// Looks at the poller.
    pub polls: u64,
}

impl Stats {
    /// Takes in what another worker knows.
    pub(super) fn add(&mut self, other: Stats) {
        self.now = self.now.max(other.now);
        self.drops.add(&other.drops);
        self.sas.extend(other.sas);
        self.sas.sort_by_key(|sa| (sa.summary.direction, sa.summary.identity));
        let mut links: BTreeMap<_, _> = self.links.drain(..).map(|link| ((link.network, link.peer), link)).collect();
        for link in other.links {
            links.entry((link.network, link.peer)).and_modify(|known| known.add(&link)).or_insert(link);
        }
        self.links = links.into_values().collect();
        let mut endpoints: BTreeMap<_, _> = self.endpoints.drain(..).map(|it| (it.endpoint, it)).collect();
        for endpoint in other.endpoints {
            endpoints.entry(endpoint.endpoint).and_modify(|known| known.add(&endpoint)).or_insert(endpoint);
        }
        self.endpoints = endpoints.into_values().collect();
        self.calls.add(&other.calls);
        for (known, other) in self.offloads.iter_mut().zip(other.offloads) {
            // By peers or devices: mostly the same ones.
            known.refused = known.refused.max(other.refused);
        }
    }
}

impl CallStats {
    fn add(&mut self, other: &CallStats) {
        let CallStats { device_reads, device_writes, receives, sends, refused_trains, polls } = other;
        self.device_reads += device_reads;
        self.device_writes += device_writes;
        self.receives += receives;
        self.sends += sends;
        self.refused_trains += refused_trains;
        self.polls += polls;
    }
}

impl LinkStats {
    fn add(&mut self, other: &LinkStats) {
        self.address = self.address.or(other.address);
        self.sending = self.sending.into_iter().chain(other.sending).min_by_key(|sa| sa.queue);
        self.last_received = self.last_received.max(other.last_received);
        self.last_sent = self.last_sent.max(other.last_sent);
        self.received.add(other.received);
        self.sent.add(other.sent);
    }
}

impl EndpointStats {
    fn add(&mut self, other: &EndpointStats) {
        self.sent.add(other.sent);
        self.received.add(other.received);
        self.sent_dropped = self.sent_dropped.saturating_add(other.sent_dropped);
    }
}
