//! What the managers have committed, seen from outside: one log, one leader a term, and the state that follows. The
//! oracle's truth: whatever a manager or a reader sees has to agree with it.

use super::rotation::Rotations;
use crate::cluster::{Entry as Command, State};
use crate::crypto;
use crate::manager::members;
use crate::raft::{Body, Entry, Member};
use crate::types::{NodeId, TaskId, TaskState, Time};
use std::collections::BTreeMap;

/// The label that the simulated users write.
pub(super) const REGISTER: &str = "register";

/// A value of a node's label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    /// Log index of the write.
    pub(super) version: u64,
    pub(super) value: String,
}

/// See the module.
pub(super) struct Ledger {
    /// The state after all that is committed.
    pub(super) truth: State,
    digests: BTreeMap<u64, [u8; 32]>,
    leaders: BTreeMap<u64, Member>,
    /// All values that each node's label had.
    values: BTreeMap<NodeId, Vec<Value>>,
    /// Since when tasks run by their nodes' word.
    running: BTreeMap<TaskId, Time>,
    pub(super) rotations: Rotations,
}

impl Ledger {
    pub(super) fn new(truth: State, now: Time) -> Ledger {
        let rotations = Rotations::new(&truth, now);
        let mut ledger = Ledger {
            truth,
            digests: BTreeMap::new(),
            leaders: BTreeMap::new(),
            values: BTreeMap::new(),
            running: BTreeMap::new(),
            rotations,
        };
        ledger.note_values();
        ledger
    }

    /// A manager leads a term.
    pub(super) fn lead(&mut self, term: u64, member: Member) -> Result<(), String> {
        let first = *self.leaders.entry(term).or_insert(member);
        if first == member { Ok(()) } else { Err(format!("{member:?} leads term {term}, and so does {first:?}")) }
    }

    /// The terms that had a leader.
    pub(super) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// A manager has applied an entry. Tells whether it is news.
    pub(super) fn commit(&mut self, entry: &Entry, now: Time) -> Result<bool, String> {
        let index = entry.position.index;
        let bytes = postcard::to_stdvec(entry).map_err(|error| error.to_string())?;
        let digest = crypto::sha256(&[&bytes]);
        if let Some(known) = self.digests.get(&index) {
            let same = *known == digest;
            return if same { Ok(false) } else { Err(format!("two entries are committed at {:?}", entry.position)) };
        }
        if index != self.truth.index + 1 {
            return Err(format!("{:?} is applied after {}", entry.position, self.truth.index));
        }
        self.digests.insert(index, digest);
        let before = self.rotations.before(&self.truth);
        match &entry.body {
            Body::Term => self.truth.pass(),
            Body::Members(membership) => self.truth.set_managers(members::seats(membership)),
            Body::Command(payload) => {
                let command: Command = postcard::from_bytes(payload.bytes()).map_err(|error| error.to_string())?;
                // A refused one is committed as well: it changes nothing.
                let _ = self.truth.apply(&command);
            }
        }
        self.note_values();
        self.note_tasks(now);
        self.rotations.after(before, &self.truth, now)?;
        Ok(true)
    }

    fn note_values(&mut self) {
        for node in self.truth.nodes.values() {
            let values = self.values.entry(node.id).or_default();
            if values.last().is_none_or(|last| last.version != node.version) {
                let value = node.labels.get(REGISTER).cloned().unwrap_or_default();
                values.push(Value { version: node.version, value });
            }
        }
    }

    fn note_tasks(&mut self, now: Time) {
        let tasks = &self.truth.tasks;
        self.running.retain(|id, _| tasks.contains_key(id));
        for task in tasks.values().filter(|task| task.is_live() && task.status.state == TaskState::Running) {
            self.running.entry(task.id).or_insert(now);
        }
    }

    /// Since when a task runs by its node's word.
    pub(super) fn running_since(&self, task: TaskId) -> Option<Time> {
        self.running.get(&task).copied()
    }

    /// The newest value of a node's label.
    pub(super) fn newest(&self, node: NodeId) -> Option<&Value> {
        self.values.get(&node)?.last()
    }

    /// The value with this version, and the version before it.
    pub(super) fn value(&self, node: NodeId, version: u64) -> Option<(u64, &Value)> {
        let values = self.values.get(&node)?;
        let at = values.iter().position(|value| value.version == version)?;
        let before = at.checked_sub(1).and_then(|before| values.get(before)).map_or(0, |before| before.version);
        Some((before, values.get(at)?))
    }
}
