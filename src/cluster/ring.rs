//! Which commands the key life asks for.

use super::{RotationRequest, State};
use crate::types::{Epoch, EpochPhase, Generation, NodeId, Time, UnixTime};
use serde::{Deserialize, Serialize};

/// A leader's clock of the key life. Make one when this manager becomes leader (or starts), read it before each
/// [`plan`]. It goes by the log's age of the activation at that moment, then by the leader's monotonic clock only.
#[derive(Debug, Clone)]
pub struct Clock {}

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
        let _ = (state, now, wall);
        Clock {}
    }

    /// The clock at `now`.
    pub fn read(&mut self, state: &State, now: Time) -> RingClock {
        let _ = (state, now);
        RingClock { age_secs: 0, request_secs: 0 }
    }
}

/// One step of the key life, to be proposed as the command of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingStep {
    /// Draw a master and hand out the next epoch.
    DrawNext,
    /// Make the next epoch current.
    Activate(Epoch),
    /// Erase the previous epoch.
    Retire(Epoch),
}

/// What to propose now.
pub fn plan(state: &State, clock: RingClock) -> Vec<RingStep> {
    let _ = (state, clock);
    Vec::new()
}

/// The nodes that a rotation waits for, and what each has not done yet.
pub fn late(state: &State) -> Vec<(NodeId, String)> {
    let _ = state;
    Vec::new()
}

/// What `swarm keys` shows. No key bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyLife {
    /// Seconds between two rotations.
    pub interval_secs: u32,
    /// The age of the last activation or removal.
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

/// The key life at `now`.
pub fn key_life(state: &State, now: UnixTime) -> KeyLife {
    let _ = now;
    KeyLife {
        interval_secs: state.cluster.spec.key_rotation_secs,
        generation: state.ring.generation,
        request: state.ring.request,
        epochs: Vec::new(),
        late: late(state),
    }
}
