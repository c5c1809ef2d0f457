//! The one writer: takes what comes in from a bounded queue (proposals, messages of other managers, reads), hands it
//! to the consensus, and carries out what that makes ready: makes it durable with one fsync, sends, applies, tells
//! proposers and watchers. It owns the store and runs on a thread of its own, since it blocks.
//!
//! When the store fails, what is on disk is unknown: the actor ends, and every proposal fails from then on.

use super::handle::ManagerError;
use super::members;
use super::peers::Peers;
use super::session::Sessions;
use super::store::{Loaded, Store};
use super::wall_clock;
use crate::cluster::{Command, Effect, Entry, Refusal, Reply, State};
use crate::raft::{
    Body, Consensus as _, Lead, Member, Message, Payload, Position, ProposeError, Raft, ReadDone, Ready, Settings,
    Snapshot, Timing,
};
use crate::types::Time;
use smol::channel::{Receiver, Sender, TrySendError, bounded};
use smol::future::FutureExt as _;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Inputs that may wait: beyond it those who bring them wait for room.
const QUEUE_INPUTS: usize = 1024;
/// Inputs between two looks at what is ready: bounds what one fsync holds up.
const BATCH_INPUTS: usize = 128;
/// Log entries between two snapshots: bounds the replay at start (about 20 us each).
const SNAPSHOT_EVERY: u64 = 2000;
/// Bytes of commands between two snapshots: the log is held in memory.
const SNAPSHOT_BYTES: usize = 8 << 20;
/// So many times more while a member is being sent a snapshot, which the next one would make useless.
const TRANSFER_PATIENCE: u64 = 4;
/// Time between two looks at who should be a member.
const MEMBERS_TICK: Duration = Duration::from_millis(200);

type Verdict = Result<(Reply, u64), ManagerError>;

/// What the actor is told.
enum Input {
    Propose {
        command: Command,
        verdict: Sender<Verdict>,
    },
    Step {
        from: Member,
        message: Message,
    },
    /// Answered once a read of the applied state is linearizable.
    Read {
        done: Sender<Option<u64>>,
    },
    /// Answered with the applied state.
    Snapshot {
        reply: Sender<Box<Snapshot>>,
    },
}

/// Who leads, as this manager sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leadership {
    /// This manager, since then.
    Here {
        /// The term.
        term: u64,
        /// Since when.
        since: Instant,
    },
    /// Another one.
    There(Member),
    /// Nobody, or it is not known yet.
    Nobody,
}

/// The applied state, for readers.
pub(super) struct Published {
    state: RwLock<State>,
    /// A copy of the state at some index, made when somebody asks for one.
    copy: Mutex<Option<Arc<State>>>,
    watchers: Mutex<Vec<Sender<()>>>,
    leadership: Mutex<Leadership>,
    failure: OnceLock<ManagerError>,
}

impl Published {
    pub(super) fn new(state: State) -> Published {
        Published {
            state: RwLock::new(state),
            copy: Mutex::new(None),
            watchers: Mutex::new(Vec::new()),
            leadership: Mutex::new(Leadership::Nobody),
            failure: OnceLock::new(),
        }
    }

    /// Who leads.
    pub(super) fn leadership(&self) -> Leadership {
        *self.leadership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the actor ended, if it did by itself.
    pub(super) fn failure(&self) -> Option<ManagerError> {
        self.failure.get().cloned()
    }

    /// Reads the state in place.
    pub(super) fn with<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of the state that does not change.
    pub(super) fn copy(&self) -> Arc<State> {
        let mut copy = self.copy.lock().unwrap_or_else(PoisonError::into_inner);
        self.with(|state| match copy.as_ref().filter(|copy| copy.index == state.index) {
            Some(copy) => copy.clone(),
            None => {
                let fresh = state.duplicate();
                let fresh = Arc::new(fresh.unwrap_or_else(|error| unreachable!("a state is its own copy: {error}")));
                *copy = Some(fresh.clone());
                fresh
            }
        })
    }

    /// Gets a `()` after each change of the state or the lead; several changes may be one.
    pub(super) fn watch(&self) -> Receiver<()> {
        let (sender, receiver) = bounded(1);
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    fn notify(&self) {
        let mut watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| !matches!(watcher.try_send(()), Err(TrySendError::Closed(()))));
    }
}

/// The way to the actor.
pub(super) struct Writer {
    queue: Sender<Input>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Writer {
    /// Commits commands in order, if this manager leads. Those of one call are made durable together where possible.
    /// Gives each reply with the log index at which it holds.
    pub(super) async fn propose(&self, published: &Published, commands: Vec<Command>) -> Vec<Verdict> {
        let mut waiting = Vec::with_capacity(commands.len());
        for command in commands {
            let (verdict, result) = bounded(1);
            // A send that fails drops the only sender of the verdict, so that its receiver ends.
            let _ = self.queue.send(Input::Propose { command, verdict }).await;
            waiting.push(result);
        }
        let mut verdicts = Vec::with_capacity(waiting.len());
        for result in waiting {
            verdicts.push(result.recv().await.unwrap_or_else(|_| Err(ended(published))));
        }
        verdicts
    }

    /// A message of another manager.
    pub(super) async fn step(&self, from: Member, message: Message) {
        // Refused only when the actor has ended: then nobody listens any more.
        let _ = self.queue.send(Input::Step { from, message }).await;
    }

    /// Waits until the applied state shows all that was committed before, anywhere; gives its index. `None` when this
    /// manager does not lead.
    pub(super) async fn read(&self) -> Option<u64> {
        let (done, result) = bounded(1);
        let _ = self.queue.send(Input::Read { done }).await;
        result.recv().await.ok().flatten()
    }

    /// The applied state.
    pub(super) async fn snapshot(&self) -> Option<Box<Snapshot>> {
        let (reply, result) = bounded(1);
        let _ = self.queue.send(Input::Snapshot { reply }).await;
        result.recv().await.ok()
    }

    /// Ends the actor; the store is closed when this returns.
    pub(super) async fn stop(&self) {
        self.queue.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let ended = smol::unblock(move || thread.join()).await;
            if ended.is_err() {
                tracing::error!("the manager's writer panicked");
            }
        }
    }
}

fn ended(published: &Published) -> ManagerError {
    published.failure().unwrap_or_else(|| ManagerError::Unavailable("the manager is stopping".to_owned()))
}

/// Starts the actor. A swarm's only manager leads, with all that is durable applied, when this returns.
pub(super) fn start(
    store: Store,
    loaded: Loaded,
    published: Arc<Published>,
    sessions: Arc<Sessions>,
    peers: Peers,
) -> Result<Writer, ManagerError> {
    let Loaded { owner, hard, snapshot, entries } = loaded;
    let seed = u64::from_be_bytes(super::random());
    let settings = Settings { member: owner.member, timing: Timing::default(), seed };
    let started = Instant::now();
    let raft = Raft::restart(settings, hard, &snapshot, entries, Time::default());
    peers.set_members(raft.membership());
    let mut actor = Actor {
        store,
        raft,
        published,
        sessions,
        peers,
        started,
        snapshot: snapshot.position,
        bytes: 0,
        waiting: BTreeMap::new(),
        reads: Reads::default(),
        members_at: Time::default(),
    };
    actor.turn(Vec::new())?;
    let (queue, inputs) = bounded(QUEUE_INPUTS);
    let run = move || actor.run(&inputs);
    let thread = std::thread::Builder::new().name("formic-store".to_owned()).spawn(run);
    let thread = thread.map_err(|error| ManagerError::Unavailable(format!("cannot start a thread: {error}")))?;
    Ok(Writer { queue, thread: Mutex::new(Some(thread)) })
}

/// Reads that wait: for the consensus, then for their index to be applied.
#[derive(Default)]
struct Reads {
    next: u64,
    asked: BTreeMap<u64, Sender<Option<u64>>>,
    applying: Vec<(u64, Sender<Option<u64>>)>,
}

struct Actor {
    store: Store,
    raft: Raft,
    published: Arc<Published>,
    sessions: Arc<Sessions>,
    peers: Peers,
    started: Instant,
    /// Where the log begins.
    snapshot: Position,
    /// Bytes of commands applied since.
    bytes: usize,
    /// Own proposals by log index: the term they were made in, and who waits.
    waiting: BTreeMap<u64, (u64, Sender<Verdict>)>,
    reads: Reads,
    members_at: Time,
}

impl Actor {
    fn now(&self) -> Time {
        Time::default() + self.started.elapsed()
    }

    fn run(&mut self, inputs: &Receiver<Input>) {
        while let Some(batch) = self.wait(inputs) {
            if let Err(error) = self.turn(batch) {
                tracing::error!(%error, "this manager ends");
                let _ = self.published.failure.set(error);
                break;
            }
        }
        // Proposals that still wait get no verdict: their senders fall with the queue.
        inputs.close();
        while inputs.try_recv().is_ok() {}
        self.waiting.clear();
        self.set_leadership(Leadership::Nobody);
        // The nodes look for a manager that goes on.
        self.sessions.end_all();
        self.published.notify();
    }

    /// What came in until the consensus wants to go on. `None` when nothing will come any more.
    fn wait(&self, inputs: &Receiver<Input>) -> Option<Vec<Input>> {
        let due = self.raft.poll_timeout().since(Time::default());
        let first = smol::block_on(async { inputs.recv().await.map(Some) }.or(async {
            smol::Timer::at(self.started + due).await;
            Ok(None)
        }));
        let mut batch: Vec<Input> = first.ok()?.into_iter().collect();
        while batch.len() < BATCH_INPUTS {
            let Ok(next) = inputs.try_recv() else { break };
            batch.push(next);
        }
        Some(batch)
    }

    fn turn(&mut self, batch: Vec<Input>) -> Result<(), ManagerError> {
        let at = wall_clock();
        for input in batch {
            match input {
                Input::Propose { command, verdict } => self.propose(Entry { at, command }, verdict),
                Input::Step { from, message } => {
                    let now = self.now();
                    self.raft.step(from, message, now).map_err(|broken| ManagerError::Broken(broken.to_string()))?;
                }
                Input::Read { done } => {
                    self.reads.next += 1;
                    self.reads.asked.insert(self.reads.next, done);
                    let now = self.now();
                    self.raft.read(self.reads.next, now);
                }
                Input::Snapshot { reply } => {
                    if let Some(snapshot) = self.applied_snapshot() {
                        let _ = reply.try_send(Box::new(snapshot));
                    }
                }
            }
        }
        let now = self.now();
        if self.raft.poll_timeout() <= now {
            self.raft.handle_timeout(now);
        }
        self.carry_out_all()?;
        if self.members_at <= now {
            self.members_at = now + MEMBERS_TICK;
            self.change_members(now);
            self.carry_out_all()?;
        }
        Ok(())
    }

    fn propose(&mut self, entry: Entry, verdict: Sender<Verdict>) {
        let now = self.now();
        let proposed = match encode(&entry) {
            Ok(bytes) => self.raft.propose(Payload::new(bytes), now),
            Err(error) => {
                let _ = verdict.try_send(Err(Refusal::Invalid(error.to_string()).into()));
                return;
            }
        };
        let refused = match proposed {
            Ok(Position { term, index }) => {
                self.waiting.insert(index, (term, verdict));
                return;
            }
            Err(ProposeError::NotLeader) => ManagerError::NotLeader,
            Err(error @ ProposeError::TooLong(_)) => Refusal::Invalid(error.to_string()).into(),
            Err(error @ ProposeError::Busy) => ManagerError::Unavailable(error.to_string()),
        };
        let _ = verdict.try_send(Err(refused));
    }

    fn carry_out_all(&mut self) -> Result<(), ManagerError> {
        while let Some(ready) = self.raft.poll_ready() {
            self.carry_out(ready)?;
        }
        let index = self.published.with(|state| state.index);
        let log = self.raft.last().index.saturating_sub(self.snapshot.index);
        let patience = if self.raft.is_transferring() { TRANSFER_PATIENCE } else { 1 };
        let long = log >= SNAPSHOT_EVERY * patience || self.bytes as u64 >= SNAPSHOT_BYTES as u64 * patience;
        if long && index > self.snapshot.index { self.compact() } else { Ok(()) }
    }

    /// In the order that the consensus asks for.
    fn carry_out(&mut self, ready: Ready) -> Result<(), ManagerError> {
        if let Some(save) = &ready.save {
            self.store.save(save)?;
        }
        if let Some(snapshot) = &ready.install {
            self.install(snapshot)?;
        }
        for (to, message) in ready.messages {
            self.peers.send(to, message);
        }
        if !ready.committed.is_empty() {
            self.apply(ready.committed)?;
        }
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

    /// The leader's state takes the place of ours.
    fn install(&mut self, snapshot: &Snapshot) -> Result<(), ManagerError> {
        let state =
            State::from_bytes(snapshot.data.bytes()).map_err(|error| ManagerError::Broken(error.to_string()))?;
        tracing::info!(index = state.index, "took over the leader's state");
        *self.published.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        (self.snapshot, self.bytes) = (snapshot.position, 0);
        self.peers.set_members(self.raft.membership());
        self.published.notify();
        Ok(())
    }

    /// Applies committed entries, ends the sessions that they end, answers.
    fn apply(&mut self, committed: Vec<crate::raft::Entry>) -> Result<(), ManagerError> {
        let (mut results, mut effects, mut members) = (Vec::with_capacity(committed.len()), Vec::new(), false);
        {
            let mut state = self.published.state.write().unwrap_or_else(PoisonError::into_inner);
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
                        members = true;
                        state.set_managers(members::seats(&membership));
                        Ok(Reply::Done)
                    }
                    Body::Command(payload) => {
                        self.bytes += payload.bytes().len();
                        let entry: Entry = postcard::from_bytes(payload.bytes())
                            .map_err(|error| ManagerError::Broken(format!("entry {}: {error}", position.index)))?;
                        let (result, caused) = state.apply(&entry);
                        effects.extend(caused);
                        result
                    }
                };
                results.push((position, result));
            }
        }
        if effects.contains(&Effect::Compact) {
            self.compact()?;
        }
        if members {
            self.peers.set_members(self.raft.membership());
        }
        // Before anybody is told of the change: a removed node's session must not be woken by it first.
        for effect in effects {
            if let Effect::EndSession(node) = effect {
                self.sessions.remove(node);
            }
        }
        self.tell(results);
        Ok(())
    }

    /// Proposals whose place another entry took are lost.
    fn tell(&mut self, results: Vec<(Position, Result<Reply, Refusal>)>) {
        let changed = results.iter().any(|(_, result)| result.is_ok());
        for (position, result) in results {
            let Some((term, verdict)) = self.waiting.remove(&position.index) else { continue };
            let told = if term == position.term {
                result.map(|reply| (reply, position.index)).map_err(ManagerError::from)
            } else {
                Err(ManagerError::NotLeader)
            };
            let _ = verdict.try_send(told);
        }
        if changed {
            self.published.notify();
        }
    }

    fn answer_reads(&mut self, done: Vec<ReadDone>) {
        for ReadDone { token, index } in done {
            let Some(reader) = self.reads.asked.remove(&token) else { continue };
            match index {
                Some(index) => self.reads.applying.push((index, reader)),
                None => drop(reader.try_send(None)),
            }
        }
        let applied = self.published.with(|state| state.index);
        self.reads.applying.retain(|(index, reader)| {
            let wait = *index > applied;
            if !wait {
                let _ = reader.try_send(Some(applied));
            }
            wait
        });
    }

    fn applied_snapshot(&self) -> Option<Snapshot> {
        let (index, bytes) = self.published.with(|state| (state.index, state.to_bytes()));
        let bytes = bytes.map_err(|error| tracing::error!(%error, "the state cannot be encoded")).ok()?;
        self.raft.snapshot_at(index, Payload::new(bytes))
    }

    /// Cuts the log down to a snapshot of the applied state, under a new at-rest key.
    fn compact(&mut self) -> Result<(), ManagerError> {
        // `Published` is written by this thread only: nobody waits for the lock that is held meanwhile.
        let (index, bytes) = self.published.with(|state| (state.index, state.to_bytes()));
        let bytes = bytes.map_err(|error| ManagerError::Broken(error.to_string()))?;
        if let Some(save) = self.raft.compact(index, Payload::new(bytes)) {
            self.store.save(&save)?;
            self.snapshot = save.snapshot.map_or(self.snapshot, |snapshot| snapshot.position);
            self.bytes = 0;
        }
        Ok(())
    }

    fn follow_lead(&mut self, lead: Lead) {
        let here = lead.leader == Some(self.raft.member());
        if !here {
            // Whether they will be committed after all is the next leader's matter.
            for (_, verdict) in std::mem::take(&mut self.waiting).into_values() {
                let _ = verdict.try_send(Err(ManagerError::LeadLost));
            }
            self.sessions.end_all();
        }
        let leadership = match lead.leader {
            Some(_) if here && lead.established => Leadership::Here { term: lead.term, since: Instant::now() },
            Some(leader) if !here => Leadership::There(leader),
            _ => Leadership::Nobody,
        };
        tracing::info!(term = lead.term, leader = ?lead.leader, "lead");
        self.set_leadership(leadership);
        self.published.notify();
    }

    fn set_leadership(&self, leadership: Leadership) {
        *self.published.leadership.lock().unwrap_or_else(PoisonError::into_inner) = leadership;
    }

    /// Who takes part follows the nodes' roles.
    fn change_members(&mut self, now: Time) {
        if !self.raft.lead().established {
            return;
        }
        let step = self.published.with(|state| members::plan(state, &self.raft, now));
        let result = match step {
            None => return,
            Some(members::Step::HandOver) => {
                self.raft.hand_over(now);
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
}

/// Into a buffer of the right size from the start: growing would leave unwiped copies of keys behind.
fn encode(entry: &Entry) -> Result<Zeroizing<Vec<u8>>, postcard::Error> {
    let mut bytes = Zeroizing::new(vec![0; postcard::experimental::serialized_size(entry)?]);
    postcard::to_slice(entry, &mut bytes)?;
    Ok(bytes)
}
