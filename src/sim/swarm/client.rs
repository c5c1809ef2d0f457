//! Users: commands and reads through any manager, as the API passes them on, and whether they are linearizable.
//!
//! A user writes a label of a node by compare-and-swap on the node's version, and reads it after the manager has made
//! sure that it sees all that was committed. The versions are log indices, so an order of all operations is known. What
//! is checked: an operation sees no older version than any operation that had ended before it began; a read gives the
//! value that was written with that version; a write that was acknowledged follows the version that it named; one that
//! was refused had named another. Of a write whose end is unknown only its value is known, should it be seen.

use super::ledger::REGISTER;
use super::manager::Proposer;
use super::trust::Paper;
use super::{START, Swarm};
use crate::cluster::{Command, Refusal, Reply};
use crate::manager::handle::ManagerError;
use crate::manager::peers;
use crate::raft::Snapshot;
use crate::tls::Peer;
use crate::types::{Availability, NodeId, Role, Time, UnixTime};
use rand::RngExt;
use std::collections::BTreeMap;
use std::time::Duration;

/// After that long a user gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// A command or read, and the manager it was given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpRef {
    pub(super) id: u64,
    pub(super) origin: usize,
}

/// What an operation is about.
#[derive(Debug, Clone, Copy)]
enum What {
    Write { node: NodeId, expected: u64 },
    Read { node: NodeId },
    Other,
}

/// The end of an operation.
pub(super) type End = Result<(Reply, u64), ManagerError>;

struct Op {
    origin: usize,
    life: u64,
    what: What,
    /// The newest version of the label that somebody knew when it began.
    floor: u64,
    deadline: Time,
}

/// All of them.
#[derive(Default)]
pub(super) struct Clients {
    next: u64,
    ops: BTreeMap<u64, Op>,
    /// Ended at the leader: the index that the origin has to have applied.
    applying: Vec<(u64, OpRef, Reply)>,
    /// The newest version of each label that an ended operation has shown.
    shown: BTreeMap<NodeId, u64>,
    /// Ends of operations that somebody waits for.
    pub(super) ends: BTreeMap<u64, End>,
    /// What nodes wait for: who, in which life.
    pub(super) papers: BTreeMap<u64, (usize, u64, Paper)>,
    pub(super) acknowledged: u64,
    pub(super) reads: u64,
    pub(super) refused: u64,
}

/// From one manager to another.
pub(super) enum Rpc {
    Command(OpRef, Box<Command>),
    Read(OpRef),
    Answer(OpRef, Result<(Option<Reply>, u64), ManagerError>),
    /// A new manager asks for the state to begin with.
    State,
    StateIs(Box<Snapshot>),
    /// A node asks for a new certificate.
    Renew,
    /// The one on its disk stands under these roots.
    Certified(Vec<Vec<u8>>),
    /// The answer to either.
    Paper(Paper),
}

impl Clients {
    /// How many operations there have been.
    #[cfg(test)]
    pub(super) fn asked(&self) -> u64 {
        self.next
    }

    /// Nobody waits for an answer.
    pub(super) fn are_idle(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn next_time(&self) -> Option<Time> {
        self.ops.values().map(|op| op.deadline).min()
    }
}

/// The certificate of a manager.
pub(super) fn certificate(swarm: &Swarm, number: usize) -> Peer {
    let (not_before, expires) = (UnixTime(START), UnixTime(START + 90 * 86_400));
    let cluster = swarm.state().cluster.id;
    Peer { node: swarm.nodes[number].id, role: Role::Manager, cluster, not_before, expires }
}

impl Swarm {
    /// Gives a command to a manager; gives its number.
    pub(super) fn ask(&mut self, origin: usize, command: Command) -> u64 {
        let what = match &command {
            Command::UpdateNode { node, version, .. } => What::Write { node: *node, expected: *version },
            _ => What::Other,
        };
        self.begin(origin, what, Some(Box::new(command)))
    }

    /// Asks a manager for the label of a node.
    pub(super) fn ask_read(&mut self, origin: usize, node: NodeId) -> u64 {
        self.begin(origin, What::Read { node }, None)
    }

    fn begin(&mut self, origin: usize, what: What, command: Option<Box<Command>>) -> u64 {
        self.clients.next += 1;
        let id = self.clients.next;
        let floor = match what {
            What::Write { node, .. } | What::Read { node } => self.clients.shown.get(&node).copied().unwrap_or(0),
            What::Other => 0,
        };
        let life = self.nodes[origin].life;
        self.clients.ops.insert(id, Op { origin, life, what, floor, deadline: self.now + PATIENCE });
        let op = OpRef { id, origin };
        let (now, wall) = (self.local(origin), self.wall(origin));
        let Some(manager) = &mut self.nodes[origin].manager else {
            self.finish(op, Err(ManagerError::NoLeader));
            return id;
        };
        if manager.leading.is_some() {
            match command {
                Some(command) => manager.replica.propose(*command, wall, Proposer::Op(op), now),
                None => manager.replica.read(op, now),
            }
            self.turn_manager(origin);
            return id;
        }
        let leader = manager.leader_address().and_then(|address| self.number_at(address));
        match (leader, command) {
            (Some(leader), Some(command)) => self.call(origin, leader, Rpc::Command(op, command)),
            (Some(leader), None) => self.call(origin, leader, Rpc::Read(op)),
            (None, _) => self.finish(op, Err(ManagerError::NoLeader)),
        }
        id
    }

    /// A user's change of a node: all of it, with a value of its own in the label.
    pub(super) fn update_node(
        &self,
        origin: usize,
        number: usize,
        value: String,
        role: Option<Role>,
    ) -> Option<Command> {
        let known = self.nodes[origin].manager.as_ref()?.state().nodes.get(&self.nodes[number].id)?;
        Some(Command::UpdateNode {
            node: known.id,
            version: known.version,
            role: role.unwrap_or(known.role),
            availability: Availability::Active,
            labels: BTreeMap::from([(REGISTER.to_owned(), value)]),
        })
    }

    /// What the next operation can write and be told from all others.
    pub(super) fn fresh_value(&self) -> String {
        (self.clients.next + 1).to_string()
    }

    /// Sends something from one manager to another, unless the way is cut.
    pub(super) fn call(&mut self, from: usize, to: usize, rpc: Rpc) {
        let delay = Duration::from_micros(self.rng.random_range(500..20_000));
        self.drawn += 1;
        let life = (self.nodes[from].life, self.nodes[to].life);
        self.calls.insert((self.now + delay, self.drawn), (from, to, life, rpc));
    }

    /// What is due between managers.
    pub(super) fn turn_calls(&mut self) {
        while let Some(entry) = self.calls.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let (from, to, life, rpc) = entry.remove();
            let alive = (self.nodes[from].life, self.nodes[to].life) == life;
            if alive && self.is_connected(from, to) {
                self.take_call(from, to, rpc);
            }
        }
        self.give_up();
    }

    fn take_call(&mut self, from: usize, to: usize, rpc: Rpc) {
        if let Rpc::Answer(op, answer) = rpc {
            return self.answered(op, answer);
        }
        if let Rpc::StateIs(snapshot) = rpc {
            return self.become_manager(to, *snapshot);
        }
        if let Rpc::Paper(paper) = rpc {
            return self.keep_paper(to, paper);
        }
        if !self.lets_in(from, to, &rpc) {
            return;
        }
        match rpc {
            Rpc::Renew => return self.hear_of_papers(to, from, None),
            Rpc::Certified(under) => return self.hear_of_papers(to, from, Some(under)),
            _ => {}
        }
        let certificate = certificate(self, from);
        let (now, wall) = (self.local(to), self.wall(to));
        let Some(manager) = self.nodes[to].manager.as_mut() else { return };
        let admitted = peers::judge(manager.state(), Some(certificate)).is_ok();
        match rpc {
            Rpc::Command(op, _) | Rpc::Read(op) if !admitted || manager.leading.is_none() => {
                self.call(to, from, Rpc::Answer(op, Err(ManagerError::NotLeader)));
            }
            Rpc::Command(op, command) => manager.replica.propose(*command, wall, Proposer::Op(op), now),
            Rpc::Read(op) => manager.replica.read(op, now),
            Rpc::State if admitted => {
                let leader = manager.leader_address();
                let snapshot = manager.replica.applied_snapshot().filter(|_| manager.leading.is_some());
                match (snapshot, leader.and_then(|leader| self.number_at(leader))) {
                    (Some(snapshot), _) => self.call(to, from, Rpc::StateIs(Box::new(snapshot))),
                    (None, Some(leader)) if leader != to => self.call(from, leader, Rpc::State),
                    _ => {}
                }
            }
            Rpc::State | Rpc::StateIs(_) | Rpc::Answer(..) | Rpc::Renew | Rpc::Certified(_) | Rpc::Paper(_) => {}
        }
        self.turn_manager(to);
    }

    /// The leader's word on a command.
    pub(super) fn told(&mut self, at: usize, op: OpRef, verdict: End) {
        let answer = verdict.map(|(reply, index)| (Some(reply), index));
        if op.origin == at { self.answered(op, answer) } else { self.call(at, op.origin, Rpc::Answer(op, answer)) }
    }

    /// The leader's word on a read.
    pub(super) fn told_read(&mut self, at: usize, op: OpRef, index: Option<u64>) {
        let answer = index.map(|index| (None, index)).ok_or(ManagerError::NoLeader);
        if op.origin == at { self.answered(op, answer) } else { self.call(at, op.origin, Rpc::Answer(op, answer)) }
    }

    fn answered(&mut self, op: OpRef, answer: Result<(Option<Reply>, u64), ManagerError>) {
        match answer {
            Ok((reply, index)) => {
                self.clients.applying.push((index, op, reply.unwrap_or(Reply::Done)));
                self.note_applied(op.origin);
            }
            Err(error) => self.finish(op, Err(error)),
        }
    }

    /// A manager has applied more.
    pub(super) fn note_applied(&mut self, number: usize) {
        let Some(index) = self.nodes[number].manager.as_ref().map(|manager| manager.state().index) else { return };
        let there = |(at, op, _): &mut (u64, OpRef, Reply)| op.origin == number && *at <= index;
        let done: Vec<_> = self.clients.applying.extract_if(.., there).collect();
        for (index, op, reply) in done {
            self.finish(op, Ok((reply, index)));
        }
    }

    fn give_up(&mut self) {
        let late = |(id, op): (&u64, &Op)| (op.deadline <= self.now).then_some(OpRef { id: *id, origin: op.origin });
        let late: Vec<OpRef> = self.clients.ops.iter().filter_map(late).collect();
        for op in late {
            self.finish(op, Err(ManagerError::LeadLost));
        }
    }

    fn finish(&mut self, at: OpRef, end: End) {
        self.clients.applying.retain(|(_, op, _)| *op != at);
        let Some(op) = self.clients.ops.remove(&at.id) else { return };
        let end = if op.life == self.nodes[op.origin].life { end } else { Err(ManagerError::LeadLost) };
        let checked = match (op.what, &end) {
            (What::Write { node, expected }, Ok((_, version))) => {
                self.check_write(&op, at.id, node, (expected, *version))
            }
            (What::Write { node, expected }, Err(ManagerError::Refused(Refusal::OutOfSequence))) => {
                self.check_refused(node, expected)
            }
            (What::Read { node }, Ok(_)) => self.check_read(&op, node),
            _ => Ok(()),
        };
        if let Err(text) = checked {
            self.oracle
                .fail(self.now, &format!("operation {} {:?} by way of node {}: {text}", at.id, op.what, op.origin));
        }
        self.oracle.note(self.now, format!("{} {:?}", at.id, end.as_ref().map(|(_, index)| *index).ok()).as_bytes());
        self.clients.ends.insert(at.id, end);
        self.answer_papers(at.id, at.origin);
    }

    fn check_write(&mut self, op: &Op, id: u64, node: NodeId, (expected, version): (u64, u64)) -> Result<(), String> {
        self.clients.acknowledged += 1;
        let Some((before, value)) = self.ledger.value(node, version) else {
            // The node was removed since.
            return if self.state().nodes.contains_key(&node) {
                Err(format!("version {version} is lost"))
            } else {
                Ok(())
            };
        };
        if value.value != id.to_string() || before != expected || version <= op.floor {
            return Err(format!("acknowledged as {version}: {value:?} after {before}, shown was {}", op.floor));
        }
        self.show(node, version);
        Ok(())
    }

    fn check_refused(&mut self, node: NodeId, expected: u64) -> Result<(), String> {
        self.clients.refused += 1;
        match self.ledger.newest(node) {
            Some(newest) if newest.version == expected => Err("out of sequence, though it is not".to_owned()),
            _ => Ok(()),
        }
    }

    /// What the origin shows now is the answer.
    fn check_read(&mut self, op: &Op, node: NodeId) -> Result<(), String> {
        self.clients.reads += 1;
        let state = self.nodes[op.origin].manager.as_ref().map(super::manager::Manager::state);
        let Some(known) = state.and_then(|state| state.nodes.get(&node)) else { return Ok(()) };
        let (version, label) = (known.version, known.labels.get(REGISTER).cloned().unwrap_or_default());
        match self.ledger.value(node, version) {
            Some((_, value)) if value.value == label && version >= op.floor => {}
            other => return Err(format!("reads {label:?} of {version}: {other:?}, shown was {}", op.floor)),
        }
        self.show(node, version);
        Ok(())
    }

    fn show(&mut self, node: NodeId, version: u64) {
        let shown = self.clients.shown.entry(node).or_default();
        *shown = version.max(*shown);
    }
}
