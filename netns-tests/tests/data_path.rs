//! What an operator may switch off of the data path, and what tasks of one host may take from each other.

use netns_tests::host::enter_network_of;
use netns_tests::swarm::text;
use netns_tests::traffic::{IperfServer, in_network_of};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Task, Topology, process, wait_until};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A setting is pushed to every session at once; busy machines take a while.
const SETTING: Duration = Duration::from_secs(20);

const OFFLOADS: [&str; 6] = ["tso", "uso", "udp-gso", "udp-gro", "join-tcp", "join-udp"];

/// Names of the offloads that a host says are switched off.
fn disabled(host: &Host) -> BTreeSet<String> {
    let path = host.status()["data_path"].clone();
    let rows = path.as_array().expect("the data path").iter().map(|row| (text(&row[0]), text(&row[1])));
    rows.filter(|(_, how)| how == "off: disabled").map(|(name, _)| name).collect()
}

fn wait_disabled(swarm: &Swarm, index: usize, names: &[&str]) {
    let expected: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    wait_until(&format!("offloads off at host {index}"), SETTING, || {
        let found = disabled(swarm.host(index));
        so(found == expected, || format!("{found:?}"))
    });
}

/// Brings 4 MB from one task to another.
fn transfer(from: &Task, to: &Task) {
    let _server = IperfServer::start(to);
    let mut client = in_network_of(from, "iperf3");
    client.args(["--client", &to.address().to_string(), "--bytes", "4M"]);
    process::run(client).ok();
}

#[test]
fn offloads_are_switched_for_all_hosts_at_once() {
    let net = Topology::new(3);
    for (host, options) in net.hosts.iter().zip([&[][..], &["--disable-offload", "uso"], &[]]) {
        host.start_daemon(options);
    }
    let swarm = Swarm::on(net);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let mut tasks = swarm.create_service("web", &["net"], 3);
    tasks.sort_by_key(|task| task.host);
    swarm.wait_all_ping(&tasks, 2);

    let update = |list: &str| swarm.manager().formic(&["swarm", "update", "--disable-offload", list]).ok();
    let off = |index: usize, names: &[&str]| wait_disabled(&swarm, index, names);
    update("tso,udp-gro");
    off(0, &["tso", "udp-gro"]);
    off(1, &["tso", "udp-gro", "uso"]);
    off(2, &["tso", "udp-gro"]);
    transfer(&tasks[0], &tasks[1]);
    update("all");
    (0..3).for_each(|index| off(index, &OFFLOADS));
    let info = swarm.manager().formic(&["info"]).ok();
    assert!(info.contains("Disabled Offloads: tso, uso, udp-gso, udp-gro, join-tcp, join-udp"), "{info}");
    transfer(&tasks[1], &tasks[2]);

    // A host that comes back is told.
    swarm.host(2).stop_daemon();
    swarm.host(2).start_daemon(&[]);
    off(2, &OFFLOADS);
    update("none");
    off(0, &[]);
    off(1, &["uso"]);
    off(2, &[]);
    transfer(&tasks[0], &tasks[1]);
    let refused = swarm.manager().formic(&["swarm", "update", "--disable-offload", "gro"]);
    assert!(refused.code != 0 && refused.stderr.contains("there is no offload \"gro\""), "{}", refused.describe());
}

/// Datagrams that are sent before it counts as a flood, and while another task's transfer goes on.
const FLOOD: u64 = 20_000;

/// Ends the flood when it is dropped, by a panic too.
struct Flood<'a> {
    over: &'a AtomicBool,
}

impl Drop for Flood<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Sends as fast as it can to a task that reads nothing of it.
fn flood(from: &Task, to: &Task, over: &AtomicBool, sent: &AtomicU64) {
    const PORT: u16 = 5999;
    let deaf = std::thread::scope(|scope| {
        let bind = || {
            enter_network_of(to.pid);
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("bind in a task")
        };
        scope.spawn(bind).join().expect("a socket in a task")
    });
    enter_network_of(from.pid);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind in a task");
    socket.connect((to.address(), PORT)).expect("connect in a task");
    while !over.load(Ordering::Relaxed) {
        // Of a full queue the kernel may tell; the flood goes on.
        sent.fetch_add(u64::from(socket.send(&[0x5a; 1400]).is_ok()), Ordering::Relaxed);
    }
    drop(deaf);
}

#[test]
fn a_task_that_floods_does_not_starve_its_neighbour() {
    // One worker for all on each host.
    let swarm = Swarm::start_with(2, &[], &["--data-workers", "1"]);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let mut tasks = swarm.create_service("web", &["net"], 4);
    tasks.sort_by_key(|task| task.host);
    swarm.wait_all_ping(&tasks, 2);
    assert_eq!(tasks.iter().map(|task| task.host).collect::<Vec<_>>(), [0, 0, 1, 1]);
    let [flooding, mine, flooded, other] = &tasks[..] else { panic!("four tasks: {tasks:#?}") };
    let (over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let sent_so_far = || sent.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let ends = Flood { over: &over };
        scope.spawn(|| flood(flooding, flooded, &over, &sent));
        wait_until("a flood", SETTING, || so(sent_so_far() > FLOOD, || format!("{} datagrams", sent_so_far())));
        let (start, before) = (Instant::now(), sent_so_far());
        // It has a deadline, and ends with an error after it.
        transfer(mine, other);
        println!("4 MB in {:?}, beside {} datagrams of a neighbour", start.elapsed(), sent_so_far() - before);
        wait_until("the flood goes on", SETTING, || {
            so(sent_so_far() > before + FLOOD, || format!("{} datagrams", sent_so_far() - before))
        });
        drop(ends);
    });
}
