//! How the log spreads: the leader's entries, the followers' answers, and how calls that wait in the core become
//! messages of bounded size. A follower that gets a part of what it lacks answers with its new end, and is sent the
//! next part.

use super::machine::{Raft, Source, log_position, position};
use super::message::{self, Body, Entry, Member, Message, Position};
use super::{Broken, MAX_APPEND_BYTES, MAX_APPEND_ENTRIES};
use noraft::{LogEntries, LogIndex, Role, Term};

impl Raft {
    /// Entries or a heartbeat of a leader.
    pub(super) fn follow(
        &mut self,
        from: Member,
        (term, commit, round): (u64, u64, u64),
        previous: Position,
        entries: &[Entry],
    ) -> Result<(), Broken> {
        if !message::are_sound(previous, entries, term) || previous.term > term {
            return Ok(());
        }
        let call = noraft::Message::AppendEntriesCall {
            from: noraft::NodeId::new(from.0),
            term: Term::new(term),
            commit_index: LogIndex::new(commit),
            entries: message::log_entries(previous, entries),
        };
        let handled = self.node.handle_message(&call);
        self.absorb(Source::Leader(entries));
        if term == self.term() && self.node.role() == Role::Follower {
            self.hear_leader(from);
            self.round_heard = self.round_heard.max(round);
        }
        handled.map_err(|_| Broken::Contradiction)
    }

    /// A follower says how far it is.
    pub(super) fn hear_follower(&mut self, from: Member, term: u64, last: Position, round: u64) -> Result<(), Broken> {
        if term == self.term() {
            let now = self.now;
            let follower = self.leading.as_mut().and_then(|leading| leading.followers.get_mut(&from));
            if let Some(follower) = follower {
                (follower.heard, follower.answered) = (now, true);
                follower.round = follower.round.max(round);
            }
        }
        self.core(noraft::Message::AppendEntriesReply {
            from: noraft::NodeId::new(from.0),
            term: Term::new(term),
            last_position: log_position(last),
        })
    }

    /// Turns what waits in the core into messages.
    pub(super) fn make_messages(&mut self) {
        let actions = self.node.actions_mut();
        let broadcast = actions.broadcast_message.take();
        let single = std::mem::take(&mut actions.send_messages);
        if let Some(call) = broadcast {
            let peers: Vec<Member> = self.node.peers().map(|id| Member(id.get())).collect();
            for peer in peers {
                let message = self.make_message(peer, &call, false);
                self.outbox.extend(message.map(|message| (peer, message)));
            }
        }
        for (id, message) in single {
            let peer = Member(id.get());
            let message = self.make_message(peer, &message, true);
            self.outbox.extend(message.map(|message| (peer, message)));
        }
        if let Some(leading) = &mut self.leading {
            leading.reads.sent();
        }
    }

    /// `single`: it answers that one peer.
    fn make_message(&mut self, peer: Member, message: &noraft::Message, single: bool) -> Option<Message> {
        match message {
            noraft::Message::RequestVoteCall { term, last_position, .. } => {
                self.membership().is_voter(peer).then(|| Message::Vote {
                    term: term.get(),
                    last: position(*last_position),
                    handed_over: self.was_handed_over(),
                })
            }
            noraft::Message::RequestVoteReply { term, vote_granted, .. } => {
                Some(Message::VoteReply { term: term.get(), granted: *vote_granted })
            }
            noraft::Message::AppendEntriesCall { term, commit_index, entries, .. } => {
                self.make_append(peer, (term.get(), commit_index.get()), entries, single)
            }
            noraft::Message::AppendEntriesReply { term, last_position, .. } => {
                // The round was of this term's leader, and only to it the answer counts.
                let round = if term.get() == self.term() { self.round_heard } else { 0 };
                Some(Message::AppendReply { term: term.get(), last: position(*last_position), round })
            }
        }
    }

    fn make_append(
        &mut self,
        peer: Member,
        (term, commit): (u64, u64),
        calls: &LogEntries,
        single: bool,
    ) -> Option<Message> {
        let now = self.now;
        let heartbeat = self.settings.timing.heartbeat;
        let previous = position(calls.prev_position());
        let follower = self.leading.as_mut()?.followers.get_mut(&peer)?;
        if follower.transfer.is_some() {
            // What it lacks comes as a snapshot.
            let round = self.leading.as_ref().map_or(0, |leading| leading.reads.round());
            return Some(Message::Append { term, commit, previous, entries: Vec::new(), round });
        }
        if single && !calls.is_empty() {
            let repeated =
                |(after, at): (u64, crate::types::Time)| after == previous.index && now.since(at) < heartbeat;
            if follower.bulk.is_some_and(repeated) {
                return None;
            }
            follower.bulk = Some((previous.index, now));
        }
        let entries = self.bounded(calls)?;
        let round = self.leading.as_ref().map_or(0, |leading| leading.reads.round());
        Some(Message::Append { term, commit, previous, entries, round })
    }

    /// The first entries of a call, as many as a message may carry. `None` when the log no longer has them.
    fn bounded(&self, calls: &LogEntries) -> Option<Vec<Entry>> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (at, _) in calls.iter_with_positions().take(MAX_APPEND_ENTRIES) {
            let body = self.bodies.get(&at.index.get())?;
            bytes += Body::bytes(body);
            if bytes > MAX_APPEND_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(Entry { position: position(at), body: body.clone() });
        }
        Some(entries)
    }
}
