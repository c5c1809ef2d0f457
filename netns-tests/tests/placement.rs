//! Which nodes tasks go to, and when they leave.

use netns_tests::swarm::{IDLE, SETTLE, text};
use netns_tests::wait::so;
use netns_tests::{Swarm, wait_until};

fn create(swarm: &Swarm, name: &str, options: &[&str]) {
    let head = ["service", "create", "--detach", "--name", name, "--network", "net"];
    swarm.manager().docker(&[&head, options, &["host"], IDLE].concat()).ok();
}

/// The hosts of the running tasks, sorted.
fn hosts(swarm: &Swarm, service: &str, count: usize) -> Vec<usize> {
    let mut hosts: Vec<usize> = swarm.wait_tasks(service, count).iter().map(|task| task.host).collect();
    hosts.sort_unstable();
    hosts
}

#[test]
fn tasks_go_where_they_suit_and_leave_when_told() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let manager = swarm.manager();
    manager.docker(&["node", "update", "--label-add", "zone=b", "ant-3"]).ok();
    let resources = swarm.node(1)["Description"]["Resources"].clone();
    assert!(
        resources["MemoryBytes"].as_u64() > Some(1 << 20) && resources["NanoCPUs"].as_u64() > Some(0),
        "{resources}"
    );

    create(&swarm, "everywhere", &["--mode", "global"]);
    create(&swarm, "zoned", &["--constraint", "node.labels.zone==b", "--replicas", "2"]);
    create(&swarm, "workers", &["--mode", "global", "--constraint", "node.role!=manager"]);
    create(&swarm, "single", &["--replicas", "3", "--replicas-max-per-node", "1", "--reserve-memory", "4m"]);
    assert_eq!(hosts(&swarm, "everywhere", 3), [0, 1, 2]);
    assert_eq!(hosts(&swarm, "zoned", 2), [2, 2]);
    assert_eq!(hosts(&swarm, "workers", 2), [1, 2]);
    assert_eq!(hosts(&swarm, "single", 3), [0, 1, 2]);
    let tasks = [swarm.wait_tasks("everywhere", 3), swarm.wait_tasks("zoned", 2)].concat();
    swarm.wait_all_ping(&tasks, 1);

    create(&swarm, "huge", &["--reserve-memory", "1000t"]);
    let waits = wait_until("the reason", SETTLE, || {
        let tasks = swarm.tasks("huge");
        let found = tasks.iter().find(|task| task.state == "pending").map(|task| task.error.clone());
        found.ok_or_else(|| format!("{tasks:?}"))
    });
    assert_eq!(waits, "no suitable node (insufficient resources on 3 nodes)");
    manager.docker(&["service", "rm", "huge"]).ok();

    manager.docker(&["node", "update", "--availability", "pause", "ant-2"]).ok();
    create(&swarm, "later", &["--replicas", "4"]);
    assert!(!hosts(&swarm, "later", 4).contains(&1), "a paused node takes nothing new");
    assert_eq!(hosts(&swarm, "everywhere", 3), [0, 1, 2], "and keeps what it has");

    manager.docker(&["node", "update", "--availability", "drain", "ant-3"]).ok();
    wait_until("ant-3 is empty", SETTLE, || {
        let ps = manager.docker(&["node", "ps", "--filter", "desired-state=running", "-q", "ant-3"]).ok();
        so(ps.is_empty(), || ps.clone())
    });
    assert_eq!(hosts(&swarm, "everywhere", 2), [0, 1]);
    assert!(hosts(&swarm, "later", 4).iter().all(|host| *host == 0), "ant-2 is still paused");
    assert!(swarm.tasks("zoned").iter().any(|task| task.error.contains("not available for new tasks")));

    manager.docker(&["node", "update", "--availability", "active", "ant-3"]).ok();
    assert_eq!(hosts(&swarm, "everywhere", 3), [0, 1, 2]);
    assert_eq!(hosts(&swarm, "zoned", 2), [2, 2]);
    assert_eq!(text(&swarm.node(2)["Spec"]["Availability"]), "active");
}
