//! The bitmap against the obvious model: the set of all numbers received.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Default)]
struct Model {
    seen: BTreeSet<u64>,
    closed_through: u64,
}

impl Model {
    fn highest(&self) -> u64 {
        self.seen.last().copied().unwrap_or(0)
    }

    fn check(&self, sequence: u64) -> Result<(), EspDrop> {
        if sequence != 0 && u128::from(sequence) + u128::from(REPLAY_WINDOW_PACKETS) <= u128::from(self.highest()) {
            Err(EspDrop::TooOld)
        } else if sequence <= self.closed_through || self.seen.contains(&sequence) {
            Err(EspDrop::Replayed)
        } else {
            Ok(())
        }
    }
}

/// Checks a number against both, and receives it in both if it is fresh and its packet verifies.
fn step(window: &mut ReplayWindow, model: &mut Model, sequence: u64, verifies: bool) {
    let fresh = window.check(sequence);
    assert_eq!(fresh.as_ref().map(|_| ()).map_err(|&reason| reason), model.check(sequence), "sequence {sequence}");
    if let Ok(fresh) = fresh
        && verifies
    {
        assert_eq!(fresh.sequence(), sequence);
        assert_eq!(window.mark(fresh), sequence > model.highest());
        model.seen.insert(sequence);
    }
    assert_eq!(window.highest(), model.highest());
}

#[derive(Debug, Clone)]
enum Move {
    Forward(u64),
    Back(u64),
    To(u64),
    ClosePast,
}

fn moves() -> impl Strategy<Value = Move> {
    let window = REPLAY_WINDOW_PACKETS;
    prop_oneof![
        8 => (0u64..5).prop_map(Move::Forward),
        4 => (0u64..200).prop_map(Move::Forward),
        2 => (window - 70..window + 200).prop_map(Move::Forward),
        1 => (0u64..1 << 34).prop_map(Move::Forward),
        8 => (0u64..200).prop_map(Move::Back),
        4 => (0..window + 200).prop_map(Move::Back),
        2 => (window - 3..window + 3).prop_map(Move::Back),
        1 => any::<u64>().prop_map(Move::To),
        1 => prop_oneof![Just(0), Just(1), Just(u64::from(u32::MAX)), Just(1 << 32), Just(u64::MAX)].prop_map(Move::To),
        1 => Just(Move::ClosePast),
    ]
}

proptest! {
    #[test]
    fn the_window_is_the_model(moves in proptest::collection::vec((moves(), any::<bool>()), 1..400), start in 0u64..1 << 41) {
        let (mut window, mut model) = (ReplayWindow::default(), Model::default());
        step(&mut window, &mut model, start, true);
        for (what, verifies) in moves {
            let highest = model.highest();
            let sequence = match what {
                Move::Forward(by) => highest.saturating_add(by),
                Move::Back(by) => highest.saturating_sub(by),
                Move::To(sequence) => sequence,
                Move::ClosePast => {
                    window.close_past();
                    model.closed_through = highest;
                    highest
                }
            };
            step(&mut window, &mut model, sequence, verifies);
        }
    }
}

#[test]
fn every_number_is_accepted_once_in_any_order_within_the_window() {
    let mut window = ReplayWindow::default();
    let span = REPLAY_WINDOW_PACKETS;
    for sequence in (1..=span).rev() {
        let fresh = window.check(sequence).unwrap_or_else(|reason| panic!("{sequence}: {reason:?}"));
        window.mark(fresh);
    }
    for sequence in 1..=span {
        assert_eq!(window.check(sequence).err(), Some(EspDrop::Replayed));
    }
    window.mark(window.check(span + 1).unwrap());
    assert_eq!(window.check(1).err(), Some(EspDrop::TooOld));
    assert_eq!(window.check(2).err(), Some(EspDrop::Replayed));
}

#[test]
fn a_number_that_did_not_verify_leaves_no_trace() {
    let mut window = ReplayWindow::default();
    window.mark(window.check(5).unwrap());
    assert!(window.check(u64::MAX).is_ok());
    assert_eq!(window.highest(), 5);
    assert!(window.check(4).is_ok());
}

/// RFC 4303, appendix A2.2, as it stands there.
fn extend_by_the_rfc(highest: u64, low: u32) -> Option<u64> {
    const WINDOW: u32 = REPLAY_WINDOW_PACKETS as u32;
    let (high, top) = ((highest >> 32) as u32, highest as u32);
    let bottom = top.wrapping_sub(WINDOW - 1);
    let high = match (top >= WINDOW - 1, low >= bottom) {
        (true, true) | (false, false) => high,
        (true, false) => high.checked_add(1)?,
        (false, true) => high.checked_sub(1)?,
    };
    Some(u64::from(high) << 32 | u64::from(low))
}

#[test]
fn extended_numbers_are_concluded_as_the_rfc_says() {
    let near =
        [0u32, 1, 4095, 8190, 8191, 8192, 8193, 1 << 31, u32::MAX - 8192, u32::MAX - 8191, u32::MAX - 1, u32::MAX];
    for high in [0u64, 1, 7, u64::from(u32::MAX)] {
        for (top, low) in near.iter().flat_map(|&top| near.map(|low| (top, low))) {
            let highest = high << 32 | u64::from(top);
            let window = ReplayWindow { highest, ..ReplayWindow::default() };
            assert_eq!(window.extend(low).ok(), extend_by_the_rfc(highest, low), "{highest:#x} {low:#x}");
        }
    }
}
