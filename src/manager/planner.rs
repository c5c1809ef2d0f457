//! Of the leader: proposes what time and the state ask for: nodes that fell silent, placements, the steps of the key life.

use super::actor::{Leadership, Published};
use super::handle::Inner;
use super::news::{self, Seen};
use super::{random, wall_clock};
use crate::cluster::ring::{self, RingStep};
use crate::cluster::{Command, State, schedule};
use crate::types::{Key32, TaskId, Time};
use smol::future::FutureExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time between two looks when nothing happens.
const TICK: Duration = Duration::from_secs(1);
/// Time between two looks when much happens: changes in between are seen together.
const GAP: Duration = Duration::from_millis(20);

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
                let mut commands = liveness(&inner, state, lead.since);
                commands.extend(schedule::plan(state, wall_clock(), &mut || TaskId::from_random(random())));
                commands.extend(state.root_rotation_is_through(wall_clock()).then_some(Command::FinishRootRotation));
                let steps = ring::plan(state, lead.clock.read(state, now()));
                commands.extend(steps.into_iter().map(key_command));
                commands
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

fn key_command(step: RingStep) -> Command {
    match step {
        RingStep::DrawNext => Command::DrawNext { master: Key32::new(random()) },
        RingStep::Activate(epoch) => Command::Activate { epoch },
        RingStep::Retire(epoch) => Command::Retire { epoch },
    }
}

/// Nobody is silent before the lead began.
fn liveness(inner: &Inner, state: &State, lead_since: Instant) -> Vec<Command> {
    let now = Instant::now();
    news::liveness(state, |node| {
        let heard = inner.sessions.heard(node);
        let last = heard.last.unwrap_or(lead_since).max(lead_since);
        Seen {
            open: heard.open,
            silent: now.saturating_duration_since(last) > news::patience(state, heard.last.is_some()),
        }
    })
}
