//! What a megabyte costs in system calls and allocations, each way: counted, not timed. A program of its own, since it
//! counts with the allocator.

use formic::dataplane::{CallStats, DataCommand, Dataplane, DataplaneConfig, Offloads};
use formic::esp::{Direction, SaIdentity, SaKeys};
use formic::offload::{Gso, GsoKind, OpenChecksum, VnetHeader};
use formic::sys::clock::Clock;
use formic::types::{
    BootId, ClusterId, EndpointKey, Epoch, Fork, Generation, Key32, NetworkId, NodeId, PublicKey, Queues, TaskId,
    Transform,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
// Without the reactor's thread, which allocates when it starts.
use smol::future::block_on;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

#[path = "../sys/counting.rs"]
mod counting;

#[global_allocator]
static ALLOCATOR: counting::CountingAllocator = counting::CountingAllocator;

/// As the helper bounds a super-packet at the usual MTU: 44 packets with 1386 octets of payload.
const SEGMENT_BYTES: usize = 1386;
const SEGMENTS: usize = 44;

/// Super-packets sent: 60 MB.
const FRAMES: usize = 1000;

/// System calls on a device or the socket, looks at the poller included, for a megabyte: four for a super-packet, of
/// which there are 16.4 in a megabyte, and a few that find nothing. One packet at a time takes 1500 and more.
const MAX_CALLS_PER_MEGABYTE: u64 = 90;

struct Node {
    data: Dataplane,
    id: NodeId,
    boot: BootId,
}

fn start(number: u8) -> Node {
    let boot = BootId([number; 8]);
    let bind = SocketAddr::from(([127, 0, 0, number], 0));
    let config = DataplaneConfig { bind, boot, clock: Clock::start(), workers: Queues::ONE, offloads: Offloads::ALL };
    Node { data: Dataplane::start(config).unwrap(), id: NodeId::from_random([number; 17]), boot }
}

fn network() -> NetworkId {
    NetworkId::from_random([40; 17])
}

fn address(node: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, node as u8 + 2))
}

/// The SA of one direction at one end of it, and its traffic.
fn connect(nodes: &[Node; 2], at: usize, direction: Direction) {
    let (own, peer) = (&nodes[at], &nodes[1 - at]);
    let (from, to) = if direction == Direction::Outbound { (own, peer) } else { (peer, own) };
    let identity = SaIdentity {
        transform: Transform::Gcm,
        cluster: ClusterId::from_random([1; 17]),
        fork: Fork(1),
        network: network(),
        src: from.id,
        dst: to.id,
        src_boot: from.boot,
        dst_boot: to.boot,
        src_public: PublicKey([1; 32]),
        dst_public: PublicKey([2; 32]),
        epoch: Epoch(1),
        queue: 0,
    };
    let keys = SaKeys::external(&identity, Key32::new([7; 32]), [1, 2, 3, 4]);
    let mut commands = vec![DataCommand::InstallSa { identity, keys, direction }];
    if direction == Direction::Outbound {
        commands.push(DataCommand::SetSending { network: network(), peer: peer.id, outbound: identity });
    }
    own.data.send_blocking(commands).unwrap();
}

/// One container on each of two nodes that know each other.
fn pair() -> ([Node; 2], [UnixDatagram; 2]) {
    let nodes = [start(2), start(3)];
    let containers = [0, 1].map(|at| {
        let (own, peer) = (&nodes[at], &nodes[1 - at]);
        let (tun, socket) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let endpoint = EndpointKey { network: network(), task: TaskId::from_random([at as u8; 17]) };
        let generation = Generation { fork: Fork(1), index: 1 };
        own.data
            .send_blocking(vec![
                DataCommand::SetNetwork { network: network(), transform: Transform::Gcm, subnet: None },
                DataCommand::AddEndpoint { endpoint, address: address(at), queues: vec![tun], vnet: true },
                DataCommand::SetPeerAddress { peer: peer.id, address: peer.data.address() },
                DataCommand::SetRemote {
                    network: network(),
                    address: address(1 - at),
                    peer: peer.id,
                    generation,
                    alive: true,
                },
            ])
            .unwrap();
        let socket = UnixDatagram::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    });
    for (at, direction) in
        [(1, Direction::Inbound), (0, Direction::Inbound), (0, Direction::Outbound), (1, Direction::Outbound)]
    {
        connect(&nodes, at, direction);
        block_on(nodes[at].data.stats()).unwrap();
    }
    (nodes, containers)
}

/// A TCP super-packet as a container's kernel hands it over.
fn frame(from: usize, sequence: u32) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (address(from), address(1 - from)) else { unreachable!() };
    let payload = vec![0x5a; SEGMENTS * SEGMENT_BYTES];
    let builder = etherparse::PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        .tcp(1, 2, sequence, 1000)
        .ack(1)
        .options_raw(&[1; 12])
        .unwrap();
    let mut packet = Vec::new();
    builder.write(&mut packet, &payload).unwrap();
    let length = (packet.len() - 20) as u16;
    let pseudo = etherparse::checksum::Sum16BitWords::new()
        .add_4bytes(source.octets())
        .add_4bytes(destination.octets())
        .add_2bytes([0, 6])
        .add_2bytes(length.to_be_bytes())
        .ones_complement();
    packet[36..38].copy_from_slice(&(!pseudo).to_ne_bytes());
    let header = VnetHeader {
        checksum: Some(OpenChecksum { start: 20, offset: 16 }),
        gso: Some(Gso { kind: GsoKind::TcpV4, size: NonZeroU16::new(SEGMENT_BYTES as u16).unwrap(), ecn: false }),
        header_len: 52,
    };
    [&header.emit()[..], &packet].concat()
}

fn total(calls: CallStats) -> u64 {
    calls.device_reads + calls.device_writes + calls.receives + calls.sends + calls.polls
}

#[test]
fn a_megabyte_costs_few_calls_and_no_allocation() {
    counting::ignore_this_thread();
    let (nodes, containers) = pair();
    let calls = |at: usize| block_on(nodes[at].data.stats()).unwrap();
    let mut buffer = vec![0; 1 << 17];
    for from in [0, 1] {
        let frame = frame(from, 1);
        // The first one fills whatever is filled once.
        let mut exchange = || {
            containers[from].send(&frame).unwrap();
            let mut packets = 0;
            while packets < SEGMENTS * SEGMENT_BYTES {
                packets += containers[1 - from].recv(&mut buffer).unwrap() - 10 - 52;
            }
        };
        exchange();
        let before = [calls(0), calls(1)];
        // The workers may still be about their answers, which cost allocations, until they carry the next one.
        exchange();
        let allocations = counting::allocations();
        (0..FRAMES).for_each(|_| exchange());
        assert_eq!(counting::allocations(), allocations, "allocations from {from}");
        let after = [calls(0), calls(1)];
        let megabytes = (FRAMES * SEGMENTS * SEGMENT_BYTES) as u64 / 1_000_000;
        for at in [0, 1] {
            let spent = total(after[at].calls) - total(before[at].calls);
            println!("from {from}, at {at}: {:.1} calls for a megabyte", spent as f64 / megabytes as f64);
            assert!(
                spent <= megabytes * MAX_CALLS_PER_MEGABYTE,
                "{spent} calls for {megabytes} MB from {from} at {at}: {:?}, {:?} before",
                after[at].calls,
                before[at].calls
            );
            assert_eq!(after[at].drops.total(), 0);
        }
    }
}
