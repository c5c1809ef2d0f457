//! Golden vectors and properties of gossip datagrams.

use super::*;
use crate::crypto::X25519Secret;
use proptest::prelude::*;

fn cluster() -> ClusterId {
    ClusterId::from_random([1; 17])
}

pub(super) struct Fixture {
    pub(super) key: Key32,
    pub(super) header: Header,
    pub(super) to: (NodeId, BootId),
}

pub(super) fn pair() -> Fixture {
    let (ours, theirs) = (X25519Secret::new(&Key32::new([2; 32])), X25519Secret::new(&Key32::new([3; 32])));
    let source = Party { node: NodeId::from_random([4; 17]), boot: BootId([5; 8]), public: ours.public() };
    let destination = Party { node: NodeId::from_random([6; 17]), boot: BootId([7; 8]), public: theirs.public() };
    let shared = ours.agree(&theirs.public()).unwrap();
    let context = (cluster(), Fork(1_700_000_000), Epoch(9));
    let key = pair_key(&Key32::new([8; 32]), &shared, context, &source, &destination);
    let header = Header { epoch: Epoch(9), node: source.node, boot: source.boot, form: Form::Pair { counter: 258 } };
    Fixture { key, header, to: (destination.node, destination.boot) }
}

pub(super) fn hello_header() -> Header {
    Header { form: Form::Hello { nonce: [10; 12] }, ..pair().header }
}

pub(super) fn messages() -> Vec<Message> {
    let item = Item { hash: [1; 8], fork_age: 0, index: 300, epoch: Epoch(9) };
    vec![
        Message::News,
        Message::Ping { sequence: 1 },
        Message::Ack { sequence: 300 },
        Message::PingRequest { sequence: 2, target: NodeId::from_random([6; 17]) },
        Message::Root { hash: [0xab; 8] },
        Message::Digest { level: 1, bucket: 63, hashes: vec![[0xcd; 8]; DIGEST_LEN] },
        Message::Items { from: [0; 8], to: [0xff; 8], items: vec![item] },
        Message::Want { hashes: vec![[1; 8], [2; 8]] },
        Message::Records,
    ]
}

pub(super) fn payload(message: Message) -> Payload {
    let update = Update {
        node: NodeId::from_random([6; 17]),
        boot: BootId([7; 8]),
        incarnation: 5,
        liveness: Liveness::Suspect,
    };
    Payload { incarnation: 3, message, updates: vec![update], records: vec![vec![1, 2, 3]] }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_vectors() {
    let pair = pair();
    let mut lines = vec![
        hex(pair.key.expose()),
        hex(hello_key(&Key32::new([8; 32])).expose()),
        hex(&seal_pair(&pair.key, &pair.header, pair.to, b"payload")),
        hex(&seal_hello(
            &hello_key(&Key32::new([8; 32])),
            &hello_header(),
            &Hello { ring: b"ring", node: b"node" }.emit(),
        )),
    ];
    lines.extend(messages().into_iter().map(|message| hex(&payload(message).emit())));
    let golden: Vec<&str> = include_str!("testdata/gossip.hex").lines().collect();
    assert_eq!(lines, golden);
}

#[test]
fn payloads_round_trip() {
    for message in messages() {
        let payload = payload(message);
        assert_eq!(Payload::parse(&payload.emit()), Ok(payload));
    }
}

#[test]
fn a_hello_is_two_records() {
    for (ring, node) in [(&b"ring"[..], &b"node"[..]), (b"", b"node"), (b"ring", b"")] {
        let hello = Hello { ring, node };
        assert_eq!(Hello::parse(&hello.emit()), Ok(hello));
    }
    let (ring, node) = ([1; 200], [2; crate::wire::record::RECORD_MAX]);
    let plain = Hello { ring: &ring, node: &node }.emit();
    assert_eq!(Hello::parse(&plain), Ok(Hello { ring: &[], node: &node }), "the node record is what counts");
    for malformed in [&[][..], &[0], &[0, 5, 1, 2], &[0xff, 0xff, 1]] {
        assert_eq!(Hello::parse(malformed), Err(DatagramError::Payload));
    }
}

#[test]
fn the_largest_messages_fit() {
    let item = Item { hash: [1; 8], fork_age: u64::MAX, index: u64::MAX, epoch: Epoch(u32::MAX) };
    for message in [
        Message::Digest { level: 1, bucket: 1, hashes: vec![[0xff; 8]; DIGEST_LEN] },
        Message::Items { from: [0; 8], to: [0xff; 8], items: vec![item; ITEMS_MAX] },
        Message::Want { hashes: vec![[0xff; 8]; WANT_MAX] },
    ] {
        let payload = Payload { incarnation: u32::MAX, message, updates: vec![], records: vec![] };
        assert!(payload.emit().len() <= PLAINTEXT_MAX);
        assert!(Payload::parse(&payload.emit()).is_ok());
    }
    assert_eq!(PLAINTEXT_MAX, 1178);
}

#[test]
fn payloads_out_of_bounds_are_refused() {
    let update = payload(Message::News).updates[0];
    let item = Item { hash: [1; 8], fork_age: 0, index: 1, epoch: Epoch(1) };
    for bad in [
        Message::Digest { level: 2, bucket: 0, hashes: vec![[0; 8]; DIGEST_LEN] },
        Message::Digest { level: 0, bucket: 1, hashes: vec![[0; 8]; DIGEST_LEN] },
        Message::Digest { level: 1, bucket: 64, hashes: vec![[0; 8]; DIGEST_LEN] },
        Message::Digest { level: 0, bucket: 0, hashes: vec![[0; 8]; DIGEST_LEN - 1] },
        Message::Items { from: [1; 8], to: [0; 8], items: vec![] },
        Message::Items { from: [0; 8], to: [1; 8], items: vec![item; ITEMS_MAX + 1] },
        Message::Want { hashes: vec![[0; 8]; WANT_MAX + 1] },
    ] {
        assert_eq!(Payload::parse(&payload(bad).emit()), Err(DatagramError::Payload));
    }
    let crowded = Payload { updates: vec![update; UPDATES_MAX + 1], ..payload(Message::News) };
    assert_eq!(Payload::parse(&crowded.emit()), Err(DatagramError::Payload));
    let mut trailing = payload(Message::News).emit();
    trailing.push(0);
    assert_eq!(Payload::parse(&trailing), Err(DatagramError::Payload));
}

#[test]
fn headers_are_told_apart_by_the_version_octet() {
    let pair = pair();
    for header in [pair.header, hello_header()] {
        let mut datagram = header.emit();
        datagram.extend_from_slice(&[0; TAG_LEN]);
        assert_eq!(Header::parse(&datagram), Ok((header, &[0; TAG_LEN][..])));
        assert_eq!(Header::parse(&datagram[..datagram.len() - 1]), Err(DatagramError::Length));
        datagram[0] = 3;
        assert_eq!(Header::parse(&datagram), Err(DatagramError::Version));
        datagram[0] = header.emit()[0];
        datagram[5..22].fill(0xff);
        assert_eq!(Header::parse(&datagram), Err(DatagramError::Source));
        datagram.resize(DATAGRAM_MAX + 1, 0);
        assert_eq!(Header::parse(&datagram), Err(DatagramError::Length));
    }
    assert_eq!((pair.header.emit().len(), hello_header().emit().len()), (PAIR_HEADER_LEN, HELLO_HEADER_LEN));
}

#[test]
fn each_direction_and_receiver_has_its_own_seal() {
    let pair = pair();
    let datagram = seal_pair(&pair.key, &pair.header, pair.to, b"payload");
    let (header, sealed) = Header::parse(&datagram).unwrap();
    assert_eq!(open_pair(&pair.key, &header, pair.to, sealed).unwrap().as_slice(), b"payload");
    assert!(open_pair(&pair.key, &header, (pair.to.0, BootId([8; 8])), sealed).is_err());
    assert!(open_pair(&pair.key, &header, (header.node, pair.to.1), sealed).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn no_mutated_datagram_opens(hello in any::<bool>(), at in any::<prop::sample::Index>(), change in 1u8..) {
        let pair = pair();
        let shared = hello_key(&Key32::new([8; 32]));
        let mut datagram = if hello {
            seal_hello(&shared, &hello_header(), b"record")
        } else {
            seal_pair(&pair.key, &pair.header, pair.to, b"payload")
        };
        let at = at.index(datagram.len());
        datagram[at] ^= change;
        if let Ok((header, sealed)) = Header::parse(&datagram) {
            prop_assert!(open_pair(&pair.key, &header, pair.to, sealed).is_err());
            prop_assert!(open_hello(&shared, &header, sealed).is_err());
        }
    }

    #[test]
    fn what_parses_is_canonical(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(payload) = Payload::parse(&bytes) {
            prop_assert_eq!(payload.emit(), bytes);
        }
    }
}
