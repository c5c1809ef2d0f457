//! The test at the start: which library does AES-GCM, and how fast.

use super::{CipherLibrary, NONCE_LEN, PacketCipher, TAG_LEN};
use crate::types::Key32;
use std::time::Duration;

/// Octets of a packet in the measurement: a full one at the usual MTU.
const MEASURED_PACKET_BYTES: usize = 1400;
/// Packets in one round: a few hundred microseconds, so that a clock of microseconds will do.
const MEASURED_PACKETS: usize = 1024;
/// Rounds, the best of which counts: the others were interrupted.
const MEASURED_ROUNDS: usize = 5;
/// Lengths at which the libraries must agree: around blocks, and full packets.
const COMPARED_LENGTHS: [usize; 8] = [0, 1, 15, 16, 17, 255, 1440, 8999];

/// What the test found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CipherReport {
    /// Who does it.
    pub library: CipherLibrary,
    /// Octets sealed in a second by one thread.
    pub bytes_per_sec: f64,
    /// The fast library failed.
    pub fell_back: bool,
}

/// No library computes AES-GCM right: nothing may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("AES-256-GCM fails its self-test on this machine: no packet can be protected")]
pub struct CipherBroken;

impl CipherReport {
    /// Tests both libraries by a known answer and against each other, takes the fast one if it is right, and measures
    /// it. `now` is any clock.
    pub fn select(now: impl Fn() -> Duration) -> Result<CipherReport, CipherBroken> {
        choose(is_right(CipherLibrary::AwsLc), is_right(CipherLibrary::Portable), agree())
            .map(|library| CipherReport {
                library,
                bytes_per_sec: measure(library, now),
                fell_back: library == CipherLibrary::Portable,
            })
            .ok_or(CipherBroken)
    }
}

/// A library is used when its known answer is right; the fast one only when the other does not contradict it.
fn choose(fast_is_right: bool, portable_is_right: bool, they_agree: bool) -> Option<CipherLibrary> {
    match (fast_is_right, portable_is_right) {
        (true, true) if they_agree => Some(CipherLibrary::AwsLc),
        (_, true) => Some(CipherLibrary::Portable),
        (true, false) | (false, false) => None,
    }
}

/// Test case 16 of the GCM specification (McGrew and Viega).
fn is_right(library: CipherLibrary) -> bool {
    const KEY: [u8; 32] = [
        0xfe, 0xff, 0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08, 0xfe, 0xff,
        0xe9, 0x92, 0x86, 0x65, 0x73, 0x1c, 0x6d, 0x6a, 0x8f, 0x94, 0x67, 0x30, 0x83, 0x08,
    ];
    const NONCE: [u8; NONCE_LEN] = [0xca, 0xfe, 0xba, 0xbe, 0xfa, 0xce, 0xdb, 0xad, 0xde, 0xca, 0xf8, 0x88];
    const AAD: [u8; 20] = [
        0xfe, 0xed, 0xfa, 0xce, 0xde, 0xad, 0xbe, 0xef, 0xfe, 0xed, 0xfa, 0xce, 0xde, 0xad, 0xbe, 0xef, 0xab, 0xad,
        0xda, 0xd2,
    ];
    const PLAIN: [u8; 60] = [
        0xd9, 0x31, 0x32, 0x25, 0xf8, 0x84, 0x06, 0xe5, 0xa5, 0x59, 0x09, 0xc5, 0xaf, 0xf5, 0x26, 0x9a, 0x86, 0xa7,
        0xa9, 0x53, 0x15, 0x34, 0xf7, 0xda, 0x2e, 0x4c, 0x30, 0x3d, 0x8a, 0x31, 0x8a, 0x72, 0x1c, 0x3c, 0x0c, 0x95,
        0x95, 0x68, 0x09, 0x53, 0x2f, 0xcf, 0x0e, 0x24, 0x49, 0xa6, 0xb5, 0x25, 0xb1, 0x6a, 0xed, 0xf5, 0xaa, 0x0d,
        0xe6, 0x57, 0xba, 0x63, 0x7b, 0x39,
    ];
    const SEALED: [u8; 60] = [
        0x52, 0x2d, 0xc1, 0xf0, 0x99, 0x56, 0x7d, 0x07, 0xf4, 0x7f, 0x37, 0xa3, 0x2a, 0x84, 0x42, 0x7d, 0x64, 0x3a,
        0x8c, 0xdc, 0xbf, 0xe5, 0xc0, 0xc9, 0x75, 0x98, 0xa2, 0xbd, 0x25, 0x55, 0xd1, 0xaa, 0x8c, 0xb0, 0x8e, 0x48,
        0x59, 0x0d, 0xbb, 0x3d, 0xa7, 0xb0, 0x8b, 0x10, 0x56, 0x82, 0x88, 0x38, 0xc5, 0xf6, 0x1e, 0x63, 0x93, 0xba,
        0x7a, 0x0a, 0xbc, 0xc9, 0xf6, 0x62,
    ];
    const TAG: [u8; TAG_LEN] =
        [0x76, 0xfc, 0x6e, 0xce, 0x0f, 0x4e, 0x17, 0x68, 0xcd, 0xdf, 0x88, 0x53, 0xbb, 0x2d, 0x55, 0x1b];
    let cipher = PacketCipher::new(library, &Key32::new(KEY));
    let mut body = PLAIN;
    let sealed = cipher.seal(NONCE, &AAD, &mut body) == Ok(TAG) && body == SEALED;
    let opened = cipher.open(NONCE, &AAD, &mut body, &TAG).is_ok() && body == PLAIN;
    let mut damaged = SEALED;
    if let Some(first) = damaged.first_mut() {
        *first ^= 1;
    }
    sealed && opened && cipher.open(NONCE, &AAD, &mut damaged, &TAG).is_err()
}

fn agree() -> bool {
    let key = Key32::new([0x5a; 32]);
    let [fast, portable] =
        [CipherLibrary::AwsLc, CipherLibrary::Portable].map(|library| PacketCipher::new(library, &key));
    COMPARED_LENGTHS.into_iter().enumerate().all(|(number, length)| {
        let nonce = [number as u8; NONCE_LEN];
        let plain: Vec<u8> = (0..length).map(|octet| octet as u8).collect();
        let (mut left, mut right) = (plain.clone(), plain.clone());
        let tags = (fast.seal(nonce, &plain, &mut left), portable.seal(nonce, &plain, &mut right));
        let (Ok(tag), Ok(_)) = tags else { return false };
        let same = left == right && tags.0 == tags.1;
        same && fast.open(nonce, &plain, &mut right, &tag).is_ok() && right == plain
    })
}

fn measure(library: CipherLibrary, now: impl Fn() -> Duration) -> f64 {
    let cipher = PacketCipher::new(library, &Key32::new([0xa5; 32]));
    let mut body = vec![0; MEASURED_PACKET_BYTES];
    let rounds = (0..MEASURED_ROUNDS).map(|_| {
        let start = now();
        for number in 0..MEASURED_PACKETS {
            // Nothing of this leaves the function.
            let _ = cipher.seal([number as u8; NONCE_LEN], &[0; 12], &mut body);
        }
        now().saturating_sub(start)
    });
    let best = rounds.min().unwrap_or_default().max(Duration::from_nanos(1));
    (MEASURED_PACKETS * MEASURED_PACKET_BYTES) as f64 / best.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_library_is_chosen_when_it_is_right() {
        assert!(is_right(CipherLibrary::AwsLc) && is_right(CipherLibrary::Portable) && agree());
        assert_eq!(choose(true, true, true), Some(CipherLibrary::AwsLc));
        assert_eq!(choose(false, true, false), Some(CipherLibrary::Portable));
        assert_eq!(choose(true, true, false), Some(CipherLibrary::Portable));
        assert_eq!(choose(true, false, false), None);
        assert_eq!(choose(false, false, true), None);
        // Each look at this clock takes a millisecond: that long takes a round.
        let looks = std::cell::Cell::new(0);
        let report = CipherReport::select(|| Duration::from_millis(looks.replace(looks.get() + 1))).unwrap();
        assert_eq!((report.library, report.fell_back), (CipherLibrary::AwsLc, false));
        assert_eq!(report.bytes_per_sec, 1000.0 * (MEASURED_PACKETS * MEASURED_PACKET_BYTES) as f64);
    }
}
