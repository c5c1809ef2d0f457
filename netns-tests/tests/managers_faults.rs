//! Three managers and three workers, a task on each, while keys rotate: managers die and come back, are cut off and come
//! back, all daemons are started anew. What passes between the hosts that are left loses no packet, every rotation that
//! was taken happens once, and in the end all managers show the same.

use netns_tests::managers::term;
use netns_tests::swarm::{IDLE, SETTLE, list};
use netns_tests::traffic::Traffic;
use netns_tests::wait::so;
use netns_tests::{Host, Ring, Swarm, Task, api, wait_until};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const HOSTS: [usize; 6] = [0, 1, 2, 3, 4, 5];
const MANAGERS: [usize; 3] = [0, 1, 2];
const WORKERS: [usize; 3] = [3, 4, 5];

/// From the loss of a leader to the next command that is taken. The aim is 3 s; two busy cores may be slower.
const CONTROL_GAP: Duration = Duration::from_secs(15);

const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online. \
                         Make sure more than half of the managers are online.";

fn start() -> Swarm {
    let swarm = Swarm::start_managers(3, 3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    create(&swarm, "web", &["--mode", "global", "--network", "net"]);
    swarm
}

fn create(swarm: &Swarm, name: &str, options: &[&str]) {
    let head = ["service", "create", "--detach", "--name", name];
    tell(swarm, &[&head, options, &["host"], IDLE].concat(), "name conflicts");
}

/// Tells the manager that is asked. Where the leader changes meanwhile it is told again, and says `done` if it was taken.
fn tell(swarm: &Swarm, command: &[&str], done: &str) {
    wait_until("a command is taken", SETTLE, || {
        let told = swarm.manager().formic(command);
        so(told.code == 0 || told.stderr.contains(done), || told.describe())
    });
}

/// What stays when these hosts are away.
fn without(hosts: impl IntoIterator<Item = usize>, away: &[usize]) -> Vec<usize> {
    hosts.into_iter().filter(|host| !away.contains(host)).collect()
}

fn leader(swarm: &Swarm) -> usize {
    wait_until("a leader", SETTLE, || swarm.leader(&MANAGERS).ok_or_else(|| "none".to_owned()))
}

/// Traffic between the tasks of these hosts; those of daemons that have just started may not run yet.
fn traffic(swarm: &Swarm, hosts: &[usize]) -> Traffic {
    let tasks = wait_until("tasks", SETTLE, || {
        let mut tasks = swarm.tasks("web");
        tasks.retain(|task| hosts.contains(&task.host) && task.is_running());
        so(tasks.len() >= 3, || format!("{tasks:#?}")).map(|()| tasks)
    });
    Traffic::start(&tasks)
}

/// Has the manager that is asked take a rotation; the epoch that has to be the current one when it is through.
fn rotate(swarm: &Swarm) -> u64 {
    wait_until("a rotation is taken", SETTLE, || {
        let before = Ring::of(swarm.manager())?.settled()?;
        let asked = swarm.manager().formic(&["swarm", "rotate-keys"]);
        so(asked.code == 0, || asked.describe()).map(|()| before + 1)
    })
}

/// A name that nothing has yet.
fn fresh(kind: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{kind}-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// How long it takes from `since` until the manager that is asked takes a command.
fn until_taken(swarm: &Swarm, since: Instant, what: &str) -> Duration {
    wait_until("a command is taken", SETTLE, || {
        // A command of which it is not known whether it was taken must not stand in the way of the next.
        let name = fresh("taken");
        let created = swarm.manager().formic(&["network", "create", "--driver", "overlay", &name]);
        so(created.code == 0, || created.describe())
    });
    let gap = since.elapsed();
    println!("{what}: the next command was taken after {gap:.1?}");
    gap
}

/// Waits, on a thread of its own, until a manager refuses to make a network because there is no leader; the network's name.
fn refuses(host: &Host) -> JoinHandle<String> {
    let socket = host.socket();
    std::thread::spawn(move || {
        wait_until("the refusal", SETTLE, || {
            let name = fresh("never");
            let body = json!({"Name": name, "Driver": "overlay"});
            let (status, answer) = api::request(&socket, "POST", "/networks/create", Some(&body))?;
            so(status == 503 && answer["message"] == NO_LEADER, || format!("{status} {answer}")).map(|()| name)
        })
    })
}

fn was_not_made(swarm: &Swarm, network: &str) {
    let networks = list(swarm.manager().get("/networks"));
    assert!(networks.iter().all(|made| made["Name"] != network), "{network} was refused and is there");
}

/// Whoever comes back must not disturb the leader. On a busy machine that may change for reasons of its own (a slow disk
/// holds up its heartbeats), but hardly each time.
fn undisturbed(what: &str, scene: impl Fn() -> bool) {
    assert!((0..3).any(|_| scene()), "{what}: the leader changes whenever one comes back");
}

/// Waits until all nodes are back, with the current epoch `epoch`, and all managers show the same.
fn wait_all_back(swarm: &Swarm, epoch: u64) {
    for host in &swarm.net.hosts {
        wait_until("its session", SETTLE, || {
            let heard = &host.try_get("/formic/status")?["manager_heard_ms_ago"];
            so(!heard.is_null(), || format!("{} has none", host.name()))
        });
    }
    swarm.wait_ready(HOSTS.len());
    let now = wait_until("a settled ring", SETTLE, || Ring::of(swarm.manager())?.settled());
    assert_eq!(now, epoch, "a rotation that was taken happens once");
    swarm.wait_same(&MANAGERS);
}

/// Waits until everything runs, once.
fn wait_all_runs(swarm: &Swarm) {
    swarm.wait_tasks("web", HOSTS.len());
    swarm.wait_nothing_doubled();
}

#[test]
fn managers_die_and_come_back_while_keys_rotate() {
    let swarm = start();
    let first = leader(&swarm);
    for victim in [first, (first + 1) % 3, (first + 2) % 3] {
        one_dies(&swarm, victim);
    }
    two_die(&swarm);
    all_die(&swarm);
    wait_all_runs(&swarm);
}

fn one_dies(swarm: &Swarm, victim: usize) {
    let what =
        format!("{} killed, {}", swarm.host(victim).name(), if leader(swarm) == victim { "leads" } else { "follows" });
    swarm.ask((victim + 1) % 3);
    let traffic = traffic(swarm, &without(HOSTS, &[victim]));
    let epoch = rotate(swarm);
    swarm.host(victim).kill_daemon();
    let gap = until_taken(swarm, Instant::now(), &what);
    assert!(gap < CONTROL_GAP, "{gap:?}");
    swarm.host(victim).start_daemon(&[]);
    wait_all_back(swarm, epoch);
    traffic.stop_undisturbed(&what);
}

/// The quorum is lost.
fn two_die(swarm: &Swarm) {
    let first = leader(swarm);
    let victims = [first, (first + 1) % 3];
    let left = without(MANAGERS, &victims)[0];
    swarm.ask(left);
    let traffic = traffic(swarm, &without(HOSTS, &victims));
    let epoch = rotate(swarm);
    victims.iter().for_each(|victim| swarm.host(*victim).kill_daemon());
    let refused = refuses(swarm.host(left)).join().expect("a refusal");
    let back = Instant::now();
    victims.iter().for_each(|victim| swarm.host(*victim).spawn_daemon(&[]));
    until_taken(swarm, back, "two of three back");
    wait_all_back(swarm, epoch);
    was_not_made(swarm, &refused);
    traffic.stop_undisturbed("two of three killed");
}

fn all_die(swarm: &Swarm) {
    let traffic = traffic(swarm, &WORKERS);
    let epoch = rotate(swarm);
    MANAGERS.iter().for_each(|manager| swarm.host(*manager).kill_daemon());
    for worker in WORKERS {
        wait_until("the workers notice", SETTLE, || {
            let heard = &swarm.host(worker).try_get("/formic/status")?["manager_heard_ms_ago"];
            so(heard.is_null(), || heard.to_string())
        });
    }
    let back = Instant::now();
    MANAGERS.iter().for_each(|manager| swarm.host(*manager).spawn_daemon(&[]));
    MANAGERS.iter().for_each(|manager| swarm.host(*manager).wait_ready());
    until_taken(swarm, back, "all three back");
    wait_all_back(swarm, epoch);
    traffic.stop_undisturbed("all three killed");
}

#[test]
fn managers_are_cut_off_and_come_back_while_keys_rotate() {
    let swarm = start();
    undisturbed("leader cut off", || the_leader_is_cut_off(&swarm));
    undisturbed("follower cut off", || a_follower_is_cut_off(&swarm));
    undisturbed("follower that does not hear the leader", || a_follower_does_not_hear_the_leader(&swarm));
    undisturbed("deaf leader", || the_leader_is_deaf(&swarm));
    addresses_stay_reserved(&swarm);
}

fn the_leader_is_cut_off(swarm: &Swarm) -> bool {
    let old = leader(swarm);
    let others = without(MANAGERS, &[old]);
    swarm.ask(others[0]);
    let traffic = traffic(swarm, &without(HOSTS, &[old]));
    let epoch = rotate(swarm);
    swarm.net.connect(old, false);
    let cut = Instant::now();
    let gap = until_taken(swarm, cut, "leader cut off");
    assert!(gap < CONTROL_GAP, "{gap:?}");
    let refusal = refuses(swarm.host(old));
    wait_at_another_manager(swarm, cut);
    let service = fresh("during");
    create(swarm, &service, &["--network", "net", "--replicas", "2"]);
    let refused = refusal.join().expect("a refusal");
    let leads = led_by(swarm, &others);
    swarm.net.connect(old, true);
    wait_all_back(swarm, epoch);
    was_not_made(swarm, &refused);
    swarm.wait_tasks(&service, 2);
    swarm.wait_nothing_doubled();
    tell(swarm, &["service", "rm", &service], "not found");
    traffic.stop_undisturbed("leader cut off");
    leads == led_by(swarm, &others)
}

/// Who leads, and in which term.
fn led_by(swarm: &Swarm, managers: &[usize]) -> (usize, u64) {
    let leads = wait_until("a leader", SETTLE, || swarm.leader(managers).ok_or_else(|| "none".to_owned()));
    (leads, term(swarm.host(leads)))
}

fn wait_at_another_manager(swarm: &Swarm, cut: Instant) {
    for worker in WORKERS {
        wait_until("a word of another manager", SETTLE, || {
            let since = cut.elapsed().as_millis();
            let heard = &swarm.host(worker).try_get("/formic/status")?["manager_heard_ms_ago"];
            so(heard.as_u64().is_some_and(|ago| u128::from(ago) < since), || heard.to_string())
        });
    }
    println!("leader cut off: the workers are at another manager after {:.1?}", cut.elapsed());
}

fn a_follower_is_cut_off(swarm: &Swarm) -> bool {
    let cut = |follower, _| swarm.net.connect(follower, false);
    a_follower_is_away(swarm, "follower cut off", cut, |follower| swarm.net.connect(follower, true))
}

/// It hears the other follower, who hears the leader.
fn a_follower_does_not_hear_the_leader(swarm: &Swarm) -> bool {
    let wall = |follower: usize, leader: usize| {
        swarm.host(follower).drop_input(&format!("ip saddr {}", swarm.host(leader).address()));
    };
    let heal = |follower: usize| swarm.host(follower).hear_again();
    a_follower_is_away(swarm, "follower does not hear the leader", wall, heal)
}

fn a_follower_is_away(swarm: &Swarm, what: &str, cut: impl Fn(usize, usize), heal: impl Fn(usize)) -> bool {
    let leads = led_by(swarm, &MANAGERS);
    let (follower, other) = ((leads.0 + 1) % 3, (leads.0 + 2) % 3);
    swarm.ask(other);
    let traffic = traffic(swarm, &without(HOSTS, &[follower]));
    let epoch = rotate(swarm);
    cut(follower, leads.0);
    // Unless the leader changes by itself.
    let is_away = wait_until(what, SETTLE, || {
        let refused = swarm.host(follower).formic(&["network", "create", "--driver", "overlay", &fresh("never")]);
        let leads_on = leads == led_by(swarm, &without(MANAGERS, &[follower]));
        let is_away = refused.stderr.contains(NO_LEADER) && swarm.node(follower)["Status"]["State"] == "down";
        so(is_away || !leads_on, || refused.describe()).map(|()| is_away)
    });
    until_taken(swarm, Instant::now(), what);
    heal(follower);
    wait_all_back(swarm, epoch);
    traffic.stop_undisturbed(what);
    is_away && leads == led_by(swarm, &MANAGERS)
}

/// What it says still arrives: the others would follow it for ever.
fn the_leader_is_deaf(swarm: &Swarm) -> bool {
    let old = leader(swarm);
    let others = without(MANAGERS, &[old]);
    swarm.ask(others[0]);
    let traffic = traffic(swarm, &without(HOSTS, &[old]));
    let epoch = rotate(swarm);
    swarm.host(old).drop_input("iifname eth0");
    let gap = until_taken(swarm, Instant::now(), "leader deaf");
    assert!(gap < CONTROL_GAP, "{gap:?}");
    let leads = led_by(swarm, &others);
    swarm.host(old).hear_again();
    wait_all_back(swarm, epoch);
    traffic.stop_undisturbed("leader deaf");
    leads == led_by(swarm, &others)
}

/// Those of a node that is down, also when the leader changes meanwhile.
fn addresses_stay_reserved(swarm: &Swarm) {
    // Five addresses for tasks: .2 to .6.
    swarm.create_network("small", &["--opt", "encrypted", "--subnet", "10.9.8.0/29"]);
    let on_workers = ["--network", "small", "--constraint", "node.role==worker"];
    create(swarm, "some", &[&on_workers[..], &["--replicas", "3"]].concat());
    let before = swarm.wait_tasks("some", 3);
    let away = before.iter().find(|task| task.host == 5).expect("one on each worker").clone();
    swarm.net.connect(5, false);
    swarm.wait_node(5, "down");
    wait_until("its task is placed again", SETTLE, || {
        let placed = swarm.wait_tasks("some", 3);
        so(placed.iter().all(|task| task.host != 5), || format!("{placed:?}"))
    });
    let old = leader(swarm);
    swarm.ask((old + 1) % 3);
    swarm.host(old).kill_daemon();
    until_taken(swarm, Instant::now(), "with a node down");
    create(swarm, "more", &[&on_workers[..], &["--replicas", "2"]].concat());
    // One address is free, two are wanted.
    wait_until("one of two waits for an address", SETTLE, || {
        let tasks = swarm.tasks("more");
        let (running, waiting): (Vec<&Task>, Vec<&Task>) = tasks.iter().partition(|task| task.is_running());
        let said = waiting.iter().all(|task| task.error.contains("address"));
        so(running.len() == 1 && waiting.len() == 1 && said, || format!("{tasks:#?}"))
    });
    let used: BTreeSet<_> = [swarm.tasks("some"), swarm.tasks("more")]
        .concat()
        .iter()
        .filter(|task| task.is_running())
        .map(Task::address)
        .collect();
    assert!(!used.contains(&away.address()), "the address of a task that may still run was given away");
    swarm.host(old).start_daemon(&[]);
    swarm.net.connect(5, true);
    swarm.wait_ready(HOSTS.len());
    swarm.wait_tasks("more", 2);
    wait_all_runs(swarm);
}

#[test]
fn daemons_start_anew_one_after_the_other() {
    let swarm = start();
    for host in HOSTS {
        daemon_starts_anew(&swarm, host);
    }
    a_worker_knows_former_managers(&swarm);
}

fn daemon_starts_anew(swarm: &Swarm, host: usize) {
    let name = swarm.host(host).name();
    swarm.ask(if host == 0 { 1 } else { 0 });
    let traffic = traffic(swarm, &without(HOSTS, &[host]));
    let epoch = rotate(swarm);
    swarm.host(host).stop_daemon();
    if MANAGERS.contains(&host) {
        let stopped = Instant::now();
        until_taken(swarm, stopped, &format!("{name} stopped"));
    }
    let service = fresh("beside");
    create(swarm, &service, &["--network", "net", "--replicas", "2"]);
    swarm.host(host).start_daemon(&[]);
    swarm.wait_tasks(&service, 2);
    tell(swarm, &["service", "rm", &service], "not found");
    wait_all_back(swarm, epoch);
    traffic.stop_undisturbed(&format!("{name} started anew"));
}

/// Of the managers that it has on disk one is left.
fn a_worker_knows_former_managers(swarm: &Swarm) {
    swarm.ask(2);
    let manager = swarm.manager();
    swarm.host(5).stop_daemon();
    for new in [3, 4] {
        tell(swarm, &["node", "promote", &swarm.host(new).name()], "already");
    }
    let voters = |wanted: usize| {
        wait_until(&format!("{wanted} managers"), SETTLE, || {
            let nodes = list(manager.try_get("/nodes")?);
            let votes = nodes.iter().filter(|node| node["ManagerStatus"]["Reachability"] == "reachable").count();
            so(votes == wanted, || format!("{nodes:?}"))
        });
    };
    voters(5);
    for former in [0, 1] {
        // One that leads hands over first.
        tell(swarm, &["node", "demote", &swarm.host(former).name()], "already");
    }
    voters(3);
    swarm.host(5).start_daemon(&[]);
    swarm.wait_node(5, "ready");
    swarm.wait_same(&[2, 3, 4]);
    wait_all_runs(swarm);
    traffic(swarm, &HOSTS).stop_undisturbed("other managers");
}
