//! The machine: what it holds, what it is told, what it makes ready.
//!
//! Calls to the core leave actions behind. Appended entries and changes of the role are taken over at once
//! ([`Raft::absorb`]); messages wait in the core, where those of one peer are merged, until the driver polls.

use super::election::Election;
use super::message::{self, Body, Entry, Member, Membership, Message, Payload, Position};
use super::reads::Reads;
use super::snapshot::{Assembly, Transfer};
use super::{
    Broken, Consensus, HardState, Lead, MAX_COMMAND_BYTES, MAX_COMMITTED_ENTRIES, MAX_WAITING_BYTES,
    MAX_WAITING_ENTRIES, ProposeError, ReadDone, Ready, Save, Snapshot, Timing,
};
use crate::types::Time;
use noraft::{LogIndex, LogPosition, Role, Term};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a machine is set up.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Its own seat.
    pub member: Member,
    /// The intervals.
    pub timing: Timing,
    /// Of its random time-outs.
    pub seed: u64,
}

/// What the leader knows of another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Up to here its log is known to be ours, and durable there.
    pub matched: u64,
    /// When it last answered.
    pub heard: Time,
}

/// What the leader keeps of another member.
pub(super) struct Follower {
    /// When it last answered; at first, when the lead began.
    pub(super) heard: Time,
    /// It has answered in this lead.
    pub(super) answered: bool,
    /// The newest round of reads it has answered.
    pub(super) round: u64,
    /// The last bulk sent to it: after which index, and when. Not repeated within a heartbeat.
    pub(super) bulk: Option<(u64, Time)>,
    pub(super) transfer: Option<Transfer>,
}

/// What only a leader has.
pub(super) struct Leading {
    pub(super) followers: BTreeMap<Member, Follower>,
    pub(super) heartbeat_at: Time,
    pub(super) reads: Reads,
    /// The others were told that entries up to here are committed.
    pub(super) told_commit: u64,
    /// The snapshot that members are being sent.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) snapshot_wanted: bool,
}

/// One member's consensus.
pub struct Raft {
    pub(super) settings: Settings,
    pub(super) node: noraft::Node,
    pub(super) now: Time,
    /// The content of all entries after the log's start.
    pub(super) bodies: BTreeMap<u64, Body>,
    /// The memberships in the log by index; the first is that of the log's start.
    pub(super) memberships: BTreeMap<u64, Membership>,
    /// Committed entries up to here were handed out.
    handed: u64,
    /// Entries after this index are not stored yet.
    unsaved_after: Option<u64>,
    hard_dirty: bool,
    pub(super) election: Election,
    pub(super) leading: Option<Leading>,
    /// The newest round of reads of this term's leader.
    pub(super) round_heard: u64,
    pub(super) assembly: Option<Assembly>,
    install: Option<Snapshot>,
    pub(super) outbox: Vec<(Member, Message)>,
    pub(super) reads_done: Vec<ReadDone>,
    told_lead: Option<Lead>,
}

/// Where the content of entries that the core appends comes from.
pub(super) enum Source<'a> {
    /// Our own proposal.
    Own(Option<Payload>, Option<(Member, super::Peer)>),
    /// A leader's message.
    Leader(&'a [Entry]),
    /// Nothing is appended, but what the core itself writes: the beginning of a term, the end of a joint majority.
    Core,
}

pub(super) fn log_position(position: Position) -> LogPosition {
    LogPosition::new(Term::new(position.term), LogIndex::new(position.index))
}

pub(super) fn position(at: LogPosition) -> Position {
    Position { term: at.term.get(), index: at.index.get() }
}

impl Raft {
    /// A member that has nothing yet: it waits for a leader to find it.
    pub fn empty(settings: Settings, now: Time) -> Raft {
        let snapshot =
            Snapshot { position: Position::default(), membership: Membership::default(), data: empty_payload() };
        Raft::restart(settings, HardState::default(), &snapshot, Vec::new(), now)
    }

    /// A member with what it had stored.
    pub fn restart(settings: Settings, hard: HardState, snapshot: &Snapshot, entries: Vec<Entry>, now: Time) -> Raft {
        let log = noraft::Log::new(snapshot.membership.config(), message::log_entries(snapshot.position, &entries));
        let id = noraft::NodeId::new(settings.member.0);
        let vote = hard.vote.map(|member| noraft::NodeId::new(member.0));
        let mut raft = Raft {
            settings,
            node: noraft::Node::restart(id, Term::new(hard.term), vote, log),
            now,
            bodies: BTreeMap::new(),
            memberships: BTreeMap::from([(snapshot.position.index, snapshot.membership.clone())]),
            handed: snapshot.position.index,
            unsaved_after: None,
            hard_dirty: false,
            election: Election::new(settings.seed),
            leading: None,
            round_heard: 0,
            assembly: None,
            install: None,
            outbox: Vec::new(),
            reads_done: Vec::new(),
            told_lead: None,
        };
        entries.into_iter().for_each(|entry| raft.keep(entry));
        raft.absorb(Source::Core);
        if raft.is_alone() {
            // Nobody to wait for.
            raft.election.due = now;
        }
        raft
    }

    /// Its own seat.
    pub fn member(&self) -> Member {
        self.settings.member
    }

    /// Who takes part, by the newest word in the log.
    pub fn membership(&self) -> &Membership {
        self.memberships.last_key_value().map_or_else(|| unreachable!("a log has a first membership"), |(_, last)| last)
    }

    /// Whether the newest membership is committed.
    pub(super) fn is_membership_committed(&self) -> bool {
        self.memberships.last_key_value().is_some_and(|(index, _)| *index <= self.node.commit_index().get())
    }

    /// What is known of another member, if this one leads.
    pub fn progress(&self, member: Member) -> Option<Progress> {
        let follower = self.leading.as_ref()?.followers.get(&member)?;
        let matched = self.node.follower_match_index(noraft::NodeId::new(member.0))?.get();
        follower.answered.then_some(Progress { matched, heard: follower.heard })
    }

    /// When another member last answered (at first: when the lead began), if this one leads.
    pub fn heard(&self, member: Member) -> Option<Time> {
        self.leading.as_ref()?.followers.get(&member).map(|follower| follower.heard)
    }

    /// A snapshot of an applied state: its position, and who the members were then. `None` when the log does not hold
    /// `index`.
    pub fn snapshot_at(&self, index: u64, data: Payload) -> Option<Snapshot> {
        let (at, _) = self.node.log().get_position_and_config(LogIndex::new(index))?;
        let (_, membership) = self.memberships.range(..=index).next_back()?;
        Some(Snapshot { position: position(at), membership: membership.clone(), data })
    }

    /// All that this member must not forget, with the state at `index`, which must be applied: takes the place of
    /// whatever is stored. `None` when the log does not hold `index`.
    pub fn whole(&self, index: u64, state: Payload) -> Option<Save> {
        let snapshot = Some(self.snapshot_at(index, state)?);
        Some(Save { snapshot, hard: self.hard(), after: index, entries: self.entries_after(index) })
    }

    /// The end of its log.
    pub fn last(&self) -> Position {
        position(self.node.log().last_position())
    }

    /// What it has to remember.
    pub fn hard(&self) -> HardState {
        let vote = self.node.voted_for().map(|id| Member(id.get()));
        HardState { term: self.term(), vote }
    }

    pub(super) fn term(&self) -> u64 {
        self.node.current_term().get()
    }

    pub(super) fn is_alone(&self) -> bool {
        let me = self.settings.member;
        let voters = &self.membership().voters;
        voters.len() == 1 && voters.contains(&me) && !self.membership().is_joint()
    }

    /// Time never runs backwards.
    pub(super) fn tick(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// A message from another member. One that makes no sense changes nothing.
    pub fn step(&mut self, from: Member, message: Message, now: Time) -> Result<(), Broken> {
        self.tick(now);
        if from == self.settings.member {
            return Ok(());
        }
        match message {
            Message::PreVote { term, last } => self.answer_pre_vote(from, term, last),
            Message::PreVoteReply { asked, term, granted } => self.count_pre_vote(from, asked, term, granted)?,
            Message::Vote { term, last, handed_over } => self.answer_vote(from, term, last, handed_over)?,
            Message::VoteReply { term, granted } => self.core(noraft::Message::RequestVoteReply {
                from: noraft::NodeId::new(from.0),
                term: Term::new(term),
                vote_granted: granted,
            })?,
            Message::Append { term, commit, previous, entries, round } => {
                self.follow(from, (term, commit, round), previous, &entries)?
            }
            Message::AppendReply { term, last, round } => self.hear_follower(from, term, last, round)?,
            Message::Piece { term, position, membership, total, offset, data } => {
                self.take_piece(from, term, (position, membership), (total, offset, data))
            }
            Message::PieceReply { term, position, received } => self.piece_arrived(from, term, position, received),
            Message::Campaign { term } => self.take_over(from, term),
        }
        Ok(())
    }

    /// Hands a message to the core that appends nothing.
    pub(super) fn core(&mut self, message: noraft::Message) -> Result<(), Broken> {
        self.node.handle_message(&message).map_err(|_| Broken::Contradiction)?;
        self.absorb(Source::Core);
        Ok(())
    }

    /// Takes over what the core has done.
    pub(super) fn absorb(&mut self, source: Source<'_>) {
        if let Some(appended) = self.node.actions_mut().append_log_entries.take() {
            self.take_over_entries(&appended, source);
        }
        self.forget_truncated();
        let actions = self.node.actions_mut();
        let saves = (std::mem::take(&mut actions.save_current_term), std::mem::take(&mut actions.save_voted_for));
        self.hard_dirty |= saves.0 || saves.1;
        let restart_timer = std::mem::take(&mut actions.set_election_timeout);
        let wanting = std::mem::take(&mut actions.install_snapshots);
        self.follow_role(restart_timer);
        wanting.into_iter().for_each(|id| self.begin_transfer(Member(id.get())));
        self.advance_reads();
    }

    fn take_over_entries(&mut self, appended: &noraft::LogEntries, source: Source<'_>) {
        let after = appended.prev_position().index.get();
        self.bodies.split_off(&(after + 1));
        self.memberships.split_off(&(after + 1));
        self.unsaved_after = Some(self.unsaved_after.map_or(after, |unsaved| unsaved.min(after)));
        let (mut payload, mut added, mut told) = (None, None, &[][..]);
        match source {
            Source::Own(own, peer) => (payload, added) = (own, peer),
            Source::Leader(entries) => told = entries,
            Source::Core => {}
        }
        for (at, kind) in appended.iter_with_positions() {
            let at = position(at);
            let from_leader =
                told.iter().find(|entry| entry.position.index == at.index).map(|entry| entry.body.clone());
            let body = from_leader.unwrap_or_else(|| match kind {
                noraft::LogEntry::Term(_) => Body::Term,
                noraft::LogEntry::ClusterConfig(config) => {
                    Body::Members(Membership::from_config(&config, self.membership(), added.take()))
                }
                noraft::LogEntry::Command => Body::Command(payload.take().unwrap_or_else(empty_payload)),
            });
            self.keep(Entry { position: at, body });
        }
    }

    fn keep(&mut self, Entry { position, body }: Entry) {
        if let Body::Members(membership) = &body {
            self.memberships.insert(position.index, membership.clone());
        }
        self.bodies.insert(position.index, body);
    }

    /// The core drops what contradicts the leader before it is replaced; what is stored goes with the next append.
    fn forget_truncated(&mut self) {
        let last = self.last().index;
        self.bodies.split_off(&(last + 1));
        self.memberships.split_off(&(last + 1));
        self.unsaved_after = self.unsaved_after.map(|after| after.min(last));
    }

    /// The entries after `index`.
    pub(super) fn entries_after(&self, index: u64) -> Vec<Entry> {
        let entry = |(index, body): (&u64, &Body)| {
            let term = self.node.log().entries().get_term(LogIndex::new(*index))?.get();
            Some(Entry { position: Position { term, index: *index }, body: body.clone() })
        };
        self.bodies.range(index + 1..).filter_map(entry).collect()
    }

    /// Takes the snapshot of the leader in place of all that is here. False if it is no news.
    pub(super) fn install(&mut self, snapshot: Snapshot) -> bool {
        let Position { index, .. } = snapshot.position;
        if index <= self.handed {
            return false;
        }
        if !self.node.handle_snapshot_installed(log_position(snapshot.position), snapshot.membership.config()) {
            return false;
        }
        self.start_log_at(index, snapshot.membership.clone());
        self.handed = index;
        self.install = Some(snapshot);
        self.absorb(Source::Core);
        true
    }

    /// The log begins after `index` from now on.
    fn start_log_at(&mut self, index: u64, membership: Membership) {
        self.bodies = self.bodies.split_off(&(index + 1));
        self.memberships = self.memberships.split_off(&(index + 1));
        self.memberships.insert(index, membership);
        self.forget_truncated();
    }

    /// Entries, with their bytes, that wait for a majority.
    fn waiting(&self) -> (u64, usize) {
        let commit = self.node.commit_index().get();
        let bytes = self.bodies.range(commit + 1..).map(|(_, body)| body.bytes()).sum();
        (self.last().index - commit, bytes)
    }

    /// What has to be stored now, if anything.
    fn take_save(&mut self) -> Option<Save> {
        let last = self.last().index;
        let snapshot = self.install.clone();
        if snapshot.is_none() && self.unsaved_after.is_none() && !self.hard_dirty {
            return None;
        }
        let unsaved = self.unsaved_after.take().unwrap_or(last);
        self.hard_dirty = false;
        let after = snapshot.as_ref().map_or(unsaved, |snapshot| snapshot.position.index);
        Some(Save { snapshot, hard: self.hard(), after, entries: self.entries_after(after) })
    }

    /// When all of the log is committed the others hear of it at once, not by the next heartbeat: a command that came by
    /// one of them is answered when that one shows it. As long as entries are on their way, the next ones tell it.
    fn tell_commit(&mut self) {
        let commit = self.node.commit_index().get();
        let all = commit == self.last().index;
        let Some(leading) = self.leading.as_mut().filter(|leading| all && leading.told_commit < commit) else { return };
        leading.told_commit = commit;
        self.node.heartbeat();
        self.node.actions_mut().set_election_timeout = false;
    }

    /// Committed entries that were not handed out yet, at most [`MAX_COMMITTED_ENTRIES`].
    fn take_committed(&mut self) -> Vec<Entry> {
        let commit = self.node.commit_index().get();
        if commit <= self.handed {
            return Vec::new();
        }
        let upto = commit.min(self.handed + MAX_COMMITTED_ENTRIES as u64);
        let mut entries = Vec::new();
        for (index, body) in self.bodies.range(self.handed + 1..=upto) {
            let term = self.node.log().entries().get_term(LogIndex::new(*index)).map_or(0, Term::get);
            entries.push(Entry { position: Position { term, index: *index }, body: body.clone() });
        }
        self.handed = upto;
        entries
    }
}

impl Consensus for Raft {
    fn propose(&mut self, command: Payload, now: Time) -> Result<Position, ProposeError> {
        self.tick(now);
        if self.node.role() != Role::Leader {
            return Err(ProposeError::NotLeader);
        }
        let len = command.bytes().len();
        if len > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLong(len));
        }
        let (entries, bytes) = self.waiting();
        if entries >= MAX_WAITING_ENTRIES || bytes + len > MAX_WAITING_BYTES {
            return Err(ProposeError::Busy);
        }
        let at = position(self.node.propose_command());
        self.absorb(Source::Own(Some(command), None));
        Ok(at)
    }

    fn read(&mut self, token: u64, now: Time) {
        self.tick(now);
        self.begin_read(token);
    }

    fn handle_timeout(&mut self, now: Time) {
        self.tick(now);
        self.time_passed();
    }

    fn poll_timeout(&self) -> Time {
        self.leading.as_ref().map_or(self.election.due, |leading| leading.heartbeat_at)
    }

    fn poll_ready(&mut self) -> Option<Ready> {
        let save = self.take_save();
        let install = self.install.take();
        self.tell_commit();
        self.make_messages();
        let messages = std::mem::take(&mut self.outbox);
        let committed = self.take_committed();
        let reads = std::mem::take(&mut self.reads_done);
        let wanted = self.leading.as_mut().is_some_and(|leading| std::mem::take(&mut leading.snapshot_wanted));
        let lead = Some(self.lead()).filter(|lead| self.told_lead != Some(*lead));
        self.told_lead = lead.or(self.told_lead);
        let nothing = save.is_none() && messages.is_empty() && committed.is_empty() && reads.is_empty();
        if nothing && !wanted && lead.is_none() {
            return None;
        }
        Some(Ready { save, install, messages, committed, reads, snapshot_wanted: wanted, lead })
    }

    fn lead(&self) -> Lead {
        let handed = self.node.log().entries().get_term(LogIndex::new(self.handed));
        let established = self.leading.is_some() && handed == Some(self.node.current_term());
        Lead { term: self.term(), leader: self.election.leader, established }
    }

    fn compact(&mut self, index: u64, state: Payload) -> Option<Save> {
        let save = self.whole(index, state)?;
        let snapshot = save.snapshot.as_ref()?;
        if index > self.handed || log_position(snapshot.position) == self.node.log().snapshot_position() {
            return None;
        }
        let config = snapshot.membership.config();
        let dropped = self.node.handle_snapshot_installed(log_position(snapshot.position), config);
        debug_assert!(dropped, "what is applied is committed");
        self.start_log_at(index, snapshot.membership.clone());
        self.drop_old_transfers(index);
        self.unsaved_after = None;
        self.hard_dirty = false;
        Some(save)
    }
}

fn empty_payload() -> Payload {
    Payload::new(zeroize::Zeroizing::new(Vec::new()))
}
