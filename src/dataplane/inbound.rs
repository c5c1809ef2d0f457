//! The flow in.
//!
//! 1. [`Worker::receive`]: one batch from each socket, each message a datagram or a train of them (UDP_GRO).
//! 2. [`Tables::receive_one`]: each datagram by itself, since a train can hold several SPIs. SA by SPI, replay check,
//!    verify and decrypt in place, mark as seen: all in `esp`.
//! 3. `accept`: the source must be the peer's, the destination local.
//! 4. [`super::delivery`]: packets of one flow are joined where they lie, and written to the device at the end of the
//!    batch or before what must come after them.

use super::delivery::{Arrivals, Place};
use super::tables::Tables;
use super::worker::Worker;
use super::{DataEvent, MAX_INNER_BYTES, Traffic};
use crate::esp::{EspDrop, HEADROOM, InboundIndex, Received, TAILROOM};
use crate::overlay::{DropReason, LocalIndex, PeerIndex};
use crate::sys::udp::{self, BATCH_DATAGRAMS};
use crate::wire::esp::{ControlMessage, NextHeader};
use crate::wire::ip::IpView;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

/// Errors of the socket in a row after which the worker gives up. An error that the kernel kept from a datagram is
/// told once; a socket that only fails is broken.
const MAX_SOCKET_ERRORS: u32 = 1000;

/// Octets of a datagram at most: longer ones carry a packet that no device here may have.
const MAX_DATAGRAM_BYTES: usize = HEADROOM + MAX_INNER_BYTES + TAILROOM;

impl From<EspDrop> for DropReason {
    fn from(reason: EspDrop) -> DropReason {
        match reason {
            EspDrop::TooShort => DropReason::TooShort,
            EspDrop::TooLong | EspDrop::NoRoom => DropReason::Oversized,
            EspDrop::SpiZero => DropReason::SpiZero,
            EspDrop::UnknownSpi => DropReason::UnknownSpi,
            EspDrop::WrongWorker => DropReason::WrongWorker,
            EspDrop::IvMismatch => DropReason::IvMismatch,
            EspDrop::Replayed => DropReason::Replayed,
            EspDrop::TooOld => DropReason::TooOld,
            EspDrop::BadTag => DropReason::BadTag,
            EspDrop::BadPadding => DropReason::BadPadding,
            EspDrop::BadNextHeader => DropReason::BadNextHeader,
            EspDrop::Suspended => DropReason::Suspended,
            EspDrop::Exhausted => DropReason::Exhausted,
            EspDrop::NoSa => DropReason::NoSendingSa,
        }
    }
}

/// What the datagram before was. Most are like it: what was looked up for one serves the next. It holds no longer than
/// a batch, in which no table changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memo {
    sa: InboundIndex,
    network: usize,
    peer: PeerIndex,
    /// To be added to the link's.
    traffic: Traffic,
    /// The last packet's addresses, and where it may go.
    accepted: Option<(IpAddr, IpAddr, LocalIndex)>,
}

impl Worker {
    /// Takes in one batch of datagrams from each socket that has some.
    pub(super) fn receive(&mut self) -> io::Result<()> {
        let Worker { sockets, arrivals, tables, .. } = self;
        for socket in sockets.iter_mut().filter(|socket| socket.readable) {
            tables.calls.receives += 1;
            let buffers = arrivals.buffers.iter_mut().map(|buffer| buffer.as_mut_slice());
            match udp::receive_batch(socket.socket.as_fd(), buffers, &mut arrivals.received) {
                Ok(count) => {
                    socket.errors = 0;
                    // Fewer than asked for: the queue was empty, and what came since is told by the poller.
                    socket.readable = count == BATCH_DATAGRAMS;
                    for index in 0..count {
                        tables.receive_one(arrivals, index);
                    }
                    tables.finish_batch(arrivals);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable = false,
                Err(error) => {
                    socket.errors += 1;
                    if socket.errors > MAX_SOCKET_ERRORS {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Tables {
    /// Opens the datagrams of message `index`, and delivers them or counts why not. What is joined is delivered by
    /// [`Tables::finish_batch`] at the latest.
    pub(super) fn receive_one(&mut self, arrivals: &mut Arrivals, index: usize) {
        let Some(message) = arrivals.received.get(index).copied() else { return };
        if message.truncated {
            return self.drops.count(DropReason::Oversized);
        }
        let segment = if message.segment == 0 { message.length } else { message.segment };
        let mut start = 0;
        loop {
            let end = message.length.min(start + segment);
            if let Err(reason) = self.take_in(arrivals, Place { buffer: index, start, end }) {
                self.drops.count(reason);
            }
            start = end;
            if start >= message.length {
                return;
            }
        }
    }

    /// Delivers what was joined.
    pub(super) fn finish_batch(&mut self, arrivals: &mut Arrivals) {
        self.deliver_joined(arrivals);
        self.settle(arrivals.memo.take());
    }

    fn take_in(&mut self, arrivals: &mut Arrivals, place: Place) -> Result<(), DropReason> {
        let bytes = arrivals.buffers.get_mut(place.buffer).and_then(|buffer| buffer.get_mut(place.start..place.end));
        let bytes = bytes.filter(|bytes| bytes.len() <= MAX_DATAGRAM_BYTES).ok_or(DropReason::Oversized)?;
        let Received { sa, opened } = self.sas.open(bytes, self.now)?.ok_or(DropReason::NatKeepAlive)?;
        let memo = match &mut arrivals.memo {
            Some(memo) if memo.sa == sa => memo,
            other => {
                let fresh = self.note_authentic(sa)?;
                self.settle(other.replace(fresh));
                other.as_mut().ok_or(DropReason::UnknownSpi)?
            }
        };
        memo.traffic.count(opened.payload.len());
        let payload = bytes.get(opened.payload.clone()).unwrap_or_default();
        if opened.next_header == NextHeader::None {
            return self.take_control(sa, ControlMessage::parse(payload));
        }
        let view = IpView::parse(payload).map_err(|_| DropReason::MalformedInner)?;
        if view.is_ipv6() != (opened.next_header == NextHeader::Ipv6) {
            return Err(DropReason::BadNextHeader);
        }
        let to = self.accept(memo, &view)?;
        let start = place.start + opened.payload.start;
        // What follows the packet by its own length is padding.
        self.arrive(arrivals, to, &view, Place { buffer: place.buffer, start, end: start + view.total_len })
    }

    /// Whatever the packet holds, its peer has spoken.
    fn note_authentic(&mut self, sa: InboundIndex) -> Result<Memo, DropReason> {
        let inbound = self.inbound.get_mut(&sa).ok_or(DropReason::UnknownSpi)?;
        if !inbound.announced {
            inbound.announced = true;
            if let Some(sa) = self.sas.inbound(sa) {
                self.events.push(DataEvent::Authenticated { identity: *sa.identity() });
            }
        }
        Ok(Memo { sa, network: inbound.network, peer: inbound.peer, traffic: Traffic::default(), accepted: None })
    }

    /// Counts what came from a peer.
    fn settle(&mut self, memo: Option<Memo>) {
        let Some(memo) = memo else { return };
        let link = self.networks.get_mut(memo.network).and_then(|network| network.links.get_mut(&memo.peer));
        if let Some(link) = link {
            link.received.add(memo.traffic);
            link.last_received = Some(self.now);
        }
    }

    fn accept(&self, memo: &mut Memo, view: &IpView) -> Result<LocalIndex, DropReason> {
        match memo.accepted {
            Some((source, destination, to)) if (source, destination) == (view.source, view.destination) => Ok(to),
            _ => {
                let network = self.networks.get(memo.network).ok_or(DropReason::UnknownSpi)?;
                let to = network.table.accept(memo.peer, view)?;
                memo.accepted = Some((view.source, view.destination, to));
                Ok(to)
            }
        }
    }

    fn take_control(&mut self, sa: InboundIndex, message: ControlMessage) -> Result<(), DropReason> {
        match message {
            ControlMessage::Nothing => Ok(()),
            ControlMessage::Unknown(_) => Err(DropReason::UnknownControl),
            ControlMessage::Probe { .. } | ControlMessage::PathProbe { .. } | ControlMessage::PathAnswer { .. } => {
                let identity = *self.sas.inbound(sa).ok_or(DropReason::UnknownSpi)?.identity();
                let told = self.events.push_from_peer(DataEvent::Control { identity, message });
                told.then_some(()).ok_or(DropReason::ControlBacklog)
            }
        }
    }
}
