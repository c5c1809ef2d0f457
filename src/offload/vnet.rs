//! The header that a TUN device with IFF_VNET_HDR puts in front of each packet (`struct virtio_net_hdr` of
//! linux/virtio_net.h), in the byte order of the machine: what the kernel leaves to the reader, or asks of it.

use std::num::NonZeroU16;

/// Octets of the header.
pub const VNET_HEADER_LEN: usize = 10;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum field holds the sum of the pseudo-header only.
const NEEDS_CHECKSUM: u8 = 1;
/// VIRTIO_NET_HDR_GSO_*.
const GSO_NONE: u8 = 0;
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;
/// VIRTIO_NET_HDR_GSO_ECN: the first segment carries CWR; a bit beside one of the TCP types.
const GSO_ECN: u8 = 0x80;

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over either: each segment is a datagram.
    Udp,
}

/// The packet is a super-packet, to be cut before it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Its protocols.
    pub kind: GsoKind,
    /// Octets of transport payload in each segment but the last.
    pub size: NonZeroU16,
    /// CWR is set, and belongs to the first segment alone.
    pub ecn: bool,
}

/// Where a checksum is to be completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenChecksum {
    /// First octet that it covers, from the start of the packet: that of the transport header.
    pub start: u16,
    /// Where it lies, from `start`.
    pub offset: u16,
}

/// The header as a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// The transport checksum covers the pseudo-header only.
    pub checksum: Option<OpenChecksum>,
    /// The packet is to be cut.
    pub gso: Option<Gso>,
    /// Octets of all headers; a hint, of which nothing may depend.
    pub header_len: u16,
}

/// A packet that cannot be finished: to be cut in a way that nobody asked for, or with an impossible checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet is unfinished")]
pub struct Unfinished;

impl VnetHeader {
    /// The header of a finished packet.
    pub const FINISHED: VnetHeader = VnetHeader { checksum: None, gso: None, header_len: 0 };

    /// Reads the octets. Kinds of segmentation that this module does not know are errors; unknown flags say nothing
    /// that matters.
    pub fn parse(octets: &[u8; VNET_HEADER_LEN]) -> Result<VnetHeader, Unfinished> {
        let &[flags, gso_type, l0, l1, s0, s1, start0, start1, offset0, offset1] = octets;
        let word = |a, b| u16::from_ne_bytes([a, b]);
        let checksum = (flags & NEEDS_CHECKSUM != 0)
            .then(|| OpenChecksum { start: word(start0, start1), offset: word(offset0, offset1) });
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE if gso_type == GSO_NONE => None,
            GSO_TCP_V4 => Some(GsoKind::TcpV4),
            GSO_TCP_V6 => Some(GsoKind::TcpV6),
            GSO_UDP if gso_type == GSO_UDP => Some(GsoKind::Udp),
            _ => return Err(Unfinished),
        };
        let gso = match kind {
            Some(kind) => {
                let size = NonZeroU16::new(word(s0, s1)).ok_or(Unfinished)?;
                Some(Gso { kind, size, ecn: gso_type & GSO_ECN != 0 })
            }
            None => None,
        };
        Ok(VnetHeader { checksum, gso, header_len: word(l0, l1) })
    }

    /// The octets.
    pub fn emit(&self) -> [u8; VNET_HEADER_LEN] {
        let flags = if self.checksum.is_some() { NEEDS_CHECKSUM } else { 0 };
        let gso_type = self.gso.map_or(GSO_NONE, |gso| {
            let kind = match gso.kind {
                GsoKind::TcpV4 => GSO_TCP_V4,
                GsoKind::TcpV6 => GSO_TCP_V6,
                GsoKind::Udp => GSO_UDP,
            };
            if gso.ecn { kind | GSO_ECN } else { kind }
        });
        let [l0, l1] = self.header_len.to_ne_bytes();
        let [s0, s1] = self.gso.map_or(0, |gso| gso.size.get()).to_ne_bytes();
        let [start0, start1] = self.checksum.map_or(0, |checksum| checksum.start).to_ne_bytes();
        let [offset0, offset1] = self.checksum.map_or(0, |checksum| checksum.offset).to_ne_bytes();
        [flags, gso_type, l0, l1, s0, s1, start0, start1, offset0, offset1]
    }
}
