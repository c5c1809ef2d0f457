//! Consensus of the managers: which commands are committed, in which order, and who leads. A pure machine: time and
//! a seed come in, what to store, send and apply comes out. Nothing here is a clock, a file or a socket.
//!
//! ```text
//!   propose, read, change, step(from, message), handle_timeout(now)  ->  [Raft]  ->  poll_ready(): Ready
//!     1. ready.save       stored and synced, before anything below
//!     2. ready.messages   sent; any of them may be lost, late, doubled or overtaken
//!     3. ready.committed  applied in order;  ready.reads answered once their index is applied
//! ```
//!
//! What is acknowledged is synced, since a [`Ready`]'s messages follow its save; the driver keeps that order.
//!
//! - `message`: entries, memberships, what managers say to each other.
//! - `machine`: [`Raft`]: proposals, messages, what is ready.
//! - `election`: pre-votes, leader stickiness, time-outs, check-quorum, handing over the lead.
//! - `replicate`: how queued calls become messages of bounded size.
//! - `reads`: reads that see every command committed before they were asked (read index).
//! - `snapshot`: truncation of the log, transfer of a snapshot in bounded pieces.
//! - `change`: who votes: learners first, then voters through a joint majority.
//!
//! The core (terms, votes, log matching, commit, joint majorities) is the crate `noraft`: no clock, randomness or
//! threads inside, and no payloads: it sees positions, the entries' content stays here. Beside it stood `raft` 0.7
//! (proven, with pre-vote and read index), whose election time-outs come from the thread's random generator and
//! whose messages need a protobuf library with open advisories. What `noraft` leaves out is made here, each in a
//! file of its own: pre-vote and stickiness (a manager that was cut off, or removed, does not disturb a healthy
//! leader), check-quorum, read index, bounded messages and pieces.
//!
//! Invariants, checked by the simulated clusters in `tests`: one leader a term; what was committed is never lost or
//! changed; all logs agree up to what is committed; a read sees what was committed before it; after the faults end,
//! commands are committed again.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod change;
mod election;
mod machine;
mod message;
mod reads;
mod replicate;
mod snapshot;
#[cfg(test)]
mod tests;

pub use change::{Change, ChangeError};
pub use machine::{Progress, Raft, Settings};
pub use message::{Body, Entry, Member, Membership, Message, Payload, Peer, Position};

use crate::types::Time;
use std::time::Duration;

/// Bytes of one command at most: it fits in a frame of the control protocol with all that goes around it.
pub const MAX_COMMAND_BYTES: usize = 768 << 10;
/// Bytes of commands in one message, unless a single one is longer: keeps heartbeats from waiting behind bulk.
pub const MAX_APPEND_BYTES: usize = 256 << 10;
/// Entries in one message.
pub const MAX_APPEND_ENTRIES: usize = 256;
/// Bytes of a snapshot in one message, for the same reason.
pub const MAX_PIECE_BYTES: usize = 256 << 10;
/// Bytes of a snapshot at most: the limits of the state stay far below it.
pub const MAX_SNAPSHOT_BYTES: u64 = 1 << 30;
/// Bytes and number of entries that wait for a majority: beyond it proposals are refused instead of piling up.
pub const MAX_WAITING_BYTES: usize = 16 << 20;
/// See [`MAX_WAITING_BYTES`].
pub const MAX_WAITING_ENTRIES: u64 = 4096;
/// Committed entries in one [`Ready`]: bounds how long the applied state is held.
pub const MAX_COMMITTED_ENTRIES: usize = 256;
/// Managers at most, learners included: seven voters, and as many on their way in or out.
pub const MAX_MEMBERS: usize = 14;
/// Reads that wait at once.
pub const MAX_READS: usize = 4096;

/// The intervals of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of the leader.
    pub heartbeat: Duration,
    /// A follower that hears of no leader for a random time between one and two of it asks for votes; one that has
    /// heard of the leader within it gives none; a leader that hears of no majority for twice of it steps down.
    pub election: Duration,
}

impl Default for Timing {
    /// For managers a few milliseconds to a hundred apart: a leader that dies is followed within two to three seconds.
    fn default() -> Timing {
        Timing { heartbeat: Duration::from_millis(200), election: Duration::from_millis(1000) }
    }
}

/// What a member must not forget between two starts, besides its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct HardState {
    /// The newest term it has heard of.
    pub term: u64,
    /// Whom it gave its vote of that term.
    pub vote: Option<Member>,
}

/// The applied state at a position, as the driver encoded it, and who the members were.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Snapshot {
    /// The last entry in it.
    pub position: Position,
    /// The members after that entry.
    pub membership: Membership,
    /// The state.
    pub data: Payload,
}

/// What to make durable, all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Save {
    /// Takes the place of everything stored: snapshot and log.
    pub snapshot: Option<Snapshot>,
    /// Takes the place of the stored one.
    pub hard: HardState,
    /// Entries after this index are removed from the log (none are, when it is at or above the last one).
    pub after: u64,
    /// Follow it.
    pub entries: Vec<Entry>,
}

/// The end of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadDone {
    /// As given to [`Consensus::read`].
    pub token: u64,
    /// The read may be answered from a state with this index applied. `None`: this member is not (or no longer) the
    /// leader, or a majority could not be reached: ask again.
    pub index: Option<u64>,
}

/// Who leads, as this member sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lead {
    /// The term.
    pub term: u64,
    /// The leader of that term, once known.
    pub leader: Option<Member>,
    /// It is this member, and an entry of its term was handed out: the applied state shows all that came before.
    pub established: bool,
}

/// What is to be done, in the order of the fields.
#[derive(Debug, Default)]
pub struct Ready {
    /// To be made durable first.
    pub save: Option<Save>,
    /// A snapshot of the leader that takes the place of the applied state (it is in `save` too).
    pub install: Option<Snapshot>,
    /// To be sent then.
    pub messages: Vec<(Member, Message)>,
    /// To be applied, in order.
    pub committed: Vec<Entry>,
    /// Reads that ended.
    pub reads: Vec<ReadDone>,
    /// A member needs a snapshot: hand one in with [`Raft::provide_snapshot`].
    pub snapshot_wanted: bool,
    /// Who leads from now on, when that has changed.
    pub lead: Option<Lead>,
}

/// Why a command was not taken. It was not appended anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another member leads, or none.
    #[error("this manager is not the leader")]
    NotLeader,
    /// More than [`MAX_COMMAND_BYTES`].
    #[error("a command of {0} bytes is over the limit of {MAX_COMMAND_BYTES}")]
    TooLong(usize),
    /// Too much waits for a majority already.
    #[error("too many changes wait for a majority of the managers")]
    Busy,
}

/// Why the machine cannot go on. The driver ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// What is stored here contradicts the leader's committed log: the store is of another life, or was damaged.
    #[error("this manager's log contradicts the leader's: demote this node, or leave the swarm with it and join again")]
    Contradiction,
}

/// What a driver needs of whatever decides the order of commands. The managers' own is [`Raft`]; an external store
/// that orders commands (etcd, Consul) can take its place behind this trait: it hands out committed entries, and
/// has no saves and no messages of members.
pub trait Consensus {
    /// Appends a command if this member leads. It is committed when it comes out of [`Consensus::poll_ready`] with
    /// this position; another entry with this index, or with a later one and a newer term, means that it is lost.
    fn propose(&mut self, command: Payload, now: Time) -> Result<Position, ProposeError>;

    /// Asks for an index from which a read is linearizable. Answered by [`Ready::reads`].
    fn read(&mut self, token: u64, now: Time);

    /// Time has passed.
    fn handle_timeout(&mut self, now: Time);

    /// When [`Consensus::handle_timeout`] wants to be called.
    fn poll_timeout(&self) -> Time;

    /// What is to be done now. To be done completely, and in order, before anything else of the machine is called.
    fn poll_ready(&mut self) -> Option<Ready>;

    /// Who leads.
    fn lead(&self) -> Lead;

    /// Drops the log up to `index`, which must be applied, in favour of a snapshot of the state there. To be stored
    /// at once. `None` when there is nothing to drop.
    fn compact(&mut self, index: u64, state: Payload) -> Option<Save>;
}
