//! The bytes of ESP in UDP (RFC 3948, RFC 4303, RFC 4106): header, trailer, the sorting of UDP payloads, and the
//! control messages that travel inside next header 59.
//!
//! ```text
//! SPI 4 | sequence (low 32 bits) 4 | IV 8 | inner packet, padding, pad length 1, next header 1 | ICV 16
//! ```
//! Only the header is read before the ICV has verified. `parse(emit(x)) == x` for every value.

use crate::types::Spi;

/// SPI, sequence number and IV, in octets.
pub const HEADER_LEN: usize = 16;
/// The integrity check value, in octets.
pub const ICV_LEN: usize = 16;
/// Pad length and next header, in octets.
pub const TRAILER_LEN: usize = 2;
/// Inner packet, padding and trailer together are a multiple of this many octets (RFC 4303, section 2.4).
pub const ALIGNMENT: usize = 4;
/// The most padding that is ever emitted, in octets.
pub const MAX_EMITTED_PADDING: usize = ALIGNMENT - 1;
/// The shortest ESP datagram, in octets: nothing inside, padded to one word.
pub const MIN_DATAGRAM_LEN: usize = HEADER_LEN + ALIGNMENT + ICV_LEN;
/// The longest UDP payload, in octets.
pub const MAX_DATAGRAM_LEN: usize = 65_535;
/// Octets of an outer IPv4 header without options, and of a UDP header.
const OUTER_V4_LEN: usize = 20 + 8;
/// Octets of an outer IPv6 header without extensions, and of a UDP header.
const OUTER_V6_LEN: usize = 40 + 8;

/// The next header of an inner packet (RFC 4303, section 2.6); other values are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum NextHeader {
    /// An IPv4 packet.
    Ipv4 = 4,
    /// An IPv6 packet.
    Ipv6 = 41,
    /// A dummy, or a [`ControlMessage`].
    None = 59,
}

impl NextHeader {
    /// Reads the octet.
    pub fn from_octet(octet: u8) -> Option<NextHeader> {
        match octet {
            4 => Some(NextHeader::Ipv4),
            41 => Some(NextHeader::Ipv6),
            59 => Some(NextHeader::None),
            _ => None,
        }
    }
}

/// The part of an ESP packet that travels in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which security association.
    pub spi: Spi,
    /// The low 32 bits of the sequence number.
    pub sequence_low: u32,
    /// The IV, as a number: Formic's is the whole sequence number.
    pub iv: u64,
}

impl Header {
    /// Reads the first 16 octets; `None` when there are fewer.
    pub fn parse(datagram: &[u8]) -> Option<Header> {
        let (spi, rest) = datagram.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (iv, _) = rest.split_first_chunk()?;
        Some(Header {
            spi: Spi(u32::from_be_bytes(*spi)),
            sequence_low: u32::from_be_bytes(*sequence),
            iv: u64::from_be_bytes(*iv),
        })
    }

    /// The 16 octets.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let (spi, rest) = out.split_at_mut(4);
        let (sequence, iv) = rest.split_at_mut(4);
        spi.copy_from_slice(&self.spi.0.to_be_bytes());
        sequence.copy_from_slice(&self.sequence_low.to_be_bytes());
        iv.copy_from_slice(&self.iv.to_be_bytes());
        out
    }
}

/// What a UDP payload on the data-path port is, as far as its clear part tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datagram {
    /// The single octet 0xFF (RFC 3948, section 2.3): accepted and ignored.
    KeepAlive,
    /// SPI 0, which no security association has (RFC 3948's non-ESP marker).
    SpiZero,
    /// Too short to be ESP.
    TooShort,
    /// Long enough to be ESP; nothing has been verified.
    Esp(Header),
}

/// Sorts a UDP payload.
pub fn classify(payload: &[u8]) -> Datagram {
    if payload == [0xff] {
        return Datagram::KeepAlive;
    }
    match payload.first_chunk::<4>() {
        None => Datagram::TooShort,
        Some([0, 0, 0, 0]) => Datagram::SpiZero,
        Some(_) if payload.len() < MIN_DATAGRAM_LEN => Datagram::TooShort,
        Some(_) => Header::parse(payload).map_or(Datagram::TooShort, Datagram::Esp),
    }
}

/// The octets of padding after an inner packet of this length.
pub fn padding_len(inner_len: usize) -> usize {
    (ALIGNMENT - (inner_len + TRAILER_LEN) % ALIGNMENT) % ALIGNMENT
}

/// The length of the datagram that carries an inner packet of this length.
pub fn datagram_len(inner_len: usize) -> usize {
    HEADER_LEN + inner_len + padding_len(inner_len) + TRAILER_LEN + ICV_LEN
}

/// The longest inner packet whose datagram fits an underlay of this MTU, in octets; 0 when none fits.
pub fn inner_mtu_bytes(underlay_mtu_bytes: usize, outer_is_ipv6: bool) -> usize {
    let outer = if outer_is_ipv6 { OUTER_V6_LEN } else { OUTER_V4_LEN };
    let room = underlay_mtu_bytes.saturating_sub(outer + HEADER_LEN + ICV_LEN);
    (room - room % ALIGNMENT).saturating_sub(TRAILER_LEN)
}

/// Writes padding and trailer after the `inner_len` octets at the front of `body`. Returns the length of all three,
/// or `None` when `body` is too short for them.
pub fn write_trailer(body: &mut [u8], inner_len: usize, next_header: NextHeader) -> Option<usize> {
    let padding = padding_len(inner_len);
    let end = inner_len.checked_add(padding + TRAILER_LEN)?;
    let tail = body.get_mut(inner_len..end)?;
    for (octet, value) in tail.iter_mut().zip(1..) {
        *octet = value;
    }
    let (_, trailer) = tail.split_last_chunk_mut::<TRAILER_LEN>()?;
    *trailer = [padding as u8, next_header as u8];
    Some(end)
}

/// What is wrong with the trailer of an authentic packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TrailerError {
    /// The padding is longer than the packet, is not 1, 2, 3, ..., or does not end on a word.
    #[error("bad ESP padding")]
    Padding,
    /// Neither IPv4 (4) nor IPv6 (41) nor nothing (59).
    #[error("ESP next header {0} is not carried")]
    NextHeader(u8),
}

/// Reads and checks padding and trailer at the end of a decrypted body: the length of what comes before them, and
/// what that is.
pub fn parse_trailer(body: &[u8]) -> Result<(usize, NextHeader), TrailerError> {
    let (rest, &[padding, next_header]) = body.split_last_chunk().ok_or(TrailerError::Padding)?;
    let inner_len = rest.len().checked_sub(usize::from(padding)).ok_or(TrailerError::Padding)?;
    let in_order = rest.iter().skip(inner_len).zip(1u8..).all(|(&octet, value)| octet == value);
    if !in_order || !body.len().is_multiple_of(ALIGNMENT) {
        return Err(TrailerError::Padding);
    }
    let next_header = NextHeader::from_octet(next_header).ok_or(TrailerError::NextHeader(next_header))?;
    Ok((inner_len, next_header))
}

/// What a node tells a peer inside an authenticated packet with next header 59: the first octet is the kind, octets
/// after what a kind needs are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlMessage {
    /// Kind 0, or no octet at all: keeps a NAT's mapping alive; says that this SA works.
    Nothing,
    /// Kind 1 asks the peer to answer under its own newest SA, kind 2 is the answer: a pair is confirmed by either.
    Probe {
        /// Kind 1.
        answer_wanted: bool,
    },
    /// Kind 3, then a length of two octets, then zeros up to that length: asks the peer whether a packet of so many inner
    /// octets comes through (RFC 8899).
    PathProbe {
        /// Octets of this message, at least [`ControlMessage::MAX_HEAD_LEN`].
        inner_bytes: u16,
    },
    /// Kind 4, then the length: one of so many octets came.
    PathAnswer {
        /// Octets of the probe.
        inner_bytes: u16,
    },
    /// A kind of a later version, or a known one that is malformed: ignored and counted.
    Unknown(u8),
}

impl ControlMessage {
    /// Octets of the longest message without its padding.
    pub const MAX_HEAD_LEN: usize = 3;

    /// Reads the payload of a packet with next header 59.
    pub fn parse(payload: &[u8]) -> ControlMessage {
        match *payload {
            [] | [0, ..] => ControlMessage::Nothing,
            [1, ..] => ControlMessage::Probe { answer_wanted: true },
            [2, ..] => ControlMessage::Probe { answer_wanted: false },
            [3, high, low, ..] if usize::from(u16::from_be_bytes([high, low])) == payload.len() => {
                ControlMessage::PathProbe { inner_bytes: u16::from_be_bytes([high, low]) }
            }
            [4, high, low, ..] => ControlMessage::PathAnswer { inner_bytes: u16::from_be_bytes([high, low]) },
            [kind, ..] => ControlMessage::Unknown(kind),
        }
    }

    /// Octets of the payload that carries it.
    pub fn payload_len(self) -> usize {
        match self {
            ControlMessage::PathProbe { inner_bytes } => usize::from(inner_bytes),
            ControlMessage::PathAnswer { .. } => ControlMessage::MAX_HEAD_LEN,
            ControlMessage::Nothing | ControlMessage::Probe { .. } | ControlMessage::Unknown(_) => 1,
        }
    }

    /// Writes the payload for a packet with next header 59 into [`ControlMessage::payload_len`] octets; `None` when
    /// `room` is not of this length.
    pub fn write(self, room: &mut [u8]) -> Option<()> {
        let with = |kind, inner_bytes: u16| {
            let [high, low] = inner_bytes.to_be_bytes();
            [kind, high, low]
        };
        let head = match self {
            ControlMessage::Nothing => [0; 3],
            ControlMessage::Probe { answer_wanted: true } => [1, 0, 0],
            ControlMessage::Probe { answer_wanted: false } => [2, 0, 0],
            ControlMessage::PathProbe { inner_bytes } => with(3, inner_bytes),
            ControlMessage::PathAnswer { inner_bytes } => with(4, inner_bytes),
            ControlMessage::Unknown(kind) => [kind, 0, 0],
        };
        if room.len() != self.payload_len() {
            return None;
        }
        room.fill(0);
        room.iter_mut().zip(head).for_each(|(octet, value)| *octet = value);
        Some(())
    }
}

#[cfg(test)]
mod tests;
