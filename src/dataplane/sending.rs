//! Sealed datagrams on their way to the socket. They lie one after the other in one buffer, where they were sealed;
//! neighbours for one peer that are equally long, the last perhaps shorter, leave as one train (UDP_SEGMENT), and
//! several trains in one call.
//!
//! A kernel or network card that refuses a train is given its datagrams one by one, as sealed. If it takes those of
//! the train's own length, it is remembered for this peer.

use super::tables::{self, Peer};
use crate::overlay::{DropCounters, DropReason, PeerIndex};
use crate::sys::udp::{self, BATCH_DATAGRAMS, Message, TRAIN_BYTES, TRAIN_DATAGRAMS};
use std::io;
use std::os::fd::BorrowedFd;

/// Octets that are free before a device is read: a super-packet of 64 KiB cut into packets of 1300 octets or more. Of
/// one in smaller pieces the rest is dropped, if there is no room; no kernel makes such a one by itself.
pub(super) const READ_ROOM_BYTES: usize = 80 << 10;

/// Octets of the buffer. Half of it and more is sent before the next device is read, so it stays in the second-level
/// cache.
const ARENA_BYTES: usize = 2 * READ_ROOM_BYTES;

/// Trains or single datagrams waiting at most: what one call sends.
const MAX_TRAINS: usize = BATCH_DATAGRAMS;

/// Datagrams for one peer, one after the other.
#[derive(Debug, Clone, Copy)]
struct Train {
    peer: PeerIndex,
    start: usize,
    length: usize,
    /// Octets of each datagram but the last.
    segment: usize,
    datagrams: usize,
    /// The last datagram is shorter.
    ended: bool,
    /// It was refused as a train.
    refused: bool,
}

/// Datagrams in the order in which they were sealed.
pub(super) struct SendBatch {
    arena: Box<[u8]>,
    /// Where the next datagram goes.
    end: usize,
    trains: Vec<Train>,
    /// The first train that is not sent, and how many of its octets are.
    next: Cursor,
    trains_wanted: bool,
    first_was_refused: bool,
    blocked: bool,
    counters: SendCounters,
}

/// What the system calls were good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SendCounters {
    /// Calls of sendmmsg.
    pub(super) calls: u64,
    /// Datagrams sent.
    pub(super) datagrams: u64,
    /// Trains refused by the kernel.
    pub(super) refused_trains: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cursor {
    train: usize,
    octets: usize,
}

/// What to do about an error of the first message.
enum Refusal {
    Block,
    SendAgain,
    SendSingly,
    Drop(DropReason),
}

impl SendBatch {
    pub(super) fn new(trains_wanted: bool) -> SendBatch {
        SendBatch {
            arena: vec![0; ARENA_BYTES].into_boxed_slice(),
            end: 0,
            trains: Vec::with_capacity(MAX_TRAINS),
            next: Cursor::default(),
            trains_wanted,
            first_was_refused: false,
            blocked: false,
            counters: SendCounters::default(),
        }
    }

    /// Whether datagrams are joined to trains from now on.
    pub(super) fn set_trains(&mut self, wanted: bool) {
        self.trains_wanted = wanted;
    }

    /// The buffer for the next datagram, of at least `octets`; `None` when the batch must be sent first.
    pub(super) fn space(&mut self, octets: usize) -> Option<&mut [u8]> {
        let free = self.arena.get_mut(self.end..)?;
        (free.len() >= octets && self.trains.len() < MAX_TRAINS).then_some(free)
    }

    /// Takes in the datagram of `length` octets that was sealed at the front of [`SendBatch::space`].
    pub(super) fn push(&mut self, peer: PeerIndex, length: usize) {
        let start = self.end;
        self.end += length;
        if let Some(last) = self.trains.last_mut()
            && self.trains_wanted
            && last.takes(peer, length)
        {
            last.length += length;
            last.datagrams += 1;
            last.ended = length < last.segment;
            return;
        }
        self.trains.push(Train { peer, start, length, segment: length, datagrams: 1, ended: false, refused: false });
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

    pub(super) fn counters(&self) -> SendCounters {
        self.counters
    }

    /// Sends what there is. What the socket has no room for stays, and the batch is blocked.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>, peers: &mut [Peer], drops: &mut DropCounters) {
        self.flush_by(|messages| udp::send_batch(socket, messages), peers, drops);
    }

    /// The same by a kernel that acts like [`udp::send_batch`].
    pub(super) fn flush_by(
        &mut self,
        mut send: impl FnMut(&mut dyn Iterator<Item = Message<'_>>) -> io::Result<usize>,
        peers: &mut [Peer],
        drops: &mut DropCounters,
    ) {
        while !self.blocked && self.next.train < self.trains.len() {
            self.counters.calls += 1;
            let sent = send(&mut self.messages(peers).map(|(message, _)| message));
            match sent {
                Ok(0) => self.drop_first(DropReason::NoPeerAddress, peers, drops),
                Ok(count) => self.advance(count, peers),
                Err(error) => match self.refusal(&error, peers) {
                    Refusal::Block => self.blocked = true,
                    Refusal::SendAgain => self.first_was_refused = true,
                    Refusal::SendSingly => self.refuse_train(),
                    Refusal::Drop(reason) => self.drop_first(reason, peers, drops),
                },
            }
        }
        if self.next.train >= self.trains.len() {
            self.trains.clear();
            (self.next, self.end) = (Cursor::default(), 0);
        }
    }

    /// The datagrams that were not sent yet, one by one.
    pub(super) fn drain(&mut self) -> Vec<(PeerIndex, Vec<u8>)> {
        let mut datagrams = Vec::new();
        for train in std::mem::take(&mut self.trains) {
            let octets = &self.arena[train.start..train.start + train.length];
            datagrams.extend(octets.chunks(train.segment).map(|datagram| (train.peer, datagram.to_vec())));
        }
        (self.next, self.end) = (Cursor::default(), 0);
        datagrams
    }

    /// What to send next, and where the rest begins after each; ends before a peer without an address.
    fn messages<'a>(&'a self, peers: &'a [Peer]) -> impl Iterator<Item = (Message<'a>, Cursor)> + 'a {
        let mut at = self.next;
        std::iter::from_fn(move || {
            let train = self.trains.get(at.train)?;
            let peer = peers.get(train.peer.0 as usize)?;
            let to = tables::underlay_address(peers, train.peer)?;
            let whole = train.datagrams > 1 && !train.refused && peer.takes_trains();
            let rest = self.arena.get(train.start + at.octets..train.start + train.length)?;
            let octets = if whole { rest } else { rest.get(..train.segment).unwrap_or(rest) };
            at.octets += octets.len();
            if at.octets >= train.length {
                at = Cursor { train: at.train + 1, octets: 0 };
            }
            let segment = if octets.len() > train.segment { train.segment } else { 0 };
            Some((Message { octets, segment, to }, at))
        })
    }

    fn advance(&mut self, count: usize, peers: &mut [Peer]) {
        self.first_was_refused = false;
        let sent = self.messages(peers).take(count).fold((self.next, 0), |(_, datagrams), (message, after)| {
            (after, datagrams + if message.segment == 0 { 1 } else { message.octets.len().div_ceil(message.segment) })
        });
        let first = self.trains.get(self.next.train).copied();
        let passed = self.messages(peers).next().map_or(0, |(message, _)| message.octets.len());
        self.counters.datagrams += sent.1 as u64;
        self.next = sent.0;
        // What was refused as a train has passed in parts: so it was the train. A shorter last one says nothing: the
        // others may have been too long.
        if let Some(Train { refused: true, peer, segment, .. }) = first
            && passed >= segment
            && let Some(peer) = peers.get_mut(peer.0 as usize)
        {
            peer.refuses_trains();
        }
    }

    fn refuse_train(&mut self) {
        self.counters.refused_trains += 1;
        if let Some(train) = self.trains.get_mut(self.next.train) {
            train.refused = true;
        }
    }

    fn drop_first(&mut self, reason: DropReason, peers: &[Peer], drops: &mut DropCounters) {
        self.first_was_refused = false;
        let Some(train) = self.trains.get(self.next.train) else { return };
        let (datagrams, after) = match self.messages(peers).next() {
            Some((Message { segment: 0, .. }, after)) => (1, after),
            // All that is left of it.
            _ => {
                let left = train.length.saturating_sub(self.next.octets);
                (left.div_ceil(train.segment.max(1)), Cursor { train: self.next.train + 1, octets: 0 })
            }
        };
        drops.count_many(reason, datagrams as u64);
        self.next = after;
    }

    fn refusal(&self, error: &io::Error, peers: &[Peer]) -> Refusal {
        let train = self.messages(peers).next().is_some_and(|(message, _)| message.segment != 0);
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Refusal::Block,
            // No checksum offload; a segment longer than the MTU; network cards with faults.
            Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if train => Refusal::SendSingly,
            Some(libc::EMSGSIZE) => Refusal::Drop(DropReason::ExceedsUnderlayMtu),
            Some(libc::ENOBUFS) => Refusal::Drop(DropReason::UnderlayQueueFull),
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN) => Refusal::Drop(DropReason::Unreachable),
            // Among them errors that the kernel kept from an earlier datagram.
            _ if self.first_was_refused => Refusal::Drop(DropReason::SendFailed),
            _ => Refusal::SendAgain,
        }
    }
}

impl Train {
    fn takes(&self, peer: PeerIndex, length: usize) -> bool {
        self.peer == peer
            && !self.ended
            && length <= self.segment
            && self.datagrams < TRAIN_DATAGRAMS
            && self.length + length <= TRAIN_BYTES
    }
}
