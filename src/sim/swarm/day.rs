//! A day of a restless leader, and a day without any manager: the key life keeps its times, traffic goes on.

use super::chaos::Report;
use super::traffic::Endpoint;
use super::{ClusterSpec, Duration, Planted, Setup, Swarm};
use crate::sim::network::Faults;
use std::collections::BTreeMap;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Leaders of the first day.
const LEADERS: u32 = 20;
/// Managers, and nodes that are none.
const MANAGERS: usize = 3;
const WORKERS: usize = 2;

/// Two days with rotations every `interval` (12 hours by default), cut down by the same factor as that. Panics, with
/// the seed, when something does not hold.
pub fn day(seed: u64, interval: Duration, planted: Planted) -> Report {
    let spec = ClusterSpec { key_rotation_secs: interval.as_secs() as u32, ..ClusterSpec::default() };
    let faults = Faults { delay_max: Duration::from_millis(20), ..Faults::NONE };
    let nodes = MANAGERS + WORKERS;
    let mut swarm = Swarm::new(seed, Setup { nodes, managers: MANAGERS, faults, spec, planted });
    let network = swarm.create_network("net", true);
    let service = swarm.service("web", nodes as u64, &[network]);
    expect(&mut swarm, "sessions", MINUTE, |swarm| swarm.are_in_touch());
    swarm.command(service).expect("a service");
    // Tasks of managers move when they die: two that stay, on two nodes.
    for worker in MANAGERS..nodes {
        let constraint = format!("node.hostname==host{worker}");
        let service = swarm.bound_service(&format!("steady{worker}"), 1, network, &constraint);
        swarm.command(service).expect("a service");
    }
    expect(&mut swarm, "running tasks", MINUTE, Swarm::is_settled);
    restless(&mut swarm, interval * 2);
    alone(&mut swarm, interval * 2);
    Report { done: BTreeMap::from([("days", 2)]), hash: swarm.oracle.hash() }
}

/// Many leaders, and each rotation once.
fn restless(swarm: &mut Swarm, time: Duration) {
    let before = swarm.ledger.rotations.by_timer;
    for change in 0..LEADERS {
        swarm.run_for(time / LEADERS - MINUTE / 2);
        let Some(leader) = swarm.leading_node() else { fail(swarm, "nobody leads") };
        swarm.kill(leader);
        swarm.run_for(MINUTE / 2);
        swarm.boot(leader);
        if swarm.leading_node().is_none_or(|next| next == leader) {
            fail(swarm, &format!("the leader was not followed by another one, change {change}"));
        }
    }
    // The second one is due at the end, by the clock of whoever leads.
    swarm.run_for(MINUTE / 2);
    let rotations = swarm.ledger.rotations.by_timer - before;
    if rotations != 2 {
        fail(swarm, &format!("{rotations} rotations in two intervals with {LEADERS} leaders"));
    }
    expect(swarm, "all back", MINUTE, Swarm::is_settled);
}

/// No manager at all: what the nodes have goes on. One rotation follows when they return.
fn alone(swarm: &mut Swarm, time: Duration) {
    swarm.run_for(MINUTE / 2);
    let before = swarm.ledger.rotations.by_timer;
    (0..MANAGERS).for_each(|number| swarm.kill(number));
    let of_workers = |end: &Endpoint| end.node >= MANAGERS;
    let pairs: Vec<_> = swarm.pairs().into_iter().filter(|(from, to)| of_workers(from) && of_workers(to)).collect();
    let pairs: Vec<_> = pairs.into_iter().filter(|(from, to)| from.node != to.node).collect();
    if pairs.is_empty() {
        fail(swarm, "no tasks on two workers");
    }
    let runs = |swarm: &Swarm| {
        let hosts = swarm.nodes.iter().skip(MANAGERS).map(|node| (node.boot, node.host.as_ref()));
        let there =
            hosts.map(|(boot, host)| (boot, host.map(|host| host.containers.keys().copied().collect::<Vec<_>>())));
        there.collect::<Vec<_>>()
    };
    let tasks = runs(swarm);
    let (step, mut sent) = (time / 2000, Vec::new());
    for _ in 0..2000 {
        sent.extend(pairs.iter().map(|(from, to)| swarm.send_packet(from, to, false)));
        swarm.run_for(step);
    }
    let arrived = |number: &u64| swarm.oracle.packets.get(number).is_some_and(|packet| packet.delivered.is_some());
    let lost = sent.iter().filter(|number| !arrived(number)).count();
    if lost > 0 {
        fail(swarm, &format!("{lost} of {} packets between nodes without managers are lost", sent.len()));
    }
    if runs(swarm) != tasks {
        fail(swarm, "tasks of nodes without managers have changed");
    }
    (0..MANAGERS).for_each(|number| swarm.boot(number));
    expect(swarm, "all back", 2 * MINUTE, Swarm::is_settled);
    // What was due meanwhile happens once: now, or when those that were not back at once are late.
    swarm.run_for(15 * MINUTE);
    let rotations = swarm.ledger.rotations.by_timer - before;
    let more = (15 * MINUTE + HOUR / 30).as_secs() / u64::from(swarm.state().cluster.spec.key_rotation_secs);
    if rotations < 1 || rotations > 1 + more {
        fail(swarm, &format!("{rotations} rotations when the managers came back"));
    }
    let unreachable = swarm.unreachable(Duration::from_secs(10));
    if let Some(first) = unreachable.first() {
        fail(swarm, &format!("{} pairs cannot reach each other, {first:?}", unreachable.len()));
    }
}

fn expect(swarm: &mut Swarm, what: &str, limit: Duration, holds: impl Fn(&Swarm) -> bool) {
    if swarm.run_until(limit, |swarm| holds(swarm)).is_none() {
        fail(swarm, &format!("no {what} after {limit:?}"));
    }
}

fn fail(swarm: &Swarm, what: &str) -> ! {
    swarm.oracle.fail(swarm.now, what)
}
