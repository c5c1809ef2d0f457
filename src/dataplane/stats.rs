//! A snapshot of the data plane's counters and tables, for `formic status`.

use super::offloads::OffloadStatus;
use crate::esp::{CipherReport, SaIdentity, SaSummary};
use crate::overlay::DropCounters;
use crate::types::{EndpointKey, NetworkId, NodeId, Time};
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
    /// The SA that carries the traffic to the peer.
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
