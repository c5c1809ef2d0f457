//! The data plane whole, over loopback: what passes, what must not, and what is counted.

mod devices;
mod fairness;
mod forgery;
mod fuzz_tests;
mod harness;
mod offloads;
mod refusals;
mod sending;
mod workers;

use super::{
    Clock, DataCommand, DataEvent, DataSockets, Dataplane, DataplaneConfig, DataplaneError, MAX_INNER_BYTES, Offloads,
    SaRefusal, WorkerGone,
};
use crate::esp::{Direction, InstallError};
use crate::overlay::DropReason;
use crate::types::{BootId, Epoch, Queues, Transform};
use crate::wire::esp::ControlMessage;
use harness::{Container, NETWORK, Node, Pair, endpoint_key, identity, network, packet, seqpacket_pair};
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[test]
fn packets_pass_both_ways() {
    for transform in [Transform::Gcm, Transform::Gmac] {
        for vnet in [true, false] {
            for (on_a, on_b) in [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")] {
                let pair = Pair::start(transform);
                let (a, b) = pair.containers(on_a, on_b, vnet);
                for length in [0, 1, 2, 3, 4, 1410, MAX_INNER_BYTES - 48] {
                    let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
                    a.send_to(&b, &payload);
                    b.expect(&a, &payload);
                    b.send_to(&a, &payload);
                    a.expect(&b, &payload);
                }
                assert_eq!(pair.a.stats().drops.total() + pair.b.stats().drops.total(), 0);
            }
        }
    }
}

#[test]
fn two_data_planes_know_what_passed() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    assert!(pair.b.stats().links.iter().all(|link| link.last_received.is_none()));
    for _ in 0..3 {
        a.send_to(&b, b"12345678");
        b.expect(&a, b"12345678");
    }
    let (at_a, at_b) = (pair.a.stats(), pair.b.stats());
    let (sent, received) = (&at_a.links[0], &at_b.links[0]);
    assert_eq!((sent.sent.packets, sent.sent.bytes), (3, 3 * 36));
    assert_eq!(received.received, sent.sent);
    assert_eq!((sent.peer, sent.address, sent.sending), (pair.b.id, Some(pair.b.data.address()), Some(pair.a_to_b(1))));
    assert!(sent.last_sent <= Some(at_a.now) && sent.last_sent.is_some() && sent.last_received.is_none());
    assert!(received.last_received.is_some() && received.last_sent.is_none());
    let outbound = at_a.sas.iter().find(|sa| sa.summary.direction == Direction::Outbound).unwrap();
    assert!(outbound.sending && outbound.summary.enabled);
    assert_eq!((outbound.summary.sequence, outbound.summary.traffic.packets), (3, 3));
    let endpoint = at_b.endpoints[0];
    assert_eq!((endpoint.endpoint, endpoint.received.packets, endpoint.sent.packets), (b.endpoint, 3, 0));
    assert_eq!(at_a.endpoints[0].sent.bytes, 3 * 36);
}

#[test]
fn neighbours_talk_through_the_daemon() {
    let node = Node::start(2);
    node.set_network(NETWORK, Transform::Gcm);
    node.set_network(NETWORK + 1, Transform::Gcm);
    let one = node.add_container(NETWORK, "10.0.0.2", true);
    let two = node.add_container(NETWORK, "10.0.0.3", false);
    let elsewhere = node.add_container(NETWORK + 1, "10.0.0.4", true);
    one.send_to(&two, b"there");
    two.expect(&one, b"there");
    two.send_to(&one, b"and back");
    one.expect(&two, b"and back");
    one.send_to(&elsewhere, b"another network");
    one.send_to(&one, b"myself");
    one.send_to(&two, b"the end");
    two.expect(&one, b"the end");
    elsewhere.expect_nothing();
    let stats = node.stats();
    assert_eq!(stats.drops.packets(DropReason::NoSuchEndpoint), 1);
    assert_eq!(stats.drops.packets(DropReason::ToSelf), 1);
    assert_eq!(stats.endpoints.iter().map(|endpoint| endpoint.sent_dropped).sum::<u64>(), 2);
}

#[test]
fn what_a_container_must_not_send_is_dropped_and_counted() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let to = |text: &str| text.parse().unwrap();
    let cases = [
        (packet(to("10.0.0.9"), b.address, b"spoofed"), DropReason::NotOwnSource),
        (packet(b.address, b.address, b"spoofed"), DropReason::NotOwnSource),
        (packet(a.address, to("10.0.0.255"), b"broadcast"), DropReason::Broadcast),
        (packet(a.address, to("239.1.2.3"), b"multicast"), DropReason::Multicast),
        (packet(a.address, to("10.0.0.77"), b"nobody"), DropReason::NoSuchEndpoint),
        (packet(a.address, b.address, &[0; 9100]), DropReason::Oversized),
        (packet(a.address, b.address, &vec![0; MAX_INNER_BYTES + 200]), DropReason::Oversized),
        (vec![0x45; 19], DropReason::MalformedInner),
        (vec![0; 60], DropReason::MalformedInner),
    ];
    for (bad, reason) in cases {
        let before = pair.a.drops(reason);
        a.send(&bad);
        a.send_to(&b, b"good");
        b.expect(&a, b"good");
        assert_eq!(pair.a.drops(reason), before + 1, "{reason:?}");
    }
    assert_eq!(pair.b.stats().drops.total(), 0);
}

#[test]
fn an_unfinished_packet_is_finished_or_dropped() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let good = packet(a.address, b.address, b"payload");
    let frame = |flags: u8, gso_type: u8, packet: &[u8]| {
        let mut frame = vec![flags, gso_type, 0, 0, 0, 0];
        frame.extend(20u16.to_ne_bytes());
        frame.extend(6u16.to_ne_bytes());
        frame.extend(packet);
        frame
    };
    a.socket.send(&frame(0, 1, &good)).unwrap();
    a.socket.send(&[0; 9]).unwrap();
    let mut open = good.clone();
    // 10.0.0.2 + 10.0.0.3 + protocol 17 + length 15.
    let sum = 2 * 0x0a00 + 5 + 17 + 15u16;
    open[26..28].copy_from_slice(&sum.to_be_bytes());
    a.socket.send(&frame(1, 0, &open)).unwrap();
    assert_eq!(b.receive(), good);
    assert_eq!(pair.a.drops(DropReason::UnfinishedOffload), 1);
    assert_eq!(pair.a.drops(DropReason::MalformedInner), 1);
}

#[test]
fn what_a_peer_must_not_send_is_dropped_and_counted() {
    for transform in [Transform::Gcm, Transform::Gmac] {
        let pair = Pair::start(transform);
        let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
        // At B, this address belongs to a third node: A's container of that address is an impostor.
        let third = Node::start(4);
        pair.b.set_remote("10.0.0.4", &third, 5);
        let impostor = pair.a.add_container(NETWORK, "10.0.0.4", true);
        // B has never heard of this one.
        let stranger = pair.a.add_container(NETWORK, "10.0.0.5", true);
        impostor.send_to(&b, b"not mine");
        stranger.send_to(&b, b"who?");
        // A believes that this address is at B.
        pair.a.set_remote("10.0.0.66", &pair.b, 1);
        a.send(&packet(a.address, "10.0.0.66".parse().unwrap(), b"nobody here"));
        a.send_to(&b, b"good");
        b.expect(&a, b"good");
        pair.b.wait_for("all three arrive", |stats| stats.drops.total() == 3);
        assert_eq!(pair.b.drops(DropReason::ForeignSource), 2);
        assert_eq!(pair.b.drops(DropReason::ForeignDestination), 1);
        b.expect_nothing();
    }
}

/// A sealed datagram of A for B, caught on its way.
fn catch(pair: &Pair, sender: &Container, receiver: &Container, payload: &[u8]) -> Vec<u8> {
    let trap = UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_read_timeout(Some(harness::DEADLINE)).unwrap();
    pair.a.set_peer_address(&pair.b, trap.local_addr().unwrap());
    sender.send_to(receiver, payload);
    let mut buffer = vec![0; 2000];
    let length = trap.recv(&mut buffer).unwrap();
    buffer.truncate(length);
    pair.a.set_peer_address(&pair.b, pair.b.data.address());
    buffer
}

/// One datagram that must not pass: noise, or the honest one with a change.
fn hostile(random: &mut StdRng, honest: &[u8]) -> Vec<u8> {
    let mut bytes = honest.to_vec();
    match random.random_range(0..5) {
        0 => {
            bytes.resize(random.random_range(0..1600), 0);
            random.fill_bytes(&mut bytes);
        }
        1 => bytes.truncate(random.random_range(0..honest.len())),
        2 => bytes.extend(std::iter::repeat_n(random.random::<u8>(), random.random_range(1..40))),
        3 => {
            // The right SPI, the rest noise.
            let (_, rest) = bytes.split_first_chunk_mut::<4>().unwrap();
            random.fill_bytes(rest);
        }
        _ => {
            let bit = random.random_range(0..honest.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
    bytes
}

#[test]
fn ten_thousand_hostile_datagrams_are_counted_and_none_is_delivered() {
    const DATAGRAMS: u64 = 10_000;
    for transform in [Transform::Gcm, Transform::Gmac] {
        let pair = Pair::start(transform);
        let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
        let honest = catch(&pair, &a, &b, b"an honest packet, caught");
        let attacker = UdpSocket::bind("127.0.0.1:0").unwrap();
        let seed = 7;
        let mut random = StdRng::seed_from_u64(seed);
        for sent in 1..=DATAGRAMS {
            attacker.send_to(&hostile(&mut random, &honest), pair.b.data.address()).unwrap();
            if sent % 50 == 0 {
                pair.b.wait_for("every datagram is counted", |stats| stats.drops.total() >= sent);
                a.send_to(&b, &sent.to_be_bytes());
                b.expect(&a, &sent.to_be_bytes());
            }
        }
        // From anywhere, the honest one is good once.
        attacker.send_to(&honest, pair.b.data.address()).unwrap();
        b.expect(&a, b"an honest packet, caught");
        attacker.send_to(&honest, pair.b.data.address()).unwrap();
        pair.b.wait_for("the replay is counted", |stats| stats.drops.packets(DropReason::Replayed) == 1);
        b.expect_nothing();
        let drops = pair.b.stats().drops;
        assert_eq!(drops.total(), DATAGRAMS + 1, "{drops:?}");
        let expected = [DropReason::BadTag, DropReason::UnknownSpi, DropReason::TooShort, DropReason::IvMismatch];
        assert!(expected.iter().all(|reason| drops.packets(*reason) > 100), "{drops:?}");
    }
}

#[test]
fn ike_and_keep_alives_are_told_apart() {
    let node = Node::start(2);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    for datagram in [&[0xff][..], &[0; 4], &[0; 200], &[0xff; 2], &[], &[1; 9500]] {
        sender.send_to(datagram, node.data.address()).unwrap();
    }
    node.wait_for("all arrive", |stats| stats.drops.total() == 6);
    let counts: BTreeMap<_, _> = node.stats().drops.iter().filter(|(_, packets)| *packets > 0).collect();
    let expected = [
        (DropReason::NatKeepAlive, 1),
        (DropReason::SpiZero, 2),
        (DropReason::TooShort, 2),
        (DropReason::Oversized, 1),
    ];
    assert_eq!(counts, expected.into());
}

/// Sets a flag at the end of a scope, also when a test fails in it.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Numbered packets from one container to the other, a bounded number of them under way, for as long as `meanwhile`
/// runs. All must arrive in order.
fn stream_during(sender: &Container, receiver: &Container, meanwhile: impl FnOnce()) {
    const WINDOW: usize = 48;
    let (arrived, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _stop_sending = SetOnDrop(&done);
            for number in 0usize.. {
                let next = receiver.receive();
                if next == packet(sender.address, receiver.address, b"end") {
                    break;
                }
                assert_eq!(next, packet(sender.address, receiver.address, &number.to_be_bytes()));
                arrived.store(number + 1, Ordering::Release);
            }
        });
        scope.spawn(|| {
            for number in 0usize.. {
                while number - arrived.load(Ordering::Acquire) >= WINDOW && !done.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                if done.load(Ordering::Acquire) {
                    break;
                }
                sender.send_to(receiver, &number.to_be_bytes());
            }
            sender.send_to(receiver, b"end");
        });
        let _stop_sending = SetOnDrop(&done);
        meanwhile();
    });
}

#[test]
fn a_switch_of_epochs_loses_and_reorders_nothing() {
    const EPOCHS: u32 = 8;
    for transform in [Transform::Gcm, Transform::Gmac] {
        let pair = Pair::start(transform);
        let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
        stream_during(&a, &b, || {
            let mut epoch = 1;
            loop {
                // The first packet under the epoch: all under the one before have arrived.
                let DataEvent::Authenticated { identity } = pair.b.event() else { panic!("another event") };
                assert_eq!(identity, pair.a_to_b(epoch));
                if epoch > 1 {
                    pair.a.apply(vec![DataCommand::EraseEpoch(Epoch(epoch - 1))]);
                    pair.b.apply(vec![DataCommand::EraseEpoch(Epoch(epoch - 1))]);
                }
                if epoch == EPOCHS {
                    break;
                }
                epoch += 1;
                pair.install(epoch);
                pair.send_with(epoch);
            }
        });
        let (at_a, at_b) = (pair.a.stats(), pair.b.stats());
        assert_eq!(at_a.drops.total() + at_b.drops.total(), 0, "{:?} {:?}", at_a.drops, at_b.drops);
        assert_eq!(at_a.links[0].sending, Some(pair.a_to_b(EPOCHS)));
        assert!(at_b.sas.iter().all(|sa| sa.summary.identity.epoch.0 == EPOCHS));
    }
}

#[test]
fn without_an_sa_nothing_leaves() {
    let pair = Pair::start(Transform::Gmac);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    a.send_to(&b, b"before");
    b.expect(&a, b"before");
    let (network, peer) = (network(NETWORK), pair.b.id);
    let stops = [
        vec![DataCommand::SuspendSa { identity: pair.a_to_b(1) }],
        vec![DataCommand::StopSending { network, peer }],
        vec![DataCommand::SetSending { network, peer, outbound: pair.a_to_b(9) }],
        vec![DataCommand::EraseEpoch(Epoch(1))],
    ];
    for (dropped, stop) in (1..).zip(stops) {
        let erased = matches!(stop[..], [DataCommand::EraseEpoch(_)]);
        pair.a.apply(stop);
        a.send_to(&b, b"into the void");
        pair.a.wait_for("it is counted", |stats| stats.drops.packets(DropReason::NoSendingSa) == dropped);
        b.expect_nothing();
        if !erased {
            pair.a.install(pair.a_to_b(1), Direction::Outbound);
            pair.send_with(1);
            a.send_to(&b, b"again");
            b.expect(&a, b"again");
        }
    }
    let sequence = |stats: &super::Stats| stats.sas.iter().map(|sa| sa.summary.sequence).max();
    assert_eq!(sequence(&pair.b.stats()), Some(4), "one counter all along, also when nothing could be sent");
    pair.a.install(pair.a_to_b(1), Direction::Outbound);
    let refusal = |event| matches!(event, DataEvent::SaRefused { reason: SaRefusal::Install(_), .. });
    assert!(refusal(pair.a.event()), "an erased epoch does not come back");
}

#[test]
fn a_suspended_receiver_takes_nothing_and_says_so_when_it_is_back() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    a.send_to(&b, b"one");
    b.expect(&a, b"one");
    assert!(matches!(pair.b.event(), DataEvent::Authenticated { .. }));
    pair.b.apply(vec![DataCommand::SuspendSa { identity: pair.a_to_b(1) }]);
    pair.b.stats();
    a.send_to(&b, b"two");
    pair.b.wait_for("it is counted", |stats| stats.drops.packets(DropReason::Suspended) == 1);
    pair.b.install(pair.a_to_b(1), Direction::Inbound);
    pair.b.stats();
    a.send_to(&b, b"three");
    b.expect(&a, b"three");
    assert!(matches!(pair.b.event(), DataEvent::Authenticated { identity } if identity == pair.a_to_b(1)));
    a.send_to(&b, b"four");
    b.expect(&a, b"four");
    assert!(pair.b.pending_event().is_none(), "it is said once");
}

#[test]
fn sas_that_do_not_fit_are_refused() {
    let pair = Pair::start(Transform::Gcm);
    let other_transform = identity(&pair.a, &pair.b, 2, Transform::Gmac);
    let mut other_network = pair.a_to_b(2);
    other_network.network = network(99);
    let mut other_boot = pair.a_to_b(2);
    other_boot.src_boot = BootId([99; 8]);
    for (identity, expected) in [
        (other_transform, SaRefusal::WrongTransform),
        (other_network, SaRefusal::NetworkUnknown),
        (other_boot, SaRefusal::Install(InstallError::WrongBoot)),
    ] {
        pair.a.install(identity, Direction::Outbound);
        let event = pair.a.event();
        assert!(matches!(event, DataEvent::SaRefused { reason, .. } if reason == expected), "{event:?}");
    }
    let (network, peer, outbound) = (network(NETWORK), pair.a.id, pair.a_to_b(1));
    pair.a.apply(vec![DataCommand::SetSending { network, peer, outbound }]);
    assert!(matches!(pair.a.event(), DataEvent::SaRefused { reason: SaRefusal::WrongPair, .. }));
}

#[test]
fn control_messages_arrive_and_confirm() {
    let pair = Pair::start(Transform::Gcm);
    pair.install(2);
    let probe = ControlMessage::Probe { answer_wanted: true };
    for message in [ControlMessage::Nothing, probe, ControlMessage::Unknown(77)] {
        // Under an epoch that no traffic goes by.
        pair.a.apply(vec![DataCommand::SendControl { outbound: pair.a_to_b(2), message }]);
    }
    assert!(matches!(pair.b.event(), DataEvent::Authenticated { identity } if identity == pair.a_to_b(2)));
    let event = pair.b.event();
    assert!(
        matches!(event, DataEvent::Control { identity, message }
        if identity == pair.a_to_b(2) && message == probe),
        "{event:?}"
    );
    pair.b.wait_for("the unknown kind is counted", |stats| stats.drops.packets(DropReason::UnknownControl) == 1);
    assert_eq!(pair.b.stats().links[0].received.packets, 3);
    pair.a.apply(vec![DataCommand::SendControl { outbound: pair.a_to_b(3), message: probe }]);
    assert_eq!(pair.a.drops(DropReason::NoSendingSa), 1);
}

#[test]
fn a_peer_that_floods_a_deaf_control_plane_is_cut_short() {
    let pair = Pair::start(Transform::Gcm);
    let message = ControlMessage::Probe { answer_wanted: false };
    let outbound = pair.a_to_b(1);
    for sent in (50..=3000).step_by(50) {
        pair.a.apply((0..50).map(|_| DataCommand::SendControl { outbound, message }).collect());
        pair.b.wait_for("they arrive", |stats| stats.links[0].received.packets == sent);
    }
    let dropped = pair.b.drops(DropReason::ControlBacklog);
    // The channel and the worker's own queue hold 1024 each; the first event is the confirmation.
    assert_eq!(dropped, 3000 - (2 * 1024 - 1));
    assert!(matches!(pair.b.event(), DataEvent::Authenticated { .. }));
    for _ in dropped..3000 {
        assert!(matches!(pair.b.event(), DataEvent::Control { .. }));
    }
}

#[test]
fn one_bad_address_does_not_hold_up_the_others() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let third = Node::start(4);
    let sa = identity(&pair.a, &third, 1, Transform::Gcm);
    pair.a.install(sa, Direction::Outbound);
    let (network, peer) = (network(NETWORK), third.id);
    pair.a.apply(vec![DataCommand::SetSending { network, peer, outbound: sa }]);
    pair.a.set_remote("10.0.0.4", &third, 1);
    let to_third = packet(a.address, "10.0.0.4".parse().unwrap(), b"lost");
    a.send(&to_third);
    pair.a.wait_for("it has no address", |stats| stats.drops.packets(DropReason::NoPeerAddress) == 1);
    // An IPv4 socket refuses this address.
    pair.a.set_peer_address(&third, "[::1]:9".parse().unwrap());
    for number in 0..200u64 {
        a.send(&to_third);
        a.send_to(&b, &number.to_be_bytes());
    }
    for number in 0..200u64 {
        b.expect(&a, &number.to_be_bytes());
    }
    pair.a.wait_for("each is counted", |stats| stats.drops.packets(DropReason::SendFailed) == 200);
}

#[test]
fn a_closed_device_is_reported_and_forgotten() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let lost = b.endpoint;
    drop(b);
    let event = pair.b.event();
    assert!(matches!(event, DataEvent::EndpointLost { endpoint, .. } if endpoint == lost), "{event:?}");
    assert!(pair.b.stats().endpoints.is_empty());
    // The task comes again with the same address.
    let b = pair.b.add_container(NETWORK, "10.0.0.3", false);
    a.send_to(&b, b"welcome back");
    b.expect(&a, b"welcome back");
}

#[test]
fn endpoints_that_cannot_be_added_are_reported() {
    let node = Node::start(2);
    node.set_network(NETWORK, Transform::Gcm);
    let first = node.add_container(NETWORK, "10.0.0.2", true);
    let address = first.address;
    let cases = [
        (endpoint_key(NETWORK, "10.0.0.3".parse().unwrap()), "another local endpoint"),
        (endpoint_key(77, address), "network is not known"),
    ];
    for (endpoint, text) in cases {
        let (tun, _socket) = seqpacket_pair();
        node.apply(vec![DataCommand::AddEndpoint { endpoint, address, queues: vec![tun], vnet: true }]);
        let event = node.event();
        let told = matches!(&event, DataEvent::EndpointLost { endpoint: lost, error }
            if *lost == endpoint && error.contains(text));
        assert!(told, "{event:?}");
    }
    assert_eq!(node.stats().endpoints.len(), 1);
    // The same endpoint again replaces its device.
    let second = node.add_container(NETWORK, "10.0.0.2", true);
    assert_eq!(first.socket.recv(&mut [0; 10]).unwrap(), 0, "the first device is closed");
    let neighbour = node.add_container(NETWORK, "10.0.0.3", true);
    neighbour.send_to(&second, b"hello");
    second.expect(&neighbour, b"hello");
    node.apply(vec![DataCommand::RemoveEndpoint { endpoint: second.endpoint }]);
    assert_eq!(second.socket.recv(&mut [0; 10]).unwrap(), 0);
    node.apply(vec![DataCommand::RemoveNetwork { network: network(NETWORK) }]);
    assert_eq!(neighbour.socket.recv(&mut [0; 10]).unwrap(), 0);
    assert!(node.stats().endpoints.is_empty());
}

#[test]
fn a_removed_peer_or_network_is_silent() {
    let pair = Pair::start(Transform::Gcm);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let network = network(NETWORK);
    pair.b.apply(vec![DataCommand::RemovePeer { network, peer: pair.a.id }]);
    pair.b.stats();
    a.send_to(&b, b"too late");
    pair.b.wait_for("it is counted", |stats| stats.drops.packets(DropReason::Suspended) == 1);
    b.send_to(&a, b"nobody there");
    pair.b.wait_for("it is counted", |stats| stats.drops.packets(DropReason::NoSuchEndpoint) == 1);
    // The peer comes again: the same record, the same SAs with their counters.
    pair.install(1);
    pair.send_with(1);
    pair.b.set_remote("10.0.0.2", &pair.a, 1);
    pair.b.stats();
    a.send_to(&b, b"again");
    b.expect(&a, b"again");

    pair.b.apply(vec![DataCommand::RemoveNetwork { network }]);
    pair.b.stats();
    a.send_to(&b, b"too late");
    pair.b.wait_for("it is counted", |stats| stats.drops.packets(DropReason::Suspended) == 2);
    assert!(pair.b.stats().links.is_empty());
}

#[test]
fn a_device_that_is_not_read_loses_its_own_packets_only() {
    let pair = Pair::start(Transform::Gcm);
    let (a, deaf) = pair.containers("10.0.0.2", "10.0.0.3", true);
    pair.a.set_remote("10.0.0.5", &pair.b, 1);
    let awake = pair.b.add_container(NETWORK, "10.0.0.5", true);
    let mut number = 0u64;
    while pair.b.drops(DropReason::DeviceQueueFull) == 0 {
        assert!(number < 100_000, "the device takes everything");
        for _ in 0..32 {
            a.send_to(&deaf, &[0; 1000]);
        }
        a.send_to(&awake, &number.to_be_bytes());
        awake.expect(&a, &number.to_be_bytes());
        number += 1;
    }
}

#[test]
fn a_port_in_use_is_refused_with_advice() {
    let node = Node::start(2);
    let bind = node.data.address();
    let config = DataplaneConfig {
        bind,
        boot: BootId([9; 8]),
        clock: Clock::start(),
        workers: Queues::ONE,
        offloads: Offloads::ALL,
    };
    let error = Dataplane::start(config).err().unwrap();
    assert!(matches!(error, DataplaneError::AddressInUse(address) if address == bind));
    let text = error.to_string();
    assert!(text.contains(&bind.to_string()) && text.contains("--data-path-port"), "{text}");

    // Also when the other one would share it.
    let sharing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    sharing.set_reuse_port(true).unwrap();
    sharing.bind(&SocketAddr::from(([127, 0, 0, 7], 0)).into()).unwrap();
    let address = sharing.local_addr().unwrap().as_socket().unwrap();
    assert!(matches!(DataSockets::bind(address, Queues::ONE), Err(DataplaneError::AddressInUse(_))));

    let foreign = DataSockets::bind("192.0.2.1:0".parse().unwrap(), Queues::ONE).unwrap_err();
    assert!(matches!(foreign, DataplaneError::AddressNotAvailable(_)), "{foreign}");
}

#[test]
fn it_stops_when_told_and_when_dropped() {
    let node = Node::start(2);
    let address = node.data.address();
    node.set_network(NETWORK, Transform::Gcm);
    let container = node.add_container(NETWORK, "10.0.0.2", true);
    node.apply(vec![DataCommand::Stop]);
    assert_eq!(container.socket.recv(&mut [0; 10]).unwrap(), 0, "the device is closed");
    assert_eq!(smol::block_on(node.data.stats()).err(), Some(WorkerGone));
    drop(node);
    let again = DataSockets::bind(address, Queues::ONE).unwrap();
    assert_eq!(again.address(), address);
}
