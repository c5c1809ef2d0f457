//! The Internet checksum (RFC 1071). Words are summed in the byte order of the machine: the sum of swapped words is
//! the swapped sum, so only what is read from or written to numbers needs care.

/// A running ones' complement sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds octets. All but the last slice must have an even length.
    pub(super) fn add(self, octets: &[u8]) -> Sum {
        Sum(self.0 + u64::from(sum_words(octets)))
    }

    /// Adds a number as it stands in a header.
    pub(super) fn add_u16(self, number: u16) -> Sum {
        Sum(self.0 + u64::from(u16::from_ne_bytes(number.to_be_bytes())))
    }

    /// Adds a folded sum as it stands in a header.
    pub(super) fn add_octets(self, octets: [u8; 2]) -> Sum {
        Sum(self.0 + u64::from(u16::from_ne_bytes(octets)))
    }

    /// The sum, not complemented, as it stands in a header.
    pub(super) fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > u64::from(u16::MAX) {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_ne_bytes()
    }

    /// The checksum, as it stands in a header.
    pub(super) fn checksum(self) -> [u8; 2] {
        self.folded().map(|octet| !octet)
    }

    /// The checksum of a transport header: 0 would say "no checksum" in UDP (RFC 768), and is the same number as
    /// 0xffff elsewhere.
    pub(super) fn transport_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }

    /// Whether octets with their checksum among them, and the pseudo-header, are whole.
    pub(super) fn is_valid(self) -> bool {
        self.folded() == [0xff, 0xff]
    }
}

/// Sums 32-bit words in sixteen 64-bit sums, which the compiler makes vectors of; the end is the same modulo 2^16 - 1.
/// Folded to 32 bits.
fn sum_words(octets: &[u8]) -> u32 {
    let (blocks, rest) = octets.as_chunks::<64>();
    let mut sums = [0u64; 16];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    let pairs: u64 = pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum();
    let odd: u64 = odd.iter().map(|&last| u64::from(u16::from_ne_bytes([last, 0]))).sum();
    fold(fold(sums.iter().sum::<u64>() + pairs + odd)) as u32
}

/// The two halves' sum.
fn fold(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::checksum::Sum16BitWords;
    use rand::rngs::StdRng;
    use rand::{Rng as _, RngExt as _, SeedableRng as _};

    #[test]
    fn it_agrees_with_the_library() {
        let mut random = StdRng::seed_from_u64(1071);
        let mut octets = vec![0; 200_000];
        for round in 0..2000 {
            let length = if round < 300 { round } else { random.random_range(0..2000) };
            let start = random.random_range(0..100_000);
            let part = &mut octets[start..start + length];
            random.fill_bytes(part);
            let expected = Sum16BitWords::new().add_slice(part).ones_complement().to_ne_bytes();
            assert_eq!(Sum::default().add(part).checksum(), expected, "{length}");
        }
        octets.fill(0xff);
        assert_eq!(Sum::default().add(&octets).folded(), [0xff, 0xff], "nothing overflows");
        let number = Sum::default().add_u16(0x1234).add_octets([0x00, 0x01]);
        assert_eq!(number.folded(), [0x12, 0x35]);
        assert_eq!(Sum::default().add(&[0x12, 0x34, 0x00, 0x01]), number);
        assert_eq!(Sum::default().add(&[0xff, 0xff]).transport_checksum(), [0xff, 0xff]);
        assert!(Sum::default().add(&[0x12, 0x34, 0xed, 0xcb]).is_valid());
    }
}
