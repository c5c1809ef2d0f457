//! Key material: zeroized when dropped, without Debug, Clone or serde, so that it cannot reach a log or a
//! copy by accident, and in a place of its own, so that moving it leaves no copy behind. Where a key legitimately travels (sealed state, mTLS), the field says so with
//! `#[serde(with = "carried_key")]`.

use serde::{Deserialize, Serialize};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A 256-bit secret.
#[derive(PartialEq, Eq)]
pub struct Key32(Box<[u8; 32]>);

impl Drop for Key32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Key32 {}

impl Key32 {
    /// Takes over 32 bytes of key material.
    pub fn new(bytes: [u8; 32]) -> Key32 {
        Key32(Box::new(bytes))
    }

    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// A second copy, made on purpose (a ring handed to two owners).
    pub fn duplicate(&self) -> Key32 {
        Key32(self.0.clone())
    }
}

/// `#[serde(with = "carried_key")]`: a key inside a message or a record that is itself encrypted.
pub mod carried_key {
    use super::Key32;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the 32 bytes.
    pub fn serialize<S: Serializer>(key: &Key32, serializer: S) -> Result<S::Ok, S::Error> {
        key.0.serialize(serializer)
    }

    /// Reads 32 bytes.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Key32, D::Error> {
        <[u8; 32]>::deserialize(deserializer).map(Key32::new)
    }
}

/// A public key of 32 bytes: X25519 (RFC 7748) or Ed25519 (RFC 8032), as its field says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Names one attestation key of the managers: the first four bytes of SHA-256 of its public half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VerifyingKeyId(pub [u8; 4]);
