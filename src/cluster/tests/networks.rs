use super::*;

fn subnet_of(swarm: &Swarm, number: u64) -> String {
    swarm.state.networks[&network(number)].subnet.to_string()
}

fn address_of(swarm: &Swarm, task: TaskId) -> String {
    swarm.task(task).attachments[0].address.to_string()
}

#[test]
fn the_pool_starts_after_the_subnet_of_ingress_and_skips_what_is_taken() {
    let mut swarm = Swarm::new();
    swarm.ok(create_network(1, None));
    assert_eq!(subnet_of(&swarm, 1), "10.0.1.0/24");
    assert_eq!(swarm.state.networks[&network(1)].gateway, IpAddr::from([10, 0, 1, 1]));
    swarm.ok(create_network(2, Some("10.0.2.128/25")));
    swarm.ok(create_network(3, Some("10.0.4.0/22")));
    swarm.ok(create_network(4, Some("192.168.7.0/24")));
    swarm.ok(create_network(5, None));
    swarm.ok(create_network(6, None));
    assert_eq!(subnet_of(&swarm, 5), "10.0.3.0/24");
    assert_eq!(subnet_of(&swarm, 6), "10.0.8.0/24");
    swarm.ok(Command::RemoveNetwork { id: network(1) });
    swarm.ok(create_network(7, None));
    assert_eq!(subnet_of(&swarm, 7), "10.0.1.0/24");
}

#[test]
fn a_used_up_pool_is_a_refusal_that_names_it() {
    let mut swarm = Swarm::new();
    let spec = ClusterSpec { address_pool: "10.9.0.0/22".parse().unwrap(), ..ClusterSpec::default() };
    swarm.ok(Command::UpdateCluster { version: 1, spec, tokens: NewTokens::default(), root: None });
    for number in 1..=3 {
        swarm.ok(create_network(number, None));
    }
    assert_eq!(subnet_of(&swarm, 3), "10.9.3.0/24");
    let text = swarm.refused(create_network(4, None));
    assert_eq!(text, "no free /24 left in the address pool 10.9.0.0/22: remove a network or give a subnet");
}

#[test]
fn subnets_that_cannot_be_are_refused_with_the_reason() {
    let mut swarm = Swarm::new();
    swarm.ok(create_network(1, Some("10.5.0.0/16")));
    for (subnet, text) in [
        ("10.5.7.0/24", "subnet 10.5.7.0/24 overlaps with 10.5.0.0/16 of network net1"),
        ("10.4.0.0/15", "subnet 10.4.0.0/15 overlaps with 10.5.0.0/16 of network net1"),
        ("10.5.0.0/16", "subnet 10.5.0.0/16 overlaps with 10.5.0.0/16 of network net1"),
        ("10.6.1.7/24", "subnet 10.6.1.7/24 has host bits set: did you mean 10.6.1.0/24?"),
        ("10.6.1.0/31", "subnet 10.6.1.0/31 is too small: it needs room for a gateway and a task (/30 or wider)"),
        ("10.6.1.1/32", "subnet 10.6.1.1/32 is too small: it needs room for a gateway and a task (/30 or wider)"),
        ("fd00::/64", "subnet fd00::/64: IPv6 networks are not supported yet"),
        ("127.1.0.0/16", "subnet 127.1.0.0/16 holds loopback addresses"),
        ("224.1.0.0/16", "subnet 224.1.0.0/16 holds multicast addresses"),
        ("169.254.0.0/24", "subnet 169.254.0.0/24 holds link-local addresses"),
        ("255.255.255.0/24", "subnet 255.255.255.0/24 holds reserved addresses"),
        ("0.0.0.0/8", "subnet 0.0.0.0/8 holds \"this network\" addresses"),
        ("0.0.0.0/0", "subnet 0.0.0.0/0 is too large: /8 is the widest"),
    ] {
        assert_eq!(swarm.refused(create_network(2, Some(subnet))), text);
    }
}

#[test]
fn the_gateway_is_a_host_address_of_the_subnet() {
    let mut swarm = Swarm::with_workers(1);
    let with_gateway = |gateway: [u8; 4]| Command::CreateNetwork {
        id: network(1),
        spec: NetworkSpec { gateway: Some(IpAddr::from(gateway)), ..network_spec("net1", Some("10.7.0.0/30")) },
    };
    for gateway in [[10, 7, 0, 0], [10, 7, 0, 3], [10, 7, 1, 1]] {
        assert!(swarm.refused(with_gateway(gateway)).contains("is not a host address of subnet 10.7.0.0/30"));
    }
    swarm.ok(with_gateway([10, 7, 0, 2]));
    swarm.ok(create_service(1, &[1], 1));
    swarm.schedule();
    assert_eq!(address_of(&swarm, swarm.live(service(1))[&1]), "10.7.0.1/30");
}

#[test]
fn names_follow_dockers_rules() {
    let mut swarm = Swarm::new();
    swarm.ok(create_network(1, None));
    assert_eq!(swarm.refused(create_network(1, None)), "network with name net1 already exists");
    let mut create =
        |name: &str| swarm.refused(Command::CreateNetwork { id: network(9), spec: network_spec(name, None) });
    assert_eq!(create(""), "network name must be provided");
    for name in ["-a", ".a", "a b", "a/b", "ü", "a\n"] {
        assert!(create(name).contains("only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed"), "{name}");
    }
    assert_eq!(create(&"a".repeat(64)), "network name must be 63 characters or fewer");
    for name in ["bridge", "host", "none", "ingress", "docker_gwbridge"] {
        assert_eq!(create(name), format!("operation is not permitted on predefined {name} network"));
    }
    swarm.ok(Command::CreateNetwork { id: network(9), spec: network_spec("a_b.c-D9", None) });
}

#[test]
fn a_network_in_use_stays_until_the_last_task_is_confirmed_gone() {
    let mut swarm = Swarm::with_workers(1);
    assert_eq!(swarm.refused(Command::RemoveNetwork { id: network(1) }), format!("network {} not found", network(1)));
    swarm.ok(create_network(1, None));
    swarm.ok(create_service(1, &[1], 1));
    let remove = || Command::RemoveNetwork { id: network(1) };
    assert_eq!(swarm.refused(remove()), "network net1 is in use by service svc1");
    swarm.schedule();
    let task = swarm.live(service(1))[&1];
    swarm.ok(Command::RemoveService { id: service(1) });
    assert_eq!(swarm.refused(remove()), format!("network net1 is in use by task {task}"));
    swarm.report(task, TaskState::Shutdown);
    assert_eq!(swarm.refused(remove()), format!("network net1 is in use by task {task}"));
    swarm.confirm(task);
    assert!(swarm.state.services.is_empty() && swarm.state.tasks.is_empty());
    swarm.ok(remove());
    assert!(swarm.state.networks.is_empty());
}

#[test]
fn a_full_subnet_leaves_the_task_pending_until_an_address_is_confirmed_free() {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(create_network(1, Some("10.8.0.0/29")));
    swarm.ok(create_network(2, None));
    swarm.ok(create_service(1, &[2, 1], 6));
    swarm.schedule();
    let live = swarm.live(service(1));
    let waiting = live[&6];
    assert_eq!(swarm.task(waiting).status.state, TaskState::Pending);
    assert_eq!(swarm.task(waiting).status.error, "network net1 is full: all 5 addresses of 10.8.0.0/29 are taken");
    let text = swarm.refused(Command::PlaceTask { id: waiting, node: node(1) });
    assert_eq!(text, "network net1 is full: all 5 addresses of 10.8.0.0/29 are taken");
    assert_eq!(swarm.state.networks[&network(2)].addresses.len(), 5, "all addresses or none");
    // Its slot is filled by a replacement that has to wait too, while the failed task keeps its address.
    let freed = swarm.task(live[&2]).attachments[1].address;
    swarm.report(live[&2], TaskState::Failed);
    swarm.pass(5);
    swarm.schedule();
    assert_eq!(swarm.task(swarm.live(service(1))[&2]).node, None);
    swarm.confirm(live[&2]);
    swarm.schedule();
    let placed = swarm.live(service(1))[&2];
    assert_eq!(swarm.task(placed).attachments[1].address, freed);
}

#[test]
fn a_freed_address_is_given_again_last() {
    let mut swarm = Swarm::with_workers(1);
    swarm.ok(create_network(1, Some("10.8.0.0/29")));
    swarm.ok(create_service(1, &[1], 1));
    let mut given = Vec::new();
    for _ in 0..7 {
        swarm.schedule();
        let task = swarm.live(service(1))[&1];
        given.push(address_of(&swarm, task));
        swarm.report(task, TaskState::Failed);
        swarm.confirm(task);
        swarm.pass(5);
    }
    let numbers = [2, 3, 4, 5, 6, 2, 3];
    assert_eq!(given, numbers.map(|number| format!("10.8.0.{number}/29")));
}
