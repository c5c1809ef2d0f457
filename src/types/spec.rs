//! What users ask for and nodes report: plain values shared by the replicated state, the control protocol and
//! the API.

use super::{
    EndpointKey, Generation, NetworkId, NodeId, Offloads, Placement, Renewal, Resources, ServiceId, ServiceMode,
    TaskId, UnixTime,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Votes and holds the replicated state.
    Manager,
    /// Runs tasks only.
    Worker,
}

/// Whether the scheduler may place tasks on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Availability {
    /// New tasks may be placed.
    Active,
    /// No new tasks; running ones stay.
    Pause,
    /// No tasks; running ones move away.
    Drain,
}

/// Where the other nodes reach a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeAddresses {
    /// Control protocol (TCP); meaningful on managers.
    pub control: SocketAddr,
    /// Gossip (UDP).
    pub gossip: SocketAddr,
    /// ESP in UDP.
    pub data: SocketAddr,
    /// Told by the operator: the addresses seen by peers may change.
    pub behind_nat: bool,
}

/// Settings of the whole swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Seconds between two heartbeats of a node's session; a node is down after three missed. 1..=300.
    pub heartbeat_secs: u32,
    /// Seconds between two key rotations. 60..=2_592_000.
    pub key_rotation_secs: u32,
    /// Life of node certificates in seconds.
    pub certificate_secs: u64,
    /// Ended tasks of a place that are kept to be looked at. 0..=100.
    pub task_history: u32,
    /// What no node may use of what its kernel and its devices can do.
    pub disabled_offloads: Offloads,
    /// How often the root certificate was replaced on wish: Docker's counter, which the client raises to ask for it.
    pub force_rotate: u64,
    /// The pool that networks without `--subnet` are cut from.
    pub address_pool: IpNet,
    /// Prefix length of the networks cut from the pool.
    pub subnet_prefix: u8,
    /// UDP port of ESP on every node, unless a node says otherwise.
    pub data_path_port: u16,
    /// A manager whose daemon starts again needs the unlock key.
    pub autolock: bool,
}

impl Default for ClusterSpec {
    fn default() -> ClusterSpec {
        ClusterSpec {
            heartbeat_secs: 5,
            key_rotation_secs: 12 * 3600,
            certificate_secs: 90 * 24 * 3600,
            task_history: 5,
            disabled_offloads: Offloads::NONE,
            force_rotate: 0,
            address_pool: IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 0, 0, 0), 8)),
            subnet_prefix: 24,
            data_path_port: 4500,
            autolock: false,
        }
    }
}

/// A wanted overlay network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Unique name.
    pub name: String,
    /// User labels.
    pub labels: BTreeMap<String, String>,
    /// The driver options as the user gave them (`encrypted` => ``), for `inspect`.
    pub options: BTreeMap<String, String>,
    /// Secrecy beside integrity: AES-GCM instead of AES-GMAC.
    pub encrypted: bool,
    /// The wanted subnet; `None` takes the next free one of the pool.
    pub subnet: Option<IpNet>,
    /// The wanted gateway address; `None` takes the subnet's first.
    pub gateway: Option<IpAddr>,
    /// Nodes may put containers and namespaces of their own on it, which belong to no service.
    pub attachable: bool,
    /// The user said that nothing outside of it is to be reached from it. That holds for every network.
    pub internal: bool,
    /// The part of the subnet that addresses are given from; `None` is all of it.
    pub ip_range: Option<IpNet>,
    /// Addresses that are never given, each with the user's word for what has it.
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// Bytes of the MTU of the interfaces on it at most; `None` leaves it to each node's underlay.
    pub mtu_bytes: Option<u32>,
}

/// The refusal of the specification: only tasks have the keys of a network that is not attachable.
pub fn unmanaged_text(network: &str) -> String {
    format!(
        "swarm-scoped network ({network}) is not compatible with `docker create` or `docker run`. This network can only be used by a docker service."
    )
}

/// What every node knows of every network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkName {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// See [`NetworkSpec::attachable`].
    pub attachable: bool,
}

/// What a node asks for when a container or a namespace of its own is to be on an attachable network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// What it is called on its node; for people.
    pub name: String,
    /// What runs there, in words: an image, or the namespace.
    pub image: String,
    /// The network.
    pub network: NetworkId,
    /// The address it has to have; `None` takes the next free one.
    pub address: Option<IpAddr>,
    /// Further names.
    pub aliases: Vec<String>,
}

/// What runs in a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Image name, normalised (`my-image:latest`); `host:latest` is the host's own files.
    pub image: String,
    /// Replaces the image's entry point.
    pub command: Vec<String>,
    /// Arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty is `/`.
    pub dir: String,
    /// Hostname inside; empty is the task id's first 12 characters.
    pub hostname: String,
}

/// A wanted service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Unique name.
    pub name: String,
    /// User labels of the service.
    pub labels: BTreeMap<String, String>,
    /// What each task runs.
    pub container: ContainerSpec,
    /// The networks of each task, in interface order (eth0, eth1, ...), each with its aliases.
    pub networks: Vec<(NetworkId, Vec<String>)>,
    /// How many tasks.
    pub mode: ServiceMode,
    /// Which nodes suit.
    pub placement: Placement,
    /// What each task has for itself of its node.
    pub reservations: Resources,
    /// How tasks are replaced.
    pub renewal: Renewal,
    /// The specification as the API received it (JSON text), returned by `inspect`; not interpreted.
    pub api_spec: String,
}

/// The life of a task, in order (Docker's names).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaskState {
    /// Created.
    New,
    /// Waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node took it.
    Accepted,
    /// The node makes its namespace and files ready.
    Preparing,
    /// Could start.
    Ready,
    /// Being started.
    Starting,
    /// Runs.
    Running,
    /// Ended with exit code 0.
    Complete,
    /// Stopped because it was told to.
    Shutdown,
    /// Ended with an error.
    Failed,
    /// Could not be run at all.
    Rejected,
    /// To be forgotten.
    Remove,
    /// Its node is gone.
    Orphaned,
}

impl TaskState {
    /// Whether the task will never run (again).
    pub fn is_terminal(self) -> bool {
        self > TaskState::Running
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskState::New => "new",
            TaskState::Pending => "pending",
            TaskState::Assigned => "assigned",
            TaskState::Accepted => "accepted",
            TaskState::Preparing => "preparing",
            TaskState::Ready => "ready",
            TaskState::Starting => "starting",
            TaskState::Running => "running",
            TaskState::Complete => "complete",
            TaskState::Shutdown => "shutdown",
            TaskState::Failed => "failed",
            TaskState::Rejected => "rejected",
            TaskState::Remove => "remove",
            TaskState::Orphaned => "orphaned",
        })
    }
}

/// What a node says about a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// How far it is.
    pub state: TaskState,
    /// What happened, for people.
    pub message: String,
    /// What went wrong; empty if nothing.
    pub error: String,
    /// Exit code, once it ended. 128 + signal when killed.
    pub exit_code: Option<i32>,
    /// The task's first process on its host, while it runs.
    pub pid: Option<u32>,
    /// When.
    pub at: UnixTime,
}

/// One interface of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network: NetworkId,
    /// The task's address with the network's prefix length.
    pub address: IpNet,
    /// Further names.
    pub aliases: Vec<String>,
    /// The age of this allocation.
    pub generation: Generation,
}

/// A task as its node is told to have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskAssignment {
    /// The task.
    pub id: TaskId,
    /// Its service.
    pub service: ServiceId,
    /// Its service's name.
    pub service_name: String,
    /// Which of the replicas, from 1; 0 of a global service.
    pub slot: u64,
    /// The node that runs it.
    pub node: NodeId,
    /// What to run.
    pub container: ContainerSpec,
    /// Interfaces in order.
    pub attachments: Vec<Attachment>,
    /// Where to bring it: `Running`, `Shutdown`, or `Remove` (shut down, then forget).
    pub desired: TaskState,
    /// It belongs to no service: its node asked for it, and `service_name` is its own name.
    pub standalone: bool,
}

impl TaskAssignment {
    /// Its name: `service.slot`, or `service.node` of a global service.
    pub fn name(&self) -> String {
        if self.standalone {
            return self.service_name.clone();
        }
        task_name(&self.service_name, self.slot, Some(self.node))
    }

    /// The endpoints of this task.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointKey> + '_ {
        self.attachments.iter().map(|attachment| EndpointKey { network: attachment.network, task: self.id })
    }
}

/// A task's name: `service.slot`, or `service.node` where the service is global and the slot therefore 0.
pub fn task_name(service: &str, slot: u64, node: Option<NodeId>) -> String {
    match node {
        Some(node) if slot == 0 => format!("{service}.{node}"),
        _ => format!("{service}.{slot}"),
    }
}

/// The phase of an epoch. Beside these an epoch is retired: its master no longer exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EpochPhase {
    /// Received only; erased once all send with the current one.
    Previous,
    /// Sent with.
    Current,
    /// Received only; handed out a full interval early.
    Next,
}
