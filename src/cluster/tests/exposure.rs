//! A manager is demoted: what it knew is replaced.

use super::*;

/// The consensus takes these nodes in, and no others.
fn set_managers(swarm: &mut Swarm, numbers: &[u64]) {
    let seat = |number: &u64| {
        let address = swarm.state.nodes[&node(*number)].addresses.control;
        (node(*number), Manager { seat: swarm.state.nodes[&node(*number)].seat, voter: true, address })
    };
    let managers = numbers.iter().map(seat).collect();
    swarm.state.set_managers(managers);
}

fn demoted() -> Swarm {
    let mut swarm = Swarm::with_workers(2);
    for number in [3, 4] {
        swarm.ok(add_node(number, Role::Manager));
        swarm.ok(open_session(number, number));
    }
    set_managers(&mut swarm, &[3]);
    set_managers(&mut swarm, &[3, 4]);
    assert_eq!(swarm.state.cluster.exposure, Exposure::default(), "who comes exposes nothing");
    set_managers(&mut swarm, &[3]);
    swarm
}

fn replace_authority(number: u8) -> Command {
    let authority = CertificateAuthority { certificate: vec![number; 64], key: Zeroizing::new(vec![number; 32]) };
    let root = NewRoot { authority, cross: vec![number; 48], attestation: key(number) };
    let secret = Some(Zeroizing::new([number; 16]));
    Command::ReplaceAuthority { tokens: NewTokens { worker: secret.clone(), manager: secret, unlock: None }, root }
}

#[test]
fn the_masters_that_it_knew_give_way() {
    let mut swarm = demoted();
    assert!(swarm.state.masters_are_exposed() && swarm.state.authority_is_exposed());
    let known: Vec<Epoch> = swarm.state.ring.epochs.iter().map(|held| held.epoch).collect();
    assert_eq!(swarm.ok(Command::ReplaceMasters { master: key(50) }), [Effect::Compact]);
    assert!(!swarm.state.masters_are_exposed());
    let next = swarm.state.ring.phase(EpochPhase::Next).unwrap();
    assert!(!known.contains(&next.epoch) && *next.master.expose() == [50; 32], "a number is never used again");
    assert_eq!(next.participants.len(), 4, "the former manager is a node still");
    let due = ring::RingClock { age_secs: 0, request_secs: u64::from(ring::REMOVAL_DEADLINE_SECS) };
    assert_eq!(ring::plan(&swarm.state, due), [ring::RingStep::ActivateLate(next.epoch)], "soon, whoever is late");
    // Twice is once: the planner of a new leader may not have seen it yet.
    let before = swarm.state.ring.epochs.len();
    assert_eq!(swarm.ok(Command::ReplaceMasters { master: key(51) }), []);
    assert!(swarm.state.ring.epochs.len() == before && *swarm.state.ring.epochs[1].master.expose() == [50; 32]);
}

#[test]
fn the_authority_and_the_tokens_that_it_knew_give_way() {
    let mut swarm = demoted();
    let before = swarm.state.root_digest();
    assert_eq!(swarm.ok(replace_authority(8)), [Effect::Compact]);
    assert!(swarm.state.root_digest() != before && swarm.state.cluster.rotation.is_some());
    assert_eq!((*swarm.state.cluster.worker_secret, *swarm.state.cluster.manager_secret), ([8; 16], [8; 16]));
    assert_eq!(swarm.ok(replace_authority(9)), [], "once");
    // Another manager goes while the nodes renew: that waits, and is not forgotten.
    swarm.ok(add_node(5, Role::Manager));
    set_managers(&mut swarm, &[3, 5]);
    set_managers(&mut swarm, &[3]);
    assert!(!swarm.state.authority_is_exposed() && swarm.state.cluster.exposure.authority);
    assert!(swarm.refused(replace_authority(9)).contains("being replaced already"));
    let root = swarm.state.root_digest();
    for number in 1..=5 {
        swarm.ok(Command::SetCertificateRoot { node: node(number), root });
    }
    swarm.ok(Command::FinishRootRotation);
    for _ in 0..2 {
        let next = swarm.state.ring.phase(EpochPhase::Next).unwrap().epoch;
        swarm.ok(Command::Activate { epoch: next, late: true });
        swarm.ok(Command::DrawNext { master: key(60) });
    }
    assert!(swarm.state.authority_is_exposed());
    swarm.ok(replace_authority(9));
    assert_eq!(*swarm.state.cluster.worker_secret, [9; 16]);
}

#[test]
fn what_the_managers_knew_that_were_given_up_gives_way() {
    let life = |swarm: &Swarm| NewLife {
        node: node(3),
        fork: Fork(swarm.state.cluster.fork.0 + 1),
        current: key(70),
        next: key(71),
    };
    let mut swarm = Swarm::with_workers(2);
    for number in [3, 4] {
        swarm.ok(add_node(number, Role::Manager));
    }
    set_managers(&mut swarm, &[3]);
    let mut alone = swarm.state.duplicate().unwrap();
    alone.begin_life(&life(&swarm), UnixTime(START + 1)).unwrap();
    assert_eq!(alone.cluster.exposure, Exposure::default(), "nobody else knew anything");
    set_managers(&mut swarm, &[3, 4]);
    let life = life(&swarm);
    swarm.state.begin_life(&life, UnixTime(START + 1)).unwrap();
    assert!(swarm.state.authority_is_exposed() && !swarm.state.masters_are_exposed(), "the masters are new");
    swarm.ok(replace_authority(8));
    assert_eq!(swarm.state.cluster.exposure, Exposure::default());
}
