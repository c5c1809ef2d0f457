//! What the managers know.

use super::Exposure;
use crate::types::{
    Attachment, Availability, BootId, ClusterId, ClusterSpec, ContainerSpec, EndpointKey, Epoch, EpochPhase, Fork,
    Generation, Key32, Machine, NetworkId, NetworkName, NetworkSpec, NodeAddresses, NodeId, PublicKey, Queues,
    Resources, Restarts, Role, ServiceId, ServiceSpec, TaskId, TaskState, TaskStatus, UnixTime, carried_key,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use zeroize::Zeroizing;

/// The whole replicated state. It holds secrets: it is serialised only to be sealed.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// The log index of the last applied entry.
    pub index: u64,
    /// The wall-clock time of the last entry that was not refused.
    pub at: UnixTime,
    /// The swarm itself.
    pub cluster: Cluster,
    /// Admitted nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Removed nodes, until their certificates have expired.
    pub gone: BTreeMap<NodeId, GoneNode>,
    /// Networks.
    pub networks: BTreeMap<NetworkId, Network>,
    /// Services.
    pub services: BTreeMap<ServiceId, Service>,
    /// Tasks. A task leaves this table, and its addresses become free, only when its node has confirmed that it is
    /// gone or the node itself was removed.
    pub tasks: BTreeMap<TaskId, Task>,
    /// Freed addresses, oldest allocation first, while the epoch lives in which they were freed: whoever still has the
    /// record of such an endpoint is told that it is gone. At most [`super::limits::FREED_ENDPOINTS`].
    pub freed: BTreeMap<(Generation, EndpointKey), Freed>,
    /// The key ring.
    pub ring: Ring,
    /// Who takes part in the managers' consensus, as last committed: follows from the nodes' roles a little later.
    pub managers: BTreeMap<NodeId, Manager>,
}

/// A manager's part in the consensus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manager {
    /// Its seat: [`Node::seat`] when it was taken in.
    pub seat: u64,
    /// It has a vote; until it has caught up, it has none.
    pub voter: bool,
    /// Its control port.
    pub address: SocketAddr,
}

/// An endpoint that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// The node that had it.
    pub node: NodeId,
    /// Its address.
    pub address: IpAddr,
    /// The current epoch when it was freed. Records of the endpoint are void when this one is retired.
    pub epoch: Epoch,
}

/// The swarm.
#[derive(Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// The life of this state.
    pub fork: Fork,
    /// When it was made.
    pub created_at: UnixTime,
    /// When its settings last changed.
    pub updated_at: UnixTime,
    /// Log index of the last change of its settings: `Version.Index` of the API.
    pub version: u64,
    /// Settings.
    pub spec: ClusterSpec,
    /// The 16-byte secret of the worker join token.
    pub worker_secret: Zeroizing<[u8; 16]>,
    /// The 16-byte secret of the manager join token.
    pub manager_secret: Zeroizing<[u8; 16]>,
    /// The certificate authority that issues all certificates.
    pub authority: CertificateAuthority,
    /// The root before it, while nodes still have certificates of that one.
    pub rotation: Option<RootRotation>,
    /// Seed of the Ed25519 attestation key that signs records.
    #[serde(with = "carried_key")]
    pub attestation: Key32,
    /// The one before it, while an epoch lives in which it signed.
    pub former_attestation: Option<FormerAttestation>,
    /// What the managers' files are locked with.
    pub lock: Lock,
    /// The unlock key that takes the place of that one, or is the first, once somebody has seen it.
    pub next_unlock_key: Option<Zeroizing<[u8; 32]>>,
    /// What of the secrets a former manager knows.
    pub exposure: Exposure,
}

/// What the managers lock their files with.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The unlock key; `None`: the files open by themselves.
    pub key: Option<Zeroizing<[u8; 32]>>,
    /// Log index of its last change, by which a manager that reads its log again does not go back to a former one.
    pub since: u64,
}

/// A replacement of the root certificate that not all nodes have followed yet.
#[derive(Serialize, Deserialize)]
pub struct RootRotation {
    /// The former root, DER. Still trusted.
    pub former: Vec<u8>,
    /// The new root as the former one signed it, DER: the way from a node that knows the former one to a new certificate.
    pub cross: Vec<u8>,
    /// Seed of the attestation key that signs once all have followed.
    #[serde(with = "carried_key")]
    pub attestation: Key32,
    /// When it began.
    pub started_at: UnixTime,
}

/// An attestation key that signs nothing any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerAttestation {
    /// Its public half.
    pub public: PublicKey,
    /// The last epoch in which it signed.
    pub epoch: Epoch,
}

/// The swarm's certificate authority.
#[derive(Serialize, Deserialize)]
pub struct CertificateAuthority {
    /// The self-signed root, DER.
    pub certificate: Vec<u8>,
    /// Its private key, PKCS #8 DER.
    pub key: Zeroizing<Vec<u8>>,
}

/// How the managers see a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeState {
    /// Admitted; no session yet.
    Unknown,
    /// Has a session.
    Ready,
    /// Three heartbeats missed, or it left.
    Down,
}

/// An admitted node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its host's name.
    pub hostname: String,
    /// Formic's version there.
    pub software: String,
    /// What it may do.
    pub role: Role,
    /// Its seat among the managers: the log index at which it became one (never the same twice); 0 for a worker.
    pub seat: u64,
    /// Whether tasks may be placed.
    pub availability: Availability,
    /// User labels.
    pub labels: BTreeMap<String, String>,
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// What its host is, as it told in its newest session; nothing before the first.
    pub machine: Machine,
    /// How the managers see it.
    pub state: NodeState,
    /// Why, for people.
    pub message: String,
    /// The newest boot that opened a session; `None` until the first.
    pub boot: Option<BootId>,
    /// Log index at which that boot was committed: boots are ordered by it.
    pub boot_index: u64,
    /// Its boots before that, oldest first, at most [`super::limits::FORMER_BOOTS`]: none of them may come back.
    pub former_boots: Vec<BootId>,
    /// The queues that boot sends with.
    pub queues: Queues,
    /// The X25519 publics of that boot, by epoch.
    pub publics: BTreeMap<Epoch, PublicKey>,
    /// Log index of the last change of what its node record says.
    pub record_index: u64,
    /// When it was admitted.
    pub created_at: UnixTime,
    /// When it last changed.
    pub updated_at: UnixTime,
    /// `Version.Index` of the API: log index of the last change of role, availability or labels.
    pub version: u64,
    /// When its certificate ends.
    pub certificate_expires: UnixTime,
    /// SHA-256 of the root certificate that it was issued under.
    pub root: [u8; 32],
}

/// A removed node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneNode {
    /// The age of the removal.
    pub generation: Generation,
    /// When its certificate ends and this note may be dropped.
    pub until: UnixTime,
}

/// An overlay network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// As wanted.
    pub spec: NetworkSpec,
    /// The subnet it got.
    pub subnet: IpNet,
    /// Reserved as the gateway, as Docker does; no device holds it.
    pub gateway: IpAddr,
    /// Where the search for the next free address starts, so that a freed one is not reused at once.
    pub cursor: u128,
    /// The addresses that are taken, each by its task.
    pub addresses: BTreeMap<IpAddr, TaskId>,
    /// When it was made.
    pub created_at: UnixTime,
    /// Log index of its creation.
    pub version: u64,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// As wanted.
    pub spec: ServiceSpec,
    /// When it was made.
    pub created_at: UnixTime,
    /// When it last changed.
    pub updated_at: UnixTime,
    /// Log index of the last change.
    pub version: u64,
    /// Log index at which what its tasks are last changed: tasks made from that are up to date ([`Task::template`]).
    pub template: u64,
    /// The specification before, to go back to.
    pub former: Option<Box<FormerSpec>>,
    /// The newest replacement of its tasks after a change, if that changed what they are.
    pub rollout: Option<Rollout>,
    /// Told to go: its tasks are being removed; it leaves when the last one has.
    pub removing: bool,
}

/// What a service was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerSpec {
    /// As was wanted.
    pub spec: ServiceSpec,
    /// [`Service::template`] then.
    pub template: u64,
}

/// How far the replacement of a service's tasks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutPhase {
    /// To a new specification.
    Updating,
    /// Too many new tasks failed; the others stay.
    Paused,
    /// All are replaced and run.
    Completed,
    /// Back to the former specification.
    RollingBack,
    /// Too many tasks of that one failed too.
    RollbackPaused,
    /// All are replaced and run.
    RolledBack,
}

/// A replacement of a service's tasks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// How far it is.
    pub phase: RolloutPhase,
    /// When it began.
    pub started_at: UnixTime,
    /// When all tasks were replaced.
    pub completed_at: Option<UnixTime>,
    /// For people.
    pub message: String,
    /// How many tasks there were to replace.
    pub total: u64,
    /// New ones that ended while they were watched.
    pub failures: u64,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its service; no service has this id if it is [`Task::standalone`].
    pub service: ServiceId,
    /// Of a container or namespace that its node put on an attachable network: its name.
    pub standalone: Option<String>,
    /// Which replica, from 1; 0 of a global service.
    pub slot: u64,
    /// Of a global service: the node that it is for.
    pub bound_to: Option<NodeId>,
    /// Where it was placed.
    pub node: Option<NodeId>,
    /// What it runs.
    pub container: ContainerSpec,
    /// [`Service::template`] when it was made.
    pub template: u64,
    /// How often the task of its place was replaced before, since that one.
    pub restarts: Restarts,
    /// What it has for itself of its node.
    pub reservations: Resources,
    /// Its addresses.
    pub attachments: Vec<Attachment>,
    /// Where it is to be brought: `Running`, `Shutdown` or `Remove`.
    pub desired: TaskState,
    /// How far it is.
    pub status: TaskStatus,
    /// Since when it runs, or ran.
    pub running_since: Option<UnixTime>,
    /// Its node confirmed that nothing is left of it (or it never had one): its addresses are free, and it is kept
    /// as history only.
    pub gone: bool,
    /// When it was made.
    pub created_at: UnixTime,
    /// Log index of its creation: of two tasks of a slot the newer has the higher one.
    pub created_index: u64,
    /// When it last changed.
    pub updated_at: UnixTime,
    /// Log index of the last change.
    pub version: u64,
}

/// One epoch of the ring.
#[derive(Serialize, Deserialize)]
pub struct EpochState {
    /// Its number.
    pub epoch: Epoch,
    /// Its phase.
    pub phase: EpochPhase,
    /// Its master. Never leaves the managers.
    #[serde(with = "carried_key")]
    pub master: Key32,
    /// The nodes that count for it, fixed when it was handed out: those with a session then.
    pub participants: BTreeSet<NodeId>,
    /// Participants that hold their keys and the records with publics of the participants on their networks.
    pub ready: BTreeSet<NodeId>,
    /// Nodes that send with it to every live peer.
    pub sending: BTreeSet<NodeId>,
    /// When it was handed out.
    pub handed_out_at: UnixTime,
    /// When it became current.
    pub activated_at: Option<UnixTime>,
}

/// An operator's or a removal's wish to rotate now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationRequest {
    /// When it was wished.
    pub at: UnixTime,
    /// Seconds after which the next epoch is activated without the late ones: 600, or 30 after a removal.
    pub deadline_secs: u32,
}

/// The managers' key ring: at most three epochs, oldest first.
#[derive(Serialize, Deserialize)]
pub struct Ring {
    /// Previous (if any), current, next (if drawn already).
    pub epochs: Vec<EpochState>,
    /// A rotation wished before its time.
    pub request: Option<RotationRequest>,
    /// The age of the last activation, retirement or removal: the generation of the signed ring record.
    pub generation: Generation,
    /// When `previous` may be erased although not all send with the current one: never before 10 minutes (30 s
    /// after a removal) from the activation.
    pub keep_previous_secs: u32,
    /// Rotations by volume: when the last was asked for (at most one in 10 minutes).
    pub last_early_rotation: Option<UnixTime>,
}

impl CertificateAuthority {
    pub(super) fn duplicate(&self) -> CertificateAuthority {
        CertificateAuthority { certificate: self.certificate.clone(), key: self.key.clone() }
    }
}

impl Network {
    /// What every node is told of it.
    pub fn told(&self) -> NetworkName {
        NetworkName { id: self.id, name: self.spec.name.clone(), attachable: self.spec.attachable }
    }
}

impl Task {
    /// Whether it fills its place: wanted, and not ended. A place has at most one live task.
    pub fn is_live(&self) -> bool {
        self.desired == TaskState::Running && !self.status.state.is_terminal()
    }

    /// Whether it ended although nobody told it to.
    pub fn ended_by_itself(&self) -> bool {
        matches!(self.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
    }
}

impl Rollout {
    /// Whether tasks are being replaced.
    pub fn is_in_progress(&self) -> bool {
        matches!(self.phase, RolloutPhase::Updating | RolloutPhase::RollingBack)
    }

    /// Whether it stopped half-way, until somebody says how it goes on.
    pub fn is_paused(&self) -> bool {
        matches!(self.phase, RolloutPhase::Paused | RolloutPhase::RollbackPaused)
    }
}

impl Node {
    /// Whether the scheduler may place a task on it now.
    pub fn takes_tasks(&self) -> bool {
        self.state == NodeState::Ready && self.availability == Availability::Active
    }
}

impl Ring {
    /// The epoch in a phase.
    pub fn phase(&self, phase: EpochPhase) -> Option<&EpochState> {
        self.epochs.iter().find(|epoch| epoch.phase == phase)
    }

    pub(super) fn phase_mut(&mut self, phase: EpochPhase) -> Option<&mut EpochState> {
        self.epochs.iter_mut().find(|epoch| epoch.phase == phase)
    }

    /// Takes the epoch in a phase out, and with it its master. Tells whether there was one.
    pub(super) fn erase(&mut self, phase: EpochPhase) -> bool {
        let before = self.epochs.len();
        self.epochs.retain(|epoch| epoch.phase != phase);
        self.epochs.len() < before
    }
}
