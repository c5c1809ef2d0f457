//! Of the leader: proposes what time and the state ask for: nodes that fell silent, placements, the steps of the key life.

use super::actor::{Leadership, Published};
use super::handle::{self, Inner};
use super::news::{self, Seen};
use super::{random, wall_clock};
use crate::cluster::ring::{self, RingStep};
use crate::cluster::{Command, NewRoot, NewTokens, State, schedule};
use crate::raft::Member;
use crate::types::{Key32, NodeId, TaskId, Time, UnixTime};
use smol::future::FutureExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Time between two looks when nothing happens.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Time between two looks when much happens: changes in between are seen together.
pub(crate) const GAP: Duration = Duration::from_millis(20);

/// This manager's lead: its clock begins anew with each.
struct Lead {
    term: u64,
    since: Instant,
    clock: ring::Clock,
}

/// Plans as long as this manager leads; runs until it is dropped.
pub(super) async fn run(inner: Arc<Inner>) {
    let changed = inner.published.watch();
    let started = Instant::now();
    let now = || Time::default() + started.elapsed();
    let mut lead: Option<Lead> = None;
    loop {
        lead = match inner.published.leadership() {
            Leadership::Here { term, since } => lead.filter(|lead| lead.term == term).or_else(|| {
                let clock = inner.published.with(|state| ring::Clock::new(state, now(), wall_clock()));
                Some(Lead { term, since, clock })
            }),
            Leadership::There(_) | Leadership::Nobody => None,
        };
        if let Some(lead) = &mut lead {
            let commands = inner.published.with(|state| {
                let seen = |node| see(&inner, state, node, lead.since);
                let silent = |seat| inner.published.is_silent(Member(seat));
                plan(state, &mut lead.clock, (now(), wall_clock()), (seen, silent), &mut SystemDraw)
            });
            commit(&inner, commands).await;
        }
        smol::Timer::after(GAP).await;
        let change = async {
            // Closed only when the manager ends, and this future with it.
            let _ = changed.recv().await;
        };
        let tick = async {
            smol::Timer::after(TICK).await;
        };
        change.or(tick).await;
    }
}

async fn commit(inner: &Inner, commands: Vec<Command>) {
    if commands.is_empty() {
        return;
    }
    let published: &Published = &inner.published;
    for verdict in inner.writer.propose(published, commands).await {
        if let Err(refusal) = verdict {
            tracing::debug!(%refusal, "a planned change was refused");
        }
    }
}

/// Ids and keys of what is planned.
pub(crate) trait Draw {
    /// The id of a new task.
    fn task_id(&mut self) -> TaskId;
    /// The master of a new epoch.
    fn master(&mut self) -> Key32;
    /// A root certificate and join tokens to take the place of the state's; none if they could not be made.
    fn authority(&mut self, state: &State) -> Option<(NewTokens, NewRoot)>;
}

pub(super) struct SystemDraw;

impl Draw for SystemDraw {
    fn task_id(&mut self) -> TaskId {
        TaskId::from_random(random())
    }

    fn master(&mut self) -> Key32 {
        Key32::new(random())
    }

    fn authority(&mut self, state: &State) -> Option<(NewTokens, NewRoot)> {
        let root = handle::new_root(state);
        let root =
            root.inspect_err(|error| tracing::error!(%error, "no new root certificate could be made: trying again"));
        let token = || Some(Zeroizing::new(random()));
        Some((NewTokens { worker: token(), manager: token(), ..NewTokens::default() }, root.ok()?))
    }
}

/// What to propose now, in order (pure). `clock` is of this lead, `seen` how nodes look from here, `silent` which
/// seats of managers it has not heard for a while.
pub(crate) fn plan(
    state: &State,
    clock: &mut ring::Clock,
    (now, wall): (Time, UnixTime),
    (seen, silent): (impl Fn(NodeId) -> Seen, impl Fn(u64) -> bool),
    draw: &mut dyn Draw,
) -> Vec<Command> {
    let mut commands = news::liveness(state, seen);
    news::silent_managers(state, &silent, &mut commands);
    commands.extend(schedule::plan(state, wall, &mut || draw.task_id()));
    // A manager that hears nothing may not know of the new root: without the former one nobody would let it in again.
    let listen = !state.managers.values().any(|manager| manager.voter && silent(manager.seat));
    commands.extend((listen && state.root_rotation_is_through(wall)).then_some(Command::FinishRootRotation));
    commands.extend(replacements(state, draw));
    let steps = ring::plan(state, clock.read(state, now));
    commands.extend(steps.into_iter().map(|step| match step {
        RingStep::DrawNext => Command::DrawNext { master: draw.master() },
        RingStep::Activate(epoch) => Command::Activate { epoch, late: false },
        RingStep::ActivateLate(epoch) => Command::Activate { epoch, late: true },
        RingStep::Retire(epoch) => Command::Retire { epoch },
    }));
    commands
}

fn see(inner: &Inner, state: &State, node: NodeId, lead_since: Instant) -> Seen {
    let now = Instant::now();
    let heard = inner.sessions.heard(node);
    let silence = heard.last.map(|last| now.saturating_duration_since(last));
    Seen::new(state, heard.open, silence, now.saturating_duration_since(lead_since))
}

/// What takes the place of what a former manager knows.
fn replacements(state: &State, draw: &mut dyn Draw) -> Vec<Command> {
    let mut commands = Vec::new();
    if state.masters_are_exposed() {
        tracing::info!("a manager is one no more: the keys that it knew are replaced");
        commands.push(Command::ReplaceMasters { master: draw.master() });
    }
    if state.authority_is_exposed()
        && let Some((tokens, root)) = draw.authority(state)
    {
        tracing::info!("a manager is one no more: root certificate and join tokens are replaced");
        commands.push(Command::ReplaceAuthority { tokens, root });
    }
    commands
}
