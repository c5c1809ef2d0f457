//! Golden bytes: a change of what goes over the wire is a new ALPN.

use super::*;
use crate::types::{
    Attachment, ContainerSpec, Generation, Offload, Offloads, Resources, ServiceId, TaskState, UnixTime,
};
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
        machine: Machine {
            os: "linux".into(),
            architecture: "x86_64".into(),
            resources: Resources { nano_cpus: 2_000_000_000, memory_bytes: 1 << 30 },
        },
        queues: Queues::try_from(4).unwrap(),
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
    let openings = [
        Opening::Join(join),
        Opening::Session(session),
        Opening::Renew { csr: vec![0x30, 0x00] },
        Opening::Leave,
        Opening::Consensus { from: 300, to: 8, address: addresses().control },
        Opening::Forward,
        Opening::Read,
        Opening::State,
        Opening::Certified { root: [0xcd; 32] },
    ];
    let frames = [
        openings.iter().map(line).collect::<String>(),
        answers(node).iter().map(line).collect(),
        from_agent().iter().map(line).collect(),
        to_agent(node, ring).iter().map(line).collect(),
    ];
    assert_eq!(frames.concat(), include_str!("golden.txt"));
}

fn line(message: &impl Serialize) -> String {
    hex(&frame::encode(message).unwrap()) + "\n"
}

fn answers(node: NodeId) -> Vec<Answer> {
    let joined = Joined {
        node,
        cluster: ClusterId::from_random([4; 17]),
        fork: Fork(1_700_000_000),
        role: Role::Worker,
        data_path_port: 4500,
        chain: vec![vec![1, 2], vec![3]],
    };
    vec![
        Answer::Refused { reason: "no".into() },
        Answer::Removed,
        Answer::Joined(joined),
        Answer::Opened { boot_index: 300 },
        Answer::Renewed { chain: vec![vec![1, 2], vec![3]] },
        Answer::Left,
        Answer::FormerBoot,
        Answer::NotLeader { leader: Some("10.77.0.1:2377".parse().unwrap()) },
        Answer::Listening,
        Answer::Forwarded { outcome: vec![1, 2] },
        Answer::Index { index: 300 },
        Answer::State { total: 300 },
        Answer::Noted,
    ]
}

fn task() -> TaskId {
    TaskId::from_random([5; 17])
}

fn from_agent() -> Vec<FromAgent> {
    let status = TaskStatus {
        state: TaskState::Running,
        message: "started".into(),
        error: String::new(),
        exit_code: Some(-1),
        pid: Some(4242),
        at: UnixTime(1_700_000_000),
    };
    vec![
        FromAgent::Heartbeat,
        FromAgent::Public { epoch: Epoch(300), public: PublicKey([9; 32]) },
        FromAgent::Ready { epoch: Epoch(300) },
        FromAgent::Sending { epoch: Epoch(300) },
        FromAgent::RotateEarly,
        FromAgent::Tasks { statuses: vec![(task(), status)] },
        FromAgent::TaskGone { id: task() },
        FromAgent::Attach {
            id: task(),
            request: AttachRequest {
                name: "box".into(),
                image: "host:latest".into(),
                network: NetworkId::from_random([2; 17]),
                address: Some("10.0.1.9".parse().unwrap()),
                aliases: vec!["alias".into()],
            },
        },
    ]
}

fn to_agent(node: NodeId, ring: RingView) -> Vec<ToAgent> {
    let network = NetworkId::from_random([2; 17]);
    let swarm = SwarmView {
        cluster: ClusterId::from_random([4; 17]),
        fork: Fork(1_700_000_000),
        heartbeat_secs: 5,
        disabled_offloads: Offloads::NONE.with(Offload::UdpGro),
        managers: vec![ManagerView { node, seat: 9, address: "10.77.0.1:2377".parse().unwrap() }],
        attestation: vec![PublicKey([8; 32])],
        roots: vec![vec![0x30, 0x82]],
        gone: vec![node],
    };
    let view = NetworkView {
        id: network,
        name: "net".into(),
        transform: Transform::Gcm,
        subnet: "10.0.1.0/24".parse().unwrap(),
        mtu_bytes: Some(1400),
        members: vec![(node, true)],
    };
    let container = ContainerSpec {
        image: "host:latest".into(),
        command: vec!["sh".into()],
        args: vec!["-c".into()],
        env: vec!["A=b".into()],
        dir: "/tmp".into(),
        hostname: "web".into(),
    };
    let attachment = Attachment {
        network,
        address: "10.0.1.2/24".parse().unwrap(),
        aliases: vec!["alias".into()],
        generation: Generation { fork: Fork(1_700_000_000), index: 300 },
    };
    let assignment = TaskAssignment {
        id: task(),
        service: ServiceId::from_random([6; 17]),
        service_name: "web".into(),
        slot: 1,
        node,
        container,
        attachments: vec![attachment],
        desired: TaskState::Running,
        standalone: false,
    };
    vec![
        ToAgent::Alive { at: UnixTime(1_800_000_000) },
        ToAgent::Swarm(swarm),
        ToAgent::Ring(ring),
        ToAgent::Names(vec![NetworkName { id: network, name: "net".into(), attachable: true }]),
        ToAgent::Networks(vec![view]),
        ToAgent::Tasks(vec![assignment]),
        ToAgent::Records(vec![vec![1, 2, 3]]),
        ToAgent::Commit { index: 300 },
        ToAgent::Removed,
        ToAgent::Probe,
        ToAgent::AttachRefused { id: task(), reason: "full".into() },
    ]
}
