//! Several managers: most of them die, one goes on alone; roles change. The data plane takes no notice. What else befalls
//! them is in `managers_faults`.

use netns_tests::swarm::{SETTLE, list};
use netns_tests::traffic::Flow;
use netns_tests::wait::so;
use netns_tests::{Swarm, wait_until};

const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. \
                         Make sure more than half of the managers are online.";

/// A swarm of managers that take no tasks, with a task on each worker; the tasks reach each other.
fn with_tasks(managers: u8) -> (Swarm, Vec<netns_tests::Task>) {
    let swarm = Swarm::start_managers(managers, 2);
    for index in 0..usize::from(managers) {
        let name = swarm.host(index).name();
        swarm.manager().formic(&["node", "update", "--availability", "drain", &name]).ok();
    }
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 2);
    (swarm, tasks)
}

#[test]
fn without_a_majority_traffic_goes_on_and_one_can_go_on_alone() {
    let (swarm, tasks) = with_tasks(3);
    let flow = Flow::start(&tasks[0], &tasks[1]);
    swarm.host(1).kill_daemon();
    swarm.host(2).kill_daemon();
    wait_until("the text", SETTLE, || {
        let refused = swarm.host(0).formic(&["network", "create", "--driver", "overlay", "never"]);
        so(refused.code == 1 && refused.stderr.contains(NO_LEADER), || refused.describe())
    });
    let (sent, lost) = flow.stop();
    assert!(sent > 100 && lost == 0, "{lost} of {sent} pings are lost");
    swarm.host(0).formic(&["swarm", "init", "--force-new-cluster"]).ok();
    swarm.host(0).formic(&["network", "create", "--driver", "overlay", "after"]).ok();
    let names = swarm.host(0).formic(&["network", "ls"]).ok();
    assert!(names.contains("net") && names.contains("after") && !names.contains("never"), "{names}");
    // The nodes begin a new boot under the new life, and their tasks are placed anew.
    let before: Vec<String> = tasks.into_iter().map(|task| task.id).collect();
    wait_until("fresh tasks", SETTLE, || {
        let wanted = swarm.tasks("web").into_iter().filter(|task| task.desired == "running");
        so(wanted.filter(|task| !before.contains(&task.id)).count() == 2, || format!("{before:?}"))
    });
    let tasks = swarm.wait_tasks("web", 2);
    swarm.wait_all_ping(&tasks, 2);
    // The others come back as workers.
    swarm.host(1).start_daemon(&[]);
    swarm.host(2).start_daemon(&[]);
    wait_until("they are workers", SETTLE, || {
        let nodes = list(swarm.host(0).try_get("/nodes")?);
        let ready = nodes.iter().filter(|node| node["Status"]["State"] == "ready").count();
        let managers = nodes.iter().filter(|node| node["Spec"]["Role"] == "manager").count();
        so((ready, managers) == (5, 1), || format!("{nodes:?}"))
    });
}

#[test]
fn workers_become_managers_and_managers_workers() {
    let swarm = Swarm::start(3);
    let (first, second) = (swarm.host(0), swarm.host(1));
    let promoted = first.formic(&["node", "promote", &second.name(), &swarm.host(2).name()]).ok();
    assert!(promoted.contains("promoted to a manager in the swarm."), "{promoted}");
    for index in [1, 2] {
        wait_until("it is a manager", SETTLE, || {
            let listed = swarm.host(index).formic(&["node", "ls"]);
            let ok =
                listed.code == 0 && listed.stdout.contains("Leader") && listed.stdout.matches("Reachable").count() == 2;
            so(ok, || listed.describe())
        });
    }
    second.formic(&["network", "create", "--driver", "overlay", "by-the-second"]).ok();
    assert!(first.formic(&["network", "ls"]).ok().contains("by-the-second"));
    first.formic(&["node", "rm", "--force", &second.name()]).refused("must be demoted to worker before removal");
    // The leader itself goes; the others go on without it.
    second.formic(&["node", "demote", &first.name()]).ok();
    wait_until("it is a worker", SETTLE, || {
        let refused = first.formic(&["node", "ls"]);
        so(refused.code == 1 && refused.stderr.contains("Worker nodes can't be used"), || refused.describe())
    });
    wait_until("the others go on", SETTLE, || {
        let created = second.formic(&["network", "create", "--driver", "overlay", "without-the-first"]);
        so(created.code == 0, || created.describe())
    });
    assert!(!first.state_dir().join("manager").exists(), "nothing of the managers' state is left");
}
