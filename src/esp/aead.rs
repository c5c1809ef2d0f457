//! AES-GCM over buffers in place, by one of two libraries: aws-lc, and the portable `aes-gcm`, which is its oracle
//! and takes its place if it fails the test at the start ([`CipherReport::select`]). Formic's own keys have 256 bits; 128 are for keys that came
//! from elsewhere, by aws-lc alone.

use crate::types::Key32;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Octets of a nonce.
pub(super) const NONCE_LEN: usize = 12;
/// Octets of a tag.
pub(super) const TAG_LEN: usize = 16;

/// Who does AES-GCM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherLibrary {
    /// aws-lc, the fast one.
    AwsLc,
    /// `aes-gcm`, the portable one.
    Portable,
}

impl CipherLibrary {
    /// Its name in `formic status`.
    pub fn name(self) -> &'static str {
        match self {
            CipherLibrary::AwsLc => "aws-lc",
            CipherLibrary::Portable => "aes-gcm",
        }
    }
}

/// An expanded AES-GCM key. The caller answers for nonces that never repeat.
pub struct PacketCipher(Library);

enum Library {
    AwsLc(LessSafeKey),
    RustCrypto(Box<aes_gcm::Aes256Gcm>),
}

/// The tag does not verify, or the library refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadTag;

impl PacketCipher {
    /// A key for this library.
    pub fn new(library: CipherLibrary, key: &Key32) -> PacketCipher {
        let unbound = match library {
            CipherLibrary::AwsLc => UnboundKey::new(&AES_256_GCM, key.expose()).ok(),
            CipherLibrary::Portable => None,
        };
        match unbound {
            Some(unbound) => PacketCipher(Library::AwsLc(LessSafeKey::new(unbound))),
            None => PacketCipher(Library::RustCrypto(Box::new(aes_gcm::Aes256Gcm::new(key.expose().into())))),
        }
    }

    /// A key of 128 bits; `None` when the library refuses.
    pub(super) fn of_128_bits(key: &[u8; 16]) -> Option<PacketCipher> {
        let unbound = UnboundKey::new(&AES_128_GCM, key).ok()?;
        Some(PacketCipher(Library::AwsLc(LessSafeKey::new(unbound))))
    }

    /// Encrypts `body` in place and returns the tag over `aad` and it.
    pub(super) fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], body: &mut [u8]) -> Result<[u8; TAG_LEN], BadTag> {
        match &self.0 {
            Library::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), body).map_err(|_| BadTag)?;
                tag.as_ref().try_into().map_err(|_| BadTag)
            }
            Library::RustCrypto(cipher) => {
                let tag = cipher.encrypt_inout_detached(&nonce.into(), aad, body.into()).map_err(|_| BadTag)?;
                Ok(tag.into())
            }
        }
    }

    /// Decrypts `body` in place when `tag` verifies; else what is left in `body` is worthless.
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), BadTag> {
        match &self.0 {
            Library::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, body).map_err(|_| BadTag)?;
                Ok(())
            }
            Library::RustCrypto(cipher) => {
                cipher.decrypt_inout_detached(&nonce.into(), aad, body.into(), tag.into()).map_err(|_| BadTag)
            }
        }
    }
}

mod select;

pub use select::{CipherBroken, CipherReport};

#[cfg(test)]
mod tests;
