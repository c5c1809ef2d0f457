use super::*;
use crate::cluster::ring::{self, Clock, KeyLife, RingClock, RingStep};
use std::time::Duration;

const INTERVAL: u64 = 12 * 3600;

fn at(age_secs: u64, request_secs: u64) -> RingClock {
    RingClock { age_secs, request_secs }
}

/// Applies a step as the leader would.
pub(super) fn apply(swarm: &mut Swarm, step: RingStep) {
    swarm.ok(match step {
        RingStep::DrawNext => Command::DrawNext { master: key(77) },
        RingStep::Activate(epoch) | RingStep::ActivateLate(epoch) => Command::Activate { epoch, late: true },
        RingStep::Retire(epoch) => Command::Retire { epoch },
    });
}

fn epochs(swarm: &Swarm) -> Vec<(u32, EpochPhase)> {
    swarm.state.ring.epochs.iter().map(|epoch| (epoch.epoch.0, epoch.phase)).collect()
}

fn ready(number: u64, epoch: u32) -> Command {
    Command::SetReady { node: node(number), boot: boot(number), epoch: Epoch(epoch) }
}

fn sending(number: u64, epoch: u32) -> Command {
    Command::SetSending { node: node(number), boot: boot(number), epoch: Epoch(epoch) }
}

/// Two workers; epoch 2 is current and epoch 3 handed out to both.
fn rotated() -> Swarm {
    let mut swarm = Swarm::with_workers(2);
    apply(&mut swarm, RingStep::Activate(Epoch(2)));
    apply(&mut swarm, RingStep::DrawNext);
    apply(&mut swarm, RingStep::Retire(Epoch(1)));
    swarm
}

#[test]
fn a_swarm_without_participants_rotates() {
    let mut swarm = Swarm::new();
    assert_eq!(epochs(&swarm), [(1, EpochPhase::Current), (2, EpochPhase::Next)]);
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL - 1, 0)), []);
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL, 0)), [RingStep::Activate(Epoch(2))]);
    apply(&mut swarm, RingStep::Activate(Epoch(2)));
    assert_eq!(ring::plan(&swarm.state, at(0, 0)), [RingStep::DrawNext]);
    apply(&mut swarm, RingStep::DrawNext);
    assert_eq!(ring::plan(&swarm.state, at(599, 0)), []);
    assert_eq!(ring::plan(&swarm.state, at(600, 0)), [RingStep::Retire(Epoch(1))]);
    apply(&mut swarm, RingStep::Retire(Epoch(1)));
    assert_eq!(epochs(&swarm), [(2, EpochPhase::Current), (3, EpochPhase::Next)]);
    assert_eq!(ring::plan(&swarm.state, at(600, 0)), []);
}

#[test]
fn activation_waits_for_participants_until_the_deadline() {
    let mut swarm = rotated();
    swarm.ok(add_node(3, Role::Worker));
    swarm.ok(open_session(3, 3));
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL + 599, 0)), []);
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL + 600, 0)), [RingStep::ActivateLate(Epoch(3))]);
    swarm.ok(ready(1, 3));
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL, 0)), []);
    assert!(ring::late(&swarm.state).contains(&(node(2), "is not ready for epoch 3 yet".into())));
    swarm.ok(ready(2, 3));
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL, 0)), [RingStep::Activate(Epoch(3))], "node 3 joined later");
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL - 1, 0)), []);
}

#[test]
fn a_removed_participant_does_not_hold_up_and_a_restarted_one_is_waited_for_again() {
    let mut swarm = rotated();
    swarm.ok(ready(1, 3));
    swarm.ok(ready(2, 3));
    let planned = ring::plan(&swarm.state, at(INTERVAL, 0));
    assert_eq!(planned, [RingStep::Activate(Epoch(3))]);
    swarm.ok(open_session(2, 20));
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL, 0)), []);
    // What was planned before may be committed after.
    let refused = swarm.refused(Command::Activate { epoch: Epoch(3), late: false });
    assert_eq!(refused, "not all nodes are ready for epoch 3");
    swarm.ok(Command::RemoveNode { node: node(2), force: true, master: key(60) });
    swarm.ok(ready(1, 4));
    assert_eq!(ring::plan(&swarm.state, at(0, 0)), [RingStep::Activate(Epoch(4))]);
}

#[test]
fn previous_is_kept_until_all_participants_send_and_goes_with_the_next_activation() {
    let mut swarm = rotated();
    swarm.ok(ready(1, 3));
    swarm.ok(ready(2, 3));
    assert_eq!(swarm.ok(Command::Activate { epoch: Epoch(3), late: true }), [], "no previous one to erase");
    assert_eq!(epochs(&swarm), [(2, EpochPhase::Previous), (3, EpochPhase::Current)]);
    apply(&mut swarm, RingStep::DrawNext);
    swarm.ok(sending(1, 3));
    swarm.ok(sending(2, 2));
    assert_eq!(ring::plan(&swarm.state, at(5000, 0)), []);
    swarm.ok(sending(2, 3));
    assert_eq!(ring::plan(&swarm.state, at(599, 0)), []);
    assert_eq!(ring::plan(&swarm.state, at(600, 0)), [RingStep::Retire(Epoch(2))]);
    swarm.ok(set_state(2, NodeState::Down));
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL + 600, 0)), [RingStep::ActivateLate(Epoch(4))]);
    assert_eq!(swarm.ok(Command::Activate { epoch: Epoch(4), late: true }), [Effect::Compact], "epoch 2 goes");
    assert_eq!(epochs(&swarm), [(3, EpochPhase::Previous), (4, EpochPhase::Current)]);
}

#[test]
fn an_operators_rotation_waits_for_those_who_might_lose_packets() {
    let mut swarm = Swarm::with_workers(2);
    let request = |force| Command::RequestRotation { force };
    swarm.ok(request(false));
    assert_eq!(ring::plan(&swarm.state, at(3, 0)), [RingStep::Activate(Epoch(2))]);
    apply(&mut swarm, RingStep::Activate(Epoch(2)));
    apply(&mut swarm, RingStep::DrawNext);
    assert_eq!(ring::plan(&swarm.state, at(3, 0)), [], "the request is done");
    let text = swarm.refused(request(false));
    assert!(text.contains(&format!("epoch 2) yet: host1 ({}), host2 ({})", node(1), node(2))), "{text}");
    assert!(text.contains("--force"));
    swarm.ok(sending(1, 2));
    let text = swarm.refused(request(false));
    assert!(text.contains("host2") && !text.contains("host1"), "{text}");
    swarm.ok(sending(2, 2));
    swarm.ok(request(false));
    assert_eq!(ring::plan(&swarm.state, at(3, 599)), [], "not ready yet");
    assert_eq!(ring::plan(&swarm.state, at(3, 600)), [RingStep::ActivateLate(Epoch(3))]);
    swarm.ok(ready(1, 3));
    swarm.ok(ready(2, 3));
    assert_eq!(ring::plan(&swarm.state, at(3, 0)), [RingStep::Activate(Epoch(3))]);
    apply(&mut swarm, RingStep::Activate(Epoch(3)));
    swarm.ok(request(true));
    let standing = swarm.state.ring.request;
    swarm.pass(60);
    swarm.ok(request(true));
    assert_eq!(swarm.state.ring.request, standing, "a second wish does not put the first one off");
}

#[test]
fn many_late_nodes_are_counted() {
    let mut swarm = Swarm::with_workers(13);
    apply(&mut swarm, RingStep::Activate(Epoch(2)));
    let text = swarm.refused(Command::RequestRotation { force: false });
    assert!(text.contains("and 3 more. Try again"), "{text}");
}

#[test]
fn early_rotations_by_volume_are_at_most_one_in_ten_minutes() {
    let mut swarm = Swarm::with_workers(1);
    let early = || Command::RequestEarlyRotation { node: node(1) };
    swarm.ok(early());
    assert!(swarm.state.ring.request.is_some());
    apply(&mut swarm, RingStep::Activate(Epoch(2)));
    apply(&mut swarm, RingStep::DrawNext);
    swarm.pass(599);
    swarm.ok(early());
    assert_eq!(swarm.state.ring.request, None);
    swarm.pass(1);
    swarm.ok(early());
    assert!(swarm.state.ring.request.is_some());
    assert!(swarm.refused(Command::RequestEarlyRotation { node: node(7) }).contains("not found"));
}

#[test]
fn a_removal_rotates_within_30_s_and_erases_the_old_key_30_s_later() {
    let mut swarm = rotated();
    swarm.ok(Command::RemoveNode { node: node(2), force: true, master: key(60) });
    // Also when the ordinary deadline is long past: the fresh masters have to be handed out first.
    assert_eq!(ring::plan(&swarm.state, at(INTERVAL + 9000, 29)), []);
    assert_eq!(ring::plan(&swarm.state, at(10, 30)), [RingStep::ActivateLate(Epoch(4))]);
    apply(&mut swarm, RingStep::Activate(Epoch(4)));
    apply(&mut swarm, RingStep::DrawNext);
    swarm.ok(sending(1, 4));
    assert_eq!(ring::plan(&swarm.state, at(29, 0)), []);
    assert_eq!(ring::plan(&swarm.state, at(30, 0)), [RingStep::Retire(Epoch(2))]);
    assert_eq!(epochs(&swarm).len(), 3);
}

#[test]
fn steps_out_of_order_are_refused() {
    let mut swarm = Swarm::new();
    assert_eq!(swarm.refused(Command::DrawNext { master: key(1) }), "epoch 2 is handed out already");
    assert_eq!(swarm.refused(Command::Activate { epoch: Epoch(1), late: true }), "epoch 1 is not the next one");
    assert_eq!(swarm.refused(Command::Retire { epoch: Epoch(1) }), "epoch 1 is not the previous one");
    apply(&mut swarm, RingStep::Activate(Epoch(2)));
    assert_eq!(swarm.refused(Command::Activate { epoch: Epoch(3), late: true }), "epoch 3 is not the next one");
    assert_eq!(swarm.refused(Command::Retire { epoch: Epoch(2) }), "epoch 2 is not the previous one");
}

#[test]
fn what_people_see_of_the_keys_names_the_late_and_holds_no_key() {
    let mut swarm = Swarm::with_workers(2);
    apply(&mut swarm, RingStep::Activate(Epoch(2)));
    apply(&mut swarm, RingStep::DrawNext);
    swarm.ok(ready(1, 3));
    swarm.ok(sending(1, 2));
    swarm.pass(100);
    let life: KeyLife = ring::key_life(&swarm.state, swarm.now);
    assert_eq!(life.interval_secs, 43_200);
    let shown: Vec<_> = life.epochs.iter().map(|life| (life.epoch.0, life.age_secs, life.active_secs)).collect();
    assert_eq!(shown, [(1, 100, Some(100)), (2, 100, Some(100)), (3, 100, None)]);
    assert_eq!(life.epochs[2].participants, [node(1), node(2)]);
    assert_eq!(life.epochs[2].ready, [node(1)]);
    assert_eq!(
        life.late,
        [(node(2), "does not send with epoch 2 yet".to_owned()), (node(2), "is not ready for epoch 3 yet".to_owned())]
    );
    let text = serde_json::to_string(&life).unwrap();
    for master in &swarm.state.ring.epochs {
        assert!(!text.contains(&serde_json::to_string(master.master.expose()).unwrap()));
    }
}

/// A leader for `secs` of its own monotonic time, looking every `step` seconds.
struct Leader {
    monotonic: Time,
    clock: Clock,
}

impl Leader {
    fn start(swarm: &Swarm, origin: u64) -> Leader {
        let monotonic = Time(origin);
        Leader { monotonic, clock: Clock::new(&swarm.state, monotonic, swarm.now) }
    }

    /// Leads on; returns the epochs activated.
    fn lead(&mut self, swarm: &mut Swarm, secs: u64, step: u64) -> Vec<u32> {
        let mut activated = Vec::new();
        for _ in 0..secs / step {
            self.monotonic = self.monotonic + Duration::from_secs(step);
            swarm.pass(step);
            for step in ring::plan(&swarm.state, self.clock.read(&swarm.state, self.monotonic)) {
                apply(swarm, step);
                if let RingStep::Activate(epoch) | RingStep::ActivateLate(epoch) = step {
                    activated.push(epoch.0);
                }
            }
        }
        activated
    }
}

#[test]
fn twenty_restarts_in_a_day_still_give_the_due_rotations() {
    let mut swarm = Swarm::new();
    let mut activated = Vec::new();
    for restart in 0..20 {
        let stored = swarm.state.to_bytes().unwrap();
        swarm.state = State::from_bytes(&stored).unwrap();
        let mut leader = Leader::start(&swarm, restart * 1_000_003);
        activated.extend(leader.lead(&mut swarm, 24 * 3600 / 20 + 60, 60));
    }
    assert_eq!(activated, [2, 3]);
}

#[test]
fn one_rotation_follows_a_long_silence_and_waits_for_the_late() {
    let mut swarm = rotated();
    swarm.pass(10 * INTERVAL);
    let mut leader = Leader::start(&swarm, 5);
    assert_eq!(leader.lead(&mut swarm, 590, 10), [0u32; 0], "the deadline starts anew");
    assert_eq!(leader.lead(&mut swarm, 3600, 10), [3]);
}

#[test]
fn a_jumping_wall_clock_starts_no_storm_and_stops_no_rotation() {
    let mut swarm = Swarm::new();
    let mut leader = Leader::start(&swarm, 0);
    let mut activated = Vec::new();
    for round in 0..25 {
        swarm.now = UnixTime(if round % 2 == 0 { START + 400 * 86_400 } else { START - 400 * 86_400 });
        activated.extend(leader.lead(&mut swarm, 3600, 60));
    }
    assert_eq!(activated, [2, 3]);
}

#[test]
fn a_leader_with_a_clock_far_off_waits_one_interval_or_rotates_once() {
    let mut swarm = Swarm::new();
    swarm.now = UnixTime(1);
    let mut leader = Leader::start(&swarm, 0);
    assert_eq!(leader.lead(&mut swarm, INTERVAL - 60, 60), [0u32; 0]);
    assert_eq!(leader.lead(&mut swarm, 120, 60), [2]);
    let mut swarm = Swarm::new();
    swarm.now = UnixTime(START + 4000 * 86_400);
    let mut leader = Leader::start(&swarm, 0);
    assert_eq!(leader.lead(&mut swarm, INTERVAL - 60, 60), [2]);
}

#[test]
fn the_clock_counts_a_request_from_when_it_sees_it_and_keeps_it_over_restarts() {
    let mut swarm = rotated();
    let mut leader = Leader::start(&swarm, 7);
    swarm.ok(Command::RequestRotation { force: true });
    let second = Duration::from_secs(1);
    assert_eq!(leader.clock.read(&swarm.state, Time(7) + 9 * second).request_secs, 0);
    assert_eq!(leader.clock.read(&swarm.state, Time(7) + 19 * second).request_secs, 10);
    swarm.pass(200);
    let mut leader = Leader::start(&swarm, 0);
    assert_eq!(leader.clock.read(&swarm.state, Time(0)).request_secs, 200);
    swarm.pass(20_000);
    let mut leader = Leader::start(&swarm, 0);
    assert_eq!(leader.clock.read(&swarm.state, Time(0)).request_secs, 600, "the age of a request is clamped too");
}

#[test]
fn the_age_of_the_ring_rises_with_all_that_its_record_says() {
    let mut swarm = Swarm::with_workers(1);
    let mut last = swarm.state.ring.generation;
    for step in [RingStep::Activate(Epoch(2)), RingStep::Retire(Epoch(1))] {
        apply(&mut swarm, step);
        assert!(swarm.state.ring.generation > last, "a manager that starts again would sign older news as the same");
        last = swarm.state.ring.generation;
    }
}
