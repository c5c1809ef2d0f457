//! TLS of the control protocol, for agents and managers: TLS 1.3 only, X25519MLKEM768 preferred, ALPN `formic/2`,
//! no tickets, no early data. Certificates name a node, its role and its swarm (CN, OU, O), never a host.
//!
//! - `identity`: a node's key and certificate chain, and what a peer's certificate says.
//! - `config`: who is believed: a manager under the root that a join token pins, or under the swarm's known root.
//! - `client`: the requests of an agent (join, session, renew, certified, leave) and of a manager to another.
//! - `stream`: frames over a stream, with bounds and time-outs; the server's side of the handshake.
//!
//! Not here: who may do what (the manager's dispatcher) and the making of certificates (the manager's authority).

mod client;
mod config;
mod identity;
mod stream;

pub(crate) use client::LEADER_STEPS;
pub use client::{
    ConnectError, Session, Writer, certified, fetch_state, forward, join, leave, open_consensus, open_session,
    read_index, renew,
};
pub use config::{PeerError, server_config};
pub use identity::{Identity, IdentityError, NodeKey, Peer};
pub(crate) use identity::{replace_private, write_private};
pub(crate) use stream::SKEW_ALLOWED;
pub use stream::{Accepted, FrameReader, FrameWriter, StreamError, accept, explain};

#[cfg(test)]
mod tests;
