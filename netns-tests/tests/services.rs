//! Services that change while they run: scaled, updated, rolled back, restarted by their policy.

use netns_tests::swarm::{IDLE, SETTLE, text};
use netns_tests::wait::so;
use netns_tests::{Swarm, Task, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;

fn service(swarm: &Swarm, host: usize, name: &str) -> Result<Value, String> {
    swarm.host(host).try_get(&format!("/services/{name}"))
}

fn wait_update(swarm: &Swarm, host: usize, name: &str, state: &str) {
    wait_until(&format!("{name} is {state}"), SETTLE, || {
        let found = service(swarm, host, name)?;
        so(found["UpdateStatus"]["State"] == state, || format!("{:?} {:?}", found["UpdateStatus"], swarm.tasks(name)))
    });
}

/// The tasks' variable `V`.
fn variables(swarm: &Swarm, tasks: &[Task]) -> Vec<String> {
    tasks.iter().map(|task| swarm.exec(task, &["sh", "-c", "echo $V"]).ok()).collect()
}

fn ids(tasks: &[Task]) -> BTreeSet<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}

#[test]
fn a_service_is_updated_and_rolled_back_with_the_real_client() {
    let swarm = Swarm::start(2);
    swarm.create_network("net", &["--opt", "encrypted"]);
    swarm.create_network("other", &[]);
    let docker = |words: &[&str]| swarm.manager().docker(words);
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "3", "--network", "net", "-e", "V=1"];
    docker(&[&create, &["--update-monitor", "1s", "--rollback-monitor", "1s", "host"][..], IDLE].concat()).ok();
    let first = swarm.wait_tasks("web", 3);
    assert_eq!(variables(&swarm, &first), ["1"; 3]);

    // Without -d: the client follows it.
    let update =
        ["service", "update", "--env-add", "V=2", "--network-add", "other", "--update-parallelism", "2", "web"];
    docker(&update).ok();
    let second = swarm.wait_tasks("web", 3);
    assert!(ids(&first).is_disjoint(&ids(&second)));
    assert_eq!(variables(&swarm, &second), ["2"; 3]);
    assert!(second.iter().all(|task| task.addresses.len() == 2), "{second:?}");
    swarm.wait_all_ping(&second, 1);
    wait_update(&swarm, 0, "web", "completed");

    docker(&["service", "scale", "-d", "web=4"]).ok();
    let four = swarm.wait_tasks("web", 4);
    assert!(ids(&second).is_subset(&ids(&four)), "scaling replaces nothing");
    docker(&["service", "scale", "-d", "web=2"]).ok();
    let two = swarm.wait_tasks("web", 2);

    // An image that no node has: one task is tried, the other is left alone, and all goes back.
    docker(&[
        "service",
        "update",
        "-d",
        "--image",
        "nowhere",
        "--update-parallelism",
        "1",
        "--update-failure-action",
        "rollback",
        "web",
    ])
    .ok();
    wait_update(&swarm, 0, "web", "rollback_completed");
    let after = swarm.wait_tasks("web", 2);
    assert_eq!(ids(&two).intersection(&ids(&after)).count(), 1, "{two:?} {after:?}");
    assert_eq!(variables(&swarm, &after), ["2"; 2]);

    docker(&["service", "update", "-d", "--env-add", "V=3", "web"]).ok();
    wait_update(&swarm, 0, "web", "completed");
    docker(&["service", "rollback", "web"]).ok();
    wait_update(&swarm, 0, "web", "rollback_completed");
    let last = swarm.wait_tasks("web", 2);
    assert_eq!(variables(&swarm, &last), ["2"; 2]);
    swarm.wait_all_ping(&last, 1);
}

#[test]
fn a_new_leader_goes_on_with_an_update() {
    let swarm = Swarm::start_managers(3, 1);
    let leader = swarm.leader(&[0, 1, 2]).expect("a leader");
    let other = (leader + 1) % 3;
    swarm.ask(other);
    swarm.create_network("net", &["--opt", "encrypted"]);
    // The tasks stay where no daemon dies.
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "4", "--network", "net"];
    let policy = ["--constraint", "node.role==worker", "--update-delay", "2s", "--update-monitor", "1s", "host"];
    swarm.manager().formic(&[&create, &policy[..], IDLE].concat()).ok();
    let before = swarm.wait_tasks("web", 4);
    swarm.manager().formic(&["service", "update", "-d", "--env-add", "V=2", "web"]).ok();
    let replaced =
        |tasks: &[Task]| tasks.iter().filter(|task| task.is_running() && !ids(&before).contains(&*task.id)).count();
    wait_until("one is replaced", SETTLE, || {
        let tasks = swarm.tasks("web");
        so(replaced(&tasks) > 0, || format!("{tasks:?}"))
    });
    swarm.host(leader).kill_daemon();
    assert_eq!(text(&service(&swarm, other, "web").expect("the service")["UpdateStatus"]["State"]), "updating");
    wait_update(&swarm, other, "web", "completed");
    let after = swarm.wait_tasks("web", 4);
    assert_eq!(replaced(&after), 4);
    swarm.wait_all_ping(&after, 1);
}

#[test]
fn tasks_that_end_are_replaced_as_the_policy_says() {
    let swarm = Swarm::start(1);
    let create = |name: &str, policy: &[&str], script: &str| {
        let head = ["service", "create", "-d", "--name", name];
        swarm.manager().docker(&[&head, policy, &["host", "sh", "-c", script]].concat()).ok();
    };
    let thrice = ["--restart-max-attempts", "2", "--restart-delay", "0s"];
    create("thrice", &thrice, "exit 3");
    create("once", &["--restart-condition", "none"], "exit 3");
    create("done", &["--restart-condition", "on-failure", "--restart-delay", "0s"], "exit 0");
    let ended = |name: &str, count: usize, state: &str| {
        wait_until(&format!("{name} has ended {count} times"), SETTLE, || {
            let tasks = swarm.tasks(name);
            let ended = tasks.iter().filter(|task| task.state == state).count();
            so(ended == count && tasks.len() == count, || format!("{tasks:?}"))
        });
    };
    ended("thrice", 3, "failed");
    ended("once", 1, "failed");
    ended("done", 1, "complete");
    // A change is a new beginning.
    swarm.manager().docker(&["service", "update", "-d", "--force", "once"]).ok();
    ended("once", 2, "failed");
}
