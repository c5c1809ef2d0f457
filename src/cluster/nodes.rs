//! Commands on nodes.

use super::apply::{Outcome, done};
use super::limits::{
    FORMER_BOOTS, GONE_NODES, MANAGERS, NODES, check_hostname, check_labels, check_room, for_people, not_found,
};
use super::{Effect, GoneNode, Node, NodeState, Refusal, Reply, State};
use crate::types::{Availability, BootId, Generation, Key32, Machine, NodeAddresses, NodeId, Queues, Role, UnixTime};
use std::collections::BTreeMap;

/// Seconds of clock skew allowed between hosts: a certificate counts that much longer than it says.
const CLOCK_SKEW_SECS: u64 = 600;

/// The fields of `AddNode`.
pub(super) struct Admission<'a> {
    pub(super) id: NodeId,
    pub(super) role: Role,
    pub(super) hostname: &'a str,
    pub(super) software: &'a str,
    pub(super) addresses: &'a NodeAddresses,
    pub(super) availability: Availability,
    pub(super) certificate_expires: UnixTime,
    pub(super) root: [u8; 32],
}

/// The fields of `OpenSession`.
pub(super) struct Session<'a> {
    pub(super) node: NodeId,
    pub(super) boot: BootId,
    pub(super) hostname: &'a str,
    pub(super) software: &'a str,
    pub(super) addresses: &'a NodeAddresses,
    pub(super) machine: &'a Machine,
    pub(super) queues: Queues,
}

impl State {
    pub(super) fn add_node(&mut self, admission: Admission<'_>, at: UnixTime) -> Outcome {
        let Admission { id, role, hostname, software, addresses, availability, certificate_expires, root } = admission;
        if self.nodes.contains_key(&id) || self.gone.contains_key(&id) {
            return Err(Refusal::Conflict(format!("node with id {id} already exists")));
        }
        self.check_root(&root)?;
        check_room("nodes", self.nodes.len(), NODES)?;
        if role == Role::Manager {
            check_room("managers", self.manager_count(), MANAGERS)?;
        }
        check_hostname("hostname", hostname)?;
        check_hostname("version", software)?;
        let node = Node {
            id,
            hostname: hostname.to_owned(),
            software: software.to_owned(),
            role,
            seat: if role == Role::Manager { self.index } else { 0 },
            availability,
            labels: BTreeMap::new(),
            addresses: *addresses,
            machine: Machine::default(),
            state: NodeState::Unknown,
            message: "has not opened a session yet".to_owned(),
            boot: None,
            boot_index: 0,
            former_boots: Vec::new(),
            queues: Queues::ONE,
            publics: BTreeMap::new(),
            record_index: self.index,
            created_at: at,
            updated_at: at,
            version: self.index,
            certificate_expires,
            root,
        };
        self.nodes.insert(id, node);
        done()
    }

    /// The same boot may open again (its session broke); another one is newer, and the boots before it are over.
    pub(super) fn open_session(&mut self, session: Session<'_>, at: UnixTime) -> Outcome {
        let Session { node: id, boot, hostname, software, addresses, machine, queues } = session;
        check_hostname("hostname", hostname)?;
        check_hostname("version", software)?;
        // A node that does not know what its host is may say so.
        for (what, text) in [("operating system", &machine.os), ("architecture", &machine.architecture)] {
            if !text.is_empty() {
                check_hostname(what, text)?;
            }
        }
        let index = self.index;
        let node = self.nodes.get_mut(&id).ok_or_else(|| not_found("node", id))?;
        if node.former_boots.contains(&boot) {
            let text = format!("boot {boot} of node {id} is over: a newer one has opened a session");
            return Err(Refusal::Forbidden(text));
        }
        let restarted = node.boot != Some(boot);
        if restarted {
            begin_boot(node, boot, index);
            node.queues = queues;
        } else if node.queues != queues {
            let text = format!("boot {boot} of node {id} sends with {} queues, not {queues}", node.queues);
            return Err(Refusal::Invalid(text));
        }
        if restarted || node.addresses != *addresses {
            node.record_index = index;
        }
        node.addresses = *addresses;
        node.hostname = hostname.to_owned();
        node.software = software.to_owned();
        node.machine = machine.clone();
        node.state = NodeState::Ready;
        node.message = String::new();
        node.updated_at = at;
        let boot_index = node.boot_index;
        if restarted {
            // What the former boot had made ready and sent with died with it.
            self.forget_progress(id);
            self.fail_started_tasks(id, at);
        }
        Ok((Reply::BootIndex(boot_index), Vec::new()))
    }

    pub(super) fn set_node_state(&mut self, id: NodeId, state: NodeState, message: &str, at: UnixTime) -> Outcome {
        let node = self.nodes.get_mut(&id).ok_or_else(|| not_found("node", id))?;
        if state == NodeState::Ready && node.boot.is_none() {
            return Err(Refusal::Invalid(format!("node {id} has not opened a session yet")));
        }
        let message = for_people(message);
        if node.state != state || node.message != message {
            node.state = state;
            node.message = message;
            node.updated_at = at;
        }
        done()
    }

    pub(super) fn update_node(
        &mut self,
        id: NodeId,
        version: u64,
        (role, availability): (Role, Availability),
        labels: &BTreeMap<String, String>,
        at: UnixTime,
    ) -> Outcome {
        check_labels("labels", labels)?;
        let managers = self.manager_count();
        let node = self.nodes.get_mut(&id).ok_or_else(|| not_found("node", id))?;
        if node.version != version {
            return Err(Refusal::OutOfSequence);
        }
        match (node.role, role) {
            (Role::Manager, Role::Worker) if managers == 1 => {
                return Err(Refusal::Invalid("attempting to demote the last manager of the swarm".into()));
            }
            (Role::Worker, Role::Manager) => {
                check_room("managers", managers, MANAGERS)?;
                node.seat = self.index;
            }
            (Role::Manager, Role::Worker) => node.seat = 0,
            _ => {}
        }
        node.role = role;
        node.availability = availability;
        node.labels = labels.clone();
        node.updated_at = at;
        node.version = self.index;
        done()
    }

    pub(super) fn set_certificate_expiry(&mut self, id: NodeId, expires: UnixTime, root: [u8; 32]) -> Outcome {
        self.check_root(&root)?;
        let node = self.nodes.get_mut(&id).ok_or_else(|| not_found("node", id))?;
        node.certificate_expires = expires;
        done()
    }

    pub(super) fn set_certificate_root(&mut self, id: NodeId, root: [u8; 32]) -> Outcome {
        self.check_root(&root)?;
        self.nodes.get_mut(&id).ok_or_else(|| not_found("node", id))?.root = root;
        done()
    }

    /// Forgets a node, its tasks and their addresses, and shuts it out of all keys to come.
    pub(super) fn remove_node(&mut self, id: NodeId, force: bool, master: &Key32, at: UnixTime) -> Outcome {
        let node = self.nodes.get(&id).ok_or_else(|| not_found("node", id))?;
        if node.role == Role::Manager && self.manager_count() == 1 {
            return Err(Refusal::Invalid(format!("node {id} is the last manager of the swarm and can't be removed")));
        }
        if self.is_manager(node) {
            let text = format!(
                "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
            );
            return Err(Refusal::Invalid(text));
        }
        if node.state == NodeState::Ready && !force {
            return Err(Refusal::Invalid(format!("node {id} is not down and can't be removed")));
        }
        let until = UnixTime(node.certificate_expires.0.saturating_add(CLOCK_SKEW_SECS));
        // The last step that may be refused.
        let fresh = self.fresh_epoch(master, at, Some(id))?;
        self.nodes.remove(&id);
        self.drop_tasks_of(id);
        self.note_gone(id, until);
        let mut effects = vec![Effect::EndSession(id)];
        if self.shut_out(Some(id), fresh, at) {
            effects.push(Effect::Compact);
        }
        Ok((Reply::Done, effects))
    }

    /// Whether the node is a manager, or still takes part in their consensus after its demotion.
    pub fn is_manager(&self, node: &Node) -> bool {
        node.role == Role::Manager || self.managers.contains_key(&node.id)
    }

    fn manager_count(&self) -> usize {
        self.nodes.values().filter(|node| node.role == Role::Manager).count()
    }

    fn note_gone(&mut self, id: NodeId, until: UnixTime) {
        if self.gone.len() >= GONE_NODES {
            let oldest = self.gone.iter().min_by_key(|(_, note)| note.generation).map(|(id, _)| *id);
            oldest.and_then(|oldest| self.gone.remove(&oldest));
        }
        let generation = Generation { fork: self.cluster.fork, index: self.index };
        self.gone.insert(id, GoneNode { generation, until });
    }

    /// Drops the notes on removed nodes whose certificates have expired.
    pub(super) fn forget_gone(&mut self, at: UnixTime) {
        self.gone.retain(|_, note| note.until >= at);
    }
}

impl Node {
    /// What a former boot said may arrive after the present one has begun: it is not counted for it.
    pub(super) fn check_boot(&self, boot: BootId) -> Result<(), Refusal> {
        if self.boot == Some(boot) {
            return Ok(());
        }
        Err(Refusal::Forbidden(format!("boot {boot} is not the newest of node {}", self.id)))
    }
}

fn begin_boot(node: &mut Node, boot: BootId, index: u64) {
    if let Some(former) = node.boot.replace(boot) {
        if node.former_boots.len() >= FORMER_BOOTS {
            node.former_boots.remove(0);
        }
        node.former_boots.push(former);
    }
    node.boot_index = index;
    node.publics.clear();
}
