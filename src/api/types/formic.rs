//! Formic's own additions, under `/formic/`.

use serde::{Deserialize, Serialize};

pub use crate::agent::{Examination, ImageInfo, ManagerReach, PeerStatus, SaStatus, Status, SwarmInfo, SwarmState};

/// `POST /formic/images/import`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageImport {
    /// Its name to be.
    pub name: String,
    /// A root directory on the daemon's host.
    pub directory: String,
}

/// `POST /formic/attachments`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attach {
    /// The namespace's name below `/run/netns`.
    pub netns: String,
    /// Name or id of the network.
    pub network: String,
    /// The address it has to have; empty takes the next free one.
    pub address: String,
    /// Further names.
    pub aliases: Vec<String>,
}

/// What was attached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attached {
    /// The task that it is.
    pub id: String,
    /// Its address with the prefix length.
    pub address: String,
}

/// `POST /formic/debug/esp-keys`, on a connection that is upgraded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EspKeysRequest {
    /// The network: its id or name.
    pub network: String,
    /// That showing keys is meant.
    pub expose_keys: bool,
}

/// `GET /formic/keys`: the life of the managers' key ring. Never a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRing {
    /// Seconds between two rotations.
    pub rotation_secs: u64,
    /// A rotation asked for before its time: how many seconds ago.
    pub requested_secs_ago: Option<u64>,
    /// Oldest first.
    pub epochs: Vec<KeyEpoch>,
    /// Who is waited for, and why.
    pub late: Vec<LateNode>,
}

/// One epoch of the ring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyEpoch {
    /// Its number.
    pub epoch: u32,
    /// `previous`, `current` or `next`.
    pub phase: String,
    /// Seconds since it was handed out.
    pub handed_out_secs_ago: u64,
    /// Seconds since it became current.
    pub activated_secs_ago: Option<u64>,
    /// Nodes that count for it.
    pub participants: u64,
    /// Of those, the ones that hold it.
    pub ready: u64,
    /// Of those, the ones that send with it.
    pub sending: u64,
}

/// A node that a rotation waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LateNode {
    /// Its id.
    pub node: String,
    /// Its host's name.
    pub hostname: String,
    /// What it has not done yet.
    pub reason: String,
}
