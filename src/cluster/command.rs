//! What may change the state.

use super::state::{CertificateAuthority, NodeState};
use crate::types::{
    AttachRequest, Availability, BootId, ClusterId, ClusterSpec, Epoch, Fork, Key32, Machine, NetworkId, NetworkSpec,
    NodeAddresses, NodeId, PublicKey, Queues, Role, ServiceId, ServiceSpec, TaskId, TaskStatus, UnixTime, carried_key,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use zeroize::Zeroizing;

/// One entry of the log.
#[derive(Serialize, Deserialize)]
pub struct Entry {
    /// The leader's wall clock when it wrote the entry.
    pub at: UnixTime,
    /// The change.
    pub command: Command,
}

/// Secrets of new join tokens, and a new unlock key; `None` keeps the old one.
#[derive(Default, Serialize, Deserialize)]
pub struct NewTokens {
    /// Of the worker join token.
    pub worker: Option<Zeroizing<[u8; 16]>>,
    /// Of the manager join token.
    pub manager: Option<Zeroizing<[u8; 16]>>,
    /// The unlock key, which is used once it was seen ([`Command::UnlockKeySeen`]).
    pub unlock: Option<Zeroizing<[u8; 32]>>,
}

/// A root certificate that takes the place of the present one, and what goes with it.
#[derive(Serialize, Deserialize)]
pub struct NewRoot {
    /// It, with its key.
    pub authority: CertificateAuthority,
    /// The same subject and key, signed by the present root, DER.
    pub cross: Vec<u8>,
    /// Seed of the attestation key that signs records once all nodes have followed.
    #[serde(with = "carried_key")]
    pub attestation: Key32,
}

/// A change. Whatever is random in it was drawn by the leader.
#[derive(Serialize, Deserialize)]
pub enum Command {
    /// The first entry of a log.
    Init {
        /// The swarm.
        cluster: ClusterId,
        /// Its first life.
        fork: Fork,
        /// Settings.
        spec: ClusterSpec,
        /// Secret of the worker join token.
        worker_secret: Zeroizing<[u8; 16]>,
        /// Secret of the manager join token.
        manager_secret: Zeroizing<[u8; 16]>,
        /// The certificate authority.
        authority: CertificateAuthority,
        /// Seed of the attestation key.
        #[serde(with = "carried_key")]
        attestation: Key32,
        /// Master of the first current epoch.
        #[serde(with = "carried_key")]
        current: Key32,
        /// Master of the first next epoch.
        #[serde(with = "carried_key")]
        next: Key32,
    },
    /// Admits a node.
    AddNode {
        /// Its id, drawn by the manager.
        id: NodeId,
        /// What it may do.
        role: Role,
        /// Its host's name.
        hostname: String,
        /// Its version.
        software: String,
        /// Where it is reached.
        addresses: NodeAddresses,
        /// Whether tasks may be placed.
        availability: Availability,
        /// End of its certificate.
        certificate_expires: UnixTime,
        /// SHA-256 of the root certificate that it was issued under.
        root: [u8; 32],
    },
    /// A boot of a node opens its session. Replies with [`Reply::BootIndex`].
    OpenSession {
        /// The node.
        node: NodeId,
        /// Its boot.
        boot: BootId,
        /// Its host's name.
        hostname: String,
        /// Its version.
        software: String,
        /// Where it is reached.
        addresses: NodeAddresses,
        /// What its host is.
        machine: Machine,
        /// The queues it sends with, fixed for the boot.
        queues: Queues,
    },
    /// The dispatcher's view of a node changed.
    SetNodeState {
        /// The node.
        node: NodeId,
        /// The new view.
        state: NodeState,
        /// Why.
        message: String,
    },
    /// A node told its public for an epoch. A second, different one for the same boot is refused.
    SetPublic {
        /// The node.
        node: NodeId,
        /// The boot it belongs to.
        boot: BootId,
        /// The epoch.
        epoch: Epoch,
        /// The X25519 public.
        public: PublicKey,
    },
    /// A node is ready for an epoch.
    SetReady {
        /// The node.
        node: NodeId,
        /// The boot that says so: the word of another one counts for nothing.
        boot: BootId,
        /// The epoch.
        epoch: Epoch,
    },
    /// A node sends with an epoch to every live peer.
    SetSending {
        /// The node.
        node: NodeId,
        /// The boot that says so: the word of another one counts for nothing.
        boot: BootId,
        /// The epoch.
        epoch: Epoch,
    },
    /// Hands out the next epoch. Its participants are the nodes that are `Ready` in the state.
    DrawNext {
        /// Its master.
        #[serde(with = "carried_key")]
        master: Key32,
    },
    /// Makes the next epoch current. Refused while a participant is not ready: one may have begun a new boot, or a
    /// former leader's command be committed late, after it was planned.
    Activate {
        /// It.
        epoch: Epoch,
        /// The deadline has passed: whoever is not ready is late.
        late: bool,
    },
    /// Erases the previous epoch.
    Retire {
        /// It.
        epoch: Epoch,
    },
    /// An operator's `rotate-keys`. Refused with the names of the late ones unless all participants send with the
    /// current epoch, or `force`.
    RequestRotation {
        /// Go by the deadline instead of waiting for the late ones.
        force: bool,
    },
    /// A node's SA reached its soft limit. At most one in 10 minutes counts.
    RequestEarlyRotation {
        /// The node.
        node: NodeId,
    },
    /// New settings of the swarm.
    UpdateCluster {
        /// The version they were made from.
        version: u64,
        /// The settings.
        spec: ClusterSpec,
        /// Join tokens that take the place of the old ones, which admit nobody from then on.
        tokens: NewTokens,
        /// A new root certificate.
        root: Option<NewRoot>,
    },
    /// Drops the former root certificate. Refused while a node has a certificate of it.
    FinishRootRotation,
    /// Somebody was shown this unlock key: if it is the next one, the managers lock their files with it. Not before,
    /// since a swarm whose only manager ended in between could never be unlocked again.
    UnlockKeySeen {
        /// It.
        key: Zeroizing<[u8; 32]>,
    },
    /// Replaces the masters that a former manager knows; from the leader's planner only.
    ReplaceMasters {
        /// Master of the fresh next epoch.
        #[serde(with = "carried_key")]
        master: Key32,
    },
    /// Replaces the certificate authority and the join tokens that a former manager knows; from the leader's planner only.
    ReplaceAuthority {
        /// New join tokens.
        tokens: NewTokens,
        /// The new root certificate.
        root: NewRoot,
    },
    /// A new role, availability or labels of a node.
    UpdateNode {
        /// The node.
        node: NodeId,
        /// The version they were made from.
        version: u64,
        /// New role.
        role: Role,
        /// New availability.
        availability: Availability,
        /// New labels.
        labels: std::collections::BTreeMap<String, String>,
    },
    /// Forgets a node. Refused unless it is down or `force`. Throws `next` away for a fresh one with a 30 s deadline.
    RemoveNode {
        /// The node.
        node: NodeId,
        /// Even when it is not down.
        force: bool,
        /// Master of the fresh next epoch.
        #[serde(with = "carried_key")]
        master: Key32,
    },
    /// A new certificate is about to be given to a node. Whether it gets there is told by
    /// [`Command::SetCertificateRoot`].
    SetCertificateExpiry {
        /// The node.
        node: NodeId,
        /// Its end.
        expires: UnixTime,
        /// SHA-256 of the root certificate that it was issued under.
        root: [u8; 32],
    },
    /// A new network.
    CreateNetwork {
        /// Its id.
        id: NetworkId,
        /// As wanted.
        spec: NetworkSpec,
    },
    /// Removes a network that nothing uses.
    RemoveNetwork {
        /// It.
        id: NetworkId,
    },
    /// A new service.
    CreateService {
        /// Its id.
        id: ServiceId,
        /// As wanted.
        spec: ServiceSpec,
    },
    /// A new specification of a service. Its tasks are replaced one after the other if what they are changes.
    UpdateService {
        /// The service.
        id: ServiceId,
        /// The version it was made from.
        version: u64,
        /// As wanted.
        spec: ServiceSpec,
    },
    /// Goes back to the specification before.
    RollBackService {
        /// The service.
        id: ServiceId,
        /// The version that is known of it.
        version: u64,
    },
    /// All tasks are replaced and have run for a while. From `schedule::plan` only.
    FinishRollout {
        /// The service.
        id: ServiceId,
        /// What its tasks are ([`super::Service::template`]).
        template: u64,
    },
    /// Removes a service: its tasks are told to go; it leaves with the last one.
    RemoveService {
        /// It.
        id: ServiceId,
    },
    /// Creates a task of a service in a place (state `New`). From `schedule::plan` only.
    CreateTask {
        /// Its id.
        id: TaskId,
        /// Its service.
        service: ServiceId,
        /// Which replica; 0 of a global service.
        slot: u64,
        /// Of a global service: the node that it is for.
        bound_to: Option<NodeId>,
    },
    /// Places a task on a node that suits it and gives it its addresses. Refused when a subnet is full: the task then
    /// stays `Pending` with the reason.
    PlaceTask {
        /// The task.
        id: TaskId,
        /// Where.
        node: NodeId,
    },
    /// A task cannot be placed now; the reason is shown.
    SetPending {
        /// The task.
        id: TaskId,
        /// Why.
        reason: String,
    },
    /// Tells a task to stop (and its replacement to be made).
    ShutDownTask {
        /// The task.
        id: TaskId,
        /// To be forgotten afterwards.
        remove: bool,
    },
    /// A node reports on its tasks.
    ReportTasks {
        /// The node.
        node: NodeId,
        /// The boot that says so: the word of another one counts for nothing.
        boot: BootId,
        /// What it says.
        statuses: Vec<(TaskId, TaskStatus)>,
    },
    /// A node confirms that nothing is left of a task.
    ConfirmTaskGone {
        /// The node.
        node: NodeId,
        /// The boot that says so: the word of another one counts for nothing.
        boot: BootId,
        /// The task.
        id: TaskId,
    },
    /// A node puts a container or a namespace of its own on an attachable network: a task that belongs to no service,
    /// placed on that node, with its address. Said again it changes nothing.
    Attach {
        /// The node.
        node: NodeId,
        /// The boot that says so: the word of another one counts for nothing.
        boot: BootId,
        /// The task, drawn by the node.
        id: TaskId,
        /// As wanted.
        request: AttachRequest,
    },
    /// A node has a certificate of this root on its disk.
    SetCertificateRoot {
        /// The node.
        node: NodeId,
        /// SHA-256 of the root.
        root: [u8; 32],
    },
}

/// What a committed command answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// The boot's index.
    BootIndex(u64),
}

/// What the shell has to do after a commit, besides handing the new state to the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A master no longer exists: compact log and snapshots, and replace the at-rest key.
    Compact,
    /// End this node's session at once.
    EndSession(NodeId),
}

/// Why a command changed nothing. The texts are Docker's where Docker has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// 404.
    #[error("{kind} {name} not found")]
    NotFound {
        /// `network`, `service`, `node`, `task`.
        kind: Cow<'static, str>,
        /// As asked.
        name: String,
    },
    /// 409.
    #[error("{0}")]
    Conflict(String),
    /// 400: what was asked cannot be.
    #[error("{0}")]
    Invalid(String),
    /// 400: `update out of sequence`.
    #[error("update out of sequence")]
    OutOfSequence,
    /// 403: the caller may not.
    #[error("{0}")]
    Forbidden(String),
    /// 400/503: not now; the text says when.
    #[error("{0}")]
    NotNow(String),
}
