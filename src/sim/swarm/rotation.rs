//! What must hold of the key life, by the simulation's own clock: a rotation that is due happens, once, not before its
//! time, and not before those it concerns are ready, or the deadline has passed.

use super::START;
use crate::cluster::{RotationRequest, State};
use crate::types::{BootId, Epoch, EpochPhase, NodeId, Time, UnixTime};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How far a leader's clock may be from ours: its wall clock counts whole seconds, plans are a second apart, and the
/// commit takes a moment.
const SLACK: Duration = Duration::from_secs(3);
/// How long a due rotation may take when nothing stands in its way: a look of the planner, and a commit.
const PROMPT: Duration = Duration::from_secs(6);
/// How long a rotation waits for late ones.
const DEADLINE: Duration = Duration::from_secs(600);

/// The ring before an entry.
pub(super) struct Before {
    current: Option<Epoch>,
    next: Option<Epoch>,
    activated_at: Option<UnixTime>,
    request: Option<RotationRequest>,
    late: Vec<NodeId>,
}

/// See the module.
pub(super) struct Rotations {
    current: Option<Epoch>,
    pub(super) activated_at: Time,
    requested_at: Option<Time>,
    /// Since when all participants of the next epoch are ready.
    ready_since: Option<Time>,
    /// When the newest boot of each node opened its first session.
    boots: BTreeMap<NodeId, (BootId, Time)>,
    /// Clocks jump in this run: a leader's own age of the activation may be anything up to the interval.
    pub(super) lenient: bool,
    /// Activations by timer, and by request.
    pub(super) by_timer: u64,
    pub(super) by_request: u64,
    /// Leaders that began while a rotation was due.
    pub(super) led_amid: u64,
}

fn current(state: &State) -> Option<Epoch> {
    state.ring.phase(EpochPhase::Current).map(|epoch| epoch.epoch)
}

/// The participants of the next epoch that are still admitted and not ready.
fn late(state: &State) -> Vec<NodeId> {
    let next = state.ring.phase(EpochPhase::Next);
    let admitted: BTreeSet<NodeId> = state.nodes.keys().copied().collect();
    let missing = next.into_iter().flat_map(|next| next.participants.difference(&next.ready));
    missing.filter(|node| admitted.contains(node)).copied().collect()
}

impl Rotations {
    pub(super) fn new(state: &State, now: Time) -> Rotations {
        Rotations {
            current: current(state),
            activated_at: now,
            requested_at: None,
            ready_since: None,
            boots: BTreeMap::new(),
            lenient: false,
            by_timer: 0,
            by_request: 0,
            led_amid: 0,
        }
    }

    pub(super) fn before(&self, state: &State) -> Before {
        let next = state.ring.phase(EpochPhase::Next).map(|next| next.epoch);
        let active = state.ring.phase(EpochPhase::Current);
        let (current, activated_at) =
            (active.map(|active| active.epoch), active.and_then(|active| active.activated_at));
        Before { current, next, activated_at, request: state.ring.request, late: late(state) }
    }

    /// After an entry.
    pub(super) fn after(&mut self, before: Before, state: &State, now: Time) -> Result<(), String> {
        for (id, boot) in state.nodes.values().filter_map(|node| Some((node.id, node.boot?))) {
            let known = self.boots.entry(id).or_insert((boot, now));
            if known.0 != boot {
                *known = (boot, now);
            }
        }
        let active = current(state);
        if active != before.current {
            self.check_activation(&before, state, now)?;
            (self.current, self.activated_at) = (active, now);
            let counter = if before.request.is_some() { &mut self.by_request } else { &mut self.by_timer };
            *counter += 1;
        }
        if state.ring.request.is_none() {
            self.requested_at = None;
        } else if state.ring.request != before.request {
            self.requested_at = Some(now);
        }
        let waits = state.ring.phase(EpochPhase::Next).is_none() || !late(state).is_empty();
        self.ready_since = if waits { None } else { self.ready_since.or(Some(now)) };
        Ok(())
    }

    fn check_activation(&self, before: &Before, state: &State, now: Time) -> Result<(), String> {
        let active = current(state);
        if active != before.next {
            return Err(format!("epoch {active:?} is active, which was not next: {:?}", before.next));
        }
        // As the log has it: what is written may be committed by a later leader.
        let written = |at: UnixTime| now.since(Time(at.0.saturating_sub(START) * 1_000_000)) + SLACK;
        let age = before.activated_at.map_or(Duration::ZERO, written);
        let interval = Duration::from_secs(state.cluster.spec.key_rotation_secs.into());
        if before.request.is_none() && age < interval && !self.lenient {
            return Err(format!("epoch {active:?} is active {age:?} after the one before, which is too early"));
        }
        let passed = before
            .request
            .is_some_and(|request| written(request.at) >= Duration::from_secs(request.deadline_secs.into()));
        // A boot that begins while the activation is under way has no epoch yet that it could lose.
        let fresh = |node: &&NodeId| self.boots.get(node).is_some_and(|(_, since)| now.since(*since) < SLACK);
        let late: Vec<&NodeId> = before.late.iter().filter(|node| !fresh(node)).collect();
        if !late.is_empty() && !passed && age < interval + DEADLINE && !self.lenient {
            return Err(format!("epoch {active:?} is active, for which {late:?} were not ready"));
        }
        Ok(())
    }

    /// A manager begins to lead.
    pub(super) fn note_leader(&mut self, state: &State, now: Time) {
        let interval = Duration::from_secs(state.cluster.spec.key_rotation_secs.into());
        let due = self.requested_at.is_some() || now >= self.activated_at + interval;
        self.led_amid += u64::from(due);
    }

    /// Looks whether a rotation is overdue; `steady_since`: since when one leader has led undisturbed.
    pub(super) fn check_due(&self, state: &State, steady_since: Option<Time>, now: Time) -> Result<(), String> {
        let (Some(steady), Some(ready)) = (steady_since, self.ready_since) else { return Ok(()) };
        let interval = Duration::from_secs(state.cluster.spec.key_rotation_secs.into());
        let due = match self.requested_at {
            Some(at) => at,
            None if self.lenient => return Ok(()),
            None => self.activated_at + interval,
        };
        let since = due.max(steady).max(ready);
        if now.since(since) > PROMPT {
            let epoch = self.current;
            return Err(format!("a rotation is due since {:.3} s, and {epoch:?} is still active", due.0 as f64 / 1e6));
        }
        Ok(())
    }
}
