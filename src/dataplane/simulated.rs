//! The tables of a worker and its two flows, without the worker's thread, socket and waiting: what a simulation in
//! virtual time runs. Devices are one end of a SOCK_SEQPACKET pair, which like a TUN device takes and gives one
//! packet at a time.

use super::delivery::Arrivals;
use super::events::EventQueue;
use super::offloads::Offloads;
use super::outbound::{Outbox, Transmit};
use super::tables::{Abilities, Tables, underlay_address};
use super::{DataCommand, DataEvent};
use crate::esp::{CipherLibrary, CipherReport, SaDatabase, SaIdentity, SaSummary, WorkerShare};
use crate::overlay::{DropCounters, LocalIndex, PeerIndex};
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
    outbox: Outbox,
    arrivals: Arrivals,
    events: Receiver<DataEvent>,
}

/// The two ends of a device: the data plane's, and the container's.
pub(crate) fn device() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK).expect("a pair of sockets")
}

impl LonePlane {
    pub(crate) fn new(boot: BootId) -> LonePlane {
        let (sender, events) = bounded(EVENTS);
        let sas = SaDatabase::new(boot, WorkerShare::WHOLE);
        let cipher = CipherReport { library: CipherLibrary::AwsLc, bytes_per_sec: 0.0, fell_back: false };
        let abilities = Abilities { wanted: Offloads::NONE, failures: Vec::new(), cipher };
        let tables = Tables::new(sas, EventQueue::new(sender), abilities);
        let (outbox, arrivals) = (Outbox::new(false), Arrivals::new());
        LonePlane { tables, poll: PollSet::new().expect("a poller"), outbox, arrivals, events }
    }

    /// Applies a batch as the worker does; the control messages in it come out sealed.
    pub(crate) fn apply(&mut self, commands: Vec<DataCommand>, now: Time) -> Vec<Datagram> {
        self.tables.now = now;
        let mut sent = Vec::new();
        for command in commands {
            match command {
                DataCommand::SendControl { outbound, message } => {
                    match self.tables.seal_control(&outbound, message, &mut self.outbox.batch) {
                        Ok(()) => sent.extend(self.datagram(|_, _| Some(outbound))),
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
        self.arrivals.buffers[0][..length].copy_from_slice(datagram);
        self.arrivals.received[0] = ReceivedDatagram { length, segment: 0, truncated: false };
        self.tables.receive_one(&mut self.arrivals, 0);
        self.tables.finish_batch(&mut self.arrivals);
    }

    /// Takes one packet from a device; what was sealed of it, if it is for another host and may go there.
    pub(crate) fn transmit(&mut self, endpoint: EndpointKey, now: Time) -> Option<Datagram> {
        self.tables.now = now;
        let (number, network) =
            self.tables.endpoints.iter().find(|(_, it)| it.key == endpoint).map(|(n, it)| (n, it.network))?;
        match self.tables.transmit_one(LocalIndex(number as u32), &mut self.outbox) {
            Transmit::Empty => None,
            Transmit::Done(_) => self.datagram(|plane, peer| {
                let sending = plane.tables.networks.get(network)?.links.get(&peer)?.sending?;
                Some(*plane.tables.sas.outbound(sending)?.identity())
            }),
        }
    }

    /// The datagram in the batch.
    fn datagram(&mut self, identity: impl FnOnce(&LonePlane, PeerIndex) -> Option<SaIdentity>) -> Option<Datagram> {
        let (peer, payload) = self.outbox.batch.drain().pop()?;
        let to = underlay_address(&self.tables.peers, peer)?.as_socket()?;
        Some(Datagram { to, identity: identity(self, peer)?, payload })
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
