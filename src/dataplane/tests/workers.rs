//! Several workers: which one carries what, and what a datagram at the wrong one comes to.

use super::super::{DataCommand, DataEvent, DataSockets, DataplaneError, Offloads, SaRefusal, Stats};
use super::harness::{Container, DEADLINE, NETWORK, Node, Pair, endpoint_key, of_queues, packet, seqpacket_pair};
use super::{SetOnDrop, hostile};
use crate::esp::{Direction, InstallError, SaIdentity};
use crate::overlay::DropReason;
use crate::types::{Epoch, Queues, Transform};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

const NUMBERS: [(u8, u8); 5] = [(2, 2), (4, 2), (2, 4), (1, 4), (3, 1)];

#[test]
fn a_packet_stays_with_the_worker_of_its_queue() {
    for transform in [Transform::Gcm, Transform::Gmac] {
        for (at_a, at_b) in NUMBERS {
            let pair = Pair::with_workers(transform, at_a, at_b);
            let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
            for queue in 0..at_a {
                for number in 0..20u8 {
                    let there = packet(a.address, b.address, &[queue, number]);
                    a.send_on(queue, &there);
                    assert_eq!(b.receive_on(queue % at_b), there);
                    let back = packet(b.address, a.address, &[queue, number]);
                    b.send_on(queue % at_b, &back);
                    assert_eq!(a.receive_on(queue % at_b % at_a), back);
                }
            }
            let (stats_of_a, stats_of_b) = (pair.a.stats(), pair.b.stats());
            assert_eq!(stats_of_a.drops.total() + stats_of_b.drops.total(), 0);
            check_stats(&pair, &stats_of_a, &stats_of_b);
        }
    }
}

/// Each queue's SA has carried its own packets, and the workers' figures are added up.
fn check_stats(pair: &Pair, at_a: &Stats, at_b: &Stats) {
    let packets = 20 * u64::from(pair.a.workers.count());
    assert_eq!((at_a.links.len(), at_b.links.len(), at_a.endpoints.len()), (1, 1, 1));
    assert_eq!((at_a.links[0].sent.packets, at_b.links[0].received), (packets, at_a.links[0].sent));
    assert_eq!((at_a.endpoints[0].sent.packets, at_a.endpoints[0].received.packets), (packets, packets));
    assert_eq!(at_a.links[0].sending, Some(pair.a_to_b(1)));
    for (stats, direction) in [(at_a, Direction::Outbound), (at_b, Direction::Inbound)] {
        let sas = stats.sas.iter().filter(|sa| sa.summary.direction == direction);
        let sequences: BTreeMap<SaIdentity, u64> = sas.map(|sa| (sa.summary.identity, sa.summary.sequence)).collect();
        let expected = of_queues(pair.a_to_b(1), &pair.a).map(|sa| (sa, 20)).collect();
        assert_eq!(sequences, expected);
    }
    assert!(at_a.sas.is_sorted_by_key(|sa| (sa.summary.direction, sa.summary.identity)));
}

#[test]
fn each_worker_has_its_own_source_port_and_the_first_the_data_path_port() {
    let pair = Pair::with_workers(Transform::Gcm, 4, 2);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let sources: Vec<SocketAddr> = (0..4).map(|queue| catch(&pair, &a, &b, queue).1).collect();
    assert_eq!(sources[0], pair.a.data.address());
    assert!(sources.iter().all(|source| source.ip() == pair.a.data.address().ip()));
    assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), 4);
}

#[test]
fn neighbours_talk_through_any_worker() {
    let node = Node::with_workers(2, 3, Offloads::ALL);
    node.set_network(NETWORK, Transform::Gcm);
    let (one, two) = (node.add_container(NETWORK, "10.0.0.2", true), node.add_container(NETWORK, "10.0.0.3", true));
    for queue in 0..3 {
        one.send_on(queue, &packet(one.address, two.address, &[queue]));
        assert_eq!(two.receive_on(queue), packet(one.address, two.address, &[queue]));
    }
    assert_eq!(node.stats().drops.total(), 0);
}

#[test]
fn a_device_with_one_queue_is_read_by_the_first_worker_and_written_by_all() {
    let pair = Pair::with_workers(Transform::Gcm, 3, 3);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    let (tun, socket) = seqpacket_pair();
    let (endpoint, address) = (b.endpoint, b.address);
    pair.b.apply(vec![DataCommand::AddEndpoint { endpoint, address, queues: vec![tun], vnet: true }]);
    pair.b.stats();
    let mut buffer = [0; 2000];
    for queue in 0..3 {
        let there = packet(a.address, b.address, &[queue]);
        a.send_on(queue, &there);
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[10..length], there);
    }
    for number in 0..50u8 {
        socket.send(&[&[0; 10][..], &packet(b.address, a.address, &[number])].concat()).unwrap();
    }
    for number in 0..50 {
        assert_eq!(a.receive_on(0), packet(b.address, a.address, &[number]), "in order, by one worker");
    }
}

/// A sealed datagram of a queue of A for B, caught on its way, and where it came from.
fn catch(pair: &Pair, sender: &Container, receiver: &Container, queue: u8) -> (Vec<u8>, SocketAddr) {
    let trap = UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_read_timeout(Some(DEADLINE)).unwrap();
    pair.a.set_peer_address(&pair.b, trap.local_addr().unwrap());
    pair.a.stats();
    sender.send_on(queue, &packet(sender.address, receiver.address, &[queue]));
    let mut buffer = vec![0; 2000];
    let (length, source) = trap.recv_from(&mut buffer).unwrap();
    buffer.truncate(length);
    pair.a.set_peer_address(&pair.b, pair.b.data.address());
    pair.a.stats();
    (buffer, source)
}

#[test]
fn a_stray_is_dropped_unjudged_and_still_good_at_its_owner() {
    let pair = Pair::with_workers(Transform::Gcm, 4, 4);
    let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
    // B's own ports, as A would see them.
    let back = Pair { a: pair.b, b: pair.a, transform: pair.transform };
    let ports: Vec<SocketAddr> = (0..4).map(|queue| catch(&back, &b, &a, queue).1).collect();
    let pair = Pair { a: back.b, b: back.a, transform: back.transform };
    let attacker = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut strays = 0;
    for queue in 0..4 {
        let (honest, _) = catch(&pair, &a, &b, queue);
        for worker in (1..4).filter(|worker| *worker != queue) {
            attacker.send_to(&honest, ports[usize::from(worker)]).unwrap();
            strays += 1;
            pair.b.wait_for("it is counted", |stats| stats.drops.packets(DropReason::WrongWorker) == strays);
        }
        b.expect_nothing();
        // Its owner takes it from the shared port and from its own.
        let owner = if queue % 2 == 0 { pair.b.data.address() } else { ports[usize::from(queue)] };
        attacker.send_to(&honest, owner).unwrap();
        assert_eq!(b.receive_on(queue), packet(a.address, b.address, &[queue]));
        attacker.send_to(&honest, ports[usize::from(queue)]).unwrap();
        let replays = u64::from(queue) + 1;
        pair.b.wait_for("the replay", |stats| stats.drops.packets(DropReason::Replayed) == replays);
    }
    assert_eq!(pair.b.stats().drops.total(), strays + 4);
}

#[test]
fn hostile_datagrams_of_every_queue_reach_nobody() {
    const ROUNDS: u64 = 100;
    for (at_a, at_b) in NUMBERS {
        let pair = Pair::with_workers(Transform::Gmac, at_a, at_b);
        let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
        let honest: Vec<Vec<u8>> = (0..at_a).map(|queue| catch(&pair, &a, &b, queue).0).collect();
        let attacker = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut random = StdRng::seed_from_u64(u64::from(at_a * 16 + at_b));
        let mut sent = 0;
        for round in 0..ROUNDS {
            for queue in 0..16u8 {
                let mut bytes = hostile(&mut random, &honest[usize::from(queue % at_a)]);
                if let Some(octet) = bytes.get_mut(3).filter(|_| round % 2 == 0) {
                    *octet = *octet & 0xf0 | queue;
                }
                // One change may have undone the other.
                if !honest.contains(&bytes) {
                    attacker.send_to(&bytes, pair.b.data.address()).unwrap();
                    sent += 1;
                }
            }
            pair.b.wait_for("every datagram is counted", |stats| stats.drops.total() >= sent);
        }
        b.expect_nothing();
        let drops = pair.b.stats().drops;
        assert_eq!((drops.total(), drops.packets(DropReason::WrongWorker)), (sent, 0), "{drops:?}");
        for (queue, datagram) in (0..).zip(&honest) {
            attacker.send_to(datagram, pair.b.data.address()).unwrap();
            assert_eq!(b.receive_on(queue % at_b), packet(a.address, b.address, &[queue]), "nothing was judged twice");
        }
    }
}

/// Numbered packets on a queue, one at a time, until told to stop; how many.
fn ping_pong(from: &Container, to: &Container, (queue, arrives_on): (u8, u8), done: &AtomicBool) -> u64 {
    for number in 0u64.. {
        let there = packet(from.address, to.address, &number.to_be_bytes());
        from.send_on(queue, &there);
        assert_eq!(to.receive_on(arrives_on), there, "queue {queue}");
        if done.load(Ordering::Acquire) {
            return number;
        }
    }
    unreachable!("packets without end")
}

#[test]
fn a_switch_of_epochs_loses_nothing_on_any_queue() {
    const EPOCHS: u32 = 8;
    for workers in [2, 4] {
        let pair = Pair::with_workers(Transform::Gcm, workers, workers);
        let (a, b) = pair.containers("10.0.0.2", "10.0.0.3", true);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop_sending = SetOnDrop(&done);
            for queue in 0..workers {
                let (a, b, done) = (&a, &b, &done);
                scope.spawn(move || assert!(ping_pong(a, b, (queue, queue), done) > u64::from(EPOCHS)));
            }
            for epoch in 1..=EPOCHS {
                if epoch > 1 {
                    pair.install(epoch);
                    pair.send_with(epoch);
                }
                // Each queue's first packet under the epoch: all before it under the one before have arrived.
                let mut confirmed = BTreeSet::new();
                while confirmed.len() < usize::from(workers) {
                    let DataEvent::Authenticated { identity } = pair.b.event() else { panic!("another event") };
                    assert_eq!(SaIdentity { queue: 0, ..identity }, pair.a_to_b(epoch));
                    assert!(confirmed.insert(identity.queue), "said twice");
                }
                pair.a.apply(vec![DataCommand::EraseEpoch(Epoch(epoch - 1))]);
                pair.b.apply(vec![DataCommand::EraseEpoch(Epoch(epoch - 1))]);
            }
        });
        let (at_a, at_b) = (pair.a.stats(), pair.b.stats());
        assert_eq!(at_a.drops.total() + at_b.drops.total(), 0, "{:?} {:?}", at_a.drops, at_b.drops);
        assert_eq!(at_b.sas.len(), 2 * usize::from(workers));
        assert!(
            at_b.sas.iter().all(|sa| sa.summary.identity.epoch == Epoch(EPOCHS)),
            "the others are erased everywhere"
        );
    }
}

#[test]
fn an_sa_of_a_queue_that_no_worker_has_is_refused() {
    let pair = Pair::with_workers(Transform::Gcm, 2, 2);
    for queue in [2, 3, 15] {
        let identity = SaIdentity { queue, ..pair.a_to_b(2) };
        pair.a.install(identity, Direction::Outbound);
        let event = pair.a.event();
        let reason = SaRefusal::Install(InstallError::WrongWorker);
        assert!(matches!(event, DataEvent::SaRefused { reason: said, .. } if said == reason), "{event:?}");
        // A peer may send with more queues than there are workers here.
        pair.b.install(identity, Direction::Inbound);
    }
    assert!(pair.b.pending_event().is_none());
    assert_eq!(pair.b.stats().sas.len(), 4 + 3);
}

#[test]
fn a_device_that_is_lost_to_one_worker_is_reported() {
    let node = Node::with_workers(2, 2, Offloads::ALL);
    node.set_network(NETWORK, Transform::Gcm);
    let (first, kept) = seqpacket_pair();
    let (second, broken) = seqpacket_pair();
    let address = "10.0.0.2".parse().unwrap();
    let endpoint = endpoint_key(NETWORK, address);
    node.apply(vec![DataCommand::AddEndpoint { endpoint, address, queues: vec![first, second], vnet: true }]);
    drop(broken);
    let event = node.event();
    assert!(matches!(event, DataEvent::EndpointLost { endpoint: lost, .. } if lost == endpoint), "{event:?}");
    node.apply(vec![DataCommand::RemoveEndpoint { endpoint }]);
    node.stats();
    assert_eq!(kept.recv(&mut [0; 10]).unwrap(), 0, "the other queue is closed with it");
}

#[test]
fn a_shared_port_is_still_ours_alone() {
    let node = Node::with_workers(2, 4, Offloads::ALL);
    let address = node.data.address();
    for workers in [1, 2, 4] {
        let refused = DataSockets::bind(address, Queues::try_from(workers).unwrap());
        assert!(matches!(refused, Err(DataplaneError::AddressInUse(other)) if other == address));
    }
    drop(node);
    let again = DataSockets::bind(address, Queues::try_from(3).unwrap()).unwrap();
    assert_eq!(again.address(), address);
}
