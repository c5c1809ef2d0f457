//! Nodes whose data planes have different numbers of workers.

use netns_tests::swarm::{list, text};
use netns_tests::traffic::{Flow, IperfServer, in_network_of};
use netns_tests::wait::so;
use netns_tests::{Swarm, Task, Topology, process, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// Of hosts 0 to 3.
const WORKERS: [&str; 4] = ["2", "4", "1", "2"];

const ROTATION_DEADLINE: Duration = Duration::from_secs(30);

fn start() -> (Swarm, Vec<Task>) {
    let net = Topology::new(4);
    for (host, workers) in net.hosts.iter().zip(WORKERS) {
        host.start_daemon(&["--data-workers", workers]);
    }
    let swarm = Swarm::on(net);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let mut tasks = swarm.create_service("web", &["net"], 4);
    tasks.sort_by_key(|task| task.host);
    assert_eq!(tasks.iter().map(|task| task.host).collect::<Vec<_>>(), [0, 1, 2, 3]);
    swarm.wait_all_ping(&tasks, 2);
    (swarm, tasks)
}

/// Queues and packets of the SAs that a host sends with to a peer, or (`in`) receives with from it.
fn queues(swarm: &Swarm, host: usize, peer: usize, direction: &str) -> Vec<(u32, u64)> {
    let peer = swarm.node_id(peer);
    let sas = list(swarm.host(host).status()["sas"].clone());
    let ours =
        sas.iter().filter(|sa| sa["direction"] == direction && sa["active"] == true && sa["peer"] == peer.as_str());
    let mut queues: Vec<(u32, u64)> = ours.map(|sa| (queue(sa), sa["packets"].as_u64().unwrap_or(0))).collect();
    queues.sort_unstable();
    queues
}

fn queue(sa: &Value) -> u32 {
    let spi = text(&sa["spi"]);
    u32::from_str_radix(spi.trim_start_matches("0x"), 16).unwrap_or_else(|_| panic!("no SPI: {spi}")) & 15
}

/// Each host sends by the queues that it has workers for, and no datagram came to a wrong worker or was judged twice.
fn check_sas(swarm: &Swarm) {
    for (host, workers) in WORKERS.iter().enumerate() {
        for peer in (0..4).filter(|peer| *peer != host) {
            let numbers: Vec<u32> = queues(swarm, host, peer, "out").into_iter().map(|(queue, _)| queue).collect();
            let expected: Vec<u32> = (0..workers.parse().expect("a number")).collect();
            assert_eq!(numbers, expected, "host {host} to {peer}");
        }
        let wrong = ["wrong_worker", "bad_tag", "replayed", "too_old"];
        let dropped = swarm.host(host).drops(|reason| wrong.contains(&reason));
        assert_eq!(dropped, 0, "at host {host}: {}", swarm.host(host).status()["drops"]);
    }
}

/// Sends UDP both ways in `flows` flows; packets and those out of order.
fn udp_both_ways(from: &Task, to: &Task, flows: u32) -> (u64, u64) {
    let mut command = in_network_of(from, "iperf3");
    command.args(["--client", &to.address().to_string(), "--udp", "--bidir", "--bitrate", "10M", "--time", "5"]);
    command.args(["--length", "1000", "--parallel", &flows.to_string(), "--json"]);
    let report: Value = serde_json::from_str(&process::run(command).ok()).expect("iperf3's report");
    let streams = list(report["end"]["streams"].clone());
    let sum = |field: &str| streams.iter().filter_map(|stream| stream["udp"][field].as_u64()).sum();
    (sum("packets"), sum("out_of_order"))
}

#[test]
fn nodes_with_two_four_and_one_worker_rotate_without_loss() {
    let (swarm, tasks) = start();
    check_sas(&swarm);
    let pairs = [(0, 1), (1, 2), (2, 0), (0, 3), (3, 1)];
    let flows: Vec<Flow> = pairs.into_iter().map(|(a, b)| Flow::start(&tasks[a], &tasks[b])).collect();
    let sending = |host: usize| -> Vec<Value> {
        let sas = list(swarm.host(host).status()["sas"].clone());
        sas.into_iter().filter(|sa| sa["direction"] == "out" && sa["active"] == true).collect()
    };
    let spis = |host| -> BTreeSet<String> { sending(host).iter().map(|sa| text(&sa["spi"])).collect() };
    for _ in 0..3 {
        wait_until("traffic under the keys of this round", ROTATION_DEADLINE, || {
            let sent = |host| sending(host).iter().filter_map(|sa| sa["packets"].as_u64()).sum::<u64>();
            let quietest = (0..4).map(sent).min();
            so(quietest >= Some(200), || format!("{quietest:?} packets of the quietest host"))
        });
        let before: Vec<BTreeSet<String>> = (0..4).map(spis).collect();
        wait_until("a rotation is possible", ROTATION_DEADLINE, || {
            let asked = swarm.manager().formic(&["swarm", "rotate-keys"]);
            so(asked.code == 0, || asked.describe())
        });
        for (host, old) in before.iter().enumerate() {
            wait_until("all SPIs new", ROTATION_DEADLINE, || {
                let new = spis(host);
                so(new.len() == old.len() && new.is_disjoint(old), || format!("{old:?} -> {new:?}"))
            });
        }
    }
    for flow in flows {
        let (sent, lost) = flow.stop();
        assert!(sent > 100, "only {sent} pings");
        let drops: Vec<Value> = swarm.net.hosts.iter().map(|host| host.status()["drops"].clone()).collect();
        assert_eq!(lost, 0, "lost of {sent}; drops: {drops:?}");
    }
    check_sas(&swarm);
}

#[test]
fn flows_spread_and_keep_their_order() {
    let (swarm, tasks) = start();
    let _servers: Vec<IperfServer> = tasks[1..].iter().map(IperfServer::start).collect();
    for (from, to) in [(0, 3), (0, 1), (0, 2), (1, 2), (1, 3)] {
        let (packets, out_of_order) = udp_both_ways(&tasks[from], &tasks[to], 8);
        assert!(packets > 10_000, "host {from} to {to}: only {packets} packets");
        // A flow between unequal nodes may change its queue when it is answered first, and once its queue is forgotten.
        let allowed = if WORKERS[from] == WORKERS[to] { 0 } else { packets / 1000 };
        assert!(out_of_order <= allowed, "host {from} to {to}: {out_of_order} of {packets} out of order");
    }
    for (host, peer) in [(0, 3), (3, 0), (0, 1), (1, 0)] {
        let busy = queues(&swarm, host, peer, "out").iter().filter(|(_, packets)| *packets > 1000).count();
        assert!(busy >= 2, "host {host} to {peer}: {:?}", queues(&swarm, host, peer, "out"));
    }
    check_sas(&swarm);
}

#[test]
fn a_restart_with_another_number_of_workers_is_a_new_boot_for_all() {
    let (swarm, _) = start();
    swarm.host(1).stop_daemon();
    swarm.host(1).start_daemon(&["--data-workers", "3"]);
    swarm.wait_ready(4);
    let tasks = swarm.wait_tasks("web", 4);
    swarm.wait_all_ping(&tasks, 2);
    wait_until("three queues", ROTATION_DEADLINE, || {
        // Of two epochs, or of three.
        let queues: BTreeSet<u32> = queues(&swarm, 0, 1, "in").into_iter().map(|(queue, _)| queue).collect();
        so(queues == BTreeSet::from([0, 1, 2]), || format!("{queues:?}"))
    });
}
