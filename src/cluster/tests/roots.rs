use super::*;

fn new_root(number: u8) -> NewRoot {
    let authority = CertificateAuthority { certificate: vec![number; 64], key: Zeroizing::new(vec![number; 32]) };
    NewRoot { authority, cross: vec![number; 48], attestation: key(number) }
}

fn digest(number: u8) -> [u8; 32] {
    crypto::sha256(&[&[number; 64]])
}

fn rotate(swarm: &Swarm, number: u8) -> Command {
    let (version, spec) = (swarm.state.cluster.version, swarm.state.cluster.spec.clone());
    Command::UpdateCluster { version, spec, tokens: NewTokens::default(), root: Some(new_root(number)) }
}

fn renewed(number: u64, root: u8) -> Command {
    Command::SetCertificateRoot { node: node(number), root: digest(root) }
}

fn issued(number: u64, root: u8) -> Command {
    let expires = UnixTime(START + 90 * 86_400);
    Command::SetCertificateExpiry { node: node(number), expires, root: digest(root) }
}

fn public(number: u8) -> PublicKey {
    crypto::SigningKey::new(&key(number)).public()
}

/// Brings the keys to the next epoch and retires the one before.
fn turn_ring(swarm: &mut Swarm) {
    if swarm.state.ring.phase(EpochPhase::Next).is_none() {
        swarm.ok(Command::DrawNext { master: key(77) });
    }
    let next = swarm.state.ring.phase(EpochPhase::Next).unwrap().epoch;
    swarm.ok(Command::Activate { epoch: next, late: true });
}

#[test]
fn the_former_root_stays_until_all_nodes_have_followed() {
    let mut swarm = Swarm::with_workers(2);
    assert_eq!((swarm.state.roots(), swarm.state.root_digest()), (vec![&[3; 64][..]], digest(3)));
    let effects = swarm.ok(rotate(&swarm, 8));
    assert_eq!(effects, [Effect::Compact], "the former root's key must not be readable any more");
    assert_eq!(swarm.state.roots(), [&[3; 64][..], &[8; 64][..]]);
    assert_eq!(swarm.state.root_digest(), digest(8), "join tokens name the new one at once");
    assert_eq!(swarm.state.attestation_keys(), [public(5), public(8)], "the new one is told before it signs");
    let bytes = swarm.state.to_bytes().unwrap();
    assert!(!bytes.windows(64).any(|window| window == [4; 64]), "the former root's private key");

    let behind = |swarm: &Swarm| swarm.state.behind_on_root(swarm.now).iter().map(|node| node.id).collect::<Vec<_>>();
    assert_eq!(behind(&swarm), [node(1), node(2)]);
    assert!(swarm.refused(Command::FinishRootRotation).contains("not all nodes"));
    let text = swarm.refused(rotate(&swarm, 9));
    assert!(text.contains("waiting for host1 (") && text.contains("host2 ("), "{text}");
    swarm.ok(issued(1, 8));
    assert_eq!(behind(&swarm), [node(1), node(2)], "nobody knows yet whether it has got there");
    swarm.ok(renewed(1, 8));
    // Issued just before the new root came.
    swarm.ok(renewed(2, 3));
    assert_eq!(behind(&swarm), [node(2)]);
    swarm.ok(add_node(3, Role::Worker));
    assert_eq!(behind(&swarm), [node(2), node(3)], "a certificate of the former root joined late");
    swarm.ok(Command::RemoveNode { node: node(3), force: true, master: key(9) });
    swarm.ok(renewed(2, 8));
    assert!(swarm.state.root_rotation_is_through(swarm.now));
    let version = swarm.state.cluster.version;
    assert_eq!(swarm.ok(Command::FinishRootRotation), [Effect::Compact]);
    assert!(swarm.state.cluster.version > version, "a root made from the former one is out of sequence");
    assert_eq!(swarm.state.roots(), [&[8; 64][..]]);
    assert!(swarm.refused(Command::FinishRootRotation).contains("not all"));
    for command in [issued(1, 3), renewed(1, 3), add_node(4, Role::Worker)] {
        assert!(swarm.refused(command).contains("new root certificate"), "a certificate that nobody believes");
    }
}

#[test]
fn the_former_attestation_key_is_believed_as_long_as_its_epochs() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(rotate(&swarm, 8));
    swarm.ok(renewed(1, 8));
    swarm.ok(Command::FinishRootRotation);
    assert_eq!(swarm.state.attestation_keys(), [public(8), public(5)]);
    assert!(swarm.state.ring.request.is_some(), "a rotation of the ring is wished, so that it does not last");
    assert!(swarm.refused(rotate(&swarm, 9)).contains("still in use"), "three keys are too many");
    turn_ring(&mut swarm);
    assert_eq!(swarm.state.attestation_keys().len(), 2, "the epoch before is still received");
    let previous = swarm.state.ring.phase(EpochPhase::Previous).unwrap().epoch;
    swarm.ok(Command::Retire { epoch: previous });
    assert_eq!(swarm.state.attestation_keys(), [public(8)]);
    swarm.ok(rotate(&swarm, 9));
}

#[test]
fn what_cannot_come_back_holds_nothing_up() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(rotate(&swarm, 8));
    swarm.ok(renewed(1, 8));
    assert!(!swarm.state.root_rotation_is_through(swarm.now));
    swarm.pass(90 * 86_400 + 1);
    assert!(swarm.state.root_rotation_is_through(swarm.now), "the other one's certificate has expired");
    swarm.ok(Command::FinishRootRotation);
}

#[test]
fn a_root_that_is_none_is_refused() {
    let mut swarm = Swarm::with_workers(1);
    assert!(swarm.refused(rotate(&swarm, 3)).contains("not a new one"));
    let mut command = rotate(&swarm, 8);
    if let Command::UpdateCluster { version, .. } = &mut command {
        *version += 1;
    }
    assert_eq!(swarm.refused(command), "update out of sequence");
    assert_eq!(swarm.state.behind_on_root(swarm.now), Vec::<&Node>::new());
}
