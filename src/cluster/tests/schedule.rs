use super::*;
use crate::cluster::schedule;

fn nodes_of(swarm: &Swarm, number: u64) -> Vec<Option<NodeId>> {
    swarm.live(service(number)).values().map(|task| swarm.task(*task).node).collect()
}

#[test]
fn tasks_spread_by_service_then_load_then_id() {
    let mut swarm = Swarm::with_workers(3);
    swarm.ok(create_service(1, &[], 3));
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1), [Some(node(1)), Some(node(2)), Some(node(3))]);
    swarm.ok(create_service(2, &[], 1));
    swarm.schedule();
    swarm.ok(create_service(3, &[], 4));
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 2), [Some(node(1))]);
    assert_eq!(nodes_of(&swarm, 3), [Some(node(2)), Some(node(3)), Some(node(1)), Some(node(2))]);
}

#[test]
fn without_a_node_the_reason_is_shown_and_follows_the_nodes() {
    let mut swarm = Swarm::new();
    swarm.ok(create_service(1, &[], 1));
    swarm.schedule();
    let task = swarm.live(service(1))[&1];
    let reason = |swarm: &Swarm| swarm.task(task).status.error.clone();
    assert_eq!(reason(&swarm), "no suitable node (no nodes)");
    assert_eq!(swarm.task(task).status.message, "pending task scheduling");
    for number in 1..=3 {
        swarm.ok(add_node(number, Role::Worker));
    }
    swarm.schedule();
    assert_eq!(reason(&swarm), "no suitable node (3 nodes down)");
    swarm.ok(open_session(1, 1));
    let version = swarm.state.nodes[&node(1)].version;
    let labels = BTreeMap::new();
    swarm.ok(Command::UpdateNode { node: node(1), version, availability: Availability::Pause, labels });
    swarm.schedule();
    assert_eq!(reason(&swarm), "no suitable node (2 nodes down; 1 node not available for new tasks)");
    swarm.ok(open_session(2, 2));
    swarm.schedule();
    assert_eq!(swarm.task(task).node, Some(node(2)));
}

#[test]
fn an_ended_task_is_replaced_after_the_delay_and_its_history_is_bounded() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(create_service(1, &[], 1));
    for _ in 0..20 {
        swarm.schedule();
        let task = swarm.live(service(1))[&1];
        swarm.report(task, TaskState::Running);
        swarm.report(task, TaskState::Failed);
        swarm.schedule();
        swarm.confirm(task);
        swarm.pass(4);
        swarm.schedule();
        assert!(swarm.live(service(1)).is_empty());
        swarm.pass(1);
    }
    swarm.schedule();
    assert_eq!(swarm.state.tasks.len(), limits::TASK_HISTORY + 1);
    let newest = swarm.state.tasks.values().max_by_key(|task| task.created_index).unwrap();
    assert!(newest.is_live());
}

#[test]
fn a_rejected_task_is_retried_ever_more_slowly() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(create_service(1, &[], 1));
    let mut delays = Vec::new();
    for _ in 0..8 {
        swarm.schedule();
        let task = swarm.live(service(1))[&1];
        swarm.report(task, TaskState::Rejected);
        swarm.confirm(task);
        let mut delay = 0;
        swarm.schedule();
        while swarm.plan().is_empty() {
            swarm.pass(1);
            delay += 1;
        }
        delays.push(delay);
    }
    assert_eq!(delays, [5, 10, 20, 40, 80, 80, 80, 80]);
}

#[test]
fn a_node_that_keeps_rejecting_a_service_comes_last() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(create_service(1, &[], 1));
    let mut tried = Vec::new();
    for _ in 0..4 {
        swarm.schedule();
        let task = swarm.live(service(1))[&1];
        tried.push(swarm.task(task).node.unwrap());
        swarm.report(task, TaskState::Rejected);
        swarm.confirm(task);
        swarm.pass(200);
    }
    assert_eq!(tried, [node(1), node(1), node(1), node(2)]);
}

#[test]
fn tasks_of_a_down_or_drained_node_are_replaced_at_once_and_keep_their_addresses() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(create_network(1, None));
    swarm.ok(create_service(1, &[1], 2));
    swarm.schedule();
    let old = swarm.live(service(1))[&1];
    swarm.report(old, TaskState::Running);
    swarm.ok(set_state(1, NodeState::Down));
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1), [Some(node(2)), Some(node(2))]);
    assert_eq!((swarm.task(old).desired, swarm.task(old).status.state), (TaskState::Shutdown, TaskState::Running));
    assert_eq!(swarm.state.networks[&network(1)].addresses.len(), 3);
    // The node comes back with the same boot, hears of it and clears up.
    swarm.ok(open_session(1, 1));
    assert_eq!(swarm.schedule(), 0);
    swarm.report(old, TaskState::Shutdown);
    swarm.confirm(old);
    assert_eq!(swarm.state.networks[&network(1)].addresses.len(), 2);
    let version = swarm.state.nodes[&node(2)].version;
    let labels = BTreeMap::new();
    swarm.ok(Command::UpdateNode { node: node(2), version, availability: Availability::Drain, labels });
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1), [Some(node(1)), Some(node(1))]);
}

#[test]
fn a_clock_set_back_does_not_hold_up_replacements() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(create_service(1, &[], 1));
    swarm.schedule();
    let task = swarm.live(service(1))[&1];
    swarm.report(task, TaskState::Failed);
    swarm.now = UnixTime(START - 1_000_000);
    assert_eq!(swarm.schedule(), 2);
    let task = swarm.live(service(1))[&1];
    swarm.report(task, TaskState::Failed);
    assert_eq!(swarm.schedule(), 0, "and makes no hot loop");
}

#[test]
fn a_plan_is_bounded_and_goes_on_where_it_was_cut() {
    let mut swarm = Swarm::with_workers(3);
    swarm.ok(create_service(1, &[], 400));
    let first = swarm.plan();
    assert_eq!(first.len(), schedule::PLAN_COMMANDS);
    for command in first {
        swarm.quick(command);
    }
    let second = swarm.plan();
    assert_eq!(second.len(), 800 - schedule::PLAN_COMMANDS);
    for command in second {
        swarm.quick(command);
    }
    assert_eq!(swarm.plan().len(), 0);
    assert_eq!(swarm.live(service(1)).len(), 400);
}
