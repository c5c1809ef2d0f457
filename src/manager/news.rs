//! What the managers make of what nodes say, and of their silence (pure): the commands to propose.

use super::drops::ControlDrop;
use crate::cluster::{Command, NodeState, State};
use crate::types::{BootId, EpochPhase, NodeId, TaskId, TaskStatus, UnixTime};
use crate::wire::control::{FromAgent, PAGE_ENTRIES};
use std::collections::BTreeMap;
use std::time::Duration;

/// Heartbeats that a node may miss.
const MISSED_HEARTBEATS: u32 = 3;
/// Octets of a message or error of a task that are kept.
const MAX_STATUS_BYTES: usize = 1024;
/// Seconds between two early rotations that count (the state has the last word).
const EARLY_ROTATION_SECS: u64 = 600;

/// How long a node may take to come back to a manager that has just started: agents look for it every two seconds, and
/// a busy host needs a while to shake hands.
const RETURN_TIME: Duration = Duration::from_secs(10);

/// Time between two heartbeats.
pub(crate) fn heartbeat(state: &State) -> Duration {
    Duration::from_secs(u64::from(state.cluster.spec.heartbeat_secs.max(1)))
}

/// How long a node may be silent.
pub(crate) fn window(state: &State) -> Duration {
    heartbeat(state) * MISSED_HEARTBEATS
}

/// How long a node may be silent that was or was not heard since the manager started.
fn patience(state: &State, heard: bool) -> Duration {
    if heard { window(state) } else { window(state).max(RETURN_TIME) }
}

/// What the managers say of a node that is ready while the manager on it does not answer the others.
pub const SILENT_MANAGER: &str = "its manager does not answer the others";

/// How a node looks from its manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// It has a session whose boot is committed.
    pub(crate) open: bool,
    /// Nothing was heard of it within the manager's [`patience`].
    pub(crate) silent: bool,
}

impl Seen {
    /// `silence`: since when nothing was heard of it, if anything was in this lead. Nobody is silent before the lead,
    /// which has lasted for `lead`.
    pub(crate) fn new(state: &State, open: bool, silence: Option<Duration>, lead: Duration) -> Seen {
        let silent = silence.unwrap_or(lead).min(lead) > patience(state, silence.is_some());
        Seen { open, silent }
    }
}

/// A silent node is down; one with an open session is ready.
pub(crate) fn liveness(state: &State, seen: impl Fn(NodeId) -> Seen) -> Vec<Command> {
    let mut commands = Vec::new();
    for node in state.nodes.values() {
        let Seen { open, silent } = seen(node.id);
        match node.state {
            NodeState::Ready if silent => {
                tracing::warn!(node = %node.id, hostname = %node.hostname, "node is down: heartbeats missed");
                commands.push(set_state(node.id, NodeState::Down, "heartbeat failure"));
            }
            NodeState::Unknown | NodeState::Down if open && !silent => {
                commands.push(set_state(node.id, NodeState::Ready, ""));
            }
            NodeState::Unknown | NodeState::Ready | NodeState::Down => {}
        }
    }
    commands
}

/// Adds what is to be said of voters that do not answer, and of those that do again; a node that is said to come or go
/// already is left for the next time.
pub(crate) fn silent_managers(state: &State, is_silent: impl Fn(u64) -> bool, commands: &mut Vec<Command>) {
    let mut news = Vec::new();
    for (id, manager) in &state.managers {
        let Some(node) = state.nodes.get(id).filter(|node| node.state == NodeState::Ready) else { continue };
        let told = node.message == SILENT_MANAGER;
        let silent = manager.voter && is_silent(manager.seat);
        let moves = |command: &Command| matches!(command, Command::SetNodeState { node, .. } if node == id);
        if silent != told && !commands.iter().any(moves) {
            if silent {
                tracing::warn!(node = %id, hostname = %node.hostname, "the manager on this node does not answer");
            }
            news.push(set_state(*id, NodeState::Ready, if silent { SILENT_MANAGER } else { "" }));
        }
    }
    commands.extend(news);
}

/// The command that sets how a node is seen.
pub(crate) fn set_state(node: NodeId, state: NodeState, message: &str) -> Command {
    Command::SetNodeState { node, state, message: message.to_owned() }
}

/// The node at the other end of a session.
pub(crate) struct Speaker {
    node: NodeId,
    boot: BootId,
    /// What it said last in this session of each of its tasks that the state still has.
    told: BTreeMap<TaskId, TaskStatus>,
}

impl Speaker {
    /// At the beginning of a session.
    pub(crate) fn new(node: NodeId, boot: BootId) -> Speaker {
        Speaker { node, boot, told: BTreeMap::new() }
    }
}

/// The command a message asks for; `None` when it changes nothing, so that repetition does not write the log. What
/// is turned away is told to `dropped`.
pub(crate) fn command(
    state: &State,
    speaker: &mut Speaker,
    message: FromAgent,
    now: UnixTime,
    dropped: &mut dyn FnMut(ControlDrop),
) -> Option<Command> {
    let Speaker { node, boot, .. } = *speaker;
    let held = |epoch| state.ring.epochs.iter().find(|held| held.epoch == epoch);
    match message {
        FromAgent::Heartbeat => None,
        FromAgent::Public { epoch, public } => {
            held(epoch)?;
            let known = state.nodes.get(&node).and_then(|known| known.publics.get(&epoch));
            (known != Some(&public)).then_some(Command::SetPublic { node, boot, epoch, public })
        }
        FromAgent::Ready { epoch } => {
            let held = held(epoch)?;
            let news = held.participants.contains(&node) && !held.ready.contains(&node);
            news.then_some(Command::SetReady { node, boot, epoch })
        }
        FromAgent::Sending { epoch } => {
            let held = held(epoch)?;
            let news = held.phase == EpochPhase::Current && !held.sending.contains(&node);
            news.then_some(Command::SetSending { node, boot, epoch })
        }
        FromAgent::RotateEarly => {
            let last = state.ring.last_early_rotation;
            let due = last.is_none_or(|at| now.0.saturating_sub(at.0) >= EARLY_ROTATION_SECS);
            due.then_some(Command::RequestEarlyRotation { node })
        }
        FromAgent::Tasks { statuses } => report(state, speaker, statuses, dropped),
        FromAgent::Attach { id, request } => {
            let known = state.tasks.get(&id).is_some_and(|task| task.node == Some(node));
            (!known).then_some(Command::Attach { node, boot, id, request })
        }
        FromAgent::TaskGone { id } => match state.tasks.get(&id) {
            Some(task) if task.node == Some(node) => {
                (!task.gone).then_some(Command::ConfirmTaskGone { node, boot, id })
            }
            // Forgotten already: the agent repeats itself until it hears so.
            None => None,
            Some(_) => {
                dropped(ControlDrop::ForeignTask);
                None
            }
        },
    }
}

/// News of the node's own tasks.
fn report(
    state: &State,
    speaker: &mut Speaker,
    statuses: Vec<(TaskId, TaskStatus)>,
    dropped: &mut dyn FnMut(ControlDrop),
) -> Option<Command> {
    if statuses.len() > PAGE_ENTRIES {
        dropped(ControlDrop::PageTooLong);
        return None;
    }
    let mut news = Vec::new();
    for (id, mut status) in statuses {
        let Some(task) = state.tasks.get(&id) else { continue };
        if task.node != Some(speaker.node) {
            dropped(ControlDrop::ForeignTask);
            continue;
        }
        shorten(&mut status.message);
        shorten(&mut status.error);
        let repeated = speaker.told.get(&id).is_some_and(|told| says_the_same(told, &status));
        if !repeated && !task.gone && !says_the_same(&task.status, &status) {
            speaker.told.retain(|id, _| state.tasks.contains_key(id));
            speaker.told.insert(id, status.clone());
            news.push((id, status));
        }
    }
    (!news.is_empty()).then_some(Command::ReportTasks { node: speaker.node, boot: speaker.boot, statuses: news })
}

fn shorten(text: &mut String) {
    let end = (0..=MAX_STATUS_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
}

/// The time alone is no news.
fn says_the_same(known: &TaskStatus, told: &TaskStatus) -> bool {
    let what = |status: &TaskStatus| {
        (status.state, status.message.clone(), status.error.clone(), status.exit_code, status.pid)
    };
    what(known) == what(told)
}
