//! The node: its part in a swarm, its session with the managers, its tasks, its keys and its gossip.
//!
//! - `node`, `change`: the handle that the API holds; how a membership begins and ends.
//! - `held`: a membership that waits for the unlock key, or for its disk.
//! - `membership`: what makes this host a node, on disk. `machine`: what this host is.
//! - `runtime`: what runs while the host is a node.
//! - `session`: carries messages from and to a manager. `seek`: to which one (pure).
//! - `engine`, `effects`, `status`: one loop around the pure machines of this node.
//! - `standalone`: what this node puts on attachable networks by itself.
//! - `examine`: asks peers and managers for an answer, for `formic doctor`.
//! - `renewal`: keeps the node's certificate young.
//! - `core`, `tasks`, `push`: pure: keys, gossip, records and tables; the tasks' lives; the parts of a push.

mod address;
mod change;
pub(crate) mod core;
mod effects;
mod engine;
mod examine;
mod held;
mod machine;
mod membership;
mod model;
mod node;
pub(crate) mod push;
mod renewal;
mod role;
mod runtime;
pub(crate) mod seek;
mod session;
mod spawn;
mod standalone;
mod status;
pub(crate) mod tasks;

pub use machine::{machine, memory_bytes, processors};
pub use model::{
    AttachedNamespace, Examination, ExecIo, ExecRequest, ImageInfo, InitRequest, JoinTarget, LOCKED, LocalTask,
    ManagerReach, NodeError, PeerStatus, SaStatus, Status, SwarmInfo, SwarmState,
};
pub use node::{Node, NodeSettings};
