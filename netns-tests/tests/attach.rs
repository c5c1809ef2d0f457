//! Namespaces of a host's operator on an attachable network.

use netns_tests::swarm::{SETTLE, list};
use netns_tests::wait::so;
use netns_tests::{Finished, Host, Swarm, wait_until};

const REFUSAL: &str = "swarm-scoped network (closed) is not compatible with `docker create` or `docker run`. This network can only be used by a docker service.";

/// The addresses that `formic attach` shows.
fn attach(host: &Host, netns: &str, network: &str, options: &[&str]) -> String {
    host.formic(&[&["attach", "--netns", netns], options, &[network]].concat()).ok()
}

fn in_namespace(host: &Host, netns: &str, command: &[&str]) -> Finished {
    host.run(&[&["ip", "netns", "exec", netns], command].concat())
}

#[track_caller]
fn wait_ping(host: &Host, netns: &str, address: &str) {
    wait_until(&format!("{netns} pings {address}"), SETTLE, || {
        let finished = in_namespace(host, netns, &["ping", "-n", "-q", "-c", "3", "-i", "0.05", "-W", "1", address]);
        so(finished.code == 0, || finished.describe())
    });
}

/// A command that names a network, once the host has heard of it.
fn once_known(command: impl Fn() -> Finished) -> Finished {
    wait_until("the network is known", SETTLE, || {
        let finished = command();
        if finished.stderr.contains("not found") { Err(finished.describe()) } else { Ok(finished) }
    })
}

/// How many networks a host has the keys of.
fn networks_of(host: &Host) -> usize {
    list(host.status()["networks"].clone()).len()
}

/// Two named namespaces, on a manager and a worker, a task of a service, and a network that takes none of them.
#[test]
fn namespaces_join_attachable_networks() {
    let swarm = Swarm::start(3);
    swarm.create_network("open", &["--attachable", "--opt", "encrypted", "--subnet", "10.200.0.0/24"]);
    swarm.create_network("closed", &["--opt", "encrypted"]);
    let (manager, worker, third) = (swarm.host(0), swarm.host(1), swarm.host(2));
    for host in [manager, worker, third] {
        host.run(&["ip", "netns", "add", "blue"]).ok();
        for verb in ["attach", "detach"] {
            let refused = once_known(|| host.formic(&[verb, "--netns", "blue", "closed"]));
            let text = format!("formic: Error response from daemon: {REFUSAL}");
            assert_eq!((refused.code, refused.stderr.trim()), (1, text.as_str()));
        }
    }
    assert_eq!(attach(manager, "blue", "open", &["--ip", "10.200.0.50"]), "10.200.0.50/24");
    assert_eq!(networks_of(worker), 0, "the keys only go where something is on the network");
    let address = attach(worker, "/var/run/netns/blue", "open", &[]);
    assert_eq!(networks_of(worker), 1);
    assert_eq!(networks_of(third), 0);
    let address = address.strip_suffix("/24").expect("an address");
    wait_ping(manager, "blue", address);
    wait_ping(worker, "blue", "10.200.0.50");

    let tasks = swarm.create_service("web", &["open"], 1);
    wait_ping(worker, "blue", &tasks[0].address().to_string());
    assert!(manager.formic(&["ps"]).ok().contains("netns:blue"));
    wrong_uses(&swarm);

    // A restart of the daemon puts it back, with its address.
    worker.stop_daemon();
    let links = in_namespace(worker, "blue", &["ip", "-o", "link"]).ok();
    assert!(!links.contains("eth0"), "a daemon that ends leaves no device: {links}");
    worker.start_daemon(&[]);
    wait_ping(worker, "blue", "10.200.0.50");
    wait_ping(manager, "blue", address);

    worker.formic(&["detach", "--netns", "blue", "open"]).ok();
    let links = in_namespace(worker, "blue", &["ip", "-o", "link"]).ok();
    assert!(!links.contains("eth0"), "{links}");
    wait_until("the keys go with it", SETTLE, || {
        let held = networks_of(worker);
        so(held == usize::from(tasks[0].host == 1), || format!("{held} networks"))
    });
    let again = worker.formic(&["detach", "--netns", "blue", "open"]);
    assert!(again.code == 1 && again.stderr.contains("the namespace blue is not on this network"), "{}", again.stderr);

    // A namespace that is deleted takes its attachment along; one that is made again gets it back.
    manager.run(&["ip", "netns", "delete", "blue"]).ok();
    wait_until("the deleted namespace is off", SETTLE, || {
        let shown = manager.formic(&["ps"]).ok();
        so(!shown.contains("netns:blue"), || shown)
    });
    manager.run(&["ip", "netns", "add", "blue"]).ok();
    wait_ping(manager, "blue", &tasks[0].address().to_string());
    manager.formic(&["detach", "--netns", "blue", "open"]).ok();
    manager.formic(&["service", "rm", "web"]).ok();
    wait_until("the network is free", SETTLE, || {
        let removed = manager.formic(&["network", "rm", "open"]);
        so(removed.code == 0, || removed.describe())
    });
}

fn wrong_uses(swarm: &Swarm) {
    let host = swarm.host(1);
    host.run(&["ip", "netns", "add", "red"]).ok();
    for (arguments, text) in [
        (&["--netns", "blue", "open"][..], "the namespace blue is on this network already"),
        (&["--netns", "green", "open"], "no such network namespace: green"),
        (&["--netns", "../red", "open"], "is no namespace of `ip netns`"),
        (&["--netns", "/proc/1/ns/net", "open"], "is no namespace of `ip netns`"),
        (&["--netns", "blue", "nowhere"], "network nowhere not found"),
        (&["--netns", "red", "--ip", "10.200.0.50", "open"], "Address already in use: 10.200.0.50 of network open"),
        (&["--netns", "red", "--ip", "10.1.1.1", "open"], "10.1.1.1 is not a host address of subnet"),
    ] {
        let refused = host.formic(&[&["attach"], arguments].concat());
        assert!(refused.code == 1 && refused.stderr.contains(text), "{arguments:?}: {}", refused.stderr);
    }
}
