//! Commands on tasks, and what other commands do to them.
//!
//! The life of a task: created in a place (`New`), placed on a node with its addresses (`Assigned`), moved forward by
//! its node's reports, ended by itself or because it was told to, confirmed gone by its node. Only then its addresses
//! are free; what is left is history, or nothing when it was to be removed.

use super::apply::{Outcome, done};
use super::limits::{FREED_ENDPOINTS, REPORT_STATUSES, for_people, not_found};
use super::{Freed, Network, Refusal, Service, State, Task, suit};
use crate::types::{
    Attachment, BootId, EndpointKey, EpochPhase, Generation, NodeId, Restarts, ServiceId, ServiceMode, ServiceSpec,
    TaskId, TaskState, TaskStatus, UnixTime, task_name,
};
use ipnet::IpNet;
use std::net::IpAddr;

/// The texts of Docker's scheduler.
const CREATED: &str = "created";
const PENDING: &str = "pending task scheduling";
pub(super) const ASSIGNED: &str = "scheduler assigned task to node";

impl State {
    pub(super) fn create_task(
        &mut self,
        id: TaskId,
        service: ServiceId,
        slot: u64,
        bound_to: Option<NodeId>,
        at: UnixTime,
    ) -> Outcome {
        let wanted = self.services.get(&service).filter(|service| !service.removing);
        let wanted = wanted.ok_or_else(|| not_found("service", service))?;
        let spec = &wanted.spec;
        self.check_place(spec, slot, bound_to)?;
        if self.tasks.contains_key(&id) {
            return Err(Refusal::Conflict(format!("task with id {id} already exists")));
        }
        let same_place = |task: &Task| task.service == service && (task.slot, task.bound_to) == (slot, bound_to);
        if self.tasks.values().any(|task| same_place(task) && task.is_live()) {
            let name = task_name(&spec.name, slot, bound_to);
            return Err(Refusal::Conflict(format!("there is a live task {name} already")));
        }
        let restarts = self.restarts(wanted, (slot, bound_to), at);
        let task = Task {
            id,
            service,
            standalone: None,
            slot,
            bound_to,
            node: None,
            container: spec.container.clone(),
            template: wanted.template,
            restarts,
            reservations: spec.reservations,
            attachments: Vec::new(),
            desired: TaskState::Running,
            status: status(TaskState::New, CREATED, "", at),
            running_since: None,
            gone: false,
            created_at: at,
            created_index: self.index,
            updated_at: at,
            version: self.index,
        };
        self.tasks.insert(id, task);
        done()
    }

    /// Gives the task its node and one address of each of its networks: all of them or none.
    pub(super) fn place_task(&mut self, id: TaskId, node: NodeId, at: UnixTime) -> Outcome {
        let (task, service) = self.unplaced(id)?;
        if task.template != service.template {
            return Err(Refusal::Conflict(format!("task {id} is not up to date")));
        }
        let host = self.nodes.get(&node).ok_or_else(|| not_found("node", node))?;
        if task.bound_to.is_some_and(|bound_to| bound_to != node) {
            return Err(Refusal::Conflict(format!("task {id} is for another node than {node}")));
        }
        if let Some(reason) = suit::unfit(host, &service.spec, self.used(node, service.id)) {
            return Err(Refusal::NotNow(suit::explain([reason].into_iter())));
        }
        let generation = Generation { fork: self.cluster.fork, index: self.index };
        let mut attachments = Vec::with_capacity(service.spec.networks.len());
        for (id, aliases) in &service.spec.networks {
            let network = self.networks.get(id).ok_or_else(|| not_found("network", id))?;
            let address = free_address(network)?;
            attachments.push(Attachment { network: *id, address, aliases: aliases.clone(), generation });
        }
        let id = task.id;
        for Attachment { network, address, .. } in &attachments {
            if let Some(network) = self.networks.get_mut(network) {
                network.take(address.addr(), id);
            }
        }
        self.change_task(id, at, |task| {
            task.node = Some(node);
            task.attachments = attachments;
            task.status = status(TaskState::Assigned, ASSIGNED, "", at);
        });
        done()
    }

    pub(super) fn set_pending(&mut self, id: TaskId, reason: &str, at: UnixTime) -> Outcome {
        self.unplaced(id)?;
        self.change_task(id, at, |task| task.status = status(TaskState::Pending, PENDING, &for_people(reason), at));
        done()
    }

    pub(super) fn shut_down_task(&mut self, id: TaskId, remove: bool, at: UnixTime) -> Outcome {
        let task = self.tasks.get(&id).ok_or_else(|| not_found("task", id))?;
        let service = task.service;
        if remove {
            self.tell_to_go(id, at);
            self.end_service(service);
        } else if task.desired < TaskState::Shutdown {
            let placed = task.node.is_some();
            self.change_task(id, at, |task| {
                task.desired = TaskState::Shutdown;
                if !placed {
                    task.status = status(TaskState::Shutdown, "never placed", "", at);
                    task.gone = true;
                }
            });
        }
        done()
    }

    /// Takes over what a node says about its tasks. States only move forward; tasks that are not known any more are
    /// passed over, for the node may not have heard yet; a task of another node refuses the whole report.
    pub(super) fn report_tasks(
        &mut self,
        node: NodeId,
        boot: BootId,
        statuses: &[(TaskId, TaskStatus)],
        at: UnixTime,
    ) -> Outcome {
        self.nodes.get(&node).ok_or_else(|| not_found("node", node))?.check_boot(boot)?;
        if statuses.len() > REPORT_STATUSES {
            return Err(Refusal::Invalid(format!("a report of more than {REPORT_STATUSES} tasks")));
        }
        let foreign = |id: &TaskId| self.tasks.get(id).is_some_and(|task| task.node != Some(node));
        if let Some((id, _)) = statuses.iter().find(|(id, _)| foreign(id)) {
            return Err(Refusal::Forbidden(format!("task {id} is not on node {node}")));
        }
        for (id, said) in statuses {
            let Some(new) = self.tasks.get(id).and_then(|task| moved_forward(task, said, at)) else { continue };
            let mut ended = false;
            self.change_task(*id, at, |task| {
                // An ended task is not to be started again by a node that restarts and finds it among its tasks.
                ended = new.state.is_terminal() && task.desired == TaskState::Running;
                if ended {
                    task.desired = TaskState::Shutdown;
                }
                if new.state == TaskState::Running {
                    task.running_since.get_or_insert(at);
                }
                task.status = new;
            });
            if ended {
                self.note_ended(*id, at);
            }
        }
        done()
    }

    /// Frees the task's addresses. Repeated or late confirmations change nothing.
    pub(super) fn confirm_task_gone(&mut self, node: NodeId, boot: BootId, id: TaskId, at: UnixTime) -> Outcome {
        let Some(task) = self.tasks.get(&id) else { return done() };
        self.nodes.get(&node).ok_or_else(|| not_found("node", node))?.check_boot(boot)?;
        if task.node != Some(node) {
            return Err(Refusal::Forbidden(format!("task {id} is not on node {node}")));
        }
        // Nobody looks at what is left of a task without a service.
        let remove = task.desired == TaskState::Remove || task.standalone.is_some();
        let service = task.service;
        if remove {
            self.forget_task(id);
            self.end_service(service);
        } else if !task.gone {
            self.free_addresses(id);
            self.change_task(id, at, |task| {
                end(task, "its node lost it", at);
                task.desired = TaskState::Shutdown;
                task.gone = true;
            });
        }
        done()
    }

    /// The tasks that a node had started when a new boot of it opens its session died with the former one. They are
    /// told to stop, so that the new boot clears what may be left and does not start them again.
    pub(super) fn fail_started_tasks(&mut self, node: NodeId, at: UnixTime) {
        let started = |task: &&Task| {
            task.node == Some(node) && task.status.state > TaskState::Assigned && !task.status.state.is_terminal()
        };
        let ids: Vec<TaskId> = self.tasks.values().filter(started).map(|task| task.id).collect();
        for id in ids {
            self.change_task(id, at, |task| {
                end(task, "the daemon of its node restarted", at);
                task.desired = task.desired.max(TaskState::Shutdown);
            });
        }
    }

    /// Forgets all tasks of a removed node and frees their addresses.
    pub(super) fn drop_tasks_of(&mut self, node: NodeId) {
        let of_node = |task: &&Task| task.node == Some(node) || task.bound_to == Some(node);
        let ids: Vec<(TaskId, ServiceId)> =
            self.tasks.values().filter(of_node).map(|task| (task.id, task.service)).collect();
        for (id, service) in ids {
            self.forget_task(id);
            self.end_service(service);
        }
    }

    /// Tells a task to go; one that no node has any more, or had ever, is forgotten at once.
    pub(super) fn tell_to_go(&mut self, id: TaskId, at: UnixTime) {
        match self.tasks.get(&id) {
            Some(task) if task.gone || task.node.is_none() => self.forget_task(id),
            Some(task) if task.desired != TaskState::Remove => {
                self.change_task(id, at, |task| task.desired = TaskState::Remove);
            }
            _ => {}
        }
    }

    fn forget_task(&mut self, id: TaskId) {
        self.free_addresses(id);
        self.tasks.remove(&id);
    }

    fn free_addresses(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let (node, epoch) = (task.node, self.ring.phase(EpochPhase::Current).map(|current| current.epoch));
        for Attachment { network, address, generation, .. } in task.attachments.drain(..) {
            if let Some(network) = self.networks.get_mut(&network) {
                network.addresses.remove(&address.addr());
            }
            if let (Some(node), Some(epoch)) = (node, epoch) {
                let freed = Freed { node, address: address.addr(), epoch };
                self.freed.insert((generation, EndpointKey { network, task: id }), freed);
            }
        }
        while self.freed.len() > FREED_ENDPOINTS {
            self.freed.pop_first();
        }
    }

    fn change_task(&mut self, id: TaskId, at: UnixTime, change: impl FnOnce(&mut Task)) {
        if let Some(task) = self.tasks.get_mut(&id) {
            change(task);
            task.updated_at = at;
            task.version = self.index;
        }
    }

    /// A task that waits for a node, and its service.
    fn unplaced(&self, id: TaskId) -> Result<(&Task, &Service), Refusal> {
        let task = self.tasks.get(&id).ok_or_else(|| not_found("task", id))?;
        if task.node.is_some() || !task.is_live() {
            return Err(Refusal::Conflict(format!("task {id} does not wait for a node")));
        }
        let service = self.services.get(&task.service).ok_or_else(|| not_found("service", task.service))?;
        Ok((task, service))
    }

    /// How often the task of a place was replaced, the one that is to come now included.
    fn restarts(&self, service: &Service, place: (u64, Option<NodeId>), at: UnixTime) -> Restarts {
        let of_place = |task: &&Task| task.service == service.id && (task.slot, task.bound_to) == place;
        let newest = self.tasks.values().filter(of_place).max_by_key(|task| task.created_index);
        match newest.filter(|task| task.template == service.template) {
            Some(task) if task.ended_by_itself() => task.restarts.and_one(&service.spec.renewal.restart, at),
            Some(task) => task.restarts.clone(),
            None => Restarts::default(),
        }
    }

    /// A replicated service has slots, a global one the nodes.
    fn check_place(&self, spec: &ServiceSpec, slot: u64, bound_to: Option<NodeId>) -> Result<(), Refusal> {
        match (spec.mode, bound_to) {
            (ServiceMode::Replicated { replicas }, None) if (1..=replicas).contains(&slot) => Ok(()),
            (ServiceMode::Global, Some(node)) if slot == 0 => {
                self.nodes.get(&node).map(|_| ()).ok_or_else(|| not_found("node", node))
            }
            _ => Err(Refusal::Invalid(format!("service {} has no slot {slot}", spec.name))),
        }
    }
}

pub(super) fn free_address(network: &Network) -> Result<IpNet, Refusal> {
    let free: Option<IpAddr> = network.next_free();
    let net = free.and_then(|address| IpNet::new(address, network.subnet.prefix_len()).ok());
    net.ok_or_else(|| Refusal::NotNow(network.full_text()))
}

/// Ends a task that has not ended yet: `Shutdown` when it was told to, otherwise `Failed` with the error.
fn end(task: &mut Task, error: &str, at: UnixTime) {
    if task.status.state.is_terminal() {
        return;
    }
    task.status = if task.desired == TaskState::Running {
        status(TaskState::Failed, "ended", error, at)
    } else {
        status(TaskState::Shutdown, "shutdown", "", at)
    };
}

/// The new status when the node's word moves the task forward or adds something, with the managers' time: a node's
/// clock counts for nothing.
fn moved_forward(task: &Task, said: &TaskStatus, at: UnixTime) -> Option<TaskStatus> {
    let sayable = TaskState::Accepted..=TaskState::Rejected;
    let old = &task.status;
    if task.gone || old.state.is_terminal() || said.state < old.state || !sayable.contains(&said.state) {
        return None;
    }
    let new = TaskStatus {
        state: said.state,
        message: for_people(&said.message),
        error: for_people(&said.error),
        exit_code: said.exit_code,
        pid: said.pid,
        at: old.at,
    };
    (new != *old).then_some(TaskStatus { at, ..new })
}

pub(super) fn status(state: TaskState, message: &str, error: &str, at: UnixTime) -> TaskStatus {
    TaskStatus { state, message: message.to_owned(), error: error.to_owned(), exit_code: None, pid: None, at }
}
