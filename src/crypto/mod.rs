//! Thin, deterministic wrappers around the cryptographic libraries: HKDF, SHA-256, X25519, Ed25519 and the AEAD
//! of gossip and of data at rest. Every secret and every nonce comes in as an argument; nothing here draws randomness.
//!
//! `aes-gcm`, `hkdf` and `sha2` serve where speed does not matter; X25519 and Ed25519 are aws-lc's, which the TLS
//! library brings anyway. The data plane's AEAD is in `esp`.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use crate::types::{Key32, PublicKey, VerifyingKeyId};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::{agreement, signature};
use sha2::Digest as _;
use zeroize::Zeroizing;

/// Octets of an AES-GCM tag.
pub const TAG_LEN: usize = 16;

/// An authentication failure. It says nothing more on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct Unauthentic;

/// HKDF-SHA256 (RFC 5869), Extract then Expand. `N` is at most 8160.
pub fn hkdf_sha256<const N: usize>(salt: &[u8], ikm: &[&[u8]], info: &[&[u8]]) -> Zeroizing<[u8; N]> {
    let joined: Zeroizing<Vec<u8>> = Zeroizing::new(ikm.concat());
    let kdf = hkdf::Hkdf::<sha2::Sha256>::new(Some(salt), &joined);
    let mut out = Zeroizing::new([0u8; N]);
    let fits = kdf.expand_multi_info(info, out.as_mut_slice());
    assert!(fits.is_ok(), "HKDF-SHA256 gives at most 8160 octets");
    out
}

/// HKDF-SHA256 with the empty salt, to one 256-bit key: the form used unless wire formats say otherwise.
pub fn derive_key(ikm: &[&[u8]], info: &[&[u8]]) -> Key32 {
    Key32::new(*hkdf_sha256::<32>(&[], ikm, info))
}

/// SHA-256 (FIPS 180-4) of the concatenation.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = sha2::Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

/// Compares two secrets in time that depends on their lengths only.
pub fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(left, right).is_ok()
}

/// An X25519 secret (RFC 7748).
pub struct X25519Secret {
    key: agreement::PrivateKey,
    public: PublicKey,
}

/// The result of an X25519 agreement. Never all zero.
pub struct SharedSecret(Key32);

impl SharedSecret {
    /// The 32 bytes, to be mixed into a key derivation.
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }
}

impl X25519Secret {
    /// Makes the key pair of 32 random bytes.
    pub fn new(random: &Key32) -> X25519Secret {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, random.expose())
            .unwrap_or_else(|_| unreachable!("every 32 bytes are an X25519 secret"));
        let public = key.compute_public_key().unwrap_or_else(|_| unreachable!("X25519 public of a valid secret"));
        let mut bytes = [0; 32];
        bytes.copy_from_slice(public.as_ref());
        X25519Secret { key, public: PublicKey(bytes) }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// The shared secret with the owner of `peer`. Errors when the result would be all zero (a point of small order).
    pub fn agree(&self, peer: &PublicKey) -> Result<SharedSecret, Unauthentic> {
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, peer.0);
        agreement::agree(&self.key, peer, Unauthentic, |secret| {
            let bytes: [u8; 32] = secret.try_into().map_err(|_| Unauthentic)?;
            if equal_in_constant_time(&bytes, &[0; 32]) {
                Err(Unauthentic)
            } else {
                Ok(SharedSecret(Key32::new(bytes)))
            }
        })
    }
}

/// An Ed25519 signing key (RFC 8032): the managers' attestation key.
pub struct SigningKey(signature::Ed25519KeyPair);

impl SigningKey {
    /// The key pair of a 32-byte seed.
    pub fn new(seed: &Key32) -> SigningKey {
        SigningKey(
            signature::Ed25519KeyPair::from_seed_unchecked(seed.expose())
                .unwrap_or_else(|_| unreachable!("every 32 bytes are an Ed25519 seed")),
        )
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs the message.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.0.sign(message).as_ref());
        bytes
    }
}

/// Names a verifying key.
pub fn verifying_key_id(key: &PublicKey) -> VerifyingKeyId {
    let [a, b, c, d, ..] = sha256(&[&key.0]);
    VerifyingKeyId([a, b, c, d])
}

/// Checks an Ed25519 signature (RFC 8032).
pub fn verify(key: &PublicKey, message: &[u8], signature: &[u8; 64]) -> Result<(), Unauthentic> {
    signature::UnparsedPublicKey::new(&signature::ED25519, key.0).verify(message, signature).map_err(|_| Unauthentic)
}

/// Seals `plaintext` with AES-256-GCM: ciphertext, then tag. A (key, nonce) pair must never repeat.
pub fn seal(key: &Key32, nonce: &[u8; 12], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let cipher = aes_gcm::Aes256Gcm::new(key.expose().into());
    let mut out = Vec::with_capacity(plaintext.len() + TAG_LEN);
    out.extend_from_slice(plaintext);
    let sealed = cipher.encrypt_in_place(nonce.into(), aad, &mut out);
    assert!(sealed.is_ok(), "AES-GCM seals up to 64 GiB");
    out
}

/// Opens what [`seal`] made.
pub fn open(key: &Key32, nonce: &[u8; 12], aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unauthentic> {
    let cipher = aes_gcm::Aes256Gcm::new(key.expose().into());
    let mut out = Zeroizing::new(sealed.to_vec());
    cipher.decrypt_in_place(nonce.into(), aad, &mut *out).map_err(|_| Unauthentic)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
