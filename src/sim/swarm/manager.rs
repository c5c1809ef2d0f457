//! The manager: the production's state, plans, records and pushes, on virtual time. What its shell does around them
//! (sessions, the planner's pace, restarts) is done here in few words, with the same intervals.

use crate::cluster::ring::{self, RingStep};
use crate::cluster::{CertificateAuthority, Command, Effect, Entry, Refusal, Reply, State, schedule};
use crate::manager::book::RecordBook;
use crate::manager::news::{self, Seen, Speaker};
use crate::manager::push;
use crate::types::{
    Availability, BootId, ClusterId, ClusterSpec, Fork, Key32, Machine, NodeAddresses, NodeId, Queues, Role, TaskId,
    Time, UnixTime,
};
use crate::wire::control::FromAgent;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;
use zeroize::Zeroizing;

/// The wall clock at the start of a simulation.
const START: u64 = 1_800_000_000;
/// Between two plans when nothing happens, as the planner's.
const TICK: Duration = Duration::from_secs(1);
/// Between two plans and two pushes when much happens, as theirs.
const GAP: Duration = Duration::from_millis(20);

/// A node's session as its manager has it.
struct Session {
    id: u64,
    speaker: Speaker,
    said: Option<[u8; 32]>,
    cursor: u64,
    pushed_at: Option<Time>,
    /// The state has changed since the last push.
    dirty: bool,
    heard: Time,
}

/// Frames for a node's session.
pub(super) struct Frames {
    pub(super) node: NodeId,
    pub(super) session: u64,
    pub(super) frames: Vec<Vec<u8>>,
}

/// One manager.
pub(super) struct Manager {
    pub(super) state: State,
    pub(super) up: bool,
    /// Refusals of what nodes and the planner wanted.
    pub(super) refused: Vec<String>,
    book: RecordBook,
    clock: ring::Clock,
    started: Time,
    sessions: BTreeMap<NodeId, Session>,
    heard: BTreeMap<NodeId, Time>,
    planned_at: Time,
    plan_at: Time,
    removed: Vec<NodeId>,
    rng: StdRng,
}

impl Manager {
    pub(super) fn new(seed: u64, spec: ClusterSpec, now: Time) -> Manager {
        let mut rng = StdRng::seed_from_u64(seed);
        let command = Command::Init {
            cluster: ClusterId::from_random(random(&mut rng)),
            fork: Fork(START),
            spec,
            worker_secret: Zeroizing::new(random(&mut rng)),
            manager_secret: Zeroizing::new(random(&mut rng)),
            authority: CertificateAuthority { certificate: vec![3; 64], key: Zeroizing::new(vec![4; 64]) },
            attestation: Key32::new(random(&mut rng)),
            current: Key32::new(random(&mut rng)),
            next: Key32::new(random(&mut rng)),
        };
        let state = State::init(&Entry { at: wall(now), command }).expect("a first entry");
        let clock = ring::Clock::new(&state, now, wall(now));
        Manager {
            state,
            up: true,
            refused: Vec::new(),
            book: RecordBook::default(),
            clock,
            started: now,
            sessions: BTreeMap::new(),
            heard: BTreeMap::new(),
            planned_at: now,
            plan_at: now,
            removed: Vec::new(),
            rng,
        }
    }

    /// Admits a node.
    pub(super) fn admit(&mut self, id: NodeId, role: Role, number: usize, addresses: NodeAddresses, now: Time) {
        let command = Command::AddNode {
            id,
            role,
            hostname: format!("host{number}"),
            software: "sim".into(),
            addresses,
            availability: Availability::Active,
            certificate_expires: UnixTime(START + 90 * 86_400),
            root: self.state.root_digest(),
        };
        self.propose(command, now).expect("a new node");
    }

    /// Commits a command.
    pub(super) fn propose(&mut self, command: Command, now: Time) -> Result<Reply, Refusal> {
        let (result, effects) = self.state.apply(&Entry { at: wall(now), command });
        for effect in effects {
            match effect {
                Effect::EndSession(node) => self.removed.push(node),
                Effect::Compact => {}
            }
        }
        self.sessions.values_mut().for_each(|session| session.dirty = true);
        self.plan_at = self.plan_at.min(now.max(self.planned_at + GAP));
        result
    }

    /// A random id or key.
    pub(super) fn random<const N: usize>(&mut self) -> [u8; N] {
        random(&mut self.rng)
    }

    /// The process ends; its state is on disk.
    pub(super) fn stop(&mut self) {
        self.up = false;
        self.sessions.clear();
        self.heard.clear();
        self.removed.clear();
    }

    /// It starts again from its disk.
    pub(super) fn start(&mut self, now: Time) {
        self.state = self.state.duplicate().expect("the state can be stored and read");
        self.book = RecordBook::default();
        self.clock = ring::Clock::new(&self.state, now, wall(now));
        (self.up, self.started, self.planned_at, self.plan_at) = (true, now, now, now);
    }

    /// A node opens a session; gives its boot's index or the refusal.
    pub(super) fn open(
        &mut self,
        (node, boot, session): (NodeId, BootId, u64),
        hostname: String,
        (addresses, queues): (NodeAddresses, Queues),
        now: Time,
    ) -> Result<u64, String> {
        // One that is open is the same node's former one, which would not answer a probe: it is replaced.
        let (software, machine) = ("sim".into(), Machine::default());
        let command = Command::OpenSession { node, boot, hostname, software, addresses, machine, queues };
        let index = match self.propose(command, now) {
            Ok(Reply::BootIndex(index)) => index,
            Ok(Reply::Done) => 0,
            Err(refusal) => return Err(refusal.to_string()),
        };
        let open = Session {
            id: session,
            speaker: Speaker::new(node, boot),
            said: None,
            cursor: 0,
            pushed_at: None,
            dirty: true,
            heard: now,
        };
        self.sessions.insert(node, open);
        self.heard.insert(node, now);
        Ok(index)
    }

    /// A message of a session; whether it was a heartbeat, to be answered.
    pub(super) fn hear(&mut self, node: NodeId, session: u64, message: FromAgent, now: Time) -> bool {
        let Some(open) = self.sessions.get_mut(&node).filter(|open| open.id == session) else { return false };
        open.heard = now;
        self.heard.insert(node, now);
        if let FromAgent::Heartbeat = message {
            return true;
        }
        let command = news::command(&self.state, &mut open.speaker, message, wall(now), &mut |drop| {
            panic!("a node's message was turned away: {drop:?}")
        });
        if let Some(Err(refusal)) = command.map(|command| self.propose(command, now)) {
            self.refused.push(refusal.to_string());
        }
        false
    }

    /// The connection of a node's session is gone.
    pub(super) fn close(&mut self, node: NodeId) {
        self.sessions.remove(&node);
    }

    /// Whether a session is open here.
    pub(super) fn has_session(&self, node: NodeId, session: u64) -> bool {
        self.sessions.get(&node).is_some_and(|open| open.id == session)
    }

    /// When [`Manager::turn`] wants to be called.
    pub(super) fn next_time(&self) -> Option<Time> {
        if !self.up {
            return None;
        }
        let dirty = self.sessions.values().filter(|session| session.dirty);
        let pushes = dirty.map(|session| session.pushed_at.map_or(Time(0), |at| at + GAP));
        pushes.chain([self.plan_at]).min()
    }

    /// Plans and pushes what is due; gives what to send, and the removed nodes whose session ends with that word.
    pub(super) fn turn(&mut self, now: Time) -> (Vec<Frames>, Vec<(NodeId, u64)>) {
        if self.plan_at <= now {
            self.plan(now);
        }
        self.end_silent(now);
        let due = |session: &Session| session.dirty && session.pushed_at.is_none_or(|at| at + GAP <= now);
        let due: Vec<NodeId> = self.sessions.iter().filter(|(_, it)| due(it)).map(|(node, _)| *node).collect();
        let frames = due.into_iter().filter_map(|node| self.push(node, now)).collect();
        let removed = std::mem::take(&mut self.removed);
        let removed = removed.into_iter().filter_map(|node| {
            self.heard.remove(&node);
            self.sessions.remove(&node).map(|session| (node, session.id))
        });
        (frames, removed.collect())
    }

    fn plan(&mut self, now: Time) {
        (self.planned_at, self.plan_at) = (now, now + TICK);
        let mut commands = news::liveness(&self.state, |node| {
            let heard = self.heard.get(&node).copied();
            let last = heard.unwrap_or(self.started).max(self.started);
            let patience = news::patience(&self.state, heard.is_some());
            Seen { open: self.sessions.contains_key(&node), silent: now.since(last) > patience }
        });
        let rng = &mut self.rng;
        commands.extend(schedule::plan(&self.state, wall(now), &mut || TaskId::from_random(random(rng))));
        for step in ring::plan(&self.state, self.clock.read(&self.state, now)) {
            commands.push(match step {
                RingStep::DrawNext => Command::DrawNext { master: Key32::new(self.random()) },
                RingStep::Activate(epoch) => Command::Activate { epoch },
                RingStep::Retire(epoch) => Command::Retire { epoch },
            });
        }
        for command in commands {
            if let Err(refusal) = self.propose(command, now) {
                self.refused.push(refusal.to_string());
            }
        }
    }

    /// A session reads nothing for a window: it is over.
    fn end_silent(&mut self, now: Time) {
        let window = news::window(&self.state);
        self.sessions.retain(|_, session| now.since(session.heard) <= window);
    }

    fn push(&mut self, node: NodeId, now: Time) -> Option<Frames> {
        self.book.update(&self.state);
        let session = self.sessions.get_mut(&node)?;
        if !self.state.nodes.contains_key(&node) {
            return None;
        }
        (session.dirty, session.pushed_at) = (false, Some(now));
        let push = push::compose(&self.state, node, &self.book, session.cursor).expect("a push fits the protocol");
        if session.said == Some(push.digest) && !push.records {
            return None;
        }
        (session.said, session.cursor) = (Some(push.digest), push.cursor);
        let frames = push.frames.iter().map(|frame| frame.to_vec()).collect();
        Some(Frames { node, session: session.id, frames })
    }
}

fn wall(now: Time) -> UnixTime {
    UnixTime(START + now.0 / 1_000_000)
}

fn random<const N: usize>(rng: &mut StdRng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}
