//! The main job: an encrypted overlay between three hosts, driven by the specification's own commands.

use netns_tests::attack::Forger;
use netns_tests::capture::{self, Capture};
use netns_tests::swarm::{IDLE, SETTLE, list, text};
use netns_tests::topology::OUTSIDER;
use netns_tests::traffic::{IperfServer, Stream, in_network_of, pings};
use netns_tests::wait::so;
use netns_tests::{Packet, Swarm, Task, Topology, process, wait_until};
use std::path::Path;

const NETWORK: &str = "my-multi-host-network";

/// What a ping of [`ping_marker`] carries: 16 bytes, as long as `ping -p` takes.
const MARKER: &[u8; 16] = b"FORMIC-IN-CLEAR!";

/// The specification's refusal, verbatim but for its line breaks.
const REFUSAL: &str = "swarm-scoped network (my-multi-host-network) is not compatible with `docker create` or `docker run`. \
                       This network can only be used by a docker service.";

/// Sends the marker in clear inside the overlay.
fn ping_marker(from: &Task, to: &Task, count: u32) {
    let pattern: String = MARKER.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = in_network_of(from, "ping");
    command.args(["-n", "-q", "-c", &count.to_string(), "-i", "0.05", "-s", "56", "-p", &pattern]);
    command.arg(to.address().to_string());
    process::run(command).ok();
}

fn capture_task(topology: &Topology, task: &Task, name: &str) -> Capture {
    Capture::start(in_network_of(task, "tcpdump"), "eth0", topology.directory().join(name))
}

/// Only what Formic says it sends, and nothing in fragments.
fn assert_only_formic(packets: &[Packet]) {
    // The test's own end of the bridge may speak IGMP; what counts is what the hosts say.
    for packet in packets.iter().filter(|packet| packet.source.0 != OUTSIDER) {
        let arp = packet.ether_type == 0x0806;
        let known = packet.esp().is_some() || packet.is_udp(7946) || packet.is_tcp(2377);
        assert!(arp || known, "neither ESP in UDP nor gossip nor control: {packet:?}");
        assert!(!packet.fragment, "a fragment: {packet:?}");
    }
}

/// What tshark takes the data port's packets for: an opinion that is not ours.
fn assert_tshark_sees_esp(file: &Path) {
    let mut command = std::process::Command::new("tshark");
    command.env("HOME", "/nonexistent").arg("-r").arg(file).args([
        "-Y",
        "udp.port==4500",
        "-T",
        "fields",
        "-e",
        "frame.protocols",
    ]);
    let protocols = process::run(command).ok();
    let mut kinds: Vec<&str> = protocols.lines().collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, ["eth:ethertype:ip:udp:udpencap:esp"], "tshark");
}

#[test]
fn three_hosts_one_encrypted_network() {
    let swarm = Swarm::start(3);
    let id = swarm.create_network(NETWORK, &["--opt", "encrypted"]);
    for index in 0..3 {
        let directory = swarm.net.image_directory();
        swarm.host(index).formic(&["image", "import", "my-image", &directory.to_string_lossy()]).ok();
    }
    let capture = Capture::underlay(&swarm.net, "underlay.pcap");
    swarm.create_service_of("web", &[NETWORK], 3, "my-image", IDLE);
    let tasks = swarm.wait_tasks("web", 3);
    let mut hosts: Vec<usize> = tasks.iter().map(|task| task.host).collect();
    hosts.sort_unstable();
    assert_eq!(hosts, [0, 1, 2], "one task per host");
    service_ps_shows_nodes_and_addresses(&swarm, &tasks);

    let inside = capture_task(&swarm.net, &tasks[1], "inside.pcap");
    swarm.wait_all_ping(&tasks, 3);
    for from in &tasks {
        for to in tasks.iter().filter(|to| to.id != from.id) {
            swarm.exec(from, &["ping", "-c", "2", "-i", "0.1", &to.address().to_string()]).ok();
        }
    }
    ping_marker(&tasks[0], &tasks[1], 5);
    let server = IperfServer::start(&tasks[2]);
    let sent = Stream::start(&tasks[0], &tasks[2], 2).finish(SETTLE);
    assert!(sent > 1_000_000, "only {sent} bytes in 2 s");
    drop(server);
    let inside = inside.stop();
    let underlay = capture.stop();

    let packets = capture::read(&underlay);
    assert!(packets.iter().filter(|packet| packet.esp().is_some()).count() > 700, "too little ESP for the stream");
    assert_only_formic(&packets);
    assert_tshark_sees_esp(&underlay);
    assert!(capture::contains(&inside, MARKER), "the marker was not sent: the check could not fail");
    assert!(!capture::contains(&underlay, MARKER), "the marker is readable on the underlay");

    refusal_reads_the_same_everywhere(&swarm);
    removal(&swarm, &id);
}

fn service_ps_shows_nodes_and_addresses(swarm: &Swarm, tasks: &[Task]) {
    let table = swarm.manager().formic(&["service", "ps", "web"]).ok();
    for task in tasks {
        let node = swarm.host(task.host).name();
        let address = task.address().to_string();
        let shown = table.lines().any(|line| line.contains(&node) && line.contains(&address));
        assert!(shown, "{node} with {address} is not in\n{table}");
    }
    let nodes = swarm.manager().formic(&["node", "ls"]).ok();
    for host in &swarm.net.hosts {
        assert!(nodes.contains(&host.name()), "{} is not in\n{nodes}", host.name());
    }
}

fn refusal_reads_the_same_everywhere(swarm: &Swarm) {
    for host in &swarm.net.hosts {
        let refused = host.formic(&["run", "--network", NETWORK, "nginx"]);
        assert_eq!(refused.code, 125, "{}", refused.describe());
        assert!(refused.stderr.contains(REFUSAL), "{}: {}", host.name(), refused.describe());
    }
}

fn removal(swarm: &Swarm, id: &str) {
    let manager = swarm.manager();
    manager.formic(&["network", "rm", NETWORK]).refused("in use by service");
    let before = manager.formic(&["network", "ls"]).ok();
    assert!(before.contains(NETWORK), "{before}");
    manager.formic(&["service", "rm", "web"]).ok();
    swarm.wait_removed("web");
    manager.formic(&["network", "rm", NETWORK]).ok();
    assert!(list(manager.get("/networks")).iter().all(|network| text(&network["Id"]) != id));
}

#[test]
fn tasks_of_one_host_and_of_several_networks() {
    let swarm = Swarm::start(2);
    swarm.create_network("red", &["--opt", "encrypted"]);
    swarm.create_network("blue", &["--opt", "encrypted"]);
    let reds = swarm.create_service("reds", &["red"], 4);
    assert_eq!(reds.iter().filter(|task| task.host == 0).count(), 2, "spread evenly");
    swarm.wait_all_ping(&reds, 2);
    let both = swarm.create_service("both", &["red", "blue"], 2);
    let blues = swarm.create_service("blues", &["blue"], 2);
    for task in &both {
        assert_eq!(task.addresses.len(), 2, "an address on each network: {task:?}");
        let mut command = in_network_of(task, "ip");
        command.args(["-brief", "address"]);
        let devices = process::run(command).ok();
        for (device, address) in ["eth0", "eth1"].iter().zip(&task.addresses) {
            let found = devices.lines().any(|line| line.starts_with(device) && line.contains(&format!("{address}/")));
            assert!(found, "{device} with {address}: {devices}");
        }
        for to in reds.iter().chain(&blues) {
            wait_until("a task on both networks", SETTLE, || pings(task, to.address(), 2));
        }
    }
    for (from, to) in reds.iter().zip(&blues) {
        assert!(pings(from, to.address(), 1).is_err(), "networks are not apart");
    }
    for host in &swarm.net.hosts {
        assert_eq!(host.devices(), ["eth0", "lo"], "no device outside of the tasks");
    }
}

#[test]
fn a_plain_network_is_readable_but_not_forgeable() {
    let swarm = Swarm::start(2);
    swarm.create_network("plain", &[]);
    let tasks = swarm.create_service("web", &["plain"], 2);
    swarm.wait_all_ping(&tasks, 2);
    let capture = Capture::underlay(&swarm.net, "plain.pcap");
    let inside = capture_task(&swarm.net, &tasks[1], "inside.pcap");
    ping_marker(&tasks[0], &tasks[1], 5);
    let path = swarm.net.directory().join("plain.pcap");
    let to = swarm.host(tasks[1].host).address();
    let carries_marker = |packet: &&Packet| {
        packet.destination.0 == to
            && packet.esp().is_some()
            && packet.payload.windows(16).any(|window| window == MARKER)
    };
    // AES-GMAC authenticates and does not hide: the marker is there for everyone to read.
    wait_until("five marked datagrams", SETTLE, || {
        let count = capture::read(&path).iter().filter(carries_marker).count();
        so(count == 5, || format!("{count}"))
    });
    capture.stop();
    let marked: Vec<Packet> = capture::read(&path).iter().filter(carries_marker).cloned().collect();

    let receiver = swarm.host(tasks[1].host);
    let before = receiver.drops(|_| true);
    let forger = Forger::new();
    for packet in &marked {
        forger.send(packet.source, packet.destination, &packet.payload);
        let mut changed = packet.payload.clone();
        changed[40] ^= 1;
        forger.send(packet.source, packet.destination, &changed);
        // A sequence number never seen: only the tag can tell.
        let mut renumbered = packet.payload.clone();
        renumbered[6] ^= 0x40;
        renumbered[14] ^= 0x40;
        forger.send(packet.source, packet.destination, &renumbered);
    }
    wait_until("15 drops", SETTLE, || {
        let count = receiver.drops(|_| true) - before;
        so(count >= 15, || format!("{count}: {}", receiver.status()["drops"]))
    });
    swarm.wait_all_ping(&tasks, 1);
    let requests = |packet: &&Packet| packet.protocol == 1 && packet.payload.windows(16).any(|w| w == MARKER);
    let seen =
        capture::read(&inside.stop()).iter().filter(requests).filter(|p| p.destination.0 == tasks[1].address()).count();
    assert_eq!(seen, 5, "a replayed or forged packet reached the task");
}

#[test]
fn the_mtu_follows_the_underlay_and_nothing_is_fragmented() {
    let swarm = Swarm::start_on(2, 1400);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    let mut command = in_network_of(&tasks[0], "cat");
    command.arg("/sys/class/net/eth0/mtu");
    let shown = swarm.exec(&tasks[0], &["cat", "/sys/class/net/eth0/mtu"]);
    let mtu: u32 = if shown.code == 0 { shown.ok() } else { process::run(command).ok() }.parse().expect("a number");
    // 1400 - 20 IPv4 - 8 UDP - 16 ESP header and IV - 2 trailer - 16 tag, padded to 4.
    assert_eq!(mtu, 1338);
    swarm.wait_all_ping(&tasks, 1);
    let capture = Capture::underlay(&swarm.net, "mtu.pcap");
    let server = IperfServer::start(&tasks[1]);
    let sent = Stream::start(&tasks[0], &tasks[1], 1).finish(SETTLE);
    drop(server);
    assert!(sent > 1_000_000, "only {sent} bytes");
    assert_only_formic(&capture::read(&capture.stop()));
}
