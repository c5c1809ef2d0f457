//! Daemons that die, hosts that vanish, managers that are away: what goes on, what comes back, what is left.

use netns_tests::attack::Dice;
use netns_tests::swarm::text;
use netns_tests::swarm::{SETTLE, is_alive};
use netns_tests::traffic::{Flow, in_network_of, pings};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Task, Topology, api, formic, process, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

/// Processes of the binary under test that were started below this host's directory.
fn processes(host: &Host) -> Vec<u32> {
    let state = host.state_dir().to_string_lossy().into_owned();
    let pids = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        exe == formic() && String::from_utf8_lossy(&command).contains(&state) && is_alive(*pid)
    })
    .collect()
}

fn wait_nothing_left(host: &Host, tasks: &[Task], mounts: &[String]) {
    wait_until(&format!("nothing left on {}", host.name()), SETTLE, || {
        let alive: Vec<u32> = tasks.iter().map(|task| task.pid).filter(|&pid| is_alive(pid)).collect();
        so(alive.is_empty(), || format!("tasks live: {alive:?}"))?;
        so(processes(host).is_empty(), || format!("processes: {:?}", processes(host)))?;
        so(host.mounts() == mounts, || format!("mounts: {:#?}", host.mounts()))?;
        so(host.devices() == ["eth0", "lo"], || format!("devices: {:?}", host.devices()))
    });
}

#[test]
fn sigterm_leaves_nothing_and_a_start_brings_it_back() {
    let net = Topology::new(1);
    let mounts = net.host(0).mounts();
    net.host(0).start_daemon(&[]);
    let swarm = Swarm::on(net);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 1);
    let host = swarm.manager();
    assert!(!processes(host).is_empty(), "the check would find processes");
    host.stop_daemon();
    wait_nothing_left(host, &tasks, &mounts);
    assert!(!host.socket().exists(), "the socket is left");
    host.start_daemon(&[]);
    let tasks = swarm.wait_tasks("web", 2);
    swarm.wait_all_ping(&tasks, 1);
    swarm.manager().formic(&["service", "rm", "web"]).ok();
    swarm.wait_removed("web");
    let alive: Vec<&Task> = tasks.iter().filter(|task| is_alive(task.pid)).collect();
    assert!(alive.is_empty(), "{alive:?}");
    host.stop_daemon();
    wait_nothing_left(host, &[], &mounts);
}

#[test]
fn a_killed_worker_takes_its_tasks_along_and_comes_back() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 1);
    let before = swarm.host(1).status();
    for round in 0..3 {
        let here: Vec<Task> = swarm.wait_tasks("web", 3).into_iter().filter(|task| task.host == 1).collect();
        swarm.host(1).kill_daemon();
        wait_until("its tasks and its helper die with it", SETTLE, || {
            let alive = here.iter().filter(|task| is_alive(task.pid)).count();
            so(alive == 0 && processes(swarm.host(1)).is_empty(), || {
                format!("{alive} tasks, {:?}", processes(swarm.host(1)))
            })
        });
        if round == 1 {
            // Long enough away that the managers place its task elsewhere.
            swarm.wait_node(1, "down");
            let tasks = swarm.wait_tasks("web", 3);
            assert!(tasks.iter().all(|task| task.host != 1));
        }
        swarm.host(1).start_daemon(&[]);
        swarm.wait_node(1, "ready");
        let tasks = swarm.wait_tasks("web", 3);
        swarm.wait_all_ping(&tasks, 2);
    }
    let after = swarm.host(1).status();
    assert_ne!(before["boot"], after["boot"], "each start is a new boot");
    assert_eq!(before["swarm"]["node"], after["swarm"]["node"], "and the same node");
}

#[test]
fn a_killed_manager_keeps_all_that_it_confirmed() {
    let swarm = Swarm::start(2);
    let seed = 0x0f07_1c00;
    let mut dice = Dice::new(seed);
    let mut confirmed: BTreeSet<String> = BTreeSet::new();
    for round in 0..5 {
        let socket = swarm.manager().socket();
        let (answered, answers) = std::sync::mpsc::channel();
        std::thread::spawn(move || create_networks_until_it_fails(&socket, round, &answered));
        confirmed.insert(answers.recv_timeout(SETTLE).expect("a network"));
        std::thread::sleep(Duration::from_millis(dice.roll() % 300));
        swarm.manager().kill_daemon();
        confirmed.extend(answers);
        swarm.manager().start_daemon(&[]);
        swarm.wait_ready(2);
        let kept: BTreeSet<String> = netns_tests::swarm::list(swarm.manager().get("/networks"))
            .iter()
            .map(|network| netns_tests::swarm::text(&network["Id"]))
            .collect();
        let lost: Vec<&String> = confirmed.difference(&kept).collect();
        assert!(lost.is_empty(), "seed {seed:#x}, round {round}: confirmed and lost: {lost:?}");
    }
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 1);
}

/// Tells the ids of the networks whose creation was answered with 201.
fn create_networks_until_it_fails(socket: &std::path::Path, round: u32, answered: &Sender<String>) {
    for number in 0.. {
        let body = json!({"Name": format!("net-{round}-{number}"), "Driver": "overlay", "Options": {"encrypted": ""}});
        match api::request(socket, "POST", "/networks/create", Some(&body)) {
            Ok((201, answer)) => answered.send(text(&answer["Id"])).expect("the test listens"),
            _ => break,
        }
    }
}

#[test]
fn a_running_overlay_needs_no_manager() {
    let swarm = Swarm::start(3);
    let id = swarm.node_id(0);
    swarm.manager().formic(&["node", "update", "--availability", "drain", &id]).ok();
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    assert!(tasks.iter().all(|task| task.host != 0), "the manager is drained: {tasks:?}");
    swarm.wait_all_ping(&tasks, 1);
    let flow = Flow::start(&tasks[0], &tasks[1]);
    swarm.manager().kill_daemon();
    for worker in [1, 2] {
        wait_until("the workers notice", SETTLE, || {
            let peer = peer(&swarm, worker, &id).ok_or("no peer")?;
            so(peer["gossip"] == "dead", || peer.to_string())
        });
    }
    let connected = tcp_echo(&tasks[1], &tasks[0]);
    assert_eq!(connected, "hello over the overlay", "a new connection without managers");
    assert!(tasks.iter().all(|task| is_alive(task.pid)), "the tasks go on");
    let (sent, lost) = flow.stop();
    assert!(sent > 100 && lost == 0, "{lost} of {sent} lost");
    swarm.manager().start_daemon(&[]);
    swarm.wait_ready(3);
    let after = swarm.wait_tasks("web", 2);
    let ids = |tasks: &[Task]| tasks.iter().map(|task| task.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&after), ids(&tasks), "the manager's return moves nothing");
}

/// What a host's status says of a node.
fn peer(swarm: &Swarm, host: usize, node: &str) -> Option<Value> {
    let status = swarm.host(host).status();
    status["peers"].as_array()?.iter().find(|peer| peer["node"] == node).cloned()
}

/// One TCP connection that carries a line.
fn tcp_echo(from: &Task, to: &Task) -> String {
    let mut server = in_network_of(to, "busybox");
    server.args(["nc", "-l", "-p", "7000", "-w", "60", "-e", "echo", "hello over the overlay"]);
    let _server = process::Background::start(server);
    wait_until("a connection", SETTLE, || {
        let mut client = in_network_of(from, "busybox");
        client.args(["nc", "-w", "20", &to.address().to_string(), "7000"]);
        let finished = process::run(client);
        so(!finished.stdout.is_empty(), || finished.describe()).map(|()| finished.stdout.trim().to_owned())
    })
}

#[test]
fn a_silent_node_is_down_after_three_heartbeats_and_can_be_removed() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 1);
    let id = swarm.node_id(2);
    swarm.manager().formic(&["node", "rm", &id]).refused("is not down and can't be removed");
    wait_until("gossip knows it", SETTLE, || {
        let seen = peer(&swarm, 1, &id);
        so(seen.as_ref().is_some_and(|peer| peer["gossip"] == "alive"), || format!("{seen:?}"))
    });
    let start = Instant::now();
    swarm.net.connect(2, false);
    swarm.wait_node(2, "down");
    let secs = start.elapsed().as_secs_f64();
    // Three heartbeats after its last word, which may be one heartbeat older than the cut, and then some on a busy machine.
    assert!((1.5..25.0).contains(&secs), "down after {secs:.1} s, with a heartbeat of 1 s");
    wait_until("gossip sees it too", SETTLE, || {
        let seen = peer(&swarm, 1, &id);
        so(seen.as_ref().is_none_or(|peer| peer["gossip"] == "dead"), || format!("{seen:?}"))
    });
    let moved = swarm.wait_tasks("web", 3);
    assert!(moved.iter().all(|task| task.host != 2));
    // Its task may still run there: nobody gets that address before the node is removed or says that the task is gone.
    let held = tasks.iter().find(|task| task.host == 2).expect("one per host").address();
    assert!(moved.iter().all(|task| task.address() != held), "the address of an unreachable task was given away");

    swarm.manager().formic(&["node", "rm", "--force", &id]).ok();
    assert_eq!(swarm.nodes().len(), 2);
    swarm.wait_all_ping(&moved, 2);
    swarm.net.connect(2, true);
    wait_until("the removed node has left", Duration::from_secs(60), || {
        let status = swarm.host(2).try_get("/formic/status")?;
        so(status["swarm"]["state"] == "inactive", || status["swarm"].to_string())
    });
    wait_until("the tasks of the removed node end", SETTLE, || {
        let orphans: Vec<&Task> = tasks.iter().filter(|task| task.host == 2 && is_alive(task.pid)).collect();
        so(orphans.is_empty(), || format!("{orphans:?}"))
    });
    for task in &moved {
        wait_until("no SA with the removed node", SETTLE, || {
            let status = swarm.host(task.host).try_get("/formic/status")?;
            // Counters of the epoch that is being left may still be held, so that they never start again.
            let used = |sa: &&Value| sa["peer"] == id.as_str() && sa["active"] == true;
            let with_gone = status["sas"].as_array().map_or(0, |sas| sas.iter().filter(used).count());
            so(with_gone == 0, || status["sas"].to_string())
        });
    }
}

#[test]
fn an_address_is_not_reused_before_its_task_is_confirmed_gone() {
    let swarm = Swarm::start(2);
    // Five addresses for tasks: .2 to .6.
    swarm.create_network("small", &["--opt", "encrypted", "--subnet", "10.9.8.0/29"]);
    let tasks = swarm.create_service("web", &["small"], 4);
    let away: Vec<Task> = tasks.iter().filter(|task| task.host == 1).cloned().collect();
    assert_eq!(away.len(), 2);
    swarm.net.connect(1, false);
    swarm.wait_node(1, "down");
    // Two replacements are wanted, one address is free.
    let pending = wait_until("one of two replacements waits", SETTLE, || {
        let tasks = swarm.tasks("web");
        let wanted = tasks.iter().filter(|task| task.desired == "running" && task.host != 1);
        let (running, waiting): (Vec<&Task>, Vec<&Task>) = wanted.partition(|task| task.is_running());
        // It waits with its reason: until the scheduler has looked at it, it has none.
        let said = waiting.iter().all(|task| !task.error.is_empty());
        so(running.len() == 3 && waiting.len() == 1 && said, || format!("{tasks:#?}")).map(|()| waiting[0].clone())
    });
    assert!(pending.error.contains("address"), "the reason: {pending:?}");
    let held: BTreeSet<_> = away.iter().map(Task::address).collect();
    let used: BTreeSet<_> =
        swarm.tasks("web").iter().filter(|t| t.host == 0).flat_map(|t| t.addresses.clone()).collect();
    assert!(held.is_disjoint(&used), "{held:?} {used:?}");
    swarm.net.connect(1, true);
    swarm.wait_node(1, "ready");
    let tasks = swarm.wait_tasks("web", 4);
    let addresses: BTreeSet<_> = tasks.iter().map(Task::address).collect();
    assert_eq!(addresses.len(), 4);
    wait_until("the old tasks die", SETTLE, || so(!away.iter().any(|task| is_alive(task.pid)), || "alive".into()));
    swarm.wait_all_ping(&tasks, 1);
}

#[test]
fn a_task_that_dies_is_replaced() {
    let swarm = Swarm::start(2);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let before = swarm.create_service("web", &["net"], 2);
    process::run({
        let mut command = process::tied("kill");
        command.args(["-9", &before[0].pid.to_string()]);
        command
    })
    .ok();
    let after = wait_until("a replacement", SETTLE, || {
        let tasks = swarm.wait_tasks("web", 2);
        so(tasks.iter().all(|task| task.id != before[0].id), || format!("{tasks:?}")).map(|()| tasks)
    });
    swarm.wait_all_ping(&after, 2);
    assert!(after.iter().any(|task| task.id == before[1].id), "the other one stayed");
}

#[test]
fn status_names_a_one_way_firewall() {
    let swarm = Swarm::start(2);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 1);
    let (here, there) = (&tasks[0], &tasks[1]);
    swarm.host(here.host).drop_input("udp dport 4500");
    let id = swarm.node_id(there.host);
    let _flow = Flow::start(here, there);
    let shown = wait_until("the verdict", Duration::from_secs(30), || {
        let shown = peer(&swarm, here.host, &id).ok_or("no peer")?;
        so(shown["verdict"].as_str().is_some_and(|text| text.contains("one way")), || shown.to_string()).map(|()| shown)
    });
    let address = swarm.host(there.host).address().to_string();
    assert!(shown["verdict"].as_str().is_some_and(|text| text.contains(&address)), "names the peer: {shown}");
    let printed = swarm.host(here.host).formic(&["status"]).ok();
    assert!(printed.contains("one way") && printed.contains(&address), "{printed}");
    swarm.host(here.host).hear_again();
    wait_until("traffic again", SETTLE, || pings(here, there.address(), 2));
}

/// What a kill between the two halves of `init` or `leave` leaves: managers' state without a membership.
#[test]
fn an_interrupted_init_does_not_stand_in_the_way() {
    let net = Topology::new(1);
    let host = net.host(0);
    host.start_daemon(&[]);
    let init = || host.formic(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).ok();
    init();
    let node = text(&host.get("/info")["Swarm"]["NodeID"]);
    host.kill_daemon();
    std::fs::remove_file(host.state_dir().join("node/membership.json")).expect("the membership");
    host.start_daemon(&[]);
    assert_eq!(host.status()["swarm"]["state"], "inactive");
    init();
    assert_ne!(text(&host.get("/info")["Swarm"]["NodeID"]), node, "a new swarm");
}
