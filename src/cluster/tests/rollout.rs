//! Services that change: scaled, updated, rolled back, restarted by their policy.

use super::*;
use crate::cluster::schedule::PLAN_COMMANDS;

/// A running service of `replicas` tasks on two nodes; `change` makes its policies.
fn running(replicas: u64, change: impl Fn(&mut Renewal)) -> Swarm {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(create_network(1, None));
    let mut spec = service_spec("svc1", &[1], replicas);
    change(&mut spec.renewal);
    swarm.ok(Command::CreateService { id: service(1), spec });
    settle(&mut swarm);
    swarm
}

fn the_service(swarm: &Swarm) -> &Service {
    &swarm.state.services[&service(1)]
}

fn phase(swarm: &Swarm) -> Option<RolloutPhase> {
    the_service(swarm).rollout.as_ref().map(|rollout| rollout.phase)
}

fn message(swarm: &Swarm) -> String {
    the_service(swarm).rollout.as_ref().unwrap().message.clone()
}

fn update(swarm: &mut Swarm, change: impl Fn(&mut ServiceSpec)) {
    let mut spec = the_service(swarm).spec.clone();
    change(&mut spec);
    let version = the_service(swarm).version;
    swarm.ok(Command::UpdateService { id: service(1), version, spec });
}

fn roll_back(swarm: &Swarm) -> Command {
    Command::RollBackService { id: service(1), version: the_service(swarm).version }
}

fn image(name: &str) -> impl Fn(&mut ServiceSpec) {
    move |spec| spec.container.image = name.into()
}

/// The images of the live tasks by slot.
fn images(swarm: &Swarm) -> Vec<String> {
    swarm.live(service(1)).values().map(|task| swarm.task(*task).container.image.clone()).collect()
}

/// One round: what is planned, then the nodes' word: what shall stop is gone, what shall run runs, unless it is of an
/// image that ends at once.
fn round(swarm: &mut Swarm) {
    swarm.schedule();
    let tasks: Vec<TaskId> =
        swarm.state.tasks.values().filter(|task| task.node.is_some()).map(|task| task.id).collect();
    for id in tasks {
        let Some(task) = swarm.state.tasks.get(&id) else { continue };
        if task.desired > TaskState::Running {
            swarm.confirm(id);
        } else if task.container.image == "bad:1" {
            swarm.report(id, TaskState::Failed);
        } else {
            swarm.report(id, TaskState::Running);
        }
    }
}

/// Rounds until nothing more is planned at this time.
fn settle(swarm: &mut Swarm) {
    for _ in 0..20 {
        round(swarm);
        if swarm.plan().is_empty() {
            return;
        }
    }
    panic!("the service does not come to rest");
}

/// Seconds until the rollout is over.
fn seconds_until(swarm: &mut Swarm, wanted: RolloutPhase) -> u64 {
    for seconds in 0..1000 {
        settle(swarm);
        if phase(swarm) == Some(wanted) {
            return seconds;
        }
        swarm.pass(1);
    }
    panic!("{:?}, not {wanted:?}", the_service(swarm).rollout);
}

#[test]
fn scaling_adds_and_removes_places_and_replaces_nothing() {
    let mut swarm = running(3, |_| {});
    let before = swarm.live(service(1));
    update(&mut swarm, |spec| spec.mode = ServiceMode::Replicated { replicas: 5 });
    settle(&mut swarm);
    assert_eq!(swarm.live(service(1)).len(), 5);
    assert_eq!(phase(&swarm), None, "there was nothing to replace");
    update(&mut swarm, |spec| spec.mode = ServiceMode::Replicated { replicas: 2 });
    settle(&mut swarm);
    let mut left = before;
    left.remove(&3);
    assert_eq!(swarm.live(service(1)), left);
    assert_eq!(swarm.state.tasks.len(), 2, "no history of places that are not wanted");
    assert_eq!(swarm.state.networks[&network(1)].addresses.len(), 2);
    update(&mut swarm, |spec| spec.mode = ServiceMode::Replicated { replicas: 0 });
    settle(&mut swarm);
    assert!(swarm.state.tasks.is_empty() && swarm.state.networks[&network(1)].addresses.is_empty());
}

#[test]
fn what_an_update_may_not_change() {
    let mut swarm = running(1, |_| {});
    let version = the_service(&swarm).version;
    let mut refused = |version: u64, change: &dyn Fn(&mut ServiceSpec)| {
        let mut spec = the_service(&swarm).spec.clone();
        change(&mut spec);
        swarm.refused(Command::UpdateService { id: service(1), version, spec })
    };
    assert_eq!(refused(version - 1, &|_| {}), "update out of sequence");
    assert_eq!(refused(version, &|spec| spec.name = "other".into()), "renaming services is not supported");
    assert_eq!(refused(version, &|spec| spec.mode = ServiceMode::Global), "service mode change is not allowed");
    assert_eq!(
        refused(version, &|spec| spec.networks.push((network(9), vec![]))),
        format!("network {} not found", network(9))
    );
    assert_eq!(refused(version, &|spec| spec.container.image.clear()), "image must be provided");
    let many = |spec: &mut ServiceSpec| spec.mode = ServiceMode::Replicated { replicas: 10_001 };
    assert_eq!(refused(version, &many), "10001 replicas are too many: at most 10000");
    let window = |spec: &mut ServiceSpec| {
        spec.renewal.restart = RestartPolicy { max_attempts: 65, window_secs: 1, ..RestartPolicy::default() };
    };
    assert_eq!(refused(version, &window), "at most 64 restart attempts can be counted within a window");
    assert_eq!(swarm.refused(roll_back(&swarm)), "service svc1 does not have a previous spec");
    swarm.ok(Command::RemoveService { id: service(1) });
    assert_eq!(swarm.refused(roll_back(&swarm)), format!("service {} not found", service(1)));
}

#[test]
fn an_update_replaces_place_by_place_and_stops_first() {
    let mut swarm = running(3, |renewal| renewal.update.delay_secs = 10);
    update(&mut swarm, image("new:1"));
    swarm.schedule();
    assert_eq!(swarm.live(service(1)).len(), 2, "one stops, and its successor waits for its end");
    let stopping = swarm.state.tasks.values().find(|task| task.desired == TaskState::Shutdown).unwrap().id;
    swarm.report(stopping, TaskState::Shutdown);
    swarm.schedule();
    assert_eq!(images(&swarm), ["new:1", "my-image:latest", "my-image:latest"]);
    let first = swarm.live(service(1))[&1];
    assert_ne!(swarm.task(first).attachments[0].address, swarm.task(stopping).attachments[0].address);
    swarm.pass(100);
    assert_eq!(swarm.schedule(), 0, "the new task does not run yet");
    settle(&mut swarm);
    swarm.pass(9);
    assert_eq!(swarm.schedule(), 0, "it has not run for the delay");
    swarm.pass(1);
    settle(&mut swarm);
    assert_eq!(images(&swarm), ["new:1", "new:1", "my-image:latest"]);
    swarm.pass(10);
    settle(&mut swarm);
    assert_eq!(images(&swarm), ["new:1"; 3]);
    assert_eq!(phase(&swarm), Some(RolloutPhase::Updating), "the last is still watched");
    assert_eq!(seconds_until(&mut swarm, RolloutPhase::Completed), 10);
    assert_eq!(message(&swarm), "update completed");
    assert_eq!(the_service(&swarm).rollout.as_ref().unwrap().completed_at, Some(swarm.now));
}

#[test]
fn parallelism_bounds_what_is_replaced_together() {
    for (parallelism, together) in [(0, 6), (1, 1), (4, 4), (9, 6)] {
        let mut swarm = running(6, |renewal| renewal.update.parallelism = parallelism);
        update(&mut swarm, image("new:1"));
        swarm.schedule();
        let stopping = swarm.state.tasks.values().filter(|task| task.desired == TaskState::Shutdown).count();
        assert_eq!(stopping, together, "{parallelism}");
        seconds_until(&mut swarm, RolloutPhase::Completed);
        assert_eq!(images(&swarm), ["new:1"; 6]);
    }
}

#[test]
fn however_many_are_replaced_at_once_a_plan_stays_within_its_bound() {
    let mut swarm = Swarm::with_workers(2);
    let count = PLAN_COMMANDS + 30;
    let mut spec = service_spec("svc1", &[], count as u64);
    spec.renewal.update.parallelism = 0;
    swarm.quick(Command::CreateService { id: service(1), spec });
    for _ in 0..4 {
        swarm.plan().into_iter().for_each(|command| swarm.quick(command));
    }
    assert!(swarm.live(service(1)).values().all(|task| swarm.task(*task).node.is_some()));
    let version = the_service(&swarm).version;
    let mut spec = the_service(&swarm).spec.clone();
    spec.renewal.force += 1;
    swarm.quick(Command::UpdateService { id: service(1), version, spec });
    let first = swarm.plan();
    assert_eq!(first.len(), PLAN_COMMANDS);
    first.into_iter().for_each(|command| swarm.quick(command));
    swarm.plan().into_iter().for_each(|command| swarm.quick(command));
    assert_eq!(swarm.live(service(1)).len(), 0, "the rest is stopped by the next");
}

#[test]
fn a_new_leader_goes_on_where_the_old_one_stopped() {
    let mut swarm = running(4, |renewal| renewal.update.delay_secs = 3);
    update(&mut swarm, image("new:1"));
    while images(&swarm).iter().filter(|image| *image == "new:1").count() < 2 {
        settle(&mut swarm);
        swarm.pass(1);
    }
    let bytes = swarm.state.to_bytes().unwrap();
    swarm.state = State::from_bytes(&bytes).unwrap();
    let kept = swarm.live(service(1));
    seconds_until(&mut swarm, RolloutPhase::Completed);
    let after = swarm.live(service(1));
    assert_eq!((after[&1], after[&2]), (kept[&1], kept[&2]), "what was replaced is not replaced again");
}

#[test]
fn a_failed_update_pauses_and_the_rest_stays() {
    let mut swarm = running(3, |_| {});
    update(&mut swarm, image("bad:1"));
    seconds_until(&mut swarm, RolloutPhase::Paused);
    assert!(message(&swarm).starts_with("update paused due to failure or early termination of task "));
    swarm.pass(100);
    round(&mut swarm);
    assert_eq!(images(&swarm), ["my-image:latest"; 2], "the others stay");
    // Somebody mends it.
    update(&mut swarm, image("new:1"));
    seconds_until(&mut swarm, RolloutPhase::Completed);
    assert_eq!(images(&swarm), ["new:1"; 3]);
}

#[test]
fn a_failed_update_goes_back_by_itself_and_touches_only_what_was_replaced() {
    let mut swarm = running(3, |renewal| renewal.update.failure_action = FailureAction::RollBack);
    let before = swarm.live(service(1));
    update(&mut swarm, image("bad:1"));
    seconds_until(&mut swarm, RolloutPhase::RolledBack);
    assert_eq!(message(&swarm), "rollback completed");
    assert_eq!(images(&swarm), ["my-image:latest"; 3]);
    let after = swarm.live(service(1));
    assert_eq!((after[&2], after[&3]), (before[&2], before[&3]));
    assert_eq!(
        swarm.refused(roll_back(&swarm)),
        "service svc1 does not have a previous spec",
        "what failed is not kept"
    );
}

#[test]
fn who_scales_during_an_update_does_not_lose_what_it_goes_back_to() {
    let mut swarm = running(3, |renewal| renewal.update.failure_action = FailureAction::RollBack);
    update(&mut swarm, image("bad:1"));
    let started = the_service(&swarm).rollout.clone();
    update(&mut swarm, |spec| spec.mode = ServiceMode::Replicated { replicas: 4 });
    assert_eq!(the_service(&swarm).rollout, started, "it goes on");
    seconds_until(&mut swarm, RolloutPhase::RolledBack);
    assert_eq!(images(&swarm), ["my-image:latest"; 3]);
    // Of a rollback as well: what was left is not come back to.
    update(&mut swarm, |spec| spec.renewal.update.failure_action = FailureAction::Continue);
    update(&mut swarm, image("bad:1"));
    seconds_until(&mut swarm, RolloutPhase::Completed);
    swarm.ok(roll_back(&swarm));
    update(&mut swarm, |spec| spec.mode = ServiceMode::Replicated { replicas: 2 });
    assert_eq!(phase(&swarm), Some(RolloutPhase::RollingBack));
    seconds_until(&mut swarm, RolloutPhase::RolledBack);
    assert_eq!(images(&swarm), ["my-image:latest"; 2]);
}

#[test]
fn as_many_failures_as_allowed_are_borne() {
    let bearing = |ppm| {
        let mut swarm = running(4, |renewal| {
            renewal.update.max_failure_ppm = ppm;
            renewal.update.parallelism = 0;
        });
        update(&mut swarm, image("new:1"));
        swarm.schedule();
        for id in swarm.state.tasks.keys().copied().collect::<Vec<_>>() {
            swarm.confirm(id);
        }
        swarm.schedule();
        let new: Vec<TaskId> = swarm.live(service(1)).into_values().collect();
        swarm.report(new[0], TaskState::Failed);
        let once = phase(&swarm);
        swarm.report(new[1], TaskState::Complete);
        (once, phase(&swarm))
    };
    use RolloutPhase::{Paused, Updating};
    assert_eq!(bearing(0), (Some(Paused), Some(Paused)));
    assert_eq!(bearing(250_000), (Some(Updating), Some(Paused)));
    assert_eq!(bearing(500_000), (Some(Updating), Some(Updating)));
}

#[test]
fn what_ends_later_than_watched_or_by_order_is_no_failure() {
    let mut swarm = running(2, |renewal| renewal.update.delay_secs = 100);
    update(&mut swarm, image("new:1"));
    settle(&mut swarm);
    let new = swarm.live(service(1))[&1];
    swarm.pass(6);
    swarm.report(new, TaskState::Failed);
    assert_eq!(phase(&swarm), Some(RolloutPhase::Updating));
    let other = swarm.live(service(1))[&2];
    swarm.report(other, TaskState::Failed);
    assert_eq!(phase(&swarm), Some(RolloutPhase::Updating), "an old task");
    seconds_until(&mut swarm, RolloutPhase::Completed);
}

#[test]
fn going_on_and_a_rollback_that_fails() {
    let mut swarm = running(2, |renewal| renewal.update.failure_action = FailureAction::Continue);
    update(&mut swarm, image("bad:1"));
    seconds_until(&mut swarm, RolloutPhase::Completed);
    assert_eq!(the_service(&swarm).rollout.as_ref().unwrap().failures, 2);
    update(&mut swarm, image("new:1"));
    seconds_until(&mut swarm, RolloutPhase::Completed);
    swarm.ok(roll_back(&swarm));
    seconds_until(&mut swarm, RolloutPhase::RollbackPaused);
    assert!(message(&swarm).starts_with("rollback paused due to failure"));
}

#[test]
fn a_rollback_by_hand_swaps_the_specifications() {
    let mut swarm = running(2, |_| {});
    update(&mut swarm, image("new:1"));
    seconds_until(&mut swarm, RolloutPhase::Completed);
    swarm.ok(roll_back(&swarm));
    assert_eq!(message(&swarm), "manually requested rollback");
    seconds_until(&mut swarm, RolloutPhase::RolledBack);
    assert_eq!(images(&swarm), ["my-image:latest"; 2]);
    swarm.ok(roll_back(&swarm));
    seconds_until(&mut swarm, RolloutPhase::RolledBack);
    assert_eq!(images(&swarm), ["new:1"; 2]);
}

#[test]
fn a_rollback_to_a_network_that_is_gone_is_refused_and_an_automatic_one_pauses() {
    let mut swarm = running(2, |renewal| renewal.update.failure_action = FailureAction::RollBack);
    update(&mut swarm, |spec| spec.networks.clear());
    seconds_until(&mut swarm, RolloutPhase::Completed);
    swarm.ok(Command::RemoveNetwork { id: network(1) });
    assert_eq!(swarm.refused(roll_back(&swarm)), format!("network {} not found", network(1)));
    swarm.ok(create_network(2, None));
    update(&mut swarm, |spec| spec.networks = vec![(network(2), vec![])]);
    seconds_until(&mut swarm, RolloutPhase::Completed);
    update(&mut swarm, |spec| {
        spec.networks.clear();
        spec.container.image = "bad:1".into();
    });
    for id in swarm.live(service(1)).into_values() {
        swarm.ok(Command::ShutDownTask { id, remove: true });
        swarm.confirm(id);
    }
    swarm.ok(Command::RemoveNetwork { id: network(2) });
    settle(&mut swarm);
    assert_eq!(phase(&swarm), Some(RolloutPhase::Paused));
    assert!(message(&swarm).ends_with("the previous spec cannot be gone back to"));
}

#[test]
fn force_replaces_everything_and_placement_only_what_it_must() {
    let mut swarm = running(2, |_| {});
    let before = swarm.live(service(1));
    update(&mut swarm, |spec| spec.placement.constraints = vec!["node.role==worker".parse().unwrap()]);
    update(&mut swarm, |spec| spec.renewal.restart.delay_secs = 1);
    settle(&mut swarm);
    assert_eq!((swarm.live(service(1)), phase(&swarm)), (before.clone(), None));
    update(&mut swarm, |spec| spec.renewal.force += 1);
    seconds_until(&mut swarm, RolloutPhase::Completed);
    assert!(swarm.live(service(1)).iter().all(|(slot, task)| before[slot] != *task));
}

#[test]
fn what_waits_for_a_node_is_replaced_at_once_even_while_paused() {
    let mut swarm = Swarm::new();
    swarm.ok(create_service(1, &[], 3));
    swarm.schedule();
    update(&mut swarm, image("new:1"));
    swarm.schedule();
    assert_eq!(images(&swarm), ["new:1"; 3]);
    let waiting = swarm.live(service(1))[&1];
    update(&mut swarm, image("newer:1"));
    swarm.ok(add_node(1, Role::Worker));
    swarm.ok(open_session(1, 1));
    let placed = Command::PlaceTask { id: waiting, node: node(1) };
    assert_eq!(swarm.refused(placed), format!("task {waiting} is not up to date"));
    seconds_until(&mut swarm, RolloutPhase::Completed);
    assert_eq!(images(&swarm), ["newer:1"; 3]);
}

#[test]
fn a_node_that_goes_down_during_an_update_holds_nothing_up() {
    let mut swarm = running(4, |_| {});
    update(&mut swarm, image("new:1"));
    swarm.schedule();
    let stopping = swarm.state.tasks.values().find(|task| task.desired == TaskState::Shutdown).unwrap();
    let lost = stopping.node.unwrap();
    swarm.ok(Command::SetNodeState { node: lost, state: NodeState::Down, message: "silent".into() });
    let others =
        |swarm: &Swarm| swarm.state.tasks.values().filter(|task| task.node != Some(lost)).cloned().collect::<Vec<_>>();
    for _ in 0..100 {
        swarm.schedule();
        for task in others(&swarm) {
            if task.desired > TaskState::Running {
                swarm.confirm(task.id);
            } else if task.node.is_some() {
                swarm.report(task.id, TaskState::Running);
            }
        }
        swarm.pass(1);
    }
    assert_eq!((images(&swarm), phase(&swarm)), (vec!["new:1".to_owned(); 4], Some(RolloutPhase::Completed)));
    assert!(swarm.live(service(1)).values().all(|task| swarm.task(*task).node != Some(lost)));
}

#[test]
fn a_global_service_is_updated_node_by_node() {
    let mut swarm = Swarm::with_workers(3);
    let mut spec = service_spec("svc1", &[], 0);
    spec.mode = ServiceMode::Global;
    swarm.ok(Command::CreateService { id: service(1), spec });
    settle(&mut swarm);
    update(&mut swarm, image("new:1"));
    swarm.schedule();
    assert_eq!(swarm.state.tasks.values().filter(|task| task.is_live()).count(), 2);
    seconds_until(&mut swarm, RolloutPhase::Completed);
    let live: BTreeSet<NodeId> =
        swarm.state.tasks.values().filter(|task| task.is_live()).filter_map(|task| task.node).collect();
    assert_eq!(live.len(), 3);
}

/// A running global service on three nodes.
fn running_everywhere() -> Swarm {
    let mut swarm = Swarm::with_workers(3);
    let mut spec = service_spec("svc1", &[], 0);
    spec.mode = ServiceMode::Global;
    swarm.ok(Command::CreateService { id: service(1), spec });
    settle(&mut swarm);
    swarm
}

fn set_availability(swarm: &mut Swarm, number: u64, availability: Availability) {
    let known = &swarm.state.nodes[&node(number)];
    let (node, version, role, labels) = (known.id, known.version, known.role, known.labels.clone());
    swarm.ok(Command::UpdateNode { node, version, role, availability, labels });
}

/// The image of the live task on each node.
fn images_by_node(swarm: &Swarm) -> Vec<(NodeId, String)> {
    let live = swarm.state.tasks.values().filter(|task| task.is_live());
    let mut images: Vec<_> = live.map(|task| (task.node.unwrap(), task.container.image.clone())).collect();
    images.sort();
    images
}

fn on(nodes: &[u64], image: &str) -> Vec<(NodeId, String)> {
    nodes.iter().map(|number| (node(*number), image.to_owned())).collect()
}

#[test]
fn a_node_that_takes_no_task_any_more_does_not_hold_up_a_global_update() {
    let drain = |swarm: &mut Swarm| set_availability(swarm, 2, Availability::Drain);
    let down = |swarm: &mut Swarm| {
        swarm.ok(Command::SetNodeState { node: node(2), state: NodeState::Down, message: "silent".into() });
    };
    let exclude = |swarm: &mut Swarm| {
        let other = format!("node.id!={}", node(2));
        update(swarm, |spec| spec.placement.constraints = vec![other.parse().unwrap()]);
    };
    for leave in [&drain as &dyn Fn(&mut Swarm), &down, &exclude] {
        // Before the update, and in the midst of it.
        for rounds in 0..4 {
            let mut swarm = running_everywhere();
            if rounds == 0 {
                leave(&mut swarm);
                swarm.schedule();
            }
            update(&mut swarm, image("new:1"));
            for _ in 0..rounds {
                swarm.schedule();
                let told = swarm.state.tasks.values().find(|task| task.desired > TaskState::Running && !task.gone);
                if let Some(told) = told.map(|task| task.id) {
                    swarm.confirm(told);
                }
            }
            if rounds > 0 {
                leave(&mut swarm);
            }
            seconds_until(&mut swarm, RolloutPhase::Completed);
            assert_eq!(images_by_node(&swarm), on(&[1, 3], "new:1"));
            update(&mut swarm, image("newer:1"));
            seconds_until(&mut swarm, RolloutPhase::Completed);
            swarm.ok(roll_back(&swarm));
            seconds_until(&mut swarm, RolloutPhase::RolledBack);
            assert_eq!(images_by_node(&swarm), on(&[1, 3], "new:1"));
        }
    }
}

#[test]
fn a_constraint_that_comes_with_an_update_of_a_global_service_does_not_hold_it_up() {
    let mut swarm = running_everywhere();
    let other = format!("node.id!={}", node(2));
    update(&mut swarm, |spec| {
        spec.placement.constraints = vec![other.parse().unwrap()];
        spec.container.image = "new:1".into();
    });
    assert_eq!(the_service(&swarm).rollout.as_ref().unwrap().total, 2);
    seconds_until(&mut swarm, RolloutPhase::Completed);
    assert_eq!(images_by_node(&swarm), on(&[1, 3], "new:1"));
    swarm.ok(roll_back(&swarm));
    seconds_until(&mut swarm, RolloutPhase::RolledBack);
    assert_eq!(images_by_node(&swarm), on(&[1, 2, 3], "my-image:latest"));
}

#[test]
fn a_paused_node_keeps_its_task_of_a_global_service_until_it_is_active() {
    for rolls_back in [false, true] {
        let mut swarm = running_everywhere();
        set_availability(&mut swarm, 2, Availability::Pause);
        update(&mut swarm, image("new:1"));
        seconds_until(&mut swarm, RolloutPhase::Completed);
        let mut mixed = on(&[1, 2, 3], "new:1");
        mixed[1].1 = "my-image:latest".into();
        assert_eq!(images_by_node(&swarm), mixed);
        let mut last = "new:1";
        if rolls_back {
            swarm.ok(roll_back(&swarm));
            seconds_until(&mut swarm, RolloutPhase::RolledBack);
            last = "my-image:latest";
        }
        set_availability(&mut swarm, 2, Availability::Active);
        settle(&mut swarm);
        assert_eq!(images_by_node(&swarm), on(&[1, 2, 3], last));
    }
}

#[test]
fn what_an_update_left_on_a_paused_node_stays_while_the_update_is_paused() {
    let mut swarm = running_everywhere();
    set_availability(&mut swarm, 2, Availability::Pause);
    update(&mut swarm, image("bad:1"));
    seconds_until(&mut swarm, RolloutPhase::Paused);
    set_availability(&mut swarm, 2, Availability::Active);
    round(&mut swarm);
    assert!(images_by_node(&swarm).contains(&(node(2), "my-image:latest".to_owned())));
}

/// Ends the task of the only place again and again. Gives how often it ran.
fn runs(policy: RestartPolicy, ends: &[TaskState], history: u32) -> usize {
    let mut swarm = Swarm::with_workers(1);
    let spec = ClusterSpec { task_history: history, ..ClusterSpec::default() };
    let (version, tokens) = (swarm.state.cluster.version, NewTokens::default());
    swarm.ok(Command::UpdateCluster { version, spec, tokens, root: None });
    let mut spec = service_spec("svc1", &[], 1);
    spec.renewal.restart = policy;
    swarm.ok(Command::CreateService { id: service(1), spec });
    for (run, end) in ends.iter().enumerate() {
        swarm.schedule();
        let Some(task) = swarm.live(service(1)).get(&1).copied() else { return run };
        swarm.report(task, TaskState::Running);
        swarm.report(task, *end);
        swarm.confirm(task);
        swarm.pass(5);
    }
    ends.len()
}

#[test]
fn restarts_follow_the_policy() {
    use TaskState::{Complete, Failed};
    let any = RestartPolicy::default();
    let on_failure = RestartPolicy { condition: RestartCondition::OnFailure, ..any.clone() };
    let never = RestartPolicy { condition: RestartCondition::Never, ..any.clone() };
    for history in [0, 5] {
        assert_eq!(runs(any.clone(), &[Complete, Failed, Complete, Failed], history), 4);
        assert_eq!(runs(on_failure.clone(), &[Failed, Failed, Complete, Failed], history), 3);
        assert_eq!(runs(never.clone(), &[Failed, Failed], history), 1);
        let thrice = RestartPolicy { max_attempts: 3, ..any.clone() };
        assert_eq!(runs(thrice.clone(), &[Failed; 20], history), 4, "once, and three times again");
        let short = RestartPolicy { window_secs: 10, ..thrice.clone() };
        assert_eq!(runs(short, &[Failed; 20], history), 20, "never more than two within 10 s");
        let long = RestartPolicy { window_secs: 11, ..thrice };
        assert_eq!(runs(long, &[Failed; 20], history), 4);
    }
}

#[test]
fn what_ran_once_is_not_placed_again_under_never() {
    let mut swarm = running(1, |renewal| renewal.restart.condition = RestartCondition::Never);
    let task = swarm.live(service(1))[&1];
    let lost = swarm.task(task).node.unwrap();
    swarm.ok(Command::SetNodeState { node: lost, state: NodeState::Down, message: "silent".into() });
    swarm.schedule();
    assert!(swarm.live(service(1)).is_empty());
    // A change fills the place again, and so do new attempts after one.
    update(&mut swarm, |spec| spec.renewal.force += 1);
    swarm.schedule();
    assert_eq!(swarm.live(service(1)).len(), 1);
}
