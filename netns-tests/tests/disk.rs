//! Managers whose disk is full or read-only: they say so, the others go on without them, and they come back by
//! themselves. A worker's certificate that waits for room. And a leader that is stopped, which hands over.

use netns_tests::swarm::{FAST, SETTLE, list};
use netns_tests::traffic::Flow;
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Task, Topology, wait_until};
use std::time::Instant;

const MANAGERS: [usize; 3] = [0, 1, 2];

/// Three managers without tasks, whose state is on small file systems of their own, and two workers whose tasks reach
/// each other.
fn with_small_disks() -> (Swarm, Vec<Task>) {
    let net = Topology::new(5);
    MANAGERS.iter().for_each(|index| mount_small_disk(net.host(*index)));
    let swarm = Swarm::bring_up(net, FAST, &[]);
    swarm.manager().formic(&["node", "promote", &swarm.host(1).name(), &swarm.host(2).name()]).ok();
    wait_until("three managers", SETTLE, || so(reachable(&swarm, 0) == 3, || listed(swarm.manager())));
    for index in MANAGERS {
        swarm.manager().formic(&["node", "update", "--availability", "drain", &swarm.host(index).name()]).ok();
    }
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    assert!(tasks.iter().all(|task| !MANAGERS.contains(&task.host)), "{tasks:?}");
    swarm.wait_all_ping(&tasks, 2);
    (swarm, tasks)
}

/// A host's state directory becomes a file system that a test can fill; gives its name.
fn mount_small_disk(host: &Host) {
    let state = state(host);
    host.run(&["mkdir", "-p", &state]).ok();
    host.run(&["mount", "-t", "tmpfs", "-o", "size=32m,mode=700", "disk", &state]).ok();
}

fn state(host: &Host) -> String {
    host.state_dir().to_str().expect("a name").to_owned()
}

fn fill_disk(host: &Host) {
    let filled = host.run(&["sh", "-c", &format!("cat /dev/zero > {}/filler", state(host))]);
    assert!(filled.stderr.contains("No space left"), "{}", filled.describe());
}

fn free_disk(host: &Host) {
    host.run(&["rm", &format!("{}/filler", state(host))]).ok();
}

fn reachable(swarm: &Swarm, asked: usize) -> usize {
    let nodes = swarm.host(asked).try_get("/nodes").map(list).unwrap_or_default();
    nodes.iter().filter(|node| node["ManagerStatus"]["Reachability"] == "reachable").count()
}

fn listed(host: &Host) -> String {
    host.formic(&["node", "ls"]).describe()
}

fn create(host: &Host, name: &str) -> Result<(), String> {
    let created = host.formic(&["network", "create", "--driver", "overlay", name]);
    // A leader that was lost meanwhile may have made it.
    so(created.code == 0 || created.stderr.contains("already exists"), || created.describe())
}

fn has_networks(host: &Host, wanted: &[String]) -> Result<(), String> {
    let networks = list(host.try_get("/networks")?);
    let missing = |name: &&String| networks.iter().all(|network| network["Name"] != name.as_str());
    let missing: Vec<&String> = wanted.iter().filter(missing).collect();
    so(missing.is_empty(), || format!("{missing:?} are missing"))
}

/// What `info` warns of.
fn warning(host: &Host) -> Result<String, String> {
    let info = host.try_get("/info")?;
    let text = info["Warnings"].as_array().and_then(|warnings| warnings.first()?.as_str().map(str::to_owned));
    text.ok_or_else(|| format!("no warning: {}", info["Swarm"]))
}

fn leader(swarm: &Swarm) -> usize {
    wait_until("a leader", SETTLE, || swarm.leader(&MANAGERS).ok_or_else(|| "none".to_owned()))
}

#[test]
fn a_manager_on_a_full_then_read_only_disk_comes_back_by_itself() {
    let (swarm, tasks) = with_small_disks();
    let flow = Flow::start(&tasks[0], &tasks[1]);
    let full = leader(&swarm);
    let (host, other) = (swarm.host(full), swarm.host((full + 1) % 3));
    host.expect_error("this manager cannot write its state");
    let pid = host.daemon_pid();
    fill_disk(host);

    // The command that hits it says so.
    let (mut kept, mut number) = (Vec::new(), 0);
    let refused = wait_until("a write that fails", SETTLE, || {
        number += 1;
        let name = format!("before{number}");
        match create(host, &name) {
            Ok(()) => {
                kept.push(name);
                Err("the disk still takes it".to_owned())
            }
            Err(refused) => so(refused.contains("write its state"), || refused.clone()).map(|()| refused),
        }
    });
    assert!(refused.contains("No space left on device"), "{refused}");
    host.formic(&["network", "ls"]).refused("this manager cannot write its state and takes no part in the swarm");
    assert!(warning(host).is_ok_and(|text| text.contains("No space left on device")), "{:?}", warning(host));
    let shown = host.formic(&["status"]).ok();
    assert!(shown.contains("cannot write its state"), "{shown}");

    // The others go on without it, and see that it is away.
    wait_until("another leader", SETTLE, || create(other, "meanwhile"));
    kept.push("meanwhile".to_owned());
    has_networks(other, &kept).expect("nothing that was acknowledged is lost");
    wait_until("unreachable", SETTLE, || {
        let shown = listed(other);
        so(shown.contains("Unreachable"), || shown)
    });

    // Room alone does not help while nothing can be written.
    wait_until("it is not being written just now", SETTLE, || {
        let mounted = host.run(&["mount", "-o", "remount,ro", &state(host)]);
        so(mounted.code == 0, || mounted.describe())
    });
    wait_until("the other reason", SETTLE, || {
        let text = warning(host)?;
        so(text.contains("Read-only file system"), || text)
    });
    host.run(&["mount", "-o", "remount,rw", &state(host)]).ok();
    free_disk(host);
    wait_until("it takes part again", SETTLE, || has_networks(host, &kept));
    assert!(warning(host).is_err(), "{:?}", warning(host));
    wait_until("all are reachable", SETTLE, || so(reachable(&swarm, full) == 3, || listed(host)));
    wait_until("it takes commands", SETTLE, || create(host, "after"));
    kept.push("after".to_owned());
    assert_eq!(host.daemon_pid(), pid, "it was not started anew");

    // What it has on its disk is all of it.
    host.stop_daemon();
    host.start_daemon(&[]);
    wait_until("it starts with its state", SETTLE, || has_networks(host, &kept));
    let (sent, lost) = flow.stop();
    assert!(sent > 100 && lost == 0, "{lost} of {sent} pings are lost");
}

#[test]
fn a_manager_that_starts_on_a_full_disk_waits_until_it_can_be_written() {
    let net = Topology::new(1);
    mount_small_disk(net.host(0));
    let swarm = Swarm::bring_up(net, FAST, &[]);
    let host = swarm.host(0);
    create(host, "before").expect("a network");
    host.expect_error("this manager cannot write its state");
    let says = |reason: &str| {
        wait_until("it says why", SETTLE, || {
            let text = warning(host)?;
            so(text.contains(reason), || text)
        });
    };
    host.stop_daemon();
    fill_disk(host);
    // It ends as any other, too.
    for _ in 0..2 {
        host.start_daemon(&[]);
        says("No space left on device");
        host.formic(&["node", "ls"]).refused("this manager cannot write its state");
        host.formic(&["swarm", "init"]).refused("This node is already part of a swarm.");
        host.formic(&["swarm", "leave"]).refused("this manager cannot write its state");
        host.stop_daemon();
    }
    host.start_daemon(&[]);
    let pid = host.daemon_pid();
    wait_until("it is not being written just now", SETTLE, || {
        let mounted = host.run(&["mount", "-o", "remount,ro", &state(host)]);
        so(mounted.code == 0, || mounted.describe())
    });
    says("Read-only file system");
    host.run(&["mount", "-o", "remount,rw", &state(host)]).ok();
    free_disk(host);
    wait_until("it has its state", SETTLE, || has_networks(host, &["before".to_owned()]));
    wait_until("it takes commands", SETTLE, || create(host, "after"));
    swarm.wait_ready(1);
    assert!(warning(host).is_err() && host.daemon_pid() == pid, "it was not started anew");
}

#[test]
fn a_leader_that_is_stopped_hands_over() {
    let (swarm, tasks) = with_small_disks();
    let flow = Flow::start(&tasks[0], &tasks[1]);
    let mut names = Vec::new();
    for round in 0..3 {
        let stopped = leader(&swarm);
        let other = swarm.host((stopped + 1) % 3);
        let start = Instant::now();
        swarm.host(stopped).stop_daemon();
        let stop = start.elapsed();
        names.push(format!("round{round}"));
        let ended = Instant::now();
        wait_until("a command is taken", SETTLE, || create(other, &names[round]));
        println!("stopped in {stop:?}; a command was taken {:?} after its end", ended.elapsed());
        swarm.host(stopped).start_daemon(&[]);
        wait_until("it has caught up", SETTLE, || has_networks(swarm.host(stopped), &names));
        wait_until("all are reachable", SETTLE, || so(reachable(&swarm, stopped) == 3, || listed(other)));
    }
    // On a machine that is busy enough the second may be over before another one leads; not each time.
    let late = |index: &usize| swarm.host(*index).log().matches("no other manager took over the lead").count();
    let late: usize = MANAGERS.iter().map(late).sum();
    assert!(late < 3, "none of three was followed at once");
    let (sent, lost) = flow.stop();
    assert!(sent > 100 && lost == 0, "{lost} of {sent} pings are lost");
}

#[test]
fn a_worker_on_a_full_disk_stores_its_new_certificate_when_there_is_room() {
    let net = Topology::new(2);
    mount_small_disk(net.host(1));
    let swarm = Swarm::bring_up(net, FAST, &[]);
    let worker = swarm.host(1);
    worker.expect_error("certificates cannot be stored yet");
    fill_disk(worker);
    swarm.manager().formic(&["swarm", "ca", "--rotate", "--detach"]).ok();
    wait_until("the worker uses a new certificate", SETTLE, || {
        so(worker.log().contains("this node has a new certificate"), || worker.log())
    });
    let in_progress = || swarm.manager().try_get("/swarm").map(|cluster| cluster["RootRotationInProgress"] == true);
    assert_eq!(in_progress(), Ok(true), "with the former root dropped the worker could not come back");
    let root: String = swarm.manager().formic(&["swarm", "ca"]).ok().lines().skip(1).take(3).collect();
    let stored =
        || worker.run(&["cat", &format!("{}/node/identity.pem", state(worker))]).ok().lines().collect::<String>();
    assert!(!stored().contains(&root), "there is no room for it");
    free_disk(worker);
    wait_until("it is stored", SETTLE, || so(stored().contains(&root), || "the former one".into()));
    wait_until("the former root is dropped", SETTLE, || so(!in_progress()?, || "in progress".into()));
    // With the former one it could not come back.
    worker.stop_daemon();
    worker.start_daemon(&[]);
    swarm.wait_ready(2);
}
