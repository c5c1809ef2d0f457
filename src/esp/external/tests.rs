//! Packets that scapy built, and the ways of numbering that Formic itself does not use.

use super::*;
use crate::esp::replay::REPLAY_WINDOW_PACKETS;
use crate::esp::testing::{BOTH_TRANSFORMS, array, hex};
use crate::esp::{HEADROOM, TAILROOM};
use serde::Deserialize;

const NOW: Time = Time(1);

/// One case of `testdata/scapy_packets.json`, which `scapy_packets.py` makes.
#[derive(Deserialize)]
struct Case {
    transform: String,
    material: String,
    extended: bool,
    spi: u32,
    sequence: u64,
    iv: String,
    datagram: String,
    expect: String,
    inner: String,
    next_header: u8,
}

impl Case {
    fn all() -> Vec<Case> {
        serde_json::from_str(include_str!("../testdata/scapy_packets.json")).unwrap()
    }

    fn transform(&self) -> Transform {
        if self.transform == "gcm" { Transform::Gcm } else { Transform::Gmac }
    }

    fn numbering(&self) -> Numbering {
        if self.extended { Numbering::Extended } else { Numbering::Short }
    }

    fn keys(&self) -> ExternalKeys {
        let material = hex(&self.material);
        ExternalKeys::new(Spi(self.spi), self.transform(), self.numbering(), &material).unwrap()
    }

    /// A receiver that saw everything before this packet.
    fn receiver(&self, library: CipherLibrary) -> ExternalInbound {
        ExternalInbound::new(&self.keys(), library, self.sequence - 1).unwrap()
    }

    fn open(&self, library: CipherLibrary, datagram: &[u8]) -> Result<(Vec<u8>, u8, u64), EspDrop> {
        let mut datagram = datagram.to_vec();
        let opened = self.receiver(library).open(&mut datagram, NOW)?;
        Ok((datagram[opened.payload].to_vec(), opened.next_header as u8, opened.sequence))
    }
}

fn seal(sa: &mut ExternalOutbound, inner: &[u8], next_header: NextHeader) -> Result<Vec<u8>, EspDrop> {
    let mut buffer = [&[0; HEADROOM], inner, &[0; TAILROOM]].concat();
    let sealed = sa.seal(&mut buffer, inner.len(), next_header)?;
    buffer.truncate(sealed.datagram_len);
    Ok(buffer)
}

#[test]
fn packets_of_scapy_open_as_they_should() {
    let cases = Case::all();
    assert_eq!(cases.iter().filter(|case| case.expect == "opens").count(), 304);
    for case in &cases {
        let expected = match case.expect.as_str() {
            "opens" => Ok((hex(&case.inner), case.next_header, case.sequence)),
            "bad_padding" => Err(EspDrop::BadPadding),
            "bad_next_header" => Err(EspDrop::BadNextHeader),
            other => panic!("unknown expectation {other}"),
        };
        let datagram = hex(&case.datagram);
        let name = format!("{} {} extended {}", case.transform, case.sequence, case.extended);
        for library in [CipherLibrary::AwsLc, CipherLibrary::Portable] {
            assert_eq!(case.open(library, &datagram), expected, "{name}");
        }
        let last = datagram.len() - 1;
        let damaged = [&datagram[..last], &[datagram[last] ^ 1]].concat();
        assert_eq!(case.open(CipherLibrary::AwsLc, &damaged), Err(EspDrop::BadTag), "{name}");
    }
}

/// Where scapy used the sequence number for an IV and padded as little as possible, both make the same octets: scapy has
/// read what Formic sends.
#[test]
fn packets_of_formic_are_those_of_scapy() {
    let mut same = 0;
    for case in Case::all() {
        if case.expect != "opens" || array::<8>(&case.iv) != case.sequence.to_be_bytes() {
            continue;
        }
        let next_header = NextHeader::from_octet(case.next_header).unwrap();
        let mut sa = ExternalOutbound::new(&case.keys(), CipherLibrary::AwsLc, case.sequence - 1).unwrap();
        assert_eq!(seal(&mut sa, &hex(&case.inner), next_header), Ok(hex(&case.datagram)));
        same += 1;
    }
    assert_eq!(same, 136);
}

/// The wrong variant of each case must not open: neither transform nor numbering shows in a packet.
#[test]
fn transform_and_numbering_are_bound() {
    // Short numbers have no 0.
    let all = Case::all().into_iter().filter(|case| case.expect == "opens" && case.sequence as u32 != 0);
    for case in all {
        let material = hex(&case.material);
        let other_numbering = if case.extended { Numbering::Short } else { Numbering::Extended };
        let other_transform = if case.transform == "gcm" { Transform::Gmac } else { Transform::Gcm };
        for (transform, numbering) in [(case.transform(), other_numbering), (other_transform, case.numbering())] {
            let keys = ExternalKeys::new(Spi(case.spi), transform, numbering, &material).unwrap();
            let before = match numbering {
                Numbering::Short => u64::from(case.sequence as u32) - 1,
                Numbering::InIv | Numbering::Extended => case.sequence - 1,
            };
            let mut inbound = ExternalInbound::new(&keys, CipherLibrary::AwsLc, before).unwrap();
            assert_eq!(inbound.open(&mut hex(&case.datagram), NOW), Err(EspDrop::BadTag), "{transform:?}");
        }
    }
}

fn pair(transform: Transform, numbering: Numbering, used: u64) -> (ExternalOutbound, ExternalInbound) {
    let keys = ExternalKeys::new(Spi(0x1001), transform, numbering, &[7; 20]).unwrap();
    let outbound = ExternalOutbound::new(&keys, CipherLibrary::AwsLc, used).unwrap();
    (outbound, ExternalInbound::new(&keys, CipherLibrary::AwsLc, used).unwrap())
}

#[test]
fn extended_numbers_are_concluded_across_2_to_the_32() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform, Numbering::Extended, (1 << 32) - 4);
        let packets: Vec<_> = (0..8).map(|_| seal(&mut out, b"x", NextHeader::Ipv4).unwrap()).collect();
        // The last first: the number wraps forwards, then the packets before it wrap back.
        for (index, packet) in packets.iter().enumerate().rev() {
            let opened = inbound.open(&mut packet.clone(), NOW).unwrap();
            assert_eq!((opened.sequence, opened.newest), ((1 << 32) - 3 + index as u64, index == 7));
        }
        for packet in &packets {
            assert_eq!(inbound.open(&mut packet.clone(), NOW), Err(EspDrop::Replayed));
        }
        assert_eq!(inbound.traffic().packets, 8);
    }
}

/// A packet left of the window looks like one of the next 2^32, which it is not.
#[test]
fn an_extended_number_left_of_the_window_does_not_verify() {
    let (mut out, mut inbound) = pair(Transform::Gcm, Numbering::Extended, 0);
    let old = seal(&mut out, b"x", NextHeader::Ipv4).unwrap();
    for _ in 0..REPLAY_WINDOW_PACKETS {
        assert!(inbound.open(&mut seal(&mut out, b"x", NextHeader::Ipv4).unwrap(), NOW).is_ok());
    }
    assert_eq!(inbound.open(&mut old.clone(), NOW), Err(EspDrop::BadTag));
}

#[test]
fn short_numbers_end_at_2_to_the_32_and_keep_the_window() {
    for transform in BOTH_TRANSFORMS {
        let (mut out, mut inbound) = pair(transform, Numbering::Short, u64::from(u32::MAX) - 1);
        let last = seal(&mut out, b"last", NextHeader::Ipv6).unwrap();
        assert_eq!(seal(&mut out, b"more", NextHeader::Ipv6), Err(EspDrop::Exhausted));
        assert!(inbound.open(&mut last.clone(), NOW).is_ok());
        assert_eq!(inbound.open(&mut last.clone(), NOW), Err(EspDrop::Replayed));
        let (mut early, _) = pair(transform, Numbering::Short, 0);
        assert_eq!(inbound.open(&mut seal(&mut early, b"x", NextHeader::Ipv4).unwrap(), NOW), Err(EspDrop::TooOld));
    }
}

#[test]
fn a_receiver_that_starts_again_takes_nothing_from_before() {
    let (mut out, mut inbound) = pair(Transform::Gcm, Numbering::Short, 100);
    let (mut earlier, _) = pair(Transform::Gcm, Numbering::Short, 99);
    let before = seal(&mut earlier, b"x", NextHeader::Ipv4).unwrap();
    assert_eq!(inbound.open(&mut before.clone(), NOW), Err(EspDrop::Replayed));
    assert!(inbound.open(&mut seal(&mut out, b"x", NextHeader::Ipv4).unwrap(), NOW).is_ok());
}

#[test]
fn keying_material_has_20_or_36_octets() {
    for len in 0..64 {
        let made = ExternalKeys::new(Spi(1), Transform::Gcm, Numbering::Short, &vec![1; len]);
        // RFC 4106 has 192-bit keys too, 28 octets; they are not carried.
        assert_eq!(made.err(), (len != 20 && len != 36).then_some(KeyingMaterialError(len)));
    }
}
