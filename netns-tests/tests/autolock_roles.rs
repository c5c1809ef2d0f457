//! Managers of a locked swarm come and go: promotions that cannot be carried out at once, or are taken back, and a manager
//! that does not notice that it was demoted and promoted again. Nobody is locked out, and no key is left open or lost.

use netns_tests::swarm::{SETTLE, list};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, wait_until};
use std::net::TcpListener;

fn identity(host: &Host) -> String {
    std::fs::read_to_string(host.state_dir().join("node/identity.pem")).expect("an identity")
}

fn is_sealed(host: &Host) -> bool {
    identity(host).contains("SEALED PRIVATE KEY")
}

fn is_locked(host: &Host) -> bool {
    host.get("/info")["Swarm"]["LocalNodeState"] == "locked"
}

fn key_file_is_locked(host: &Host) -> bool {
    std::fs::read(host.state_dir().join("manager/at-rest.key")).is_ok_and(|file| file.get(16) == Some(&1))
}

fn set_role(swarm: &Swarm, change: &str, host: &Host) {
    // A change of the same node that is under way gives it another version.
    wait_until("the role is taken", SETTLE, || {
        let told = swarm.manager().formic(&["node", change, &host.name()]);
        so(told.code == 0, || told.describe())
    });
}

fn wait_managers(swarm: &Swarm, count: usize) {
    wait_until("the managers reach each other", SETTLE, || {
        let nodes = list(swarm.manager().try_get("/nodes")?);
        let reachable = nodes
            .iter()
            .filter(|node| node["ManagerStatus"]["Reachability"] == "reachable" && node["Status"]["State"] == "ready");
        so(reachable.count() == count, || swarm.manager().formic(&["node", "ls"]).describe())
    });
}

fn wait_log(host: &Host, text: &str, count: usize) {
    wait_until(text, SETTLE, || so(host.log().matches(text).count() >= count, || host.log_tail()));
}

/// Its files are those of a worker, and so it starts again.
fn wait_worker(swarm: &Swarm, host: &Host) {
    wait_until("nothing of the manager is left", SETTLE, || {
        let left = host.state_dir().join("manager").exists() || is_sealed(host);
        so(!left, || host.log_tail())
    });
    host.stop_daemon();
    host.start_daemon(&[]);
    assert!(!is_locked(host));
    swarm.wait_ready(4);
    host.formic(&["node", "ls"]).refused("Worker nodes can't be used");
}

/// It starts again, and wants the key.
fn starts_locked(swarm: &Swarm, host: &Host, key: &str, managers: usize) {
    assert!(key_file_is_locked(host) && is_sealed(host));
    host.stop_daemon();
    host.start_daemon(&[]);
    assert!(is_locked(host));
    host.formic_with(&["swarm", "unlock"], key.as_bytes()).ok();
    wait_managers(swarm, managers);
}

/// What is said of a manager that cannot open its port.
const PORT_TAKEN: &str = "cannot listen on";

fn take_control_port(host: &Host) -> TcpListener {
    host.in_network(|| TcpListener::bind("0.0.0.0:2377")).expect("the port is free")
}

fn a_promotion_that_is_held_up(swarm: &Swarm, key: &str) {
    let host = swarm.host(3);
    let taken = take_control_port(host);
    set_role(swarm, "promote", host);
    wait_log(host, PORT_TAKEN, 1);
    assert!(key_file_is_locked(host) && is_sealed(host));
    drop(taken);
    wait_managers(swarm, 4);
    starts_locked(swarm, host, key, 4);
    set_role(swarm, "demote", host);
    wait_worker(swarm, host);
}

fn a_promotion_that_is_taken_back(swarm: &Swarm) {
    let host = swarm.host(3);
    let before = host.log().matches(PORT_TAKEN).count();
    let taken = take_control_port(host);
    set_role(swarm, "promote", host);
    wait_log(host, PORT_TAKEN, before + 1);
    set_role(swarm, "demote", host);
    wait_worker(swarm, host);
    drop(taken);
}

/// It was demoted and promoted again while it could not hear of it.
fn a_manager_in_a_new_seat(swarm: &Swarm, key: &str) {
    const NOW: &str = "this node is a manager now";
    let host = swarm.host(2);
    let before = host.log().matches(NOW).count();
    swarm.net.connect(2, false);
    set_role(swarm, "demote", host);
    wait_until("it is no manager", SETTLE, || {
        let node = swarm.manager().try_get(&format!("/nodes/{}", swarm.node_id(2)))?;
        so(node["ManagerStatus"].is_null(), || format!("{node}"))
    });
    set_role(swarm, "promote", host);
    swarm.net.connect(2, true);
    wait_log(host, NOW, before + 1);
    wait_managers(swarm, 3);
    starts_locked(swarm, host, key, 3);
}

/// A new life of the swarm's state makes a worker of a node that was about to become a manager.
fn a_promotion_that_is_overtaken_by_a_new_life(swarm: &Swarm) {
    let host = swarm.host(3);
    let before = host.log().matches(PORT_TAKEN).count();
    let taken = take_control_port(host);
    set_role(swarm, "promote", host);
    wait_log(host, PORT_TAKEN, before + 1);
    [1, 2].iter().for_each(|index| swarm.host(*index).kill_daemon());
    swarm.host(0).formic(&["swarm", "init", "--force-new-cluster"]).ok();
    wait_log(host, "begins a new boot", 1);
    wait_until("nothing of the manager is left", SETTLE, || {
        so(!host.state_dir().join("manager").exists() && !is_sealed(host), || host.log_tail())
    });
    drop(taken);
    host.stop_daemon();
    host.start_daemon(&[]);
    swarm.wait_node(3, "ready");
}

#[test]
fn managers_come_and_go_in_a_locked_swarm() {
    let swarm = Swarm::start_managers(3, 1);
    swarm.manager().docker(&["swarm", "update", "--autolock"]).ok();
    let key = swarm.manager().formic(&["swarm", "unlock-key", "-q"]).ok();
    for index in 0..3 {
        let host = swarm.host(index);
        wait_until("it is locked", SETTLE, || so(key_file_is_locked(host) && is_sealed(host), || host.log_tail()));
    }
    a_promotion_that_is_held_up(&swarm, &key);
    a_promotion_that_is_taken_back(&swarm);
    a_manager_in_a_new_seat(&swarm, &key);
    a_promotion_that_is_overtaken_by_a_new_life(&swarm);
}
