use super::*;

#[test]
fn what_a_service_asks_for_is_checked() {
    let mut swarm = Swarm::new();
    swarm.ok(create_network(1, None));
    swarm.ok(create_service(1, &[1], 2));
    let text = "name conflicts with an existing object: service svc1 already exists";
    assert_eq!(swarm.refused(create_service(1, &[1], 2)), text);
    assert_eq!(swarm.refused(create_service(2, &[1, 7], 2)), format!("network {} not found", network(7)));
    assert_eq!(swarm.refused(create_service(2, &[1, 1], 2)), "network net1 is given twice");
    assert_eq!(swarm.refused(create_service(2, &[], 10_001)), "10001 replicas are too many: at most 10000");
    let mut create = |change: &dyn Fn(&mut ServiceSpec)| {
        let mut spec = service_spec("svc2", &[1], 1);
        change(&mut spec);
        swarm.refused(Command::CreateService { id: service(2), spec })
    };
    assert_eq!(create(&|spec| spec.name.clear()), "service name must be provided");
    for name in ["-a", "a-", "a.b", "a b", "ü"] {
        assert!(create(&|spec| spec.name = name.into()).contains("must be valid as a DNS name component"));
    }
    assert_eq!(create(&|spec| spec.name = "a".repeat(64)), "service name must be 63 characters or fewer");
    assert_eq!(create(&|spec| spec.container.image.clear()), "image must be provided");
    assert!(create(&|spec| spec.container.args.push("a\0b".into())).contains("must not contain NUL"));
    assert!(create(&|spec| spec.container.env.push("a".repeat(40_000))).contains("32768 are allowed"));
    assert!(create(&|spec| spec.networks[0].1.push("a b".into())).contains("aliases on network net1"));
    assert!(create(&|spec| spec.api_spec = "a".repeat(300_000)).contains("longer than 262144 bytes"));
}

#[test]
fn all_wanted_tasks_together_are_bounded() {
    let mut swarm = Swarm::new();
    for number in 1..=10 {
        swarm.ok(create_service(number, &[], 10_000));
    }
    let text = "the swarm has 100000 tasks; 1 more would exceed its limit of 100000";
    assert_eq!(swarm.refused(create_service(11, &[], 1)), text);
    swarm.ok(create_service(11, &[], 0));
}

#[test]
fn a_removed_service_gives_up_its_name_and_leaves_with_its_last_task() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(create_service(1, &[], 3));
    swarm.schedule();
    let live = swarm.live(service(1));
    swarm.report(live[&1], TaskState::Failed);
    swarm.confirm(live[&1]);
    swarm.report(live[&2], TaskState::Running);
    swarm.ok(Command::RemoveService { id: service(1) });
    assert!(!swarm.state.tasks.contains_key(&live[&1]), "history goes at once");
    assert_eq!(swarm.refused(Command::RemoveService { id: service(1) }), format!("service {} not found", service(1)));
    let same_name = Command::CreateService { id: service(2), spec: service_spec("svc1", &[], 0) };
    swarm.ok(same_name);
    assert!(
        swarm.state.tasks_of(swarm.task(live[&2]).node.unwrap()).iter().all(|task| task.desired == TaskState::Remove)
    );
    swarm.confirm(live[&2]);
    assert_eq!(swarm.schedule(), 0, "nothing is replaced");
    assert!(swarm.state.services[&service(1)].removing);
    let id = swarm.draw_task();
    let text = swarm.refused(Command::CreateTask { id, service: service(1), slot: 1, bound_to: None });
    assert_eq!(text, format!("service {} not found", service(1)));
    swarm.confirm(live[&3]);
    assert!(!swarm.state.services.contains_key(&service(1)) && swarm.state.tasks.is_empty());
}

#[test]
fn a_service_without_placed_tasks_leaves_at_once() {
    let mut swarm = Swarm::new();
    swarm.ok(create_service(1, &[], 2));
    swarm.schedule();
    assert_eq!(swarm.state.tasks.len(), 2);
    swarm.ok(Command::RemoveService { id: service(1) });
    assert!(swarm.state.services.is_empty() && swarm.state.tasks.is_empty());
}

#[test]
fn a_removed_node_takes_the_last_tasks_of_a_removed_service_along() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(create_service(1, &[], 2));
    swarm.schedule();
    swarm.ok(Command::RemoveService { id: service(1) });
    swarm.ok(Command::RemoveNode { node: node(1), force: true, master: key(50) });
    assert!(swarm.state.services.is_empty() && swarm.state.tasks.is_empty());
}
