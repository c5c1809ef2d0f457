//! The one writer: takes what comes in from a bounded queue (proposals, messages of other managers, reads) and hands it
//! to the [`Replica`], whose shell it is: the store, written with one fsync, the streams to the other managers, the
//! applied state for readers. It owns the store and runs on a thread of its own, since it blocks.
//!
//! When the store cannot be written (the disk is full, or read-only), what is on disk is unknown. The actor then takes
//! no part in the consensus: it answers nothing but errors, hears no other manager, and tries every second to write all
//! that it has to remember to a fresh file. Nothing was acknowledged that is not on disk, and nothing that was
//! acknowledged is held in the failed file alone, so that it goes on from there as if the time between had not been.

use super::handle::ManagerError;
use super::lock::SealWatch;
use super::peers::Peers;
use super::replica::{Replica, Shell, Verdict};
use super::session::Sessions;
use super::store::{Loaded, Store, StoreError};
use super::wall_clock;
use crate::cluster::{Command, Lock, State};
use crate::raft::{Lead, Member, Membership, Message, Raft, Save, Settings, Snapshot, Timing};
use crate::sys::erase::erase_stack;
use crate::types::{NodeId, Time};
use smol::channel::{Receiver, Sender, TrySendError, bounded};
use smol::future::FutureExt as _;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Inputs that may wait: beyond it those who bring them wait for room.
const QUEUE_INPUTS: usize = 1024;
/// Inputs between two looks at what is ready: bounds what one fsync holds up.
const BATCH_INPUTS: usize = 128;
/// Time between two attempts to write a store that failed.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// What the actor is told.
enum Input {
    Propose {
        command: Box<Command>,
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
    /// Another manager is to lead.
    Leave,
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
    failure: Mutex<Option<ManagerError>>,
    silent: Mutex<BTreeSet<Member>>,
}

impl Published {
    pub(super) fn new(state: State) -> Published {
        Published {
            state: RwLock::new(state),
            copy: Mutex::new(None),
            watchers: Mutex::new(Vec::new()),
            leadership: Mutex::new(Leadership::Nobody),
            failure: Mutex::new(None),
            silent: Mutex::default(),
        }
    }

    /// Who leads.
    pub(super) fn leadership(&self) -> Leadership {
        *self.leadership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the actor takes no part, or ended by itself.
    pub(super) fn failure(&self) -> Option<ManagerError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_failure(&self, failure: Option<ManagerError>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    /// Whether this manager, which leads, has not heard of that voter for a while.
    pub(super) fn is_silent(&self, voter: Member) -> bool {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner).contains(&voter)
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
            let _ = self.queue.send(Input::Propose { command: Box::new(command), verdict }).await;
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

    /// Proposes nothing more, and asks another manager to lead.
    pub(super) async fn leave(&self) {
        let _ = self.queue.send(Input::Leave).await;
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
    seals: Arc<SealWatch>,
) -> Result<Writer, ManagerError> {
    let Loaded { owner, hard, snapshot, entries } = loaded;
    let seed = u64::from_be_bytes(super::random());
    let settings = Settings { member: owner.member, timing: Timing::default(), seed };
    let started = Instant::now();
    let raft = Raft::restart(settings, hard, &snapshot, entries, Time::default());
    let ends = Ends { store, published: published.clone(), sessions, peers, seals };
    let mut actor = Actor { replica: Replica::new(ends, raft, snapshot.position), published, started };
    actor.turn(Vec::new())?;
    let (queue, inputs) = bounded(QUEUE_INPUTS);
    let run = move || actor.run(&inputs);
    let thread = std::thread::Builder::new().name("formic-store".to_owned()).spawn(run);
    let thread = thread.map_err(|error| ManagerError::Unavailable(format!("cannot start a thread: {error}")))?;
    Ok(Writer { queue, thread: Mutex::new(Some(thread)) })
}

/// What the replica works on in a daemon.
struct Ends {
    store: Store,
    published: Arc<Published>,
    sessions: Arc<Sessions>,
    peers: Peers,
    seals: Arc<SealWatch>,
}

impl Ends {
    fn set_leadership(&self, leadership: Leadership) {
        *self.published.leadership.lock().unwrap_or_else(PoisonError::into_inner) = leadership;
    }
}

impl Shell for Ends {
    type Proposer = Sender<Verdict>;
    type Reader = Sender<Option<u64>>;

    fn save(&mut self, save: &Save) -> Result<(), ManagerError> {
        self.store.save(save)?;
        if save.snapshot.is_some() {
            // Masters may have been retired with what the snapshot leaves out: nor does the stack keep them.
            erase_stack();
        }
        Ok(())
    }

    fn follow_lock(&mut self, lock: &Lock) -> Result<(), ManagerError> {
        let Some(seal) = self.store.next_seal(lock) else { return Ok(self.seals.catch_up()?) };
        let locked = seal.is_locked();
        self.seals.change(seal, || self.store.follow_lock(lock).map(drop))?;
        tracing::info!(locked, "this manager's files have another lock");
        Ok(())
    }

    fn send(&mut self, to: Member, message: Message) {
        self.peers.send(to, message);
    }

    fn set_members(&mut self, members: &Membership) {
        self.peers.set_members(members);
    }

    fn with<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.published.with(read)
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.published.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn end_session(&mut self, node: NodeId) {
        self.sessions.remove(node);
    }

    fn verdict(&mut self, proposer: Sender<Verdict>, verdict: Verdict) {
        // It may have lost patience.
        let _ = proposer.try_send(verdict);
    }

    fn read_done(&mut self, reader: Sender<Option<u64>>, index: Option<u64>) {
        let _ = reader.try_send(index);
    }

    fn follow_lead(&mut self, lead: Lead, here: bool) {
        if !here {
            self.sessions.end_all();
        }
        self.set_leadership(match lead.leader {
            Some(_) if here && lead.established => Leadership::Here { term: lead.term, since: Instant::now() },
            Some(leader) if !here => Leadership::There(leader),
            _ => Leadership::Nobody,
        });
    }

    fn notify(&mut self) {
        self.published.notify();
    }

    fn silent(&mut self, voters: BTreeSet<Member>) {
        *self.published.silent.lock().unwrap_or_else(PoisonError::into_inner) = voters;
    }
}

struct Actor {
    replica: Replica<Ends>,
    published: Arc<Published>,
    started: Instant,
}

impl Actor {
    fn now(&self) -> Time {
        Time::default() + self.started.elapsed()
    }

    fn run(&mut self, inputs: &Receiver<Input>) {
        while let Some(batch) = self.wait(inputs) {
            let done = match self.turn(batch) {
                Err(ManagerError::Store(error)) => self.outlast(inputs, error),
                done => done.map(|()| true),
            };
            match done {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::error!(%error, "this manager ends");
                    self.published.set_failure(Some(error));
                    break;
                }
            }
        }
        // Proposals that still wait get no verdict: their senders fall with the queue.
        inputs.close();
        while inputs.try_recv().is_ok() {}
        self.replica.forget_waiting();
        self.step_aside();
    }

    /// This manager leads nobody.
    fn step_aside(&mut self) {
        self.replica.shell.set_leadership(Leadership::Nobody);
        // The nodes look for a manager that goes on.
        self.replica.shell.sessions.end_all();
        self.published.notify();
    }

    /// Takes no part until the store can be written again; false when nothing will come any more.
    fn outlast(&mut self, inputs: &Receiver<Input>, error: StoreError) -> Result<bool, ManagerError> {
        tracing::error!(%error, "this manager cannot write its state: it takes no part until it can");
        let began = Instant::now();
        let now = self.now();
        self.replica.pause(&ManagerError::Interrupted(error.clone()), now);
        self.published.set_failure(Some(ManagerError::Stalled(error.clone())));
        self.step_aside();
        let mut told = error;
        while self.refuse(inputs, &told) {
            match self.replica.resume() {
                Ok(()) => {
                    self.published.set_failure(None);
                    tracing::info!(after = ?began.elapsed(), "this manager can write its state again");
                    return Ok(true);
                }
                Err(ManagerError::Store(again)) if again == told => {}
                Err(ManagerError::Store(again)) => {
                    tracing::warn!(error = %again, "this manager still cannot write its state");
                    self.published.set_failure(Some(ManagerError::Stalled(again.clone())));
                    told = again;
                }
                Err(other) => return Err(other),
            }
        }
        Ok(false)
    }

    /// Refuses what comes in until the next attempt is due; false when nothing will come any more.
    fn refuse(&self, inputs: &Receiver<Input>, why: &StoreError) -> bool {
        let due = Instant::now() + STORE_RETRY;
        // However much comes in.
        while Instant::now() < due {
            let next = smol::block_on(async { inputs.recv().await.map(Some) }.or(async {
                smol::Timer::at(due).await;
                Ok(None)
            }));
            match next {
                Err(_) => return false,
                Ok(None) => return true,
                Ok(Some(Input::Propose { verdict, .. })) => {
                    let _ = verdict.try_send(Err(ManagerError::Stalled(why.clone())));
                }
                // The others get no answer by being dropped.
                Ok(Some(Input::Step { .. } | Input::Read { .. } | Input::Snapshot { .. } | Input::Leave)) => {}
            }
        }
        true
    }

    /// What came in until the consensus wants to go on. `None` when nothing will come any more.
    fn wait(&self, inputs: &Receiver<Input>) -> Option<Vec<Input>> {
        let due = self.replica.poll_timeout().since(Time::default());
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
            let now = self.now();
            match input {
                Input::Propose { command, verdict } => self.replica.propose(*command, at, verdict, now),
                Input::Step { from, message } => self.replica.step(from, message, now)?,
                Input::Read { done } => self.replica.read(done, now),
                Input::Leave => self.replica.leave(),
                Input::Snapshot { reply } => {
                    if let Some(snapshot) = self.replica.applied_snapshot() {
                        let _ = reply.try_send(Box::new(snapshot));
                    }
                }
            }
        }
        let now = self.now();
        self.replica.turn(now)
    }
}
