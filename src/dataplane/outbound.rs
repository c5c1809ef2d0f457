//! The flow out.
//!
//! 1. [`Worker::transmit`]: the devices that have packets, in turn, each up to its share.
//! 2. [`Tables::transmit_one`]: one packet from the device into the slot where it will be sealed.
//! 3. `forward`: finish what the device left open, read the addresses, ask the overlay.
//! 4. Local: written to the other device from where it lies. Remote: sealed in place.
//! 5. [`Worker::flush`]: the batch to the socket.

use super::DataEvent;
use super::sending::{Outgoing, Slot};
use super::tables::Tables;
use super::worker::Worker;
use crate::esp::{EspDrop, HEADROOM, OutboundIndex, SaIdentity};
use crate::offload::{self, VNET_HEADER_LEN};
use crate::overlay::{DropReason, LocalIndex, PeerIndex, Verdict};
use crate::wire::esp::{ControlMessage, NextHeader};
use crate::wire::ip::IpView;
use nix::errno::Errno;
use std::io;
use std::os::fd::AsFd;

/// Packets read from devices in one turn: as many as one batch of datagrams, so that receiving gets its turn.
const TRANSMIT_BUDGET_PACKETS: usize = crate::sys::udp::BATCH_DATAGRAMS;

/// Packets read from one device before the next has its turn: no container waits for more than this of each other.
const DEVICE_SHARE_PACKETS: usize = 16;

/// Where an inner packet starts in a slot, and its virtio header before it.
const VNET_START: usize = HEADROOM - VNET_HEADER_LEN;

/// What came of reading a device once.
pub(super) enum Transmit {
    /// There is nothing to read.
    Empty,
    /// One packet was delivered or dropped.
    Done,
    /// One packet was sealed in the slot.
    Sealed(Outgoing),
}

impl Worker {
    /// Reads the devices that have packets.
    pub(super) fn transmit(&mut self) -> io::Result<()> {
        let mut budget = TRANSMIT_BUDGET_PACKETS;
        while budget > 0 && !self.batch.is_blocked() {
            let Some(local) = self.ready.pop_front() else { break };
            let share = budget.min(DEVICE_SHARE_PACKETS);
            budget -= share;
            if self.read_device(local, share)? {
                self.ready.push_back(local);
            } else if let Some(endpoint) = self.tables.endpoints.get_mut(local.0 as usize) {
                endpoint.queued = false;
            }
        }
        Ok(())
    }

    /// Reads up to `share` packets; `true` when there may be more.
    fn read_device(&mut self, local: LocalIndex, share: usize) -> io::Result<bool> {
        for _ in 0..share {
            if self.batch.free_slot().is_none() {
                self.flush()?;
            }
            let Some(slot) = self.batch.free_slot() else { return Ok(true) };
            match self.tables.transmit_one(local, slot) {
                Transmit::Empty => return Ok(false),
                Transmit::Done => {}
                Transmit::Sealed(datagram) => self.batch.push(datagram),
            }
        }
        Ok(true)
    }

    /// Seals a control message.
    pub(super) fn send_control(&mut self, outbound: &SaIdentity, message: ControlMessage) -> io::Result<()> {
        if self.batch.free_slot().is_none() {
            self.flush()?;
        }
        let Some(slot) = self.batch.free_slot() else {
            self.tables.drops.count(DropReason::UnderlayQueueFull);
            return Ok(());
        };
        match self.tables.seal_control(outbound, message, slot) {
            Ok(datagram) => self.batch.push(datagram),
            Err(reason) => self.tables.drops.count(reason),
        }
        Ok(())
    }

    /// Sends the batch; while the socket has no room, waits for it to be writable.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.batch.is_blocked() {
            return Ok(());
        }
        self.batch.flush(self.socket.as_fd(), &self.tables.peers, &mut self.tables.drops);
        if self.batch.is_blocked() { self.socket.watch_writable(true) } else { Ok(()) }
    }
}

impl Tables {
    /// Reads one packet from the device and brings it on its way.
    pub(super) fn transmit_one(&mut self, local: LocalIndex, slot: &mut Slot) -> Transmit {
        let Some(endpoint) = self.endpoints.get_mut(local.0 as usize) else { return Transmit::Empty };
        let start = if endpoint.vnet { VNET_START } else { HEADROOM };
        let room = slot.get_mut(start..).unwrap_or_default();
        let read = match nix::unistd::read(&endpoint.tun, room) {
            Ok(0) => return self.lose(local, "its device was closed".into()),
            Ok(read) => read,
            Err(Errno::EAGAIN) => return Transmit::Empty,
            Err(Errno::EINTR) => return Transmit::Done,
            Err(error) => return self.lose(local, format!("its device cannot be read: {error}")),
        };
        endpoint.sent.count((start + read).saturating_sub(HEADROOM));
        match self.forward(local, slot, start + read) {
            Ok(transmit) => transmit,
            Err(reason) => {
                self.drops.count(reason);
                if let Some(endpoint) = self.endpoints.get_mut(local.0 as usize) {
                    endpoint.sent_dropped += 1;
                }
                Transmit::Done
            }
        }
    }

    fn lose(&mut self, local: LocalIndex, error: String) -> Transmit {
        self.lose_endpoint(local, error);
        Transmit::Empty
    }

    /// The packet at [`HEADROOM`]`..end` of the slot.
    fn forward(&mut self, local: LocalIndex, slot: &mut Slot, end: usize) -> Result<Transmit, DropReason> {
        let endpoint = self.endpoints.get(local.0 as usize).ok_or(DropReason::NoSuchEndpoint)?;
        if end >= slot.len() {
            return Err(DropReason::Oversized);
        }
        if endpoint.vnet {
            finish(slot, end)?;
        }
        let packet = slot.get(HEADROOM..end).ok_or(DropReason::MalformedInner)?;
        let view = IpView::parse(packet).map_err(|_| DropReason::MalformedInner)?;
        let number = endpoint.network;
        let network = self.networks.get(number).ok_or(DropReason::NoSuchEndpoint)?;
        match network.table.classify(endpoint.address, &view) {
            Verdict::Drop(reason) => Err(reason),
            Verdict::Local(to) => {
                self.deliver(to, slot, HEADROOM, view.total_len)?;
                Ok(Transmit::Done)
            }
            Verdict::Peer(peer) => {
                let link = network.links.get(&peer).ok_or(DropReason::NoSendingSa)?;
                let sa = link.sending.ok_or(DropReason::NoSendingSa)?;
                let next_header = if view.is_ipv6() { NextHeader::Ipv6 } else { NextHeader::Ipv4 };
                let length = self.seal((number, peer), sa, slot, view.total_len, next_header)?;
                Ok(Transmit::Sealed(Outgoing { length, peer }))
            }
        }
    }

    /// Seals the `length` octets at [`HEADROOM`]; returns the length of the datagram.
    fn seal(
        &mut self,
        (network, peer): (usize, PeerIndex),
        sa: OutboundIndex,
        slot: &mut Slot,
        length: usize,
        next_header: NextHeader,
    ) -> Result<usize, DropReason> {
        // Before a sequence number is drawn.
        super::tables::underlay_address(&self.peers, peer).ok_or(DropReason::NoPeerAddress)?;
        let sealed = self.sas.seal(sa, slot, length, next_header).map_err(|reason| match reason {
            EspDrop::Suspended => DropReason::NoSendingSa,
            other => other.into(),
        })?;
        let link = self.networks.get_mut(network).and_then(|network| network.links.get_mut(&peer));
        if let Some(link) = link {
            link.sent.count(length);
            link.last_sent = Some(self.now);
        }
        if let (true, Some(sa)) = (sealed.soft_limit, self.sas.outbound(sa)) {
            self.events.push(DataEvent::SoftLimit { identity: *sa.identity() });
        }
        Ok(sealed.datagram_len)
    }

    pub(super) fn seal_control(
        &mut self,
        outbound: &SaIdentity,
        message: ControlMessage,
        slot: &mut Slot,
    ) -> Result<Outgoing, DropReason> {
        let sa = self.sas.find_outbound(outbound).ok_or(DropReason::NoSendingSa)?;
        let network = self.known_network(outbound.network).ok_or(DropReason::NoSendingSa)?;
        let peer = self.known_peer(outbound.dst).ok_or(DropReason::NoPeerAddress)?;
        let payload = message.emit();
        let room = slot.get_mut(HEADROOM..HEADROOM + payload.len()).ok_or(DropReason::Oversized)?;
        room.copy_from_slice(&payload);
        let length = self.seal((network, peer), sa, slot, payload.len(), NextHeader::None)?;
        Ok(Outgoing { length, peer })
    }
}

/// Does what the virtio header before the packet says.
fn finish(slot: &mut Slot, end: usize) -> Result<(), DropReason> {
    let framed = slot.get_mut(VNET_START..end).ok_or(DropReason::MalformedInner)?;
    let (header, packet) = framed.split_first_chunk_mut::<VNET_HEADER_LEN>().ok_or(DropReason::MalformedInner)?;
    offload::finish(header, packet).map_err(|_| DropReason::UnfinishedOffload)
}
