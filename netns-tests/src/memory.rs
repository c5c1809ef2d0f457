//! The memory of a process as root can read it, searched for secrets as a thief would who has a copy of it.

use crate::capture::Packet;
use aes::Aes256Dec;
use aes::cipher::{BlockCipherDecrypt as _, KeyInit as _};
use memchr::memmem;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// A key of AES-256.
pub type Key = [u8; 32];

/// Whether the bytes are somewhere in these.
pub fn holds(haystack: &[u8], bytes: &[u8]) -> bool {
    memmem::find(haystack, bytes).is_some()
}

/// Where keys are looked for: libraries and allocators align them to at least that.
const ALIGNMENT: usize = 8;

/// What the process can write: heap, stacks, statics.
pub struct Memory {
    regions: Vec<(String, Vec<u8>)>,
}

impl Memory {
    /// Reads it. The process goes on meanwhile.
    pub fn of(pid: u32) -> Memory {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("read the map of the memory");
        let memory = File::open(format!("/proc/{pid}/mem")).expect("open the memory");
        let regions = maps.lines().filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).expect("an address"));
            let mut bytes = vec![0; usize::try_from(end - start).ok()?];
            // A region that is gone by now holds nothing.
            (rest.starts_with("rw") && memory.read_exact_at(&mut bytes, start).is_ok())
                .then(|| (line.to_owned(), bytes))
        });
        Memory { regions: regions.collect() }
    }

    /// Where these bytes are, at whatever alignment.
    pub fn places_of(&self, secret: &[u8]) -> Vec<String> {
        let finder = memmem::Finder::new(secret);
        let places = self
            .regions
            .iter()
            .flat_map(|(name, bytes)| finder.find_iter(bytes).map(move |at| format!("{at:#x} octets into {name}")));
        places.collect()
    }

    /// All that looks random enough to be a key.
    pub fn candidates(&self) -> BTreeSet<Key> {
        let windows = self.regions.iter().flat_map(|(_, bytes)| {
            let starts = (0..bytes.len().saturating_sub(size_of::<Key>())).step_by(ALIGNMENT);
            starts.filter_map(|at| bytes[at..].first_chunk::<{ size_of::<Key>() }>())
        });
        windows.filter(|key| is_random(key)).copied().collect()
    }
}

/// Different octets that a key has at least: of a million keys less than one has fewer (the mean is 30).
const DIFFERENT_OCTETS: u32 = 22;

fn is_random(key: &Key) -> bool {
    if key[..8] == [0; 8] {
        return false;
    }
    let mut seen = [0u64; 4];
    key.iter().for_each(|&byte| seen[usize::from(byte >> 6)] |= 1 << (byte & 63));
    seen.iter().map(|word| word.count_ones()).sum::<u32>() >= DIFFERENT_OCTETS
}

/// A block of the key stream of an ESP packet, known since its plaintext is.
pub struct KnownBlock {
    stream: [u8; 16],
    /// What it decrypts to: the packet's IV and the number of the block, after four octets of salt that nobody knows.
    counter: [u8; 12],
}

/// Octets of a cipher's block.
const BLOCK: usize = 16;

impl KnownBlock {
    /// Of a captured ESP-in-UDP packet whose plaintext is known at block `number` (from 0).
    pub fn new(packet: &Packet, number: u8, plain: &[u8; BLOCK]) -> KnownBlock {
        const HEADER: usize = 16;
        let at = HEADER + BLOCK * usize::from(number);
        let sealed = packet.payload[at..].first_chunk::<BLOCK>().expect("a block of ciphertext");
        let mut counter = [0; 12];
        counter[..8].copy_from_slice(&packet.payload[8..HEADER]);
        // GCM counts from 1, and the first is for the tag.
        counter[11] = number + 2;
        KnownBlock { stream: std::array::from_fn(|index| sealed[index] ^ plain[index]), counter }
    }

    /// Whether this is its key.
    pub fn is_under(&self, key: &Key) -> bool {
        let mut block = self.stream.into();
        Aes256Dec::new(key.into()).decrypt_block(&mut block);
        block[4..] == self.counter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process whose environment holds the word, and nothing else does.
    fn holder(word: &str) -> std::process::Child {
        std::process::Command::new("sleep").arg("60").env("WORD", word).spawn().expect("sleep starts")
    }

    #[test]
    fn what_is_in_a_process_is_found_and_what_is_not_is_not() {
        let mut child = holder("a-word-of-this-test-1");
        let places = |word: &str| Memory::of(child.id()).places_of(word.as_bytes()).len();
        let (there, other) = (places("a-word-of-this-test-1"), places("a-word-of-this-test-2"));
        child.kill().expect("the child is killed");
        child.wait().expect("the child ends");
        assert!(there > 0 && other == 0, "{there} and {other} places");
    }
}
