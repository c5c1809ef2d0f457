//! What the API asks of a node, and what it answers.

use crate::types::{Availability, ClusterSpec, NetworkId, NodeId, Role, TaskAssignment, TaskId, TaskStatus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// Why the node could not do what was asked. The texts are Docker's where Docker has one.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// What was asked is malformed or impossible (400).
    #[error("{0}")]
    Invalid(String),
    /// It is not allowed here (403).
    #[error("{0}")]
    Forbidden(String),
    /// No such task or image here (404).
    #[error("{0}")]
    NotFound(String),
    /// The node is in the wrong state for it (503).
    #[error("{0}")]
    Unavailable(String),
    /// The manager's files are locked (503).
    #[error("{LOCKED}")]
    Locked,
    /// They are locked with another key (401).
    #[error("{0}")]
    WrongKey(String),
    /// They are not locked (409).
    #[error("swarm is not locked")]
    NotLocked,
    /// The manager's state cannot be used until its disk can (503).
    #[error("{0}")]
    Disk(String),
    /// Something failed (500).
    #[error("{0}")]
    Failed(String),
}

/// What a locked node answers.
pub const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";

/// Where this node stands, in Docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwarmState {
    /// In no swarm.
    Inactive,
    /// In a swarm, no session yet.
    Pending,
    /// In a swarm.
    Active,
    /// A manager whose files need the unlock key: nothing of the swarm runs here until it is given.
    Locked,
    /// In a swarm, and something is wrong: see the error.
    Error,
}

/// This node's part in a swarm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SwarmInfo {
    /// Where it stands.
    pub state: SwarmState,
    /// Its id.
    pub node: Option<NodeId>,
    /// Its advertised address.
    pub address: Option<IpAddr>,
    /// Its role.
    pub role: Option<Role>,
    /// What is wrong; empty if nothing.
    pub error: String,
    /// The managers it knows.
    pub managers: Vec<(NodeId, SocketAddr)>,
}

/// `swarm init`. Addresses as users type them: `IP`, `IP:PORT`, an interface's name; empty where not given.
#[derive(Debug, Clone)]
pub struct InitRequest {
    /// Where to listen for the control protocol.
    pub listen_address: String,
    /// What other nodes are told.
    pub advertise_address: String,
    /// Where ESP is sent from, if elsewhere.
    pub data_path_address: String,
    /// Settings; `data_path_port` in it is this node's ESP port too.
    pub spec: ClusterSpec,
    /// Whether tasks may be placed here.
    pub availability: Availability,
    /// Drop the quorum and start over from this node's state.
    pub force_new_cluster: bool,
}

/// `swarm join`.
#[derive(Debug, Clone)]
pub struct JoinTarget {
    /// As in [`InitRequest`].
    pub listen_address: String,
    /// As in [`InitRequest`].
    pub advertise_address: String,
    /// As in [`InitRequest`].
    pub data_path_address: String,
    /// Managers to ask, `IP:PORT`.
    pub remotes: Vec<String>,
    /// `SWMTKN-1-...`.
    pub token: String,
    /// Whether tasks may be placed here.
    pub availability: Availability,
}

/// A task on this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalTask {
    /// As assigned.
    pub assignment: TaskAssignment,
    /// As it is.
    pub status: TaskStatus,
}

/// A namespace of this host that is to be on a network.
#[derive(Debug, Clone)]
pub struct AttachedNamespace {
    /// Its name below `/run/netns`.
    pub namespace: String,
    /// The network.
    pub network: NetworkId,
    /// The address it has to have; `None` takes the next free one.
    pub address: Option<IpAddr>,
    /// Further names.
    pub aliases: Vec<String>,
}

/// An image on this node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Normalised name (`my-image:latest`).
    pub name: String,
    /// Bytes of its files, as counted at the import.
    pub size_bytes: Option<u64>,
    /// When it was imported, unix seconds.
    pub created_at: u64,
}

/// The standard streams of an exec.
pub struct ExecIo {
    /// Read by the process.
    pub stdin: OwnedFd,
    /// Written by the process.
    pub stdout: OwnedFd,
    /// Written by the process.
    pub stderr: OwnedFd,
}

/// `exec` in a task of this node.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// The task.
    pub task: TaskId,
    /// Command and arguments; not empty.
    pub command: Vec<String>,
    /// `NAME=value`, beside the task's own.
    pub env: Vec<String>,
}

/// What `formic status` shows. Ages are in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Formic's version.
    pub version: String,
    /// This node.
    pub swarm: SwarmInfo,
    /// Host name.
    pub hostname: String,
    /// This boot.
    pub boot: String,
    /// Log index of this boot.
    pub boot_index: Option<u64>,
    /// Age of the last word of the managers; `None` without a session.
    pub manager_heard_ms_ago: Option<u64>,
    /// Seconds by which this host's clock was ahead of the manager's when that was last heard.
    pub clock_ahead_secs: Option<i64>,
    /// The MTU of the interface that carries the overlay, as it is now; `None` when it does not tell.
    pub underlay_mtu_bytes: Option<u32>,
    /// The MTU of the containers' devices.
    pub inner_mtu_bytes: Option<u32>,
    /// The nodes this one shares a network with, or knows by gossip.
    pub peers: Vec<PeerStatus>,
    /// Networks with a task here: id, name, transform, subnet.
    pub networks: Vec<(NetworkId, String, String, String)>,
    /// Security associations.
    pub sas: Vec<SaStatus>,
    /// Epochs this node holds, with their phase.
    pub epochs: Vec<(u32, String)>,
    /// Dropped packets by reason, only reasons that occurred; data plane, gossip (`gossip.` in front) and control
    /// port (`control.` in front).
    pub drops: BTreeMap<String, u64>,
    /// Tasks here: id, name, state.
    pub tasks: Vec<(TaskId, String, String)>,
    /// How the data path does its work: each offload and the cipher, and in words how it is with it.
    pub data_path: Vec<(String, String)>,
}

impl Status {
    /// Of a node that runs no membership.
    pub(super) fn inactive(swarm: SwarmInfo, hostname: String) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            swarm,
            hostname,
            boot: String::new(),
            boot_index: None,
            manager_heard_ms_ago: None,
            clock_ahead_secs: None,
            underlay_mtu_bytes: None,
            inner_mtu_bytes: None,
            peers: Vec::new(),
            networks: Vec::new(),
            sas: Vec::new(),
            epochs: Vec::new(),
            drops: BTreeMap::new(),
            tasks: Vec::new(),
            data_path: Vec::new(),
        }
    }
}

/// What [`Node::examine`](super::Node::examine) found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Examination {
    /// How long the peers were asked for: what is older than this was there before.
    pub asked_for_ms: u64,
    /// What is known at its end.
    pub status: Status,
    /// The control ports of the other managers.
    pub managers: Vec<ManagerReach>,
}

/// Whether a manager's control port can be reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ManagerReach {
    /// Its node.
    pub node: NodeId,
    /// Its control address.
    pub address: SocketAddr,
    /// Why not; `None` if it can.
    pub error: Option<String>,
}

/// One peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerStatus {
    /// It.
    pub node: NodeId,
    /// Its data address.
    pub address: SocketAddr,
    /// Its gossip address.
    pub gossip_address: SocketAddr,
    /// What gossip thinks: `alive`, `suspect`, `dead`, `unknown`.
    pub gossip: String,
    /// Age of the last authenticated gossip datagram from it.
    pub gossip_heard_ms_ago: Option<u64>,
    /// Age of its last acknowledgement of a gossip datagram: both directions work.
    pub gossip_answered_ms_ago: Option<u64>,
    /// Whether there are keys for ESP to it: both nodes have a task on a common network.
    pub esp: bool,
    /// Age of its last answer to an ESP probe: both directions work.
    pub esp_answered_ms_ago: Option<u64>,
    /// Age of the last authenticated ESP packet from it.
    pub esp_heard_ms_ago: Option<u64>,
    /// Age of the last ESP packet to it.
    pub esp_sent_ms_ago: Option<u64>,
    /// Octets of the longest packet of a container that the way to it carries; `None` while that is not known.
    pub carries_bytes: Option<u16>,
    /// What this says in words: `ok`, `idle`, or e.g. `one way: we send, nothing comes back (is UDP 4500 from 10.0.0.2 blocked?)`.
    pub verdict: String,
}

/// One security association.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SaStatus {
    /// `0x...`.
    pub spi: String,
    /// `in` or `out`.
    pub direction: String,
    /// The peer.
    pub peer: NodeId,
    /// The network.
    pub network: NetworkId,
    /// The epoch.
    pub epoch: u32,
    /// Whether it is used: for `out`, what the pair sends with; for `in`, whether it accepts.
    pub active: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}
