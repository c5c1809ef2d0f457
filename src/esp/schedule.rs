//! The key schedule: from a master of the managers and an X25519 secret of two nodes to the key of one SA.
//!
//! ```text
//! gossip_key(e)       = HKDF(master_e, "formic gossip v1" || cluster || fork || e)
//! network_key(e, net) = HKDF(master_e, "formic network v1" || cluster || fork || e || net)
//! SA keys             = HKDF(network_key || X25519, salt "formic esp v1", info = the identity): key 32 || salt 4
//! SPI                 = tag24 || epoch mod 16 || queue
//! ```
//! Every label names its version; the golden vectors in `testdata/esp` hold the outputs still.

use crate::crypto::{self, SharedSecret};
use crate::types::{BootId, ClusterId, Epoch, Fork, Key32, NetworkId, NodeId, PublicKey, Queues, Spi, Transform};
use zeroize::Zeroizing;

/// Octets of an SA's AES key and salt.
pub(super) const KEY_LEN: usize = 32;
/// Octets of the salt in front of each nonce (RFC 4106, section 4).
pub(super) const SALT_LEN: usize = 4;
/// Bits of the queue number in an SPI.
const QUEUE_BITS: u32 = 4;
const _: () = assert!(Queues::MAX == 1 << QUEUE_BITS);

/// All that an SA's keys depend on beside the secrets. Two SAs with one identity have one key: an identity is
/// created once per process and never starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaIdentity {
    /// What ESP does to the packets; from the network's record.
    pub transform: Transform,
    /// The swarm.
    pub cluster: ClusterId,
    /// The life of its state.
    pub fork: Fork,
    /// The network.
    pub network: NetworkId,
    /// The sending node.
    pub src: NodeId,
    /// The receiving node.
    pub dst: NodeId,
    /// The sender's boot.
    pub src_boot: BootId,
    /// The receiver's boot.
    pub dst_boot: BootId,
    /// The sender's X25519 public of `src_boot` and `epoch`.
    pub src_public: PublicKey,
    /// The receiver's X25519 public of `dst_boot` and `epoch`.
    pub dst_public: PublicKey,
    /// The epoch of the network key.
    pub epoch: Epoch,
    /// The sender's worker, 0..=15.
    pub queue: u8,
}

/// The key material of one SA, bound to its identity.
pub struct SaKeys {
    identity: SaIdentity,
    key: Key32,
    salt: Zeroizing<[u8; SALT_LEN]>,
}

impl SaKeys {
    /// Derives the keys of the SA `identity` from the key of its network and epoch, and from the X25519 secret of
    /// the two publics in it.
    pub fn derive(network_key: &Key32, shared: &SharedSecret, identity: &SaIdentity) -> SaKeys {
        let id = identity;
        let okm: Zeroizing<[u8; KEY_LEN + SALT_LEN]> = crypto::hkdf_sha256(
            b"formic esp v1",
            &[network_key.expose(), shared.expose()],
            &[
                &[id.transform as u8],
                id.cluster.as_bytes(),
                &id.fork.0.to_be_bytes(),
                id.network.as_bytes(),
                id.src.as_bytes(),
                id.dst.as_bytes(),
                &id.src_boot.0,
                &id.dst_boot.0,
                &id.src_public.0,
                &id.dst_public.0,
                &id.epoch.0.to_be_bytes(),
                &[id.queue],
            ],
        );
        let mut key = Zeroizing::new([0; KEY_LEN]);
        let mut salt = Zeroizing::new([0; SALT_LEN]);
        let (key_part, salt_part) = okm.split_at(KEY_LEN);
        key.copy_from_slice(key_part);
        salt.copy_from_slice(salt_part);
        SaKeys { identity: *identity, key: Key32::new(*key), salt }
    }

    /// Keys that came from elsewhere: published vectors, and the other implementations that tests talk to.
    pub fn external(identity: &SaIdentity, key: Key32, salt: [u8; SALT_LEN]) -> SaKeys {
        SaKeys { identity: *identity, key, salt: Zeroizing::new(salt) }
    }

    /// The SA that these keys belong to.
    pub fn identity(&self) -> &SaIdentity {
        &self.identity
    }

    pub(super) fn key(&self) -> &Key32 {
        &self.key
    }

    pub(super) fn salt(&self) -> [u8; SALT_LEN] {
        *self.salt
    }
}

/// The key of a network in an epoch; for the managers, who alone hold the master.
pub fn network_key(master: &Key32, cluster: ClusterId, fork: Fork, epoch: Epoch, network: NetworkId) -> Key32 {
    crypto::derive_key(
        &[master.expose()],
        &[b"formic network v1", cluster.as_bytes(), &fork.0.to_be_bytes(), &epoch.0.to_be_bytes(), network.as_bytes()],
    )
}

/// The gossip key of an epoch; for the managers, who alone hold the master.
pub fn gossip_key(master: &Key32, cluster: ClusterId, fork: Fork, epoch: Epoch) -> Key32 {
    crypto::derive_key(
        &[master.expose()],
        &[b"formic gossip v1", cluster.as_bytes(), &fork.0.to_be_bytes(), &epoch.0.to_be_bytes()],
    )
}

/// The SPI of an SA: 24 bits of a hash (0 becomes 1, so that none of the reserved SPIs 0..=255 comes up), the epoch
/// mod 16, the queue.
pub fn spi(identity: &SaIdentity) -> Spi {
    let [a, b, c, ..] = crypto::sha256(&[
        b"formic spi v1",
        identity.cluster.as_bytes(),
        &identity.fork.0.to_be_bytes(),
        identity.network.as_bytes(),
        identity.src.as_bytes(),
        identity.dst.as_bytes(),
        &identity.src_boot.0,
        &identity.dst_boot.0,
        &identity.epoch.0.to_be_bytes(),
    ]);
    spi_from_parts(u32::from_be_bytes([0, a, b, c]), identity.epoch, identity.queue)
}

/// The queue in an SPI.
pub fn queue_of(spi: Spi) -> u8 {
    (spi.0 & (u32::from(Queues::MAX) - 1)) as u8
}

fn spi_from_parts(tag24: u32, epoch: Epoch, queue: u8) -> Spi {
    let low = ((epoch.0 % 16) << QUEUE_BITS) | (u32::from(queue) & 0x0f);
    Spi((tag24.max(1) << 8) | low)
}

#[cfg(test)]
mod tests;
