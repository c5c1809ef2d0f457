//! Commands of the control plane, applied to the tables. Everything here is idempotent.

use super::super::offloads::{Offload, Offloads};
use super::super::{DataCommand, DataEvent, SaRefusal};
use super::{Endpoint, Inbound, Link, MAX_PEERS, Network, Peer, Tables};
use crate::esp::{Direction, SaIdentity, SaKeys};
use crate::overlay::{LocalIndex, NetworkTable, PeerIndex, RemoteUpdate};
use crate::sys::erase::erase_stack;
use crate::sys::poll::PollSet;
use crate::sys::tun;
use crate::types::{EndpointKey, Epoch, Generation, NetworkId, NodeId, Transform};
use ipnet::IpNet;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

/// A device on its way in.
struct NewEndpoint<'a> {
    endpoint: EndpointKey,
    address: IpAddr,
    queues: &'a [OwnedFd],
    vnet: bool,
}

impl Tables {
    /// Applies a command that concerns the tables alone; others are the worker's, and are ignored. Devices are
    /// registered in `poll` under their number plus `first_key`.
    pub(in super::super) fn apply(&mut self, command: &DataCommand, poll: &PollSet, first_key: usize) {
        match *command {
            DataCommand::SetNetwork { network, transform, subnet } => self.set_network(network, transform, subnet),
            DataCommand::RemoveNetwork { network } => self.remove_network(network),
            DataCommand::AddEndpoint { endpoint, address, ref queues, vnet } => {
                let new = NewEndpoint { endpoint, address, queues, vnet };
                if let Err(error) = self.add_endpoint(new, poll, first_key) {
                    self.events.push(DataEvent::EndpointLost { endpoint, error });
                }
            }
            DataCommand::RemoveEndpoint { endpoint } => self.remove_endpoint(endpoint),
            DataCommand::SetRemote { network, address, peer, generation, alive } => {
                self.set_remote(network, address, peer, generation, alive);
            }
            DataCommand::RemovePeer { network, peer } => self.remove_peer(network, peer),
            DataCommand::SetPeerAddress { peer, address } => {
                if let Some(peer) = self.peer_mut(peer) {
                    peer.set_address(address);
                }
            }
            DataCommand::SetPathMtu { peer, inner_bytes } => {
                if let Some(peer) = self.peer_mut(peer) {
                    peer.set_carries(inner_bytes);
                }
            }
            DataCommand::InstallSa { identity, ref keys, direction } => {
                let done = self.install_sa(&identity, keys, direction);
                self.report_refusal(identity, done);
            }
            DataCommand::SuspendSa { identity } => {
                self.sas.suspend(&identity);
            }
            DataCommand::SetSending { network, peer, outbound } => {
                let done = self.set_sending(network, peer, &outbound);
                self.report_refusal(outbound, done);
            }
            DataCommand::StopSending { network, peer } => self.stop_sending(network, peer),
            DataCommand::EraseEpoch(epoch) => self.erase_epoch(epoch),
            DataCommand::SetOffloads(wanted) => self.set_offloads(wanted),
            DataCommand::SendControl { .. } | DataCommand::Stop => {}
        }
    }

    /// A device that refused something is asked again.
    fn set_offloads(&mut self, wanted: Offloads) {
        self.offloads = wanted;
        let usable = self.usable_offloads();
        for (_, endpoint) in self.endpoints.iter_mut().filter(|(_, endpoint)| endpoint.vnet) {
            endpoint.offloads = device_offloads(endpoint.tun.source(), usable);
        }
    }

    fn set_network(&mut self, id: NetworkId, transform: Transform, subnet: Option<IpNet>) {
        if let Some(network) = self.network_mut(id) {
            network.transform = transform;
            network.table.set_subnet(subnet);
            self.sas.suspend_where(|identity| identity.network == id && identity.transform != transform);
            return;
        }
        let network = Network { id, transform, table: NetworkTable::new(subnet), links: HashMap::new() };
        let number = self.networks.insert(network);
        self.network_numbers.insert(id, number);
    }

    fn remove_network(&mut self, id: NetworkId) {
        let Some(number) = self.network_numbers.remove(&id) else { return };
        let of_network = self.endpoints.iter().filter(|(_, endpoint)| endpoint.network == number);
        let endpoints: Vec<EndpointKey> = of_network.map(|(_, endpoint)| endpoint.key).collect();
        endpoints.into_iter().for_each(|key| self.remove_endpoint(key));
        self.sas.suspend_where(|identity| identity.network == id);
        self.inbound.retain(|_, inbound| inbound.network != number);
        self.networks.remove(number);
    }

    fn add_endpoint(&mut self, new: NewEndpoint<'_>, poll: &PollSet, first_key: usize) -> Result<(), String> {
        let NewEndpoint { endpoint: key, address, queues, vnet } = new;
        self.remove_endpoint(key);
        let network = *self.network_numbers.get(&key.network).ok_or("its network is not known")?;
        let own = queues.get(usize::from(self.sas.share().worker));
        let queue = own.or(queues.first()).ok_or("its device has no queue")?;
        let tun = queue.try_clone().map_err(|error| format!("cannot take over its device: {error}"))?;
        set_nonblocking(&tun).map_err(|error| format!("cannot make its device non-blocking: {error}"))?;
        let offloads = if vnet { device_offloads(&tun, self.usable_offloads()) } else { Offloads::NONE };
        let entry = self.endpoints.vacant_entry();
        let number = entry.key();
        let table = &mut self.networks.get_mut(network).ok_or("its network is not known")?.table;
        let key_of_device = first_key + number;
        let tun = if own.is_some() { poll.register(tun, key_of_device) } else { poll.hold(tun, key_of_device) };
        let tun = tun.map_err(|error| format!("cannot poll its device: {error}"))?;
        table.add_local(address, LocalIndex(number as u32)).map_err(|error| error.to_string())?;
        entry.insert(Endpoint {
            key,
            network,
            address,
            tun,
            write: |device, pieces| nix::sys::uio::writev(device, pieces),
            vnet,
            offloads,
            queued: false,
            sent: Default::default(),
            received: Default::default(),
            sent_dropped: 0,
        });
        self.endpoint_numbers.insert(key, number);
        Ok(())
    }

    fn set_remote(&mut self, id: NetworkId, address: IpAddr, node: NodeId, generation: Generation, alive: bool) {
        let Some(peer) = self.peer(node) else { return };
        let Some(network) = self.network_mut(id) else { return };
        if network.table.set_remote(address, peer, generation, alive) == RemoteUpdate::Full {
            tracing::warn!(network = %id, %address, "the table of endpoints is full: the address stays unreachable");
        }
    }

    fn remove_peer(&mut self, id: NetworkId, node: NodeId) {
        let Some(peer) = self.peer(node) else { return };
        let Some(&number) = self.network_numbers.get(&id) else { return };
        if let Some(network) = self.networks.get_mut(number) {
            network.table.withdraw_peer(peer);
            network.links.remove(&peer);
        }
        self.sas.suspend_where(|identity| identity.network == id && (identity.src == node || identity.dst == node));
        self.inbound.retain(|_, inbound| (inbound.network, inbound.peer) != (number, peer));
    }

    fn install_sa(&mut self, identity: &SaIdentity, keys: &SaKeys, direction: Direction) -> Result<(), SaRefusal> {
        let number = *self.network_numbers.get(&identity.network).ok_or(SaRefusal::NetworkUnknown)?;
        let network = self.networks.get(number).ok_or(SaRefusal::NetworkUnknown)?;
        if network.transform != identity.transform {
            return Err(SaRefusal::WrongTransform);
        }
        let node = if direction == Direction::Outbound { identity.dst } else { identity.src };
        let peer = self.peer(node).ok_or(SaRefusal::TooManyPeers)?;
        match direction {
            Direction::Outbound => {
                let sa = self.sas.install_outbound(identity, keys)?;
                let link = self.link_mut(number, peer).ok_or(SaRefusal::NetworkUnknown)?;
                if link.wanted.as_ref() == Some(identity) {
                    link.sending = Some(sa);
                }
            }
            Direction::Inbound => {
                let sa = self.sas.install_inbound(identity, keys)?;
                self.link_mut(number, peer).ok_or(SaRefusal::NetworkUnknown)?;
                let inbound = Inbound { network: number, peer, epoch: identity.epoch, announced: false };
                self.inbound.insert(sa, inbound);
            }
        }
        Ok(())
    }

    fn set_sending(&mut self, id: NetworkId, node: NodeId, outbound: &SaIdentity) -> Result<(), SaRefusal> {
        if (outbound.network, outbound.dst) != (id, node) {
            return Err(SaRefusal::WrongPair);
        }
        let number = *self.network_numbers.get(&id).ok_or(SaRefusal::NetworkUnknown)?;
        let peer = self.peer(node).ok_or(SaRefusal::TooManyPeers)?;
        let sending = self.sas.find_outbound(outbound);
        let link = self.link_mut(number, peer).ok_or(SaRefusal::NetworkUnknown)?;
        link.wanted = Some(*outbound);
        link.sending = sending;
        Ok(())
    }

    fn stop_sending(&mut self, id: NetworkId, node: NodeId) {
        let Some(peer) = self.peer(node) else { return };
        if let Some(link) = self.network_mut(id).and_then(|network| network.links.get_mut(&peer)) {
            link.wanted = None;
            link.sending = None;
        }
    }

    fn erase_epoch(&mut self, epoch: Epoch) {
        self.sas.erase_epoch(epoch);
        self.inbound.retain(|_, inbound| inbound.epoch != epoch);
        let links = self.networks.iter_mut().flat_map(|(_, network)| network.links.values_mut());
        for link in links.filter(|link| link.wanted.as_ref().is_some_and(|wanted| wanted.epoch == epoch)) {
            link.wanted = None;
            link.sending = None;
        }
        // What deriving and expanding keys has left there.
        erase_stack();
    }

    fn report_refusal(&mut self, identity: SaIdentity, done: Result<(), SaRefusal>) {
        if let Err(reason) = done {
            self.events.push(DataEvent::SaRefused { identity, reason });
        }
    }

    fn network_mut(&mut self, id: NetworkId) -> Option<&mut Network> {
        self.networks.get_mut(*self.network_numbers.get(&id)?)
    }

    fn link_mut(&mut self, network: usize, peer: PeerIndex) -> Option<&mut Link> {
        Some(self.networks.get_mut(network)?.links.entry(peer).or_default())
    }

    fn peer_mut(&mut self, node: NodeId) -> Option<&mut Peer> {
        let PeerIndex(number) = self.peer(node)?;
        self.peers.get_mut(number as usize)
    }

    /// The number of a node, a new one if need be.
    fn peer(&mut self, node: NodeId) -> Option<PeerIndex> {
        if let Some(&peer) = self.peer_numbers.get(&node) {
            return Some(peer);
        }
        if self.peers.len() >= MAX_PEERS {
            tracing::warn!(%node, "the data plane has seen {MAX_PEERS} nodes: this one stays unreachable");
            return None;
        }
        let peer = PeerIndex(self.peers.len() as u32);
        self.peers.push(Peer::new(node));
        self.peer_numbers.insert(node, peer);
        Some(peer)
    }

    /// The number of a node that was named before.
    pub(in super::super) fn known_peer(&self, node: NodeId) -> Option<PeerIndex> {
        self.peer_numbers.get(&node).copied()
    }

    /// The number of a network that was set.
    pub(in super::super) fn known_network(&self, id: NetworkId) -> Option<usize> {
        self.network_numbers.get(&id).copied()
    }
}

fn set_nonblocking(device: &OwnedFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(device, FcntlArg::F_GETFL)?);
    fcntl(device, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// Tells a device what its reader can finish, and answers what is used with it. What is no TUN device (in tests) gives
/// finished packets.
fn device_offloads(device: &impl AsFd, wanted: Offloads) -> Offloads {
    let (tso, uso) = (wanted.has(Offload::Tso), wanted.has(Offload::Uso));
    let accepted = tun::accept_unfinished(device.as_fd(), tso, uso);
    let of_reading = [(Offload::Tso, accepted.tcp), (Offload::Uso, accepted.udp)];
    let refused = of_reading.into_iter().filter(|(_, accepted)| !accepted);
    refused.fold(wanted, |offloads, (offload, _)| offloads.without(offload))
}
