//! The flow in.
//!
//! 1. [`Worker::receive`]: one batch of datagrams from the socket.
//! 2. [`Tables::receive_one`]: SA by SPI, replay check, verify and decrypt in place, mark as seen: all in `esp`.
//! 3. `accept`: the source must be the peer's, the destination local.
//! 4. Written to the device from where it lies in the datagram's buffer.

use super::DataEvent;
use super::tables::Tables;
use super::worker::Worker;
use crate::esp::{EspDrop, InboundIndex, Received};
use crate::overlay::DropReason;
use crate::sys::udp::{self, BATCH_DATAGRAMS, ReceivedDatagram};
use crate::wire::esp::{ControlMessage, NextHeader};
use crate::wire::ip::IpView;
use std::io;
use std::os::fd::AsFd;

/// Errors of the socket in a row after which the worker gives up. An error that the kernel kept from a datagram is
/// told once; a socket that only fails is broken.
const MAX_SOCKET_ERRORS: u32 = 1000;

impl From<EspDrop> for DropReason {
    fn from(reason: EspDrop) -> DropReason {
        match reason {
            EspDrop::TooShort => DropReason::TooShort,
            EspDrop::TooLong | EspDrop::NoRoom => DropReason::Oversized,
            EspDrop::SpiZero => DropReason::SpiZero,
            EspDrop::UnknownSpi => DropReason::UnknownSpi,
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

impl Worker {
    /// Takes in one batch of datagrams.
    pub(super) fn receive(&mut self) -> io::Result<()> {
        if !self.socket_readable {
            return Ok(());
        }
        let buffers = self.receive_slots.iter_mut().map(|slot| slot.as_mut_slice());
        match udp::receive_batch(self.socket.as_fd(), buffers, &mut self.received) {
            Ok(count) => {
                self.socket_errors = 0;
                // Fewer than asked for: the queue was empty, and what came since is told by the poller.
                self.socket_readable = count == BATCH_DATAGRAMS;
                for (datagram, slot) in self.received.iter().zip(&mut self.receive_slots).take(count) {
                    self.tables.receive_one(slot, *datagram);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket_readable = false,
            Err(error) => {
                self.socket_errors += 1;
                if self.socket_errors > MAX_SOCKET_ERRORS {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

impl Tables {
    /// Opens and delivers a datagram, or counts why not.
    pub(super) fn receive_one(&mut self, buffer: &mut [u8], datagram: ReceivedDatagram) {
        if let Err(reason) = self.take_in(buffer, datagram) {
            self.drops.count(reason);
        }
    }

    fn take_in(&mut self, buffer: &mut [u8], datagram: ReceivedDatagram) -> Result<(), DropReason> {
        if datagram.truncated {
            return Err(DropReason::Oversized);
        }
        let bytes = buffer.get_mut(..datagram.length).ok_or(DropReason::Oversized)?;
        let received = self.sas.open(bytes, self.now)?.ok_or(DropReason::NatKeepAlive)?;
        self.note_authentic(&received)?;
        let opened = &received.opened;
        match opened.next_header {
            NextHeader::None => {
                let message = ControlMessage::parse(bytes.get(opened.payload.clone()).unwrap_or_default());
                self.take_control(received.sa, message)
            }
            NextHeader::Ipv4 | NextHeader::Ipv6 => self.accept(bytes, &received),
        }
    }

    /// Whatever the packet holds, its peer has spoken.
    fn note_authentic(&mut self, received: &Received) -> Result<(), DropReason> {
        let inbound = self.inbound.get_mut(&received.sa).ok_or(DropReason::UnknownSpi)?;
        if !inbound.announced {
            inbound.announced = true;
            if let Some(sa) = self.sas.inbound(received.sa) {
                self.events.push(DataEvent::Authenticated { identity: *sa.identity() });
            }
        }
        let network = self.networks.get_mut(inbound.network).ok_or(DropReason::UnknownSpi)?;
        if let Some(link) = network.links.get_mut(&inbound.peer) {
            link.received.count(received.opened.payload.len());
            link.last_received = Some(self.now);
        }
        Ok(())
    }

    fn accept(&mut self, bytes: &mut [u8], received: &Received) -> Result<(), DropReason> {
        let opened = &received.opened;
        let payload = bytes.get(opened.payload.clone()).unwrap_or_default();
        let view = IpView::parse(payload).map_err(|_| DropReason::MalformedInner)?;
        if view.is_ipv6() != (opened.next_header == NextHeader::Ipv6) {
            return Err(DropReason::BadNextHeader);
        }
        let inbound = self.inbound.get(&received.sa).ok_or(DropReason::UnknownSpi)?;
        let network = self.networks.get(inbound.network).ok_or(DropReason::UnknownSpi)?;
        let to = network.table.accept(inbound.peer, &view)?;
        // What follows the packet by its own length is padding.
        self.deliver(to, bytes, opened.payload.start, view.total_len)
    }

    fn take_control(&mut self, sa: InboundIndex, message: ControlMessage) -> Result<(), DropReason> {
        match message {
            ControlMessage::Nothing => Ok(()),
            ControlMessage::Unknown(_) => Err(DropReason::UnknownControl),
            ControlMessage::Probe { .. } => {
                let identity = *self.sas.inbound(sa).ok_or(DropReason::UnknownSpi)?.identity();
                let told = self.events.push_from_peer(DataEvent::Control { identity, message });
                told.then_some(()).ok_or(DropReason::ControlBacklog)
            }
        }
    }
}
