//! What a manager does while it leads: sessions of the nodes, plans, pushes, as the production's session and planner
//! loops do it around the same pure functions.

use super::Planted;
use super::manager::{Manager, Proposer, Said};
use super::trust;
use crate::cluster::{Command, NewRoot, NewTokens, State, ring};
use crate::manager::handle::ManagerError;
use crate::manager::news::{self, Seen, Speaker};
use crate::manager::planner::{self, Draw};
use crate::manager::push;
use crate::manager::replica::Verdict;
use crate::raft::Member;
use crate::types::{BootId, EpochPhase, Key32, Machine, NodeAddresses, NodeId, Queues, TaskId, Time, UnixTime};
use crate::wire::control::FromAgent;
use rand::rngs::StdRng;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Between two pushes of a session, as the production's.
const PUSH_GAP: Duration = Duration::from_millis(20);

/// Frames for a node's session.
pub(super) struct Frames {
    pub(super) node: NodeId,
    pub(super) session: u64,
    pub(super) frames: Vec<Vec<u8>>,
}

/// A node's session as its manager has it.
struct Session {
    id: u64,
    speaker: Speaker,
    /// Its boot is committed.
    open: bool,
    /// What it said last waits for its verdict, and what came since waits behind it.
    waits: bool,
    inbox: VecDeque<FromAgent>,
    said: Option<[u8; 32]>,
    cursor: u64,
    pushed_at: Option<Time>,
    /// The state has changed since the last push.
    dirty: bool,
    heard: Time,
    /// Those that were believed when the node's certificate was looked at.
    roots: Vec<Vec<u8>>,
}

/// One lead.
pub(super) struct Leading {
    pub(super) term: u64,
    since: Time,
    clock: ring::Clock,
    sessions: BTreeMap<NodeId, Session>,
    heard: BTreeMap<NodeId, Time>,
    planned_at: Time,
    plan_at: Time,
    /// Planned commands without a verdict: the next plan waits for them.
    planned: usize,
    planted: Planted,
}

/// Who opens a session.
pub(super) struct Hello {
    pub(super) node: NodeId,
    pub(super) boot: BootId,
    pub(super) session: u64,
    pub(super) hostname: String,
    pub(super) addresses: NodeAddresses,
    pub(super) queues: Queues,
}

impl Leading {
    pub(super) fn new(term: u64, state: &State, (now, wall): (Time, UnixTime), planted: Planted) -> Leading {
        let clock = if planted == Planted::ResetTimerAtElection {
            let mut reset = state.duplicate().expect("a state can be copied");
            let current = reset.ring.epochs.iter_mut().find(|epoch| epoch.phase == EpochPhase::Current);
            current.into_iter().for_each(|current| current.activated_at = Some(wall.max(state.at)));
            ring::Clock::new(&reset, now, wall)
        } else {
            ring::Clock::new(state, now, wall)
        };
        let (sessions, heard) = (BTreeMap::new(), BTreeMap::new());
        Leading { term, since: now, clock, sessions, heard, planned_at: now, plan_at: now, planned: 0, planted }
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.sessions.iter().map(|(node, session)| (*node, session.id))
    }

    /// Whether a session is open here.
    pub(super) fn has_session(&self, node: NodeId, session: u64) -> bool {
        self.sessions.get(&node).is_some_and(|open| open.id == session && open.open)
    }

    /// The connection of a node's session is gone.
    pub(super) fn close(&mut self, node: NodeId, session: u64) {
        self.sessions.retain(|other, open| *other != node || open.id != session);
    }

    pub(super) fn end_removed(&mut self, node: NodeId, said: &mut Said) {
        self.heard.remove(&node);
        said.removed.extend(self.sessions.remove(&node).map(|session| (node, session.id)));
    }

    pub(super) fn planned_one(&mut self) {
        self.planned -= 1;
    }

    pub(super) fn note_change(&mut self, changed: bool, now: Time) {
        if changed {
            self.sessions.values_mut().for_each(|session| session.dirty = true);
            self.plan_at = self.plan_at.min(now.max(self.planned_at + planner::GAP));
        }
    }

    pub(super) fn next_time(&self) -> Time {
        let dirty = self.sessions.values().filter(|session| session.dirty && session.open);
        let pushes = dirty.map(|session| session.pushed_at.map_or(Time(0), |at| at + PUSH_GAP));
        let plan = Some(self.plan_at).filter(|_| self.planned == 0);
        pushes.chain(plan).min().unwrap_or(Time(u64::MAX))
    }

    /// What came of the opening of a session, or of what its node said. Gives the text of a refusal.
    pub(super) fn session_verdict(
        &mut self,
        (node, id): (NodeId, u64),
        verdict: Verdict,
        now: Time,
        said: &mut Said,
    ) -> Option<String> {
        let session = self.sessions.get_mut(&node).filter(|session| session.id == id)?;
        session.waits = false;
        match verdict {
            Ok(_) if session.open => None,
            Ok(_) => {
                (session.open, session.dirty, session.heard) = (true, true, now);
                self.heard.insert(node, now);
                said.opened.push((node, id, true));
                None
            }
            Err(ManagerError::Refused(refusal)) if session.open => Some(refusal.to_string()),
            Err(error) => {
                let open = session.open;
                self.sessions.remove(&node);
                if open {
                    said.closed.push((node, id));
                } else {
                    said.opened.push((node, id, false));
                }
                Some(error.to_string())
            }
        }
    }
}

impl Manager {
    /// A node asks for a session. One that is open is the same node's former one, which would not answer a probe: it is
    /// replaced.
    pub(super) fn open(&mut self, hello: Hello, (now, wall): (Time, UnixTime), said: &mut Said) {
        let Some(leading) = &mut self.leading else { return };
        let Hello { node, boot, session, hostname, addresses, queues } = hello;
        let open = Session {
            id: session,
            speaker: Speaker::new(node, boot),
            open: false,
            waits: true,
            inbox: VecDeque::new(),
            said: None,
            cursor: 0,
            pushed_at: None,
            dirty: false,
            heard: now,
            roots: trust::roots(&self.replica.shell.state),
        };
        said.closed.extend(leading.sessions.insert(node, open).map(|replaced| (node, replaced.id)));
        let (software, machine) = ("sim".into(), Machine::default());
        let command = Command::OpenSession { node, boot, hostname, software, addresses, machine, queues };
        self.replica.propose(command, wall, Proposer::Session(node, session), now);
    }

    /// A message of a session.
    pub(super) fn hear(&mut self, node: NodeId, session: u64, message: FromAgent) {
        let open = self.leading.as_mut().and_then(|leading| leading.sessions.get_mut(&node));
        if let Some(open) = open.filter(|open| open.id == session) {
            open.inbox.push_back(message);
        }
    }

    /// What a leader does by itself; whether it did anything.
    pub(super) fn lead_on(&mut self, (now, wall): (Time, UnixTime), said: &mut Said) -> bool {
        if self.leading.is_none() {
            return false;
        }
        let listened = self.listen((now, wall), said);
        let due = self.leading.as_ref().is_some_and(|leading| leading.planned == 0 && leading.plan_at <= now);
        if due {
            self.plan(now, wall);
        }
        if let Some(leading) = &mut self.leading {
            // A session that reads nothing for a window is over.
            let window = news::window(&self.replica.shell.state);
            leading.sessions.retain(|node, session| {
                let silent = now.since(session.heard) > window;
                said.closed.extend(silent.then_some((*node, session.id)));
                !silent
            });
        }
        listened || due
    }

    /// Takes what nodes have said, of each one thing at a time.
    fn listen(&mut self, (now, wall): (Time, UnixTime), said: &mut Said) -> bool {
        let Some(leading) = &mut self.leading else { return false };
        let mut commands = Vec::new();
        let mut heard_any = false;
        for (node, session) in &mut leading.sessions {
            while !session.waits
                && let Some(message) = session.inbox.pop_front()
            {
                heard_any = true;
                session.heard = now;
                leading.heard.insert(*node, now);
                if let FromAgent::Heartbeat = message {
                    said.alive.push((*node, session.id));
                    continue;
                }
                let state = &self.replica.shell.state;
                let command = news::command(state, &mut session.speaker, message, wall, &mut |drop| {
                    panic!("a node's message was turned away: {drop:?}")
                });
                session.waits = command.is_some();
                commands.extend(command.map(|command| (command, Proposer::Session(*node, session.id))));
            }
        }
        for (command, proposer) in commands {
            self.replica.propose(command, wall, proposer, now);
        }
        heard_any
    }

    fn plan(&mut self, now: Time, wall: UnixTime) {
        let Some(leading) = &mut self.leading else { return };
        (leading.planned_at, leading.plan_at) = (now, now + planner::TICK);
        let (sessions, heard, since) = (&leading.sessions, &leading.heard, leading.since);
        let state = &self.replica.shell.state;
        let seen = |node: NodeId| {
            let open = sessions.get(&node).is_some_and(|session| session.open);
            Seen::new(state, open, heard.get(&node).map(|last| now.since(*last)), now.since(since))
        };
        let silent = &self.replica.shell.silent;
        let looks = (seen, |seat| silent.contains(&Member(seat)));
        let mut commands = planner::plan(state, &mut leading.clock, (now, wall), looks, &mut Drawn(&mut self.rng));
        if leading.planted == Planted::SkipAcknowledgement {
            commands.extend(hasty_activation(state, &mut leading.clock, now));
        }
        leading.planned = commands.len();
        let term = leading.term;
        for command in commands {
            self.replica.propose(command, wall, Proposer::Plan(term), now);
        }
    }

    /// Hands out the desired state where it has changed.
    pub(super) fn push_all(&mut self, now: Time, said: &mut Said) {
        let Some(leading) = &mut self.leading else { return };
        let state = &self.replica.shell.state;
        // One of a root that is not believed any more would still count on its connection.
        leading.sessions.retain(|node, session| {
            let outdated = session.dirty && session.roots.iter().any(|root| !state.roots().contains(&root.as_slice()));
            said.closed.extend(outdated.then_some((*node, session.id)));
            !outdated
        });
        for (node, session) in &mut leading.sessions {
            let due = session.dirty && session.open && session.pushed_at.is_none_or(|at| at + PUSH_GAP <= now);
            if !due || !state.nodes.contains_key(node) {
                session.dirty &= state.nodes.contains_key(node);
                continue;
            }
            self.book.update(state);
            (session.dirty, session.pushed_at) = (false, Some(now));
            let push = push::compose(state, *node, &self.book, session.cursor).expect("a push fits the protocol");
            if session.said == Some(push.digest) && !push.records {
                continue;
            }
            (session.said, session.cursor) = (Some(push.digest), push.cursor);
            let frames = push.frames.iter().map(|frame| frame.to_vec()).collect();
            said.frames.push(Frames { node: *node, session: session.id, frames });
        }
    }
}

/// The planted fault: a due epoch is activated whoever is ready for it.
fn hasty_activation(state: &State, clock: &mut ring::Clock, now: Time) -> Option<Command> {
    let interval = u64::from(state.cluster.spec.key_rotation_secs);
    let due = clock.read(state, now).age_secs >= interval || state.ring.request.is_some();
    let next = state.ring.phase(EpochPhase::Next)?;
    due.then_some(Command::Activate { epoch: next.epoch, late: true })
}

struct Drawn<'a>(&'a mut StdRng);

impl Draw for Drawn<'_> {
    fn task_id(&mut self) -> TaskId {
        TaskId::from_random(super::random(self.0))
    }

    fn master(&mut self) -> Key32 {
        Key32::new(super::random(self.0))
    }

    fn authority(&mut self, _: &State) -> Option<(NewTokens, NewRoot)> {
        Some((NewTokens::default(), trust::new_root(self.0)))
    }
}
