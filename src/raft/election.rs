//! Who leads: time-outs, pre-votes, stickiness, check-quorum, handing over.
//!
//! A member that hears of no leader first *asks* whether it would get votes ([`Message::PreVote`]); nobody's term
//! moves. It gets them only from members that hear of no leader either, and whose log is not newer. So a member that
//! was cut off comes back with the term it left with, and a removed one gets no answer: neither disturbs a leader.
//! Real votes are refused by the same rule, unless the leader itself asked for the election.

use super::machine::{Follower, Leading, Raft, Source, log_position};
use super::message::{Member, Message, Position};
use super::reads::Reads;
use super::{Broken, Timing};
use crate::types::Time;
use noraft::{Role, Term};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};

/// What a member knows about who leads.
pub(super) struct Election {
    rng: StdRng,
    /// When it acts next, if it does not lead.
    pub(super) due: Time,
    /// The term that `leader` is of.
    term: u64,
    pub(super) leader: Option<Member>,
    /// When the leader last said something.
    heard: Option<Time>,
    /// Who would vote for this member.
    pre_votes: Option<BTreeSet<Member>>,
    /// The leader asked this member to stand.
    handed_over: bool,
}

impl Election {
    pub(super) fn new(seed: u64) -> Election {
        Election {
            rng: StdRng::seed_from_u64(seed),
            due: Time(0),
            term: 0,
            leader: None,
            heard: None,
            pre_votes: None,
            handed_over: false,
        }
    }
}

impl Raft {
    /// What the core's role means for us. `restart_timer`: the core has heard of a leader, voted, or changed its role.
    pub(super) fn follow_role(&mut self, restart_timer: bool) {
        if self.election.term != self.term() {
            self.election.term = self.term();
            self.election.leader = None;
            self.election.pre_votes = None;
            self.round_heard = 0;
            self.assembly = None;
        }
        match self.node.role() {
            Role::Leader if self.leading.is_none() => self.begin_to_lead(),
            Role::Leader => self.know_followers(),
            Role::Follower | Role::Candidate => {
                if let Some(leading) = self.leading.take() {
                    self.reads_done.extend(leading.reads.fail());
                }
                self.election.leader = self.election.leader.filter(|leader| *leader != self.settings.member);
                if restart_timer {
                    self.restart_election_timer();
                }
            }
        }
    }

    fn restart_election_timer(&mut self) {
        let least = self.settings.timing.election;
        let wait = self.election.rng.random_range(least..=least * 2);
        self.election.due = self.now + wait;
    }

    fn begin_to_lead(&mut self) {
        self.election.leader = Some(self.settings.member);
        self.election.pre_votes = None;
        self.assembly = None;
        self.leading = Some(Leading {
            followers: BTreeMap::new(),
            heartbeat_at: self.now + self.settings.timing.heartbeat,
            reads: Reads::default(),
            told_commit: 0,
            snapshot: None,
            snapshot_wanted: false,
        });
        self.know_followers();
    }

    /// The members may have changed.
    fn know_followers(&mut self) {
        let (me, now) = (self.settings.member, self.now);
        let members: BTreeSet<Member> = self.membership().peers.keys().copied().filter(|other| *other != me).collect();
        let Some(leading) = &mut self.leading else { return };
        leading.followers.retain(|member, _| members.contains(member));
        for member in members {
            let fresh = || Follower { heard: now, answered: false, round: 0, bulk: None, transfer: None };
            leading.followers.entry(member).or_insert_with(fresh);
        }
    }

    /// The leader's heartbeat, or a follower's patience.
    pub(super) fn time_passed(&mut self) {
        if let Some(leading) = &mut self.leading {
            if self.now < leading.heartbeat_at {
                return;
            }
            leading.heartbeat_at = self.now + self.settings.timing.heartbeat;
            if self.has_quorum() {
                self.node.heartbeat();
                self.absorb(Source::Core);
                self.repeat_pieces();
            } else {
                self.step_down();
            }
        } else if self.now >= self.election.due {
            // Asking disturbs nobody: again soon, should the others have heard of the leader a little later.
            let Timing { heartbeat, election } = self.settings.timing;
            self.election.due = self.now + self.election.rng.random_range(heartbeat..=election);
            self.ask_for_pre_votes();
        }
    }

    /// Whether a majority has answered within two election time-outs.
    fn has_quorum(&self) -> bool {
        let Some(leading) = &self.leading else { return false };
        let patience = self.settings.timing.election * 2;
        let heard = |member: Member| {
            member == self.settings.member
                || leading.followers.get(&member).is_some_and(|other| self.now.since(other.heard) < patience)
        };
        self.membership().is_quorum(heard)
    }

    /// A leader without a majority ends its own term: any word of a newer one makes the core a follower.
    fn step_down(&mut self) {
        let next = noraft::Message::RequestVoteReply {
            from: noraft::NodeId::new(u64::MAX),
            term: Term::new(self.term() + 1),
            vote_granted: false,
        };
        let done = self.core(next);
        debug_assert!(done.is_ok(), "a vote touches no log");
    }

    fn ask_for_pre_votes(&mut self) {
        let me = self.settings.member;
        if !self.membership().is_voter(me) {
            return;
        }
        self.election.leader = None;
        if self.is_alone() {
            return self.stand(false);
        }
        self.election.pre_votes = Some(BTreeSet::from([me]));
        let ask = Message::PreVote { term: self.term() + 1, last: self.last() };
        let voters = &self.membership().voters | &self.membership().incoming;
        self.outbox.extend(voters.into_iter().filter(|voter| *voter != me).map(|voter| (voter, ask.clone())));
    }

    fn stand(&mut self, handed_over: bool) {
        self.election.pre_votes = None;
        self.election.handed_over = handed_over;
        self.node.handle_election_timeout();
        self.absorb(Source::Core);
    }

    /// Whether a leader is about: this member itself, or one that was heard within an election time-out.
    fn has_leader(&self) -> bool {
        let lately = |heard: Time| self.now.since(heard) < self.settings.timing.election;
        self.leading.is_some() || (self.election.leader.is_some() && self.election.heard.is_some_and(lately))
    }

    pub(super) fn answer_pre_vote(&mut self, from: Member, asked: u64, last: Position) {
        let granted = asked > self.term() && last >= self.last() && !self.has_leader();
        self.outbox.push((from, Message::PreVoteReply { asked, term: self.term(), granted }));
    }

    pub(super) fn count_pre_vote(&mut self, from: Member, asked: u64, term: u64, granted: bool) -> Result<(), Broken> {
        if term > self.term() && !granted {
            // Its term is newer: from there on we ask for the next one.
            return self.core(noraft::Message::RequestVoteReply {
                from: noraft::NodeId::new(from.0),
                term: Term::new(term),
                vote_granted: false,
            });
        }
        if asked != self.term() + 1 || !granted {
            return Ok(());
        }
        let Some(votes) = &mut self.election.pre_votes else { return Ok(()) };
        votes.insert(from);
        let votes = votes.clone();
        if self.membership().is_quorum(|member| votes.contains(&member)) {
            self.stand(false);
        }
        Ok(())
    }

    pub(super) fn answer_vote(
        &mut self,
        from: Member,
        term: u64,
        last: Position,
        handed_over: bool,
    ) -> Result<(), Broken> {
        if term > self.term() && !handed_over && self.has_leader() {
            return Ok(());
        }
        self.core(noraft::Message::RequestVoteCall {
            from: noraft::NodeId::new(from.0),
            term: Term::new(term),
            last_position: log_position(last),
        })
    }

    /// A word of this term's leader came.
    pub(super) fn hear_leader(&mut self, leader: Member) {
        self.election.leader = Some(leader);
        self.election.heard = Some(self.now);
        self.election.pre_votes = None;
        self.election.handed_over = false;
    }

    /// Whether the current candidacy was asked for by the leader.
    pub(super) fn was_handed_over(&self) -> bool {
        self.election.handed_over
    }

    /// The leader wants this member to follow it.
    pub(super) fn take_over(&mut self, from: Member, term: u64) {
        if term == self.term() && self.election.leader == Some(from) && self.membership().is_voter(self.settings.member)
        {
            self.stand(true);
        }
    }

    /// Who could follow this leader at once, and the word that makes it stand for election: of the voters `among` these
    /// that were heard lately the one with the newest log. Among all it has all that is committed, since some voter
    /// besides the leader has.
    pub fn heir(&self, now: Time, among: impl Fn(Member) -> bool) -> Option<(Member, Message)> {
        let lately = |heard: Time| now.since(heard) < self.settings.timing.election;
        let fit = |member: &Member| {
            let progress = self.progress(*member).filter(|progress| lately(progress.heard))?;
            Some((progress.matched, *member))
        };
        let (_, heir) = self.membership().voters.iter().filter(|member| among(**member)).filter_map(fit).max()?;
        Some((heir, Message::Campaign { term: self.term() }))
    }

    /// Asks the heir among these to stand for election now. False when there is none that has the whole log: another
    /// voter could have more than it, and not vote for it.
    pub fn hand_over(&mut self, now: Time, among: impl Fn(Member) -> bool) -> bool {
        self.tick(now);
        let last = self.last().index;
        let whole = |heir: &(Member, Message)| self.progress(heir.0).is_some_and(|progress| progress.matched == last);
        let heir = self.heir(now, among).filter(whole);
        let found = heir.is_some();
        self.outbox.extend(heir);
        found
    }

    /// Leads no more, whatever the others say: this member cannot do its part for a while.
    pub fn resign(&mut self, now: Time) {
        self.tick(now);
        if self.leading.is_some() {
            self.step_down();
        }
        if self.is_alone() {
            // Nobody to wait for.
            self.election.due = self.now;
        }
    }
}
