use super::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// As the agent has it.
const FLOOR: u16 = 576;

fn peer() -> NodeId {
    NodeId::from_random([7; 17])
}

fn bounds(ceiling_bytes: u16) -> Bounds {
    Bounds { floor_bytes: FLOOR, ceiling_bytes }
}

/// A way that carries so much and loses some datagrams; answers take a while.
struct Way {
    carries: u16,
    loss: f64,
    round_trip: Duration,
    rng: StdRng,
    flying: Vec<(Time, u16)>,
    probes: usize,
}

impl Way {
    fn new(carries: u16) -> Way {
        let rng = StdRng::seed_from_u64(u64::from(carries));
        Way { carries, loss: 0.0, round_trip: Duration::from_millis(20), rng, flying: Vec::new(), probes: 0 }
    }

    /// Lets the time pass until `end`; what was told last, and when.
    fn run(&mut self, machine: &mut PathMtus, mut now: Time, end: Time) -> Option<(u16, Time)> {
        let mut told = None;
        loop {
            while let Some(event) = machine.poll_event() {
                match event {
                    PathEvent::Probe { inner_bytes, .. } => {
                        self.probes += 1;
                        if inner_bytes <= self.carries && !self.rng.random_bool(self.loss) {
                            self.flying.push((now + self.round_trip, inner_bytes));
                        }
                    }
                    PathEvent::Carries { inner_bytes, .. } => told = Some((inner_bytes, now)),
                }
            }
            let answer = self.flying.iter().copied().enumerate().min_by_key(|(_, (at, _))| *at);
            let wake = machine.poll_timeout();
            let next = answer.map(|(_, (at, _))| at).into_iter().chain(wake).min().filter(|at| *at <= end);
            let Some(next) = next else { return told };
            now = now.max(next);
            match answer {
                Some((index, (at, length))) if at <= now => {
                    self.flying.swap_remove(index);
                    machine.handle_answer(peer(), length, now);
                }
                _ => machine.handle_timeout(now),
            }
        }
    }
}

fn secs(secs: u64) -> Time {
    Time(secs * 1_000_000)
}

#[test]
fn a_way_that_carries_all_is_known_after_one_round_trip() {
    let (mut machine, mut way) = (PathMtus::default(), Way::new(1438));
    machine.add(peer(), bounds(1438), secs(0));
    let (length, at) = way.run(&mut machine, secs(0), secs(100)).unwrap();
    assert_eq!((length, at), (1438, secs(0) + way.round_trip));
    assert_eq!(way.probes, 2, "and is left alone from then on");
    assert_eq!(machine.poll_timeout(), None);
}

#[test]
fn every_length_is_found_within_64_octets_in_5_s() {
    for (ceiling, step) in [(1438, 1), (8938, 61)] {
        for carries in (FLOOR..=ceiling).step_by(step) {
            let (mut machine, mut way) = (PathMtus::default(), Way::new(carries));
            way.round_trip = Duration::from_millis(150);
            machine.add(peer(), bounds(ceiling), secs(0));
            let (length, at) = way.run(&mut machine, secs(0), secs(10)).unwrap();
            assert!(length <= carries && carries - length <= PRECISION_BYTES, "{carries}: {length}");
            assert!(at < secs(5), "{carries}: after {at:?}");
        }
    }
}

#[test]
fn loss_costs_precision_at_most_and_never_tells_too_much() {
    let mut exact = 0;
    for seed in 0..200 {
        let (mut machine, mut way) = (PathMtus::default(), Way::new(4000));
        (way.loss, way.rng) = (0.1, StdRng::seed_from_u64(seed));
        machine.add(peer(), bounds(8938), secs(0));
        let (length, _) = way.run(&mut machine, secs(0), secs(20)).unwrap();
        assert!(length <= 4000);
        exact += usize::from(4000 - length <= 64);
    }
    assert!(exact >= 190, "{exact} of 200");
}

#[test]
fn a_way_that_shrinks_while_it_is_used_is_found_in_5_s_and_grows_back() {
    for carries in [FLOOR, 1000, 1300, 1338, 1437] {
        let (mut machine, mut way) = (PathMtus::default(), Way::new(1438));
        machine.add(peer(), bounds(1438), secs(0));
        way.run(&mut machine, secs(0), secs(10));
        way.carries = carries;
        let mut told = None;
        for tenth in 0..50 {
            let now = secs(10) + Duration::from_millis(100 * tenth);
            machine.handle_used(peer(), now);
            told = way.run(&mut machine, now, now + Duration::from_millis(100)).or(told);
        }
        let (length, _) = told.unwrap();
        assert!(length <= carries && carries - length <= PRECISION_BYTES, "{carries}: {length}");
        let probes = way.probes;
        // It may come closer, no more.
        assert!(way.run(&mut machine, secs(15), secs(60)).is_none_or(|(length, _)| length <= carries));
        assert!(way.probes < probes + 300, "{} probes", way.probes - probes);
        assert_eq!(machine.poll_timeout(), None, "an idle way is left alone");
        way.carries = 1438;
        machine.handle_used(peer(), secs(60));
        let (length, at) = way.run(&mut machine, secs(60), secs(70)).unwrap();
        assert!(length == 1438 && at < secs(61), "{carries}: {length} at {at:?}");
    }
}

#[test]
fn a_silent_peer_says_nothing_of_lengths() {
    let (mut machine, mut way) = (PathMtus::default(), Way::new(1438));
    machine.add(peer(), bounds(1438), secs(0));
    way.run(&mut machine, secs(0), secs(1));
    way.carries = 0;
    for second in 1..30 {
        machine.handle_used(peer(), secs(second));
        assert_eq!(way.run(&mut machine, secs(second), secs(second + 1)), None);
    }
    assert_eq!(machine.known(peer()), Some(1438));
    let (mut machine, mut way) = (PathMtus::default(), Way::new(0));
    machine.add(peer(), bounds(1438), secs(0));
    assert_eq!(way.run(&mut machine, secs(0), secs(10)), None);
    way.carries = 1400;
    let (length, _) = way.run(&mut machine, secs(10), secs(30)).unwrap();
    assert!((1384..=1400).contains(&length), "{length}");
}

#[test]
fn another_ceiling_is_searched_and_answers_that_nobody_asked_for_are_nothing() {
    let (mut machine, mut way) = (PathMtus::default(), Way::new(8938));
    machine.add(peer(), bounds(1438), secs(0));
    machine.handle_answer(peer(), 9000, secs(0));
    assert_eq!(machine.known(peer()), None);
    way.run(&mut machine, secs(0), secs(1));
    machine.set_bounds(|_| Some(bounds(8938)), secs(1));
    assert_eq!(way.run(&mut machine, secs(1), secs(2)).unwrap().0, 8938);
    machine.set_bounds(|_| Some(bounds(1338)), secs(2));
    assert_eq!(way.run(&mut machine, secs(2), secs(3)).unwrap().0, 1338);
    machine.remove(peer());
    machine.handle_used(peer(), secs(4));
    machine.handle_answer(peer(), 1338, secs(4));
    assert_eq!((machine.poll_event(), machine.poll_timeout()), (None, None));
}

#[test]
fn an_interface_that_falls_below_the_floor_takes_the_floor_along() {
    let (mut machine, mut way) = (PathMtus::default(), Way::new(1438));
    machine.add(peer(), bounds(1438), secs(0));
    way.run(&mut machine, secs(0), secs(1));
    way.carries = 500;
    machine.set_bounds(|_| Some(Bounds { floor_bytes: 500, ceiling_bytes: 500 }), secs(1));
    assert_eq!(way.run(&mut machine, secs(1), secs(2)).unwrap().0, 500);
    way.carries = 1438;
    machine.set_bounds(|_| Some(bounds(1438)), secs(2));
    assert_eq!(way.run(&mut machine, secs(2), secs(3)).unwrap().0, 1438);
}

#[test]
fn who_never_answers_is_asked_little() {
    let (mut machine, mut way) = (PathMtus::default(), Way::new(0));
    machine.add(peer(), bounds(8938), secs(0));
    assert_eq!(way.run(&mut machine, secs(0), secs(5)), None);
    assert_eq!(way.probes, 2 * 3, "the shortest and the longest, each three times");
    // Of ever more intervals, the last ones of 40 s.
    assert_eq!(way.run(&mut machine, secs(5), secs(3600)), None);
    assert!((80 * 6..=95 * 6).contains(&way.probes), "{}", way.probes);
    // An answer to something else is a new chance, and so is another address.
    for restarts in [false, true] {
        let (mut machine, mut way) = (PathMtus::default(), Way::new(0));
        machine.add(peer(), bounds(8938), secs(0));
        assert_eq!(way.run(&mut machine, secs(0), secs(100)), None);
        way.carries = 8000;
        if restarts {
            machine.restart(peer(), secs(100))
        } else {
            machine.handle_alive(peer())
        }
        let (length, at) = way.run(&mut machine, secs(100), secs(110)).unwrap();
        assert!((8000 - PRECISION_BYTES..=8000).contains(&length) && at < secs(105), "{length} at {at:?}");
    }
}
