//! Writing to devices: single packets, packets joined to super-packets, and what one container sends to another.
//!
//! Packets of one flow are joined across the datagrams of a batch. The order within a flow is kept: a packet that is
//! not joined comes after the run of its flow, and one whose flow cannot be told after all runs between its addresses.
//!
//! A device that refuses a super-packet (some kernels do) is given its packets one by one. If it takes them, it is
//! remembered for this device.

use super::inbound::Memo;
use super::offloads::Offload;
use super::outbound::Read;
use super::sending::SendBatch;
use super::tables::{Endpoint, Tables};
use super::{MAX_INNER_BYTES, Traffic};
use crate::offload::{self, Candidate, GsoKind, MAX_RUN_PACKETS, Run, VnetHeader};
use crate::overlay::{DropReason, LocalIndex};
use crate::sys::udp::{BATCH_DATAGRAMS, ReceivedDatagram};
use crate::wire::ip::IpView;
use nix::errno::Errno;
use std::io::IoSlice;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// Octets of a receive buffer: the longest train. Three cache lines more, so that the buffers do not all begin in the
/// same set of the cache.
const BUFFER_BYTES: usize = (1 << 16) + 192;

/// Flows that are joined at the same time. With more, the one that was begun first is delivered early.
const MAX_RUNS: usize = 16;

/// Where a packet lies in the receive buffers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) buffer: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// One receive buffer.
type Buffer = [u8; BUFFER_BYTES];

/// A batch of received messages, and what is being joined of it.
pub(super) struct Arrivals {
    pub(super) buffers: Box<[Buffer]>,
    pub(super) received: [ReceivedDatagram; BATCH_DATAGRAMS],
    pub(super) memo: Option<Memo>,
    runs: Box<[OpenRun]>,
    /// The run that is given up next when all are in use.
    oldest: usize,
}

struct OpenRun {
    to: LocalIndex,
    run: Run<Place>,
}

impl Arrivals {
    pub(super) fn new() -> Arrivals {
        let runs = (0..MAX_RUNS).map(|_| OpenRun { to: LocalIndex(u32::MAX), run: Run::empty() });
        Arrivals {
            buffers: vec![[0; BUFFER_BYTES]; BATCH_DATAGRAMS].into_boxed_slice(),
            received: [ReceivedDatagram::default(); BATCH_DATAGRAMS],
            memo: None,
            runs: runs.collect(),
            oldest: 0,
        }
    }
}

fn bytes(buffers: &[Buffer], place: Place) -> &[u8] {
    buffers.get(place.buffer).and_then(|buffer| buffer.get(place.start..place.end)).unwrap_or_default()
}

impl Tables {
    /// Joins or delivers a packet that may go to a local endpoint.
    pub(super) fn arrive(
        &mut self,
        arrivals: &mut Arrivals,
        to: LocalIndex,
        view: &IpView,
        place: Place,
    ) -> Result<(), DropReason> {
        let packet = bytes(&arrivals.buffers, place);
        let endpoint = self.endpoints.get(to.0 as usize).ok_or(DropReason::NoSuchEndpoint)?;
        let Some(shape) = endpoint.candidate(packet) else {
            let (source, destination) = (address_octets(&view.source), address_octets(&view.destination));
            self.deliver_runs(arrivals, |it| it.to == to && it.run.is_between(source.as_ref(), destination.as_ref()));
            return self.deliver(to, bytes(&arrivals.buffers, place));
        };
        let same = arrivals.runs.iter().position(|it| it.to == to && it.run.is_flow_of(packet, shape));
        let index = match same {
            Some(index) => index,
            None => free_run(arrivals),
        };
        let Arrivals { buffers, runs, .. } = arrivals;
        let Some(open) = runs.get_mut(index) else { return Err(DropReason::DeviceQueueFull) };
        let packet = bytes(buffers, place);
        if same.is_none() || !open.run.join(packet, shape, place) {
            self.deliver_run(buffers, open);
            open.to = to;
            if open.run.begin(packet, shape, place).is_none() {
                return self.deliver(to, packet);
            }
        }
        if open.run.is_closed() {
            self.deliver_run(buffers, open);
        }
        Ok(())
    }

    /// Delivers all runs.
    pub(super) fn deliver_joined(&mut self, arrivals: &mut Arrivals) {
        self.deliver_runs(arrivals, |_| true);
    }

    /// Delivers the runs that match.
    fn deliver_runs(&mut self, arrivals: &mut Arrivals, matches: impl Fn(&OpenRun) -> bool) {
        let Arrivals { buffers, runs, .. } = arrivals;
        for open in runs.iter_mut().filter(|open| !open.run.packets().is_empty() && matches(open)) {
            self.deliver_run(buffers, open);
        }
    }

    /// Delivers a run and empties it.
    fn deliver_run(&mut self, buffers: &[Buffer], open: &mut OpenRun) {
        let run = &mut open.run;
        self.calls.device_writes += u64::from(run.packets().len() > 1);
        let whole = self.endpoints.get_mut(open.to.0 as usize).and_then(|endpoint| endpoint.write_run(buffers, run));
        match whole {
            Some(Ok(traffic)) => self.count_received(open.to, traffic),
            Some(Err((reason, packets))) => self.drops.count_many(reason, packets),
            None => {
                let mut all = true;
                for &place in run.packets() {
                    if let Err(reason) = self.deliver(open.to, bytes(buffers, place)) {
                        self.drops.count(reason);
                        all = false;
                    }
                }
                if let (true, 2.., Some(endpoint)) =
                    (all, run.packets().len(), self.endpoints.get_mut(open.to.0 as usize))
                {
                    endpoint.refuses(if run.is_udp() { Offload::JoinUdp } else { Offload::JoinTcp });
                }
            }
        }
        open.run.clear();
    }

    fn count_received(&mut self, to: LocalIndex, traffic: Traffic) {
        if let Some(endpoint) = self.endpoints.get_mut(to.0 as usize) {
            endpoint.received.add(traffic);
        }
    }

    /// Writes one finished packet.
    pub(super) fn deliver(&mut self, to: LocalIndex, packet: &[u8]) -> Result<(), DropReason> {
        let endpoint = self.endpoints.get_mut(to.0 as usize).ok_or(DropReason::NoSuchEndpoint)?;
        self.calls.device_writes += 1;
        endpoint.write_framed(&VnetHeader::FINISHED, packet).map_err(write_error)?;
        endpoint.received.count(packet.len());
        Ok(())
    }

    /// Writes what one container sent to another one's device: as it is, a super-packet and an open checksum too, if
    /// the device takes that.
    pub(super) fn pass_on(&mut self, to: LocalIndex, read: Read<'_>, batch: &mut SendBatch) -> Result<(), DropReason> {
        let traffic = read.traffic();
        let Read { header, packet, split, .. } = read;
        let endpoint = self.endpoints.get_mut(to.0 as usize).ok_or(DropReason::NoSuchEndpoint)?;
        let (kind, takes) = match header.gso {
            None => (None, endpoint.vnet),
            Some(gso) => {
                let kind = if gso.kind == GsoKind::Udp { Offload::JoinUdp } else { Offload::JoinTcp };
                (Some(kind), endpoint.takes(kind))
            }
        };
        if takes {
            self.calls.device_writes += 1;
            match endpoint.write_framed(&header, packet) {
                Err(Errno::EINVAL) if kind.is_some() => {}
                Err(errno) => return Err(write_error(errno)),
                Ok(()) => {
                    endpoint.received.add(traffic);
                    return Ok(());
                }
            }
        }
        let Some(split) = split else {
            offload::finish(&header, packet).map_err(|_| DropReason::UnfinishedOffload)?;
            endpoint.write_framed(&VnetHeader::FINISHED, packet).map_err(write_error)?;
            endpoint.received.add(traffic);
            return Ok(());
        };
        for index in 0..split.count() {
            let room = batch.space(MAX_INNER_BYTES).and_then(|space| space.get_mut(..split.len(index)));
            let room = room.ok_or(DropReason::UnderlayQueueFull)?;
            split.write(index, packet, room).ok_or(DropReason::UnfinishedOffload)?;
            match endpoint.write_framed(&VnetHeader::FINISHED, room) {
                Ok(()) => endpoint.received.count(room.len()),
                Err(errno) if index == 0 => return Err(write_error(errno)),
                Err(errno) => self.drops.count(write_error(errno)),
            }
        }
        if let (Some(kind), true) = (kind, takes) {
            endpoint.refuses(kind);
        }
        Ok(())
    }
}

/// A run of which nothing is left to deliver, or the one that is given up.
fn free_run(arrivals: &mut Arrivals) -> usize {
    let free = arrivals.runs.iter().position(|it| it.run.packets().is_empty());
    free.unwrap_or_else(|| {
        arrivals.oldest = (arrivals.oldest + 1) % MAX_RUNS;
        arrivals.oldest
    })
}

impl Endpoint {
    /// Whether the packet may be joined with others for this device.
    fn candidate(&self, packet: &[u8]) -> Option<Candidate> {
        if !self.takes(Offload::JoinTcp) && !self.takes(Offload::JoinUdp) {
            return None;
        }
        Candidate::parse(packet)
            .filter(|shape| self.takes(if shape.is_udp() { Offload::JoinUdp } else { Offload::JoinTcp }))
    }

    fn write_framed(&self, header: &VnetHeader, packet: &[u8]) -> Result<(), Errno> {
        let octets = header.emit();
        let parts = [IoSlice::new(&octets), IoSlice::new(packet)];
        let parts = if self.vnet { &parts[..] } else { parts.get(1..).unwrap_or_default() };
        (self.write)(self.tun.as_fd(), parts).map(drop)
    }

    /// Writes a run as one super-packet; `None` when it must be delivered packet by packet.
    fn write_run(&mut self, buffers: &[Buffer], run: &Run<Place>) -> Option<Result<Traffic, (DropReason, u64)>> {
        let (header, headers) = run.header()?;
        let octets = header.emit();
        let mut parts = [IoSlice::new(&[]); MAX_RUN_PACKETS + 2];
        let (front, payloads) = parts.split_at_mut(2);
        front.copy_from_slice(&[IoSlice::new(&octets), IoSlice::new(headers.as_slice())]);
        let mut bytes_of_packets = 0;
        for (part, &place) in payloads.iter_mut().zip(run.packets()) {
            let packet = bytes(buffers, place);
            bytes_of_packets += packet.len() as u64;
            *part = IoSlice::new(packet.get(run.header_len()..).unwrap_or_default());
        }
        let packets = run.packets().len();
        match (self.write)(self.tun.as_fd(), parts.get(..2 + packets).unwrap_or_default()) {
            Ok(_) => Some(Ok(Traffic { packets: packets as u64, bytes: bytes_of_packets })),
            Err(Errno::EINVAL) => None,
            Err(errno) => Some(Err((write_error(errno), packets as u64))),
        }
    }
}

fn write_error(errno: Errno) -> DropReason {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropReason::DeviceQueueFull,
        _ => DropReason::DeviceWriteFailed,
    }
}

/// The octets of an address.
enum AddressOctets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AsRef<[u8]> for AddressOctets {
    fn as_ref(&self) -> &[u8] {
        match self {
            AddressOctets::V4(octets) => octets,
            AddressOctets::V6(octets) => octets,
        }
    }
}

fn address_octets(address: &IpAddr) -> AddressOctets {
    match address {
        IpAddr::V4(address) => AddressOctets::V4(address.octets()),
        IpAddr::V6(address) => AddressOctets::V6(address.octets()),
    }
}
