//! Faults and users' commands in random order, and the end of them: one run of a seed.

use super::manager::CrashPlan;
use super::node::Node;
use super::{Papers, Planted, Setup, Swarm, admission};
use crate::cluster::{Command, ring};
use crate::manager::planner;
use crate::sim::network::Faults;
use crate::types::{ClusterSpec, NetworkId, NodeId, Role, Time};
use rand::RngExt;
use std::collections::BTreeMap;
use std::time::Duration;

/// Services at once.
const SERVICES: usize = 4;
/// Nodes that join during a run at most.
const JOINS: usize = 2;
/// How long it may take until all is in its place again after the last fault: an election, missed heartbeats, the
/// pause between attempts, the restart delay of tasks that died, an hour hand of gossip.
const RECOVERY: Duration = Duration::from_secs(60);
/// For so long all has to be in its place: two looks of the planner, since what was planned before, for a node that was
/// down and is back already, may still be committed.
const STEADY: Duration = planner::TICK.saturating_mul(2);
/// How long nothing bad happens at the start, and now and then.
const CALM: Duration = Duration::from_secs(14);
/// How long two nodes may take then until a packet arrives.
const REACH: Duration = Duration::from_secs(10);

/// What is simulated.
#[derive(Debug, Clone)]
pub struct Options {
    /// Nodes at the start, 1 to 200; others join later.
    pub nodes: usize,
    /// How many of them are managers at the start, 1 to 7.
    pub managers: usize,
    /// Users ask for rotations of the keys; else only the timer does, every minute.
    pub wishes: bool,
    /// How long faults go on, in virtual time; the recovery comes after that.
    pub duration: Duration,
    /// A fault that the oracle shall find.
    pub planted: Planted,
}

impl Options {
    /// Swarms of all sorts: mostly small ones, in which more happens in the same time, now and then a large one. A
    /// third lasts long enough for rotations by the timer.
    pub fn of_seed(seed: u64) -> Options {
        let large = seed % 500 == 499;
        let wishes = seed % 3 != 1;
        let managers = if seed % 4 == 3 { 5 } else { 3 };
        let nodes = if large { 100 } else { managers + 2 + (seed / 3 % 3) as usize };
        let secs = match (large, wishes) {
            (true, _) => 15,
            (false, true) => 30,
            (false, false) => 80,
        };
        Options { nodes, managers, wishes, duration: Duration::from_secs(secs), planted: Planted::Nothing }
    }
}

/// What happened in a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Faults and commands, by name.
    pub done: BTreeMap<&'static str, u64>,
    /// What is determined by the seed, in short.
    pub hash: [u8; 32],
}

/// Runs a seed. Panics, with the seed, when something does not hold.
pub fn run(seed: u64, options: &Options) -> Report {
    let Options { nodes, managers, wishes, planted, .. } = *options;
    let spec = ClusterSpec { heartbeat_secs: 2, key_rotation_secs: 60, ..ClusterSpec::default() };
    let loss = [0.0, 0.02, 0.08][(seed % 3) as usize];
    let millisecond = Duration::from_millis(1);
    let faults = Faults { loss, duplication: 0.02, delay_min: millisecond, delay_max: 50 * millisecond };
    let mut swarm = Swarm::new(seed, Setup { nodes, managers, faults, spec, planted });
    let mut chaos = Chaos::new(&mut swarm, wishes, seed.is_multiple_of(4));
    swarm.stream(Some(Duration::from_millis(700)));
    swarm.run_for(CALM);
    chaos.run(&mut swarm, options.duration);
    chaos.end(&mut swarm);
    swarm.stream(None);
    let pairs = swarm.pairs().len();
    let unreachable = swarm.unreachable(REACH);
    if let Some((from, to)) = unreachable.first() {
        println!("{} of {pairs} pairs cannot reach each other", unreachable.len());
        let number = swarm.send_packet(from, to, false);
        swarm.explain(number, from.node, to.node, "does not arrive");
    }
    swarm.check_replicas();
    chaos.report(&swarm, pairs)
}

/// What ends by itself.
enum Mend {
    Session(usize),
    Underlay,
    Boot(usize),
}

/// The users and the weather.
struct Chaos {
    networks: Vec<NetworkId>,
    /// Rotations are asked for.
    wishes: bool,
    /// Clocks jump.
    jumps: bool,
    named: u64,
    mends: BTreeMap<(Time, u64), Mend>,
    removed: bool,
    joined: usize,
    done: BTreeMap<&'static str, u64>,
}

impl Chaos {
    fn new(swarm: &mut Swarm, wishes: bool, jumps: bool) -> Chaos {
        swarm.ledger.rotations.lenient = jumps;
        swarm.hasty = jumps;
        let networks = vec![swarm.create_network("secret", true), swarm.create_network("plain", false)];
        let (mends, done) = (BTreeMap::new(), BTreeMap::new());
        let mut chaos = Chaos { networks, wishes, jumps, named: 0, mends, removed: false, joined: 0, done };
        chaos.create(swarm);
        chaos
    }

    /// Lets things happen for a while.
    fn run(&mut self, swarm: &mut Swarm, duration: Duration) {
        let end = swarm.now + duration;
        while swarm.now < end {
            let pause = Duration::from_millis(swarm.rng.random_range(100..3000));
            self.run_until(swarm, swarm.now + pause);
            self.use_api(swarm);
            self.act(swarm);
            if swarm.rng.random_ratio(1, 30) && self.mends.is_empty() {
                self.run_until(swarm, swarm.now + CALM);
            }
        }
    }

    fn run_until(&mut self, swarm: &mut Swarm, end: Time) {
        while let Some(entry) = self.mends.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), mend) = entry.remove_entry();
            swarm.run_for(at.since(swarm.now));
            self.mend(swarm, mend);
        }
        swarm.run_for(end.since(swarm.now));
        for number in std::mem::take(&mut swarm.crashed) {
            self.count("crash over a write");
            self.later(swarm, 10, Mend::Boot(number));
        }
    }

    fn mend(&mut self, swarm: &mut Swarm, mend: Mend) {
        match mend {
            Mend::Session(number) => swarm.cut_session(number, false),
            Mend::Underlay => swarm.heal(),
            Mend::Boot(number) if swarm.nodes[number].host.is_some() => {}
            Mend::Boot(number) => swarm.boot(number),
        }
    }

    /// Ends all faults, and waits until everything is in its place.
    fn end(&mut self, swarm: &mut Swarm) {
        for mend in std::mem::take(&mut self.mends).into_values() {
            self.mend(swarm, mend);
        }
        for number in 0..swarm.nodes.len() {
            swarm.nodes[number].manager.iter_mut().for_each(super::manager::Manager::spare);
            let admitted = swarm.nodes[number].life > 0;
            if swarm.nodes[number].host.is_none() && admitted {
                swarm.boot(number);
            }
        }
        swarm.crashed.clear();
        let mut since = None;
        let is_steady = |swarm: &mut Swarm| {
            let settled = swarm.clients.are_idle() && swarm.is_settled();
            since = since.filter(|_| settled).or(settled.then_some(swarm.now));
            since.is_some_and(|since| swarm.now.since(since) >= STEADY)
        };
        if swarm.run_until(RECOVERY, is_steady).is_none() {
            let text = format!("not in its place after {RECOVERY:?}: {}", describe(swarm));
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

    /// A running manager, any.
    fn manager(&self, swarm: &mut Swarm) -> Option<usize> {
        let managers: Vec<usize> =
            (0..swarm.nodes.len()).filter(|number| swarm.nodes[*number].manager.is_some()).collect();
        let at = swarm.rng.random_range(0..managers.len().max(1));
        managers.get(at).copied()
    }

    fn ask(&mut self, swarm: &mut Swarm, what: &'static str, command: Command) {
        if let Some(origin) = self.manager(swarm) {
            self.count(what);
            swarm.ask(origin, command);
        }
    }

    /// Users read and write labels by way of any manager, several at once.
    fn use_api(&mut self, swarm: &mut Swarm) {
        for _ in 0..swarm.rng.random_range(0..4) {
            let Some(origin) = self.manager(swarm) else { return };
            let number = swarm.rng.random_range(0..swarm.nodes.len().min(3));
            if swarm.rng.random_bool(0.5) {
                let id = swarm.nodes[number].id;
                swarm.ask_read(origin, id);
            } else if let Some(command) = swarm.update_node(origin, number, swarm.fresh_value(), None) {
                swarm.ask(origin, command);
            }
        }
    }

    fn act(&mut self, swarm: &mut Swarm) {
        let number = swarm.rng.random_range(0..swarm.nodes.len());
        let there = swarm.nodes[number].host.is_some() && !swarm.nodes[number].gone;
        match swarm.rng.random_range(0..106) {
            0..12 if there => self.restart(swarm, number, "restart"),
            12..20 => {
                if let Some(leader) = swarm.leading_node() {
                    self.restart(swarm, leader, "leader killed");
                }
            }
            20..28 if swarm.nodes[number].manager.is_some() => self.doom(swarm, number),
            28..36 if there && !swarm.nodes[number].link.cut => {
                self.count("session cut");
                swarm.cut_session(number, true);
                self.later(swarm, 60, Mend::Session(number));
            }
            36..46 if !swarm.parted => self.part(swarm),
            46..50 => self.hand_over(swarm),
            50..60 => self.create(swarm),
            60..68 => self.remove(swarm),
            68..76 if self.wishes => self.rotate(swarm),
            76..84 => self.change_role(swarm, number),
            84..88 => self.remove_node(swarm, number),
            88..92 => self.join(swarm),
            92..100 if self.jumps && there => self.jump(swarm, number),
            100..106 => self.change_trust(swarm),
            _ => {}
        }
    }

    fn restart(&mut self, swarm: &mut Swarm, number: usize, what: &'static str) {
        self.count(what);
        swarm.kill(number);
        if swarm.rng.random_bool(0.5) {
            swarm.boot(number);
        } else {
            self.later(swarm, 20, Mend::Boot(number));
        }
    }

    fn doom(&mut self, swarm: &mut Swarm, number: usize) {
        let plan = CrashPlan { saves: swarm.rng.random_range(0..12), kept: swarm.rng.random_bool(0.5) };
        swarm.nodes[number].manager.iter_mut().for_each(|manager| manager.crash(plan));
    }

    fn part(&mut self, swarm: &mut Swarm) {
        if swarm.rng.random_bool(0.3) {
            self.count("one-way cut");
            for _ in 0..swarm.rng.random_range(1..4) {
                let from = swarm.rng.random_range(0..swarm.nodes.len());
                let to = swarm.rng.random_range(0..swarm.nodes.len());
                swarm.block(from, to);
            }
        } else {
            self.count("partition");
            let mut groups = [Vec::new(), Vec::new()];
            for number in 0..swarm.nodes.len() {
                groups[swarm.rng.random_range(0..2)].push(number);
            }
            swarm.part(&groups);
        }
        self.later(swarm, 20, Mend::Underlay);
    }

    fn hand_over(&mut self, swarm: &mut Swarm) {
        let Some(leader) = swarm.leading_node() else { return };
        let now = swarm.local(leader);
        let asked = swarm.nodes[leader].manager.as_mut().is_some_and(|it| it.replica.raft.hand_over(now, |_| true));
        if asked {
            self.count("lead handed over");
            swarm.turn_manager(leader);
        }
    }

    fn create(&mut self, swarm: &mut Swarm) {
        if swarm.state().services.len() >= SERVICES {
            return;
        }
        self.named += 1;
        let replicas = swarm.rng.random_range(1..=5);
        let networks = match swarm.rng.random_range(0..3) {
            0 => vec![self.networks[0]],
            1 => vec![self.networks[1]],
            _ => self.networks.clone(),
        };
        let command = swarm.service(&format!("service{}", self.named), replicas, &networks);
        self.ask(swarm, "service created", command);
    }

    fn remove(&mut self, swarm: &mut Swarm) {
        let ids: Vec<_> = swarm.state().services.values().filter(|it| !it.removing).map(|it| it.id).collect();
        if ids.len() > 1 {
            let id = ids[swarm.rng.random_range(0..ids.len())];
            self.ask(swarm, "service removed", Command::RemoveService { id });
        }
    }

    fn rotate(&mut self, swarm: &mut Swarm) {
        let force = swarm.rng.random_bool(0.4);
        swarm.hasty |= force;
        self.ask(swarm, "rotation wished", Command::RequestRotation { force });
    }

    /// One more manager, or one less; by what the asked manager knows.
    fn change_role(&mut self, swarm: &mut Swarm, number: usize) {
        let Some(origin) = self.manager(swarm) else { return };
        let managers = swarm.state().nodes.values().filter(|node| node.role == Role::Manager).count();
        let role = swarm.state().nodes.get(&swarm.nodes[number].id).map(|node| node.role);
        let (what, wanted) = match role {
            Some(Role::Worker) if managers < 5 => ("promotion", Role::Manager),
            // One stays: a node that was away finds no manager when all that it knew are gone.
            Some(Role::Manager) if managers > 2 && number > 0 => ("demotion", Role::Worker),
            _ => return,
        };
        if let Some(command) = swarm.update_node(origin, number, swarm.fresh_value(), Some(wanted)) {
            self.count(what);
            swarm.ask(origin, command);
        }
    }

    fn remove_node(&mut self, swarm: &mut Swarm, number: usize) {
        let worker = swarm.state().nodes.get(&swarm.nodes[number].id).is_some_and(|it| !swarm.state().is_manager(it));
        // The labels of the first ones are read and written.
        if worker && !self.removed && number >= 3 {
            self.removed = true;
            let command = swarm.removal(number);
            self.ask(swarm, "node removed", command);
        }
    }

    fn join(&mut self, swarm: &mut Swarm) {
        let Some(origin) = self.manager(swarm).filter(|_| self.joined < JOINS) else { return };
        self.joined += 1;
        let number = swarm.nodes.len();
        let mut node = Node::new(NodeId::from_random(swarm.random()), number, swarm.now);
        let Some(manager) = &swarm.nodes[origin].manager else { return };
        node.known = manager.state().manager_views().into_iter().map(|manager| manager.address).collect();
        node.papers = Papers::issued(manager.state());
        let command = admission(&node, number, Role::Worker, manager.state().root_digest());
        swarm.nodes.push(node);
        self.count("node joined");
        let op = swarm.ask(origin, command);
        // A joiner that is not told its id begins again with another one.
        swarm.run_until(Duration::from_secs(12), |swarm| swarm.clients.ends.contains_key(&op));
        match swarm.clients.ends.get(&op) {
            Some(Ok(_)) => swarm.boot(number),
            _ => swarm.nodes[number].gone = true,
        }
    }

    fn change_trust(&mut self, swarm: &mut Swarm) {
        let Some(origin) = self.manager(swarm) else { return };
        if let Some((what, command)) = swarm.change_trust(origin) {
            self.count(what);
            swarm.ask(origin, command);
        }
    }

    fn jump(&mut self, swarm: &mut Swarm, number: usize) {
        if swarm.rng.random_bool(0.5) {
            self.count("clock jumped");
            let by = Duration::from_millis(swarm.rng.random_range(100..30_000));
            swarm.jump(number, by);
        } else {
            self.count("wall clock set");
            let day = 86_400;
            let off = swarm.rng.random_range(-2 * day..2 * day);
            swarm.set_wall(number, off);
        }
    }

    fn report(mut self, swarm: &Swarm, pairs: usize) -> Report {
        let rotations = &swarm.ledger.rotations;
        let counts = [
            ("packets", swarm.packets),
            ("packets delivered", swarm.oracle.delivered),
            ("packets held to", swarm.oracle.held_to),
            ("pairs at the end", pairs as u64),
            ("commands acknowledged", swarm.clients.acknowledged),
            ("reads", swarm.clients.reads),
            ("writes out of sequence", swarm.clients.refused),
            ("terms with a leader", swarm.ledger.terms() as u64),
            ("rotations by timer", rotations.by_timer),
            ("rotations by request", rotations.by_request),
            ("leaders amid a rotation", rotations.led_amid),
            ("log entries", swarm.state().index),
        ];
        self.done.extend(counts);
        Report { done: self.done, hash: swarm.oracle.hash() }
    }
}

/// What is not in its place, for people.
fn describe(swarm: &Swarm) -> String {
    let state = swarm.state();
    let late = ring::late(state);
    let tasks: Vec<String> = state
        .tasks
        .values()
        .filter(|task| !task.gone)
        .map(|task| format!("{} on {:?}: {}, wanted {}", task.id, task.node, task.status.state, task.desired))
        .collect();
    let nodes: Vec<String> = swarm
        .nodes
        .iter()
        .enumerate()
        .map(|(number, node)| {
            let known = state.nodes.get(&node.id).map(|known| (known.role, known.seat, known.state));
            let manager = node.manager.as_ref().map(|manager| {
                let raft = &manager.replica.raft;
                let members = raft.membership();
                let seats = (members.voters.clone(), members.learners.clone());
                let progress: Vec<_> =
                    members.peers.keys().filter_map(|other| Some((*other, raft.progress(*other)?))).collect();
                (manager.member(), manager.state().index, raft.last(), manager.leader, seats, progress)
            });
            let (id, session, gone) = (node.id, node.link.is_open(), node.gone);
            format!("{number} {id}: {known:?}, session {session}, gone {gone}, manager {manager:?}")
        })
        .collect();
    let (leader, index) = (swarm.leader, state.index);
    format!("leader {leader:?}, index {index}, nodes {nodes:#?}, late {late:?}, tasks {tasks:#?}")
}
