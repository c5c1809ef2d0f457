//! What this node puts on attachable networks by itself, beside the tasks of services: namespaces that its operator
//! made. The managers give each its address.
//!
//! They end with this boot, or when the namespace is deleted, and are put back by the next boot, or when there is a
//! namespace of that name again: which they are is kept on disk.

use super::engine::{Engine, Outcome, Request};
use super::membership::StoredAttachment;
use super::model::{AttachedNamespace, NodeError};
use super::node::Node;
use super::runtime::Runtime;
use super::session::within;
use super::spawn::spawn;
use crate::helper::verbs::NamespaceName;
use crate::sys;
use crate::types::{AttachRequest, NetworkId, TaskAssignment, TaskId, TaskState};
use crate::wire::control::FromAgent;
use smol::channel::{Sender, bounded};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Of one node: as many as the managers admit.
const MAX_STANDALONE: usize = 1024;
/// How long the managers may take to give an address, and the helper to make what gets it.
const ATTACH_TIME: Duration = Duration::from_secs(30);
/// How long the removal of its device may take.
const END_TIME: Duration = Duration::from_secs(20);
/// Pause before a namespace that could not be put back is tried again: whoever makes it may be late.
const RESTORE_RETRY: Duration = Duration::from_secs(5);
/// That pause at most: it doubles while the namespace is there and is refused.
const RESTORE_RETRY_MOST: Duration = Duration::from_secs(320);
/// How often it is looked whether something that is waited for has come.
const LOOK: Duration = Duration::from_millis(50);
/// How often it is looked whether a namespace is still there.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How the managers' refusal of an address begins that somebody else has.
const ADDRESS_IN_USE: &str = "Address already in use";

/// One of them, from the moment it was asked for until nothing is left of it.
pub(super) struct Standalone {
    pub(super) request: AttachRequest,
    /// The namespace that gets the address.
    pub(super) namespace: NamespaceName,
    /// Told once whether it is there.
    ready: Sender<Result<TaskAssignment, NodeError>>,
}

impl Standalone {
    fn answer(&self, answer: Result<TaskAssignment, NodeError>) {
        // Full: it was told already; closed: nobody waits any more.
        let _ = self.ready.try_send(answer);
    }
}

/// The part of the loop that is about them.
impl Engine {
    pub(super) fn attach(&mut self, id: TaskId, wanted: Standalone) {
        if !self.link.up {
            let text = "there is no session with the managers now, which give the addresses";
            return wanted.answer(Err(NodeError::Unavailable(text.into())));
        }
        if self.standalone.len() >= MAX_STANDALONE {
            return wanted.answer(Err(NodeError::Unavailable(format!("this node has {MAX_STANDALONE} already"))));
        }
        self.tell(FromAgent::Attach { id, request: wanted.request.clone() });
        self.standalone.insert(id, wanted);
    }

    /// Asks again for what a broken session may not have brought to the managers.
    pub(super) fn attach_again(&mut self) {
        let waiting = self.standalone.iter().filter(|(id, _)| !self.tasks.knows(**id));
        let messages: Vec<FromAgent> =
            waiting.map(|(&id, wanted)| FromAgent::Attach { id, request: wanted.request.clone() }).collect();
        messages.into_iter().for_each(|message| self.tell(message));
    }

    pub(super) fn attach_refused(&mut self, id: TaskId, reason: String) {
        if !self.tasks.knows(id)
            && let Some(wanted) = self.standalone.remove(&id)
        {
            wanted.answer(Err(NodeError::Invalid(reason)));
        }
    }

    /// Ends one; one that the managers have not answered yet is taken back when they do.
    pub(super) fn detach(&mut self, id: TaskId) {
        if self.tasks.knows(id) {
            self.tasks.end_early(id);
        } else {
            self.standalone.remove(&id);
        }
    }

    /// One that this boot does not know, or has given up, is told to go, whatever the managers say.
    pub(super) fn disown(&self, tasks: &mut BTreeMap<TaskId, TaskAssignment>) {
        for task in tasks.values_mut().filter(|task| task.standalone && !self.standalone.contains_key(&task.id)) {
            task.desired = task.desired.max(TaskState::Shutdown);
        }
    }

    pub(super) fn namespace_of(&self, id: TaskId) -> Option<&NamespaceName> {
        self.standalone.get(&id).map(|known| &known.namespace)
    }

    /// Tells who waits for it how a step ended.
    pub(super) fn tell_standalone(&mut self, outcome: &Outcome) {
        let (id, error) = match outcome {
            Outcome::Created(id, Err(error)) | Outcome::Started(id, Err(error)) => (*id, Some(error)),
            Outcome::Started(id, Ok(_)) => (*id, None),
            Outcome::Removed(id) => {
                self.standalone.remove(id);
                return;
            }
            Outcome::Created(_, Ok(_)) => return,
        };
        let Some(known) = self.standalone.get(&id) else { return };
        let assignment = self.tasks.iter().find(|(task, _)| task.id == id).map(|(task, _)| task.clone());
        known.answer(match (error, assignment) {
            (None, Some(assignment)) => Ok(assignment),
            (Some(error), _) if error.rejected => Err(NodeError::Invalid(error.reason.clone())),
            (Some(error), _) => Err(NodeError::Failed(error.reason.clone())),
            (None, None) => Err(NodeError::Failed("it was told to end".into())),
        });
    }
}

impl Node {
    /// Puts a namespace of this host, by its name below `/run/netns`, on a network, where it stays until it is detached.
    pub async fn attach_namespace(&self, wanted: AttachedNamespace) -> Result<TaskAssignment, NodeError> {
        let _changing = self.inner.attaching.lock().await;
        let runtime = self.runtime()?;
        let AttachedNamespace { namespace, network, address, aliases } = wanted;
        let mut known = StoredAttachment { namespace, network, address, aliases };
        if self.attached(&known.namespace, network).is_some() {
            return Err(NodeError::Invalid(format!("the namespace {} is on this network already", known.namespace)));
        }
        // A name first: it becomes part of a path.
        NamespaceName::try_from(known.namespace.clone()).map_err(|error| NodeError::Invalid(error.text))?;
        let identity = identity_of(&known.namespace)?;
        let task = self.attach_once(&runtime, &known).await?;
        known.address = task.attachments.first().map(|attachment| attachment.address.addr());
        if let Err(error) = self.remember(&known) {
            self.end_standalone(&runtime, task.id).await;
            return Err(error);
        }
        spawn("attachment", self.clone().keep(runtime, known, Some((task.id, identity))));
        Ok(task)
    }

    fn remember(&self, known: &StoredAttachment) -> Result<(), NodeError> {
        let mut stored = self.inner.environment.store.attachments()?;
        stored.retain(|other| !other.is_same(known));
        stored.push(known.clone());
        self.inner.environment.store.save_attachments(&stored)
    }

    /// Takes a namespace off a network, for good.
    pub async fn detach_namespace(&self, namespace: &str, network: NetworkId) -> Result<(), NodeError> {
        let _changing = self.inner.attaching.lock().await;
        let mut stored = self.inner.environment.store.attachments()?;
        let before = stored.len();
        stored.retain(|known| (known.namespace.as_str(), known.network) != (namespace, network));
        let was_stored = stored.len() < before;
        if was_stored {
            self.inner.environment.store.save_attachments(&stored)?;
        }
        match self.attached(namespace, network) {
            Some(id) => {
                let runtime = self.runtime()?;
                self.end_standalone(&runtime, id).await;
                Ok(())
            }
            None if was_stored => Ok(()),
            None => Err(NodeError::NotFound(format!("the namespace {namespace} is not on this network"))),
        }
    }

    fn runtime(&self) -> Result<Arc<Runtime>, NodeError> {
        let inactive = || NodeError::Unavailable("This node is not part of a swarm".into());
        self.inner.runtime.load_full().ok_or_else(inactive)
    }

    /// The attachment of a namespace to a network.
    fn attached(&self, namespace: &str, network: NetworkId) -> Option<TaskId> {
        let tasks = self.tasks();
        let is_it = |task: &&super::model::LocalTask| {
            let assignment = &task.assignment;
            assignment.standalone
                && assignment.container.image == image_of(namespace)
                && assignment.attachments.iter().any(|attachment| attachment.network == network)
                && !task.status.state.is_terminal()
        };
        tasks.iter().find(is_it).map(|task| task.assignment.id)
    }

    /// Asks for one and waits until it is there; what is not there in time is taken back.
    async fn attach_once(&self, runtime: &Runtime, known: &StoredAttachment) -> Result<TaskAssignment, NodeError> {
        let StoredAttachment { namespace: name, network, address, aliases } = known.clone();
        let namespace = NamespaceName::try_from(name.clone()).map_err(|error| NodeError::Invalid(error.text))?;
        let request = AttachRequest { image: image_of(&name), name, network, address, aliases };
        let (id, (ready, is_ready)) = (TaskId::from_random(sys::random::bytes()), bounded(1));
        let standalone = Standalone { request, namespace, ready };
        let lost = || NodeError::Unavailable("this node has left the swarm, or begun a new boot".into());
        runtime.requests.send(Request::Attach(id, Box::new(standalone))).await.map_err(|_| lost())?;
        match within(ATTACH_TIME, is_ready.recv()).await {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(lost()),
            None => {
                let _ = runtime.requests.send(Request::Detach(id)).await;
                let text = format!("the managers gave no address within {} s", ATTACH_TIME.as_secs());
                Err(NodeError::Unavailable(text))
            }
        }
    }

    /// Ends one and waits until nothing is left of it here.
    async fn end_standalone(&self, runtime: &Runtime, id: TaskId) {
        let _ = runtime.requests.send(Request::Detach(id)).await;
        let gone = async {
            while self.tasks().iter().any(|task| task.assignment.id == id) {
                smol::Timer::after(LOOK).await;
            }
        };
        if within(END_TIME, gone).await.is_none() {
            tracing::warn!(task = %id, "it has not ended in time: it goes on ending");
        }
    }

    /// Puts the namespaces of the former boot back on their networks.
    pub(super) fn restore_attachments(&self, runtime: &Arc<Runtime>) {
        let stored = match self.inner.environment.store.attachments() {
            Ok(stored) => stored,
            Err(error) => return tracing::error!(%error, "the attached namespaces are not put back"),
        };
        for known in stored {
            spawn("attachment", self.clone().keep(runtime.clone(), known, None));
        }
    }

    /// Keeps a namespace on its network until it is detached: also when the namespace is deleted and made again.
    async fn keep(self, runtime: Arc<Runtime>, mut known: StoredAttachment, mut there: Option<(TaskId, Identity)>) {
        // The managers give the address again once they have heard that the former boot's is free.
        while self.is_current(&runtime) && !runtime.view.load().settled {
            smol::Timer::after(LOOK).await;
        }
        let (mut complained, mut pause) = (false, RESTORE_RETRY);
        loop {
            if let Some((id, identity)) = there.take() {
                self.watch_namespace(&runtime, id, &known.namespace, identity).await;
                (complained, pause) = (false, RESTORE_RETRY);
            }
            match self.put_back(&runtime, &mut known).await {
                Ok(None) => return,
                Ok(Some(attached)) => there = Some(attached),
                Err(error) => {
                    if !std::mem::replace(&mut complained, true) {
                        let StoredAttachment { namespace, network, .. } = &known;
                        tracing::warn!(namespace, %network, %error, "the namespace is not on its network: trying on");
                    }
                    smol::Timer::after(pause).await;
                    // An attempt that the managers or the helper refuse costs the whole swarm something.
                    let was_refused = !matches!(error, NodeError::Unavailable(_));
                    let is_there = identity_of(&known.namespace).is_ok();
                    pause = if was_refused && is_there { next_pause(pause) } else { RESTORE_RETRY };
                }
            }
        }
    }

    /// Returns when the attachment, or the boot that it is of, has ended; one whose namespace is not the one of its name any more is ended. The
    /// open device keeps a deleted namespace alive, so that nothing else would tell.
    async fn watch_namespace(&self, runtime: &Runtime, id: TaskId, namespace: &str, identity: Identity) {
        while self.is_current(runtime) && runtime.view.load().tasks.iter().any(|task| task.assignment.id == id) {
            if identity_of(namespace).ok() != Some(identity) {
                tracing::warn!(namespace, "an attached namespace was deleted");
                self.end_standalone(runtime, id).await;
                return;
            }
            smol::Timer::after(WATCH_INTERVAL).await;
        }
    }

    /// Attaches it, if that is still wanted and not done.
    async fn put_back(
        &self,
        runtime: &Runtime,
        known: &mut StoredAttachment,
    ) -> Result<Option<(TaskId, Identity)>, NodeError> {
        let _changing = self.inner.attaching.lock().await;
        let mut stored = self.inner.environment.store.attachments()?;
        let wanted = stored.iter().any(|other| other.is_same(known));
        if !wanted || !self.is_current(runtime) || self.attached(&known.namespace, known.network).is_some() {
            return Ok(None);
        }
        if runtime.view.load().settled && !self.network_names().iter().any(|network| network.id == known.network) {
            tracing::warn!(namespace = known.namespace, network = %known.network, "its network was removed");
            stored.retain(|other| !other.is_same(known));
            self.inner.environment.store.save_attachments(&stored)?;
            return Ok(None);
        }
        // Before the managers are asked, whose log would grow with every attempt.
        let identity = identity_of(&known.namespace)?;
        match self.attach_once(runtime, known).await {
            Ok(task) => Ok(Some((task.id, identity))),
            Err(error) => {
                if matches!(&error, NodeError::Invalid(text) if text.starts_with(ADDRESS_IN_USE)) {
                    known.address = None;
                }
                Err(error)
            }
        }
    }
}

/// What tells a namespace from another one that has its name later.
type Identity = (u64, u64);

fn identity_of(namespace: &str) -> Result<Identity, NodeError> {
    let found = std::fs::metadata(Path::new("/run/netns").join(namespace));
    let found = found.map_err(|_| NodeError::Invalid(format!("no such network namespace: {namespace}")))?;
    Ok((found.dev(), found.ino()))
}

fn next_pause(pause: Duration) -> Duration {
    pause.saturating_mul(2).min(RESTORE_RETRY_MOST)
}

/// What stands where a container's image does.
fn image_of(namespace: &str) -> String {
    format!("netns:{namespace}")
}
