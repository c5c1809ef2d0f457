//! Cutting a super-packet into the packets that travel, as the network card would that the kernel takes us for.
//!
//! 1. [`Split::plan`] checks the super-packet against its virtio header.
//! 2. [`Split::write`] makes one packet: copies headers and its part of the payload, patches lengths, IPv4
//!    identification, TCP sequence and flags, and completes every checksum. Each octet is copied once.

use super::checksum::Sum;
use super::{GsoKind, Unfinished, VnetHeader};
use std::ops::Range;

/// Octets of an IPv4 header without options, of an IPv6 header without extensions, of a UDP header, and of a TCP
/// header without options.
pub(super) const IPV4_LEN: usize = 20;
pub(super) const IPV6_LEN: usize = 40;
pub(super) const UDP_LEN: usize = 8;
pub(super) const TCP_LEN: usize = 20;

/// Where TCP's and UDP's checksums lie in their headers.
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const UDP_CHECKSUM: usize = 6;

/// TCP's flags, in octet 13 of its header.
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const URG: u8 = 0x20;
pub(super) const CWR: u8 = 0x80;

/// IPv4's protocol and IPv6's next header of TCP and UDP.
pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;

/// How a super-packet is cut. Made for one packet, of no use for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    kind: GsoKind,
    ipv6: bool,
    /// Where the transport header begins.
    transport: usize,
    /// Octets of all headers.
    header_len: usize,
    payload_len: usize,
    /// Octets of payload in each packet but the last.
    size: usize,
    /// The sum of the pseudo-header without the length.
    pseudo: Sum,
}

impl Split {
    /// Checks a super-packet; `packet` ends where its IP header says. The offset of the transport header is taken
    /// from the virtio header, so that extension headers of IPv6 need not be followed.
    pub fn plan(header: &VnetHeader, packet: &[u8]) -> Result<Split, Unfinished> {
        let (gso, open) = (header.gso.ok_or(Unfinished)?, header.checksum.ok_or(Unfinished)?);
        let transport = usize::from(open.start);
        let ipv6 = check_network_header(packet, gso.kind, transport)?;
        let segment = packet.get(transport..).ok_or(Unfinished)?;
        let (checksum_at, transport_len) = match gso.kind {
            GsoKind::Udp => (UDP_CHECKSUM, UDP_LEN),
            GsoKind::TcpV4 | GsoKind::TcpV6 => {
                let words = segment.get(12).ok_or(Unfinished)? >> 4;
                (TCP_CHECKSUM, usize::from(words) * 4)
            }
        };
        let shortest = if gso.kind == GsoKind::Udp { UDP_LEN } else { TCP_LEN };
        if transport_len < shortest || usize::from(open.offset) != checksum_at {
            return Err(Unfinished);
        }
        // There is payload, or nothing is to be cut.
        let payload_len = segment.len().checked_sub(transport_len).filter(|&len| len > 0).ok_or(Unfinished)?;
        let field = segment.get(checksum_at..).and_then(|rest| rest.first_chunk::<2>()).ok_or(Unfinished)?;
        // The length is subtracted by adding its complement.
        let pseudo = Sum::default().add_octets(*field).add_u16(!length_u16(segment.len())?);
        let header_len = transport + transport_len;
        let size = usize::from(gso.size.get());
        Ok(Split { kind: gso.kind, ipv6, transport, header_len, payload_len, size, pseudo })
    }

    /// How many packets it makes; at least one.
    pub fn count(&self) -> usize {
        self.payload_len.div_ceil(self.size)
    }

    /// Octets of the longest of them.
    pub fn longest(&self) -> usize {
        self.header_len + self.size.min(self.payload_len)
    }

    /// Octets of all of them.
    pub fn total_len(&self) -> usize {
        self.payload_len + self.count() * self.header_len
    }

    /// Octets of packet `index`; 0 when there is none.
    pub fn len(&self, index: usize) -> usize {
        let payload = self.payload(index).len();
        if payload == 0 { 0 } else { self.header_len + payload }
    }

    /// Writes packet `index` of the super-packet this plan was made for. `out` is as long as [`Split::len`] says.
    /// `None` when it is not; `out` is then worthless.
    pub fn write(&self, index: usize, packet: &[u8], out: &mut [u8]) -> Option<()> {
        let part = self.payload(index);
        let (headers, payload) = out.split_at_mut_checked(self.header_len)?;
        headers.copy_from_slice(packet.get(..self.header_len)?);
        let rest = packet.get(self.header_len..)?;
        if payload.len() != part.len() || part.is_empty() {
            return None;
        }
        payload.copy_from_slice(rest.get(part.clone())?);
        self.patch_network(index, out)?;
        let segment = out.get_mut(self.transport..)?;
        match self.kind {
            GsoKind::Udp => patch_udp(segment)?,
            GsoKind::TcpV4 | GsoKind::TcpV6 => self.patch_tcp(part, segment)?,
        }
        self.complete(segment)
    }

    /// The payload of a packet, from the end of the headers.
    fn payload(&self, index: usize) -> Range<usize> {
        let start = index.saturating_mul(self.size).min(self.payload_len);
        start..(start + self.size).min(self.payload_len)
    }

    fn patch_network(&self, index: usize, out: &mut [u8]) -> Option<()> {
        if self.ipv6 {
            let length = u16::try_from(out.len().checked_sub(IPV6_LEN)?).ok()?;
            return put(out, 4, length.to_be_bytes());
        }
        let length = u16::try_from(out.len()).ok()?;
        put(out, 2, length.to_be_bytes())?;
        let identification = u16::from_be_bytes(octets_at(out, 4)?).wrapping_add(index as u16);
        put(out, 4, identification.to_be_bytes())?;
        put_ipv4_checksum(out)
    }

    fn patch_tcp(&self, part: Range<usize>, segment: &mut [u8]) -> Option<()> {
        let sequence = u32::from_be_bytes(octets_at(segment, 4)?).wrapping_add(part.start as u32);
        put(segment, 4, sequence.to_be_bytes())?;
        let [mut flags] = octets_at(segment, 13)?;
        if part.start > 0 {
            flags &= !CWR;
        }
        if part.end < self.payload_len {
            flags &= !(FIN | PSH);
        }
        if flags & URG != 0 && part.start > 0 {
            // It counts from the sequence number; what lies before this packet is urgent no more.
            let pointer = u16::from_be_bytes(octets_at(segment, 18)?);
            let left = usize::from(pointer).saturating_sub(part.start) as u16;
            if left == 0 {
                flags &= !URG;
            }
            put(segment, 18, left.to_be_bytes())?;
        }
        put(segment, 13, [flags])
    }

    fn complete(&self, segment: &mut [u8]) -> Option<()> {
        let at = if self.kind == GsoKind::Udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
        put(segment, at, [0, 0])?;
        let sum = self.pseudo.add_u16(u16::try_from(segment.len()).ok()?).add(segment);
        put(segment, at, sum.transport_checksum())
    }
}

/// Whether it is IPv6.
fn check_network_header(packet: &[u8], kind: GsoKind, transport: usize) -> Result<bool, Unfinished> {
    let first = *packet.first().ok_or(Unfinished)?;
    let (ipv6, fits) = match first >> 4 {
        4 => {
            let protocol = if kind == GsoKind::Udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
            let header_len = usize::from(first & 0x0f) * 4;
            let whole = is_unfragmented(packet).unwrap_or(false) && packet.get(9) == Some(&protocol);
            (false, whole && header_len >= IPV4_LEN && transport == header_len && kind != GsoKind::TcpV6)
        }
        6 => (true, transport >= IPV6_LEN && kind != GsoKind::TcpV4),
        _ => return Err(Unfinished),
    };
    // The payload is cut at the end of the packet: nothing may follow it.
    let length = declared_len(packet, ipv6).ok_or(Unfinished)?;
    if fits && length == packet.len() { Ok(ipv6) } else { Err(Unfinished) }
}

/// What the IP header says of the packet's length.
pub(super) fn declared_len(packet: &[u8], ipv6: bool) -> Option<usize> {
    if ipv6 {
        Some(IPV6_LEN + usize::from(u16::from_be_bytes(octets_at(packet, 4)?)))
    } else {
        Some(usize::from(u16::from_be_bytes(octets_at(packet, 2)?)))
    }
}

/// Whether an IPv4 packet is no fragment.
pub(super) fn is_unfragmented(packet: &[u8]) -> Option<bool> {
    Some(u16::from_be_bytes(octets_at(packet, 6)?) & 0x3fff == 0)
}

/// Computes the checksum of the IPv4 header at the front of `packet`.
pub(super) fn put_ipv4_checksum(packet: &mut [u8]) -> Option<()> {
    put(packet, 10, [0, 0])?;
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    let checksum = Sum::default().add(packet.get(..header_len)?).checksum();
    put(packet, 10, checksum)
}

pub(super) fn octets_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, octets: [u8; N]) -> Option<()> {
    *bytes.get_mut(at..)?.first_chunk_mut()? = octets;
    Some(())
}

fn patch_udp(segment: &mut [u8]) -> Option<()> {
    let length = u16::try_from(segment.len()).ok()?;
    put(segment, 4, length.to_be_bytes())
}

fn length_u16(length: usize) -> Result<u16, Unfinished> {
    u16::try_from(length).map_err(|_| Unfinished)
}
