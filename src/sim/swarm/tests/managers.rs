//! What a change of the leader costs, and that a new root certificate shuts nobody out.

use super::super::client::Rpc;
use super::super::trust::new_root;
use super::*;
use crate::cluster::NewTokens;

/// From the death of a leader to the next command that another manager's user gets through: the goal.
const CONTROL_GAP: Duration = Duration::from_secs(3);

/// A user who asks again and again, and does not wait for an answer first.
fn until_taken(swarm: &mut Swarm, origin: usize) -> Duration {
    let (start, mut asked) = (swarm.now, Vec::new());
    let taken = swarm.run_until(20 * SECOND, |swarm| {
        let (id, name) = (NetworkId::from_random(swarm.random()), format!("net-{}", swarm.clients.asked()));
        let spec = NetworkSpec { name, ..NetworkSpec::default() };
        asked.push(swarm.ask(origin, Command::CreateNetwork { id, spec }));
        asked.iter().any(|op| swarm.clients.ends.get(op).is_some_and(Result::is_ok))
    });
    assert!(taken.is_some(), "seed {}: no command is taken", swarm.oracle.seed);
    swarm.now.since(start)
}

#[test]
fn the_next_command_is_taken_within_three_seconds_of_a_leaders_death() {
    let mut gaps = Vec::new();
    for seed in 261..269 {
        let faults = Faults { delay_max: 20 * MILLISECOND, ..Faults::NONE };
        let mut swarm = Swarm::new(seed, setup(5, faults, spec(3600)));
        assert!(swarm.run_until(10 * SECOND, |swarm| swarm.is_settled()).is_some(), "seed {seed}");
        for _ in 0..3 {
            let leader = swarm.leading_node().expect("a leader");
            swarm.kill(leader);
            gaps.push(until_taken(&mut swarm, (leader + 1) % 3));
            swarm.boot(leader);
            assert!(swarm.run_until(20 * SECOND, |swarm| swarm.is_settled()).is_some(), "seed {seed}");
        }
    }
    gaps.sort();
    println!(
        "{} leaders died; the next command was taken after {:?} to {:?}",
        gaps.len(),
        gaps[0],
        gaps[gaps.len() - 1]
    );
    assert!(gaps[gaps.len() - 1] < CONTROL_GAP, "{gaps:?}");
}

/// The managers have issued it, and the answer never arrives.
#[test]
fn a_node_whose_new_certificate_is_lost_on_the_way_stays_in() {
    let (mut swarm, _) = settled(271, weather(0.0), 3600);
    let (lost, root) = (5, Some(new_root(&mut swarm.rng)));
    let (version, spec) = (swarm.state().cluster.version, swarm.state().cluster.spec.clone());
    swarm.command(Command::UpdateCluster { version, spec, tokens: NewTokens::default(), root }).expect("a new root");
    let end = swarm.now + 10 * SECOND;
    while swarm.step(end) {
        swarm.calls.retain(|_, (_, to, _, rpc)| *to != lost || !matches!(rpc, Rpc::Paper(_)));
    }
    let behind: Vec<NodeId> = swarm.state().behind_on_root(UnixTime(START)).iter().map(|node| node.id).collect();
    assert_eq!(behind, [swarm.nodes[lost].id]);
    swarm.kill(lost);
    swarm.boot(lost);
    assert!(swarm.run_until(10 * SECOND, |swarm| swarm.nodes[lost].link.is_open()).is_some(), "it is shut out");
    assert!(swarm.run_until(20 * SECOND, |swarm| swarm.state().cluster.rotation.is_none()).is_some());
    assert!(swarm.run_until(20 * SECOND, |swarm| swarm.is_settled()).is_some());
}
