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
    let (role, availability) = (Role::Worker, Availability::Pause);
    swarm.ok(Command::UpdateNode { node: node(1), version, role, availability, labels });
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
    assert_eq!(swarm.state.tasks.len(), ClusterSpec::default().task_history as usize + 1);
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
    let (role, availability) = (Role::Worker, Availability::Drain);
    swarm.ok(Command::UpdateNode { node: node(2), version, role, availability, labels });
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

fn place_service(number: u64, networks: &[u64], mode: ServiceMode, change: impl FnOnce(&mut ServiceSpec)) -> Command {
    let mut spec = service_spec(&format!("svc{number}"), networks, 0);
    spec.mode = mode;
    change(&mut spec);
    Command::CreateService { id: service(number), spec }
}

fn replicas(replicas: u64) -> ServiceMode {
    ServiceMode::Replicated { replicas }
}

fn update(swarm: &mut Swarm, number: u64, availability: Availability, labels: &[(&str, &str)]) {
    let version = swarm.state.nodes[&node(number)].version;
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let role = swarm.state.nodes[&node(number)].role;
    swarm.ok(Command::UpdateNode { node: node(number), version, role, availability, labels });
}

fn constrained(spec: &mut ServiceSpec, text: &str) {
    spec.placement.constraints.push(text.parse().unwrap());
}

fn error(swarm: &Swarm, number: u64) -> String {
    let task = swarm.live(service(number)).into_values().next().unwrap();
    swarm.task(task).status.error.clone()
}

fn global_nodes(swarm: &Swarm, number: u64) -> BTreeSet<NodeId> {
    let live = swarm.state.tasks.values().filter(|task| task.service == service(number) && task.is_live());
    live.map(|task| task.bound_to.unwrap()).collect()
}

#[test]
fn each_attribute_can_be_asked_for() {
    let mut swarm = Swarm::with_workers(3);
    swarm.ok(add_node(4, Role::Manager));
    swarm.ok(open_session(4, 4));
    update(&mut swarm, 2, Availability::Active, &[("zone", "East")]);
    let id = node(3).to_string();
    let cases = [
        (format!("node.id=={id}"), vec![3]),
        (format!("node.id!={id}"), vec![1, 2, 4]),
        ("node.hostname==HOST1".into(), vec![1]),
        ("node.role==manager".into(), vec![4]),
        ("node.role!=manager".into(), vec![1, 2, 3]),
        ("node.platform.os==linux".into(), vec![1, 2, 3, 4]),
        ("node.platform.arch==amd64".into(), vec![1, 2, 3, 4]),
        ("node.platform.arch!=x86_64".into(), vec![]),
        ("node.labels.zone==east".into(), vec![2]),
        ("node.labels.zone!=east".into(), vec![1, 3, 4]),
        ("node.labels.colour==red".into(), vec![]),
    ];
    for (number, (constraint, expected)) in (1..).zip(cases) {
        swarm.ok(place_service(number, &[], ServiceMode::Global, |spec| constrained(spec, &constraint)));
        swarm.schedule();
        let expected: BTreeSet<NodeId> = expected.into_iter().map(node).collect();
        assert_eq!(global_nodes(&swarm, number), expected, "{constraint}");
        assert_eq!(schedule::wanted(&swarm.state, &swarm.state.services[&service(number)]), expected.len() as u64);
    }
    swarm.ok(place_service(99, &[], replicas(1), |spec| constrained(spec, "node.labels.colour==red")));
    swarm.schedule();
    assert_eq!(error(&swarm, 99), "no suitable node (scheduling constraints not satisfied on 4 nodes)");
}

#[test]
fn a_task_moves_when_its_node_no_longer_meets_the_constraints() {
    let mut swarm = Swarm::with_workers(2);
    update(&mut swarm, 1, Availability::Active, &[("zone", "a")]);
    swarm.ok(place_service(1, &[], replicas(1), |spec| constrained(spec, "node.labels.zone==a")));
    swarm.schedule();
    let old = swarm.live(service(1))[&1];
    update(&mut swarm, 2, Availability::Active, &[("zone", "a")]);
    assert_eq!(swarm.schedule(), 0, "another node that suits is no reason to move");
    update(&mut swarm, 1, Availability::Active, &[]);
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1), [Some(node(2))]);
    assert_eq!(swarm.task(old).desired, TaskState::Shutdown);
}

#[test]
fn reservations_are_kept_until_a_task_has_ended() {
    let mut swarm = Swarm::with_workers(2);
    let three_quarters = Resources { nano_cpus: 3_000_000_000, memory_bytes: 1 << 20 };
    swarm.ok(place_service(1, &[], replicas(3), |spec| spec.reservations = three_quarters));
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1), [Some(node(1)), Some(node(2)), None]);
    let waiting = swarm.live(service(1))[&3];
    assert_eq!(swarm.task(waiting).status.error, "no suitable node (insufficient resources on 2 nodes)");
    let text = swarm.refused(Command::PlaceTask { id: waiting, node: node(1) });
    assert_eq!(text, "no suitable node (insufficient resources on 1 node)");
    update(&mut swarm, 2, Availability::Drain, &[]);
    swarm.schedule();
    update(&mut swarm, 2, Availability::Active, &[]);
    assert_eq!(swarm.schedule(), 2, "only the reason changes: the drained task has not ended");
    let drained = swarm.state.tasks.values().find(|task| task.node == Some(node(2))).unwrap().id;
    swarm.report(drained, TaskState::Shutdown);
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1).iter().flatten().count(), 2);
    // Less is enough for what reserves less.
    swarm.ok(place_service(2, &[], replicas(2), |spec| spec.reservations.nano_cpus = 1_000_000_000));
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 2), [Some(node(1)), Some(node(2))]);
}

#[test]
fn a_node_that_became_smaller_loses_its_newest_reservations() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(place_service(1, &[], replicas(1), |spec| spec.reservations.memory_bytes = 512 << 20));
    swarm.ok(place_service(2, &[], replicas(1), |spec| spec.reservations.memory_bytes = 512 << 20));
    swarm.schedule();
    assert_eq!((nodes_of(&swarm, 1), nodes_of(&swarm, 2)), (vec![Some(node(1))], vec![Some(node(1))]));
    let mut smaller = open_session(1, 1);
    if let Command::OpenSession { machine, .. } = &mut smaller {
        machine.resources.memory_bytes = 600 << 20;
    }
    swarm.ok(smaller);
    swarm.schedule();
    assert_eq!((nodes_of(&swarm, 1), nodes_of(&swarm, 2)), (vec![Some(node(1))], vec![None]));
    assert_eq!(error(&swarm, 2), "no suitable node (insufficient resources on 1 node)");
}

#[test]
fn a_node_has_no_more_tasks_of_a_service_than_it_may() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(place_service(1, &[], replicas(3), |spec| spec.placement.max_per_node = 1));
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1), [Some(node(1)), Some(node(2)), None]);
    let waiting = swarm.live(service(1))[&3];
    assert_eq!(swarm.task(waiting).status.error, "no suitable node (max replicas per node limit exceed)");
    swarm.refused(Command::PlaceTask { id: waiting, node: node(1) });
    swarm.ok(add_node(3, Role::Worker));
    swarm.ok(open_session(3, 3));
    swarm.schedule();
    assert_eq!(nodes_of(&swarm, 1), [Some(node(1)), Some(node(2)), Some(node(3))]);
}

#[test]
fn tasks_spread_over_the_values_of_labels_first() {
    let mut swarm = Swarm::with_workers(5);
    for (number, zone, rack) in [(1, "a", "1"), (2, "a", "1"), (3, "a", "2"), (4, "b", "1")] {
        update(&mut swarm, number, Availability::Active, &[("zone", zone), ("rack", rack)]);
    }
    let spread = |spec: &mut ServiceSpec| spec.placement.spread = vec!["zone".into(), "rack".into()];
    swarm.ok(place_service(1, &[], replicas(6), spread));
    swarm.schedule();
    let count = |numbers: &[u64]| {
        let nodes: Vec<NodeId> = numbers.iter().copied().map(node).collect();
        nodes_of(&swarm, 1).into_iter().flatten().filter(|found| nodes.contains(found)).count()
    };
    assert_eq!((count(&[1, 2, 3]), count(&[4]), count(&[5])), (2, 2, 2), "a node without the label is a group too");
    assert_eq!((count(&[1, 2]), count(&[3])), (1, 1), "and in each zone over the racks");
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(create_network(1, None));
    swarm.ok(place_service(1, &[1], ServiceMode::Global, |_| {}));
    swarm.schedule();
    let on = |numbers: &[u64]| numbers.iter().copied().map(node).collect::<BTreeSet<_>>();
    assert_eq!(global_nodes(&swarm, 1), on(&[1, 2]));
    swarm.ok(add_node(3, Role::Worker));
    assert_eq!(swarm.schedule(), 0, "it has no session yet");
    swarm.ok(open_session(3, 3));
    swarm.schedule();
    assert_eq!(global_nodes(&swarm, 1), on(&[1, 2, 3]));
    update(&mut swarm, 1, Availability::Pause, &[]);
    assert_eq!(swarm.schedule(), 0, "a pause moves nothing");
    update(&mut swarm, 1, Availability::Drain, &[]);
    swarm.ok(set_state(2, NodeState::Down));
    swarm.schedule();
    assert_eq!(global_nodes(&swarm, 1), on(&[3]), "and no other node takes their places");
    assert_eq!(swarm.state.networks[&network(1)].addresses.len(), 3, "until their nodes confirm");
    swarm.ok(open_session(2, 2));
    swarm.schedule();
    assert_eq!(global_nodes(&swarm, 1), on(&[2, 3]));
    let id = swarm.draw_task();
    let create = |id, slot, bound_to| Command::CreateTask { id, service: service(1), slot, bound_to };
    assert!(swarm.refused(create(id, 0, Some(node(2)))).contains("live task svc1."));
    assert_eq!(swarm.refused(create(id, 1, None)), "service svc1 has no slot 1");
    assert!(swarm.refused(create(id, 0, Some(node(9)))).contains("not found"));
    swarm.ok(Command::RemoveNode { node: node(3), force: true, master: key(9) });
    swarm.schedule();
    assert_eq!(global_nodes(&swarm, 1), on(&[2]));
}

#[test]
fn a_global_task_waits_for_room_on_its_own_node() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(place_service(1, &[], replicas(1), |spec| spec.reservations.memory_bytes = 1 << 30));
    swarm.schedule();
    swarm.ok(place_service(2, &[], ServiceMode::Global, |spec| spec.reservations.memory_bytes = 1 << 20));
    swarm.schedule();
    let waiting = swarm.state.tasks.values().find(|task| task.bound_to == Some(node(1))).unwrap();
    assert_eq!(waiting.status.error, "no suitable node (insufficient resources on 1 node)");
    let id = waiting.id;
    let text = swarm.refused(Command::PlaceTask { id, node: node(2) });
    assert_eq!(text, format!("task {id} is for another node than {}", node(2)));
    update(&mut swarm, 1, Availability::Drain, &[]);
    swarm.schedule();
    assert!(!swarm.state.tasks.values().any(|task| task.bound_to == Some(node(1)) && task.is_live()));
}

#[test]
fn the_history_follows_the_limit_and_never_makes_a_hot_loop() {
    let mut swarm = Swarm::with_workers(1);
    let spec = ClusterSpec { task_history: 0, ..ClusterSpec::default() };
    let version = swarm.state.cluster.version;
    swarm.ok(Command::UpdateCluster { version, spec, tokens: NewTokens::default(), root: None });
    swarm.ok(create_service(1, &[], 1));
    for _ in 0..3 {
        swarm.schedule();
        let task = swarm.live(service(1))[&1];
        swarm.report(task, TaskState::Rejected);
        swarm.confirm(task);
        assert_eq!(swarm.schedule(), 0, "the last one is kept: it says when the next is due");
        swarm.pass(5);
        swarm.schedule();
        assert_eq!(swarm.state.tasks.len(), 1, "then it is forgotten");
    }
}
