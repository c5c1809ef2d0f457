//! The tables of a worker and its two flows, without the worker's thread, socket and waiting: what a simulation in
//! virtual time runs. Devices are one end of a SOCK_SEQPACKET pair, which like a TUN device takes and gives one
//! packet at a time.

use super::delivery::Arrivals;
use super::events::EventQueue;
use super::offloads::Offloads;
use super::outbound::{Outbox, Transmit};
use super::tables::{Abilities, Tables, underlay_address};
use super::{DataCommand, DataEvent};
use crate::esp::{CipherLibrary, CipherReport, SaDatabase, SaIdentity, SaSummary, WorkerShare, queue_of};
use crate::overlay::{DropCounters, LocalIndex, PeerIndex};
use crate::sys::poll::PollSet;
use crate::sys::udp::ReceivedDatagram;
use crate::types::{BootId, EndpointKey, Queues, Time};
use crate::wire::esp::{Datagram as Sorted, classify};
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

/// One worker of the data plane of one boot of a node.
struct LonePlane {
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
    fn new(boot: BootId, share: WorkerShare) -> LonePlane {
        let (sender, events) = bounded(EVENTS);
        let sas = SaDatabase::new(boot, share);
        let cipher = CipherReport { library: CipherLibrary::AwsLc, bytes_per_sec: 0.0, fell_back: false };
        let abilities = Abilities { wanted: Offloads::NONE, failures: Vec::new(), cipher };
        let tables = Tables::new(sas, EventQueue::new(sender), abilities);
        let (outbox, arrivals) = (Outbox::new(false), Arrivals::new());
        LonePlane { tables, poll: PollSet::new().expect("a poller"), outbox, arrivals, events }
    }

    /// Applies a batch as the worker does; the control messages in it come out sealed.
    fn apply(&mut self, commands: &[DataCommand], now: Time) -> Vec<Datagram> {
        self.tables.now = now;
        let share = self.tables.sas.share();
        let mut sent = Vec::new();
        for command in commands.iter().filter(|command| command.concerns(share)) {
            match *command {
                DataCommand::SendControl { outbound, message } => {
                    match self.tables.seal_control(&outbound, message, &mut self.outbox.batch) {
                        Ok(()) => sent.extend(self.datagram(|_, _| Some(outbound))),
                        Err(reason) => self.tables.drops.count(reason),
                    }
                }
                ref other => self.tables.apply(other, &self.poll, 1),
            }
        }
        sent
    }

    /// Takes in a datagram.
    fn receive(&mut self, datagram: &[u8], now: Time) {
        self.tables.now = now;
        let length = datagram.len();
        self.arrivals.buffers[0][..length].copy_from_slice(datagram);
        self.arrivals.received[0] = ReceivedDatagram { length, segment: 0, truncated: false };
        self.tables.receive_one(&mut self.arrivals, 0);
        self.tables.finish_batch(&mut self.arrivals);
    }

    /// Takes one packet from a device; what was sealed of it, if it is for another host and may go there.
    fn transmit(&mut self, endpoint: EndpointKey, now: Time) -> Option<Datagram> {
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
    fn poll_event(&mut self) -> Option<DataEvent> {
        self.tables.events.retry();
        self.events.try_recv().ok()
    }

    /// All SAs.
    fn sas(&self) -> impl Iterator<Item = SaSummary> + '_ {
        self.tables.sas.summaries()
    }

    /// What was dropped.
    fn drops(&self) -> &DropCounters {
        &self.tables.drops
    }
}

/// The data plane of one boot of a node: its workers, and the kernel that steers datagrams to them.
pub(crate) struct Planes(Vec<LonePlane>);

impl Planes {
    pub(crate) fn new(boot: BootId, workers: Queues) -> Planes {
        let share = |worker| WorkerShare { worker, workers: workers.count() };
        Planes(workers.numbers().map(|worker| LonePlane::new(boot, share(worker))).collect())
    }

    /// Applies a batch, each worker its part; the control messages in it come out sealed.
    pub(crate) fn apply(&mut self, commands: &[DataCommand], now: Time) -> Vec<Datagram> {
        self.0.iter_mut().flat_map(|plane| plane.apply(commands, now)).collect()
    }

    /// Takes in a datagram.
    pub(crate) fn receive(&mut self, datagram: &[u8], now: Time) {
        let queue = if let Sorted::Esp(header) = classify(datagram) { queue_of(header.spi) } else { 0 };
        let worker = usize::from(queue) % self.0.len();
        self.0[worker].receive(datagram, now);
    }

    /// The worker of this number (modulo their count) takes one packet from a device.
    pub(crate) fn transmit(&mut self, endpoint: EndpointKey, worker: u64, now: Time) -> Option<Datagram> {
        let worker = (worker % self.0.len() as u64) as usize;
        self.0[worker].transmit(endpoint, now)
    }

    /// The next event.
    pub(crate) fn poll_event(&mut self) -> Option<DataEvent> {
        self.0.iter_mut().find_map(LonePlane::poll_event)
    }

    /// All SAs.
    pub(crate) fn sas(&self) -> impl Iterator<Item = SaSummary> + '_ {
        self.0.iter().flat_map(LonePlane::sas)
    }

    /// What was dropped.
    pub(crate) fn drops(&self) -> DropCounters {
        let mut sum = DropCounters::default();
        self.0.iter().for_each(|plane| sum.add(plane.drops()));
        sum
    }
}
