//! Layout, padding and sorting of ESP datagrams.

use super::*;
use proptest::prelude::*;

#[test]
fn the_header_is_laid_out_as_in_rfc_4106() {
    let header = Header { spi: Spi(0x0102_0304), sequence_low: 0x0506_0708, iv: 0x090a_0b0c_0d0e_0f10 };
    assert_eq!(header.emit(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    assert_eq!(Header::parse(&header.emit()), Some(header));
    assert_eq!(Header::parse(&header.emit()[..15]), None);
}

#[test]
fn payloads_are_sorted() {
    assert_eq!(classify(&[]), Datagram::TooShort);
    assert_eq!(classify(&[0xff]), Datagram::KeepAlive);
    assert_eq!(classify(&[0xff, 0xff]), Datagram::TooShort);
    assert_eq!(classify(&[0]), Datagram::TooShort);
    assert_eq!(classify(&[0; 4]), Datagram::SpiZero);
    assert_eq!(classify(&[0; 100]), Datagram::SpiZero);
    assert_eq!(classify(&[1; MIN_DATAGRAM_LEN - 1]), Datagram::TooShort);
    assert!(matches!(classify(&[1; MIN_DATAGRAM_LEN]), Datagram::Esp(Header { spi: Spi(0x0101_0101), .. })));
}

#[test]
fn the_overhead_is_that_of_the_specification() {
    assert_eq!(inner_mtu_bytes(1500, false), 1438);
    assert_eq!(inner_mtu_bytes(1500, true), 1418);
    // Inner IPv6 needs 1280, which padding brings to 1284: two octets more of the underlay than the overhead alone.
    assert_eq!((inner_mtu_bytes(1343, false), inner_mtu_bytes(1344, false)), (1278, 1282));
    assert_eq!((inner_mtu_bytes(1363, true), inner_mtu_bytes(1364, true)), (1278, 1282));
    assert_eq!(inner_mtu_bytes(0, false), 0);
    assert_eq!(inner_mtu_bytes(61, false), 0);
}

#[test]
fn bad_trailers_are_refused() {
    assert_eq!(parse_trailer(&[]), Err(TrailerError::Padding));
    assert_eq!(parse_trailer(&[4]), Err(TrailerError::Padding));
    assert_eq!(parse_trailer(&[0, 0, 3, 4]), Err(TrailerError::Padding));
    assert_eq!(parse_trailer(&[1, 1, 2, 4]), Err(TrailerError::Padding));
    assert_eq!(parse_trailer(&[9, 1, 1, 5]), Err(TrailerError::NextHeader(5)));
    assert_eq!(parse_trailer(&[9, 1, 0, 4, 4]), Err(TrailerError::Padding));
    assert_eq!(parse_trailer(&[9, 1, 1, 4]), Ok((1, NextHeader::Ipv4)));
    assert_eq!(parse_trailer(&[1, 2, 2, 59]), Ok((0, NextHeader::None)));
    // Longer padding than ours is legal (RFC 4303, section 2.4), up to the whole body.
    assert_eq!(parse_trailer(&[1, 2, 3, 4, 5, 6, 6, 41]), Ok((0, NextHeader::Ipv6)));
    assert_eq!(parse_trailer(&[1, 2, 3, 4, 5, 6, 7, 41]), Err(TrailerError::Padding));
}

#[test]
fn control_messages_round_trip() {
    for kind in 0..=255u8 {
        let message = ControlMessage::parse(&[kind]);
        let mut payload = [0xee];
        assert_eq!((message.payload_len(), message.write(&mut payload)), (1, Some(())));
        assert_eq!(payload, [kind]);
        if !(3..=4).contains(&kind) {
            assert_eq!(ControlMessage::parse(&[kind, 1, 2, 3]), message);
        }
        assert_eq!(matches!(message, ControlMessage::Unknown(_)), kind > 2);
    }
    assert_eq!(ControlMessage::parse(&[]), ControlMessage::Nothing);
    assert_eq!(ControlMessage::parse(&[1]), ControlMessage::Probe { answer_wanted: true });
    assert_eq!(ControlMessage::parse(&[2]), ControlMessage::Probe { answer_wanted: false });
}

#[test]
fn path_probes_are_as_long_as_they_say() {
    for inner_bytes in [3, 4, 1198, 8938, u16::MAX] {
        let probe = ControlMessage::PathProbe { inner_bytes };
        let mut payload = vec![0xee; probe.payload_len()];
        assert_eq!(probe.write(&mut payload), Some(()));
        assert_eq!(payload.len(), usize::from(inner_bytes));
        assert_eq!(ControlMessage::parse(&payload), probe);
        assert_eq!(ControlMessage::parse(&payload[..payload.len() - 1]), ControlMessage::Unknown(3));
        payload.push(0);
        assert_eq!(ControlMessage::parse(&payload), ControlMessage::Unknown(3));
        let answer = ControlMessage::PathAnswer { inner_bytes };
        let mut payload = [0xee; 3];
        assert_eq!(answer.write(&mut payload), Some(()));
        assert_eq!(ControlMessage::parse(&payload), answer);
        assert_eq!(answer.write(&mut [0; 2]), None);
    }
}

proptest! {
    #[test]
    fn headers_round_trip(spi: u32, sequence_low: u32, iv: u64) {
        let header = Header { spi: Spi(spi), sequence_low, iv };
        prop_assert_eq!(Header::parse(&header.emit()), Some(header));
    }

    #[test]
    fn parsed_headers_emit_the_same_octets(octets in proptest::collection::vec(any::<u8>(), 16..64)) {
        let header = Header::parse(&octets).unwrap();
        prop_assert_eq!(&header.emit()[..], &octets[..16]);
    }

    #[test]
    fn trailers_round_trip(inner in proptest::collection::vec(any::<u8>(), 0..64), kind in 0usize..3) {
        let next_header = [NextHeader::Ipv4, NextHeader::Ipv6, NextHeader::None][kind];
        let mut body = inner.clone();
        body.resize(inner.len() + MAX_EMITTED_PADDING + TRAILER_LEN, 0xee);
        let end = write_trailer(&mut body, inner.len(), next_header).unwrap();
        prop_assert_eq!(end % ALIGNMENT, 0);
        prop_assert_eq!(end + HEADER_LEN + ICV_LEN, datagram_len(inner.len()));
        prop_assert_eq!(parse_trailer(&body[..end]), Ok((inner.len(), next_header)));
        prop_assert_eq!(&body[..inner.len()], inner.as_slice());
        prop_assert_eq!(write_trailer(&mut body[..end - 1], inner.len(), next_header), None);
    }

    #[test]
    fn an_inner_packet_of_the_mtu_just_fits(mtu in 100usize..9100, ipv6: bool) {
        let outer = if ipv6 { 48 } else { 28 };
        let inner = inner_mtu_bytes(mtu, ipv6);
        prop_assert!(outer + datagram_len(inner) <= mtu);
        prop_assert!(outer + datagram_len(inner + 1) > mtu);
    }
}
