//! The control protocol between agents and managers: TLS 1.3, ALPN [`ALPN`], frames of a big-endian u32 length
//! (at most [`MAX_FRAME_BYTES`]) and one postcard value. The first frame of the client is an [`Opening`], the
//! server's first an [`Answer`]; after [`Answer::Opened`] the agent sends [`FromAgent`] and the manager [`ToAgent`].

use crate::types::{
    AttachRequest, Availability, BootId, ClusterId, Epoch, EpochPhase, Fork, Key32, Machine, NetworkId, NetworkName,
    NodeAddresses, NodeId, Offloads, PublicKey, Queues, Role, TaskAssignment, TaskId, TaskStatus, Transform, UnixTime,
    carried_key,
};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use zeroize::Zeroizing;

/// ALPN of this protocol; the number is its version.
pub const ALPN: &[u8] = b"formic/2";

/// Bytes of a frame's content at most: bounds what a peer can make us hold.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Bytes of a snapshot in one frame.
pub const STATE_PIECE_BYTES: usize = 256 << 10;

/// Entries of a list in one page: keeps each frame far below [`MAX_FRAME_BYTES`].
pub const PAGE_ENTRIES: usize = 256;

/// The client's first frame.
#[derive(Serialize, Deserialize)]
pub enum Opening {
    /// A host without a certificate asks to be admitted.
    Join(JoinRequest),
    /// A node (by its certificate) opens its session.
    Session(SessionRequest),
    /// A node (by its certificate) asks for a new certificate.
    Renew {
        /// PKCS #10, DER.
        csr: Vec<u8>,
    },
    /// A node (by its certificate) leaves the swarm.
    Leave,
    /// A manager (by its certificate) sends its messages of the consensus: frames of one each, answered on a stream
    /// of the other's own.
    Consensus {
        /// The sender's seat.
        from: u64,
        /// The seat that is meant.
        to: u64,
        /// Where the sender is reached: who is new may not be known to all.
        address: SocketAddr,
    },
    /// A manager passes a command on to the leader. The command follows in the next frame, as bytes.
    Forward,
    /// A manager asks from which log index its own state is new enough for a read.
    Read,
    /// A manager that has no state yet asks for the leader's: a snapshot in frames of at most [`STATE_PIECE_BYTES`].
    State,
    /// A node has the certificate that it shows here on its disk: it needs none of a former root any more.
    Certified {
        /// SHA-256 of the root that issued it.
        root: [u8; 32],
    },
}

/// What a joining host says.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The secret of the join token.
    pub secret: Zeroizing<[u8; 16]>,
    /// PKCS #10, DER. Only its key counts: the manager chooses the names.
    pub csr: Vec<u8>,
    /// Its host's name.
    pub hostname: String,
    /// Its version.
    pub software: String,
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// Whether tasks may be placed.
    pub availability: Availability,
}

/// What a node says when it opens its session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SessionRequest {
    /// This start of its daemon.
    pub boot: BootId,
    /// Its host's name.
    pub hostname: String,
    /// Its version.
    pub software: String,
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// What its host is.
    pub machine: Machine,
    /// The queues it sends with in this boot.
    pub queues: Queues,
}

/// The server's first frame.
#[derive(Serialize, Deserialize)]
pub enum Answer {
    /// No, with the reason as the user shall read it.
    Refused {
        /// The reason.
        reason: String,
    },
    /// The node of the certificate was removed from the swarm: it is to leave.
    Removed,
    /// Admitted.
    Joined(Joined),
    /// The session is open.
    Opened {
        /// The log index of this boot.
        boot_index: u64,
    },
    /// A new certificate.
    Renewed {
        /// The chain, DER, leaf first, root last.
        chain: Vec<Vec<u8>>,
    },
    /// The node has left.
    Left,
    /// A newer boot of the node has opened a session: this one is over for good.
    FormerBoot,
    /// Only the leader does this, and another manager leads, or none.
    NotLeader {
        /// Where the leader is, if there is one.
        leader: Option<SocketAddr>,
    },
    /// Messages of the consensus are welcome.
    Listening,
    /// What became of a forwarded command, as the managers' own bytes.
    Forwarded {
        /// Them.
        outcome: Vec<u8>,
    },
    /// A state with this log index applied is new enough.
    Index {
        /// It.
        index: u64,
    },
    /// The snapshot follows.
    State {
        /// Its bytes.
        total: u64,
    },
    /// It is known, and will not be forgotten.
    Noted,
}

/// What an admitted host gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joined {
    /// Its id.
    pub node: NodeId,
    /// The swarm.
    pub cluster: ClusterId,
    /// The life of its state.
    pub fork: Fork,
    /// What it may do.
    pub role: Role,
    /// UDP port of ESP on every node, unless the node's own configuration says otherwise.
    pub data_path_port: u16,
    /// Its certificate chain, DER, leaf first, root last.
    pub chain: Vec<Vec<u8>>,
}

/// From an agent in its session.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromAgent {
    /// I live. Answered by [`ToAgent::Alive`].
    Heartbeat,
    /// My X25519 public for an epoch.
    Public {
        /// The epoch.
        epoch: Epoch,
        /// The public.
        public: PublicKey,
    },
    /// I hold my keys of this epoch and the records with publics of the participants on my networks.
    Ready {
        /// The epoch.
        epoch: Epoch,
    },
    /// I send with this epoch to every live peer.
    Sending {
        /// The epoch.
        epoch: Epoch,
    },
    /// An SA reached its soft limit: rotate early.
    RotateEarly,
    /// News of my tasks. At most [`PAGE_ENTRIES`].
    Tasks {
        /// What I say.
        statuses: Vec<(TaskId, TaskStatus)>,
    },
    /// Nothing is left of a task.
    TaskGone {
        /// The task.
        id: TaskId,
    },
    /// A container or a namespace of this node is to be on an attachable network. Answered by a push with the task, or
    /// by [`ToAgent::AttachRefused`]; said again it changes nothing.
    Attach {
        /// The task that it is to be, drawn by the node.
        id: TaskId,
        /// As wanted.
        request: AttachRequest,
    },
}

/// From a manager in a session. A *push* is any number of parts, then [`ToAgent::Commit`]: the agent collects the
/// parts and applies them together. All lists but `Records` are complete in every push (desired state).
#[derive(Serialize, Deserialize)]
pub enum ToAgent {
    /// Answer to a heartbeat.
    Alive {
        /// The manager's clock: for people, nothing is decided by it.
        at: UnixTime,
    },
    /// Part: the swarm.
    Swarm(SwarmView),
    /// Part: the whole key ring as this node may know it.
    Ring(RingView),
    /// Part, paged: what every node knows of every network.
    Names(Vec<NetworkName>),
    /// Part, paged: the networks that have a task on this node.
    Networks(Vec<NetworkView>),
    /// Part, paged: the tasks of this node.
    Tasks(Vec<TaskAssignment>),
    /// Part, paged: signed records that this session has not been given yet (encoded `wire::record`s).
    Records(Vec<Vec<u8>>),
    /// The push is complete.
    Commit {
        /// The log index it shows.
        index: u64,
    },
    /// The session ends; the node is no longer part of the swarm.
    Removed,
    /// Somebody else opens a session of this node and boot: does this one live? Answered by [`FromAgent::Heartbeat`] at
    /// once.
    Probe,
    /// What [`FromAgent::Attach`] asked for is not given.
    AttachRefused {
        /// The task that was to be.
        id: TaskId,
        /// Why, for people.
        reason: String,
    },
}

/// A manager, as nodes know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerView {
    /// Its node.
    pub node: NodeId,
    /// Its seat: one that is told another than it has must take that, without what it remembers.
    pub seat: u64,
    /// Its control port.
    pub address: SocketAddr,
}

/// What a node knows of the swarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwarmView {
    /// The swarm.
    pub cluster: ClusterId,
    /// The life of its state.
    pub fork: Fork,
    /// Seconds between heartbeats.
    pub heartbeat_secs: u32,
    /// What no node may use of what its kernel and its devices can do.
    pub disabled_offloads: Offloads,
    /// The managers.
    pub managers: Vec<ManagerView>,
    /// The Ed25519 keys that sign records: at most two.
    pub attestation: Vec<PublicKey>,
    /// The root certificates that are trusted, DER: at most two, the one that issues last.
    pub roots: Vec<Vec<u8>>,
    /// Removed nodes: nothing of theirs is accepted.
    pub gone: Vec<NodeId>,
}

/// The ring as one node may know it.
#[derive(Serialize, Deserialize)]
pub struct RingView {
    /// Oldest first, at most three.
    pub epochs: Vec<EpochView>,
}

/// One epoch as one node may know it.
#[derive(Serialize, Deserialize)]
pub struct EpochView {
    /// Its number.
    pub epoch: Epoch,
    /// Its phase.
    pub phase: EpochPhase,
    /// The key of gossip.
    #[serde(with = "carried_key")]
    pub gossip_key: Key32,
    /// The keys of the networks that have a task on this node.
    pub networks: Vec<NetworkKey>,
    /// The nodes that count for its readiness.
    pub participants: Vec<NodeId>,
}

/// One network's key of one epoch.
#[derive(Serialize, Deserialize)]
pub struct NetworkKey {
    /// The network.
    pub network: NetworkId,
    /// Its key.
    #[serde(with = "carried_key")]
    pub key: Key32,
}

/// A network that has a task on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// Its id.
    pub id: NetworkId,
    /// Its name.
    pub name: String,
    /// What ESP does to its packets.
    pub transform: Transform,
    /// Its subnet.
    pub subnet: IpNet,
    /// The MTU inside at most, in bytes.
    pub mtu_bytes: Option<u32>,
    /// The nodes that have a task on it, and whether each has a session now.
    pub members: Vec<(NodeId, bool)>,
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod fuzz_tests;
