//! The one writer: takes proposals from a bounded queue, makes as many as wait durable with one fsync, applies them,
//! tells proposers and watchers. It owns the store and runs on a thread of its own, since it blocks.
//!
//! When the store fails, what is on disk is unknown: the actor ends, and every proposal fails from then on.

use super::handle::ManagerError;
use super::store::{Loaded, Store, StoreError};
use super::wall_clock;
use crate::cluster::{Command, Effect, Entry, Refusal, Reply, State};
use crate::types::NodeId;
use smol::channel::{Receiver, Sender, TrySendError, bounded};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Proposals that may wait: beyond it proposers wait for room.
const QUEUE_PROPOSALS: usize = 1024;
/// Proposals in one transaction: bounds how long a reader may wait for the state.
const BATCH_PROPOSALS: usize = 128;
/// Log records between two snapshots: bounds the replay at start (about 20 us each).
const SNAPSHOT_EVERY: u64 = 2000;

type Verdict = Result<Reply, ManagerError>;

struct Proposal {
    command: Command,
    verdict: Sender<Verdict>,
}

/// The applied state, for readers.
pub(super) struct Published {
    state: RwLock<State>,
    /// A copy of the state at some index, made when somebody asks for one.
    copy: Mutex<Option<Arc<State>>>,
    watchers: Mutex<Vec<Sender<()>>>,
    failure: OnceLock<StoreError>,
}

impl Published {
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

    /// Gets a `()` after each change; several changes may be one.
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
    queue: Sender<Proposal>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Writer {
    /// Commits commands in order. Those of one call are made durable together where possible.
    pub(super) async fn propose(&self, published: &Published, commands: Vec<Command>) -> Vec<Verdict> {
        let mut waiting = Vec::with_capacity(commands.len());
        for command in commands {
            let (verdict, result) = bounded(1);
            // A send that fails drops the only sender of the verdict, so that its receiver ends.
            let _ = self.queue.send(Proposal { command, verdict }).await;
            waiting.push(result);
        }
        let mut verdicts = Vec::with_capacity(waiting.len());
        for result in waiting {
            verdicts.push(result.recv().await.unwrap_or_else(|_| Err(ended(published))));
        }
        verdicts
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
    match published.failure.get() {
        Some(failure) => ManagerError::Store(failure.clone()),
        None => ManagerError::Unavailable("the manager is stopping".to_owned()),
    }
}

/// Starts the actor. `end_session` hears of nodes whose session must end at once.
pub(super) fn start(
    mut store: Store,
    loaded: Loaded,
    end_session: impl Fn(NodeId) + Send + 'static,
) -> Result<(Arc<Published>, Writer), ManagerError> {
    if loaded.compact {
        store.compact(&loaded.state)?;
    }
    let published = Arc::new(Published {
        state: RwLock::new(loaded.state),
        copy: Mutex::new(None),
        watchers: Mutex::new(Vec::new()),
        failure: OnceLock::new(),
    });
    let (queue, proposals) = bounded(QUEUE_PROPOSALS);
    let mut actor = Actor { store, published: published.clone() };
    let run = move || actor.run(&proposals, end_session);
    let thread = std::thread::Builder::new().name("formic-store".to_owned()).spawn(run);
    let thread = thread.map_err(|error| ManagerError::Unavailable(format!("cannot start a thread: {error}")))?;
    Ok((published, Writer { queue, thread: Mutex::new(Some(thread)) }))
}

struct Actor {
    store: Store,
    published: Arc<Published>,
}

impl Actor {
    fn run(&mut self, proposals: &Receiver<Proposal>, end_session: impl Fn(NodeId)) {
        while let Ok(first) = proposals.recv_blocking() {
            let mut batch = vec![first];
            while batch.len() < BATCH_PROPOSALS {
                let Ok(next) = proposals.try_recv() else { break };
                batch.push(next);
            }
            if let Err(error) = self.commit(batch, &end_session) {
                tracing::error!(%error, "the manager's store failed: this manager ends");
                let _ = self.published.failure.set(error);
                break;
            }
        }
        // Proposals that still wait get no verdict: their senders fall with the queue.
        proposals.close();
        while proposals.try_recv().is_ok() {}
        self.published.notify();
    }

    /// Makes the batch durable, applies it, ends the sessions that it ends, answers.
    fn commit(&mut self, batch: Vec<Proposal>, end_session: &impl Fn(NodeId)) -> Result<(), StoreError> {
        let at = wall_clock();
        let (mut entries, mut encoded, mut verdicts) = (Vec::new(), Vec::new(), Vec::new());
        for Proposal { command, verdict } in batch {
            let entry = Entry { at, command };
            match encode(&entry) {
                Ok(bytes) => {
                    encoded.push(bytes);
                    entries.push(entry);
                    verdicts.push(verdict);
                }
                Err(error) => {
                    let _ = verdict.try_send(Err(Refusal::Invalid(error.to_string()).into()));
                }
            }
        }
        let first = self.published.with(|state| state.index) + 1;
        self.store.append(first, &encoded)?;
        let (results, effects) = self.apply(&entries);
        if effects.contains(&Effect::Compact) || self.store.entries() >= SNAPSHOT_EVERY {
            // `Published` is written by this thread only: nobody waits for the lock that is held meanwhile.
            self.published.with(|state| self.store.compact(state))?;
        }
        // Before anybody is told of the change: a removed node's session must not be woken by it first.
        effects.iter().for_each(|effect| {
            if let Effect::EndSession(node) = effect {
                end_session(*node)
            }
        });
        let changed = results.iter().any(Result::is_ok);
        for (verdict, result) in verdicts.into_iter().zip(results) {
            let _ = verdict.try_send(result.map_err(ManagerError::from));
        }
        if changed {
            self.published.notify();
        }
        Ok(())
    }

    fn apply(&self, entries: &[Entry]) -> (Vec<Result<Reply, Refusal>>, Vec<Effect>) {
        let mut state = self.published.state.write().unwrap_or_else(PoisonError::into_inner);
        let (mut results, mut effects) = (Vec::with_capacity(entries.len()), Vec::new());
        for entry in entries {
            let (result, caused) = state.apply(entry);
            results.push(result);
            effects.extend(caused);
        }
        (results, effects)
    }
}

/// Into a buffer of the right size from the start: growing would leave unwiped copies of keys behind.
fn encode(entry: &Entry) -> Result<Zeroizing<Vec<u8>>, postcard::Error> {
    let mut bytes = Zeroizing::new(vec![0; postcard::experimental::serialized_size(entry)?]);
    postcard::to_slice(entry, &mut bytes)?;
    Ok(bytes)
}
