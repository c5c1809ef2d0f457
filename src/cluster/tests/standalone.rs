use super::*;

fn open_network(number: u64, subnet: &str) -> Command {
    let spec = NetworkSpec { attachable: true, ..network_spec(&format!("net{number}"), Some(subnet)) };
    Command::CreateNetwork { id: network(number), spec }
}

fn task(number: u64) -> TaskId {
    TaskId(id(300 + number))
}

fn wanted(number: u64, address: Option<&str>) -> AttachRequest {
    AttachRequest {
        name: "box".into(),
        image: "netns:box".into(),
        network: network(number),
        address: address.map(|address| address.parse().unwrap()),
        aliases: vec![],
    }
}

fn attach(number: u64, request: AttachRequest) -> Command {
    Command::Attach { node: node(1), boot: boot(1), id: task(number), request }
}

fn swarm() -> Swarm {
    let mut swarm = Swarm::with_workers(2);
    swarm.ok(open_network(1, "10.7.0.0/29"));
    swarm
}

#[test]
fn it_is_a_task_of_no_service_and_leaves_nothing() {
    let mut swarm = swarm();
    swarm.ok(attach(1, wanted(1, None)));
    swarm.ok(attach(1, wanted(1, None)));
    let assignment = swarm.state.tasks_of(node(1)).remove(0);
    assert_eq!((assignment.name().as_str(), assignment.standalone), ("box", true));
    assert_eq!(assignment.attachments[0].address.to_string(), "10.7.0.2/29");
    assert_eq!(swarm.state.members(network(1)), BTreeSet::from([node(1)]), "who gets the keys");
    assert_eq!(swarm.schedule(), 0, "nobody replaces or moves it");
    swarm.report(task(1), TaskState::Running);
    let hostname = swarm.state.nodes[&node(1)].hostname.clone();
    let text = swarm.refused(Command::RemoveNetwork { id: network(1) });
    assert_eq!(text, format!("network net1 is in use by box on node {hostname}"));
    swarm.report(task(1), TaskState::Complete);
    assert_eq!(swarm.state.members(network(1)).len(), 1, "its node may still hold the keys");
    swarm.confirm(task(1));
    assert!(swarm.state.tasks.is_empty() && swarm.state.members(network(1)).is_empty());
    assert_eq!(swarm.state.freed.len(), 1, "the others are told");
    swarm.ok(Command::RemoveNetwork { id: network(1) });
}

#[test]
fn only_an_attachable_network_takes_it() {
    let mut swarm = swarm();
    swarm.ok(create_network(2, Some("10.8.0.0/29")));
    assert_eq!(swarm.refused(attach(1, wanted(2, None))), unmanaged_text("net2"));
    assert_eq!(swarm.refused(attach(1, wanted(3, None))), format!("network {} not found", network(3)));
    let old = Command::Attach { node: node(1), boot: boot(9), id: task(1), request: wanted(1, None) };
    assert!(swarm.refused(old).contains("is not the newest"));
    swarm.ok(attach(1, wanted(1, None)));
    let foreign = Command::Attach { node: node(2), boot: boot(2), id: task(1), request: wanted(1, None) };
    assert!(swarm.refused(foreign).contains("already exists"), "nobody takes another node's over");
    for (name, aliases) in [("", vec![]), (&*"x".repeat(64), vec![]), ("a\nb", vec![]), ("a", vec![String::new()])] {
        let bad = AttachRequest { name: name.into(), aliases, ..wanted(1, None) };
        swarm.refused(attach(2, bad));
    }
}

#[test]
fn its_id_is_no_services() {
    let mut swarm = swarm();
    swarm.ok(create_service(1, &[], 1));
    swarm.schedule();
    let id = TaskId(service(1).0);
    let taken = Command::Attach { node: node(1), boot: boot(1), id, request: wanted(1, None) };
    assert_eq!(swarm.refused(taken), format!("{id} is the id of a service"));
    swarm.ok(attach(1, wanted(1, None)));
    let id = ServiceId(task(1).0);
    let create = || Command::CreateService { id, spec: service_spec("svc2", &[1], 1) };
    assert_eq!(swarm.refused(create()), format!("{id} is the id of a task"));
    swarm.confirm(task(1));
    swarm.ok(create());
}

#[test]
fn what_is_history_takes_no_room() {
    let mut swarm = swarm();
    swarm.ok(create_service(1, &[], 1));
    swarm.schedule();
    let sample = swarm.task(swarm.live(service(1))[&1]).clone();
    for number in 0..limits::TASKS {
        let id = TaskId(id(1_000_000 + number));
        swarm.state.tasks.insert(id, Task { id, gone: true, attachments: vec![], ..sample.clone() });
    }
    swarm.quick(attach(1, wanted(1, None)));
    swarm.state.tasks.values_mut().for_each(|task| task.gone = false);
    let entry = Entry { at: swarm.now, command: attach(2, wanted(1, None)) };
    assert!(swarm.state.apply(&entry).0.is_err(), "what is there does");
}

#[test]
fn an_address_can_be_asked_for() {
    let mut swarm = swarm();
    swarm.ok(attach(1, wanted(1, Some("10.7.0.5"))));
    for (address, text) in [
        ("10.7.0.5", "Address already in use: 10.7.0.5 of network net1"),
        ("10.7.0.1", "Address already in use: 10.7.0.1 of network net1"),
        ("10.7.0.0", "10.7.0.0 is not a host address of subnet 10.7.0.0/29 of network net1"),
        ("10.7.0.7", "10.7.0.7 is not a host address of subnet 10.7.0.0/29 of network net1"),
        ("10.7.1.1", "10.7.1.1 is not a host address of subnet 10.7.0.0/29 of network net1"),
        ("fd00::1", "fd00::1 is not a host address of subnet 10.7.0.0/29 of network net1"),
    ] {
        assert_eq!(swarm.refused(attach(2, wanted(1, Some(address)))), text);
    }
    for number in 2..=5 {
        swarm.ok(attach(number, wanted(1, None)));
    }
    assert!(swarm.refused(attach(6, wanted(1, None))).contains("network net1 is full"));
}

#[test]
fn a_new_boot_of_its_node_ends_it() {
    let mut swarm = swarm();
    swarm.ok(attach(1, wanted(1, Some("10.7.0.4"))));
    swarm.report(task(1), TaskState::Running);
    swarm.ok(open_session(1, 5));
    assert_eq!(swarm.task(task(1)).desired, TaskState::Shutdown);
    let again = |id| Command::Attach { node: node(1), boot: boot(5), id, request: wanted(1, Some("10.7.0.4")) };
    assert!(swarm.refused(again(task(2))).contains("already in use"), "until the node says that it is gone");
    swarm.confirm(task(1));
    swarm.ok(again(task(2)));
    swarm.ok(Command::RemoveNode { node: node(1), force: true, master: key(9) });
    assert!(swarm.state.tasks.is_empty());
}

#[test]
fn addresses_come_from_the_range_and_never_are_auxiliary_ones() {
    let mut swarm = Swarm::with_workers(1);
    let spec = NetworkSpec {
        attachable: true,
        ip_range: Some("10.9.0.8/29".parse().unwrap()),
        auxiliary: BTreeMap::from([("router".into(), "10.9.0.9".parse().unwrap())]),
        ..network_spec("net1", Some("10.9.0.0/24"))
    };
    swarm.ok(Command::CreateNetwork { id: network(1), spec });
    assert_eq!(swarm.state.networks[&network(1)].capacity(), 7);
    for (number, expected) in (1..).zip([8, 10, 11, 12, 13, 14, 15]) {
        swarm.ok(attach(number, wanted(1, None)));
        let address = swarm.task(task(number)).attachments[0].address.addr();
        assert_eq!(address, IpAddr::from([10, 9, 0, expected]));
    }
    assert!(swarm.refused(attach(8, wanted(1, None))).contains("all 7 addresses"));
    swarm.confirm(task(3));
    swarm.ok(attach(9, wanted(1, None)));
    assert_eq!(swarm.task(task(9)).attachments[0].address.addr(), IpAddr::from([10, 9, 0, 11]));
    assert!(swarm.refused(attach(10, wanted(1, Some("10.9.0.9")))).contains("already in use"));
}

#[test]
fn a_range_without_an_address_to_give_is_refused() {
    let mut swarm = Swarm::with_workers(1);
    let spec = |range: &str| NetworkSpec {
        attachable: true,
        ip_range: Some(range.parse().unwrap()),
        auxiliary: BTreeMap::from([
            ("a".into(), "10.9.0.4".parse().unwrap()),
            ("b".into(), "10.9.0.5".parse().unwrap()),
            ("c".into(), "10.9.0.5".parse().unwrap()),
        ]),
        ..network_spec("net1", Some("10.9.0.0/24"))
    };
    for range in ["10.9.0.0/32", "10.9.0.255/32", "10.9.0.1/32", "10.9.0.0/31", "10.9.0.4/31", "10.9.0.5/32"] {
        let refused = swarm.refused(Command::CreateNetwork { id: network(1), spec: spec(range) });
        assert_eq!(refused, format!("ip-range {range} holds no address of subnet 10.9.0.0/24 that can be given"));
    }
    for (number, (range, room)) in (1..).zip([("10.9.0.2/32", 1), ("10.9.0.254/31", 1), ("10.9.0.0/29", 4)]) {
        let mut spec = spec(range);
        spec.name = format!("net{number}");
        swarm.ok(Command::CreateNetwork { id: network(number), spec });
        assert_eq!(swarm.state.networks[&network(number)].capacity(), room);
        swarm.ok(attach(number, wanted(number, None)));
        swarm.confirm(task(number));
        swarm.ok(Command::RemoveNetwork { id: network(number) });
    }
}

#[test]
fn a_stored_network_with_an_empty_range_gives_nothing() {
    for range in ["10.7.0.0/32", "10.7.0.7/32"] {
        let mut swarm = swarm();
        let empty = swarm.state.networks.get_mut(&network(1)).unwrap();
        empty.spec.ip_range = Some(range.parse().unwrap());
        assert_eq!((empty.capacity(), empty.free(), empty.next_free()), (0, 0, None));
    }
}

#[test]
fn what_a_network_cannot_have_is_refused() {
    let mut swarm = Swarm::with_workers(1);
    let spec = || network_spec("net1", Some("10.9.0.0/24"));
    let auxiliary = |address: &str| BTreeMap::from([("a".into(), address.parse().unwrap())]);
    for (spec, text) in [
        (NetworkSpec { ip_range: Some("10.8.0.0/25".parse().unwrap()), ..spec() }, "is not in subnet 10.9.0.0/24"),
        (NetworkSpec { auxiliary: auxiliary("10.8.0.4"), ..spec() }, "10.8.0.4 is not a host address"),
        (NetworkSpec { auxiliary: auxiliary("10.9.0.1"), ..spec() }, "10.9.0.1 is the gateway's"),
        (NetworkSpec { mtu_bytes: Some(575), ..spec() }, "576 to 65535"),
        (NetworkSpec { mtu_bytes: Some(65_536), ..spec() }, "576 to 65535"),
    ] {
        let refused = swarm.refused(Command::CreateNetwork { id: network(1), spec });
        assert!(refused.contains(text), "{refused}");
    }
}
