//! IP views: fields, and that no length ever reaches past the slice.

use super::*;
use etherparse::PacketBuilder;
use proptest::prelude::*;

fn udp_packet(ipv6: bool, payload: &[u8]) -> Vec<u8> {
    let builder = if ipv6 {
        PacketBuilder::ipv6([0xfd; 16], [0xfe; 16], 9)
    } else {
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
    };
    let builder = builder.udp(1, 2);
    let mut out = Vec::new();
    builder.write(&mut out, payload).unwrap();
    out
}

#[test]
fn reads_both_families() {
    let packet = udp_packet(false, b"hello");
    let view = IpView::parse(&packet).unwrap();
    assert_eq!((view.source, view.destination), ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()));
    assert_eq!((view.header_len, view.total_len, view.protocol), (20, 33, 17));
    assert!(!view.is_ipv6() && !view.fragment);

    let packet = udp_packet(true, b"hello");
    let view = IpView::parse(&packet).unwrap();
    assert_eq!((view.source, view.destination), (IpAddr::from([0xfd; 16]), IpAddr::from([0xfe; 16])));
    assert_eq!((view.header_len, view.total_len, view.protocol), (40, 53, 17));
    assert!(view.is_ipv6());
}

#[test]
fn dscp_ecn_and_fragments_are_seen() {
    let mut packet = udp_packet(false, b"hello");
    packet[1] = 0xb9;
    packet[6] = 0x20;
    let view = IpView::parse(&packet).unwrap();
    assert_eq!((view.traffic_class, view.fragment), (0xb9, true));
    let mut packet = udp_packet(true, b"hello");
    packet[0] = 0x6b;
    packet[1] = 0x90;
    assert_eq!(IpView::parse(&packet).unwrap().traffic_class, 0xb9);
}

#[test]
fn lengths_that_lie_are_refused() {
    for ipv6 in [false, true] {
        let packet = udp_packet(ipv6, b"hello");
        assert_eq!(IpView::parse(&packet[..packet.len() - 1]), Err(IpError::Length));
        assert_eq!(IpView::parse(&packet[..10]), Err(IpError::Header));
        let longer = [packet.as_slice(), &[0; 7]].concat();
        assert_eq!(IpView::parse(&longer), IpView::parse(&packet));
    }
    let mut short = udp_packet(false, b"hello");
    short[2..4].copy_from_slice(&19u16.to_be_bytes());
    assert_eq!(IpView::parse(&short), Err(IpError::Length));
    assert_eq!(IpView::parse(&[]), Err(IpError::Version));
    assert_eq!(IpView::parse(&[0x50; 40]), Err(IpError::Version));
}

proptest! {
    #[test]
    fn no_octets_lead_outside_the_slice(mut octets in proptest::collection::vec(any::<u8>(), 0..80), version in 4u8..=6) {
        if let Some(first) = octets.first_mut() {
            *first = (version << 4) | (*first & 0x0f);
        }
        if let Ok(view) = IpView::parse(&octets) {
            prop_assert!(view.header_len <= view.total_len && view.total_len <= octets.len());
            prop_assert_eq!(view.source.is_ipv6(), view.destination.is_ipv6());
        }
    }
}
