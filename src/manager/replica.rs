//! One manager's part in the consensus, and the state that follows from it (pure): what the writer's thread does with
//! what comes in. It hands inputs to the consensus and carries out what that makes ready, in its order: make durable,
//! send, apply, tell. The daemon runs it on the store and the managers' streams, the simulation on virtual ones; both
//! are a [`Shell`].
#![deny(clippy::disallowed_methods)]

use super::handle::ManagerError;
use super::members;
use crate::cluster::{Command, Effect, Entry, Lock, Refusal, Reply, State};
use crate::raft::{
    Body, Consensus as _, Lead, Member, Membership, Message, Payload, Position, ProposeError, Raft, ReadDone, Ready,
    Save, Snapshot,
};
use crate::types::{NodeId, Time, UnixTime};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use zeroize::Zeroizing;

/// Log entries between two snapshots: bounds the replay at start (about 20 us each).
const SNAPSHOT_EVERY: u64 = 2000;
/// Bytes of commands between two snapshots: the log is held in memory.
const SNAPSHOT_BYTES: usize = 8 << 20;
/// So many times more while a member is being sent a snapshot, which the next one would make useless.
const TRANSFER_PATIENCE: u64 = 4;
/// A voter that has not answered for so long is told of as silent: five election time-outs.
const SILENCE: Duration = Duration::from_secs(5);
/// Time between two looks at who should be a member.
const MEMBERS_TICK: Duration = Duration::from_millis(200);

/// What became of a command: the reply, with the log index at which it holds.
pub(crate) type Verdict = Result<(Reply, u64), ManagerError>;

/// What a [`Replica`] works on.
pub(crate) trait Shell {
    /// Who waits for a verdict.
    type Proposer;
    /// Who waits for a read.
    type Reader;

    /// Makes it durable, all of it or nothing.
    fn save(&mut self, save: &Save) -> Result<(), ManagerError>;
    /// Locks this manager's files with this, unless they follow a later word already. Durable when it returns.
    fn follow_lock(&mut self, lock: &Lock) -> Result<(), ManagerError>;
    /// Sends it, if it can be sent now.
    fn send(&mut self, to: Member, message: Message);
    /// The others are these, from now on.
    fn set_members(&mut self, members: &Membership);
    /// Reads the applied state.
    fn with<T>(&self, read: impl FnOnce(&State) -> T) -> T;
    /// Changes the applied state.
    fn change<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> T;
    /// Ends the session of a removed node.
    fn end_session(&mut self, node: NodeId);
    /// A command's end.
    fn verdict(&mut self, proposer: Self::Proposer, verdict: Verdict);
    /// A read's end: the applied state shows all up to this index, or this manager does not lead.
    fn read_done(&mut self, reader: Self::Reader, index: Option<u64>);
    /// Who leads has changed; `here`: it is this manager.
    fn follow_lead(&mut self, lead: Lead, here: bool);
    /// The state or the lead has changed.
    fn notify(&mut self);
    /// Of these voters this manager, if it leads, has not heard for a while.
    fn silent(&mut self, _voters: BTreeSet<Member>) {}
}

/// Reads that wait: for the consensus, then for their index to be applied.
struct Reads<R> {
    next: u64,
    asked: BTreeMap<u64, R>,
    applying: Vec<(u64, R)>,
}

/// See the module.
pub(crate) struct Replica<S: Shell> {
    pub(crate) shell: S,
    pub(crate) raft: Raft,
    /// Where the log begins.
    snapshot: Position,
    /// Bytes of commands applied since.
    bytes: usize,
    /// Own proposals by log index: the term they were made in, and who waits.
    waiting: BTreeMap<u64, (u64, S::Proposer)>,
    reads: Reads<S::Reader>,
    members_at: Time,
    /// Another manager is to lead: nothing more is proposed here.
    leaving: bool,
    /// What was being carried out when a save failed.
    stalled: Option<Ready>,
}

impl<S: Shell> Replica<S> {
    /// `snapshot`: where the log of `raft` begins; the shell has the state there.
    pub(crate) fn new(mut shell: S, raft: Raft, snapshot: Position) -> Replica<S> {
        shell.set_members(raft.membership());
        Replica {
            shell,
            raft,
            snapshot,
            bytes: 0,
            waiting: BTreeMap::new(),
            reads: Reads { next: 0, asked: BTreeMap::new(), applying: Vec::new() },
            members_at: Time::default(),
            leaving: false,
            stalled: None,
        }
    }

    /// A command for the log, at this time of the wall clock.
    pub(crate) fn propose(&mut self, command: Command, at: UnixTime, proposer: S::Proposer, now: Time) {
        if self.leaving {
            return self.shell.verdict(proposer, Err(ManagerError::NotLeader));
        }
        let proposed = match encode(&Entry { at, command }) {
            Ok(bytes) => self.raft.propose(Payload::new(bytes), now),
            Err(error) => return self.shell.verdict(proposer, Err(Refusal::Invalid(error.to_string()).into())),
        };
        let refused = match proposed {
            Ok(Position { term, index }) => {
                self.waiting.insert(index, (term, proposer));
                return;
            }
            Err(ProposeError::NotLeader) => ManagerError::NotLeader,
            Err(error @ ProposeError::TooLong(_)) => Refusal::Invalid(error.to_string()).into(),
            Err(error @ ProposeError::Busy) => ManagerError::Unavailable(error.to_string()),
        };
        self.shell.verdict(proposer, Err(refused));
    }

    /// A message of another manager.
    pub(crate) fn step(&mut self, from: Member, message: Message, now: Time) -> Result<(), ManagerError> {
        self.raft.step(from, message, now).map_err(|broken| ManagerError::Broken(broken.to_string()))
    }

    /// Somebody wants to read what was committed before now.
    pub(crate) fn read(&mut self, reader: S::Reader, now: Time) {
        self.reads.next += 1;
        self.reads.asked.insert(self.reads.next, reader);
        self.raft.read(self.reads.next, now);
    }

    /// When [`Replica::turn`] wants to be called.
    pub(crate) fn poll_timeout(&self) -> Time {
        self.raft.poll_timeout()
    }

    /// To be called after inputs, and when it is due: does all that is to be done. After a failed save
    /// ([`ManagerError::Store`]) nothing but [`Replica::pause`] and [`Replica::resume`] may be called; after any other
    /// error this manager ends.
    pub(crate) fn turn(&mut self, now: Time) -> Result<(), ManagerError> {
        if self.raft.poll_timeout() <= now {
            self.raft.handle_timeout(now);
        }
        self.carry_out_all()?;
        if self.leaving && self.raft.hand_over(now, |_| true) {
            self.carry_out_all()?;
        }
        if self.members_at <= now {
            self.members_at = now + MEMBERS_TICK;
            self.change_members(now);
            self.look_for_silence(now);
            self.carry_out_all()?;
        }
        Ok(())
    }

    fn carry_out_all(&mut self) -> Result<(), ManagerError> {
        while let Some(ready) = self.raft.poll_ready() {
            self.carry_out(ready)?;
        }
        let index = self.shell.with(|state| state.index);
        let log = self.raft.last().index.saturating_sub(self.snapshot.index);
        let patience = if self.raft.is_transferring() { TRANSFER_PATIENCE } else { 1 };
        let long = log >= SNAPSHOT_EVERY * patience || self.bytes as u64 >= SNAPSHOT_BYTES as u64 * patience;
        if long && index > self.snapshot.index { self.compact() } else { Ok(()) }
    }

    /// In the order that the consensus asks for.
    fn carry_out(&mut self, ready: Ready) -> Result<(), ManagerError> {
        if let Some(save) = &ready.save
            && let Err(error) = self.make_durable(ready.install.as_ref(), save)
        {
            self.stalled = Some(ready);
            return Err(error);
        }
        self.carry_on(ready)
    }

    /// The lock of a state that is taken over comes first: the fresh at-rest key is on the disk under no other one.
    fn make_durable(&mut self, install: Option<&Snapshot>, save: &Save) -> Result<(), ManagerError> {
        if let Some(snapshot) = install {
            self.shell.follow_lock(&read(snapshot)?.cluster.lock)?;
        }
        self.shell.save(save)
    }

    /// What follows the save.
    fn carry_on(&mut self, mut ready: Ready) -> Result<(), ManagerError> {
        if let Some(snapshot) = &ready.install {
            self.install(snapshot)?;
        }
        for (to, message) in ready.messages.drain(..) {
            self.shell.send(to, message);
        }
        let (results, compact) = self.apply(std::mem::take(&mut ready.committed))?;
        let followed = self.follow_lock();
        if let Err(error) = followed.and_then(|()| if compact { self.compact() } else { Ok(()) }) {
            self.stalled = Some(Ready { save: None, install: None, ..ready });
            return Err(error);
        }
        self.tell(results);
        self.answer_reads(ready.reads);
        if ready.snapshot_wanted
            && let Some(Snapshot { position, data, .. }) = self.applied_snapshot()
        {
            self.raft.provide_snapshot(position.index, data);
        }
        if let Some(lead) = ready.lead {
            self.follow_lead(lead);
        }
        Ok(())
    }

    /// After a failed save: this manager takes no part until [`Replica::resume`] succeeds. Another one is asked to
    /// lead, if this one did, and who waits is told why.
    pub(crate) fn pause(&mut self, why: &ManagerError, now: Time) {
        // What was saved before is enough for that word.
        if let Some((to, message)) = self.raft.heir(now, |_| true) {
            self.shell.send(to, message);
        }
        self.raft.resign(now);
        for (_, proposer) in std::mem::take(&mut self.waiting).into_values() {
            self.shell.verdict(proposer, Err(why.clone()));
        }
        let asked = std::mem::take(&mut self.reads.asked).into_values();
        for reader in asked.chain(self.reads.applying.drain(..).map(|(_, reader)| reader)) {
            self.shell.read_done(reader, None);
        }
    }

    /// Makes all that this manager must not forget durable anew, in place of whatever the failed save has left, and
    /// goes on where it stopped. Nothing is read back: all that was ever acknowledged is held in memory.
    pub(crate) fn resume(&mut self) -> Result<(), ManagerError> {
        let stalled = self.stalled.take().unwrap_or_default();
        let save = match &stalled.save {
            // It takes the place of everything as it is; what it brings is not applied yet.
            Some(save) if save.snapshot.is_some() => save.clone(),
            _ => self.whole()?,
        };
        // The lock first, also that of the state as it is applied.
        if let Err(error) = self.follow_lock().and_then(|()| self.make_durable(stalled.install.as_ref(), &save)) {
            self.stalled = Some(stalled);
            return Err(error);
        }
        // What was to be said is old news: who waited for it asks again.
        self.carry_on(Ready { save: None, messages: Vec::new(), lead: None, ..stalled })?;
        self.follow_lead(self.raft.lead());
        Ok(())
    }

    /// All that this manager must not forget.
    fn whole(&self) -> Result<Save, ManagerError> {
        let (index, bytes) = self.state_bytes()?;
        let whole = self.raft.whole(index, Payload::new(bytes));
        whole.ok_or_else(|| ManagerError::Broken(format!("the log does not hold the applied entry {index}")))
    }

    /// The leader's state takes the place of ours.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), ManagerError> {
        let state = read(snapshot)?;
        tracing::info!(index = state.index, "took over the leader's state");
        self.shell.change(|current| *current = state);
        (self.snapshot, self.bytes) = (snapshot.position, 0);
        self.shell.set_members(self.raft.membership());
        self.shell.notify();
        Ok(())
    }

    /// Applies committed entries, ends the sessions that they end; tells whether something was erased for good.
    fn apply(&mut self, committed: Vec<crate::raft::Entry>) -> Result<(Results, bool), ManagerError> {
        let members = committed.iter().any(|entry| matches!(entry.body, Body::Members(_)));
        let (results, effects) = self.shell.change(|state| apply(state, committed, &mut self.bytes))?;
        if members {
            self.shell.set_members(self.raft.membership());
        }
        // Before anybody is told of the change: a removed node's session must not be woken by it first.
        for effect in &effects {
            if let Effect::EndSession(node) = effect {
                self.shell.end_session(*node);
            }
        }
        Ok((results, effects.contains(&Effect::Compact)))
    }

    fn follow_lock(&mut self) -> Result<(), ManagerError> {
        let lock = self.shell.with(|state| state.cluster.lock.clone());
        self.shell.follow_lock(&lock)
    }

    /// Proposals whose place another entry took are lost.
    fn tell(&mut self, results: Results) {
        let changed = results.iter().any(|(_, result)| result.is_ok());
        for (position, result) in results {
            let Some((term, proposer)) = self.waiting.remove(&position.index) else { continue };
            let told = if term == position.term {
                result.map(|reply| (reply, position.index)).map_err(ManagerError::from)
            } else {
                Err(ManagerError::NotLeader)
            };
            self.shell.verdict(proposer, told);
        }
        if changed {
            self.shell.notify();
        }
    }

    fn answer_reads(&mut self, done: Vec<ReadDone>) {
        for ReadDone { token, index } in done {
            let Some(reader) = self.reads.asked.remove(&token) else { continue };
            match index {
                Some(index) => self.reads.applying.push((index, reader)),
                None => self.shell.read_done(reader, None),
            }
        }
        let applied = self.shell.with(|state| state.index);
        for (_, reader) in self.reads.applying.extract_if(.., |(index, _)| *index <= applied) {
            self.shell.read_done(reader, Some(applied));
        }
    }

    /// The applied state and its place in the log.
    pub(crate) fn applied_snapshot(&self) -> Option<Snapshot> {
        let encoded = self.state_bytes();
        let (index, bytes) = encoded.map_err(|error| tracing::error!(%error, "the state cannot be encoded")).ok()?;
        self.raft.snapshot_at(index, Payload::new(bytes))
    }

    /// Cuts the log down to a snapshot of the applied state, under a new at-rest key.
    fn compact(&mut self) -> Result<(), ManagerError> {
        let (index, bytes) = self.state_bytes()?;
        if let Some(save) = self.raft.compact(index, Payload::new(bytes)) {
            self.snapshot = save.snapshot.as_ref().map_or(self.snapshot, |snapshot| snapshot.position);
            self.bytes = 0;
            self.shell.save(&save)?;
        }
        Ok(())
    }

    /// The applied state, and its index. It is written by this machine only: nobody waits for a lock that is held
    /// meanwhile.
    fn state_bytes(&self) -> Result<(u64, Zeroizing<Vec<u8>>), ManagerError> {
        let (index, bytes) = self.shell.with(|state| (state.index, state.to_bytes()));
        Ok((index, bytes.map_err(|error| ManagerError::Broken(error.to_string()))?))
    }

    fn follow_lead(&mut self, lead: Lead) {
        let here = lead.leader == Some(self.raft.member());
        if !here {
            // Whether they will be committed after all is the next leader's matter.
            for (_, proposer) in std::mem::take(&mut self.waiting).into_values() {
                self.shell.verdict(proposer, Err(ManagerError::LeadLost));
            }
        }
        tracing::info!(term = lead.term, leader = ?lead.leader, "lead");
        self.shell.follow_lead(lead, here);
        self.shell.notify();
    }

    /// Who takes part follows the nodes' roles.
    fn change_members(&mut self, now: Time) {
        if !self.raft.lead().established {
            return;
        }
        let step = self.shell.with(|state| members::plan(state, &self.raft, now));
        let result = match step {
            None => return,
            Some(members::Step::HandOver(heirs)) => {
                self.raft.hand_over(now, |member| heirs.contains(&member));
                Ok(())
            }
            Some(members::Step::Change(change)) => {
                tracing::info!(?change, "the managers change");
                self.raft.change(change, now).map(drop)
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "not now");
        }
    }

    /// Tells of voters that do not answer.
    fn look_for_silence(&mut self, now: Time) {
        let is_silent = |voter: &Member| self.raft.heard(*voter).is_some_and(|heard| now.since(heard) >= SILENCE);
        let silent = self.raft.membership().voters.iter().copied().filter(is_silent).collect();
        self.shell.silent(silent);
    }

    /// Another manager is to lead: proposes nothing more, and asks the heir to stand as soon as it has the whole log.
    pub(crate) fn leave(&mut self) {
        self.leaving = true;
    }

    /// Nobody gets an answer any more.
    pub(crate) fn forget_waiting(&mut self) {
        self.waiting.clear();
        (self.reads.asked, self.reads.applying) = (BTreeMap::new(), Vec::new());
    }
}

/// The state in a snapshot.
pub(super) fn read(snapshot: &Snapshot) -> Result<State, ManagerError> {
    State::from_bytes(snapshot.data.bytes()).map_err(|error| ManagerError::Broken(error.to_string()))
}

type Results = Vec<(Position, Result<Reply, Refusal>)>;

/// Applies entries in order; counts the bytes of their commands.
fn apply(
    state: &mut State,
    committed: Vec<crate::raft::Entry>,
    bytes: &mut usize,
) -> Result<(Results, Vec<Effect>), ManagerError> {
    let (mut results, mut effects) = (Vec::with_capacity(committed.len()), Vec::new());
    for crate::raft::Entry { position, body } in committed {
        if position.index != state.index + 1 {
            let text = format!("entry {} follows a state of index {}", position.index, state.index);
            return Err(ManagerError::Broken(text));
        }
        let result = match body {
            Body::Term => {
                state.pass();
                Ok(Reply::Done)
            }
            Body::Members(membership) => {
                state.set_managers(members::seats(&membership));
                Ok(Reply::Done)
            }
            Body::Command(payload) => {
                *bytes += payload.bytes().len();
                let entry: Entry = postcard::from_bytes(payload.bytes())
                    .map_err(|error| ManagerError::Broken(format!("entry {}: {error}", position.index)))?;
                let (result, caused) = state.apply(&entry);
                effects.extend(caused);
                result
            }
        };
        results.push((position, result));
    }
    Ok((results, effects))
}

/// Into a buffer of the right size from the start: growing would leave unwiped copies of keys behind.
fn encode(entry: &Entry) -> Result<Zeroizing<Vec<u8>>, postcard::Error> {
    let mut bytes = Zeroizing::new(vec![0; postcard::experimental::serialized_size(entry)?]);
    postcard::to_slice(entry, &mut bytes)?;
    Ok(bytes)
}
