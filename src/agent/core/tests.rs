//! What becomes of a push: no record is lost, whatever its number and whatever came first.

use super::*;
use crate::crypto::SigningKey;
use crate::types::{
    BootId, ClusterId, EndpointKey, EpochPhase, Generation, Id, NodeAddresses, Offloads, PublicKey, Queues, TaskId,
    Transform,
};
use crate::wire::control::{EpochView, NetworkKey, RingView};
use crate::wire::record::{EndpointBody, RecordVersion, RingRecord};
use std::net::{IpAddr, Ipv4Addr};

const CLUSTER: ClusterId = ClusterId(Id::ZERO);
const NETWORK: NetworkId = NetworkId(Id::ZERO);
const FORK: Fork = Fork(1);

fn node(number: u8) -> NodeId {
    NodeId::from_random([number; 17])
}

fn signer() -> SigningKey {
    SigningKey::new(&Key32::new([7; 32]))
}

fn network_key(epoch: Epoch) -> Key32 {
    Key32::new([epoch.0 as u8; 32])
}

fn sign(index: u64, epoch: Epoch, body: RecordBody) -> SignedRecord {
    let version = RecordVersion { fork: FORK, generation: Generation { fork: FORK, index }, epoch };
    SignedRecord::sign(&signer(), CLUSTER, version, body).unwrap()
}

/// An endpoint of another node, attested in `epoch`.
fn endpoint(number: u32, epoch: Epoch) -> SignedRecord {
    let mut task = [0; 17];
    task[..4].copy_from_slice(&number.to_be_bytes());
    let key = EndpointKey { network: NETWORK, task: TaskId::from_random(task) };
    let body = EndpointBody {
        address: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)),
        name: String::new(),
        aliases: Vec::new(),
        service: String::new(),
        task_slot: 1,
    };
    let generation = Generation { fork: FORK, index: 5 };
    let (scope, mut nonce) = ((CLUSTER, FORK, epoch), [0; 12]);
    nonce[..4].copy_from_slice(&number.to_be_bytes());
    let record = EndpointRecord::seal(key, node(2), generation, true, &body, &network_key(epoch), scope, nonce);
    sign(5, epoch, RecordBody::Endpoint(record.unwrap()))
}

fn own_record() -> SignedRecord {
    let address = "127.0.0.1:1".parse().unwrap();
    let addresses = NodeAddresses { control: address, gossip: address, data: address, behind_nat: false };
    let boot = BootId([1; 8]);
    let (version, publics, queues) = (String::new(), Vec::new(), Queues::ONE);
    let record = NodeRecord { node: node(1), boot, boot_index: 1, version, addresses, queues, publics };
    sign(1, Epoch(1), RecordBody::Node(record))
}

/// A push with these epochs, of which the second is current.
fn push(epochs: [u32; 3], records: Vec<Vec<u8>>) -> Push {
    let view = |(epoch, phase)| EpochView {
        epoch,
        phase,
        gossip_key: Key32::new([0; 32]),
        networks: vec![NetworkKey { network: NETWORK, key: network_key(epoch) }],
        participants: Vec::new(),
    };
    let phases = [EpochPhase::Previous, EpochPhase::Current, EpochPhase::Next];
    let networks = vec![NetworkView {
        id: NETWORK,
        name: "net".into(),
        transform: Transform::Gcm,
        subnet: "10.0.0.0/8".parse().unwrap(),
        mtu_bytes: None,
        members: vec![(node(1), true), (node(2), true)],
    }];
    let attestation: Vec<PublicKey> = vec![signer().public()];
    let [oldest, active, _] = epochs.map(Epoch);
    let head = sign(9, active, RecordBody::Ring(RingRecord { active, oldest })).encoded().to_vec();
    Push {
        swarm: Some(SwarmView {
            cluster: CLUSTER,
            fork: FORK,
            heartbeat_secs: 5,
            disabled_offloads: Offloads::NONE,
            managers: Vec::new(),
            attestation,
            roots: Vec::new(),
            gone: Vec::new(),
        }),
        ring: Some(RingView { epochs: epochs.map(Epoch).into_iter().zip(phases).map(view).collect() }),
        networks,
        records: [head].into_iter().chain(records).collect(),
        ..Push::default()
    }
}

struct Host {
    core: Core,
    drawn: u8,
    remotes: BTreeSet<IpAddr>,
}

impl Host {
    fn new() -> Host {
        let config =
            KeysConfig { cluster: CLUSTER, fork: FORK, node: node(1), boot: BootId([1; 8]), queues: Queues::ONE };
        Host { core: Core::new(config, Time(0), [3; 32]), drawn: 0, remotes: BTreeSet::new() }
    }

    fn apply(&mut self, push: Push) {
        let drawn = &mut self.drawn;
        let mut draw = || {
            *drawn += 1;
            Key32::new([*drawn; 32])
        };
        assert!(self.core.apply(push, &mut draw, Time(0)).is_some());
        self.settle();
    }

    fn settle(&mut self) {
        self.core.settle(Time(0));
        for command in self.core.commands.drain(..) {
            if let DataCommand::SetRemote { address, .. } = command {
                self.remotes.insert(address);
            }
        }
    }
}

#[test]
fn an_endpoint_that_came_before_the_key_that_opens_it_is_entered_with_the_key() {
    let mut host = Host::new();
    host.apply(push([1, 2, 3], vec![own_record().encoded().to_vec()]));
    let early = endpoint(1, Epoch(5));
    host.core.gossip.insert_records([early.clone()], Time(0));
    host.settle();
    assert!(host.remotes.is_empty());
    host.apply(push([4, 5, 6], vec![early.encoded().to_vec()]));
    assert_eq!(host.remotes.len(), 1, "packets to it would be dropped until the next rotation");
}

#[test]
fn a_push_of_more_records_than_gossip_reports_at_once_loses_none() {
    let count = crate::gossip::EVENTS_MAX + 100;
    let records = (1..=count as u32).map(|number| endpoint(number, Epoch(2)).encoded().to_vec());
    let mut host = Host::new();
    host.apply(push([1, 2, 3], records.collect()));
    assert_eq!(host.remotes.len(), count);
}

#[test]
fn an_early_rotation_is_asked_for_again_in_the_next_session() {
    let mut host = Host::new();
    host.apply(push([1, 2, 3], Vec::new()));
    host.core.worn = Some(Epoch(2));
    let asks = |core: &mut Core| {
        core.outgoing.clear();
        core.handle_session(Time(0));
        core.settle(Time(0));
        core.outgoing.iter().any(|message| matches!(message, FromAgent::RotateEarly))
    };
    assert!(asks(&mut host.core));
    host.apply(push([2, 3, 4], Vec::new()));
    assert!(!asks(&mut host.core), "the rotation has come");
}
