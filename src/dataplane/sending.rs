//! Sealed datagrams on their way to the socket: the buffers that packets are read into, sealed in and sent from.

use super::tables::Peer;
use super::{MAX_INNER_BYTES, tables};
use crate::esp::{HEADROOM, TAILROOM};
use crate::overlay::{DropCounters, DropReason, PeerIndex};
use crate::sys::udp::{self, BATCH_DATAGRAMS};
use std::io;
use std::os::fd::BorrowedFd;

/// Octets of a packet buffer: an inner packet in the middle, room for ESP around it; a multiple of a cache line.
pub(super) const SLOT_BYTES: usize = (HEADROOM + MAX_INNER_BYTES + TAILROOM).next_multiple_of(64);

/// A packet buffer. An inner packet that is to be sealed starts at [`HEADROOM`].
pub(super) type Slot = [u8; SLOT_BYTES];

/// The buffers of one batch.
pub(super) fn slots() -> Box<[Slot]> {
    vec![[0; SLOT_BYTES]; BATCH_DATAGRAMS].into_boxed_slice()
}

/// A sealed datagram in the slot of the same number.
#[derive(Clone, Copy)]
pub(super) struct Outgoing {
    /// Octets from the start of the slot.
    pub(super) length: usize,
    /// To whom.
    pub(super) peer: PeerIndex,
}

/// Datagrams in the order in which they were sealed; those from `sent` up to `filled` are still to be sent.
pub(super) struct SendBatch {
    slots: Box<[Slot]>,
    outgoing: [Outgoing; BATCH_DATAGRAMS],
    filled: usize,
    sent: usize,
    first_was_refused: bool,
    blocked: bool,
}

/// What to do about an error of the first datagram.
enum Refusal {
    Block,
    SendAgain,
    Drop(DropReason),
}

impl SendBatch {
    pub(super) fn new() -> SendBatch {
        let nobody = Outgoing { length: 0, peer: PeerIndex(u32::MAX) };
        SendBatch {
            slots: slots(),
            outgoing: [nobody; BATCH_DATAGRAMS],
            filled: 0,
            sent: 0,
            first_was_refused: false,
            blocked: false,
        }
    }

    /// The buffer for the next datagram; `None` when the batch is full.
    pub(super) fn free_slot(&mut self) -> Option<&mut Slot> {
        self.slots.get_mut(self.filled)
    }

    /// Takes in what was sealed in [`SendBatch::free_slot`].
    pub(super) fn push(&mut self, datagram: Outgoing) {
        if let Some(next) = self.outgoing.get_mut(self.filled) {
            *next = datagram;
            self.filled += 1;
        }
    }

    /// Whether the socket's buffer is full. Nothing is read from devices meanwhile: the containers' own queues
    /// fill, and their TCP slows down, instead of sealed packets being lost.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// The socket takes datagrams again.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Sends what there is. What the socket has no room for stays, and the batch is blocked.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>, peers: &[Peer], drops: &mut DropCounters) {
        while !self.blocked && self.sent < self.filled {
            let range = self.sent..self.filled;
            let slots = self.slots.get(range.clone()).unwrap_or_default();
            let outgoing = self.outgoing.get(range).unwrap_or_default();
            let datagrams = slots.iter().zip(outgoing).map_while(|(slot, datagram)| {
                Some((slot.get(..datagram.length)?, tables::underlay_address(peers, datagram.peer)?))
            });
            match udp::send_batch(socket, datagrams) {
                Ok(0) => self.drop_first(DropReason::NoPeerAddress, drops),
                Ok(count) => self.advance(count),
                Err(error) => match refusal(&error, self.first_was_refused) {
                    Refusal::Block => self.blocked = true,
                    Refusal::SendAgain => self.first_was_refused = true,
                    Refusal::Drop(reason) => self.drop_first(reason, drops),
                },
            }
        }
        if self.sent == self.filled {
            (self.sent, self.filled) = (0, 0);
        }
    }

    fn advance(&mut self, count: usize) {
        self.sent += count;
        self.first_was_refused = false;
    }

    fn drop_first(&mut self, reason: DropReason, drops: &mut DropCounters) {
        drops.count(reason);
        self.advance(1);
    }
}

fn refusal(error: &io::Error, again: bool) -> Refusal {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Refusal::Block,
        Some(libc::EMSGSIZE) => Refusal::Drop(DropReason::ExceedsUnderlayMtu),
        Some(libc::ENOBUFS) => Refusal::Drop(DropReason::UnderlayQueueFull),
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN) => Refusal::Drop(DropReason::Unreachable),
        // Among them EIO and EINVAL of some network cards, and errors that the kernel kept from an earlier datagram.
        _ if again => Refusal::Drop(DropReason::SendFailed),
        _ => Refusal::SendAgain,
    }
}
