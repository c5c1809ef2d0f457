//! What one machine must refuse, keep and say. Whole swarms are tested in `sim`.

use super::keyring::Keyring;
use super::sequence::{ReplayWindow, SendCounter, TokenBucket};
use super::store::{Store, bucket_range};
use super::*;
use crate::crypto::X25519Secret;
use crate::sim::gossip::{GossipSwarm, Managers};
use crate::sim::network::Faults;
use crate::types::{EndpointKey, Key32, NetworkId, PublicKey, TaskId};
use crate::wire::gossip::{Form, Header, Hello, Party, VERSION_HELLO, VERSION_PAIR, hello_key, seal_hello};
use crate::wire::record::{RecordBody, RingRecord};
use proptest::prelude::*;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use std::collections::BTreeSet;
use std::sync::Arc;

const SECOND: Duration = Duration::from_secs(1);

/// Two nodes that know each other.
fn two() -> GossipSwarm {
    let mut swarm = GossipSwarm::new(1, 2, Faults::NONE);
    swarm.run_until(10 * SECOND, |swarm| swarm.all_up() && swarm.agrees()).unwrap();
    swarm
}

/// What the machine sends when a long time has passed.
fn sent_later(swarm: &mut GossipSwarm, number: usize) -> Vec<Transmit> {
    let later = swarm.now + 5 * SECOND;
    let gossip = swarm.gossip(number);
    gossip.handle_timeout(later);
    std::iter::from_fn(|| gossip.poll_transmit()).collect()
}

fn events(gossip: &mut Gossip) -> Vec<GossipEvent> {
    std::iter::from_fn(|| gossip.poll_event()).collect()
}

fn changed_node(
    swarm: &GossipSwarm,
    number: usize,
    change: impl Fn(&mut crate::wire::record::NodeRecord),
) -> RecordBody {
    let RecordBody::Node(mut node) = swarm.node_record(number) else { unreachable!("a node record") };
    change(&mut node);
    RecordBody::Node(node)
}

fn endpoint(swarm: &mut GossipSwarm, number: usize, task: u8) -> SignedRecord {
    let key = EndpointKey { network: NetworkId::from_random([1; 17]), task: TaskId::from_random([task; 17]) };
    let node = swarm.hosts[number].node;
    swarm.managers.sign_endpoint(key, node, true, vec![0; 40])
}

#[test]
fn a_replayed_datagram_is_dropped() {
    let mut swarm = two();
    let sent = sent_later(&mut swarm, 0);
    let pair = sent.iter().find(|sent| sent.payload[0] == VERSION_PAIR).unwrap();
    let (from, now) = (swarm.hosts[0].address, swarm.now);
    let target = swarm.gossip(1);
    target.handle_datagram(from, &pair.payload, now);
    assert_eq!(target.drops().of(GossipDrop::Replayed), 0);
    target.handle_datagram(from, &pair.payload, now);
    assert_eq!(target.drops().of(GossipDrop::Replayed), 1);
}

#[test]
fn a_datagram_for_another_node_is_forged_here() {
    let mut swarm = GossipSwarm::new(2, 3, Faults::NONE);
    swarm.run_until(10 * SECOND, |swarm| swarm.all_up() && swarm.agrees()).unwrap();
    let third = swarm.hosts[2].address;
    swarm.publish_endpoints(0, 1);
    let mut sent = Vec::new();
    while sent.is_empty() {
        sent = sent_later(&mut swarm, 0);
        sent.retain(|sent| sent.to != third && sent.payload[0] == VERSION_PAIR);
        swarm.now = swarm.now + 5 * SECOND;
    }
    let (from, now) = (swarm.hosts[0].address, swarm.now);
    let target = swarm.gossip(2);
    target.handle_datagram(from, &sent[0].payload, now);
    assert_eq!(target.drops().of(GossipDrop::Forged) + target.drops().of(GossipDrop::Replayed), 1);
}

/// A hello in the first host's name, as every node with the gossip key can make one.
fn forged_hello(swarm: &GossipSwarm) -> Vec<u8> {
    let host = &swarm.hosts[0];
    let form = Form::Hello { nonce: [0x77; 12] };
    let header = Header { epoch: Epoch(2), node: host.node, boot: host.boot, form };
    let record = swarm.own_record(0).unwrap();
    let hello = Hello { ring: &[], node: record.encoded() }.emit();
    seal_hello(&hello_key(&swarm.managers.gossip_key(Epoch(2))), &header, &hello)
}

/// A hello of a copy of the first host: the same boot and secrets, other randomness.
fn cloned_hello(swarm: &mut GossipSwarm) -> Vec<u8> {
    let (cluster, fork) = (swarm.managers.cluster, swarm.managers.fork);
    let (node, boot, now) = (swarm.hosts[0].node, swarm.hosts[0].boot, swarm.now);
    let mut clone = Gossip::new(GossipConfig { cluster, fork, node, boot, timing: Timing::default() }, now, [9; 32]);
    clone.set_trust(swarm.managers.trust());
    for epoch in [1, 2, 3].map(Epoch) {
        clone.set_epoch(swarm.epoch_keys(0, epoch)).unwrap();
    }
    clone.set_active(Epoch(2));
    clone.set_own_record(swarm.own_record(0).unwrap(), now).unwrap();
    clone.insert_records([swarm.managers.ring_record(), swarm.own_record(1).unwrap()], now);
    clone.handle_timeout(now);
    let mut sent = std::iter::from_fn(|| clone.poll_transmit()).map(|sent| sent.payload);
    sent.find(|payload| payload[0] == VERSION_HELLO).unwrap()
}

#[test]
fn a_reflected_or_forged_hello_is_no_clone_but_one_with_our_secret_is() {
    let mut swarm = GossipSwarm::new(3, 2, Faults::NONE);
    let now = swarm.now;
    let own: Vec<Vec<u8>> = {
        let introduction = swarm.own_record(1).unwrap();
        let gossip = swarm.gossip(0);
        gossip.insert_records([introduction], now);
        gossip.handle_timeout(now);
        std::iter::from_fn(|| gossip.poll_transmit()).map(|sent| sent.payload).collect()
    };
    let hello = own.iter().find(|payload| payload[0] == VERSION_HELLO).unwrap();
    let (forged, cloned, from) = (forged_hello(&swarm), cloned_hello(&mut swarm), swarm.hosts[1].address);
    let gossip = swarm.gossip(0);
    events(gossip);
    gossip.handle_datagram(from, hello, now);
    assert_eq!(gossip.drops().of(GossipDrop::OwnIdentity), 1);
    assert!(!events(gossip).contains(&GossipEvent::ClonedIdentity));
    gossip.handle_datagram(from, &forged, now);
    assert_eq!(gossip.drops().of(GossipDrop::OwnIdentity), 2);
    assert_eq!(events(gossip), [], "any node could make all others draw a new boot");
    gossip.handle_datagram(from, &cloned, now);
    assert_eq!(events(gossip), [GossipEvent::ClonedIdentity]);
}

#[test]
fn a_newer_boot_of_this_node_is_a_clone_and_an_older_one_is_nothing() {
    let mut swarm = two();
    let newer = changed_node(&swarm, 0, |node| (node.boot, node.boot_index) = (BootId([9; 8]), 1_000_000));
    let newer = swarm.managers.sign(newer);
    let (own, now) = (swarm.own_record(0).unwrap(), swarm.now);
    let gossip = swarm.gossip(0);
    gossip.insert_records([newer], now);
    assert_eq!(events(gossip), [GossipEvent::ClonedIdentity]);
    let key = RecordKey::Node(gossip.config.node);
    assert_eq!(gossip.record(&key).map(|record| record.signed().clone()), Some(own));
}

#[test]
fn a_second_public_and_an_older_boot_are_refused() {
    let mut swarm = two();
    let other = changed_node(&swarm, 0, |node| node.publics[1].1 = PublicKey([5; 32]));
    let older = changed_node(&swarm, 0, |node| (node.boot, node.boot_index) = (BootId([9; 8]), 0));
    let twin = changed_node(&swarm, 0, |node| node.boot = BootId([9; 8]));
    let records = [other, older, twin].map(|body| swarm.managers.sign(body));
    let now = swarm.now;
    let before = swarm.own_record(0).unwrap();
    let gossip = swarm.gossip(1);
    gossip.insert_records(records, now);
    assert_eq!(gossip.drops().of(GossipDrop::ConflictingPublic), 1);
    assert_eq!(gossip.drops().of(GossipDrop::OlderBoot), 2);
    assert_eq!(gossip.record(&before.key()).map(|record| record.signed().clone()), Some(before));
}

#[test]
fn a_public_that_keys_were_made_of_outlives_its_record() {
    let mut swarm = two();
    let own = swarm.own_record(0).unwrap();
    let other = changed_node(&swarm, 0, |node| node.publics[1].1 = PublicKey([5; 32]));
    let other = swarm.managers.sign(other);
    let now = swarm.now;
    let gossip = swarm.gossip(1);
    gossip.expire(own.key());
    gossip.insert_records([other], now);
    assert_eq!(gossip.drops().of(GossipDrop::ConflictingPublic), 1);
}

#[test]
fn the_keys_of_a_removed_node_never_start_again() {
    let mut swarm = two();
    let (node, now) = (swarm.hosts[0].node, swarm.now);
    let body = swarm.node_record(0);
    let back = swarm.managers.sign(body);
    let stale = swarm.own_record(0).unwrap();
    swarm.gossip(1).remove_node(node);
    assert_eq!(swarm.gossip(1).members().count(), 0);
    swarm.insert(1, stale);
    assert_eq!(swarm.gossip(1).drops().of(GossipDrop::GoneNode), 1);
    let index = swarm.managers.next_index();
    assert!(back.version().generation.index < index);
    swarm.insert(1, back);
    assert_eq!(swarm.gossip(1).members().count(), 1, "newer than all that was known");
    let sent = {
        let gossip = swarm.gossip(1);
        gossip.handle_timeout(now + SECOND);
        std::iter::from_fn(|| gossip.poll_transmit()).count()
    };
    assert_eq!(sent, 0, "its pair is closed for this boot");
    assert!(swarm.gossip(1).drops().of(GossipDrop::BadPublic) > 0);
}

#[test]
fn records_of_a_retired_epoch_are_void() {
    let mut swarm = two();
    let old = endpoint(&mut swarm, 0, 1);
    swarm.managers.epoch = Epoch(3);
    let new = endpoint(&mut swarm, 0, 2);
    swarm.insert(1, old.clone());
    swarm.insert(1, new.clone());
    let now = swarm.now;
    let gossip = swarm.gossip(1);
    gossip.erase_epoch(Epoch(1));
    assert!(gossip.record(&old.key()).is_some());
    gossip.erase_epoch(Epoch(2));
    assert!(gossip.record(&old.key()).is_none() && gossip.record(&new.key()).is_some());
    assert!(events(gossip).contains(&GossipEvent::RecordExpired(old.key())));
    gossip.insert_records([old], now);
    assert_eq!(gossip.drops().of(GossipDrop::RetiredEpoch), 1);
}

/// A machine of a host's node that has been told whom to trust, its own record, and a head.
fn told(swarm: &mut GossipSwarm, number: usize, own_index: u64, head_index: Option<u64>) -> Gossip {
    let (cluster, fork) = (swarm.managers.cluster, swarm.managers.fork);
    let (node, boot, now) = (swarm.hosts[number].node, swarm.hosts[number].boot, swarm.now);
    let config = GossipConfig { cluster, fork, node, boot, timing: Timing::default() };
    let mut gossip = Gossip::new(config, now, [number as u8; 32]);
    gossip.set_trust(swarm.managers.trust());
    for epoch in [1, 2, 3].map(Epoch) {
        gossip.set_epoch(swarm.epoch_keys(number, epoch)).unwrap();
    }
    gossip.set_active(Epoch(2));
    let own = swarm.managers.sign_at(own_index, Epoch(2), swarm.node_record(number));
    gossip.set_own_record(own, now).unwrap();
    gossip.insert_records(head_index.map(|index| head(swarm, index)), now);
    gossip
}

fn head(swarm: &GossipSwarm, index: u64) -> SignedRecord {
    swarm.managers.sign_at(index, Epoch(2), RecordBody::Ring(RingRecord { active: Epoch(2), oldest: Epoch(1) }))
}

/// Hands what one has to send to the other and back until both are silent.
fn talk(one: &mut Gossip, other: &mut Gossip, mut now: Time, rounds: u32) -> Time {
    let from: SocketAddr = "192.0.2.1:7946".parse().unwrap();
    for _ in 0..rounds {
        now = now + 500 * Duration::from_millis(1);
        one.handle_timeout(now);
        other.handle_timeout(now);
        while let Some((sent, to_other)) =
            one.poll_transmit().map(|it| (it, true)).or_else(|| other.poll_transmit().map(|it| (it, false)))
        {
            let to = if to_other { &mut *other } else { &mut *one };
            to.handle_datagram(from, &sent.payload, now);
        }
    }
    now
}

#[test]
fn a_record_above_the_head_is_refused_and_taken_once_the_head_is_there() {
    let mut swarm = GossipSwarm::new(4, 2, Faults::NONE);
    let mut gossip = told(&mut swarm, 0, 3, Some(10));
    let now = swarm.now;
    let key = EndpointKey { network: NetworkId::from_random([1; 17]), task: TaskId::from_random([1; 17]) };
    let at = |swarm: &GossipSwarm, index| {
        let generation = Generation { fork: swarm.managers.fork, index };
        let node = swarm.hosts[1].node;
        let sealed = vec![0; 40];
        let record = crate::wire::record::EndpointRecord { key, node, generation, alive: true, sealed };
        swarm.managers.sign_at(index, Epoch(2), RecordBody::Endpoint(record))
    };
    let (now_due, early) = (at(&swarm, 10), at(&swarm, 11));
    gossip.insert_records([early.clone()], now);
    assert_eq!((gossip.drops().of(GossipDrop::AboveHead), gossip.record(&early.key())), (1, None));
    gossip.insert_records([now_due.clone()], now);
    assert_eq!(gossip.record(&now_due.key()).map(VerifiedRecord::signed), Some(&now_due));
    gossip.insert_records([head(&swarm, 11), early.clone()], now);
    assert_eq!(gossip.record(&early.key()).map(VerifiedRecord::signed), Some(&early));
    let mut nothing_told = told(&mut swarm, 0, 3, None);
    nothing_told.insert_records([early], now);
    assert_eq!(nothing_told.drops().of(GossipDrop::AboveHead), 1, "without a head nothing is believed");
}

/// Nobody but the peer itself can tell the new head: neither has a session, and there is no third node.
#[test]
fn a_peer_that_restarted_after_our_last_word_of_the_managers_is_met_by_its_hello() {
    let mut swarm = GossipSwarm::new(5, 2, Faults::NONE);
    let mut old = told(&mut swarm, 0, 3, Some(10));
    let old_record = swarm.managers.sign_at(3, Epoch(2), swarm.node_record(0));
    let mut new = told(&mut swarm, 1, 30, Some(40));
    let now = swarm.now;
    new.insert_records([old_record], now);
    let own = new.own.clone().unwrap();
    old.insert_records([own.signed().clone()], now);
    assert_eq!(old.drops().of(GossipDrop::AboveHead), 1);
    talk(&mut new, &mut old, now, 4);
    assert_eq!(old.record(&own.key()), Some(&own));
    assert_eq!(old.head.map(|head| head.index), Some(40));
}

/// The record comes first and the ring record is lost on the way: both are asked for at once.
#[test]
fn what_came_before_its_head_comes_again_at_once() {
    let mut swarm = GossipSwarm::new(6, 2, Faults::NONE);
    let (one_own, other_own) = (
        swarm.managers.sign_at(3, Epoch(2), swarm.node_record(0)),
        swarm.managers.sign_at(4, Epoch(2), swarm.node_record(1)),
    );
    let (mut one, mut other) = (told(&mut swarm, 0, 3, Some(10)), told(&mut swarm, 1, 4, Some(10)));
    let now = swarm.now;
    one.insert_records([other_own], now);
    other.insert_records([one_own], now);
    let now = talk(&mut one, &mut other, now, 6);
    let key = EndpointKey { network: NetworkId::from_random([1; 17]), task: TaskId::from_random([1; 17]) };
    swarm.managers.sign_endpoint(key, swarm.hosts[0].node, true, vec![0; 40]);
    while swarm.managers.next_index() < 20 {}
    let record = swarm.managers.sign_endpoint(key, swarm.hosts[0].node, true, vec![0; 40]);
    one.insert_records([head(&swarm, 30), record.clone()], now);
    let early = other.accept_all(vec![record.clone()], swarm.hosts[0].node, now);
    assert_eq!((early, other.drops().of(GossipDrop::AboveHead)), (0, 1));
    let from: SocketAddr = "192.0.2.1:7946".parse().unwrap();
    while let Some(sent) = other.poll_transmit() {
        one.handle_datagram(from, &sent.payload, now);
    }
    while let Some(sent) = one.poll_transmit() {
        other.handle_datagram(from, &sent.payload, now);
    }
    assert_eq!(other.record(&record.key()).map(VerifiedRecord::signed), Some(&record), "no time has passed");
}

#[test]
fn the_ring_record_voids_without_a_manager() {
    let mut swarm = two();
    let old = endpoint(&mut swarm, 0, 1);
    swarm.insert(1, old.clone());
    swarm.managers.epoch = Epoch(3);
    let ring = swarm.managers.sign(RecordBody::Ring(RingRecord { active: Epoch(3), oldest: Epoch(3) }));
    swarm.insert(1, ring);
    assert!(swarm.gossip(1).record(&old.key()).is_none());
}

#[test]
fn an_erased_epoch_is_never_taken_again() {
    let mut swarm = two();
    let secret = Arc::new(X25519Secret::new(&Key32::new([1; 32])));
    let keys = |epoch, gossip_key: u8| EpochKeys {
        epoch: Epoch(epoch),
        gossip_key: Key32::new([gossip_key; 32]),
        secret: Arc::clone(&secret),
    };
    let gossip = swarm.gossip(0);
    assert_eq!(gossip.set_epoch(keys(3, 1)), Err(EpochRefused::Conflict));
    // The next epoch is thrown away at a removal; the present one lives on.
    gossip.erase_epoch(Epoch(3));
    assert_eq!(gossip.set_epoch(keys(3, 1)), Err(EpochRefused::Retired));
    assert_eq!(gossip.set_epoch(keys(4, 1)), Ok(()));
    assert_eq!(gossip.set_epoch(keys(4, 1)), Ok(()));
    gossip.erase_epoch(Epoch(1));
    gossip.erase_epoch(Epoch(2));
    for epoch in [0, 1, 2, 3] {
        assert_eq!(gossip.set_epoch(keys(epoch, 1)), Err(EpochRefused::Retired));
    }
    for epoch in 5..10 {
        assert_eq!(gossip.set_epoch(keys(epoch, 1)), Ok(()));
    }
    assert_eq!(gossip.set_epoch(keys(10, 1)), Err(EpochRefused::TooMany));
}

#[test]
fn a_new_fork_voids_everything_and_an_older_one_nothing() {
    let mut swarm = two();
    let trust = swarm.managers.trust();
    let gossip = swarm.gossip(0);
    gossip.set_trust(TrustBundle { fork: Fork(trust.fork.0 - 1), keys: vec![] });
    assert_eq!(gossip.records().count(), 3);
    gossip.set_trust(TrustBundle { fork: Fork(trust.fork.0 + 1), ..trust });
    assert_eq!((gossip.records().count(), gossip.members().count()), (0, 0));
    assert_eq!(gossip.poll_timeout(), None);
    let foreign = endpoint(&mut swarm, 0, 1);
    swarm.insert(0, foreign);
    assert_eq!(swarm.gossip(0).drops().of(GossipDrop::OtherFork), 1);
}

#[test]
fn the_ring_is_asked_for_at_most_once_in_30_seconds() {
    let mut swarm = two();
    let host = &swarm.hosts[0];
    let datagram = |epoch| {
        let form = Form::Pair { counter: 1 };
        let mut datagram = Header { epoch: Epoch(epoch), node: host.node, boot: host.boot, form }.emit();
        datagram.extend_from_slice(&[0; 40]);
        datagram
    };
    let (known, near, far, from) = (datagram(0), datagram(6), datagram(7), host.address);
    let start = swarm.now;
    let gossip = swarm.gossip(1);
    let mut asked = Vec::new();
    for step in 0..900 {
        let now = start + step * Duration::from_millis(100);
        gossip.handle_datagram(from, &known, now);
        gossip.handle_datagram(from, &far, now);
        if step >= 100 {
            gossip.handle_datagram(from, &near, now);
        }
        gossip.handle_timeout(now);
        asked.extend(
            events(gossip)
                .into_iter()
                .filter(|event| matches!(event, GossipEvent::NeedRing { .. }))
                .map(|event| (step, event)),
        );
    }
    let unexpected =
        asked.iter().any(|(step, event)| *step < 100 || *event != GossipEvent::NeedRing { epoch: Epoch(6) });
    assert!(!unexpected && (2..=3).contains(&asked.len()), "{asked:?}");
}

#[test]
fn a_ring_record_with_an_unknown_epoch_asks_for_the_ring() {
    let mut swarm = two();
    let ring = swarm.managers.sign(RecordBody::Ring(RingRecord { active: Epoch(9), oldest: Epoch(2) }));
    swarm.insert(1, ring);
    swarm.run_for(6 * SECOND);
    assert!(swarm.hosts[1].events.iter().any(|(_, event)| *event == GossipEvent::NeedRing { epoch: Epoch(9) }));
}

#[test]
fn hellos_of_strangers_are_limited() {
    let mut swarm = two();
    let (from, now) = (swarm.hosts[0].address, swarm.now);
    let stranger = NodeId::from_random([0x42; 17]);
    let gossip = swarm.gossip(1);
    for number in 0..1000u32 {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&number.to_be_bytes());
        let header = Header { epoch: Epoch(2), node: stranger, boot: BootId([1; 8]), form: Form::Hello { nonce } };
        let mut datagram = header.emit();
        datagram.extend_from_slice(&[0; 200]);
        gossip.handle_datagram(from, &datagram, now);
    }
    assert_eq!((gossip.drops().of(GossipDrop::Forged), gossip.drops().of(GossipDrop::HelloBudget)), (100, 900));
}

#[test]
fn a_peer_cannot_make_us_check_signatures_without_end() {
    let mut swarm = two();
    let (from, now) = (swarm.hosts[0].node, swarm.now);
    let record = endpoint(&mut swarm, 0, 1);
    let mut encoded = record.encoded().to_vec();
    *encoded.last_mut().unwrap() ^= 1;
    let forged = SignedRecord::parse(&encoded).unwrap();
    let gossip = swarm.gossip(1);
    for _ in 0..3000 {
        assert!(!gossip.accept(forged.clone(), Some(from), now));
    }
    assert_eq!(gossip.drops().of(GossipDrop::BadSignature), 1000);
    assert_eq!(gossip.drops().of(GossipDrop::SignatureBudget), 2000);
    assert!(gossip.accept(record, None, now), "the managers are not limited");
}

#[test]
fn an_old_record_costs_no_signature_check() {
    let mut swarm = two();
    let (old, new) = (endpoint(&mut swarm, 0, 1), endpoint(&mut swarm, 0, 1));
    let (from, now) = (swarm.hosts[0].node, swarm.now);
    let gossip = swarm.gossip(1);
    gossip.insert_records([new], now);
    let level = |gossip: &Gossip| format!("{:?}", gossip.members.get(from).unwrap().signatures);
    let before = level(gossip);
    assert!(!gossip.accept(old, Some(from), now));
    assert_eq!((gossip.drops().of(GossipDrop::StaleRecord), level(gossip)), (1, before));
}

#[test]
fn events_nobody_takes_stop_records_not_memory() {
    let mut swarm = two();
    let now = swarm.now;
    let gossip = swarm.gossip(1);
    for _ in 0..EVENTS_MAX {
        gossip.event(GossipEvent::ClonedIdentity);
    }
    let record = endpoint(&mut swarm, 0, 1);
    let gossip = swarm.gossip(1);
    assert!(!gossip.accept(record.clone(), None, now));
    assert_eq!(gossip.drops().of(GossipDrop::EventQueueFull), 1);
    events(gossip);
    assert!(gossip.accept(record, None, now));
}

#[test]
fn a_peer_without_the_active_epoch_is_sent_to_under_the_one_before() {
    let secret = |byte| Arc::new(X25519Secret::new(&Key32::new([byte; 32])));
    let mut keyring = Keyring::new(Managers::new().cluster, Fork(1), NodeId::from_random([1; 17]), BootId([1; 8]));
    let mut ours = Vec::new();
    for epoch in 1..=3 {
        let secret = secret(epoch as u8);
        ours.push((Epoch(epoch), secret.public()));
        let gossip_key = Key32::new([epoch as u8; 32]);
        assert_eq!(keyring.set_epoch(EpochKeys { epoch: Epoch(epoch), gossip_key, secret }), Ok(()));
    }
    let theirs = |epochs: &[u32]| -> Vec<(Epoch, PublicKey)> {
        epochs.iter().map(|epoch| (Epoch(*epoch), PublicKey([*epoch as u8 + 9; 32]))).collect()
    };
    let choose = |keyring: &Keyring, epochs: &[u32], ours: &[(Epoch, PublicKey)]| {
        keyring.choose(&theirs(epochs), ours).map(|(epoch, _)| epoch.0)
    };
    assert_eq!(choose(&keyring, &[1, 2], &ours), Some(2), "no active one yet: the newest");
    keyring.active = Some(Epoch(2));
    assert_eq!(choose(&keyring, &[1, 2, 3], &ours), Some(2));
    assert_eq!(choose(&keyring, &[1], &ours), Some(1));
    assert_eq!(choose(&keyring, &[3, 4], &ours), Some(3));
    assert_eq!(choose(&keyring, &[4], &ours), None);
    assert_eq!(choose(&keyring, &[1, 2], &ours[..1]), Some(1), "our own record must have the public too");
}

#[test]
fn every_drop_has_its_own_name() {
    let names: BTreeSet<&str> = GossipDrop::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), GossipDrop::ALL.len());
}

#[test]
fn a_bucket_gives_its_burst_then_its_rate() {
    let mut bucket = TokenBucket::new(10, 20, Time(0));
    let take = |bucket: &mut TokenBucket, now| (0..100).filter(|_| bucket.take(now)).count();
    assert_eq!(take(&mut bucket, Time(0)), 20);
    assert_eq!(take(&mut bucket, Time(500_000)), 5);
    assert_eq!(take(&mut bucket, Time(0)), 0, "time that runs back gives nothing");
    assert_eq!(take(&mut bucket, Time(100_500_000)), 20);
}

#[test]
fn a_counter_never_repeats() {
    let mut counter = SendCounter::new();
    assert!((1..1000).all(|expected| counter.next() == Some(expected)));
}

#[test]
fn tree_ranges_have_no_gap() {
    let mut next = 0u64;
    for bucket in 0..64u8 {
        let upper = bucket_range(0, 0, usize::from(bucket));
        assert_eq!(*upper.start(), next);
        for child in 0..64 {
            let lower = bucket_range(1, bucket, child);
            assert_eq!(*lower.start(), next);
            next = lower.end().wrapping_add(1);
        }
        assert_eq!(upper.end().wrapping_add(1), next);
    }
    assert_eq!(next, 0);
}

#[test]
fn the_tree_depends_on_the_records_not_on_their_history() {
    let mut swarm = two();
    let trust = swarm.managers.trust();
    let mut rng = StdRng::seed_from_u64(5);
    let verified: Vec<VerifiedRecord> = (0..200)
        .map(|number| endpoint(&mut swarm, 0, number % 60).verify(&trust, swarm.managers.cluster).unwrap())
        .collect();
    let mut store = Store::new();
    for record in verified.iter().chain(&verified) {
        store.insert(record.clone());
        if rng.random_bool(0.3) {
            store.remove(&verified.choose(&mut rng).unwrap().key());
        }
        store.take_fresh(rng.random_range(0..600), 3);
    }
    let mut fresh = Store::new();
    store.iter().cloned().collect::<Vec<_>>().into_iter().rev().for_each(|record| fresh.insert(record));
    assert_eq!(store.root(), fresh.root());
    for bucket in 0..64 {
        assert_eq!(store.digest(1, bucket), fresh.digest(1, bucket));
    }
    store.keys_where(|_| true).iter().for_each(|key| store.remove(key));
    assert_eq!(store.root(), [0; 8]);
    assert!(!store.has_fresh());
}

/// Random life of a keyring: epochs come and go, peers restart, are removed and come back.
#[test]
fn no_key_and_nonce_occur_twice() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut keyring = Keyring::new(Managers::new().cluster, Fork(1), NodeId::from_random([1; 17]), BootId([1; 8]));
        let mut used = BTreeSet::new();
        for step in 0..3000 {
            let epoch = Epoch(rng.random_range(0..12));
            let peer = rng.random_range(1..5u8);
            let boot = rng.random_range(1..3u8);
            let public = X25519Secret::new(&Key32::new([peer * 16 + boot; 32])).public();
            let party = Party { node: NodeId::from_random([peer; 17]), boot: BootId([boot; 8]), public };
            match rng.random_range(0..100) {
                0..5 => {
                    let secret = Arc::new(X25519Secret::new(&Key32::new([epoch.0 as u8 + 100; 32])));
                    let gossip_key = Key32::new([epoch.0 as u8; 32]);
                    let _ = keyring.set_epoch(EpochKeys { epoch, gossip_key, secret });
                }
                5 => keyring.erase(Epoch(epoch.0 % (1 + step / 250))),
                6 => keyring.close(party.node),
                _ => {
                    if let Ok(pair) = keyring.pair(epoch, party) {
                        let nonce = pair.counter.next().unwrap();
                        assert!(used.insert((*pair.send.expose(), nonce)), "seed {seed}: a (key, nonce) twice");
                    }
                }
            }
        }
        assert!(used.len() > 100, "seed {seed} tested nothing");
    }
}

proptest! {
    /// Against the simple model: everything seen, and how far back one may look.
    #[test]
    fn the_replay_window_is_right(counters in prop::collection::vec(prop_oneof![1u64..3000, 1u64..50, 100_000u64..101_100], 1..300)) {
        let mut window = ReplayWindow::new();
        let (mut seen, mut highest) = (BTreeSet::new(), 0);
        for counter in counters {
            let fresh = !seen.contains(&counter) && (counter > highest || highest - counter < 1024);
            prop_assert_eq!(window.is_new(counter), fresh);
            if fresh {
                window.mark(counter);
                seen.insert(counter);
                highest = highest.max(counter);
            }
        }
        prop_assert!(!window.is_new(0));
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..1400), kind in 0u8..4) {
        let mut swarm = GossipSwarm::new(9, 1, Faults::NONE);
        let (from, now) = (swarm.hosts[0].address, swarm.now);
        let mut datagram = bytes;
        if let Some(first) = datagram.first_mut() {
            *first = kind;
        }
        let gossip = swarm.gossip(0);
        gossip.handle_datagram(from, &datagram, now);
        let dropped: u64 = gossip.drops().iter().map(|(_, count)| count).sum();
        prop_assert_eq!(dropped, 1);
        prop_assert!(gossip.poll_transmit().is_none());
    }
}

#[test]
fn a_hostile_member_with_valid_keys_cannot_break_the_parser() {
    let mut swarm = two();
    let mut rng = StdRng::seed_from_u64(8);
    let (to, boot, now, from) = (swarm.hosts[1].node, swarm.hosts[1].boot, swarm.now, swarm.hosts[0].address);
    let (node, own_boot) = (swarm.hosts[0].node, swarm.hosts[0].boot);
    for _ in 0..3000 {
        let mut plain = vec![0; rng.random_range(0..200)];
        rng.fill_bytes(&mut plain);
        plain.iter_mut().take(2).for_each(|byte| *byte %= 10);
        let attacker = swarm.gossip(0);
        let (epoch, public) = attacker.choose_epoch(to).unwrap();
        let pair = attacker.keyring.pair(epoch, Party { node: to, boot, public }).ok().unwrap();
        let counter = pair.counter.next().unwrap();
        let header = Header { epoch, node, boot: own_boot, form: Form::Pair { counter } };
        let datagram = crate::wire::gossip::seal_pair(&pair.send, &header, (to, boot), &plain);
        swarm.gossip(1).handle_datagram(from, &datagram, now);
        while swarm.gossip(1).poll_transmit().is_some() {}
    }
    assert!(swarm.gossip(1).drops().of(GossipDrop::MalformedPayload) > 1000);
    assert_eq!(swarm.gossip(1).records().count(), 3);
}
