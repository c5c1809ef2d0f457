//! Joining packets of one flow that arrive one after the other, so that the container's kernel sees one super-packet
//! and works once.
//!
//! - [`Candidate::parse`]: may this packet be joined at all? Only whole TCP and UDP without IP options, extension
//!   headers or fragments; TCP with ACK and at most PSH and ECE beside it; and only with correct checksums: a
//!   super-packet has none of its own, so joining a damaged packet would make a good one of it.
//! - [`Run::join`]: is it the next of this run? Equal in everything but length, sequence number, PSH, identification.
//! - [`Run::header`]: the headers of the super-packet, and the virtio header that lets the kernel cut it into the very
//!   same packets again. The packets themselves stay as they are: who cannot deliver the whole delivers the parts.

use super::checksum::Sum;
use super::split::{
    ACK, CWR, FIN, IPV4_LEN, IPV6_LEN, PROTOCOL_TCP, PROTOCOL_UDP, PSH, RST, SYN, TCP_CHECKSUM, TCP_LEN, UDP_CHECKSUM,
    UDP_LEN, URG, declared_len, is_unfragmented, octets_at, put, put_ipv4_checksum,
};
use super::{Gso, GsoKind, OpenChecksum, VnetHeader};
use std::num::NonZeroU16;

/// Packets in one run: what the kernel takes in one UDP super-packet, and as many as a sender's train has.
pub const MAX_RUN_PACKETS: usize = 64;

/// Octets of the longest headers: IPv6, and TCP with all options.
pub const MAX_HEADERS_LEN: usize = IPV6_LEN + 60;

/// Octets of the longest super-packet.
const MAX_SUPER_LEN: usize = u16::MAX as usize;

/// IPv4's DF, in octet 6 of its header.
const DONT_FRAGMENT: u8 = 0x40;

/// A packet that may be joined with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    ipv6: bool,
    udp: bool,
    transport: usize,
    header_len: usize,
    payload_len: usize,
}

impl Candidate {
    /// Looks at a packet that ends where its IP header says.
    pub fn parse(packet: &[u8]) -> Option<Candidate> {
        let first = *packet.first()?;
        let (ipv6, transport, protocol) = match first {
            0x45 if is_unfragmented(packet)? => (false, IPV4_LEN, *packet.get(9)?),
            0x60..=0x6f => (true, IPV6_LEN, *packet.get(6)?),
            _ => return None,
        };
        if declared_len(packet, ipv6)? != packet.len() {
            return None;
        }
        let segment = packet.get(transport..)?;
        let transport_len = match protocol {
            PROTOCOL_TCP => tcp_header_len(segment)?,
            PROTOCOL_UDP => udp_header_len(segment)?,
            _ => return None,
        };
        let header_len = transport + transport_len;
        let payload_len = packet.len().checked_sub(header_len).filter(|&len| len > 0)?;
        let candidate = Candidate { ipv6, udp: protocol == PROTOCOL_UDP, transport, header_len, payload_len };
        candidate.has_valid_checksums(packet)?.then_some(candidate)
    }

    /// Whether it is UDP; else it is TCP.
    pub fn is_udp(&self) -> bool {
        self.udp
    }

    fn has_valid_checksums(&self, packet: &[u8]) -> Option<bool> {
        let header_is_valid = self.ipv6 || Sum::default().add(packet.get(..IPV4_LEN)?).is_valid();
        Some(header_is_valid && self.pseudo_sum(packet, packet.len())?.add(packet.get(self.transport..)?).is_valid())
    }

    /// The sum of the pseudo-header of a packet of `total_len` octets with these headers.
    fn pseudo_sum(&self, headers: &[u8], total_len: usize) -> Option<Sum> {
        let protocol = if self.udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
        let length = u16::try_from(total_len.checked_sub(self.transport)?).ok()?;
        Some(Sum::default().add(self.addresses(headers)?).add_u16(protocol.into()).add_u16(length))
    }

    fn addresses<'a>(&self, headers: &'a [u8]) -> Option<&'a [u8]> {
        if self.ipv6 { headers.get(8..IPV6_LEN) } else { headers.get(12..IPV4_LEN) }
    }

    fn ports(&self, headers: &[u8]) -> Option<[u8; 4]> {
        octets_at(headers, self.transport)
    }
}

/// What IPv4's identification does from packet to packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identification {
    /// There is one packet only, or IPv6.
    Open,
    /// It counts.
    Counts,
    /// It stays, which is fine with DF: nobody will ever look at it (RFC 6864).
    Stays,
}

/// Packets of one flow, one after the other, and whatever names them to the caller. Made once, used for run after run.
#[derive(Debug, Clone)]
pub struct Run<P> {
    shape: Candidate,
    /// Those of the first packet; lengths, PSH and checksums are put right when the run is delivered.
    headers: [u8; MAX_HEADERS_LEN],
    /// The same as a pattern that the headers of each packet must match.
    pattern: [u8; MAX_HEADERS_LEN],
    identification: Identification,
    payload_bytes: usize,
    packets: [P; MAX_RUN_PACKETS],
    count: usize,
    closed: bool,
}

impl<P: Copy + Default> Run<P> {
    /// No packets.
    pub fn empty() -> Run<P> {
        let shape = Candidate { ipv6: false, udp: false, transport: 0, header_len: 0, payload_len: 0 };
        Run {
            shape,
            headers: [0; MAX_HEADERS_LEN],
            pattern: [0; MAX_HEADERS_LEN],
            identification: Identification::Open,
            payload_bytes: 0,
            packets: [P::default(); MAX_RUN_PACKETS],
            count: 0,
            closed: true,
        }
    }

    /// Forgets its packets.
    pub fn clear(&mut self) {
        self.count = 0;
        self.closed = true;
    }

    /// Becomes a run of this one packet; `None`, and empty, when it cannot.
    pub fn begin(&mut self, packet: &[u8], shape: Candidate, name: P) -> Option<()> {
        self.clear();
        self.headers = [0; MAX_HEADERS_LEN];
        self.headers.get_mut(..shape.header_len)?.copy_from_slice(packet.get(..shape.header_len)?);
        self.pattern = pattern(&self.headers, shape)?;
        self.closed = !shape.udp && tcp_flags(&self.headers, shape)? & PSH != 0;
        *self.packets.first_mut()? = name;
        self.shape = shape;
        self.identification = Identification::Open;
        self.payload_bytes = shape.payload_len;
        self.count = 1;
        Some(())
    }

    /// Whether the packet belongs to the same flow, joined or not.
    pub fn is_flow_of(&self, packet: &[u8], shape: Candidate) -> bool {
        let own = self.shape;
        (own.ipv6, own.udp) == (shape.ipv6, shape.udp)
            && own.ports(&self.headers) == shape.ports(packet)
            && own.addresses(&self.headers) == shape.addresses(packet)
    }

    /// Takes the packet in if it is the next one; `false` when the run must be delivered before it.
    pub fn join(&mut self, packet: &[u8], shape: Candidate, name: P) -> bool {
        let Some(identification) = self.accepts(packet, shape) else { return false };
        let Some(place) = self.packets.get_mut(self.count) else { return false };
        *place = name;
        self.count += 1;
        self.identification = identification;
        self.payload_bytes += shape.payload_len;
        let pushed = !shape.udp && self.add_push(packet).is_some();
        self.closed = pushed || shape.payload_len < self.shape.payload_len;
        true
    }

    fn accepts(&self, packet: &[u8], shape: Candidate) -> Option<Identification> {
        let own = self.shape;
        let fits = !self.closed
            && shape.header_len == own.header_len
            && shape.payload_len <= own.payload_len
            && own.header_len + self.payload_bytes + shape.payload_len <= MAX_SUPER_LEN
            && self.is_flow_of(packet, shape);
        if !fits || !self.matches_pattern(packet, shape) {
            return None;
        }
        if !own.udp {
            let expected = sequence(&self.headers, own)?.wrapping_add(self.payload_bytes as u32);
            if sequence(packet, own)? != expected {
                return None;
            }
        }
        self.next_identification(packet)
    }

    fn matches_pattern(&self, packet: &[u8], shape: Candidate) -> bool {
        let mut headers = [0; MAX_HEADERS_LEN];
        let (Some(to), Some(from)) = (headers.get_mut(..shape.header_len), packet.get(..shape.header_len)) else {
            return false;
        };
        to.copy_from_slice(from);
        pattern(&headers, shape).is_some_and(|pattern| pattern == self.pattern)
    }

    fn next_identification(&self, packet: &[u8]) -> Option<Identification> {
        if self.shape.ipv6 {
            return Some(Identification::Open);
        }
        let first = u16::from_be_bytes(octets_at(&self.headers, 4)?);
        let this = u16::from_be_bytes(octets_at(packet, 4)?);
        let counts = this == first.wrapping_add(self.count as u16);
        let stays = this == first && packet.get(6)? & DONT_FRAGMENT != 0;
        match self.identification {
            Identification::Open if counts => Some(Identification::Counts),
            Identification::Open | Identification::Stays if stays => Some(Identification::Stays),
            Identification::Counts if counts => Some(Identification::Counts),
            _ => None,
        }
    }

    /// The last packet's PSH is the run's; `None` when it has none.
    fn add_push(&mut self, packet: &[u8]) -> Option<()> {
        let flags = tcp_flags(packet, self.shape)?;
        let own = tcp_flags(&self.headers, self.shape)?;
        put(&mut self.headers, self.shape.transport + 13, [own | (flags & PSH)])?;
        (flags & PSH != 0).then_some(())
    }

    /// The packets, in order.
    pub fn packets(&self) -> &[P] {
        self.packets.get(..self.count).unwrap_or_default()
    }

    /// Octets of headers of each packet.
    pub fn header_len(&self) -> usize {
        self.shape.header_len
    }

    /// Whether it is UDP.
    pub fn is_udp(&self) -> bool {
        self.shape.udp
    }

    /// Whether nothing can follow.
    pub fn is_closed(&self) -> bool {
        self.closed || self.count == MAX_RUN_PACKETS
    }

    /// Whether a packet between these two hosts has to wait for it, if nothing else is known of the packet.
    pub fn is_between(&self, source: &[u8], destination: &[u8]) -> bool {
        let addresses = self.shape.addresses(&self.headers).unwrap_or_default();
        addresses.starts_with(source) && addresses.ends_with(destination)
    }

    /// The virtio header and the headers of the super-packet; its payload is that of the packets, one after the
    /// other. `None` for a run of one, which is delivered as it came.
    pub fn header(&self) -> Option<(VnetHeader, Headers)> {
        if self.count < 2 {
            return None;
        }
        let shape = self.shape;
        let total_len = shape.header_len + self.payload_bytes;
        let mut octets = self.headers;
        let headers = octets.get_mut(..shape.header_len)?;
        if shape.ipv6 {
            put(headers, 4, u16::try_from(total_len - IPV6_LEN).ok()?.to_be_bytes())?;
        } else {
            put(headers, 2, u16::try_from(total_len).ok()?.to_be_bytes())?;
            put_ipv4_checksum(headers)?;
        }
        let offset = if shape.udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
        if shape.udp {
            let length = u16::try_from(total_len - shape.transport).ok()?;
            put(headers, shape.transport + 4, length.to_be_bytes())?;
        }
        let pseudo = shape.pseudo_sum(headers, total_len)?.folded();
        put(headers, shape.transport + offset, pseudo)?;
        let kind = match (shape.udp, shape.ipv6) {
            (true, _) => GsoKind::Udp,
            (false, true) => GsoKind::TcpV6,
            (false, false) => GsoKind::TcpV4,
        };
        let size = NonZeroU16::new(u16::try_from(shape.payload_len).ok()?)?;
        let header = VnetHeader {
            checksum: Some(OpenChecksum { start: shape.transport as u16, offset: offset as u16 }),
            gso: Some(Gso { kind, size, ecn: false }),
            header_len: shape.header_len as u16,
        };
        Some((header, Headers { octets, len: shape.header_len }))
    }
}

/// The headers of a super-packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    octets: [u8; MAX_HEADERS_LEN],
    len: usize,
}

impl Headers {
    /// The octets.
    pub fn as_slice(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }
}

/// The headers without what may differ from packet to packet.
fn pattern(headers: &[u8; MAX_HEADERS_LEN], shape: Candidate) -> Option<[u8; MAX_HEADERS_LEN]> {
    let mut pattern = *headers;
    if shape.ipv6 {
        put(&mut pattern, 4, [0; 2])?;
    } else {
        // Length and identification; the checksum, which was right.
        put(&mut pattern, 2, [0; 4])?;
        put(&mut pattern, 10, [0; 2])?;
    }
    if shape.udp {
        put(&mut pattern, shape.transport + 4, [0; 4])?;
    } else {
        put(&mut pattern, shape.transport + 4, [0; 4])?;
        put(&mut pattern, shape.transport + 13, [tcp_flags(headers, shape)? & !PSH])?;
        put(&mut pattern, shape.transport + TCP_CHECKSUM, [0; 2])?;
    }
    Some(pattern)
}

fn tcp_flags(headers: &[u8], shape: Candidate) -> Option<u8> {
    headers.get(shape.transport + 13).copied()
}

fn sequence(headers: &[u8], shape: Candidate) -> Option<u32> {
    Some(u32::from_be_bytes(octets_at(headers, shape.transport + 4)?))
}

/// The length of a TCP header whose packet may be joined.
fn tcp_header_len(segment: &[u8]) -> Option<usize> {
    let &[words, flags] = segment.get(12..)?.first_chunk()?;
    let header_len = usize::from(words >> 4) * 4;
    let plain = flags & ACK != 0 && flags & (FIN | SYN | RST | URG | CWR) == 0;
    (plain && header_len >= TCP_LEN).then_some(header_len)
}

/// The length of a UDP header whose packet may be joined: one without a checksum would be given one.
fn udp_header_len(segment: &[u8]) -> Option<usize> {
    let length: [u8; 2] = octets_at(segment, 4)?;
    let checksum: [u8; 2] = octets_at(segment, UDP_CHECKSUM)?;
    (usize::from(u16::from_be_bytes(length)) == segment.len() && checksum != [0, 0]).then_some(UDP_LEN)
}
