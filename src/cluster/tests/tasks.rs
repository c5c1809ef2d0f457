use super::*;

fn placed() -> (Swarm, TaskId) {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(create_network(1, None));
    swarm.ok(create_service(1, &[1], 1));
    swarm.schedule();
    let task = swarm.live(service(1))[&1];
    assert_eq!(swarm.task(task).node, Some(node(1)));
    (swarm, task)
}

#[test]
fn reports_move_a_task_forward_only() {
    let (mut swarm, task) = placed();
    swarm.pass(3);
    swarm.report(task, TaskState::Running);
    let status = swarm.task(task).status.clone();
    assert_eq!((status.state, status.pid, status.at), (TaskState::Running, Some(42), swarm.now));
    let version = swarm.task(task).version;
    swarm.pass(3);
    swarm.report(task, TaskState::Running);
    swarm.report(task, TaskState::Preparing);
    swarm.report(task, TaskState::Assigned);
    swarm.report(task, TaskState::Orphaned);
    swarm.report(task, TaskState::Remove);
    assert_eq!((&swarm.task(task).status, swarm.task(task).version), (&status, version));
    swarm.report(task, TaskState::Failed);
    assert_eq!(swarm.task(task).desired, TaskState::Shutdown, "an ended task is not to be started again");
    swarm.report(task, TaskState::Rejected);
    assert_eq!(swarm.task(task).status.state, TaskState::Failed);
    assert_eq!(swarm.task(task).status.exit_code, Some(1));
}

#[test]
fn a_node_speaks_for_its_own_tasks_only() {
    let (mut swarm, task) = placed();
    let unknown = swarm.draw_task();
    let own = vec![(unknown, said(TaskState::Running))];
    swarm.ok(Command::ReportTasks { node: node(2), boot: boot(2), statuses: own });
    let foreign = vec![(unknown, said(TaskState::Running)), (task, said(TaskState::Running))];
    let text = swarm.refused(Command::ReportTasks { node: node(2), boot: boot(2), statuses: foreign });
    assert_eq!(text, format!("task {task} is not on node {}", node(2)));
    let text = swarm.refused(Command::ConfirmTaskGone { node: node(2), boot: boot(2), id: task });
    assert_eq!(text, format!("task {task} is not on node {}", node(2)));
    let many = vec![(task, said(TaskState::Running)); limits::REPORT_STATUSES + 1];
    assert!(
        swarm.refused(Command::ReportTasks { node: node(1), boot: boot(1), statuses: many }).contains("more than 1024")
    );
    assert!(
        swarm.refused(Command::ReportTasks { node: node(7), boot: boot(7), statuses: vec![] }).contains("not found")
    );
}

#[test]
fn texts_of_a_node_are_cut_and_cleaned() {
    let (mut swarm, task) = placed();
    let status = TaskStatus { error: "é".repeat(2000), message: "a\nb\x1b[31m".into(), ..said(TaskState::Failed) };
    swarm.ok(Command::ReportTasks { node: node(1), boot: boot(1), statuses: vec![(task, status)] });
    assert_eq!(swarm.task(task).status.error.len(), limits::TEXT_BYTES);
    assert_eq!(swarm.task(task).status.message, "a b [31m");
}

#[test]
fn an_address_is_reserved_until_the_node_confirms() {
    let (mut swarm, task) = placed();
    let address = swarm.task(task).attachments[0].address.addr();
    let owner = |swarm: &Swarm| swarm.state.networks[&network(1)].addresses.get(&address).copied();
    swarm.report(task, TaskState::Failed);
    assert_eq!(owner(&swarm), Some(task));
    swarm.confirm(task);
    assert_eq!(owner(&swarm), None);
    assert!(swarm.task(task).gone && swarm.state.tasks_of(node(1)).is_empty(), "kept as history only");
    swarm.confirm(task);
    swarm.ok(Command::ShutDownTask { id: task, remove: true });
    assert!(!swarm.state.tasks.contains_key(&task));
    swarm.ok(Command::ConfirmTaskGone { node: node(1), boot: boot(1), id: task });
}

#[test]
fn a_task_lost_by_its_node_has_failed_and_one_told_to_stop_is_shut_down() {
    let (mut swarm, task) = placed();
    swarm.confirm(task);
    assert_eq!(swarm.task(task).status.state, TaskState::Failed);
    assert_eq!(swarm.task(task).status.error, "its node lost it");
    swarm.pass(5);
    swarm.schedule();
    let next = swarm.live(service(1))[&1];
    swarm.ok(Command::ShutDownTask { id: next, remove: false });
    swarm.confirm(next);
    assert_eq!(swarm.task(next).status.state, TaskState::Shutdown);
}

#[test]
fn a_new_boot_ends_the_tasks_of_the_former_one() {
    let (mut swarm, task) = placed();
    swarm.ok(create_service(2, &[1], 2));
    swarm.schedule();
    swarm.report(task, TaskState::Running);
    let assigned: Vec<TaskId> = swarm.live(service(2)).into_values().collect();
    swarm.ok(open_session(1, 1));
    assert_eq!(swarm.task(task).status.state, TaskState::Running, "the same boot still has it");
    swarm.ok(open_session(1, 99));
    assert_eq!(swarm.task(task).status.state, TaskState::Failed);
    assert_eq!(swarm.task(task).desired, TaskState::Shutdown);
    assert_eq!(swarm.task(task).status.error, "the daemon of its node restarted");
    assert_eq!(swarm.state.networks[&network(1)].addresses.len(), 3, "until the new boot confirms");
    for id in assigned {
        assert_eq!(swarm.task(id).status.state, TaskState::Assigned, "not started yet: the new boot may start it");
    }
}

#[test]
fn commands_on_tasks_out_of_order_are_refused() {
    let (mut swarm, task) = placed();
    let text = format!("task {task} does not wait for a node");
    assert_eq!(swarm.refused(Command::PlaceTask { id: task, node: node(2) }), text);
    assert_eq!(swarm.refused(Command::SetPending { id: task, reason: "no".into() }), text);
    let id = swarm.draw_task();
    let create = |id, slot| Command::CreateTask { id, service: service(1), slot, bound_to: None };
    assert_eq!(swarm.refused(create(id, 1)), "there is a live task svc1.1 already");
    assert_eq!(swarm.refused(create(id, 2)), "service svc1 has no slot 2");
    assert_eq!(swarm.refused(create(id, 0)), "service svc1 has no slot 0");
    swarm.ok(Command::ShutDownTask { id: task, remove: false });
    assert!(swarm.refused(create(task, 1)).contains("already exists"));
    swarm.ok(create(id, 1));
    swarm.ok(set_state(2, NodeState::Down));
    let text = swarm.refused(Command::PlaceTask { id, node: node(2) });
    assert_eq!(text, "no suitable node (1 node down)");
    assert!(swarm.refused(Command::PlaceTask { id, node: node(5) }).contains("not found"));
    swarm.ok(Command::ShutDownTask { id, remove: false });
    assert!(swarm.task(id).gone, "no node ever had it");
}

#[test]
fn the_dispatchers_views_count_a_task_until_it_is_gone() {
    let mut swarm = Swarm::with_workers(3);
    swarm.ok(create_network(1, None));
    swarm.ok(create_network(2, None));
    swarm.ok(create_service(1, &[1, 2], 1));
    swarm.ok(create_service(2, &[1], 1));
    swarm.schedule();
    let (first, second) = (swarm.live(service(1))[&1], swarm.live(service(2))[&1]);
    assert_eq!((swarm.task(first).node, swarm.task(second).node), (Some(node(1)), Some(node(2))));
    assert_eq!(swarm.state.networks_of(node(1)), BTreeSet::from([network(1), network(2)]));
    assert_eq!(swarm.state.members(network(1)), BTreeSet::from([node(1), node(2)]));
    let needs = swarm.state.needs(node(2));
    assert_eq!(needs.networks, BTreeMap::from([(network(1), BTreeSet::from([node(1), node(2)]))]));
    assert_eq!(needs.peers, BTreeSet::from([node(1)]));
    assert_eq!(swarm.state.needs(node(3)), Needs::default());
    let assignment = &swarm.state.tasks_of(node(1))[0];
    assert_eq!((assignment.service_name.as_str(), assignment.slot), ("svc1", 1));
    assert_eq!(assignment.attachments.len(), 2);
    swarm.report(first, TaskState::Failed);
    assert!(swarm.state.members(network(2)).contains(&node(1)));
    swarm.confirm(first);
    assert!(swarm.state.members(network(2)).is_empty() && swarm.state.networks_of(node(1)).is_empty());
}
