//! Faults and a user's commands in random order, and the end of them.

use super::Swarm;
use crate::cluster::{Command, ring};
use crate::types::{NetworkId, ServiceId, Time};
use rand::RngExt;
use std::collections::BTreeMap;
use std::time::Duration;

/// Services at once.
const SERVICES: usize = 5;
/// How long it may take until all is in its place again after the last fault: missed heartbeats, the pause between
/// attempts, the restart delay of tasks that died, an hour hand of gossip.
const RECOVERY: Duration = Duration::from_secs(60);

/// What ends by itself.
enum Mend {
    Session(usize),
    Underlay,
    Manager,
    Boot(usize),
}

/// The user and the weather.
pub(super) struct Chaos {
    pub(super) networks: Vec<NetworkId>,
    services: Vec<ServiceId>,
    named: u64,
    mends: BTreeMap<(Time, u64), Mend>,
    removed: bool,
    /// What was done, for people.
    pub(super) done: BTreeMap<&'static str, u64>,
}

impl Chaos {
    pub(super) fn new(swarm: &mut Swarm) -> Chaos {
        let networks = vec![swarm.create_network("secret", true), swarm.create_network("plain", false)];
        let mut chaos = Chaos {
            networks,
            services: Vec::new(),
            named: 0,
            mends: BTreeMap::new(),
            removed: false,
            done: BTreeMap::new(),
        };
        chaos.create(swarm);
        chaos
    }

    /// Lets things happen for a while.
    pub(super) fn run(&mut self, swarm: &mut Swarm, duration: Duration) {
        let end = swarm.now + duration;
        while swarm.now < end {
            let pause = Duration::from_millis(swarm.rng.random_range(100..6000));
            self.run_until(swarm, swarm.now + pause);
            self.act(swarm);
        }
    }

    fn run_until(&mut self, swarm: &mut Swarm, end: Time) {
        while let Some(entry) = self.mends.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), mend) = entry.remove_entry();
            swarm.run_for(at.since(swarm.now));
            self.mend(swarm, mend);
        }
        swarm.run_for(end.since(swarm.now));
    }

    fn mend(&mut self, swarm: &mut Swarm, mend: Mend) {
        match mend {
            Mend::Session(number) => swarm.cut_session(number, false),
            Mend::Underlay => swarm.heal(),
            Mend::Manager => swarm.start_manager(),
            Mend::Boot(number) if swarm.nodes[number].gone => {}
            Mend::Boot(number) => swarm.boot(number),
        }
    }

    /// Ends all faults, and waits until everything is in its place.
    pub(super) fn end(&mut self, swarm: &mut Swarm) {
        for mend in std::mem::take(&mut self.mends).into_values() {
            self.mend(swarm, mend);
        }
        let took = swarm.run_until(RECOVERY, |swarm| swarm.is_settled());
        if took.is_none() {
            let late = ring::late(&swarm.manager.state);
            let tasks: Vec<String> = swarm
                .manager
                .state
                .tasks
                .values()
                .filter(|task| !task.gone)
                .map(|task| format!("{} on {:?}: {}, wanted {}", task.id, task.node, task.status.state, task.desired))
                .collect();
            let links: Vec<bool> = swarm.nodes.iter().map(|node| node.link.is_open()).collect();
            let text = format!("not in its place after {RECOVERY:?}: sessions {links:?}, late {late:?}, {tasks:#?}");
            swarm.oracle.fail(swarm.now, &text);
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn later(&mut self, swarm: &mut Swarm, most_secs: u64, mend: Mend) {
        let delay = Duration::from_millis(swarm.rng.random_range(200..most_secs * 1000));
        self.named += 1;
        self.mends.insert((swarm.now + delay, self.named), mend);
    }

    fn act(&mut self, swarm: &mut Swarm) {
        let number = swarm.rng.random_range(0..swarm.nodes.len());
        let there = swarm.nodes[number].host.is_some() && !swarm.nodes[number].gone;
        match swarm.rng.random_range(0..100) {
            0..20 if there => self.restart(swarm, number),
            20..40 if there && !swarm.nodes[number].link.cut => {
                self.count("session cut");
                swarm.cut_session(number, true);
                self.later(swarm, 60, Mend::Session(number));
            }
            40..52 if !swarm.parted => self.part(swarm),
            52..58 if swarm.manager.up => {
                self.count("manager down");
                swarm.stop_manager();
                self.later(swarm, 20, Mend::Manager);
            }
            58..70 if swarm.manager.up => self.create(swarm),
            70..80 if swarm.manager.up => self.remove(swarm),
            80..95 if swarm.manager.up => {
                let asked = swarm.command(Command::RequestRotation { force: false });
                self.count(if asked.is_ok() { "rotation" } else { "rotation refused" });
            }
            95..100 if swarm.manager.up && there && number != 0 && !self.removed => {
                self.removed = true;
                self.count("node removed");
                swarm.remove_node(number);
            }
            _ => {}
        }
    }

    fn restart(&mut self, swarm: &mut Swarm, number: usize) {
        self.count("restart");
        swarm.kill(number);
        if swarm.rng.random_bool(0.5) {
            swarm.boot(number);
        } else {
            self.later(swarm, 20, Mend::Boot(number));
        }
    }

    fn part(&mut self, swarm: &mut Swarm) {
        self.count("partition");
        let mut groups = [Vec::new(), Vec::new()];
        for number in 0..swarm.nodes.len() {
            groups[swarm.rng.random_range(0..2)].push(number);
        }
        swarm.part(&groups);
        self.later(swarm, 30, Mend::Underlay);
    }

    fn create(&mut self, swarm: &mut Swarm) {
        if self.services.len() >= SERVICES {
            return;
        }
        self.count("service created");
        self.named += 1;
        let replicas = swarm.rng.random_range(1..=6);
        let networks = match swarm.rng.random_range(0..3) {
            0 => vec![self.networks[0]],
            1 => vec![self.networks[1]],
            _ => self.networks.clone(),
        };
        self.services.push(swarm.create_service(&format!("service{}", self.named), replicas, &networks));
    }

    fn remove(&mut self, swarm: &mut Swarm) {
        if self.services.len() < 2 {
            return;
        }
        self.count("service removed");
        let id = self.services.remove(swarm.rng.random_range(0..self.services.len()));
        swarm.command(Command::RemoveService { id }).expect("a service");
    }
}
