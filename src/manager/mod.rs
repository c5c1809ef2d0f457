//! The managers' shell around `cluster`: storage, certificates, the control port, the loops that propose what
//! `cluster::schedule` and `cluster::ring` plan.
//!
//! - `handle`: what the API and the daemon hold.
//! - `store`: term, log and snapshot, each record sealed; what is retired can never be read again. `lock`: the keys of
//!   it on disk, and autolock. `disk`: where its files can be made to fail.
//! - `replica`: drives the consensus (pure): make durable, send, apply, tell the proposers. `actor`: the one writer,
//!   the thread that runs it on the store.
//! - `members`: who should take part in the consensus. `peers`: its streams between managers. `credentials`: the
//!   certificate of those, and of the control port. `forward`: what managers that do not lead ask of the leader.
//! - `planner`: proposes what time and the state ask for: placements, rotations, nodes that fell silent.
//! - `authority`: the certificate authority, and its successor (`cluster` says when the former root is dropped).
//! - `listener`, `admission`, `session`, `limits`: the control port: who may speak; joining; the sessions of the nodes;
//!   how much of each.
//! - `fork`: `--force-new-cluster`: one manager goes on alone.
//! - `news`: what the managers make of what nodes say. `push`: what one node may know of the state. `book`: the signed records.
//!
//! Any manager takes any command and passes it on, to the next leader when the present one is not reached; the leader
//! alone holds sessions, admits, signs certificates and plans. All that it plans by is the replicated state and its time
//! since it began to lead.
//!
//! Invariants: a command is durable at a majority before its proposer hears of it; readers see applied states only; a network's key
//! goes only to nodes with a task on the network; a master goes nowhere.

mod actor;
mod admission;
mod authority;
pub(crate) mod book;
mod credentials;
mod disk;
pub(crate) mod drops;
mod fork;
mod forward;
pub(crate) mod handle;
mod limits;
mod listener;
mod lock;
pub(crate) mod members;
pub(crate) mod news;
pub(crate) mod peers;
pub(crate) mod planner;
pub(crate) mod push;
pub(crate) mod replica;
mod session;
mod store;
mod tasks;

pub use handle::{InitParams, Manager, ManagerError};
#[cfg(test)]
pub(crate) use handle::{first_authority, issue_first, new_root};
pub use lock::NodeSeal;
pub use news::SILENT_MANAGER;
pub use store::StoreError;

use crate::types::UnixTime;
use std::time::SystemTime;

/// `N` bytes of the operating system's randomness.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let drawn = aws_lc_rs::rand::fill(&mut bytes);
    assert!(drawn.is_ok(), "without randomness there are no keys: stop");
    bytes
}

/// The wall clock.
fn wall_clock() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests;
