//! One search for what the way to a peer carries.

use super::{Bounds, PRECISION_BYTES, ROUND_PROBES};
use crate::types::Time;
use std::time::Duration;

/// When the probes of a round are sent, again where there is no answer yet.
const SENDS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];
/// When a round ends.
const ROUND: Duration = Duration::from_millis(700);
/// Lengths that underlays often have, less what ESP in UDP adds over either family: PPPoE, and networks in networks.
const COMMON: [u16; 6] = [1430, 1410, 1338, 1318, 1218, 1198];

/// What is known so far.
pub(super) struct Search {
    floor: u16,
    ceiling: u16,
    /// The longest that was answered.
    passes: Option<u16>,
    /// The shortest that is taken not to pass.
    fails: u16,
    round: Round,
}

/// Lengths that are asked for at the same time.
struct Round {
    began: Time,
    sent: usize,
    /// Whether it was answered.
    probes: Vec<(u16, bool)>,
    /// Asked for too, if something passes but the others are not all answered by the second time. Before that, nobody may
    /// be there who wants to be asked.
    more: Vec<u16>,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more to hear.
    Waiting,
    /// The way carries this length.
    Found(u16),
    /// Not even the shortest was answered.
    Silent,
}

impl Search {
    /// Of a way of which nothing is known.
    pub(super) fn of(bounds: Bounds, now: Time) -> Search {
        let Bounds { floor_bytes: floor, ceiling_bytes } = bounds;
        let ceiling = ceiling_bytes.max(floor);
        let round = Round::of([floor, ceiling], (floor, ceiling), now);
        Search { floor, ceiling, passes: None, fails: ceiling.saturating_add(1), round }
    }

    /// Whether a way still carries what it did: ends at once if it does, and searches if it does not.
    pub(super) fn confirming(bounds: Bounds, known: u16, now: Time) -> Search {
        Search::of(Bounds { ceiling_bytes: known, ..bounds }, now)
    }

    /// Whether a way carries more by now. What it carried before is asked for too: it may be less by now.
    pub(super) fn raising(bounds: Bounds, known: u16, now: Time) -> Search {
        let Bounds { floor_bytes: floor, ceiling_bytes: ceiling } = bounds;
        Search { round: Round::of([floor, known, ceiling], (known, ceiling), now), ..Search::of(bounds, now) }
    }

    /// Whether it would find a length as long as this.
    pub(super) fn reaches(&self, ceiling: u16) -> bool {
        self.ceiling >= ceiling
    }

    /// A probe of this length was answered.
    pub(super) fn handle_answer(&mut self, length: u16) {
        // What was asked for in an earlier round counts too.
        if (self.floor..=self.ceiling).contains(&length) {
            self.passes = self.passes.max(Some(length));
            self.round
                .probes
                .iter_mut()
                .filter(|(probe, _)| *probe <= length)
                .for_each(|(_, answered)| *answered = true);
        }
    }

    /// When [`Search::step`] wants to be called.
    pub(super) fn wake_at(&self) -> Time {
        self.round.began + SENDS.get(self.round.sent).copied().unwrap_or(ROUND)
    }

    /// Sends what is due and judges what has ended.
    pub(super) fn step(&mut self, now: Time, send: &mut dyn FnMut(u16)) -> Step {
        loop {
            let passes = self.passes.unwrap_or(0);
            if passes >= self.ceiling {
                return Step::Found(self.ceiling);
            }
            // All were answered: there is nothing to wait for.
            let complete = self.round.probes.iter().all(|(_, answered)| *answered);
            if !complete && now.since(self.round.began) < ROUND {
                self.round.send_due(now, self.passes.is_some(), send);
                return Step::Waiting;
            }
            if passes == 0 {
                return Step::Silent;
            }
            let failed = self.round.probes.iter().filter(|(length, answered)| !answered && *length > passes);
            self.fails = failed.map(|(length, _)| *length).min().unwrap_or(self.fails).min(self.fails).max(passes + 1);
            if self.fails - passes <= PRECISION_BYTES {
                return Step::Found(passes);
            }
            self.round = Round::of(between(passes, self.fails), (0, 0), now);
        }
    }
}

impl Round {
    /// Asks for `lengths`, and then for some between the two others.
    fn of(lengths: impl IntoIterator<Item = u16>, (passes, fails): (u16, u16), began: Time) -> Round {
        let mut probes: Vec<(u16, bool)> = lengths.into_iter().map(|length| (length, false)).collect();
        probes.dedup();
        Round { began, sent: 0, probes, more: between(passes, fails) }
    }

    fn send_due(&mut self, now: Time, something_passes: bool, send: &mut dyn FnMut(u16)) {
        let due = SENDS.iter().filter(|after| now.since(self.began) >= **after).count();
        if due <= self.sent {
            return;
        }
        if due > 1 && something_passes {
            self.probes.extend(std::mem::take(&mut self.more).into_iter().map(|length| (length, false)));
        }
        self.sent = due;
        self.probes.iter().filter(|(_, answered)| !answered).for_each(|(length, _)| send(*length));
    }
}

/// Lengths between what passes and what does not, evenly, and the common ones among them.
fn between(passes: u16, fails: u16) -> Vec<u16> {
    let width = fails.saturating_sub(passes);
    let even = (1..=ROUND_PROBES)
        .map(|part| passes + (u32::from(width) * u32::from(part) / u32::from(ROUND_PROBES + 1)) as u16);
    let common = COMMON.into_iter().filter(|length| *length > passes && *length < fails);
    even.filter(|length| *length > passes && *length < fails).chain(common).collect()
}
