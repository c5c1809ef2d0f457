//! Entries, memberships, and what the members say to each other.

use super::machine::log_position;
use crate::types::NodeId;
use noraft::ClusterConfig;
use serde::de::{Deserializer, Error, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use zeroize::Zeroizing;

/// One manager's seat. A seat is never taken twice: a manager that was demoted and promoted again has lost its log
/// and its votes, so it gets another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Member(pub u64);

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position {
    /// The term of the leader that wrote the entry. Of two logs, the one with the newer last term is newer.
    pub term: u64,
    /// Its number.
    pub index: u64,
}

/// A command or a state, encoded. It may hold keys: it is wiped when its last owner drops it, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(Arc<Zeroizing<Vec<u8>>>);

impl Payload {
    /// Takes over encoded bytes.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Payload {
        Payload(Arc::new(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Payload, D::Error> {
        struct Bytes;

        impl<'de> Visitor<'de> for Bytes {
            type Value = Payload;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Payload, E> {
                Ok(Payload::new(Zeroizing::new(bytes.to_vec())))
            }
        }

        deserializer.deserialize_bytes(Bytes)
    }
}

/// Where a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The node it runs on.
    pub node: NodeId,
    /// Its control port.
    pub address: SocketAddr,
}

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Membership {
    /// They elect and decide.
    pub voters: BTreeSet<Member>,
    /// While the voters change: those to come. A majority of both sets decides then.
    pub incoming: BTreeSet<Member>,
    /// They get the log and have no say.
    pub learners: BTreeSet<Member>,
    /// All of them.
    pub peers: BTreeMap<Member, Peer>,
}

impl Membership {
    /// A first member, alone.
    pub fn alone(member: Member, peer: Peer) -> Membership {
        Membership {
            voters: BTreeSet::from([member]),
            peers: BTreeMap::from([(member, peer)]),
            ..Membership::default()
        }
    }

    /// Whether the voters are being changed.
    pub fn is_joint(&self) -> bool {
        !self.incoming.is_empty()
    }

    /// Whether the member votes.
    pub fn is_voter(&self, member: Member) -> bool {
        self.voters.contains(&member) || self.incoming.contains(&member)
    }

    /// The member on a node.
    pub fn member_on(&self, node: NodeId) -> Option<Member> {
        self.peers.iter().find(|(_, peer)| peer.node == node).map(|(member, _)| *member)
    }

    /// Whether the members for which `have` holds can decide.
    pub fn is_quorum(&self, have: impl Fn(Member) -> bool) -> bool {
        let majority = |set: &BTreeSet<Member>| set.iter().filter(|member| have(**member)).count() > set.len() / 2;
        majority(&self.voters) && (self.incoming.is_empty() || majority(&self.incoming))
    }

    /// Whether it makes sense, whoever said so.
    pub(super) fn is_sound(&self) -> bool {
        let mut all = &(&self.voters | &self.incoming) | &self.learners;
        let apart = self.learners.is_disjoint(&self.voters) && self.learners.is_disjoint(&self.incoming);
        let known = self.peers.len() == all.len() && self.peers.keys().all(|member| all.remove(member));
        !self.voters.is_empty() && apart && known && self.peers.len() <= super::MAX_MEMBERS
    }

    pub(super) fn config(&self) -> ClusterConfig {
        let ids = |set: &BTreeSet<Member>| set.iter().map(|member| noraft::NodeId::new(member.0)).collect();
        let mut config = ClusterConfig::new();
        config.voters = ids(&self.voters);
        config.new_voters = ids(&self.incoming);
        config.non_voters = ids(&self.learners);
        config
    }

    /// The membership that `config` means; where its members are is known from `before` and `added`.
    pub(super) fn from_config(
        config: &ClusterConfig,
        before: &Membership,
        added: Option<(Member, Peer)>,
    ) -> Membership {
        let members = |set: &BTreeSet<noraft::NodeId>| set.iter().map(|id| Member(id.get())).collect();
        let mut peers = before.peers.clone();
        peers.extend(added);
        peers.retain(|member, _| config.contains(noraft::NodeId::new(member.0)));
        Membership {
            voters: members(&config.voters),
            incoming: members(&config.new_voters),
            learners: members(&config.non_voters),
            peers,
        }
    }
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A leader begins its term.
    Term,
    /// Who takes part from here on (as soon as it is in a log, committed or not).
    Members(Membership),
    /// A command for the replicated state.
    Command(Payload),
}

impl Body {
    /// Bytes that count for the limits.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Body::Command(payload) => payload.bytes().len(),
            Body::Term | Body::Members(_) => 0,
        }
    }
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place.
    pub position: Position,
    /// What it says.
    pub body: Body,
}

impl Entry {
    pub(super) fn kind(&self) -> noraft::LogEntry {
        match &self.body {
            Body::Term => noraft::LogEntry::Term(noraft::Term::new(self.position.term)),
            Body::Members(membership) => noraft::LogEntry::ClusterConfig(membership.config()),
            Body::Command(_) => noraft::LogEntry::Command,
        }
    }
}

/// Whether entries can follow `previous` in a log of a leader of `term`.
pub(super) fn are_sound(previous: Position, entries: &[Entry], term: u64) -> bool {
    let mut last = previous;
    entries.iter().all(|Entry { position, body }| {
        let follows = last.index.checked_add(1) == Some(position.index) && position.term <= term;
        let in_term = match body {
            Body::Term => position.term > last.term,
            Body::Members(membership) => position.term == last.term && membership.is_sound(),
            Body::Command(payload) => position.term == last.term && payload.bytes().len() <= super::MAX_COMMAND_BYTES,
        };
        last = *position;
        follows && in_term
    })
}

/// The positions and kinds of entries, as the core sees them.
pub(super) fn log_entries(previous: Position, entries: &[Entry]) -> noraft::LogEntries {
    noraft::LogEntries::from_iter(log_position(previous), entries.iter().map(Entry::kind))
}

/// From one member to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Would you vote for me in this term? Asked before anybody's term is raised.
    PreVote {
        /// The term to come.
        term: u64,
        /// The end of the asker's log.
        last: Position,
    },
    /// The answer.
    PreVoteReply {
        /// The term that was asked about.
        asked: u64,
        /// The answerer's own.
        term: u64,
        /// Yes or no.
        granted: bool,
    },
    /// Vote for me.
    Vote {
        /// The term.
        term: u64,
        /// The end of the candidate's log.
        last: Position,
        /// The leader itself asked for this election.
        handed_over: bool,
    },
    /// The answer.
    VoteReply {
        /// The answerer's term.
        term: u64,
        /// Yes or no.
        granted: bool,
    },
    /// Entries of the leader; without any, a heartbeat.
    Append {
        /// The leader's term.
        term: u64,
        /// Up to here all is committed.
        commit: u64,
        /// The entry before the first of `entries`.
        previous: Position,
        /// At most [`super::MAX_APPEND_ENTRIES`] and, but for a single longer one, [`super::MAX_APPEND_BYTES`].
        entries: Vec<Entry>,
        /// Counts the leader's rounds of reads.
        round: u64,
    },
    /// The end of a follower's log, durable.
    AppendReply {
        /// The follower's term.
        term: u64,
        /// The last entry it has.
        last: Position,
        /// The newest round it has seen in this term.
        round: u64,
    },
    /// A piece of a snapshot.
    Piece {
        /// The leader's term.
        term: u64,
        /// The last entry in the snapshot.
        position: Position,
        /// The members after that entry.
        membership: Membership,
        /// Bytes of the whole.
        total: u64,
        /// Where this piece begins.
        offset: u64,
        /// At most [`super::MAX_PIECE_BYTES`].
        data: Payload,
    },
    /// How far a snapshot has come.
    PieceReply {
        /// The follower's term.
        term: u64,
        /// Which snapshot.
        position: Position,
        /// Bytes that are there without a gap.
        received: u64,
    },
    /// The leader hands over: stand for election now.
    Campaign {
        /// The leader's term.
        term: u64,
    },
}
