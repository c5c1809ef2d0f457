//! The key schedule against vectors that another implementation made, and its dependence on every input.

use super::*;
use crate::crypto::X25519Secret;
use crate::esp::testing::{Golden, array, identity};
use std::collections::BTreeSet;

#[test]
fn the_golden_vectors_hold() {
    for golden in Golden::all() {
        let identity = golden.identity();
        let master = Key32::new(array(&golden.master));
        let src = X25519Secret::new(&Key32::new(array(&golden.src_secret)));
        let dst = X25519Secret::new(&Key32::new(array(&golden.dst_secret)));
        assert_eq!((src.public(), dst.public()), (identity.src_public, identity.dst_public));

        let network_key = network_key(&master, identity.cluster, identity.fork, identity.epoch, identity.network);
        assert_eq!(*network_key.expose(), array(&golden.network_key));
        let gossip_key = gossip_key(&master, identity.cluster, identity.fork, identity.epoch);
        assert_eq!(*gossip_key.expose(), array(&golden.gossip_key));

        for shared in [src.agree(&dst.public()).unwrap(), dst.agree(&src.public()).unwrap()] {
            let keys = SaKeys::derive(&network_key, &shared, &identity);
            assert_eq!(*keys.key().expose(), array(&golden.key));
            assert_eq!(keys.salt(), array(&golden.salt));
            assert_eq!(keys.identity(), &identity);
        }
        assert_eq!(spi(&identity), Spi(golden.spi));
    }
}

/// Each change of one field of an identity, and whether the SPI shows it.
fn neighbours(base: SaIdentity) -> Vec<(SaIdentity, bool)> {
    vec![
        (SaIdentity { transform: Transform::Gmac, ..base }, false),
        (SaIdentity { cluster: ClusterId::from_random([0x11; 17]), ..base }, true),
        (SaIdentity { fork: Fork(base.fork.0 + 1), ..base }, true),
        (SaIdentity { network: NetworkId::from_random([0x11; 17]), ..base }, true),
        (SaIdentity { src: base.dst, dst: base.src, ..base }, true),
        (SaIdentity { src: NodeId::from_random([0x11; 17]), ..base }, true),
        (SaIdentity { dst: NodeId::from_random([0x11; 17]), ..base }, true),
        (SaIdentity { src_boot: base.dst_boot, dst_boot: base.src_boot, ..base }, true),
        (SaIdentity { src_boot: BootId([0x11; 8]), ..base }, true),
        (SaIdentity { dst_boot: BootId([0x11; 8]), ..base }, true),
        (SaIdentity { src_public: base.dst_public, dst_public: base.src_public, ..base }, false),
        (SaIdentity { src_public: PublicKey([0x11; 32]), ..base }, false),
        (SaIdentity { dst_public: PublicKey([0x11; 32]), ..base }, false),
        (SaIdentity { epoch: base.epoch.next(), ..base }, true),
        (SaIdentity { epoch: Epoch(base.epoch.0 + 16), ..base }, true),
        (SaIdentity { queue: 1, ..base }, true),
    ]
}

#[test]
fn every_field_and_both_secrets_change_the_keys() {
    let base = identity(Transform::Gcm);
    let ours = X25519Secret::new(&Key32::new([1; 32]));
    let shared = |peer: u8| ours.agree(&X25519Secret::new(&Key32::new([peer; 32])).public()).unwrap();
    let derive = |network_key: u8, peer: u8, identity: &SaIdentity| {
        let keys = SaKeys::derive(&Key32::new([network_key; 32]), &shared(peer), identity);
        (*keys.key().expose(), keys.salt())
    };
    let mut seen = BTreeSet::from([derive(1, 2, &base), derive(2, 2, &base), derive(1, 3, &base)]);
    assert_eq!(seen.len(), 3);
    for (neighbour, spi_differs) in neighbours(base) {
        assert!(seen.insert(derive(1, 2, &neighbour)), "{neighbour:?}");
        assert_eq!(spi(&neighbour) != spi(&base), spi_differs, "{neighbour:?}");
    }
    let salts: BTreeSet<_> = seen.iter().map(|(_, salt)| salt).collect();
    assert_eq!(salts.len(), seen.len());
}

#[test]
fn managers_keys_depend_on_every_input() {
    let base = identity(Transform::Gcm);
    let network = |master: u8, cluster: u8, fork, epoch, net: u8| {
        let (cluster, net) = (ClusterId::from_random([cluster; 17]), NetworkId::from_random([net; 17]));
        *network_key(&Key32::new([master; 32]), cluster, Fork(fork), Epoch(epoch), net).expose()
    };
    let gossip = |master: u8, cluster: u8, fork, epoch| {
        let cluster = ClusterId::from_random([cluster; 17]);
        *gossip_key(&Key32::new([master; 32]), cluster, Fork(fork), Epoch(epoch)).expose()
    };
    let all = [
        network(1, 1, 1, 1, 1),
        network(2, 1, 1, 1, 1),
        network(1, 2, 1, 1, 1),
        network(1, 1, 2, 1, 1),
        network(1, 1, 1, 2, 1),
        network(1, 1, 1, 1, 2),
        gossip(1, 1, 1, 1),
        gossip(2, 1, 1, 1),
        gossip(1, 2, 1, 1),
        gossip(1, 1, 2, 1),
        gossip(1, 1, 1, 2),
        *derive_plain(base),
    ];
    assert_eq!(BTreeSet::from(all).len(), all.len());
}

fn derive_plain(identity: SaIdentity) -> Zeroizing<[u8; 32]> {
    let shared = X25519Secret::new(&Key32::new([1; 32]));
    let shared = shared.agree(&X25519Secret::new(&Key32::new([2; 32])).public()).unwrap();
    Zeroizing::new(*SaKeys::derive(&Key32::new([1; 32]), &shared, &identity).key().expose())
}

#[test]
fn an_spi_is_never_a_reserved_one() {
    assert_eq!(spi_from_parts(0, Epoch(0), 0), Spi(0x100));
    assert_eq!(spi_from_parts(0, Epoch(17), 3), Spi(0x113));
    assert_eq!(spi_from_parts(0x00ab_cdef, Epoch(31), 15), Spi(0xabcd_efff));
    // A queue that does not exist cannot reach into the epoch's bits.
    assert_eq!(spi_from_parts(1, Epoch(0), 0x12), Spi(0x102));
}
