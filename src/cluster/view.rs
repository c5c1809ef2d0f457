//! What the dispatcher reads out of the state: pure functions, nothing kept.
//!
//! A task counts on its node from its placement until its node confirms that it is gone: so long the node may hold
//! the keys of its networks.

use super::{State, Task};
use crate::types::{NetworkId, NodeId, TaskAssignment};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What a node has to be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// The networks that have a task on it, each with all nodes that have a task on it (itself included).
    pub networks: BTreeMap<NetworkId, BTreeSet<NodeId>>,
    /// The other nodes it shares a network with.
    pub peers: BTreeSet<NodeId>,
}

impl State {
    /// The networks that have a task on the node: it gets their keys.
    pub fn networks_of(&self, node: NodeId) -> BTreeSet<NetworkId> {
        let tasks = self.tasks.values().filter(|task| task.node == Some(node));
        tasks.flat_map(|task| &task.attachments).map(|attachment| attachment.network).collect()
    }

    /// The managers and their control ports: one that is coming is listed already, one that is demoted until the
    /// consensus goes on without it.
    pub fn manager_addresses(&self) -> Vec<(NodeId, SocketAddr)> {
        let managers = self.nodes.values().filter(|node| self.is_manager(node));
        managers.map(|node| (node.id, node.addresses.control)).collect()
    }

    /// The nodes that have a task on the network.
    pub fn members(&self, network: NetworkId) -> BTreeSet<NodeId> {
        let owners = self.networks.get(&network).into_iter().flat_map(|network| network.addresses.values());
        owners.filter_map(|task| self.tasks.get(task)?.node).collect()
    }

    /// The tasks that the node is told to have, in the order of their ids.
    pub fn tasks_of(&self, node: NodeId) -> Vec<TaskAssignment> {
        let tasks = self.tasks.values().filter(|task| task.node == Some(node));
        tasks.filter_map(|task| self.assignment(task)).collect()
    }

    /// What the node has to be given.
    pub fn needs(&self, node: NodeId) -> Needs {
        let networks: BTreeMap<NetworkId, BTreeSet<NodeId>> =
            self.networks_of(node).into_iter().map(|network| (network, self.members(network))).collect();
        let peers = networks.values().flatten().copied().filter(|peer| *peer != node).collect();
        Needs { networks, peers }
    }

    /// The task as its node is told to have it; `None` when it has no node or is gone.
    pub fn assignment(&self, task: &Task) -> Option<TaskAssignment> {
        let node = task.node.filter(|_| !task.gone)?;
        let service_name = self.services.get(&task.service).map(|service| service.spec.name.clone());
        Some(TaskAssignment {
            id: task.id,
            service: task.service,
            service_name: service_name.unwrap_or_default(),
            slot: task.slot,
            node,
            container: task.container.clone(),
            attachments: task.attachments.clone(),
            desired: task.desired,
        })
    }
}
