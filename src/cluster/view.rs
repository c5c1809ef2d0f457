//! What the dispatcher reads out of the state: pure functions, nothing kept.

use super::{State, Task};
use crate::types::{NetworkId, NodeId, TaskAssignment};
use std::collections::{BTreeMap, BTreeSet};

/// What a node has to be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The networks that have a task on it, each with all nodes that have a task on it (itself included).
    pub networks: BTreeMap<NetworkId, BTreeSet<NodeId>>,
    /// The other nodes it shares a network with.
    pub peers: BTreeSet<NodeId>,
}

impl State {
    /// The networks that have a task on the node: it gets their keys. A task counts until it is confirmed gone.
    pub fn networks_of(&self, node: NodeId) -> BTreeSet<NetworkId> {
        let _ = node;
        BTreeSet::new()
    }

    /// The nodes that have a task on the network.
    pub fn members(&self, network: NetworkId) -> BTreeSet<NodeId> {
        let _ = network;
        BTreeSet::new()
    }

    /// The tasks that the node is told to have, in the order of their ids.
    pub fn tasks_of(&self, node: NodeId) -> Vec<TaskAssignment> {
        let _ = node;
        Vec::new()
    }

    /// What the node has to be given.
    pub fn needs(&self, node: NodeId) -> Needs {
        let _ = node;
        Needs::default()
    }

    /// The task as its node is told to have it; `None` when it has no node or is gone.
    pub fn assignment(&self, task: &Task) -> Option<TaskAssignment> {
        let _ = task;
        None
    }
}
