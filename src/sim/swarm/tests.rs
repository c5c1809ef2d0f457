//! The scenarios, and many seeds of chaos.

mod managers;

use super::*;
use crate::cluster::ring;
use crate::overlay::DropReason;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Seeds of a shard that run by default, with the checks of a debug build; `scripts/test` runs thousands in an
/// optimised one.
const SEEDS: u64 = 5;
/// Seeds within which a planted fault has to be found: several times as many as it takes.
const PLANTED_SEEDS: u64 = 40;

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

fn setup(nodes: usize, faults: Faults, spec: ClusterSpec) -> Setup {
    Setup { nodes, managers: 3, faults, spec, planted: Planted::Nothing }
}

fn fails(run: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
}

impl Swarm {
    /// An operator's rotation, as soon as it is possible; panics when it is not within a minute.
    fn rotate(&mut self, force: bool) {
        self.hasty |= force;
        let before = self.epoch(EpochPhase::Current);
        let minute = Duration::from_secs(60);
        let asked = self.run_until(minute, |swarm| {
            let late = ring::late(swarm.state()).iter().any(|(_, text)| text.contains("send"));
            force || !late
        });
        let asked = asked.and_then(|_| self.command(Command::RequestRotation { force }).ok());
        let limit = if force { Duration::from_secs(700) } else { minute };
        let done = asked.and_then(|_| self.run_until(limit, |swarm| swarm.epoch(EpochPhase::Current) > before));
        if done.is_none() {
            let late = ring::late(self.state());
            self.oracle.fail(self.now, &format!("no rotation: waits for {late:?}"));
        }
    }

    fn remove_node(&mut self, number: usize) {
        let command = self.removal(number);
        self.command(command).expect("a node");
    }
}

/// A swarm whose nodes have their sessions, with a service of a task on each, all reaching each other.
fn settled(seed: u64, faults: Faults, rotation_secs: u32) -> (Swarm, NetworkId) {
    settled_in(seed, 10, faults, spec(rotation_secs))
}

fn settled_in(seed: u64, nodes: usize, faults: Faults, spec: ClusterSpec) -> (Swarm, NetworkId) {
    settle(Swarm::new(seed, setup(nodes, faults, spec)))
}

fn settle(mut swarm: Swarm) -> (Swarm, NetworkId) {
    let (seed, nodes) = (swarm.oracle.seed, swarm.nodes.len());
    let network = swarm.create_network("net", true);
    let up = |swarm: &mut Swarm| swarm.nodes.iter().all(|node| node.link.is_open());
    assert!(swarm.run_until(10 * SECOND, up).is_some(), "seed {seed}: no sessions");
    swarm.create_service("web", nodes as u64, &[network]);
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

/// Many small swarms: `FORMIC_SIM_SEED=n` runs one seed, `FORMIC_SIM_SEEDS=count` as many for each of the shards.
fn shard(number: u64) {
    let seeds: Vec<u64> = match from_environment("FORMIC_SIM_SEED") {
        Some(seed) => vec![seed],
        None => {
            let count = from_environment("FORMIC_SIM_SEEDS").unwrap_or(SEEDS);
            (number * count..(number + 1) * count).collect()
        }
    };
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in &seeds {
        for (what, count) in run(*seed, &Options::of_seed(*seed)).done {
            *seen.entry(what).or_default() += count;
        }
    }
    println!("{} seeds: {seen:#?}", seeds.len());
    let happened = |what: &str| seen.get(what).copied().unwrap_or(0) / seeds.len() as u64;
    if seeds.len() as u64 >= SEEDS {
        for (what, least) in
            [("packets held to", 1), ("commands acknowledged", 5), ("reads", 5), ("terms with a leader", 3)]
        {
            assert!(happened(what) >= least, "the oracle is blind: {what} {} a seed", happened(what));
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    let options = Options { duration: 20 * SECOND, ..Options::of_seed(77) };
    assert_eq!(run(77, &options).hash, run(77, &options).hash);
    assert_ne!(run(77, &options).hash, run(78, &options).hash);
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
    assert_eq!(ring::late(swarm.state()), []);
}

/// A node has told its public of the next epoch, and hears nothing more: no session, no gossip. The others have SAs of
/// that epoch with it, it has none with some of them and cannot follow the activation. Traffic goes on under the epoch
/// before.
#[test]
fn a_pair_is_sent_to_under_the_epoch_before_until_it_confirms() {
    let spec = ClusterSpec { heartbeat_secs: 300, ..spec(3600) };
    let (mut swarm, network) = settled_in(205, 10, Faults { delay_max: 20 * MILLISECOND, ..Faults::NONE }, spec);
    swarm.run_for(12 * SECOND);
    let (lost, id, before) = (4, swarm.nodes[4].id, swarm.epoch(EpochPhase::Next));
    swarm.nodes[lost].mute = true;
    swarm.command(Command::RequestRotation { force: false }).expect("all send with the current epoch");
    let (end, mut next) = (swarm.now + 60 * SECOND, None);
    while next.is_none_or(|next| !swarm.state().nodes[&id].publics.contains_key(&next)) {
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
        let (delivered, sent, early) = (swarm.oracle.delivered, swarm.packets, before_their_records(&swarm));
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
        // What ran on the node is placed elsewhere meanwhile: its first packet may come before the record of its address.
        let early = before_their_records(&swarm) - early;
        assert_eq!(swarm.oracle.delivered - delivered + early, swarm.packets - sent, "seed {seed}");
        assert!(early <= 4, "seed {seed}: {early} packets came before the records of their senders");
    }
}

/// Packets that were dropped because their sender's address was not known yet.
fn before_their_records(swarm: &Swarm) -> u64 {
    let hosts = swarm.nodes.iter().filter_map(|node| node.host.as_ref());
    hosts.map(|host| host.plane.drops().packets(DropReason::ForeignSource)).sum()
}

/// A node has no session for so many rotations, and then one again. What it shall run waits for it meanwhile.
fn sleep_through(rotations: u64, planted: Planted) {
    let (seed, sleeper) = (220 + rotations, 4);
    let (mut swarm, network) = settle(Swarm::new(seed, Setup { planted, ..setup(5, weather(0.05), spec(3600)) }));
    let command = swarm.bound_service("bound", 1, network, &format!("node.hostname==host{sleeper}"));
    swarm.command(command).expect("a new service");
    assert!(swarm.run_until(10 * SECOND, |swarm| swarm.is_settled()).is_some());
    swarm.cut_session(sleeper, true);
    for _ in 0..rotations {
        swarm.run_for(8 * SECOND);
        swarm.rotate(true);
    }
    swarm.cut_session(sleeper, false);
    let open = swarm.run_until(10 * SECOND, |swarm| swarm.nodes[sleeper].link.is_open());
    assert!(open.is_some(), "seed {seed}: the session does not return");
    let limit = 5 * SECOND;
    let runs = |swarm: &mut Swarm| swarm.endpoints().iter().any(|endpoint| endpoint.node == sleeper);
    let took = swarm.run_until(limit, runs);
    assert!(took.is_some(), "seed {seed}: no task runs there");
    let unreachable = swarm.unreachable(limit - took.unwrap_or_default());
    assert!(unreachable.is_empty(), "seed {seed}, {rotations} rotations: {unreachable:?}");
}

#[test]
fn a_node_that_slept_through_rotations_is_right_within_five_seconds() {
    (1..=10).for_each(|rotations| sleep_through(rotations, Planted::Nothing));
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
    let mut swarm = Swarm::new(241, setup(10, weather(0.05), spec(60)));
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

/// The long days in little more than a hundredth of their length; `tools/simulate --days` runs them whole.
#[test]
fn rotations_keep_their_time_under_restless_leaders_and_after_a_time_without_managers() {
    day(251, 600 * SECOND, Planted::Nothing);
}

/// As often as not a seed of chaos shows it; what shows the others for sure follows, and `scripts/test` has chaos find
/// them as well.
#[test]
fn an_activation_without_readiness_is_found() {
    let options =
        |seed| Options { planted: Planted::SkipAcknowledgement, duration: 60 * SECOND, ..Options::of_seed(seed) };
    let found = (0..PLANTED_SEEDS).map(|number| number * 3).find(|seed| fails(|| drop(run(*seed, &options(*seed)))));
    assert!(found.is_some(), "not found in {PLANTED_SEEDS} seeds");
}

#[test]
fn a_rotation_timer_that_elections_reset_is_found() {
    assert!(fails(|| drop(day(251, 600 * SECOND, Planted::ResetTimerAtElection))));
}

#[test]
fn a_ring_that_is_applied_as_a_difference_is_found() {
    assert!(!fails(|| sleep_through(1, Planted::RingAsDifference)), "one step is no leap");
    assert!(fails(|| sleep_through(3, Planted::RingAsDifference)));
}

macro_rules! shards {
    ($($name:ident = $number:literal),+) => { $(#[test] fn $name() { shard($number) })+ };
}

// A test runner runs them beside each other.
shards!(chaos_0 = 0, chaos_1 = 1, chaos_2 = 2, chaos_3 = 3);
