//! Ways that carry less than the interfaces at their ends, and change while they are used: underlays of 9000, 1500, 1400
//! and 1280 octets, over IPv4 and IPv6, with routers that tell and routers that do not.

use netns_tests::swarm::text;
use netns_tests::traffic::{IperfServer, Trickle, in_network_of};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Task, Topology, process, wait_until};
use std::time::{Duration, Instant};

/// What finding the value may take on two busy cores. The machine takes less than 5 s of virtual time (its own tests); here
/// it is 1.6 to 3.0 s.
const FOUND_WITHIN: Duration = Duration::from_secs(10);
/// How close it has to come.
const PRECISION_BYTES: u64 = 64;
/// A device takes in so many octets more than its MTU.
const VLAN_TAG: u64 = 4;
/// What growing again may take: it is looked for every 10 s.
const GROWN_WITHIN: Duration = Duration::from_secs(25);

/// What ESP in UDP adds, with the padding that an MTU that is a multiple of four leaves.
fn inner(mtu_bytes: u32, over_ipv6: bool) -> u64 {
    u64::from(mtu_bytes) - if over_ipv6 { 82 } else { 62 }
}

/// What the host thinks that the way to its only peer carries.
fn carries(host: &Host) -> Option<u64> {
    host.status()["peers"][0]["carries_bytes"].as_u64()
}

fn wait_carries(host: &Host, expected: u64, deadline: Duration) -> Duration {
    let start = Instant::now();
    wait_until(&format!("{}: the way carries {expected}", host.name()), deadline, || {
        let found = carries(host);
        let fits = found
            .is_some_and(|found| found <= expected + VLAN_TAG && expected - found.min(expected) <= PRECISION_BYTES);
        so(fits, || format!("{found:?}"))
    });
    start.elapsed()
}

/// Brings 1 MB from one task to another.
fn transfer(from: &Task, to: &Task) {
    let _server = IperfServer::start(to);
    let mut client = in_network_of(from, "iperf3");
    client.args(["--client", &to.address().to_string(), "--bytes", "1M"]);
    process::run(client).ok();
}

/// A ping that must not be cut into pieces is answered by the daemon, as a router would.
fn is_told_too_big(from: &Task, to: &Task, carries: u64) {
    // Without its 20 octets of IP header and 8 of ICMP it would just fit.
    let size = carries.to_string();
    let mut ping = in_network_of(from, "ping");
    ping.args(["-n", "-c", "3", "-i", "0.2", "-W", "1", "-M", "do", "-s", &size, &to.address().to_string()]);
    let finished = process::run(ping);
    // A router's answer, or what the kernel remembers of an earlier one.
    let told = [format!("mtu = {carries}"), format!("mtu={carries}")];
    let output = format!("{}{}", finished.stdout, finished.stderr);
    assert!(finished.code != 0 && told.iter().any(|told| output.contains(told)), "{}", finished.describe());
}

fn ways_that_shrink(over_ipv6: bool, silent: bool) {
    let net = Topology::routed(2);
    if silent {
        net.silence_router();
    }
    let swarm = Swarm::start_routed(net, over_ipv6);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let mut tasks = swarm.create_service("web", &["net"], 2);
    tasks.sort_by_key(|task| task.host);
    swarm.wait_all_ping(&tasks, 2);
    let [one, two] = &tasks[..] else { panic!("two tasks: {tasks:#?}") };
    for index in [0, 1] {
        wait_carries(swarm.host(index), inner(9000, over_ipv6), FOUND_WITHIN);
    }
    transfer(one, two);
    // Both ends send: what comes back is no longer than a packet.
    let streams = [Trickle::start(one, two), Trickle::start(two, one)];
    for mtu_bytes in [1500, 1400, 1280] {
        swarm.net.narrow(1, mtu_bytes);
        let expected = inner(mtu_bytes, over_ipv6);
        let start = Instant::now();
        for index in [0, 1] {
            wait_carries(swarm.host(index), expected, FOUND_WITHIN);
        }
        println!("ipv6 {over_ipv6}, silent {silent}: {mtu_bytes} found after {:.1?}", start.elapsed());
        transfer(one, two);
        transfer(two, one);
    }
    let told = carries(swarm.host(0)).expect("known");
    is_told_too_big(one, two, told);
    for stream in streams {
        println!("a stream was at most {:.1?} late", stream.stop());
    }
    assert!(swarm.host(0).drops(|reason| reason == "exceeds_path_mtu") > 0);
    assert_eq!(swarm.net.fragments(), 0, "fragments on the underlay");
    let nodes = swarm.nodes();
    assert!(nodes.iter().all(|node| text(&node["Status"]["State"]) == "ready"), "{nodes:?}");
    if !over_ipv6 && silent {
        swarm.net.narrow(1, 9000);
        let stream = Trickle::start(one, two);
        wait_carries(swarm.host(0), inner(9000, over_ipv6), GROWN_WITHIN);
        stream.stop();
        transfer(one, two);
    }
}

#[test]
fn ways_over_ipv4_shrink_and_the_router_tells() {
    ways_that_shrink(false, false);
}

#[test]
fn ways_over_ipv4_shrink_silently_and_grow() {
    ways_that_shrink(false, true);
}

#[test]
fn ways_over_ipv6_shrink_and_the_router_tells() {
    ways_that_shrink(true, false);
}

#[test]
fn ways_over_ipv6_shrink_silently() {
    ways_that_shrink(true, true);
}
