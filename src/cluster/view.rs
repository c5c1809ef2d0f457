//! What the dispatcher reads out of the state: pure functions, nothing kept.
//!
//! A task counts on its node from its placement until its node confirms that it is gone: so long the node may hold
//! the keys of its networks.

use super::{Node, State, Task};
use crate::types::{NetworkId, NodeId, TaskAssignment};
use crate::wire::control::ManagerView;
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
    /// The networks that have a task on the node: it gets their keys.
    pub fn networks_of(&self, node: NodeId) -> BTreeSet<NetworkId> {
        let tasks = self.tasks.values().filter(|task| task.node == Some(node));
        tasks.flat_map(|task| &task.attachments).map(|attachment| attachment.network).collect()
    }

    /// The managers: one that is coming is listed already, one that is demoted until the consensus goes on without it,
    /// and so long in its seat.
    pub fn manager_views(&self) -> Vec<ManagerView> {
        let seat = |node: &Node| self.managers.get(&node.id).map_or(node.seat, |manager| manager.seat);
        let view = |node: &Node| ManagerView { node: node.id, seat: seat(node), address: node.addresses.control };
        self.nodes.values().filter(|node| self.is_manager(node)).map(view).collect()
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
        let service_name = || self.services.get(&task.service).map(|service| service.spec.name.clone());
        Some(TaskAssignment {
            id: task.id,
            service: task.service,
            service_name: task.standalone.clone().or_else(service_name).unwrap_or_default(),
            slot: task.slot,
            node,
            container: task.container.clone(),
            attachments: task.attachments.clone(),
            desired: task.desired,
            standalone: task.standalone.is_some(),
        })
    }
}
