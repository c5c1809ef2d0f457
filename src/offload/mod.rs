//! What TUN devices and network cards leave to the sender: the virtio header of a TUN device, and checksums. Pure
//! functions over byte slices.
//!
//! The devices are opened with the offload mask 0, so packets come whole and finished; a checksum that is left open
//! all the same is completed here, and a packet that is still to be segmented is refused.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use etherparse::checksum::Sum16BitWords;

/// Octets of the header that a TUN device with IFF_VNET_HDR puts in front of each packet (`struct virtio_net_hdr`).
pub const VNET_HEADER_LEN: usize = 10;

/// The header of a finished packet, for writing.
pub const FINISHED: [u8; VNET_HEADER_LEN] = [0; VNET_HEADER_LEN];

/// The bit in the flags that says that the checksum covers the pseudo-header only.
const FLAG_NEEDS_CHECKSUM: u8 = 1;
/// The packet is not to be segmented.
const GSO_NONE: u8 = 0;

/// A packet that cannot be finished: to be segmented, or a checksum outside of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet is unfinished")]
pub struct Unfinished;

/// Does what the virtio header leaves to do to `packet`.
pub fn finish(header: &[u8; VNET_HEADER_LEN], packet: &mut [u8]) -> Result<(), Unfinished> {
    let &[flags, gso_type, _, _, _, _, start_0, start_1, offset_0, offset_1] = header;
    if gso_type != GSO_NONE {
        return Err(Unfinished);
    }
    if flags & FLAG_NEEDS_CHECKSUM == 0 {
        return Ok(());
    }
    // The header is in the byte order of the machine.
    let start = usize::from(u16::from_ne_bytes([start_0, start_1]));
    let offset = usize::from(u16::from_ne_bytes([offset_0, offset_1]));
    complete_checksum(packet.get_mut(start..).ok_or(Unfinished)?, offset)
}

/// Replaces the pseudo-header's sum at `offset` by the checksum over `segment` (RFC 1071).
fn complete_checksum(segment: &mut [u8], offset: usize) -> Result<(), Unfinished> {
    let sum = Sum16BitWords::new().add_slice(segment).ones_complement();
    // 0 would say "no checksum" in UDP (RFC 768), and is the same number as 0xffff elsewhere.
    let sum = if sum == 0 { u16::MAX } else { sum };
    let field = segment.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<2>()).ok_or(Unfinished)?;
    // The library sums words in the byte order of the machine.
    *field = sum.to_ne_bytes();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp_packet(payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 9], 64).udp(1000, 2000);
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    fn header(flags: u8, gso_type: u8, start: u16, offset: u16) -> [u8; VNET_HEADER_LEN] {
        let mut header = [0; VNET_HEADER_LEN];
        (header[0], header[1]) = (flags, gso_type);
        header[6..8].copy_from_slice(&start.to_ne_bytes());
        header[8..].copy_from_slice(&offset.to_ne_bytes());
        header
    }

    /// What the kernel leaves: the folded sum of addresses, protocol and length, not complemented.
    fn leave_pseudo_sum(packet: &mut [u8]) {
        let length = (packet.len() - 20) as u16;
        let sum = Sum16BitWords::new()
            .add_slice(&packet[12..20])
            .add_2bytes([0, 17])
            .add_2bytes(length.to_be_bytes())
            .ones_complement();
        packet[26..28].copy_from_slice(&(!sum).to_ne_bytes());
    }

    #[test]
    fn an_open_checksum_is_completed() {
        for payload in [&b"abc"[..], b"", &[0xff; 1000]] {
            let (expected, mut packet) = (udp_packet(payload), udp_packet(payload));
            leave_pseudo_sum(&mut packet);
            assert_ne!(packet, expected);
            assert_eq!(finish(&header(1, 0, 20, 6), &mut packet), Ok(()));
            assert_eq!(packet, expected);
        }
    }

    #[test]
    fn finished_packets_stay_and_impossible_ones_are_refused() {
        let mut packet = udp_packet(b"abc");
        let expected = packet.clone();
        assert_eq!(finish(&FINISHED, &mut packet), Ok(()));
        assert_eq!(finish(&header(2, 0, 9999, 9999), &mut packet), Ok(()));
        for bad in [header(0, 1, 0, 0), header(1, 0, 9999, 0), header(1, 0, 20, 10), header(1, 0, 20, u16::MAX)] {
            assert_eq!(finish(&bad, &mut packet), Err(Unfinished), "{bad:?}");
        }
        assert_eq!(packet, expected);
    }
}
