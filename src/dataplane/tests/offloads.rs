//! The data plane with all offloads against the same one packet by packet: random streams must come out the same. And
//! what happens when a kernel refuses.

use super::harness::{Container, NETWORK, Node, Pair, packet};
use crate::dataplane::{DataCommand, Offload, Offloads};
use crate::offload::testing::{Sent, Traffic, normalised};
use crate::overlay::DropReason;
use crate::types::Transform;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Frames of one round at most.
const FRAMES_PER_ROUND: usize = 12;

/// What the queue of a device takes in a round, and what a packet costs it beside its octets: nothing may be lost.
const QUEUE_BYTES: usize = 150_000;
const PACKET_COST_BYTES: usize = 900;

/// What tells one flow from another; the order of packets matters within a flow.
fn flow_of(packet: &[u8]) -> Vec<u8> {
    let ports = if packet[0] >> 4 == 4 { 20..24 } else { 40..44 };
    packet.get(ports).unwrap_or_default().to_vec()
}

/// The packets by flow, each flow in its order.
fn by_flow(packets: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut packets: Vec<Vec<u8>> = packets.into_iter().map(normalised).collect();
    packets.sort_by_key(|packet| flow_of(packet));
    packets
}

fn receive_all(container: &Container, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|_| container.receive()).collect()
}

#[test]
fn random_streams_come_out_as_they_do_packet_by_packet() {
    for (transform, addresses) in [
        (Transform::Gcm, ("10.0.0.2", "10.0.0.3")),
        (Transform::Gmac, ("10.0.0.2", "10.0.0.3")),
        (Transform::Gcm, ("fd00::2", "fd00::3")),
    ] {
        let fast = Pair::start(transform);
        let plain = Pair::start_with(transform, Offloads::NONE);
        let (a, b) = fast.containers(addresses.0, addresses.1, true);
        let (plain_a, plain_b) = plain.containers(addresses.0, addresses.1, false);
        for seed in 0..40 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut traffic = Traffic::new(a.address, b.address, &mut random);
            let mut sent: Vec<Sent> = (0..FRAMES_PER_ROUND).map(|_| traffic.next(&mut random)).collect();
            let mut room = QUEUE_BYTES;
            sent.retain(|sent| {
                let cost: usize = sent.packets.iter().map(|packet| packet.len() + PACKET_COST_BYTES).sum();
                let fits = cost <= room;
                room -= if fits { cost } else { 0 };
                fits
            });
            let count = sent.iter().map(|sent| sent.packets.len()).sum();
            let mut expected = Vec::new();
            for Sent { packets, .. } in &sent {
                for packet in packets {
                    plain_a.send(packet);
                }
                expected.extend(receive_all(&plain_b, packets.len()));
            }
            for Sent { frame, .. } in &sent {
                a.socket.send(frame).unwrap();
            }
            let arrived = receive_all(&b, count);
            assert!(by_flow(arrived) == by_flow(expected), "seed {seed}, {transform:?}, {addresses:?}");
        }
        for node in [&fast.a, &fast.b, &plain.a, &plain.b] {
            assert_eq!(node.stats().drops.total(), 0, "{:?}", node.stats().drops);
        }
    }
}

#[test]
fn neighbours_get_super_packets_whole_or_cut() {
    let node = Node::start(2);
    node.set_network(NETWORK, Transform::Gcm);
    let one = node.add_container(NETWORK, "10.0.0.2", true);
    let whole = node.add_container(NETWORK, "10.0.0.3", true);
    let plain = node.add_container(NETWORK, "10.0.0.4", false);
    let mut random = StdRng::seed_from_u64(3);
    for destination in [&whole, &plain] {
        let mut traffic = Traffic::new(one.address, destination.address, &mut random);
        for _ in 0..50 {
            let Sent { frame, packets } = traffic.next(&mut random);
            one.socket.send(&frame).unwrap();
            if std::ptr::eq(destination, &whole) {
                assert_eq!(destination.receive_frame(), frame, "as it is");
            } else {
                assert_eq!(receive_all(destination, packets.len()), packets);
            }
        }
    }
    assert_eq!(node.stats().drops.total(), 0);
}

#[test]
fn what_is_joined_for_a_container_is_one_write() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let mut random = StdRng::seed_from_u64(4);
    let mut traffic = Traffic::new(a.address, b.address, &mut random);
    let sent = (0..1000).map(|_| traffic.next(&mut random)).find(|sent| sent.packets.len() > 20).unwrap();
    a.socket.send(&sent.frame).unwrap();
    let frame = b.receive_frame();
    let packets: Vec<Vec<u8>> = super::harness::cut(&frame);
    assert!(packets.len() > 20, "{} packets in the first write", packets.len());
    assert_eq!(packets, sent.packets.into_iter().map(normalised).collect::<Vec<_>>());
}

#[test]
fn switches_take_effect_at_once() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let offloads = Offloads::ALL.without(Offload::JoinUdp).without(Offload::UdpGso);
    for node in [&pair.a, &pair.b] {
        node.apply(vec![DataCommand::SetOffloads(offloads)]);
        let on: Vec<Offload> = node.stats().offloads.iter().filter(|it| it.wanted).map(|it| it.offload).collect();
        assert!(offloads.iter().eq(on));
    }
    for number in 0..100u64 {
        a.send_to(&b, &number.to_be_bytes());
    }
    for number in 0..100u64 {
        let frame = b.receive_frame();
        assert_eq!(frame, [&[0; 10][..], &packet(a.address, b.address, &number.to_be_bytes())].concat());
    }
    assert_eq!(pair.b.drops(DropReason::DeviceWriteFailed), 0);
}
