//! Which steps the key life asks for: a pure function of the replicated ring and of the leader's [`Clock`].
//!
//! 1. A next epoch is drawn as soon as there is none, and handed out a full interval early.
//! 2. It is *due* when the interval has passed since the last activation, or a request stands (an operator's, a
//!    node's with a worn-out SA, a removal).
//! 3. Due, it is activated when all participants are ready for it, or at the deadline.
//! 4. The previous epoch is erased when all participants send with the current one, not before
//!    `keep_previous_secs`, and always by the next activation.
//!
//! The participants of an epoch are the nodes that had a session when it was handed out and are still admitted;
//! nodes that join later do not count. Nobody's wall clock counts either, beyond the log's age of the activation
//! when a leader begins, and that only up to one interval: a jumping clock starts no storm, a leader that changes
//! often still rotates.

use super::{EpochState, NodeState, RotationRequest, State};
use crate::types::{Epoch, EpochPhase, Generation, NodeId, Time, UnixTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Seconds that a due rotation waits for late participants, that the previous epoch is kept at least, and between
/// two early rotations by volume: long enough for a node to restart and come back.
pub const DEADLINE_SECS: u32 = 600;
/// The same after the removal of a node, which still knows the current key: as short as a hand-out allows.
pub const REMOVAL_DEADLINE_SECS: u32 = 30;

/// A leader's clock of the key life. Make one when this manager starts to lead, read it before each [`plan`].
#[derive(Debug, Clone)]
pub struct Clock {
    epoch: Option<Epoch>,
    activation: Stopwatch,
    request: Option<RotationRequest>,
    requested: Stopwatch,
}

/// Seconds that had passed at a moment.
#[derive(Debug, Clone, Copy)]
struct Stopwatch {
    base_secs: u64,
    since: Time,
}

impl Stopwatch {
    fn secs(self, now: Time) -> u64 {
        self.base_secs.saturating_add(now.since(self.since).as_secs())
    }
}

/// What [`plan`] has to know of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingClock {
    /// Seconds since the activation of the current epoch.
    pub age_secs: u64,
    /// Seconds since the standing request (0 without one).
    pub request_secs: u64,
}

impl Clock {
    /// A clock for a leader that begins now; `wall` is its wall clock.
    pub fn new(state: &State, now: Time, wall: UnixTime) -> Clock {
        let log = wall.max(state.at);
        let age = |at: Option<UnixTime>, most: u32| at.map_or(0, |at| log.0.saturating_sub(at.0).min(u64::from(most)));
        let current = state.ring.phase(EpochPhase::Current);
        let activated_at = current.and_then(|current| current.activated_at);
        let request = state.ring.request;
        let deadline_secs = request.map_or(0, |request| request.deadline_secs);
        Clock {
            epoch: current.map(|current| current.epoch),
            activation: Stopwatch { base_secs: age(activated_at, state.cluster.spec.key_rotation_secs), since: now },
            request,
            requested: Stopwatch { base_secs: age(request.map(|request| request.at), deadline_secs), since: now },
        }
    }

    /// The clock at `now`. An activation or request that it has not seen before happened just now.
    pub fn read(&mut self, state: &State, now: Time) -> RingClock {
        let epoch = state.ring.phase(EpochPhase::Current).map(|current| current.epoch);
        if self.epoch != epoch {
            self.epoch = epoch;
            self.activation = Stopwatch { base_secs: 0, since: now };
        }
        if self.request != state.ring.request {
            self.request = state.ring.request;
            self.requested = Stopwatch { base_secs: 0, since: now };
        }
        let request_secs = if self.request.is_some() { self.requested.secs(now) } else { 0 };
        RingClock { age_secs: self.activation.secs(now), request_secs }
    }
}

/// One step of the key life, to be proposed as the command of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingStep {
    /// Draw a master and hand out the next epoch.
    DrawNext,
    /// Make the next epoch current: all are ready for it.
    Activate(Epoch),
    /// The same without those that are not ready: the deadline has passed.
    ActivateLate(Epoch),
    /// Erase the previous epoch.
    Retire(Epoch),
}

/// What to propose now, at most two steps. Read the clock again before the next plan.
pub fn plan(state: &State, clock: RingClock) -> Vec<RingStep> {
    let mut steps = Vec::new();
    match state.ring.phase(EpochPhase::Next) {
        None => steps.push(RingStep::DrawNext),
        Some(next) => {
            if let Some(step) = activation(state, next, clock) {
                return vec![step];
            }
        }
    }
    if let Some(previous) = state.ring.phase(EpochPhase::Previous).filter(|_| retires(state, clock)) {
        steps.push(RingStep::Retire(previous.epoch));
    }
    steps
}

fn activation(state: &State, next: &EpochState, clock: RingClock) -> Option<RingStep> {
    let interval = u64::from(state.cluster.spec.key_rotation_secs);
    let by_age = clock.age_secs >= interval;
    let age_deadline = clock.age_secs >= interval.saturating_add(u64::from(DEADLINE_SECS));
    let (due, late) = match state.ring.request {
        None => (by_age, age_deadline),
        Some(request) => {
            let passed = clock.request_secs >= u64::from(request.deadline_secs);
            // A removal has just replaced the next epoch: what was due before gives it no less time.
            (true, passed || (age_deadline && request.deadline_secs == DEADLINE_SECS))
        }
    };
    let ready = not_ready(state, next).is_empty();
    let step = if ready { RingStep::Activate(next.epoch) } else { RingStep::ActivateLate(next.epoch) };
    (due && (late || ready)).then_some(step)
}

/// The participants that are not ready for the next epoch.
pub(super) fn not_ready(state: &State, next: &EpochState) -> Vec<NodeId> {
    waits_for(state, next, &next.ready)
}

fn retires(state: &State, clock: RingClock) -> bool {
    let Some(current) = state.ring.phase(EpochPhase::Current) else { return false };
    let kept = clock.age_secs >= u64::from(state.ring.keep_previous_secs);
    kept && waits_for(state, current, &current.sending).is_empty()
}

/// The participants of an epoch, still admitted, that have not done what the nodes in `have` did.
fn waits_for(state: &State, epoch: &EpochState, have: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let missing = |id: &&NodeId| state.nodes.contains_key(id) && !have.contains(id);
    epoch.participants.iter().filter(missing).copied().collect()
}

/// The nodes that would lose packets if the epochs moved on now, since they may still send with the previous one:
/// the participants of the current epoch, and while there is a previous one every node with a session.
pub(super) fn not_sending(state: &State) -> Vec<NodeId> {
    let Some(current) = state.ring.phase(EpochPhase::Current) else { return Vec::new() };
    let mut late: BTreeSet<NodeId> = waits_for(state, current, &current.sending).into_iter().collect();
    if state.ring.phase(EpochPhase::Previous).is_some() {
        let live = state.nodes.values().filter(|node| node.state == NodeState::Ready).map(|node| node.id);
        late.extend(live.filter(|id| !current.sending.contains(id)));
    }
    late.into_iter().collect()
}

/// The nodes that a rotation waits for, and what each has not done yet.
pub fn late(state: &State) -> Vec<(NodeId, String)> {
    let mut late = Vec::new();
    if let Some(current) = state.ring.phase(EpochPhase::Current) {
        let text = format!("does not send with epoch {} yet", current.epoch);
        late.extend(not_sending(state).into_iter().map(|id| (id, text.clone())));
    }
    if let Some(next) = state.ring.phase(EpochPhase::Next) {
        let text = format!("is not ready for epoch {} yet", next.epoch);
        late.extend(not_ready(state, next).into_iter().map(|id| (id, text.clone())));
    }
    late
}

/// What `swarm keys` shows. No key bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLife {
    /// Seconds between two rotations.
    pub interval_secs: u32,
    /// The age of the last activation, retirement or removal.
    pub generation: Generation,
    /// A rotation wished before its time.
    pub request: Option<RotationRequest>,
    /// Oldest first.
    pub epochs: Vec<EpochLife>,
    /// The nodes waited for, and what each has not done yet.
    pub late: Vec<(NodeId, String)>,
}

/// One epoch in [`KeyLife`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochLife {
    /// Its number.
    pub epoch: Epoch,
    /// Its phase.
    pub phase: EpochPhase,
    /// Seconds since it was handed out.
    pub age_secs: u64,
    /// Seconds since it became current, if it did.
    pub active_secs: Option<u64>,
    /// The nodes that count for it.
    pub participants: Vec<NodeId>,
    /// Those of them that are ready for it.
    pub ready: Vec<NodeId>,
    /// The nodes that send with it.
    pub sending: Vec<NodeId>,
}

/// The key life at `now`, for people.
pub fn key_life(state: &State, now: UnixTime) -> KeyLife {
    let age = |at: UnixTime| now.0.saturating_sub(at.0);
    let list = |nodes: &BTreeSet<NodeId>| nodes.iter().copied().collect();
    let life = |epoch: &EpochState| EpochLife {
        epoch: epoch.epoch,
        phase: epoch.phase,
        age_secs: age(epoch.handed_out_at),
        active_secs: epoch.activated_at.map(age),
        participants: list(&epoch.participants),
        ready: list(&epoch.ready),
        sending: list(&epoch.sending),
    };
    KeyLife {
        interval_secs: state.cluster.spec.key_rotation_secs,
        generation: state.ring.generation,
        request: state.ring.request,
        epochs: state.ring.epochs.iter().map(life).collect(),
        late: late(state),
    }
}
