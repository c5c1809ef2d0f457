//! What a worker knows: endpoints, networks, peers, SAs, and the counters of all of them. The flows are in
//! [`super::outbound`] and [`super::inbound`], the commands in `commands`.

mod commands;

use super::events::EventQueue;
use super::offloads::{Offload, OffloadStatus, Offloads};
use super::probe::Failures;
use super::{CallStats, DataEvent, EndpointStats, LinkStats, SaStats, Stats, Traffic};
use crate::esp::{CipherReport, InboundIndex, OutboundIndex, SaDatabase, SaIdentity};
use crate::overlay::{DropCounters, LocalIndex, NetworkTable, PeerIndex};
use crate::sys::poll::Polled;
use crate::types::{EndpointKey, Epoch, NetworkId, NodeId, Time, Transform};
use slab::Slab;
use socket2::SockAddr;
use std::collections::{BTreeSet, HashMap};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

/// Nodes that a worker can number: far more than a swarm has in the life of a daemon. Numbers are not used again.
const MAX_PEERS: usize = 1 << 16;

/// How a device is written: a packet that lies in several pieces.
pub(super) type DeviceWrite = fn(BorrowedFd<'_>, &[IoSlice<'_>]) -> nix::Result<usize>;

/// A local endpoint and its device.
pub(super) struct Endpoint {
    pub(super) key: EndpointKey,
    pub(super) network: usize,
    pub(super) address: IpAddr,
    pub(super) tun: Polled<OwnedFd>,
    pub(super) write: DeviceWrite,
    pub(super) vnet: bool,
    /// What is used of what its device can do.
    pub(super) offloads: Offloads,
    /// It is in the worker's queue of devices to read.
    pub(super) queued: bool,
    pub(super) sent: Traffic,
    pub(super) received: Traffic,
    pub(super) sent_dropped: u64,
}

/// A network with an endpoint here.
pub(super) struct Network {
    pub(super) id: NetworkId,
    pub(super) transform: Transform,
    pub(super) table: NetworkTable,
    pub(super) links: HashMap<PeerIndex, Link>,
}

/// This node and one peer on one network.
#[derive(Default)]
pub(super) struct Link {
    /// What the control plane wants to send with.
    pub(super) wanted: Option<SaIdentity>,
    /// The same, once it is installed.
    pub(super) sending: Option<OutboundIndex>,
    pub(super) last_received: Option<Time>,
    pub(super) last_sent: Option<Time>,
    pub(super) received: Traffic,
    pub(super) sent: Traffic,
}

/// Another node.
pub(super) struct Peer {
    node: NodeId,
    address: Option<SocketAddr>,
    underlay: Option<SockAddr>,
    /// The way to it does not take trains of datagrams.
    refuses_trains: bool,
    /// Octets of the longest inner packet that the way to it carries, once that is known.
    carries: Option<u16>,
    /// When the control plane was last told that the way is used for long packets.
    used_at: Option<Time>,
}

/// Octets of inner packets from which on a way is used for long ones: some less than every way has to carry.
const LONG_PACKET_BYTES: usize = 1000;

/// How often the control plane is told that a way is used for long packets.
const USED_INTERVAL: Duration = Duration::from_secs(1);

impl Peer {
    pub(super) fn new(node: NodeId) -> Peer {
        Peer { node, address: None, underlay: None, refuses_trains: false, carries: None, used_at: None }
    }

    /// Octets of the longest inner packet that the way to it carries, if that is known.
    pub(super) fn carries(&self) -> Option<u16> {
        self.carries
    }

    /// Notes that a packet of this length goes there; the node, when the control plane is to be told.
    pub(super) fn used(&mut self, octets: usize, now: Time) -> Option<NodeId> {
        let due = octets > LONG_PACKET_BYTES && self.used_at.is_none_or(|at| now.since(at) >= USED_INTERVAL);
        due.then(|| {
            self.used_at = Some(now);
            self.node
        })
    }

    pub(super) fn takes_trains(&self) -> bool {
        !self.refuses_trains
    }

    /// Trains were refused on the way to it, and their datagrams were taken.
    pub(super) fn refuses_trains(&mut self) {
        if !std::mem::replace(&mut self.refuses_trains, true) {
            let offload = Offload::UdpGso.name();
            tracing::info!(peer = %self.node, offload, "the kernel refuses trains of datagrams to this peer: sending them one by one");
        }
    }

    fn set_carries(&mut self, inner_bytes: u16) {
        self.carries = Some(inner_bytes);
    }

    fn set_address(&mut self, address: SocketAddr) {
        if self.address.replace(address) != Some(address) {
            self.refuses_trains = false;
        }
        self.underlay = Some(SockAddr::from(address));
    }
}

#[cfg(test)]
impl Peer {
    pub(super) fn at(underlay: SockAddr) -> Peer {
        Peer { underlay: Some(underlay), ..Peer::new(NodeId::from_random([0; 17])) }
    }
}

/// Whose packets an inbound SA opens.
#[derive(Clone, Copy)]
pub(super) struct Inbound {
    pub(super) network: usize,
    pub(super) peer: PeerIndex,
    epoch: Epoch,
    /// Its first packet was reported.
    pub(super) announced: bool,
}

/// See the [module](self).
pub(super) struct Tables {
    /// When this turn began.
    pub(super) now: Time,
    /// What may be used.
    pub(super) offloads: Offloads,
    /// What failed the test at the start.
    pub(super) failures: Failures,
    pub(super) cipher: CipherReport,
    pub(super) calls: CallStats,
    pub(super) endpoints: Slab<Endpoint>,
    endpoint_numbers: HashMap<EndpointKey, usize>,
    pub(super) networks: Slab<Network>,
    network_numbers: HashMap<NetworkId, usize>,
    pub(super) peers: Vec<Peer>,
    peer_numbers: HashMap<NodeId, PeerIndex>,
    pub(super) inbound: HashMap<InboundIndex, Inbound>,
    pub(super) sas: SaDatabase,
    pub(super) drops: DropCounters,
    pub(super) events: EventQueue,
}

/// What this machine is good for.
#[derive(Clone)]
pub(super) struct Abilities {
    /// Offloads that may be used.
    pub(super) wanted: Offloads,
    /// What failed the test at the start.
    pub(super) failures: Failures,
    pub(super) cipher: CipherReport,
}

/// Where to send datagrams for a peer.
pub(super) fn underlay_address(peers: &[Peer], peer: PeerIndex) -> Option<&SockAddr> {
    peers.get(peer.0 as usize)?.underlay.as_ref()
}

impl Tables {
    pub(super) fn new(sas: SaDatabase, events: EventQueue, abilities: Abilities) -> Tables {
        let Abilities { wanted, failures, cipher } = abilities;
        Tables {
            now: Time::default(),
            offloads: wanted,
            failures,
            cipher,
            calls: CallStats::default(),
            endpoints: Slab::new(),
            endpoint_numbers: HashMap::new(),
            networks: Slab::new(),
            network_numbers: HashMap::new(),
            peers: Vec::new(),
            peer_numbers: HashMap::new(),
            inbound: HashMap::new(),
            sas,
            drops: DropCounters::default(),
            events,
        }
    }

    /// Removes an endpoint whose device is gone, and says so.
    pub(super) fn lose_endpoint(&mut self, local: LocalIndex, error: String) {
        if let Some(endpoint) = self.endpoints.get(local.0 as usize).map(|endpoint| endpoint.key) {
            self.remove_endpoint(endpoint);
            self.events.push(DataEvent::EndpointLost { endpoint, error });
        }
    }

    fn remove_endpoint(&mut self, key: EndpointKey) {
        let Some(number) = self.endpoint_numbers.remove(&key) else { return };
        // A stale number in the queue of devices to read finds nothing, or another device that has nothing.
        let endpoint = self.endpoints.remove(number);
        if let Some(network) = self.networks.get_mut(endpoint.network) {
            network.table.remove_local(endpoint.address, LocalIndex(number as u32));
        }
    }

    /// A snapshot.
    pub(super) fn stats(&self) -> Stats {
        let mut links: Vec<LinkStats> =
            self.networks.iter().flat_map(|(_, network)| self.link_stats(network)).collect();
        links.sort_by_key(|link| (link.network, link.peer));
        let mut endpoints: Vec<EndpointStats> = self.endpoints.iter().map(|(_, endpoint)| endpoint.stats()).collect();
        endpoints.sort_by_key(|endpoint| endpoint.endpoint);
        let sending: BTreeSet<SaIdentity> = links.iter().filter_map(|link| link.sending).collect();
        let sas = self.sas.summaries();
        let sas = sas.map(|summary| SaStats { sending: sending.contains(&summary.identity), summary }).collect();
        let (offloads, cipher, calls) = (self.offload_stats(), self.cipher, self.calls);
        Stats { now: self.now, links, sas, endpoints, drops: self.drops.clone(), offloads, cipher, calls }
    }

    /// What is used: wanted, and not found broken.
    pub(super) fn usable_offloads(&self) -> Offloads {
        self.failures.iter().fold(self.offloads, |offloads, (failed, _)| offloads.without(*failed))
    }

    fn offload_stats(&self) -> Vec<OffloadStatus> {
        let one = |&offload: &Offload| {
            let wanted = self.offloads.has(offload);
            let refused = match offload {
                Offload::UdpGso => self.peers.iter().filter(|peer| peer.refuses_trains).count(),
                Offload::UdpGro => 0,
                _ => self.endpoints.iter().filter(|(_, it)| it.vnet && !it.takes(offload)).count(),
            };
            let failure = self.failures.iter().find(|(failed, _)| *failed == offload).map(|(_, why)| why.clone());
            OffloadStatus { offload, wanted, failure, refused }
        };
        Offload::ALL.iter().map(one).collect()
    }

    fn link_stats<'a>(&'a self, network: &'a Network) -> impl Iterator<Item = LinkStats> + 'a {
        network.links.iter().filter_map(|(peer, link)| {
            let peer = self.peers.get(peer.0 as usize)?;
            let sending = link.sending.and_then(|sa| self.sas.outbound(sa)).map(|sa| *sa.identity());
            Some(LinkStats {
                network: network.id,
                peer: peer.node,
                address: peer.address,
                sending,
                last_received: link.last_received,
                last_sent: link.last_sent,
                received: link.received,
                sent: link.sent,
            })
        })
    }
}

impl Endpoint {
    /// Whether this is used with the device.
    pub(super) fn takes(&self, offload: Offload) -> bool {
        self.offloads.has(offload)
    }

    /// The device refused a super-packet, and took its packets.
    pub(super) fn refuses(&mut self, offload: Offload) {
        if self.takes(offload) {
            self.offloads = self.offloads.without(offload);
            let (task, offload) = (self.key.task, offload.name());
            tracing::info!(%task, offload, "the kernel refuses super-packets for this device: writing packets one by one");
        }
    }

    fn stats(&self) -> EndpointStats {
        EndpointStats {
            endpoint: self.key,
            address: self.address,
            sent: self.sent,
            received: self.received,
            sent_dropped: self.sent_dropped,
        }
    }
}
