//! Faults and commands in random order. `FORMIC_SIM_SEED=n` runs one seed, `FORMIC_SIM_SEEDS=count` more of them.

use super::super::*;
use super::world::{World, ip};
use crate::sim::network::Faults;
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Seeds that run by default.
const SEEDS: u64 = 300;
/// Faults and commands of a seed.
const ACTIONS: u32 = 150;
/// How long it may take after the last fault until all is committed and everywhere: elections, and snapshots.
const RECOVERY: Duration = Duration::from_secs(30);

#[allow(clippy::disallowed_methods)]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

struct Chaos {
    world: World,
    /// The voters that are wanted at least, so that crashes do not end the swarm.
    least: usize,
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let voters = [1, 3, 3, 3, 5][seed as usize % 5];
        let mut world = World::new(seed, voters, Faults::lossy(0.05));
        if seed.is_multiple_of(16) {
            world.ballast = 600_000;
        }
        Chaos { world, least: 3 }
    }

    fn any(&mut self) -> usize {
        self.world.rng.random_range(0..self.world.hosts.len())
    }

    /// A running host.
    fn running(&mut self) -> Option<usize> {
        let number = self.any();
        self.world.hosts[number].raft.is_some().then_some(number)
    }

    fn act(&mut self) {
        let pause = Duration::from_millis(self.world.rng.random_range(0..400));
        self.world.run_for(pause);
        match self.world.rng.random_range(0..100) {
            0..45 => self.command(),
            45..52 => self.fault_of_process(),
            52..60 => self.start_one(),
            60..70 => self.fault_of_network(),
            70..76 => self.mend(),
            76..82 => self.jump(),
            82..90 => self.compact(),
            90..97 => self.change(),
            _ => {
                if let Some(leader) = self.world.leader() {
                    self.world.hand_over(leader);
                }
            }
        }
    }

    fn command(&mut self) {
        let leader = self.world.leader();
        // Some go to whoever believes to lead, or does not.
        let Some(number) = (if self.world.rng.random_bool(0.8) { leader } else { self.running() }) else { return };
        for _ in 0..self.world.rng.random_range(1..4) {
            let count = self.world.rng.random_range(1..10);
            self.world.propose_many(number, count);
        }
        self.world.read(number);
    }

    fn fault_of_process(&mut self) {
        let number = self.any();
        if self.world.rng.random_bool(0.3) {
            self.world.crash(number);
        } else {
            let saves = self.world.rng.random_range(0..6);
            self.world.hosts[number].crash_in = Some((saves, self.world.rng.random_bool(0.5)));
        }
        self.world.count("crashes");
    }

    fn start_one(&mut self) {
        let down = |(number, host): (usize, &super::world::Host)| host.raft.is_none().then_some(number);
        let down: Vec<usize> = self.world.hosts.iter().enumerate().filter_map(down).collect();
        if !down.is_empty() {
            let number = down[self.world.rng.random_range(0..down.len())];
            self.world.start(number);
        }
    }

    fn fault_of_network(&mut self) {
        self.world.count("cuts");
        match self.world.rng.random_range(0..3) {
            0 => {
                let cut = self.world.rng.random_range(0..1u64 << self.world.hosts.len());
                let part = (0..self.world.hosts.len()).filter(|number| cut >> number & 1 == 1).map(ip).collect();
                self.world.network.partition(&[part]);
            }
            1 => {
                let (from, to) = (self.any(), self.any());
                self.world.network.block(ip(from), ip(to));
            }
            _ => self.world.network.set_faults(Faults::lossy(0.3)),
        }
    }

    fn mend(&mut self) {
        self.world.network.heal();
        self.world.network.set_faults(Faults::lossy(0.05));
        for from in 0..self.world.hosts.len() {
            (0..self.world.hosts.len()).for_each(|to| self.world.network.unblock(ip(from), ip(to)));
        }
    }

    fn jump(&mut self) {
        let number = self.any();
        self.world.hosts[number].skew += self.world.rng.random_range(-1_000_000..10_000_000);
    }

    fn compact(&mut self) {
        if let Some(number) = self.running() {
            self.world.compact(number);
        }
    }

    fn change(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        let membership = self.world.raft(leader).membership().clone();
        let me = self.world.hosts[leader].member;
        let learner = membership.learners.first().copied();
        if let Some(learner) = learner.filter(|_| self.world.rng.random_bool(0.7)) {
            if self.world.change(leader, Change::Voter(learner)).is_ok() {
                self.world.count("voters");
            }
        } else if membership.voters.len() > self.least && self.world.rng.random_bool(0.6) {
            let voters: Vec<Member> = membership.voters.iter().copied().filter(|voter| *voter != me).collect();
            let out = voters[self.world.rng.random_range(0..voters.len())];
            if self.world.change(leader, Change::Remove(out)).is_ok() {
                self.world.count("removals");
            }
        } else if membership.voters.len() < 5 && self.world.hosts.len() < 12 && self.world.learner(leader).is_some() {
            self.world.count("learners");
        }
    }

    /// All faults end; then everything must come back.
    fn end(&mut self) {
        self.mend();
        self.world.network.set_faults(Faults::NONE);
        for number in 0..self.world.hosts.len() {
            self.world.hosts[number].crash_in = None;
            if self.world.hosts[number].raft.is_none() {
                self.world.start(number);
            }
        }
        let end = self.world.now + RECOVERY;
        let mut last = None;
        while self.world.now < end && !self.is_recovered(last) {
            self.world.run_for(Duration::from_millis(500));
            if last.is_none_or(|id| !self.world.clients.acknowledged.contains(&id)) {
                last = self.world.leader().and_then(|leader| self.world.propose(leader));
            }
        }
        if !self.is_recovered(last) {
            let leader = self.world.leader();
            let indices: Vec<u64> = self.world.hosts.iter().map(|host| host.index).collect();
            self.world.oracle.fail(0, format!("no recovery: leader {leader:?}, applied {indices:?}"));
        }
        self.check_acknowledged();
    }

    /// A command after the faults is committed, and everywhere.
    fn is_recovered(&mut self, last: Option<u64>) -> bool {
        let (Some(id), Some(leader)) = (last, self.world.leader()) else { return false };
        let membership = self.world.raft(leader).membership().clone();
        let has = |host: &super::world::Host| {
            !membership.peers.contains_key(&host.member) || host.applied.iter().any(|(_, applied)| *applied == id)
        };
        self.world.clients.acknowledged.contains(&id) && !membership.is_joint() && self.world.hosts.iter().all(has)
    }

    fn check_acknowledged(&mut self) {
        let Some(leader) = self.world.leader() else { return };
        let applied: Vec<u64> = self.world.hosts[leader].applied.iter().map(|(_, id)| *id).collect();
        let set: BTreeSet<u64> = applied.iter().copied().collect();
        let lost: Vec<u64> = self.world.clients.acknowledged.difference(&set).copied().collect();
        if !lost.is_empty() {
            self.world.oracle.fail(leader, format!("acknowledged commands are lost: {lost:?}"));
        }
        if set.len() < applied.len() {
            self.world.oracle.fail(leader, "a command was applied twice".to_owned());
        }
    }
}

fn run(seed: u64) -> World {
    let mut chaos = Chaos::new(seed);
    for _ in 0..ACTIONS {
        chaos.act();
    }
    chaos.end();
    chaos.world
}

#[test]
fn a_cluster_survives_chaos() {
    let seeds: Vec<u64> = match from_environment("FORMIC_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=from_environment("FORMIC_SIM_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in &seeds {
        let world = run(*seed);
        assert!(world.oracle.failures.is_empty(), "seed {seed}: {:#?}", world.oracle.failures);
        world.oracle.seen.iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
    }
    println!("{} seeds: {seen:?}", seeds.len());
    if seeds.len() >= 100 {
        for what in ["acknowledged", "reads", "crashes", "installed", "compacted", "voters", "removals", "handed over"]
        {
            assert!(
                seen.get(what).is_some_and(|count| *count >= seeds.len() as u64 / 4),
                "too little happened: {seen:?}"
            );
        }
    }
}

#[test]
fn a_seed_is_the_whole_story() {
    for seed in [3, 16] {
        let (one, two) = (run(seed), run(seed));
        assert_eq!(one.now, two.now);
        assert_eq!(one.oracle.committed, two.oracle.committed);
        assert_eq!(one.oracle.seen, two.oracle.seen);
    }
}
