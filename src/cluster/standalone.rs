//! What a node puts on an attachable network by itself: a container of `run`, or a namespace of its operator.
//!
//! It is a task that belongs to no service (what stands for its service is its own id, which no service may have). Its node asks for it and keeps what runs there to itself; the managers give
//! it its address, and its node the keys of the network, as for every task. Nobody replaces it, and nothing is kept of
//! it once its node says that it is gone.

use super::apply::{Outcome, done};
use super::limits::{ALIASES, NAME_BYTES, STANDALONE_PER_NODE, TASKS, check_room, not_found};
use super::tasks::{ASSIGNED, free_address, status};
use super::{Network, Refusal, State, Task};
use crate::types::{
    AttachRequest, Attachment, BootId, ContainerSpec, Generation, NodeId, Resources, Restarts, ServiceId, TaskId,
    TaskState, UnixTime, unmanaged_text,
};

/// Bytes of the words for what runs there: an image's name, or a namespace's.
const IMAGE_BYTES: usize = 256;
/// Bytes of all further names together: they have to fit in the endpoint's record.
const ALIAS_BYTES: usize = 512;

impl State {
    pub(super) fn attach(
        &mut self,
        node: NodeId,
        boot: BootId,
        id: TaskId,
        request: &AttachRequest,
        at: UnixTime,
    ) -> Outcome {
        let Some(attachment) = self.may_attach(node, boot, id, request)? else { return done() };
        if let Some(network) = self.networks.get_mut(&request.network) {
            network.take(attachment.address.addr(), id);
        }
        let container = ContainerSpec { image: request.image.clone(), ..ContainerSpec::default() };
        let task = Task {
            id,
            service: ServiceId(id.0),
            standalone: Some(request.name.clone()),
            slot: 0,
            bound_to: Some(node),
            node: Some(node),
            container,
            template: 0,
            restarts: Restarts::default(),
            reservations: Resources::default(),
            attachments: vec![attachment],
            desired: TaskState::Running,
            status: status(TaskState::Assigned, ASSIGNED, "", at),
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

    /// The address that it would get; `None` if it is there already. Asked before it is proposed, so that what is refused
    /// is not in the log, and again when it counts.
    pub(crate) fn may_attach(
        &self,
        node: NodeId,
        boot: BootId,
        id: TaskId,
        request: &AttachRequest,
    ) -> Result<Option<Attachment>, Refusal> {
        self.nodes.get(&node).ok_or_else(|| not_found("node", node))?.check_boot(boot)?;
        if let Some(known) = self.tasks.get(&id) {
            let own = known.standalone.is_some() && known.node == Some(node);
            return if own { Ok(None) } else { Err(Refusal::Conflict(format!("task with id {id} already exists"))) };
        }
        if self.services.contains_key(&ServiceId(id.0)) {
            return Err(Refusal::Conflict(format!("{id} is the id of a service")));
        }
        check_request(request)?;
        let of_node = |task: &&Task| task.standalone.is_some() && task.node == Some(node);
        check_room("attached containers on a node", self.tasks.values().filter(of_node).count(), STANDALONE_PER_NODE)?;
        check_room(
            "tasks",
            self.tasks.values().filter(|task| !task.gone).count(),
            usize::try_from(TASKS).unwrap_or(usize::MAX),
        )?;
        let network = self.networks.get(&request.network).ok_or_else(|| not_found("network", request.network))?;
        attachment(network, request, Generation { fork: self.cluster.fork, index: self.index }).map(Some)
    }

    /// What people know it by: its own name and its node's.
    pub(super) fn attached_name(&self, id: TaskId) -> Option<String> {
        let task = self.tasks.get(&id)?;
        let (name, node) = (task.standalone.as_ref()?, self.nodes.get(&task.node?)?);
        Some(format!("{name} on node {}", node.hostname))
    }
}

fn check_request(request: &AttachRequest) -> Result<(), Refusal> {
    let AttachRequest { name, image, aliases, .. } = request;
    let word = |text: &str, most: usize| !text.is_empty() && text.len() <= most && !text.chars().any(char::is_control);
    if !word(name, NAME_BYTES) {
        return Err(Refusal::Invalid(format!("a name must have 1 to {NAME_BYTES} printable bytes")));
    }
    if !word(image, IMAGE_BYTES) {
        return Err(Refusal::Invalid(format!("an image must have 1 to {IMAGE_BYTES} printable bytes")));
    }
    if aliases.len() > ALIASES || !aliases.iter().all(|alias| word(alias, NAME_BYTES)) {
        return Err(Refusal::Invalid(format!("at most {ALIASES} aliases of 1 to {NAME_BYTES} bytes are allowed")));
    }
    if aliases.iter().map(String::len).sum::<usize>() > ALIAS_BYTES {
        return Err(Refusal::Invalid(format!("the aliases have more than {ALIAS_BYTES} bytes")));
    }
    Ok(())
}

/// The address it gets, if it may be there at all.
fn attachment(network: &Network, request: &AttachRequest, generation: Generation) -> Result<Attachment, Refusal> {
    if !network.spec.attachable {
        return Err(Refusal::Forbidden(unmanaged_text(&network.spec.name)));
    }
    let address = match request.address {
        Some(address) => network.wanted_address(address)?,
        None => free_address(network)?,
    };
    Ok(Attachment { network: network.id, address, aliases: request.aliases.clone(), generation })
}
