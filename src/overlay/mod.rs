//! The overlay's policy: which packet may go where, and the one list of reasons why one does not.
//!
//! A [`NetworkTable`] knows, for one network, the local endpoints and the owners of all others. It answers two
//! questions and holds no packet: [`NetworkTable::classify`] for a packet that a container sent, and
//! [`NetworkTable::accept`] for one that a peer's security association authenticated. It knows no sockets, no
//! keys and no time; peers and local endpoints are small numbers that the data plane gave out.
//!
//! Invariants: a packet leaves only with its endpoint's own address as source; a packet enters only if its
//! source belongs to the very peer that authenticated it; of two owners of an address the one with the higher
//! generation holds, whatever the order in which they became known.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod drops;
mod table;
#[cfg(test)]
mod tests;

pub use drops::{DropCounters, DropReason};
pub use table::{LocalIndex, LocalTaken, MAX_REMOTES_PER_NETWORK, NetworkTable, PeerIndex, RemoteUpdate, Verdict};
