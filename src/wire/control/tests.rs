//! Golden bytes: a change of what goes over the wire is a new ALPN.

use super::*;
use crate::wire::frame;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn addresses() -> NodeAddresses {
    NodeAddresses {
        control: "10.77.0.1:2377".parse().unwrap(),
        gossip: "10.77.0.1:7946".parse().unwrap(),
        data: "10.77.0.1:4500".parse().unwrap(),
        behind_nat: false,
    }
}

#[test]
fn frames_are_frozen() {
    let node = NodeId::from_random([0x11; 17]);
    let session = SessionRequest {
        boot: BootId([7; 8]),
        hostname: "ant-1".into(),
        software: "0.1.0".into(),
        addresses: addresses(),
        resources: HostResources { processors: 4, memory_bytes: 1 << 30 },
    };
    let join = JoinRequest {
        secret: Zeroizing::new([0xa5; 16]),
        csr: vec![0x30, 0x00],
        hostname: "ant-1".into(),
        software: "0.1.0".into(),
        addresses: addresses(),
        availability: Availability::Active,
    };
    let ring = RingView {
        epochs: vec![EpochView {
            epoch: Epoch(300),
            phase: EpochPhase::Next,
            gossip_key: Key32::new([1; 32]),
            networks: vec![NetworkKey { network: NetworkId::from_random([2; 17]), key: Key32::new([3; 32]) }],
            participants: vec![node],
        }],
    };
    let encoded = [
        frame::encode(&Opening::Join(join)).unwrap(),
        frame::encode(&Opening::Session(session)).unwrap(),
        frame::encode(&Answer::Refused { reason: "no".into() }).unwrap(),
        frame::encode(&Answer::Opened { boot_index: 300 }).unwrap(),
        frame::encode(&FromAgent::Heartbeat).unwrap(),
        frame::encode(&FromAgent::Public { epoch: Epoch(300), public: PublicKey([9; 32]) }).unwrap(),
        frame::encode(&ToAgent::Ring(ring)).unwrap(),
        frame::encode(&ToAgent::Commit { index: 300 }).unwrap(),
    ];
    let text: String = encoded.iter().map(|frame| hex(frame) + "\n").collect();
    assert_eq!(text, include_str!("golden.txt"));
}
