//! The scenarios. `FORMIC_SIM_SEED=n` runs the chaos of one seed; `FORMIC_SIM_SEEDS=count` more of them.

use super::chaos::Chaos;
use super::*;
use crate::cluster::ring;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Seeds of chaos that run by default.
const SEEDS: u64 = 4;

fn spec(key_rotation_secs: u32) -> ClusterSpec {
    ClusterSpec { heartbeat_secs: 2, key_rotation_secs, ..ClusterSpec::default() }
}

fn weather(loss: f64) -> Faults {
    Faults { loss, duplication: 0.02, delay_min: MILLISECOND, delay_max: 50 * MILLISECOND }
}

#[allow(clippy::disallowed_methods)]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A swarm whose nodes have their sessions, with a service of a task on each, all reaching each other.
fn settled(seed: u64, faults: Faults, rotation_secs: u32) -> (Swarm, NetworkId) {
    settled_in(seed, faults, spec(rotation_secs))
}

fn settled_in(seed: u64, faults: Faults, spec: ClusterSpec) -> (Swarm, NetworkId) {
    let mut swarm = Swarm::new(seed, 10, faults, spec);
    let network = swarm.create_network("net", true);
    let up = |swarm: &mut Swarm| swarm.nodes.iter().all(|node| node.link.is_open());
    assert!(swarm.run_until(10 * SECOND, up).is_some(), "seed {seed}: no sessions");
    swarm.create_service("web", 10, &[network]);
    let took = swarm.run_until(20 * SECOND, |swarm| swarm.is_settled());
    assert!(took.is_some(), "seed {seed}: the tasks do not run");
    let unreachable = swarm.unreachable(10 * SECOND);
    assert!(unreachable.is_empty(), "seed {seed}: {unreachable:?}");
    (swarm, network)
}

/// Everything that flies has landed.
fn land(swarm: &mut Swarm) {
    swarm.stream(None);
    swarm.run_for(SECOND);
}

fn lost(swarm: &Swarm) -> usize {
    swarm.oracle.packets.values().filter(|packet| packet.expected && packet.delivered.is_none()).count()
}

fn chaos(seed: u64, duration: Duration) -> Swarm {
    let mut swarm = Swarm::new(seed, 10, weather(0.08), spec(60));
    let mut chaos = Chaos::new(&mut swarm);
    swarm.stream(Some(500 * MILLISECOND));
    swarm.run_for(10 * SECOND);
    chaos.run(&mut swarm, duration);
    chaos.end(&mut swarm);
    swarm.stream(None);
    let pairs = swarm.pairs().len();
    let unreachable = swarm.unreachable(10 * SECOND);
    if !unreachable.is_empty() {
        let text = format!("{} of {pairs} pairs cannot reach each other: {:?}", unreachable.len(), unreachable[0]);
        swarm.oracle.fail(swarm.now, &text);
    }
    println!(
        "seed {seed}: {:?}, {} packets, {} delivered, {} held to, {pairs} pairs at the end, refused {:?}",
        chaos.done, swarm.packets, swarm.oracle.delivered, swarm.oracle.held_to, swarm.manager.refused
    );
    swarm
}

#[test]
fn the_swarm_survives_chaos() {
    let seeds: Vec<u64> = match from_environment("FORMIC_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=from_environment("FORMIC_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let held_to: u64 = seeds.iter().map(|seed| chaos(*seed, 120 * SECOND).oracle.held_to).sum();
    assert!(held_to > 50 * seeds.len() as u64, "only {held_to} packets had to arrive: the oracle is blind");
}

#[test]
fn one_seed_is_one_run() {
    let run = |seed| chaos(seed, 20 * SECOND).oracle.hash();
    assert_eq!(run(77), run(77));
    assert_ne!(run(77), run(78));
}

#[test]
fn five_rotations_lose_no_packet_of_a_steady_stream() {
    let (mut swarm, _) = settled(201, Faults { delay_max: 20 * MILLISECOND, ..Faults::NONE }, 3600);
    swarm.run_for(12 * SECOND);
    swarm.stream(Some(10 * MILLISECOND));
    let (delivered, sent) = (swarm.oracle.delivered, swarm.packets);
    for _ in 0..5 {
        swarm.rotate(false);
        swarm.run_for(SECOND / 2);
    }
    land(&mut swarm);
    let (delivered, sent) = (swarm.oracle.delivered - delivered, swarm.packets - sent);
    assert!(sent > 5 * 90 * 50, "only {sent} packets");
    assert_eq!(delivered, sent);
    assert_eq!(lost(&swarm), 0);
    assert_eq!(swarm.epoch(EpochPhase::Current), Some(Epoch(6)));
    assert_eq!(ring::late(&swarm.manager.state), []);
}

/// A node has told its public of the next epoch, and hears nothing more: no session, no gossip. The others have SAs of
/// that epoch with it, it has none with some of them and cannot follow the activation. Traffic goes on under the epoch
/// before.
#[test]
fn a_pair_is_sent_to_under_the_epoch_before_until_it_confirms() {
    let spec = ClusterSpec { heartbeat_secs: 300, ..spec(3600) };
    let (mut swarm, network) = settled_in(205, Faults { delay_max: 20 * MILLISECOND, ..Faults::NONE }, spec);
    swarm.run_for(12 * SECOND);
    let (lost, id, before) = (4, swarm.nodes[4].id, swarm.epoch(EpochPhase::Next));
    swarm.nodes[lost].mute = true;
    swarm.command(Command::RequestRotation { force: false }).expect("all send with the current epoch");
    let (end, mut next) = (swarm.now + 60 * SECOND, None);
    while next.is_none_or(|next| !swarm.manager.state.nodes[&id].publics.contains_key(&next)) {
        assert!(swarm.step(end), "it told no public");
        next = swarm.epoch(EpochPhase::Next).filter(|next| Some(*next) > before);
    }
    let next = next.expect("an epoch");
    swarm.cut_session(lost, true);
    let unknown_there = |swarm: &Swarm, number: usize| {
        let known = swarm.nodes[lost].host.as_ref().and_then(|host| host.core.nodes.get(&swarm.nodes[number].id));
        number != lost && known.is_none_or(|known| known.public(next).is_none())
    };
    let unknown: Vec<usize> = (0..10).filter(|number| unknown_there(&swarm, *number)).collect();
    assert!(!unknown.is_empty(), "it has heard everything already");
    swarm.run_for(5 * SECOND);
    swarm.rotate(true);
    assert_eq!(swarm.epoch(EpochPhase::Current), Some(next));
    let sends_with = |swarm: &Swarm, number: usize| {
        let host = swarm.nodes[number].host.as_ref();
        host.and_then(|host| host.core.keys.sending(network, id)).map(|sa| sa.epoch)
    };
    swarm.run_for(5 * SECOND);
    let pairs: Vec<_> =
        swarm.pairs().into_iter().filter(|(from, to)| unknown.contains(&from.node) && to.node == lost).collect();
    assert_eq!(pairs.len(), unknown.len());
    let sent: Vec<u64> = pairs.iter().map(|(from, to)| swarm.send_packet(from, to, false)).collect();
    swarm.run_for(SECOND);
    for ((from, _), number) in pairs.iter().zip(sent) {
        assert_eq!(sends_with(&swarm, from.node), before, "node {}", from.node);
        assert!(swarm.oracle.packets[&number].delivered.is_some(), "a packet of node {} is lost", from.node);
    }
    // Gossip brings the records and the activation, without a session.
    swarm.nodes[lost].mute = false;
    let confirmed = |swarm: &mut Swarm| unknown.iter().all(|number| sends_with(swarm, *number) == Some(next));
    assert!(swarm.run_until(60 * SECOND, confirmed).is_some());
}

#[test]
fn a_node_without_managers_follows_the_activation_by_gossip() {
    for seed in 211..213 {
        let (mut swarm, _) = settled(seed, weather(0.05), 60);
        swarm.run_for(3 * SECOND);
        swarm.cut_session(4, true);
        swarm.network.set_faults(Faults { delay_max: 20 * MILLISECOND, ..Faults::NONE });
        let (delivered, sent) = (swarm.oracle.delivered, swarm.packets);
        swarm.stream(Some(50 * MILLISECOND));
        // The present next epoch was handed out to the node while it had a session: the first rotation is by timer.
        let active = swarm.epoch(EpochPhase::Next);
        let follows = |swarm: &mut Swarm| {
            swarm.nodes.iter().all(|node| node.host.as_ref().is_some_and(|host| host.core.keys.active() == active))
        };
        let took = swarm.run_until(70 * SECOND, |swarm| swarm.epoch(EpochPhase::Current) == active);
        assert!(took.is_some(), "seed {seed}: no rotation");
        let took = swarm.run_until(5 * SECOND, follows);
        assert!(took.is_some(), "seed {seed}: the node does not follow");
        swarm.run_for(5 * SECOND);
        land(&mut swarm);
        assert!(!swarm.nodes[4].link.is_open());
        assert_eq!(swarm.oracle.delivered - delivered, swarm.packets - sent, "seed {seed}");
    }
}

#[test]
fn a_node_that_slept_through_rotations_is_right_within_five_seconds() {
    for (seed, rotations) in [(221, 1), (222, 2), (223, 3)] {
        let (mut swarm, _) = settled(seed, weather(0.05), 3600);
        swarm.cut_session(4, true);
        for _ in 0..rotations {
            swarm.run_for(8 * SECOND);
            swarm.rotate(true);
        }
        swarm.cut_session(4, false);
        let open = swarm.run_until(10 * SECOND, |swarm| swarm.nodes[4].link.is_open());
        assert!(open.is_some(), "seed {seed}: the session does not return");
        let of_node = |swarm: &mut Swarm| swarm.unreachable(5 * SECOND);
        let unreachable = of_node(&mut swarm);
        assert!(unreachable.is_empty(), "seed {seed}, {rotations} rotations: {unreachable:?}");
    }
}

#[test]
fn a_removed_node_is_shut_out() {
    for seed in 231..233 {
        let (mut swarm, network) = settled(seed, weather(0.05), 3600);
        let removed = 6;
        let endpoints = swarm.endpoints();
        let ours: Vec<_> = endpoints.iter().filter(|it| it.node == removed).copied().collect();
        let others: Vec<_> = endpoints.iter().filter(|it| it.node != removed).copied().collect();
        // One hears nothing of it by its session, the other is told in it.
        if seed == 231 {
            swarm.cut_session(removed, true);
        }
        let before = swarm.epoch(EpochPhase::Next);
        // Another one has no session: the signed record that gossip brings has to be enough for it.
        swarm.cut_session(3, true);
        swarm.remove_node(removed);
        let took = swarm.run_until(40 * SECOND, |swarm| swarm.epoch(EpochPhase::Current) > before);
        assert!(took.is_some(), "seed {seed}: no fresh epoch");
        swarm.run_for(20 * SECOND);
        let sent: Vec<u64> = ours
            .iter()
            .flat_map(|from| others.iter().flat_map(move |to| [(*from, *to), (*to, *from)]))
            .map(|(from, to)| swarm.send_packet(&from, &to, false))
            .collect();
        swarm.run_for(SECOND);
        assert!(!sent.is_empty());
        assert!(sent.iter().all(|number| swarm.oracle.packets[number].delivered.is_none()), "seed {seed}");
        let (id, fresh) = (swarm.nodes[removed].id, swarm.epoch(EpochPhase::Current).expect("an epoch"));
        for (number, node) in swarm.nodes.iter().enumerate().filter(|(number, _)| *number != removed) {
            let host = node.host.as_ref().expect("a running node");
            assert!(!host.uses(id), "seed {seed}: node {number} uses the removed node");
        }
        let host = swarm.nodes[removed].host.as_ref().expect("it still runs");
        assert_eq!(host.removed, seed != 231);
        assert!(host.core.keys.network_key(fresh, network).is_none(), "seed {seed}: it has the fresh key");
        assert!(!host.core.keys.epochs().iter().any(|(epoch, _)| *epoch == fresh), "seed {seed}");
    }
}

#[test]
fn only_nodes_with_a_task_hold_the_key_of_a_network() {
    let mut swarm = Swarm::new(241, 10, weather(0.05), spec(60));
    let (few, all) = (swarm.create_network("few", true), swarm.create_network("all", true));
    swarm.run_for(3 * SECOND);
    let service = swarm.create_service("few", 3, &[few]);
    swarm.create_service("all", 10, &[all]);
    assert!(swarm.run_until(20 * SECOND, |swarm| swarm.is_settled()).is_some());
    swarm.run_for(SECOND);
    let holders =
        |swarm: &Swarm| swarm.nodes.iter().filter(|node| node.host.as_ref().is_some_and(|it| it.holds(few))).count();
    assert_eq!(holders(&swarm), 3);
    swarm.command(Command::RemoveService { id: service }).expect("a service");
    assert!(swarm.run_until(20 * SECOND, |swarm| swarm.is_settled()).is_some());
    swarm.run_for(SECOND);
    assert_eq!(holders(&swarm), 0);
    assert!(swarm.unreachable(5 * SECOND).is_empty());
}
