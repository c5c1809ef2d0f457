//! The flow out.
//!
//! 1. [`Worker::transmit`]: the devices that have packets, in turn, each up to its share.
//! 2. [`Tables::transmit_one`]: one packet, or one super-packet, from the device.
//! 3. `forward`: read the addresses, ask the overlay.
//! 4. Local: written to the other device as it is, its virtio header too ([`super::delivery`]).
//! 5. Remote: each packet of it is written where it will be sealed, finished, and sealed in place.
//! 6. [`Worker::flush`]: the batch to the socket.
//!
//! A packet longer than the way to its peer carries is dropped and its sender told by ICMP, an IPv4 packet without DF as
//! well: nothing is fragmented here, neither it nor the datagram around it.

use super::DataEvent;
use super::sending::{READ_ROOM_BYTES, SendBatch};
use super::socket::WorkerSocket;
use super::tables::{Tables, underlay_address};
use super::worker::Worker;
use super::{MAX_INNER_BYTES, Traffic};
use crate::esp::{EspDrop, HEADROOM, OutboundIndex, SaIdentity, TAILROOM};
use crate::offload::{self, Split, TooBig, VNET_HEADER_LEN, VnetHeader};
use crate::overlay::{DropReason, LocalIndex, PeerIndex, Verdict};
use crate::wire::esp::{ControlMessage, NextHeader};
use crate::wire::ip::IpView;
use nix::errno::Errno;
use std::io;
use std::os::fd::AsFd;

/// Octets read from devices in one turn, so that receiving gets its turn: four super-packets.
const TRANSMIT_BUDGET_BYTES: usize = 256 << 10;

/// What is read from one device before the next has its turn: no container waits for more than this of each other.
const DEVICE_SHARE_PACKETS: usize = 16;
const DEVICE_SHARE_BYTES: usize = 64 << 10;

/// What a packet counts for at least in the budget: a small one costs about as much time as this many octets.
const MIN_COUNTED_BYTES: usize = 4 << 10;

/// Octets of the longest packet that a device gives: a super-packet with its header, and one more octet to know a
/// longer one by.
const PACKET_BYTES: usize = VNET_HEADER_LEN + u16::MAX as usize + 1;

/// What came of reading a device once.
pub(super) enum Transmit {
    /// There is nothing to read.
    Empty,
    /// A packet or super-packet of so many octets was sealed, delivered or dropped.
    Done(usize),
}

/// Where a packet goes on its way out: read into the one, sealed in the other.
pub(super) struct Outbox {
    pub(super) packet: Box<[u8]>,
    pub(super) batch: SendBatch,
}

/// A packet as it was read.
pub(super) struct Read<'a> {
    pub(super) header: VnetHeader,
    /// As long as its IP header says.
    pub(super) packet: &'a mut [u8],
    pub(super) view: IpView,
    /// How a super-packet is cut.
    pub(super) split: Option<Split>,
}

/// Where sealed packets go.
struct Route {
    network: usize,
    peer: PeerIndex,
    sa: OutboundIndex,
}

impl Outbox {
    pub(super) fn new(trains: bool) -> Outbox {
        Outbox { packet: vec![0; PACKET_BYTES].into_boxed_slice(), batch: SendBatch::new(trains) }
    }
}

impl Worker {
    /// Reads the devices that have packets.
    pub(super) fn transmit(&mut self) -> io::Result<()> {
        let mut budget = TRANSMIT_BUDGET_BYTES;
        while budget > 0 && !self.outbox.batch.is_blocked() {
            let Some(local) = self.ready.pop_front() else { break };
            let (more, octets) = self.read_device(local)?;
            budget = budget.saturating_sub(octets);
            if more {
                self.ready.push_back(local);
            } else if let Some(endpoint) = self.tables.endpoints.get_mut(local.0 as usize) {
                endpoint.queued = false;
            }
        }
        Ok(())
    }

    /// Reads what is the device's share: whether there may be more, and what it counts for.
    fn read_device(&mut self, local: LocalIndex) -> io::Result<(bool, usize)> {
        let mut counted = 0;
        for _ in 0..DEVICE_SHARE_PACKETS {
            if self.outbox.batch.space(READ_ROOM_BYTES).is_none() {
                self.flush()?;
            }
            if self.outbox.batch.space(READ_ROOM_BYTES).is_none() {
                return Ok((true, counted));
            }
            match self.tables.transmit_one(local, &mut self.outbox) {
                Transmit::Empty => return Ok((false, counted)),
                Transmit::Done(octets) => counted += octets.max(MIN_COUNTED_BYTES),
            }
            if counted >= DEVICE_SHARE_BYTES {
                break;
            }
        }
        Ok((true, counted))
    }

    /// Seals a control message.
    pub(super) fn send_control(&mut self, outbound: &SaIdentity, message: ControlMessage) -> io::Result<()> {
        if self.outbox.batch.space(READ_ROOM_BYTES).is_none() {
            self.flush()?;
        }
        if let Err(reason) = self.tables.seal_control(outbound, message, &mut self.outbox.batch) {
            self.tables.drops.count(reason);
        }
        Ok(())
    }

    /// Sends the batch; while the socket has no room, waits for it to be writable.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let batch = &mut self.outbox.batch;
        if batch.is_blocked() {
            return Ok(());
        }
        let Some(WorkerSocket { socket, .. }) = self.sockets.last() else { return Ok(()) };
        batch.flush(socket.as_fd(), &mut self.tables.peers, &mut self.tables.drops);
        if batch.is_blocked() { socket.watch_writable(true) } else { Ok(()) }
    }
}

impl Tables {
    /// Reads one packet or super-packet from the device and brings it on its way. The batch must have room.
    pub(super) fn transmit_one(&mut self, local: LocalIndex, outbox: &mut Outbox) -> Transmit {
        let Some(endpoint) = self.endpoints.get_mut(local.0 as usize) else { return Transmit::Empty };
        self.calls.device_reads += 1;
        let octets = match nix::unistd::read(&endpoint.tun, &mut outbox.packet) {
            Ok(0) => return self.lose(local, "its device was closed".into()),
            Ok(octets) => octets,
            Err(Errno::EAGAIN) => return Transmit::Empty,
            Err(Errno::EINTR) => return Transmit::Done(0),
            Err(error) => return self.lose(local, format!("its device cannot be read: {error}")),
        };
        let framed = outbox.packet.get_mut(..octets).unwrap_or_default();
        let (traffic, done) = match Read::parse(framed, endpoint.vnet) {
            Ok(read) => (read.traffic(), self.forward(local, read, &mut outbox.batch)),
            Err(reason) => (Traffic { packets: 1, bytes: octets as u64 }, Err(reason)),
        };
        let dropped = match done {
            Ok(()) => 0,
            Err(reason) => {
                self.drops.count_many(reason, traffic.packets);
                traffic.packets
            }
        };
        if let Some(endpoint) = self.endpoints.get_mut(local.0 as usize) {
            endpoint.sent.add(traffic);
            endpoint.sent_dropped += dropped;
        }
        Transmit::Done(octets)
    }

    fn lose(&mut self, local: LocalIndex, error: String) -> Transmit {
        self.lose_endpoint(local, error);
        Transmit::Empty
    }

    fn forward(&mut self, local: LocalIndex, read: Read<'_>, batch: &mut SendBatch) -> Result<(), DropReason> {
        let endpoint = self.endpoints.get(local.0 as usize).ok_or(DropReason::NoSuchEndpoint)?;
        let number = endpoint.network;
        let network = self.networks.get(number).ok_or(DropReason::NoSuchEndpoint)?;
        match network.table.classify(endpoint.address, &read.view) {
            Verdict::Drop(reason) => Err(reason),
            Verdict::Local(to) => self.pass_on(to, read, batch),
            Verdict::Peer(peer) => {
                let link = network.links.get(&peer).ok_or(DropReason::NoSendingSa)?;
                let sa = link.sending.ok_or(DropReason::NoSendingSa)?;
                if let Some(carried) = self.check_path(peer, &read) {
                    self.tell_too_big(local, &read, carried);
                    return Err(DropReason::ExceedsPathMtu);
                }
                self.seal_packets(Route { network: number, peer, sa }, read, batch)
            }
        }
    }

    /// What the way to the peer carries, if that is less than the longest packet of what was read. A way that is used for
    /// long packets is to be confirmed now and then.
    fn check_path(&mut self, peer: PeerIndex, read: &Read<'_>) -> Option<u16> {
        let longest = read.split.map_or(read.packet.len(), |split| split.longest());
        let peer = self.peers.get_mut(peer.0 as usize)?;
        if let Some(node) = peer.used(longest, self.now) {
            self.events.push(DataEvent::PathUsed { peer: node });
        }
        peer.carries().filter(|carried| longest > usize::from(*carried))
    }

    /// Tells the container's kernel, as a router would.
    fn tell_too_big(&mut self, local: LocalIndex, read: &Read<'_>, carried: u16) {
        let told = TooBig::answer(read.packet, &read.view, carried).and_then(|answer| {
            // What it does not take is told again with its next packet.
            self.deliver(local, answer.packet()).ok()
        });
        if told.is_none() {
            tracing::trace!(carried, "a container was not told that its packet is too big");
        }
    }

    /// Seals the packets of what was read. When the batch has no room left, the rest is dropped: that takes a
    /// super-packet in far smaller pieces than a kernel makes.
    fn seal_packets(&mut self, route: Route, read: Read<'_>, batch: &mut SendBatch) -> Result<(), DropReason> {
        // Before a sequence number is drawn.
        underlay_address(&self.peers, route.peer).ok_or(DropReason::NoPeerAddress)?;
        let Read { header, packet, view, split } = read;
        let next_header = if view.is_ipv6() { NextHeader::Ipv6 } else { NextHeader::Ipv4 };
        let mut sent = Traffic::default();
        let mut done = Ok(());
        if let Some(split) = split {
            for index in 0..split.count() {
                let write = |room: &mut [u8]| split.write(index, packet, room);
                done = self.seal_one(&route, split.len(index), next_header, batch, write);
                if done.is_err() {
                    break;
                }
                sent.count(split.len(index));
            }
        } else {
            offload::finish(&header, packet).map_err(|_| DropReason::UnfinishedOffload)?;
            let write = |room: &mut [u8]| {
                room.copy_from_slice(packet);
                Some(())
            };
            done = self.seal_one(&route, packet.len(), next_header, batch, write);
            sent.count(packet.len());
        }
        match done {
            // Nothing left.
            Err(reason) if sent.packets == 0 || split.is_none() => return Err(reason),
            Err(reason) => {
                let left = split.map_or(0, |split| split.count() as u64).saturating_sub(sent.packets);
                self.drops.count_many(reason, left);
            }
            Ok(()) => {}
        }
        self.count_sent(&route, sent);
        Ok(())
    }

    fn count_sent(&mut self, route: &Route, sent: Traffic) {
        let link = self.networks.get_mut(route.network).and_then(|network| network.links.get_mut(&route.peer));
        if let Some(link) = link {
            link.sent.add(sent);
            link.last_sent = Some(self.now);
        }
    }

    /// Seals one packet of `octets`, which `write` puts in place.
    fn seal_one(
        &mut self,
        route: &Route,
        octets: usize,
        next_header: NextHeader,
        batch: &mut SendBatch,
        write: impl FnOnce(&mut [u8]) -> Option<()>,
    ) -> Result<(), DropReason> {
        let space = batch.space(HEADROOM + octets + TAILROOM).ok_or(DropReason::UnderlayQueueFull)?;
        let room = space.get_mut(HEADROOM..HEADROOM + octets).ok_or(DropReason::Oversized)?;
        write(room).ok_or(DropReason::UnfinishedOffload)?;
        let sealed = self.sas.seal(route.sa, space, octets, next_header).map_err(|reason| match reason {
            EspDrop::Suspended => DropReason::NoSendingSa,
            other => other.into(),
        })?;
        batch.push(route.peer, sealed.datagram_len);
        if let (true, Some(sa)) = (sealed.soft_limit, self.sas.outbound(route.sa)) {
            self.events.push(DataEvent::SoftLimit { identity: *sa.identity() });
        }
        Ok(())
    }

    pub(super) fn seal_control(
        &mut self,
        outbound: &SaIdentity,
        message: ControlMessage,
        batch: &mut SendBatch,
    ) -> Result<(), DropReason> {
        let sa = self.sas.find_outbound(outbound).ok_or(DropReason::NoSendingSa)?;
        let network = self.known_network(outbound.network).ok_or(DropReason::NoSendingSa)?;
        let peer = self.known_peer(outbound.dst).ok_or(DropReason::NoPeerAddress)?;
        underlay_address(&self.peers, peer).ok_or(DropReason::NoPeerAddress)?;
        let route = Route { network, peer, sa };
        let octets = message.payload_len();
        self.seal_one(&route, octets, NextHeader::None, batch, |room| message.write(room))?;
        self.count_sent(&route, Traffic { packets: 1, bytes: octets as u64 });
        Ok(())
    }
}

impl<'a> Read<'a> {
    /// Looks at what a device gave.
    fn parse(framed: &'a mut [u8], vnet: bool) -> Result<Read<'a>, DropReason> {
        let (header, packet) = if vnet {
            let (header, packet) = framed.split_first_chunk_mut().ok_or(DropReason::MalformedInner)?;
            (VnetHeader::parse(header).map_err(|_| DropReason::UnfinishedOffload)?, packet)
        } else {
            (VnetHeader::FINISHED, framed)
        };
        if header.gso.is_none() && packet.len() > MAX_INNER_BYTES {
            return Err(DropReason::Oversized);
        }
        let view = IpView::parse(packet).map_err(|_| DropReason::MalformedInner)?;
        let packet = packet.get_mut(..view.total_len).ok_or(DropReason::MalformedInner)?;
        let split = match header.gso {
            Some(_) => Some(Split::plan(&header, packet).map_err(|_| DropReason::UnfinishedOffload)?),
            None => None,
        };
        if split.is_some_and(|split| split.longest() > MAX_INNER_BYTES) {
            return Err(DropReason::Oversized);
        }
        Ok(Read { header, packet, view, split })
    }

    /// What it comes to.
    pub(super) fn traffic(&self) -> Traffic {
        let (packets, bytes) = self.split.map_or((1, self.packet.len()), |split| (split.count(), split.total_len()));
        Traffic { packets: packets as u64, bytes: bytes as u64 }
    }
}
