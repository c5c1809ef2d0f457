//! The forwarding table of one network.

use super::DropReason;
use crate::types::Generation;
use crate::wire::ip::IpView;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

/// Remote addresses one network may hold, those of ended endpoints included: four times the 100,000 endpoints
/// Formic is tested with, so that only a peer gone mad reaches it.
pub const MAX_REMOTES_PER_NETWORK: usize = 400_000;

/// A local endpoint, as numbered by the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalIndex(pub u32);

/// A peer node, as numbered by the data plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIndex(pub u32);

/// Where a packet that a container sent has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To an endpoint of this host.
    Local(LocalIndex),
    /// To another host.
    Peer(PeerIndex),
    /// Nowhere.
    Drop(DropReason),
}

/// What became of news about a remote endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteUpdate {
    /// It holds now (or held already).
    Applied,
    /// Something newer is known.
    Stale,
    /// The table has [`MAX_REMOTES_PER_NETWORK`] addresses; nothing changed.
    Full,
}

/// The address belongs to another local endpoint. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the address already belongs to another local endpoint")]
pub struct LocalTaken;

/// What is known of the owner of a remote address. Kept after the owner's end, so that older news cannot
/// bring it back.
#[derive(Debug, Clone, Copy)]
struct Owner {
    peer: PeerIndex,
    generation: Generation,
    state: OwnerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OwnerState {
    /// Packets go to and come from it.
    Alive,
    /// Its peer left the network; the same generation may bring it back.
    Withdrawn,
    /// This allocation has ended; only a newer one counts.
    Gone,
}

/// The endpoints of one network: who is here, and who owns each address elsewhere.
#[derive(Debug, Default)]
pub struct NetworkTable {
    subnet: Option<IpNet>,
    locals: HashMap<IpAddr, LocalIndex>,
    remotes: HashMap<IpAddr, Owner>,
}

impl NetworkTable {
    /// An empty table. The subnet is needed to know its broadcast address.
    pub fn new(subnet: Option<IpNet>) -> NetworkTable {
        NetworkTable { subnet, ..NetworkTable::default() }
    }

    /// Changes the subnet.
    pub fn set_subnet(&mut self, subnet: Option<IpNet>) {
        self.subnet = subnet;
    }

    /// Where a packet goes that the local endpoint with the address `own` sent.
    pub fn classify(&self, own: IpAddr, packet: &IpView) -> Verdict {
        match self.route(own, packet) {
            Ok(verdict) => verdict,
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// The local endpoint that may have a packet which an SA of `peer` authenticated.
    pub fn accept(&self, peer: PeerIndex, packet: &IpView) -> Result<LocalIndex, DropReason> {
        if self.owner(packet.source) != Some(peer) {
            return Err(DropReason::ForeignSource);
        }
        self.check_unicast(packet.destination)?;
        self.locals.get(&packet.destination).copied().ok_or(DropReason::ForeignDestination)
    }

    /// The peer that owns a remote address now.
    pub fn owner(&self, address: IpAddr) -> Option<PeerIndex> {
        self.remotes.get(&address).filter(|owner| owner.state == OwnerState::Alive).map(|owner| owner.peer)
    }

    /// Adds a local endpoint, or gives it the same address again.
    pub fn add_local(&mut self, address: IpAddr, local: LocalIndex) -> Result<(), LocalTaken> {
        match self.locals.insert(address, local) {
            Some(other) if other != local => {
                self.locals.insert(address, other);
                Err(LocalTaken)
            }
            _ => Ok(()),
        }
    }

    /// Removes a local endpoint, if the address is still its own.
    pub fn remove_local(&mut self, address: IpAddr, local: LocalIndex) {
        if self.locals.get(&address) == Some(&local) {
            self.locals.remove(&address);
        }
    }

    /// Whether no endpoint of this host is on the network.
    pub fn has_no_locals(&self) -> bool {
        self.locals.is_empty()
    }

    /// Takes in a record: `peer` owns `address` since `generation` (`alive`), or that ownership has ended. Of
    /// two records the higher generation counts; of one generation its end.
    pub fn set_remote(
        &mut self,
        address: IpAddr,
        peer: PeerIndex,
        generation: Generation,
        alive: bool,
    ) -> RemoteUpdate {
        let state = if alive { OwnerState::Alive } else { OwnerState::Gone };
        let news = Owner { peer, generation, state };
        let full = self.remotes.len() >= MAX_REMOTES_PER_NETWORK;
        match self.remotes.get_mut(&address) {
            Some(known) if known.is_superseded_by(&news) => *known = news,
            Some(known) if known.says_the_same_as(&news) => {}
            Some(_) => return RemoteUpdate::Stale,
            None if full => return RemoteUpdate::Full,
            None => {
                self.remotes.insert(address, news);
            }
        }
        RemoteUpdate::Applied
    }

    /// A peer left the network: nothing goes to it or comes from it until a record of at least the known
    /// generation says so again.
    pub fn withdraw_peer(&mut self, peer: PeerIndex) {
        for owner in self.remotes.values_mut() {
            if owner.peer == peer && owner.state == OwnerState::Alive {
                owner.state = OwnerState::Withdrawn;
            }
        }
    }

    /// The addresses that peers own now.
    pub fn remotes(&self) -> impl Iterator<Item = (IpAddr, PeerIndex)> + '_ {
        self.remotes
            .iter()
            .filter(|(_, owner)| owner.state == OwnerState::Alive)
            .map(|(address, owner)| (*address, owner.peer))
    }

    fn route(&self, own: IpAddr, packet: &IpView) -> Result<Verdict, DropReason> {
        // Before the source: what a kernel sends to groups by itself carries link-local or no addresses, and
        // must not look like spoofing.
        self.check_unicast(packet.destination)?;
        if packet.source != own {
            return Err(DropReason::NotOwnSource);
        }
        if packet.destination == own {
            return Err(DropReason::ToSelf);
        }
        if let Some(local) = self.locals.get(&packet.destination) {
            return Ok(Verdict::Local(*local));
        }
        self.owner(packet.destination).map(Verdict::Peer).ok_or(DropReason::NoSuchEndpoint)
    }

    fn check_unicast(&self, destination: IpAddr) -> Result<(), DropReason> {
        if destination.is_multicast() {
            return Err(DropReason::Multicast);
        }
        match destination {
            IpAddr::V4(address) if self.is_broadcast(address) => Err(DropReason::Broadcast),
            _ => Ok(()),
        }
    }

    fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        let of_subnet = match self.subnet {
            // RFC 3021: a /31 has no broadcast address, nor has a /32.
            Some(IpNet::V4(subnet)) if subnet.prefix_len() < 31 => subnet.broadcast() == address,
            _ => false,
        };
        of_subnet || address.is_broadcast()
    }
}

impl Owner {
    fn is_superseded_by(&self, news: &Owner) -> bool {
        if news.generation != self.generation {
            return news.generation > self.generation;
        }
        match self.state {
            OwnerState::Alive => news.state == OwnerState::Gone,
            OwnerState::Withdrawn => news.state == OwnerState::Gone || news.peer == self.peer,
            OwnerState::Gone => false,
        }
    }

    fn says_the_same_as(&self, news: &Owner) -> bool {
        self.generation == news.generation && self.state == news.state && self.peer == news.peer
    }
}
