//! What a router tells the sender of a packet that is too long for the way ahead: ICMP "fragmentation needed" (RFC 792,
//! RFC 1191), ICMPv6 "packet too big" (RFC 4443, section 3.2).
//!
//! It comes from the packet's own destination: there is no router on an overlay network that it could come from. An IPv4
//! packet that may be fragmented is answered too; the sender's kernel then sends shorter fragments by itself.

use super::checksum::Sum;
use crate::wire::ip::IpView;
use std::net::IpAddr;

/// Octets of the answer at most (RFC 1812, section 4.3.2.3); below the minimum MTU of IPv6, too.
const MAX_BYTES: usize = 576;
const V4_HEADER_LEN: usize = 20;
const V6_HEADER_LEN: usize = 40;
/// Type, code, checksum, and what the type needs, which ends with the MTU.
const ICMP_HEADER_LEN: usize = 8;
const HOPS: u8 = 64;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// The least MTU that may be told over IPv6 (RFC 8200, section 5).
const MIN_V6_MTU_BYTES: u16 = 1280;

/// The answer, a whole IP packet.
pub struct TooBig {
    octets: [u8; MAX_BYTES],
    len: usize,
}

impl TooBig {
    /// Answers `packet`, of which `view` tells the header: so many octets are carried. `None` when there is no answer to
    /// it: to ICMP errors, to all but the first fragment, and to what IPv6 could not send any shorter.
    pub fn answer(packet: &[u8], view: &IpView, carried_bytes: u16) -> Option<TooBig> {
        let later_fragment = matches!(packet, [0x40..=0x4f, _, _, _, _, _, high, low, ..] if u16::from_be_bytes([*high, *low]) & 0x1fff != 0);
        let payload = packet.get(view.header_len..)?;
        let icmp_error = match view.protocol {
            ICMP if !view.is_ipv6() => !matches!(payload.first(), Some(0 | 8 | 13 | 14)),
            ICMPV6 => !matches!(payload.first(), Some(128..)),
            _ => false,
        };
        if later_fragment || icmp_error || view.destination.is_multicast() {
            return None;
        }
        match (view.source, view.destination) {
            (IpAddr::V4(source), IpAddr::V4(from)) => {
                Some(answer_v4(packet, from.octets(), source.octets(), carried_bytes))
            }
            (IpAddr::V6(source), IpAddr::V6(from)) if carried_bytes >= MIN_V6_MTU_BYTES => {
                Some(answer_v6(packet, from.octets(), source.octets(), carried_bytes))
            }
            _ => None,
        }
    }

    /// The packet.
    pub fn packet(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    /// A packet of these headers and as much of the quoted packet as there is room for.
    fn of(header: &[u8], icmp: [u8; ICMP_HEADER_LEN], quoted: &[u8]) -> TooBig {
        let mut octets = [0; MAX_BYTES];
        let parts = header.iter().chain(&icmp).chain(quoted);
        let len = octets.iter_mut().zip(parts).map(|(octet, value)| *octet = *value).count();
        TooBig { octets, len }
    }
}

/// Octets of `packet` that are quoted behind a header of this length.
fn quoted(packet: &[u8], header_len: usize) -> &[u8] {
    packet.get(..MAX_BYTES - header_len - ICMP_HEADER_LEN).unwrap_or(packet)
}

fn answer_v4(packet: &[u8], from: [u8; 4], to: [u8; 4], carried_bytes: u16) -> TooBig {
    let quoted = quoted(packet, V4_HEADER_LEN);
    let total = (V4_HEADER_LEN + ICMP_HEADER_LEN + quoted.len()) as u16;
    let [high, low] = total.to_be_bytes();
    let [a, b, c, d] = from;
    let [e, f, g, h] = to;
    let header = |[x, y]: [u8; 2]| [0x45, 0, high, low, 0, 0, 0x40, 0, HOPS, ICMP, x, y, a, b, c, d, e, f, g, h];
    let header = header(Sum::default().add(&header([0, 0])).checksum());
    let [mtu_high, mtu_low] = carried_bytes.to_be_bytes();
    let icmp = |[x, y]: [u8; 2]| [3, 4, x, y, 0, 0, mtu_high, mtu_low];
    let sum = Sum::default().add(&icmp([0, 0])).add(quoted);
    TooBig::of(&header, icmp(sum.checksum()), quoted)
}

fn answer_v6(packet: &[u8], from: [u8; 16], to: [u8; 16], carried_bytes: u16) -> TooBig {
    let quoted = quoted(packet, V6_HEADER_LEN);
    let length = (ICMP_HEADER_LEN + quoted.len()) as u16;
    let [high, low] = length.to_be_bytes();
    let mut header = [0; V6_HEADER_LEN];
    let parts = [0x60, 0, 0, 0, high, low, ICMPV6, HOPS].into_iter().chain(from).chain(to);
    header.iter_mut().zip(parts).for_each(|(octet, value)| *octet = value);
    let [mtu_high, mtu_low] = carried_bytes.to_be_bytes();
    let icmp = |[x, y]: [u8; 2]| [2, 0, x, y, 0, 0, mtu_high, mtu_low];
    let pseudo = Sum::default().add(&from).add(&to).add_u16(length).add_u16(u16::from(ICMPV6));
    let sum = pseudo.add(&icmp([0, 0])).add(quoted);
    TooBig::of(&header, icmp(sum.checksum()), quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    fn udp(v6: bool, octets: usize) -> Vec<u8> {
        let builder = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 9)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        };
        let mut packet = Vec::new();
        builder.udp(1, 2).write(&mut packet, &vec![7; octets]).unwrap();
        packet
    }

    fn answer(packet: &[u8], carried: u16) -> Option<Vec<u8>> {
        Some(TooBig::answer(packet, &IpView::parse(packet).unwrap(), carried)?.packet().to_vec())
    }

    #[test]
    fn the_answer_is_a_whole_packet_from_the_destination_that_quotes_the_packet() {
        for v6 in [false, true] {
            for octets in [9, 1400] {
                let packet = udp(v6, octets);
                let answer = answer(&packet, 1300).unwrap();
                let (asked, told) = (IpView::parse(&packet).unwrap(), IpView::parse(&answer).unwrap());
                assert_eq!((told.source, told.destination), (asked.destination, asked.source));
                assert_eq!(told.total_len, answer.len());
                let sliced = SlicedPacket::from_ip(&answer).unwrap();
                let quoted = match (&sliced.transport, &sliced.net) {
                    (Some(TransportSlice::Icmpv4(icmp)), Some(NetSlice::Ipv4(ip))) => {
                        let header = ip.header().to_header();
                        assert_eq!(header.header_checksum, header.calc_header_checksum());
                        let Icmpv4Type::DestinationUnreachable(
                            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu },
                        ) = icmp.icmp_type()
                        else {
                            panic!()
                        };
                        assert_eq!(next_hop_mtu, 1300);
                        assert_eq!(icmp.header().icmp_type.calc_checksum(icmp.payload()), icmp.checksum());
                        icmp.payload()
                    }
                    (Some(TransportSlice::Icmpv6(icmp)), Some(NetSlice::Ipv6(ip))) => {
                        assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: 1300 });
                        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
                        icmp.payload()
                    }
                    other => panic!("{other:?}"),
                };
                assert!(packet.starts_with(quoted) && (quoted.len() == packet.len() || answer.len() == MAX_BYTES));
            }
        }
    }

    #[test]
    fn some_packets_have_no_answer() {
        let error = answer(&udp(false, 1400), 1300).unwrap();
        assert!(answer(&error, 500).is_none(), "an ICMP error");
        assert!(answer(&answer(&udp(true, 1400), 1300).unwrap(), 1280).is_none(), "an ICMPv6 error");
        let mut fragment = udp(false, 1400);
        fragment[7] = 1;
        assert!(answer(&fragment, 1300).is_none(), "not the first fragment");
        assert!(answer(&udp(true, 1400), 1279).is_none(), "IPv6 has no shorter packets");
        assert!(answer(&udp(false, 1400), 1218).is_some());
    }
}
