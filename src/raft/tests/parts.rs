//! What the parts promise, one by one, and that the oracle sees planted faults.

use super::super::*;
use super::world::{World, ip};
use crate::sim::network::Faults;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A quiet cluster with a leader; gives its number.
fn settled(seed: u64, voters: usize) -> (World, usize) {
    let mut world = World::new(seed, voters, Faults::NONE);
    world.run_for(5 * SECOND);
    let leader = world.leader().expect("a leader");
    (world, leader)
}

fn sound(world: &World) {
    assert!(world.oracle.failures.is_empty(), "{:#?}", world.oracle.failures);
}

fn term(world: &mut World, number: usize) -> u64 {
    world.raft(number).lead().term
}

#[test]
fn one_member_leads_and_commits_at_once() {
    let mut world = World::new(1, 1, Faults::NONE);
    world.run_for(Duration::ZERO);
    assert_eq!(world.leader(), Some(0), "without waiting for anybody");
    let before = world.now;
    let id = world.propose(0).unwrap();
    world.read(0);
    assert!(world.clients.acknowledged.contains(&id));
    assert_eq!((world.now, world.oracle.seen["reads"]), (before, 1));
    sound(&world);
}

#[test]
fn a_dead_leader_is_followed_within_three_seconds() {
    for seed in 1..30 {
        let (mut world, leader) = settled(seed, 3);
        world.crash(leader);
        world.run_for(3 * SECOND);
        let next = world.leader().unwrap_or_else(|| panic!("seed {seed}: nobody leads"));
        let id = world.propose(next).unwrap();
        world.run_for(SECOND);
        assert!(world.clients.acknowledged.contains(&id), "seed {seed}");
        sound(&world);
    }
}

#[test]
fn a_leader_without_a_majority_steps_down_and_answers_no_read() {
    let (mut world, leader) = settled(3, 3);
    world.network.partition(&[vec![ip(leader)]]);
    let id = world.propose(leader).unwrap();
    world.read(leader);
    world.run_for(3 * SECOND);
    assert!(world.raft(leader).lead().leader.is_none(), "it knows of no leader");
    assert!(!world.clients.acknowledged.contains(&id) && !world.oracle.seen.contains_key("reads"));
    assert!(matches!(world.raft(leader).propose(super::world::payload(9), Time(0)), Err(ProposeError::NotLeader)));
    world.network.heal();
    world.run_for(3 * SECOND);
    let (now, then) = (world.leader().unwrap(), leader);
    assert_ne!(now, then);
    sound(&world);
}

/// With real votes alone, the returning member's higher term would end the lead.
#[test]
fn a_member_that_was_cut_off_does_not_disturb() {
    let (mut world, leader) = settled(4, 3);
    let before = term(&mut world, leader);
    let away = (leader + 1) % 3;
    world.network.partition(&[vec![ip(away)]]);
    world.run_for(60 * SECOND);
    world.network.heal();
    // Nor one that hears nothing and is heard.
    world.network.block(ip(leader), ip(away));
    world.run_for(60 * SECOND);
    world.network.unblock(ip(leader), ip(away));
    world.run_for(5 * SECOND);
    assert_eq!((world.leader(), term(&mut world, leader)), (Some(leader), before));
    assert_eq!(term(&mut world, away), before);
    sound(&world);
}

#[test]
fn a_removed_member_does_not_disturb() {
    let (mut world, leader) = settled(5, 3);
    let before = term(&mut world, leader);
    let out = (leader + 1) % 3;
    world.change(leader, Change::Remove(Member(out as u64 + 1))).unwrap();
    world.run_for(60 * SECOND);
    assert_eq!(world.raft(leader).membership().voters.len(), 2);
    assert_eq!((world.leader(), term(&mut world, leader)), (Some(leader), before));
    sound(&world);
}

#[test]
fn a_manager_comes_in_as_a_learner_and_gets_its_vote() {
    let (mut world, leader) = settled(6, 1);
    for _ in 0..500 {
        world.propose(leader);
    }
    world.compact(leader);
    for round in 1..3 {
        let fresh = world.learner(leader).unwrap();
        let seat = Member(fresh as u64 + 1);
        world.run_for(SECOND);
        assert_eq!(world.raft(leader).change(Change::Voter(Member(99)), Time(0)), Err(ChangeError::Unknown));
        let matched = world.raft(leader).progress(seat).unwrap().matched;
        assert_eq!(matched, world.raft(leader).last().index, "it has caught up");
        assert!(!world.raft(fresh).membership().is_voter(seat));
        world.change(leader, Change::Voter(seat)).unwrap();
        world.run_for(SECOND);
        assert_eq!(world.raft(fresh).membership().voters.len(), round + 1);
    }
    assert_eq!(world.oracle.seen["installed"], 2, "the log began after the snapshot");
    assert_eq!(world.change(leader, Change::Remove(Member(leader as u64 + 1))), Err(ChangeError::Leader));
    world.hand_over(leader);
    world.run_for(SECOND);
    let next = world.leader().unwrap();
    assert_ne!(next, leader, "handed over without waiting for a time-out");
    world.change(next, Change::Remove(Member(leader as u64 + 1))).unwrap();
    world.run_for(SECOND);
    assert_eq!(world.raft(next).membership().peers.len(), 2);
    sound(&world);
}

#[test]
fn a_member_that_was_long_away_gets_a_snapshot_in_pieces() {
    let (mut world, leader) = settled(7, 3);
    world.ballast = 3_000_000;
    let away = (leader + 1) % 3;
    world.crash(away);
    for round in 0..100 {
        world.propose_many(leader, 1000);
        world.run_for(Duration::from_millis(50));
        if round % 10 == 0 {
            world.compact(leader);
        }
    }
    world.compact(leader);
    assert!(world.hosts[leader].index > 100_000);
    world.network.set_faults(Faults::lossy(0.1));
    world.start(away);
    world.run_for(20 * SECOND);
    assert_eq!(world.hosts[away].index, world.hosts[leader].index);
    assert_eq!(world.hosts[away].applied, world.hosts[leader].applied);
    assert_eq!(world.oracle.seen["installed"], 1);
    sound(&world);
}

#[test]
fn what_waits_for_a_majority_is_bounded() {
    let (mut world, leader) = settled(8, 3);
    world.network.partition(&[vec![ip(leader)]]);
    let long = || Payload::new(zeroize::Zeroizing::new(vec![0; MAX_COMMAND_BYTES]));
    let raft = world.raft(leader);
    let taken = (0..100).take_while(|_| raft.propose(long(), Time(0)).is_ok()).count();
    assert_eq!(taken, MAX_WAITING_BYTES / MAX_COMMAND_BYTES);
    assert_eq!(raft.propose(long(), Time(0)), Err(ProposeError::Busy));
    let longer = Payload::new(zeroize::Zeroizing::new(vec![0; MAX_COMMAND_BYTES + 1]));
    assert_eq!(raft.propose(longer, Time(0)), Err(ProposeError::TooLong(MAX_COMMAND_BYTES + 1)));
}

/// Messages that no sound member sends change nothing.
#[test]
fn nonsense_is_passed_over() {
    let (mut world, leader) = settled(9, 3);
    let follower = (leader + 1) % 3;
    let from = Member(leader as u64 + 1);
    let (before, term) = (world.raft(follower).last(), term(&mut world, leader));
    let gap = Entry { position: Position { term, index: before.index + 2 }, body: Body::Term };
    let doubled = Entry { position: Position { term, index: before.index + 1 }, body: Body::Term };
    let nobody = Entry { position: doubled.position, body: Body::Members(Membership::default()) };
    let huge = Position { term, index: u64::MAX };
    for (previous, entries) in [(before, vec![gap]), (before, vec![doubled]), (before, vec![nobody]), (huge, vec![])] {
        let message = Message::Append { term, commit: u64::MAX, previous, entries, round: 0 };
        let now = world.now;
        assert_eq!(world.raft(follower).step(from, message, now), Ok(()));
        assert_eq!(world.raft(follower).last(), before);
        world.settle(follower);
    }
    sound(&world);
}

/// A disk that forgets what it acknowledged, on one member of three: an acknowledged command is lost.
#[test]
fn the_oracle_sees_a_save_that_was_not_kept() {
    let found = (1..40u64).filter(|seed| {
        let (mut world, leader) = settled(*seed, 3);
        let forgetful = (leader + 1) % 3;
        let other = (leader + 2) % 3;
        world.network.partition(&[vec![ip(other)]]);
        world.hosts[forgetful].forgets = true;
        world.propose(leader);
        world.run_for(SECOND);
        world.crash(leader);
        world.crash(forgetful);
        world.hosts[forgetful].forgets = false;
        world.network.heal();
        world.start(forgetful);
        world.run_for(5 * SECOND);
        if let Some(next) = world.leader() {
            world.propose(next);
        }
        world.run_for(5 * SECOND);
        !world.oracle.failures.is_empty()
    });
    assert!(found.count() > 0);
}
