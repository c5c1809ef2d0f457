//! Hosts that go down and come back, all at once too, and a node that leaves and joins again: nodes, networks and
//! services are back without a hand.

use netns_tests::swarm::{SETTLE, is_alive};
use netns_tests::wait::so;
use netns_tests::{Swarm, Task, wait_until};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// From the first daemon's start until every task reaches every other, on a machine that does much beside. Most of it
/// are the heartbeats, here of 1 s, after which a silent node counts as down, and the delay of 5 s before tasks are
/// placed again.
const BACK: Duration = Duration::from_secs(60);

const TASKS: usize = 6;

/// Cuts the power of hosts and gives it back; the tasks then.
fn reboot(swarm: &Swarm, hosts: &[usize], before: &[Task]) -> Vec<Task> {
    for host in hosts {
        swarm.host(*host).kill_daemon();
    }
    for task in before.iter().filter(|task| hosts.contains(&task.host)) {
        wait_until("its tasks died with it", SETTLE, || so(!is_alive(task.pid), || format!("{task:?}")));
    }
    let start = Instant::now();
    for host in hosts {
        swarm.host(*host).start_daemon(&[]);
    }
    swarm.wait_ready(swarm.net.hosts.len());
    let tasks = wait_until("new tasks in place of the dead ones", BACK, || {
        let tasks: Vec<Task> = swarm.tasks("web").into_iter().filter(Task::is_running).collect();
        let died = |task: &&Task| before.iter().any(|old| old.id == task.id && hosts.contains(&old.host));
        let fresh = tasks.len() == TASKS && !tasks.iter().any(|task| died(&task) || !is_alive(task.pid));
        so(fresh, || format!("{tasks:?}")).map(|()| tasks)
    });
    swarm.wait_all_ping(&tasks, 1);
    let took = start.elapsed();
    eprintln!(
        "{} of 3 hosts restarted: everything reaches everything again after {:.1} s",
        hosts.len(),
        took.as_secs_f64()
    );
    assert!(took < BACK, "{took:?}");
    tasks
}

fn addresses(tasks: &[Task]) -> BTreeSet<std::net::IpAddr> {
    tasks.iter().map(Task::address).collect()
}

#[test]
fn a_host_and_then_all_hosts_restart() {
    let swarm = Swarm::start(3);
    let network = swarm.create_network("net", &["--opt", "encrypted"]);
    let first = swarm.create_service("web", &["net"], TASKS);
    swarm.wait_all_ping(&first, 1);
    let nodes = |swarm: &Swarm| (0..3).map(|index| swarm.node_id(index)).collect::<Vec<_>>();
    let before = nodes(&swarm);
    let second = reboot(&swarm, &[2], &first);
    let third = reboot(&swarm, &[0, 1, 2], &second);
    assert_eq!(nodes(&swarm), before, "the same nodes");
    assert_eq!(addresses(&third).len(), TASKS);
    assert!(swarm.manager().formic(&["network", "ls"]).ok().contains(&network[..12]));
}

#[test]
fn a_node_that_leaves_and_joins_again_takes_tasks_again() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let manager = swarm.manager();
    let create = ["service", "create", "-d", "--name", "web", "--mode", "global", "--network", "net", "host"];
    manager.formic(&[&create, netns_tests::swarm::IDLE].concat()).ok();
    let before = swarm.wait_tasks("web", 3);
    let old = swarm.node_id(2);
    swarm.host(2).formic(&["swarm", "leave"]).ok();
    swarm.wait_node(2, "down");
    let left = before.iter().find(|task| task.host == 2).expect("one on each");
    wait_until("its task ended", SETTLE, || so(!is_alive(left.pid), || format!("{left:?}")));
    manager.formic(&["node", "rm", &old]).ok();
    let two = swarm.wait_tasks("web", 2);
    swarm.wait_all_ping(&two, 1);
    swarm.join(2);
    let after = swarm.wait_tasks("web", 3);
    assert_ne!(swarm.node_id(2), old, "another node of the same name");
    swarm.wait_all_ping(&after, 1);
}
