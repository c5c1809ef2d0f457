//! The tables of a worker and its two flows, without the worker's thread, socket and waiting: what a simulation in
//! virtual time runs. Devices are one end of a SOCK_SEQPACKET pair, which like a TUN device takes and gives one
//! packet at a time.

use super::events::EventQueue;
use super::outbound::Transmit;
use super::sending::{Outgoing, Slot, slots};
use super::tables::{Tables, underlay_address};
use super::{DataCommand, DataEvent};
use crate::esp::{SaDatabase, SaIdentity, SaSummary, WorkerShare};
use crate::overlay::{DropCounters, LocalIndex};
use crate::sys::poll::PollSet;
use crate::sys::udp::ReceivedDatagram;
use crate::types::{BootId, EndpointKey, Time};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use smol::channel::{Receiver, bounded};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

/// Events between two looks of the simulation at most.
const EVENTS: usize = 4096;

/// A sealed datagram.
pub(crate) struct Datagram {
    pub(crate) to: SocketAddr,
    /// The SA that sealed it.
    pub(crate) identity: SaIdentity,
    pub(crate) payload: Vec<u8>,
}

/// The data plane of one boot of a node.
pub(crate) struct LonePlane {
    tables: Tables,
    poll: PollSet,
    slots: Box<[Slot]>,
    events: Receiver<DataEvent>,
}

/// The two ends of a device: the data plane's, and the container's.
pub(crate) fn device() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK).expect("a pair of sockets")
}

impl LonePlane {
    pub(crate) fn new(boot: BootId) -> LonePlane {
        let (sender, events) = bounded(EVENTS);
        let tables = Tables::new(SaDatabase::new(boot, WorkerShare::WHOLE), EventQueue::new(sender));
        LonePlane { tables, poll: PollSet::new().expect("a poller"), slots: slots(), events }
    }

    /// Applies a batch as the worker does; the control messages in it come out sealed.
    pub(crate) fn apply(&mut self, commands: Vec<DataCommand>, now: Time) -> Vec<Datagram> {
        self.tables.now = now;
        let mut sent = Vec::new();
        for command in commands {
            match command {
                DataCommand::SendControl { outbound, message } => {
                    match self.tables.seal_control(&outbound, message, &mut self.slots[0]) {
                        Ok(outgoing) => sent.extend(self.datagram(outgoing, outbound)),
                        Err(reason) => self.tables.drops.count(reason),
                    }
                }
                other => self.tables.apply(other, &self.poll, 1),
            }
        }
        sent
    }

    /// Takes in a datagram.
    pub(crate) fn receive(&mut self, datagram: &[u8], now: Time) {
        self.tables.now = now;
        let length = datagram.len();
        self.slots[0][..length].copy_from_slice(datagram);
        self.tables.receive_one(&mut self.slots[0], ReceivedDatagram { length, truncated: false });
    }

    /// Takes one packet from a device; what was sealed of it, if it is for another host and may go there.
    pub(crate) fn transmit(&mut self, endpoint: EndpointKey, now: Time) -> Option<Datagram> {
        self.tables.now = now;
        let (number, network) =
            self.tables.endpoints.iter().find(|(_, it)| it.key == endpoint).map(|(n, it)| (n, it.network))?;
        match self.tables.transmit_one(LocalIndex(number as u32), &mut self.slots[0]) {
            Transmit::Sealed(outgoing) => {
                let sending = self.tables.networks.get(network)?.links.get(&outgoing.peer)?.sending?;
                let identity = *self.tables.sas.outbound(sending)?.identity();
                self.datagram(outgoing, identity)
            }
            Transmit::Empty | Transmit::Done => None,
        }
    }

    fn datagram(&self, outgoing: Outgoing, identity: SaIdentity) -> Option<Datagram> {
        let to = underlay_address(&self.tables.peers, outgoing.peer)?.as_socket()?;
        Some(Datagram { to, identity, payload: self.slots[0].get(..outgoing.length)?.to_vec() })
    }

    /// The next event.
    pub(crate) fn poll_event(&mut self) -> Option<DataEvent> {
        self.tables.events.retry();
        self.events.try_recv().ok()
    }

    /// All SAs.
    pub(crate) fn sas(&self) -> impl Iterator<Item = SaSummary> + '_ {
        self.tables.sas.summaries()
    }

    /// What was dropped.
    pub(crate) fn drops(&self) -> &DropCounters {
        &self.tables.drops
    }
}
