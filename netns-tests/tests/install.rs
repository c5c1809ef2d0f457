//! What the README says of installing: the rights that the systemd unit leaves are enough, and so are other ports.

use netns_tests::swarm::{FAST, IDLE, SETTLE, list, text};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Topology, formic, wait_until};
use serde_json::Value;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What the unit keeps, as `setpriv` writes it.
fn bounding_set() -> String {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/formic.service");
    let unit = std::fs::read_to_string(unit).expect("the unit");
    let kept = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("a bounding set");
    let kept = kept.split(' ').map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    format!("-all{}", kept.collect::<String>())
}

/// Two hosts whose daemons have no other capabilities: a task runs on each, from the host's files and as Docker's tasks
/// do, they reach each other, and a namespace is attached.
#[test]
fn the_units_capabilities_are_enough() {
    let net = Topology::new(2);
    let wrapper = net.directory().join("as-the-unit");
    let script = format!("#!/bin/sh\nexec setpriv --bounding-set={} {} \"$@\"\n", bounding_set(), formic().display());
    std::fs::write(&wrapper, script).expect("write the wrapper");
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("make it run");
    for host in &net.hosts {
        host.use_binary(&wrapper);
    }
    let swarm = Swarm::bring_up(net, FAST, &[]);
    swarm.create_network("net", &["--attachable", "--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 2);
    let kept = swarm.exec(&tasks[0], &["sh", "-c", "chown 1:1 /tmp && ping -c 1 -W 2 127.0.0.1 && echo done"]);
    assert!(kept.ok().ends_with("done"), "what containers may do");
    let host = swarm.host(0);
    host.run(&["ip", "netns", "add", "blue"]).ok();
    host.formic(&["attach", "--netns", "blue", "net"]).ok();
}

/// The README's lines for hosts on which a docker swarm has its ports: here they are taken by the test.
#[test]
fn it_runs_beside_a_docker_swarm() {
    let net = Topology::new(2);
    let taken = |host: &Host| {
        host.in_network(|| {
            let control = TcpListener::bind("0.0.0.0:2377").expect("take Docker's control port");
            let udp = |port| UdpSocket::bind(("0.0.0.0", port)).expect("take Docker's UDP ports");
            (control, udp(7946), udp(4789))
        })
    };
    let _taken: Vec<_> = net.hosts.iter().map(taken).collect();
    for host in &net.hosts {
        host.start_daemon(&["--gossip-port", "17946"]);
    }
    let (first, second) = (net.host(0), net.host(1));
    let address = first.address().to_string();
    let listen = ["--listen-addr", "0.0.0.0:12377"];
    first.formic(&[&["swarm", "init", "--advertise-addr", &address], &listen[..], FAST].concat()).ok();
    let token = text(&first.get("/swarm")["JoinTokens"]["Manager"]);
    let remote = format!("{address}:12377");
    second.formic_with(&[&["swarm", "join", "--token", "-"], &listen[..], &[&remote]].concat(), token.as_bytes()).ok();
    first.formic(&["network", "create", "--driver", "overlay", "--opt", "encrypted", "net"]).ok();
    let create = ["service", "create", "--mode", "global", "--name", "web", "--network", "net", "host"];
    first.formic(&[&create, IDLE].concat()).ok();
    let running =
        || list(first.get("/tasks")).into_iter().filter(|task| task["Status"]["State"] == "running").collect();
    wait_until("a task runs on each host", SETTLE, || {
        let tasks: Vec<Value> = running();
        so(tasks.len() == 2, || format!("{tasks:#?}"))
    });
    let tasks = running();
    let other = |task: &&Value| task["NodeID"] != first.status()["swarm"]["node"];
    let other = tasks.iter().find(other).expect("a task on the second host");
    let there = text(&other["NetworksAttachments"][0]["Addresses"][0]);
    let own = list(first.get("/containers/json"));
    let ping = ["exec", own[0]["Id"].as_str().expect("an id"), "ping", "-c", "3", "-i", "0.1", "-W", "2"];
    wait_until("the tasks reach each other", SETTLE, || {
        let finished = first.formic(&[&ping[..], &[there.split('/').next().unwrap_or_default()]].concat());
        so(finished.code == 0, || finished.describe())
    });
}
