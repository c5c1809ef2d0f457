//! What an operator may switch off of the data path, and what tasks of one host may take from each other.

use netns_tests::swarm::text;
use netns_tests::traffic::{IperfServer, in_network_of};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Task, Topology, process, wait_until};
use std::collections::BTreeSet;
use std::time::Duration;

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
