//! The life of SAs: what is kept, what is refused, and that no (key, nonce) comes twice.

use super::*;
use crate::crypto::{self, X25519Secret};
use crate::esp::schedule::network_key;
use crate::esp::testing::{BOTH_TRANSFORMS, identity, keys};
use crate::esp::{HEADROOM, TAILROOM};
use crate::types::{Key32, NetworkId, NodeId, PublicKey, Transform};
use proptest::prelude::*;

const NOW: Time = Time(1);

/// The sender's and the receiver's database of [`identity`].
fn two_nodes() -> (SaDatabase, SaDatabase) {
    let base = identity(Transform::Gcm);
    (SaDatabase::new(base.src_boot, WorkerShare::WHOLE), SaDatabase::new(base.dst_boot, WorkerShare::WHOLE))
}

fn seal(database: &mut SaDatabase, sa: OutboundIndex, inner: &[u8]) -> Result<Vec<u8>, EspDrop> {
    let mut buffer = [&[0; HEADROOM], inner, &[0; TAILROOM]].concat();
    let sealed = database.seal(sa, &mut buffer, inner.len(), NextHeader::Ipv4)?;
    buffer.truncate(sealed.datagram_len);
    Ok(buffer)
}

fn open(database: &mut SaDatabase, datagram: &[u8]) -> Result<(InboundIndex, Vec<u8>), EspDrop> {
    let mut datagram = datagram.to_vec();
    let received = database.open(&mut datagram, NOW)?.expect("not a keep-alive");
    Ok((received.sa, datagram[received.opened.payload].to_vec()))
}

#[test]
fn packets_travel_between_two_databases() {
    for transform in BOTH_TRANSFORMS {
        let identity = identity(transform);
        let (mut from, mut to) = two_nodes();
        let out = from.install_outbound(&identity, &keys(&identity)).unwrap();
        let inbound = to.install_inbound(&identity, &keys(&identity)).unwrap();
        let datagram = seal(&mut from, out, b"hello").unwrap();
        assert_eq!(open(&mut to, &datagram), Ok((inbound, b"hello".to_vec())));
        assert_eq!(open(&mut to, &datagram), Err(EspDrop::Replayed));
        assert_eq!(to.inbound(inbound).map(|sa| *sa.identity()), Some(identity));
        assert_eq!(from.outbound(out).map(|sa| *sa.identity()), Some(identity));
    }
}

#[test]
fn payloads_that_are_not_for_an_sa_are_sorted_out() {
    let (_, mut to) = two_nodes();
    assert_eq!(to.open(&mut [0xff], NOW), Ok(None));
    assert_eq!(to.open(&mut [0; 60], NOW), Err(EspDrop::SpiZero));
    assert_eq!(to.open(&mut [1; 20], NOW), Err(EspDrop::TooShort));
    assert_eq!(to.open(&mut [], NOW), Err(EspDrop::TooShort));
    assert_eq!(to.open(&mut [1; 60], NOW), Err(EspDrop::UnknownSpi));
    let mut third = SaDatabase::new(BootId([6; 8]), WorkerShare { worker: 2, workers: 4 });
    for queue in 0..16 {
        let mut datagram = [0xa0 | queue; 60];
        let expected = if queue % 4 == 2 { EspDrop::UnknownSpi } else { EspDrop::WrongWorker };
        assert_eq!(third.open(&mut datagram, NOW), Err(expected), "{queue}");
    }
}

#[test]
fn installing_again_goes_on_where_the_sa_was() {
    let identity = identity(Transform::Gcm);
    let (mut from, mut to) = two_nodes();
    let out = from.install_outbound(&identity, &keys(&identity)).unwrap();
    let inbound = to.install_inbound(&identity, &keys(&identity)).unwrap();
    let first = seal(&mut from, out, b"1").unwrap();
    assert!(open(&mut to, &first).is_ok());

    assert!(from.suspend(&identity) && to.suspend(&identity));
    assert_eq!(seal(&mut from, out, b"x"), Err(EspDrop::Suspended));
    assert_eq!(open(&mut to, &first), Err(EspDrop::Suspended));
    assert_eq!(from.find_outbound(&identity), Some(out));
    assert_eq!(to.find_inbound(&identity), Some(inbound));

    assert_eq!(from.install_outbound(&identity, &keys(&identity)), Ok(out));
    assert_eq!(to.install_inbound(&identity, &keys(&identity)), Ok(inbound));
    assert_eq!(from.outbound(out).unwrap().sequence(), 1);
    assert_eq!(open(&mut to, &first), Err(EspDrop::Replayed));
    let second = seal(&mut from, out, b"2").unwrap();
    assert_eq!(second[8..16], 2u64.to_be_bytes());
    assert_eq!(open(&mut to, &second), Ok((inbound, b"2".to_vec())));
}

#[test]
fn an_erased_epoch_never_comes_again() {
    let base = identity(Transform::Gcm);
    let other = SaIdentity { epoch: base.epoch.next(), ..base };
    let (mut from, mut to) = two_nodes();
    let out = from.install_outbound(&base, &keys(&base)).unwrap();
    let kept = from.install_outbound(&other, &keys(&other)).unwrap();
    to.install_inbound(&base, &keys(&base)).unwrap();
    let datagram = seal(&mut from, out, b"x").unwrap();

    assert_eq!(from.erase_epoch(base.epoch), 1);
    assert_eq!(to.erase_epoch(base.epoch), 1);
    assert_eq!(seal(&mut from, out, b"x"), Err(EspDrop::NoSa));
    assert_eq!(open(&mut to, &datagram), Err(EspDrop::UnknownSpi));
    let refused = InstallError::Erased(base.epoch);
    assert_eq!(from.install_outbound(&base, &keys(&base)), Err(refused));
    assert_eq!(to.install_inbound(&base, &keys(&base)), Err(refused));
    let elsewhere = SaIdentity { network: NetworkId::from_random([0x77; 17]), ..base };
    assert_eq!(from.install_outbound(&elsewhere, &keys(&elsewhere)), Err(refused));
    assert!(seal(&mut from, kept, b"x").is_ok());
    assert_eq!(from.erase_epoch(base.epoch), 0);
}

#[test]
fn a_stale_index_does_not_name_the_next_sa_in_its_place() {
    let base = identity(Transform::Gcm);
    let next = SaIdentity { epoch: base.epoch.next(), dst: NodeId::from_random([0x77; 17]), ..base };
    let (mut from, _) = two_nodes();
    let stale = from.install_outbound(&base, &keys(&base)).unwrap();
    from.erase_epoch(base.epoch);
    let fresh = from.install_outbound(&next, &keys(&next)).unwrap();
    assert_eq!(fresh.0.slot, stale.0.slot);
    assert_eq!(seal(&mut from, stale, b"for another peer"), Err(EspDrop::NoSa));
    assert!(from.outbound(stale).is_none() && from.outbound_mut(stale).is_none());
    assert!(seal(&mut from, fresh, b"x").is_ok());
}

#[test]
fn what_is_not_ours_is_refused() {
    let base = identity(Transform::Gcm);
    let (mut from, mut to) = two_nodes();
    let other = SaIdentity { epoch: base.epoch.next(), ..base };
    assert_eq!(from.install_outbound(&base, &keys(&other)), Err(InstallError::ForeignKeys));
    assert_eq!(to.install_inbound(&base, &keys(&other)), Err(InstallError::ForeignKeys));
    assert_eq!(to.install_outbound(&base, &keys(&base)), Err(InstallError::WrongBoot));
    assert_eq!(from.install_inbound(&base, &keys(&base)), Err(InstallError::WrongBoot));
    let queue = SaIdentity { queue: 1, ..base };
    assert_eq!(from.install_outbound(&queue, &keys(&queue)), Err(InstallError::WrongWorker));
    let queue = SaIdentity { queue: 16, ..base };
    assert_eq!(to.install_inbound(&queue, &keys(&queue)), Err(InstallError::WrongWorker));
    assert_eq!(from.summaries().count() + to.summaries().count(), 0);
}

#[test]
fn each_queue_has_one_owner() {
    let base = identity(Transform::Gcm);
    for queue in 0..16 {
        let identity = SaIdentity { queue, ..base };
        let owners = |install: &dyn Fn(SaDatabase) -> bool, boot| {
            let shares = (0..3).map(|worker| WorkerShare { worker, workers: 3 });
            shares.filter(|&share| install(SaDatabase::new(boot, share))).map(|share| share.worker).collect::<Vec<_>>()
        };
        let receives = |mut database: SaDatabase| database.install_inbound(&identity, &keys(&identity)).is_ok();
        assert_eq!(owners(&receives, base.dst_boot), [queue % 3]);
        let sends = |mut database: SaDatabase| database.install_outbound(&identity, &keys(&identity)).is_ok();
        assert_eq!(owners(&sends, base.src_boot), if queue < 3 { vec![queue] } else { vec![] });
    }
}

/// Identities with one SPI: it shows neither the transform nor the publics.
fn namesakes() -> Vec<SaIdentity> {
    let base = identity(Transform::Gcm);
    let public = |octet, transform| SaIdentity { src_public: PublicKey([octet; 32]), transform, ..base };
    vec![
        public(1, Transform::Gcm),
        public(2, Transform::Gmac),
        public(3, Transform::Gcm),
        public(4, Transform::Gmac),
        public(5, Transform::Gcm),
    ]
}

fn own_keys(identity: &SaIdentity) -> SaKeys {
    SaKeys::external(identity, Key32::new(identity.src_public.0), [9; 4])
}

#[test]
fn sas_that_share_an_spi_are_told_apart() {
    let (mut from, mut to) = two_nodes();
    let mut sas: Vec<_> = namesakes()[..MAX_CANDIDATES]
        .iter()
        .map(|id| {
            let keys = own_keys(id);
            (from.install_outbound(id, &keys).unwrap(), to.install_inbound(id, &keys).unwrap())
        })
        .collect();
    let crowded = namesakes()[MAX_CANDIDATES];
    let refused = to.install_inbound(&crowded, &own_keys(&crowded));
    assert_eq!(refused, Err(InstallError::SpiCrowded(spi(&crowded))));
    assert!(!refused.is_err_and(InstallError::needs_new_boot), "a peer could make this node draw new boots");

    for round in 0..3u8 {
        for &(out, inbound) in &sas {
            let datagram = seal(&mut from, out, &[round; 100]).unwrap();
            assert_eq!(open(&mut to, &datagram), Ok((inbound, vec![round; 100])));
            assert!(open(&mut to, &datagram).is_err());
        }
        sas.rotate_left(1);
    }
    // A failed open touches no window and no statistics.
    let (out, _) = sas[0];
    let mut forged = seal(&mut from, out, b"forged").unwrap();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let before: Vec<_> = to.summaries().collect();
    assert_eq!(open(&mut to, &forged), Err(EspDrop::BadTag));
    assert_eq!(to.summaries().collect::<Vec<_>>(), before);
    assert_eq!(to.open(&mut [forged, vec![0; MAX_DATAGRAM_LEN]].concat(), NOW), Err(EspDrop::TooLong));

    assert!(to.suspend_where(|_| true) == MAX_CANDIDATES);
    let datagram = seal(&mut from, out, b"x").unwrap();
    assert_eq!(open(&mut to, &datagram), Err(EspDrop::Suspended));
}

#[test]
fn an_erased_namesake_makes_room() {
    let (_, mut to) = two_nodes();
    let ids = namesakes();
    for id in &ids[..MAX_CANDIDATES] {
        to.install_inbound(id, &own_keys(id)).unwrap();
    }
    // The SPI holds the epoch mod 16 and a hash of the epoch: take the table's word for who shares one.
    let handles = *to.by_spi.get(&spi(&ids[0])).unwrap();
    let mut candidates = handles;
    candidates.remove(handles.as_slice()[1]);
    let kept = [handles.as_slice()[0], handles.as_slice()[2], handles.as_slice()[3]];
    assert_eq!(candidates.as_slice(), kept);
    assert_eq!(to.erase_epoch(ids[0].epoch), MAX_CANDIDATES);
    assert!(to.by_spi.is_empty());
}

#[test]
fn a_full_table_is_an_error_that_asks_for_a_new_boot() {
    let base = identity(Transform::Gcm);
    let (mut from, _) = two_nodes();
    let numbered = |number: usize| {
        let mut public = [0; 32];
        public[..8].copy_from_slice(&number.to_be_bytes());
        SaIdentity { dst_public: PublicKey(public), ..base }
    };
    for number in 0..MAX_SAS_PER_DIRECTION {
        let id = numbered(number);
        from.install_outbound(&id, &keys(&id)).unwrap();
    }
    let one_more = numbered(MAX_SAS_PER_DIRECTION);
    let refused = from.install_outbound(&one_more, &keys(&one_more));
    assert_eq!(refused, Err(InstallError::TableFull));
    assert!(refused.is_err_and(InstallError::needs_new_boot));
    // Suspending makes no room: the counter is still needed. Old ones go on.
    from.suspend_where(|_| true);
    assert_eq!(from.install_outbound(&one_more, &keys(&one_more)), Err(InstallError::TableFull));
    assert!(from.install_outbound(&numbered(0), &keys(&numbered(0))).is_ok());
    assert_eq!(from.erase_epoch(base.epoch), MAX_SAS_PER_DIRECTION);
    let next = SaIdentity { epoch: base.epoch.next(), ..one_more };
    assert!(from.install_outbound(&next, &keys(&next)).is_ok());
}

#[test]
fn the_memory_of_erased_epochs_is_bounded_and_never_forgets() {
    let mut erased = ErasedEpochs::default();
    let epochs: Vec<_> = (0..3 * MAX_ERASED_EPOCHS as u32).map(|i| Epoch(100 + 2 * i)).collect();
    for (index, &epoch) in epochs.iter().enumerate() {
        assert!(!erased.contains(epoch));
        assert!(!erased.contains(Epoch(epoch.0 - 1)), "an epoch between erased ones is alive");
        erased.insert(epoch);
        assert!(epochs[..=index].iter().all(|&epoch| erased.contains(epoch)));
        assert!(erased.single.len() <= MAX_ERASED_EPOCHS);
    }
    assert!(!erased.contains(Epoch(u32::MAX)));
}

#[test]
fn summaries_show_every_sa() {
    let base = identity(Transform::Gcm);
    let back = SaIdentity {
        src: base.dst,
        dst: base.src,
        src_boot: base.dst_boot,
        dst_boot: base.src_boot,
        src_public: base.dst_public,
        dst_public: base.src_public,
        ..base
    };
    let (mut left, mut right) = two_nodes();
    let out = left.install_outbound(&base, &keys(&base)).unwrap();
    left.install_inbound(&back, &keys(&back)).unwrap();
    let answer = right.install_outbound(&back, &keys(&back)).unwrap();
    seal(&mut left, out, b"12345").unwrap();
    seal(&mut right, answer, b"lost").unwrap();
    let datagram = seal(&mut right, answer, b"123").unwrap();
    open(&mut left, &datagram).unwrap();
    left.suspend(&back);
    let traffic = |packets, bytes, last_authenticated| SaTraffic { packets, bytes, last_authenticated };
    let summary = |identity, direction, enabled, sequence, traffic| SaSummary {
        identity,
        spi: spi(&identity),
        direction,
        enabled,
        sequence,
        traffic,
    };
    assert_eq!(
        left.summaries().collect::<Vec<_>>(),
        [
            summary(base, Direction::Outbound, true, 1, traffic(1, 5, None)),
            summary(back, Direction::Inbound, false, 2, traffic(1, 3, Some(NOW))),
        ]
    );
    assert!(!left.suspend(&SaIdentity { queue: 3, ..base }));
}

/// A small world for the property tests: few enough SAs that everything happens to each of them.
const PEERS: u8 = 2;
const NETWORKS: u8 = 2;
const EPOCHS: u32 = 4;
const MAX_WORKERS: u8 = 4;

#[derive(Debug, Clone)]
enum Op {
    Install(Which),
    Suspend(Which),
    /// Packets through the SA that was installed last under this choice, however stale the index.
    Seal(Which, u8),
    Erase(u32),
    /// This node starts again, with so many workers.
    Restart(u8),
    /// The peer starts again: new boot, new X25519 pair.
    PeerRestart(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Which {
    peer: u8,
    network: u8,
    epoch: u32,
    encrypted: bool,
    queue: u8,
}

fn which() -> impl Strategy<Value = Which> {
    let which = (0..PEERS, 0..NETWORKS, 0..EPOCHS, any::<bool>(), 0..MAX_WORKERS);
    which.prop_map(|(peer, network, epoch, encrypted, queue)| Which { peer, network, epoch, encrypted, queue })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => which().prop_map(Op::Install),
        4 => which().prop_map(Op::Suspend),
        16 => (which(), 1u8..4).prop_map(|(which, count)| Op::Seal(which, count)),
        2 => (0..EPOCHS).prop_map(Op::Erase),
        1 => (1..=MAX_WORKERS).prop_map(Op::Restart),
        1 => (0..PEERS).prop_map(Op::PeerRestart),
    ];
    proptest::collection::vec(op, 1..120)
}

/// Boots of this node and its peers; everything else follows from them.
struct World {
    boot: u8,
    workers: u8,
    peer_boots: [u8; PEERS as usize],
}

impl World {
    fn secret(node: u8, boot: u8, epoch: u32) -> X25519Secret {
        X25519Secret::new(&Key32::new(crypto::sha256(&[&[node, boot], &epoch.to_be_bytes()])))
    }

    /// The identity and keys as the daemon would make them now.
    fn derive(&self, which: Which) -> (SaIdentity, SaKeys) {
        let base = identity(if which.encrypted { Transform::Gcm } else { Transform::Gmac });
        let (own, peer) = (100, which.peer);
        let (own_boot, peer_boot) = (self.boot, self.peer_boots[usize::from(peer)]);
        let ours = World::secret(own, own_boot, which.epoch);
        let theirs = World::secret(peer, peer_boot, which.epoch);
        let epoch = Epoch(which.epoch);
        let network = NetworkId::from_random([which.network; 17]);
        let identity = SaIdentity {
            network,
            src: NodeId::from_random([own; 17]),
            dst: NodeId::from_random([peer; 17]),
            src_boot: BootId([own_boot; 8]),
            dst_boot: BootId([peer_boot; 8]),
            src_public: ours.public(),
            dst_public: theirs.public(),
            epoch,
            queue: which.queue,
            ..base
        };
        let master = Key32::new([which.epoch as u8; 32]);
        let network_key = network_key(&master, identity.cluster, identity.fork, epoch, network);
        let keys = SaKeys::derive(&network_key, &ours.agree(&theirs.public()).unwrap(), &identity);
        (identity, keys)
    }

    /// One for each worker.
    fn databases(&self) -> Vec<SaDatabase> {
        let share = |worker| WorkerShare { worker, workers: self.workers };
        (0..self.workers).map(|worker| SaDatabase::new(BootId([self.boot; 8]), share(worker))).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_key_and_nonce_come_twice(workers in 1..=MAX_WORKERS, ops in ops()) {
        let mut world = World { boot: 1, workers, peer_boots: [1; PEERS as usize] };
        let mut databases = world.databases();
        // What the data path holds: a worker, an index, and the key that the SA was made with.
        let mut held: BTreeMap<Which, (usize, OutboundIndex, [u8; 32], [u8; 4])> = BTreeMap::new();
        let mut nonces: BTreeSet<([u8; 32], [u8; 12])> = BTreeSet::new();
        for op in ops {
            match op {
                Op::Install(which) => {
                    let (identity, keys) = world.derive(which);
                    // Also at the workers that must not have it.
                    for (worker, database) in databases.iter_mut().enumerate() {
                        let refused = worker != usize::from(which.queue) || database.erased.contains(identity.epoch);
                        let installed = database.install_outbound(&identity, &keys);
                        prop_assert_eq!(installed.is_err(), refused);
                        if let Ok(index) = installed {
                            held.insert(which, (worker, index, *keys.key().expose(), keys.salt()));
                        }
                    }
                }
                Op::Suspend(which) => {
                    let identity = world.derive(which).0;
                    for database in &mut databases {
                        database.suspend(&identity);
                    }
                }
                Op::Seal(which, count) => {
                    let Some(&(worker, index, key, salt)) = held.get(&which) else { continue };
                    for _ in 0..count {
                        let Ok(datagram) = seal(&mut databases[worker], index, b"packet") else { continue };
                        let nonce: [u8; 12] = [&salt, &datagram[8..16]].concat().try_into().unwrap();
                        prop_assert!(nonces.insert((key, nonce)), "{:?} repeats {:?}", which, nonce);
                    }
                }
                Op::Erase(epoch) => {
                    for database in &mut databases {
                        database.erase_epoch(Epoch(epoch));
                    }
                }
                Op::Restart(workers) => {
                    world.boot += 1;
                    world.workers = workers;
                    databases = world.databases();
                    held.clear();
                }
                Op::PeerRestart(peer) => world.peer_boots[usize::from(peer)] += 1,
            }
        }
    }

    /// The receiver delivers each datagram at most once, whatever is suspended, installed again, held back and
    /// repeated; and only to the SA that it was sealed for.
    #[test]
    fn no_datagram_is_delivered_twice(
        steps in proptest::collection::vec((0u8..8, 0usize..4, any::<prop::sample::Index>()), 1..150),
    ) {
        let (mut from, mut to) = two_nodes();
        let ids = &namesakes()[..4];
        let outs: Vec<_> = ids.iter().map(|id| from.install_outbound(id, &own_keys(id)).unwrap()).collect();
        let mut sent: Vec<(usize, Vec<u8>)> = Vec::new();
        let mut delivered = BTreeSet::new();
        for (what, sa, pick) in steps {
            match what {
                0 => drop(to.install_inbound(&ids[sa], &own_keys(&ids[sa])).unwrap()),
                1 => drop(to.suspend(&ids[sa])),
                2..=4 => {
                    let payload = sent.len().to_be_bytes();
                    sent.push((sa, seal(&mut from, outs[sa], &payload).unwrap()));
                }
                _ if sent.is_empty() => {}
                _ => {
                    let number = pick.index(sent.len());
                    let (sealed_for, datagram) = &sent[number];
                    if let Ok((index, payload)) = open(&mut to, datagram) {
                        prop_assert!(delivered.insert(number), "delivered twice");
                        prop_assert_eq!(payload, number.to_be_bytes());
                        prop_assert_eq!(to.inbound(index).unwrap().identity(), &ids[*sealed_for]);
                    }
                }
            }
        }
    }

    /// Random octets, and real datagrams cut, lengthened and changed, do no harm and open nothing.
    #[test]
    fn mutated_datagrams_never_open(
        noise in proptest::collection::vec(any::<u8>(), 0..120),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
        length: prop::sample::Index,
        namesake: bool,
    ) {
        let (mut from, mut to) = two_nodes();
        let ids = &namesakes()[..if namesake { 3 } else { 1 }];
        for id in ids {
            to.install_inbound(id, &own_keys(id)).unwrap();
        }
        let out = from.install_outbound(&ids[0], &own_keys(&ids[0])).unwrap();
        let original = seal(&mut from, out, b"a real packet").unwrap();
        let mut datagram = [original.clone(), noise.clone()].concat();
        datagram.truncate(length.index(datagram.len() + 1));
        for (place, flip) in changes {
            if !datagram.is_empty() {
                let place = place.index(datagram.len());
                datagram[place] ^= flip;
            }
        }
        if datagram != original {
            prop_assert!(!matches!(to.open(&mut datagram, NOW), Ok(Some(_))));
        }
        let mut noise = noise;
        prop_assert!(!matches!(to.open(&mut noise, NOW), Ok(Some(_))));
        prop_assert!(open(&mut to, &original).is_ok());
    }
}
