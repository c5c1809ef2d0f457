//! What the tests of this module share: identities, keys, hexadecimal, the golden vectors.

use super::{SaIdentity, SaKeys};
use crate::types::{BootId, ClusterId, Epoch, Fork, Id, Key32, NetworkId, NodeId, PublicKey, Transform};
use serde::Deserialize;

pub(super) const BOTH_TRANSFORMS: [Transform; 2] = [Transform::Gcm, Transform::Gmac];

pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    pairs.collect()
}

pub(super) fn array<const N: usize>(text: &str) -> [u8; N] {
    hex(text).try_into().unwrap()
}

/// Some identity; tests change the fields that matter to them.
pub(super) fn identity(transform: Transform) -> SaIdentity {
    SaIdentity {
        transform,
        cluster: ClusterId::from_random([1; 17]),
        fork: Fork(1_790_000_000),
        network: NetworkId::from_random([2; 17]),
        src: NodeId::from_random([3; 17]),
        dst: NodeId::from_random([4; 17]),
        src_boot: BootId([5; 8]),
        dst_boot: BootId([6; 8]),
        src_public: PublicKey([7; 32]),
        dst_public: PublicKey([8; 32]),
        epoch: Epoch(9),
        queue: 0,
    }
}

/// Keys that are not derived, where only their being bound to `identity` matters.
pub(super) fn keys(identity: &SaIdentity) -> SaKeys {
    SaKeys::external(identity, Key32::new([0x42; 32]), [1, 2, 3, 4])
}

/// One association of `testdata/golden.json`.
#[derive(Deserialize)]
pub(super) struct Golden {
    transform: u8,
    fork: u64,
    epoch: u32,
    queue: u8,
    pub(super) spi: u32,
    cluster: String,
    network: String,
    src: String,
    dst: String,
    src_boot: String,
    dst_boot: String,
    pub(super) master: String,
    pub(super) src_secret: String,
    pub(super) dst_secret: String,
    src_public: String,
    dst_public: String,
    pub(super) network_key: String,
    pub(super) gossip_key: String,
    pub(super) key: String,
    pub(super) salt: String,
    pub(super) packets: Vec<GoldenPacket>,
}

#[derive(Deserialize)]
pub(super) struct GoldenPacket {
    pub(super) sequence: u64,
    pub(super) inner: String,
    pub(super) next_header: u8,
    pub(super) datagram: String,
}

impl Golden {
    pub(super) fn all() -> Vec<Golden> {
        serde_json::from_str(include_str!("testdata/golden.json")).unwrap()
    }

    pub(super) fn identity(&self) -> SaIdentity {
        let id = |text: &str| Id::from_bytes(array(text)).unwrap();
        SaIdentity {
            transform: if self.transform == 1 { Transform::Gcm } else { Transform::Gmac },
            cluster: ClusterId(id(&self.cluster)),
            fork: Fork(self.fork),
            network: NetworkId(id(&self.network)),
            src: NodeId(id(&self.src)),
            dst: NodeId(id(&self.dst)),
            src_boot: BootId(array(&self.src_boot)),
            dst_boot: BootId(array(&self.dst_boot)),
            src_public: PublicKey(array(&self.src_public)),
            dst_public: PublicKey(array(&self.dst_public)),
            epoch: Epoch(self.epoch),
            queue: self.queue,
        }
    }

    pub(super) fn keys(&self) -> SaKeys {
        SaKeys::external(&self.identity(), Key32::new(array(&self.key)), array(&self.salt))
    }
}
