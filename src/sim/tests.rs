//! Swarms under faults. Each test runs several seeds and names the one that fails.

use super::gossip::GossipSwarm;
use super::network::Faults;
use crate::gossip::{GossipDrop, GossipEvent, MemberState};
use crate::types::{EndpointKey, Epoch, NetworkId, TaskId};
use crate::wire::record::{RecordBody, RecordKey, SignedRecord};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A swarm of ten whose members know each other.
fn settled(seed: u64, faults: Faults) -> GossipSwarm {
    let mut swarm = GossipSwarm::new(seed, 10, faults);
    let took = swarm.run_until(30 * SECOND, |swarm| swarm.all_up() && swarm.agrees());
    assert!(took.is_some(), "seed {seed}: ten nodes did not find each other in 30 s");
    swarm
}

fn addresses(swarm: &GossipSwarm, numbers: std::ops::Range<usize>) -> Vec<IpAddr> {
    numbers.map(|number| swarm.hosts[number].address.ip()).collect()
}

#[test]
fn nodes_find_each_other_at_once_on_a_good_network() {
    let mut swarm = GossipSwarm::new(1, 10, Faults::NONE);
    let took = swarm.run_until(10 * SECOND, |swarm| swarm.all_up() && swarm.agrees()).unwrap();
    assert!(took <= 3 * SECOND, "{took:?}");
}

#[test]
fn records_reach_everybody_through_loss_and_reordering() {
    for (seed, loss) in [(11, 0.05), (12, 0.1), (13, 0.2), (14, 0.2)] {
        let mut swarm = settled(seed, Faults::lossy(loss));
        for number in 0..10 {
            swarm.publish_endpoints(number, 20);
        }
        let took = swarm.run_until(30 * SECOND, |swarm| swarm.agrees());
        assert!(took.is_some_and(|took| took <= 20 * SECOND), "seed {seed}: {took:?}");
        assert_eq!(swarm.gossip(0).records().count(), 10 + 200 + 1, "seed {seed}");
    }
}

#[test]
fn a_dead_node_is_noticed_and_a_restarted_one_is_back_with_its_new_boot() {
    for (seed, loss, limit) in [(21, 0.0, 8), (22, 0.05, 10), (23, 0.2, 15)] {
        let mut swarm = settled(seed, Faults::lossy(loss));
        swarm.kill(7);
        let took = swarm.run_until(30 * SECOND, |swarm| swarm.all_see(7, MemberState::Down));
        assert!(took.is_some_and(|took| took <= limit * SECOND), "seed {seed}: noticed after {took:?}");
        swarm.boot(7);
        let took = swarm.run_until(30 * SECOND, |swarm| swarm.all_up() && swarm.agrees());
        assert!(took.is_some_and(|took| took <= 10 * SECOND), "seed {seed}: back after {took:?}");
    }
}

#[test]
fn a_node_that_restarts_before_it_is_missed_is_back_too() {
    for seed in 31..34 {
        let mut swarm = settled(seed, Faults::lossy(0.05));
        let old = swarm.hosts[3].boot;
        swarm.boot(3);
        let took = swarm.run_until(30 * SECOND, |swarm| swarm.all_up() && swarm.agrees());
        assert!(took.is_some_and(|took| took <= 8 * SECOND), "seed {seed}: {took:?}");
        let down = GossipEvent::NodeDown { node: swarm.hosts[3].node, boot: old };
        assert!(swarm.hosts[0].events.iter().any(|(_, event)| *event == down), "seed {seed}");
    }
}

#[test]
fn three_nodes_notice_the_death_of_one() {
    for seed in 41..45 {
        let mut swarm = GossipSwarm::new(seed, 3, Faults::lossy(0.02));
        assert!(swarm.run_until(20 * SECOND, |swarm| swarm.all_up() && swarm.agrees()).is_some(), "seed {seed}");
        swarm.kill(0);
        let took = swarm.run_until(30 * SECOND, |swarm| swarm.all_see(0, MemberState::Down));
        assert!(took.is_some_and(|took| took <= 10 * SECOND), "seed {seed}: {took:?}");
    }
}

#[test]
fn cuts_of_any_length_heal_by_themselves() {
    for (seed, cut) in [(51, 5), (52, 15), (53, 60), (54, 600)] {
        let mut swarm = settled(seed, Faults::lossy(0.05));
        let halves = [addresses(&swarm, 0..5), addresses(&swarm, 5..10)];
        swarm.network.partition(&halves);
        swarm.publish_endpoints(0, 30);
        swarm.publish_endpoints(9, 30);
        swarm.run_for(cut * SECOND);
        swarm.network.heal();
        let took = swarm.run_until(60 * SECOND, |swarm| swarm.all_up() && swarm.agrees());
        assert!(took.is_some_and(|took| took <= 10 * SECOND), "seed {seed}: cut of {cut} s healed after {took:?}");
    }
}

#[test]
fn nobody_is_declared_dead_on_an_ordinary_network() {
    for seed in 61..63 {
        let mut swarm = settled(seed, Faults::lossy(0.05));
        let before: Vec<usize> = swarm.hosts.iter().map(|host| host.events.len()).collect();
        swarm.run_for(300 * SECOND);
        for (host, before) in swarm.hosts.iter().zip(before) {
            let died = host.events.iter().skip(before).any(|(_, event)| matches!(event, GossipEvent::NodeDown { .. }));
            assert!(!died, "seed {seed}");
        }
    }
}

#[test]
fn an_idle_swarm_is_quiet() {
    let mut swarm = settled(71, Faults::NONE);
    swarm.run_for(60 * SECOND);
    let before = swarm.sent;
    swarm.run_for(60 * SECOND);
    let per_node_and_second = (swarm.sent - before) as f64 / 600.0;
    assert!(per_node_and_second < 4.0, "{per_node_and_second} datagrams per second of each node");
}

#[test]
fn gossip_goes_on_through_rotations() {
    for seed in 81..84 {
        let mut swarm = settled(seed, Faults::lossy(0.1));
        for round in 0..5 {
            let before: Vec<usize> = swarm.hosts.iter().map(|host| host.events.len()).collect();
            swarm.rotate(&(0..10).collect::<Vec<usize>>());
            let active = swarm.managers.epoch;
            let took = swarm.run_until(20 * SECOND, |swarm| {
                swarm.agrees()
                    && swarm.hosts.iter().all(|host| {
                        let gossip = host.gossip.as_ref().unwrap();
                        gossip.members().all(|member| gossip.sending_epoch(member.node) == Some(active))
                    })
            });
            assert!(took.is_some(), "seed {seed}, round {round}");
            swarm.run_for(20 * SECOND);
            for (host, before) in swarm.hosts.iter().zip(before) {
                let mut later = host.events.iter().skip(before);
                assert!(!later.any(|(_, event)| matches!(event, GossipEvent::NodeDown { .. })), "seed {seed}");
            }
        }
    }
}

#[test]
fn a_node_without_managers_follows_one_rotation_by_gossip() {
    let mut swarm = settled(91, Faults::lossy(0.05));
    let online: Vec<usize> = (0..9).collect();
    swarm.rotate(&online);
    let active = swarm.managers.epoch;
    let heard = |swarm: &GossipSwarm| {
        swarm.hosts[9].events.iter().any(|(_, event)| match event {
            GossipEvent::RecordAccepted(record) => {
                matches!(record.body(), RecordBody::Ring(ring) if ring.active == active)
            }
            _ => false,
        })
    };
    assert!(swarm.run_until(10 * SECOND, heard).is_some());
    swarm.gossip(9).set_active(active);
    swarm.run_for(30 * SECOND);
    let first = swarm.hosts[0].node;
    assert_eq!(swarm.gossip(9).sending_epoch(first), Some(active));
    assert!(swarm.all_up(), "its record of the epoch before still holds");
}

#[test]
fn a_node_that_slept_through_rotations_is_back_with_the_present_ring() {
    let mut swarm = settled(92, Faults::lossy(0.05));
    let cut = [addresses(&swarm, 0..9), addresses(&swarm, 9..10)];
    swarm.network.partition(&cut);
    for _ in 0..3 {
        swarm.rotate(&(0..9).collect::<Vec<usize>>());
        swarm.run_for(20 * SECOND);
    }
    swarm.network.heal();
    let before = swarm.hosts[9].events.len();
    // The others no longer have a record of it, so nobody sends to it: the managers' session brings it back.
    let (active, now) = (swarm.managers.epoch, swarm.now);
    for epoch in [active, active.next()] {
        let keys = swarm.epoch_keys(9, epoch);
        assert_eq!(swarm.gossip(9).set_epoch(keys), Ok(()));
    }
    for epoch in [Epoch(1), Epoch(2), Epoch(3)] {
        swarm.gossip(9).erase_epoch(epoch);
    }
    swarm.gossip(9).set_active(active);
    let body = swarm.node_record(9);
    let own = swarm.managers.sign(body);
    let introduction = swarm.own_record(0).unwrap();
    assert_eq!(swarm.gossip(9).set_own_record(own, now), Ok(()));
    swarm.insert(9, introduction);
    let took = swarm.run_until(20 * SECOND, |swarm| swarm.all_up() && swarm.agrees());
    assert!(took.is_some_and(|took| took <= 10 * SECOND), "{took:?}");
    assert!(swarm.hosts[9].events.len() > before);
}

#[test]
fn a_new_node_gets_thousands_of_records_in_bounded_steps() {
    let mut swarm = GossipSwarm::new(101, 2, Faults::lossy(0.02));
    swarm.kill(1);
    swarm.publish_endpoints(0, 4000);
    swarm.boot(1);
    let took = swarm.run_until(60 * SECOND, |swarm| swarm.agrees());
    assert!(took.is_some_and(|took| took <= 30 * SECOND), "{took:?}");
    assert_eq!(swarm.gossip(1).records().count(), 4003);
}

#[test]
fn the_newest_owner_wins_whatever_the_order_of_arrival() {
    for seed in 111..113 {
        let mut swarm = settled(seed, Faults { delay_max: SECOND, duplication: 0.3, ..Faults::lossy(0.1) });
        let mut rng = StdRng::seed_from_u64(seed);
        let mut owners: BTreeMap<RecordKey, SignedRecord> = BTreeMap::new();
        let mut history = Vec::new();
        for _ in 0..1000 {
            let task = TaskId::from_random([rng.random_range(0..50); 17]);
            let key = EndpointKey { network: NetworkId::from_random([1; 17]), task };
            let node = swarm.hosts[rng.random_range(0..10)].node;
            let record = swarm.managers.sign_endpoint(key, node, rng.random_bool(0.8), vec![1; 60]);
            owners.insert(record.key(), record.clone());
            history.push(record);
        }
        history.shuffle(&mut rng);
        for record in history {
            let at = rng.random_range(0..10);
            swarm.insert(at, record);
            swarm.run_for(Duration::from_millis(10));
        }
        assert!(swarm.run_until(30 * SECOND, |swarm| swarm.agrees()).is_some(), "seed {seed}");
        for (key, owner) in owners {
            let held = swarm.gossip(4).record(&key).map(|record| record.signed().clone());
            assert_eq!(held, Some(owner), "seed {seed}");
        }
    }
}

#[test]
fn a_removed_node_is_dropped_everywhere_and_stays_away() {
    let mut swarm = settled(121, Faults::lossy(0.1));
    let node = swarm.hosts[6].node;
    let endpoints = swarm.publish_endpoints(6, 5);
    swarm.run_until(20 * SECOND, |swarm| swarm.agrees()).unwrap();
    let gone = swarm.managers.sign(RecordBody::Gone(node));
    swarm.insert(0, gone);
    let forgotten = |swarm: &GossipSwarm| {
        swarm.hosts.iter().enumerate().filter(|(number, _)| *number != 6).all(|(_, host)| {
            let gossip = host.gossip.as_ref().unwrap();
            gossip.members().all(|member| member.node != node)
                && endpoints.iter().all(|key| gossip.record(key).is_none())
        })
    };
    assert!(swarm.run_until(10 * SECOND, forgotten).is_some());
    swarm.run_for(60 * SECOND);
    assert!(forgotten(&swarm), "its own gossip brought it back");
    let record = swarm.node_record(6);
    let back = swarm.managers.sign(record);
    swarm.insert(0, back);
    let known =
        |swarm: &GossipSwarm| swarm.hosts[3].gossip.as_ref().unwrap().members().any(|member| member.node == node);
    assert!(swarm.run_until(10 * SECOND, known).is_some());
}

/// Datagrams that differ from real ones.
const MUTATED: u64 = 100_000;

#[test]
fn no_mutated_datagram_is_accepted_and_each_is_counted() {
    let mut swarm = GossipSwarm::new(131, 2, Faults::NONE);
    swarm.run_until(10 * SECOND, |swarm| swarm.all_up() && swarm.agrees()).unwrap();
    let mut rng = StdRng::seed_from_u64(131);
    let mut samples = Vec::new();
    while samples.len() < 40 {
        swarm.publish_endpoints(0, 1);
        swarm.run_for(Duration::from_millis(300));
        let (now, from) = (swarm.now + SECOND, swarm.hosts[0].address);
        swarm.gossip(0).handle_timeout(now);
        samples.extend(std::iter::from_fn(|| swarm.gossip(0).poll_transmit()).map(|sent| (from, sent.payload)));
    }
    let now = swarm.now;
    let target = swarm.gossip(1);
    let (records, before): (usize, u64) =
        (target.records().count(), target.drops().iter().map(|(_, count)| count).sum());
    for _ in 0..MUTATED {
        let (from, mut datagram) = samples[rng.random_range(0..samples.len())].clone();
        match rng.random_range(0..4) {
            0 => datagram.truncate(rng.random_range(0..datagram.len())),
            1 => datagram.extend(std::iter::repeat_n(0, rng.random_range(1..2000))),
            _ => {
                let at = rng.random_range(0..datagram.len());
                datagram[at] ^= rng.random_range(1..=255u8);
            }
        }
        target.handle_datagram(from, &datagram, now);
    }
    let after: u64 = target.drops().iter().map(|(_, count)| count).sum();
    assert_eq!((target.records().count(), after - before), (records, MUTATED));
    assert!(target.drops().of(GossipDrop::Forged) > 1000);
    assert!(target.poll_transmit().is_none(), "garbage was answered");
    swarm.run_for(10 * SECOND);
    assert!(swarm.all_up(), "the node took harm");
}

#[test]
fn a_run_is_determined_by_its_seed() {
    let run = |seed| {
        let mut swarm = settled(seed, Faults::lossy(0.1));
        swarm.run_for(20 * SECOND);
        let events: Vec<usize> = swarm.hosts.iter().map(|host| host.events.len()).collect();
        (swarm.sent, events)
    };
    assert_eq!(run(141), run(141));
    assert_ne!(run(141), run(142));
}
