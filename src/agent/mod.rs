//! The node: its part in a swarm, its session with the managers, its tasks, its keys and its gossip.

mod node;

pub use node::{
    ExecIo, ExecRequest, ImageInfo, InitRequest, JoinTarget, LocalTask, Node, NodeError, PeerStatus, SaStatus, Status,
    SwarmInfo, SwarmState,
};
