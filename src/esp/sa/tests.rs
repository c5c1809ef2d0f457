//! Packets: published and golden vectors, an independent construction, and all that must not open.

use super::*;
use crate::esp::counter::HARD_LIMIT_PACKETS;
use crate::esp::replay::REPLAY_WINDOW_PACKETS;
use crate::esp::testing::{BOTH_TRANSFORMS, Golden, hex, identity, keys};
use crate::types::Key32;
use crate::wire::esp::padding_len;
use aes_gcm::aead::{Aead, KeyInit, Payload};
use proptest::prelude::*;

const NOW: Time = Time(1);

fn pair(transform: Transform) -> (OutboundSa, InboundSa) {
    pair_at(transform, 0)
}

fn pair_at(transform: Transform, used: u64) -> (OutboundSa, InboundSa) {
    let keys = keys(&identity(transform));
    (OutboundSa::with_counter(&keys, used), InboundSa::new(&keys, CipherLibrary::AwsLc))
}

fn seal(sa: &mut OutboundSa, inner: &[u8], next_header: NextHeader) -> Result<Vec<u8>, EspDrop> {
    let mut buffer = [&[0xaa; HEADROOM], inner, &[0xaa; TAILROOM]].concat();
    let sealed = sa.seal(&mut buffer, inner.len(), next_header)?;
    assert!(buffer[sealed.datagram_len..].iter().all(|&octet| octet == 0xaa), "wrote past the datagram");
    buffer.truncate(sealed.datagram_len);
    Ok(buffer)
}

fn open(sa: &mut InboundSa, datagram: &[u8]) -> Result<(Vec<u8>, NextHeader), EspDrop> {
    let mut datagram = datagram.to_vec();
    let opened = sa.open(&mut datagram, NOW)?;
    Ok((datagram[opened.payload].to_vec(), opened.next_header))
}

#[test]
fn the_golden_packets_hold() {
    for golden in Golden::all() {
        for packet in &golden.packets {
            let next_header = NextHeader::from_octet(packet.next_header).unwrap();
            let mut out = OutboundSa::with_counter(&golden.keys(), packet.sequence - 1);
            assert_eq!(seal(&mut out, &hex(&packet.inner), next_header), Ok(hex(&packet.datagram)));
            let mut inbound = InboundSa::new(&golden.keys(), CipherLibrary::Portable);
            assert_eq!(open(&mut inbound, &hex(&packet.datagram)), Ok((hex(&packet.inner), next_header)));
            assert_eq!(inbound.sequence(), packet.sequence);
        }
    }
}

/// RFC 4106 and RFC 4543 written down a second time, over `aes-gcm` and with allocations.
fn oracle(transform: Transform, spi: Spi, sequence: u64, inner: &[u8], next_header: NextHeader) -> Vec<u8> {
    let cipher = aes_gcm::Aes256Gcm::new(&[0x42; 32].into());
    let padding: Vec<u8> = (1..=3).take(padding_len(inner.len())).collect();
    let body = [inner, &padding, &[padding.len() as u8, next_header as u8]].concat();
    let iv = sequence.to_be_bytes();
    let nonce: [u8; 12] = [&[1, 2, 3, 4], iv.as_slice()].concat().try_into().unwrap();
    let extended = [&spi.0.to_be_bytes(), iv.as_slice()].concat();
    let header = [&spi.0.to_be_bytes(), &(sequence as u32).to_be_bytes(), iv.as_slice()].concat();
    let protected = match transform {
        Transform::Gcm => cipher.encrypt(&nonce.into(), Payload { msg: &body, aad: &extended }).unwrap(),
        Transform::Gmac => {
            let aad = [extended.as_slice(), &iv, &body].concat();
            [body, cipher.encrypt(&nonce.into(), Payload { msg: &[], aad: &aad }).unwrap()].concat()
        }
    };
    [header, protected].concat()
}

#[test]
fn all_sizes_round_trip_and_equal_the_oracle() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform);
        let spi = out.spi();
        for len in 0..=1500usize {
            let inner: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
            let next_header = [NextHeader::Ipv4, NextHeader::Ipv6, NextHeader::None][len % 3];
            let datagram = seal(&mut out, &inner, next_header).unwrap();
            assert_eq!(datagram.len() % 4, 0);
            assert_eq!(datagram, oracle(transform, spi, len as u64 + 1, &inner, next_header), "{len} octets");
            assert_eq!(open(&mut inbound, &datagram), Ok((inner, next_header)), "{len} octets");
        }
        assert_eq!(out.traffic().packets, 1501);
        assert_eq!(inbound.traffic(), SaTraffic { last_authenticated: Some(NOW), ..out.traffic() });
        assert_eq!(out.traffic().bytes, 1500 * 1501 / 2);
    }
}

#[test]
fn the_largest_datagram_round_trips() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform);
        let inner = vec![0x5a; 65_535 - HEADROOM - TAILROOM];
        let datagram = seal(&mut out, &inner, NextHeader::Ipv4).unwrap();
        assert_eq!(open(&mut inbound, &datagram).map(|(inner, _)| inner), Ok(inner));
    }
}

#[test]
fn only_gmac_leaves_the_inner_packet_readable() {
    let marker = b"a marker that must not be seen on the wire";
    let visible = |transform| {
        let datagram = seal(&mut pair(transform).0, marker, NextHeader::Ipv4).unwrap();
        datagram.windows(marker.len()).any(|window| window == marker)
    };
    assert!(!visible(Transform::Gcm));
    assert!(visible(Transform::Gmac));
}

#[test]
fn no_changed_bit_opens() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair_at(transform, 1 << 33);
        let datagram = seal(&mut out, b"small packet", NextHeader::Ipv4).unwrap();
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let expected = match bit / 32 {
                0 => EspDrop::UnknownSpi,
                1 | 3 => EspDrop::IvMismatch,
                _ => EspDrop::BadTag,
            };
            assert_eq!(open(&mut inbound, &changed), Err(expected), "{transform:?} bit {bit}");
        }
        assert_eq!(inbound.traffic(), SaTraffic::default());
        assert!(open(&mut inbound, &datagram).is_ok(), "a forgery used up the number");
    }
}

#[test]
fn no_other_length_opens() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform);
        let datagram = seal(&mut out, b"small packet", NextHeader::Ipv4).unwrap();
        for len in 0..datagram.len() {
            let expected = if len < MIN_DATAGRAM_LEN { EspDrop::TooShort } else { EspDrop::BadTag };
            assert_eq!(open(&mut inbound, &datagram[..len]), Err(expected), "{len} octets");
        }
        let longer = [datagram.as_slice(), &[0]].concat();
        assert_eq!(open(&mut inbound, &longer), Err(EspDrop::BadTag));
    }
}

#[test]
fn the_transform_and_every_field_are_bound() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, _) = pair(transform);
        let datagram = seal(&mut out, b"small packet", NextHeader::Ipv4).unwrap();
        let other = if transform == Transform::Gcm { Transform::Gmac } else { Transform::Gcm };
        // The SPI does not name the transform: the same key under the other one must refuse it.
        let mut confused = InboundSa::new(&keys(&identity(other)), CipherLibrary::AwsLc);
        assert_eq!(confused.spi(), out.spi());
        assert_eq!(open(&mut confused, &datagram), Err(EspDrop::BadTag));
        let other_salt = SaKeys::external(&identity(transform), Key32::new([0x42; 32]), [1, 2, 3, 5]);
        assert_eq!(open(&mut InboundSa::new(&other_salt, CipherLibrary::AwsLc), &datagram), Err(EspDrop::BadTag));
    }
}

#[test]
fn a_packet_is_accepted_once() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform);
        let first = seal(&mut out, b"1", NextHeader::None).unwrap();
        let second = seal(&mut out, b"2", NextHeader::None).unwrap();
        let mut copy = second.clone();
        let opened = inbound.open(&mut copy, NOW).unwrap();
        assert_eq!((opened.sequence, opened.newest, opened.first), (2, true, true));
        let mut copy = first.clone();
        let opened = inbound.open(&mut copy, NOW).unwrap();
        assert_eq!((opened.sequence, opened.newest, opened.first), (1, false, false));
        for datagram in [first, second] {
            assert_eq!(open(&mut inbound, &datagram), Err(EspDrop::Replayed));
        }
    }
}

#[test]
fn a_packet_behind_the_window_is_refused() {
    let (mut out, mut inbound) = pair(Transform::Gcm);
    let old = seal(&mut out, b"old", NextHeader::Ipv4).unwrap();
    let (mut later, _) = pair_at(Transform::Gcm, REPLAY_WINDOW_PACKETS);
    let new = seal(&mut later, b"new", NextHeader::Ipv4).unwrap();
    assert!(open(&mut inbound, &new).is_ok());
    assert_eq!(open(&mut inbound, &old), Err(EspDrop::TooOld));
}

#[test]
fn sequence_numbers_go_on_past_2_to_the_32() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair_at(transform, (1 << 32) - 3);
        for sequence in (1u64 << 32) - 2..(1 << 32) + 3 {
            let datagram = seal(&mut out, b"x", NextHeader::Ipv4).unwrap();
            assert_eq!(datagram[4..8], (sequence as u32).to_be_bytes());
            assert_eq!(datagram[8..16], sequence.to_be_bytes());
            assert!(open(&mut inbound, &datagram).is_ok());
            assert_eq!((out.sequence(), inbound.sequence()), (sequence, sequence));
        }
    }
}

#[test]
fn the_high_half_of_the_sequence_number_is_authenticated() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform);
        let mut datagram = seal(&mut out, b"x", NextHeader::Ipv4).unwrap();
        datagram[11] = 1;
        assert_eq!(open(&mut inbound, &datagram), Err(EspDrop::BadTag));
    }
}

#[test]
fn the_limits_reach_the_caller() {
    let (mut out, mut inbound) = pair_at(Transform::Gcm, SOFT_LIMIT_PACKETS - 2);
    let mut said = Vec::new();
    for _ in 0..3 {
        let mut buffer = [0; HEADROOM + 1 + TAILROOM];
        let sealed = out.seal(&mut buffer, 1, NextHeader::Ipv4).unwrap();
        said.push((sealed.soft_limit, out.is_past_soft_limit()));
        assert!(open(&mut inbound, &buffer[..sealed.datagram_len]).is_ok());
    }
    assert_eq!(said, [(false, false), (true, true), (false, true)]);

    let (mut out, mut inbound) = pair_at(Transform::Gcm, HARD_LIMIT_PACKETS - 1);
    let last = seal(&mut out, b"last", NextHeader::Ipv4).unwrap();
    assert!(open(&mut inbound, &last).is_ok());
    for _ in 0..2 {
        assert_eq!(seal(&mut out, b"more", NextHeader::Ipv4), Err(EspDrop::Exhausted));
    }
    assert_eq!(out.traffic().packets, 1);
}

#[test]
fn a_buffer_without_room_uses_no_number() {
    let (mut out, _) = pair(Transform::Gmac);
    let needed = datagram_len(5);
    assert_eq!(out.seal(&mut vec![0; needed - 1], 5, NextHeader::Ipv4), Err(EspDrop::NoRoom));
    assert_eq!(out.seal(&mut [], 0, NextHeader::None), Err(EspDrop::NoRoom));
    assert_eq!(out.seal(&mut [0; 64], usize::MAX, NextHeader::None), Err(EspDrop::NoRoom));
    assert_eq!(out.sequence(), 0);
    let sealed = out.seal(&mut vec![0; needed], 5, NextHeader::Ipv4);
    assert_eq!(sealed, Ok(Sealed { datagram_len: needed, soft_limit: false }));
}

#[test]
fn tailroom_is_always_enough() {
    for len in 0..8 {
        assert!(datagram_len(len) <= HEADROOM + len + TAILROOM);
    }
    assert!((0..8).any(|len| datagram_len(len) == HEADROOM + len + TAILROOM));
}

#[test]
fn an_authentic_packet_with_a_bad_trailer_is_dropped_and_counts_as_received() {
    for transform in BOTH_TRANSFORMS {
        for (body, expected) in [
            ([9, 2, 1, 4], EspDrop::BadPadding),
            ([9, 9, 3, 4], EspDrop::BadPadding),
            ([9, 9, 0, 6], EspDrop::BadNextHeader),
        ] {
            let (out, mut inbound) = pair(transform);
            let mut datagram = [&[0; HEADER_LEN], body.as_slice(), &[0; ICV_LEN]].concat();
            out.core.protect(PacketNumber { sequence: 1, iv: 1 }, &mut datagram, body.len()).unwrap();
            assert_eq!(open(&mut inbound, &datagram), Err(expected));
            assert_eq!(open(&mut inbound, &datagram), Err(EspDrop::Replayed));
            assert_eq!(inbound.traffic().packets, 0);
        }
    }
}

#[test]
fn a_suspended_sa_neither_sends_nor_receives_and_starts_again_behind_itself() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform);
        let packets: Vec<_> = (0..4).map(|_| seal(&mut out, b"x", NextHeader::Ipv4).unwrap()).collect();
        out.set_enabled(false);
        assert_eq!(seal(&mut out, b"x", NextHeader::Ipv4), Err(EspDrop::Suspended));
        out.set_enabled(true);
        let after = seal(&mut out, b"x", NextHeader::Ipv4).unwrap();
        assert_eq!(after[15], 5);

        assert!(open(&mut inbound, &packets[2]).is_ok());
        inbound.suspend();
        assert_eq!(open(&mut inbound, &packets[3]), Err(EspDrop::Suspended));
        inbound.resume();
        for (packet, expected) in packets.iter().zip([false, false, false, true]) {
            assert_eq!(open(&mut inbound, packet).is_ok(), expected);
        }
        assert!(open(&mut inbound, &after).is_ok());
    }
}

#[test]
fn enabling_an_enabled_sa_changes_nothing() {
    let (mut out, mut inbound) = pair(Transform::Gcm);
    let packets: Vec<_> = (0..2).map(|_| seal(&mut out, b"x", NextHeader::Ipv4).unwrap()).collect();
    assert!(open(&mut inbound, &packets[1]).is_ok());
    inbound.resume();
    assert!(open(&mut inbound, &packets[0]).is_ok(), "a late packet was refused");
}

proptest! {
    #[test]
    fn random_octets_never_open(mut datagram in proptest::collection::vec(any::<u8>(), 0..200), gcm: bool, fix: bool) {
        let (out, mut inbound) = pair(if gcm { Transform::Gcm } else { Transform::Gmac });
        if fix && datagram.len() >= HEADER_LEN {
            let sequence = u64::from(datagram[15]) + 1;
            let header = Header { spi: out.spi(), sequence_low: sequence as u32, iv: sequence };
            datagram[..HEADER_LEN].copy_from_slice(&header.emit());
        }
        prop_assert!(inbound.open(&mut datagram, NOW).is_err());
        prop_assert_eq!(inbound.sequence(), 0);
    }
}
