//! Linearizable reads by read index: the leader notes what is committed when it is asked, makes sure by a round of
//! heartbeats that it still leads, and answers with that index. No clock is trusted.

use super::machine::Raft;
use super::message::Member;
use super::{MAX_READS, ReadDone};
use noraft::LogIndex;
use std::collections::VecDeque;

struct Read {
    token: u64,
    /// The index to read at, and the round that confirms it; `None` until an entry of the leader's own term is committed.
    at: Option<(u64, u64)>,
}

/// The reads a leader was asked for.
#[derive(Default)]
pub(super) struct Reads {
    waiting: VecDeque<Read>,
    round: u64,
    /// The round has not been sent to anybody yet: more reads may join it.
    fresh: bool,
}

impl Reads {
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// Messages with this round are on their way.
    pub(super) fn sent(&mut self) {
        self.fresh = false;
    }

    /// All of them, unanswered.
    pub(super) fn fail(self) -> impl Iterator<Item = ReadDone> {
        self.waiting.into_iter().map(|read| ReadDone { token: read.token, index: None })
    }
}

impl Raft {
    pub(super) fn begin_read(&mut self, token: u64) {
        match &mut self.leading {
            Some(leading) if leading.reads.waiting.len() < MAX_READS => {
                leading.reads.waiting.push_back(Read { token, at: None });
                self.advance_reads();
            }
            _ => self.reads_done.push(ReadDone { token, index: None }),
        }
    }

    /// Whether an entry of the present term is committed: only then the commit index covers all former leaders.
    pub(super) fn is_term_committed(&self) -> bool {
        let commit: LogIndex = self.node.commit_index();
        self.node.log().entries().get_term(commit) == Some(self.node.current_term())
    }

    /// Starts the round of reads that wait for one, ends those whose round a majority has answered.
    pub(super) fn advance_reads(&mut self) {
        let ready = self.is_term_committed();
        let commit = self.node.commit_index().get();
        let Some(leading) = &mut self.leading else { return };
        let reads = &mut leading.reads;
        if ready && reads.waiting.iter().any(|read| read.at.is_none()) {
            if !reads.fresh {
                reads.round += 1;
                reads.fresh = true;
                self.node.heartbeat();
                self.node.actions_mut().set_election_timeout = false;
            }
            let round = reads.round;
            reads.waiting.iter_mut().filter(|read| read.at.is_none()).for_each(|read| read.at = Some((commit, round)));
        }
        while let Some((index, round)) = self.first_round() {
            if !self.is_confirmed(round) {
                break;
            }
            let read = self.leading.as_mut().and_then(|leading| leading.reads.waiting.pop_front());
            self.reads_done.extend(read.map(|read| ReadDone { token: read.token, index: Some(index) }));
        }
    }

    fn first_round(&self) -> Option<(u64, u64)> {
        self.leading.as_ref()?.reads.waiting.front()?.at
    }

    fn is_confirmed(&self, round: u64) -> bool {
        let Some(leading) = &self.leading else { return false };
        let me = self.settings.member;
        let answered = |member: Member| {
            member == me || leading.followers.get(&member).is_some_and(|follower| follower.round >= round)
        };
        self.membership().is_quorum(answered)
    }
}
