//! Golden vectors and properties of records.

use super::*;
use crate::types::{NetworkId, TaskId};
use proptest::prelude::*;

fn cluster() -> ClusterId {
    ClusterId::from_random([1; 17])
}

fn key() -> SigningKey {
    SigningKey::new(&Key32::new([9; 32]))
}

fn trust() -> TrustBundle {
    TrustBundle { keys: vec![key().public()], fork: Fork(1_700_000_000) }
}

fn version() -> RecordVersion {
    let fork = Fork(1_700_000_000);
    RecordVersion { fork, generation: Generation { fork, index: 42 }, epoch: Epoch(7) }
}

fn node_record() -> NodeRecord {
    NodeRecord {
        node: NodeId::from_random([2; 17]),
        boot: BootId([3; 8]),
        boot_index: 17,
        version: "0.1.0".into(),
        addresses: NodeAddresses {
            control: "192.0.2.1:2377".parse().unwrap(),
            gossip: "192.0.2.1:7946".parse().unwrap(),
            data: "[2001:db8::1]:4500".parse().unwrap(),
            behind_nat: false,
        },
        queues: Queues::try_from(4).unwrap(),
        publics: vec![(Epoch(6), PublicKey([4; 32])), (Epoch(7), PublicKey([5; 32]))],
    }
}

fn endpoint_body() -> EndpointBody {
    EndpointBody {
        address: "10.0.0.3".parse().unwrap(),
        name: "web.1.x".into(),
        aliases: vec!["www".into()],
        service: "web".into(),
        task_slot: 1,
    }
}

fn endpoint_record() -> EndpointRecord {
    let key = EndpointKey { network: NetworkId::from_random([6; 17]), task: TaskId::from_random([7; 17]) };
    let version = version();
    EndpointRecord::seal(
        key,
        NodeId::from_random([2; 17]),
        version.generation,
        true,
        &endpoint_body(),
        &Key32::new([8; 32]),
        (cluster(), version.fork, version.epoch),
        [0xa; 12],
    )
    .unwrap()
}

fn bodies() -> Vec<RecordBody> {
    vec![
        RecordBody::Node(node_record()),
        RecordBody::Gone(NodeId::from_random([2; 17])),
        RecordBody::Endpoint(endpoint_record()),
        RecordBody::Ring(RingRecord { active: Epoch(7), oldest: Epoch(6) }),
    ]
}

fn sign(body: RecordBody) -> SignedRecord {
    SignedRecord::sign(&key(), cluster(), version(), body).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_vectors() {
    let encoded: Vec<String> = bodies().into_iter().map(|body| hex(sign(body).encoded())).collect();
    let golden: Vec<&str> = include_str!("testdata/records.hex").lines().collect();
    assert_eq!(encoded, golden);
}

#[test]
fn signed_records_round_trip_and_verify() {
    for body in bodies() {
        let signed = sign(body.clone());
        let parsed = SignedRecord::parse(signed.encoded()).unwrap();
        assert_eq!(parsed, signed);
        let verified = parsed.verify(&trust(), cluster()).unwrap();
        assert_eq!(verified.body(), &body);
        let carried: SignedRecord = postcard::from_bytes(&postcard::to_stdvec(&signed).unwrap()).unwrap();
        assert_eq!(carried, signed);
    }
}

#[test]
fn endpoint_bodies_open_for_members_only_and_only_as_attested() {
    let verified = sign(RecordBody::Endpoint(endpoint_record())).verify(&trust(), cluster()).unwrap();
    assert_eq!(verified.open_endpoint(&Key32::new([8; 32]), cluster()), Ok(endpoint_body()));
    assert_eq!(verified.open_endpoint(&Key32::new([7; 32]), cluster()), Err(RecordError::Unauthentic));
    let context = (cluster(), version().fork, version().epoch);
    let mut moved = endpoint_record();
    moved.node = NodeId::from_random([99; 17]);
    assert_eq!(moved.open(&Key32::new([8; 32]), context), Err(RecordError::Unauthentic));
    let later = (cluster(), version().fork, Epoch(8));
    assert_eq!(endpoint_record().open(&Key32::new([8; 32]), later), Err(RecordError::Unauthentic));
}

#[test]
fn only_the_managers_of_this_cluster_and_fork_are_believed() {
    let signed = sign(RecordBody::Gone(NodeId::from_random([2; 17])));
    let other = ClusterId::from_random([2; 17]);
    assert_eq!(signed.clone().verify(&trust(), other), Err(RecordError::Unauthentic));
    let later = TrustBundle { fork: Fork(1_700_000_001), ..trust() };
    assert_eq!(signed.clone().verify(&later, cluster()), Err(RecordError::OtherFork));
    let stranger = SigningKey::new(&Key32::new([10; 32]));
    let nobody = TrustBundle { keys: vec![stranger.public()], ..trust() };
    assert_eq!(signed.clone().verify(&nobody, cluster()), Err(RecordError::UnknownSigner));
    let third = TrustBundle { keys: vec![stranger.public(), stranger.public(), key().public()], ..trust() };
    assert_eq!(signed.verify(&third, cluster()), Err(RecordError::UnknownSigner));
}

#[test]
fn bounds_are_kept() {
    let mut long_version = node_record();
    long_version.version = "v".repeat(VERSION_MAX + 1);
    let mut many = node_record();
    many.publics = (0..4).map(|epoch| (Epoch(epoch), PublicKey([1; 32]))).collect();
    let mut twice = node_record();
    twice.publics = vec![(Epoch(7), PublicKey([1; 32])), (Epoch(7), PublicKey([2; 32]))];
    let mut sealed = endpoint_record();
    sealed.sealed = vec![0; SEALED_MAX + 1];
    for (body, error) in [
        (RecordBody::Node(long_version), RecordError::TooLong),
        (RecordBody::Node(many), RecordError::TooLong),
        (RecordBody::Node(twice), RecordError::Malformed),
        (RecordBody::Endpoint(sealed), RecordError::TooLong),
        (RecordBody::Ring(RingRecord { active: Epoch(1), oldest: Epoch(2) }), RecordError::Malformed),
    ] {
        assert_eq!(SignedRecord::sign(&key(), cluster(), version(), body), Err(error));
    }
}

#[test]
fn a_number_of_queues_out_of_range_is_malformed() {
    let good = sign(RecordBody::Node(node_record())).encoded().to_vec();
    // The end of the data address, not behind NAT, four queues.
    let at = good.windows(3).position(|bytes| bytes == [0x23, 0, 4]).unwrap() + 2;
    for (queues, parsed) in [(1, true), (16, true), (0, false), (17, false), (255, false)] {
        let mut encoded = good.clone();
        encoded[at] = queues;
        assert_eq!(SignedRecord::parse(&encoded).is_ok(), parsed, "{queues}");
    }
}

#[test]
fn the_longest_records_fit() {
    let max = Fork(u64::MAX);
    let version =
        RecordVersion { fork: max, generation: Generation { fork: max, index: u64::MAX }, epoch: Epoch(u32::MAX) };
    let v6 = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap();
    let mut node = node_record();
    node.version = "v".repeat(VERSION_MAX);
    node.boot_index = u64::MAX;
    node.addresses = NodeAddresses { control: v6, gossip: v6, data: v6, behind_nat: true };
    node.publics = (0..3).map(|i| (Epoch(u32::MAX - 3 + i), PublicKey([0xff; 32]))).collect();
    let mut endpoint = endpoint_record();
    endpoint.generation = version.generation;
    endpoint.sealed = vec![0xff; SEALED_MAX];
    for body in [RecordBody::Node(node), RecordBody::Endpoint(endpoint)] {
        assert!(SignedRecord::sign(&key(), cluster(), version, body).unwrap().encoded().len() <= RECORD_MAX);
    }
}

#[test]
fn the_fork_comes_first_then_content_then_epoch() {
    let version = |fork, index, epoch| RecordVersion {
        fork: Fork(fork),
        generation: Generation { fork: Fork(1), index },
        epoch: Epoch(epoch),
    };
    assert!(version(2, 1, 1) > version(1, 9, 9));
    assert!(version(1, 2, 1) > version(1, 1, 9));
    assert!(version(1, 1, 2) > version(1, 1, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_mutation_is_believed(which in 0usize..4, position in any::<prop::sample::Index>(), change in 1u8..) {
        let mut encoded = sign(bodies().swap_remove(which)).encoded().to_vec();
        let position = position.index(encoded.len());
        encoded[position] ^= change;
        if let Ok(parsed) = SignedRecord::parse(&encoded) {
            prop_assert_eq!(parsed.encoded(), &encoded[..]);
            prop_assert!(parsed.verify(&trust(), cluster()).is_err());
        }
    }

    #[test]
    fn what_parses_is_canonical(encoded in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(parsed) = SignedRecord::parse(&encoded) {
            prop_assert_eq!(parsed.encoded(), &encoded[..]);
        }
    }
}
