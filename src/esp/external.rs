//! SAs whose keys came from elsewhere: for talking to other implementations of ESP in tests and tools, by the very code
//! that seals and opens Formic's own packets.
//!
//! The daemon makes none of these: it has no way to be given a key. Who makes one answers for what [`SaDatabase`] answers
//! for otherwise: that no number is used twice under a key, and that a receiver which starts again does not start at 0.
//!
//! [`SaDatabase`]: super::SaDatabase

use super::aead::PacketCipher;
use super::counter::PacketCounter;
use super::replay::ReplayWindow;
use super::sa::{Core, Numbering, Opened, SaTraffic, Sealed};
use super::schedule::SALT_LEN;
use super::{CipherLibrary, EspDrop};
use crate::types::{Key32, Spi, Time, Transform};
use crate::wire::esp::NextHeader;
use zeroize::Zeroizing;

/// What both ends of such an SA agreed upon.
pub struct ExternalKeys {
    spi: Spi,
    transform: Transform,
    numbering: Numbering,
    key: ExternalKey,
    salt: Zeroizing<[u8; SALT_LEN]>,
}

enum ExternalKey {
    Aes128(Zeroizing<[u8; 16]>),
    Aes256(Key32),
}

/// Keying material of neither 20 nor 36 octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("keying material of {0} octets: AES-GCM and AES-GMAC take 20 or 36, an AES key and a salt of 4")]
pub struct KeyingMaterialError(pub usize);

impl ExternalKeys {
    /// Reads keying material as RFC 4106, section 8.1, lays it out: an AES key of 16 or 32 octets, then the salt.
    pub fn new(
        spi: Spi,
        transform: Transform,
        numbering: Numbering,
        material: &[u8],
    ) -> Result<ExternalKeys, KeyingMaterialError> {
        let wrong = KeyingMaterialError(material.len());
        let (key, salt) = material.split_last_chunk::<SALT_LEN>().ok_or(wrong)?;
        let key = match key.len() {
            16 => ExternalKey::Aes128(Zeroizing::new(key.try_into().map_err(|_| wrong)?)),
            32 => ExternalKey::Aes256(Key32::new(key.try_into().map_err(|_| wrong)?)),
            _ => return Err(wrong),
        };
        Ok(ExternalKeys { spi, transform, numbering, key, salt: Zeroizing::new(*salt) })
    }

    /// `None` when the library takes no such key.
    fn core(&self, library: CipherLibrary) -> Option<Core> {
        let cipher = match &self.key {
            ExternalKey::Aes128(key) => PacketCipher::of_128_bits(key)?,
            ExternalKey::Aes256(key) => PacketCipher::new(library, key),
        };
        let ExternalKeys { spi, transform, numbering, .. } = *self;
        Some(Core { spi, transform, numbering, cipher, salt: *self.salt, traffic: SaTraffic::default() })
    }
}

/// The sending half of an SA with foreign keys.
pub struct ExternalOutbound {
    core: Core,
    counter: PacketCounter,
}

impl ExternalOutbound {
    /// An SA under whose key `used` packets were sent before, by whomever. `None` when the library takes no such key.
    pub fn new(keys: &ExternalKeys, library: CipherLibrary, used: u64) -> Option<ExternalOutbound> {
        let limit = match keys.numbering {
            Numbering::InIv | Numbering::Extended => u64::MAX,
            Numbering::Short => u32::MAX.into(),
        };
        Some(ExternalOutbound { core: keys.core(library)?, counter: PacketCounter::after(used, limit) })
    }

    /// Seals as [`OutboundSa::seal`](super::OutboundSa::seal).
    pub fn seal(&mut self, buffer: &mut [u8], inner_len: usize, next_header: NextHeader) -> Result<Sealed, EspDrop> {
        self.core.seal(&mut self.counter, buffer, inner_len, next_header)
    }

    /// What it sent.
    pub fn traffic(&self) -> SaTraffic {
        self.core.traffic
    }

    /// The last sequence number used.
    pub fn sequence(&self) -> u64 {
        self.counter.used()
    }
}

/// The receiving half of an SA with foreign keys.
pub struct ExternalInbound {
    core: Core,
    window: ReplayWindow,
}

impl ExternalInbound {
    /// An SA by which everything through `highest` was received before. `None` when the library takes no such key.
    pub fn new(keys: &ExternalKeys, library: CipherLibrary, highest: u64) -> Option<ExternalInbound> {
        Some(ExternalInbound { core: keys.core(library)?, window: ReplayWindow::after(highest) })
    }

    /// Opens as [`InboundSa::open`](super::InboundSa::open).
    pub fn open(&mut self, datagram: &mut [u8], now: Time) -> Result<Opened, EspDrop> {
        self.core.open(&mut self.window, datagram, now)
    }

    /// What it received.
    pub fn traffic(&self) -> SaTraffic {
        self.core.traffic
    }

    /// The highest sequence number received.
    pub fn sequence(&self) -> u64 {
        self.window.highest()
    }
}

#[cfg(test)]
mod tests;
