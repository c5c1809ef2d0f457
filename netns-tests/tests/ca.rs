//! The swarm's root certificate is replaced under traffic, and nobody falls out.

use netns_tests::swarm::{SETTLE, list, text};
use netns_tests::traffic::{Flow, pings};
use netns_tests::wait::so;
use netns_tests::{Swarm, wait_until};
use serde_json::Value;

/// The root that the swarm wants, and whether all nodes have it and the former one is dropped.
fn settled_root(swarm: &Swarm) -> Result<String, String> {
    let cluster = swarm.manager().try_get("/swarm")?;
    let root = text(&cluster["TLSInfo"]["TrustRoot"]);
    let nodes = list(swarm.manager().try_get("/nodes")?);
    let behind: Vec<&Value> =
        nodes.iter().filter(|node| node["Description"]["TLSInfo"]["TrustRoot"] != root.as_str()).collect();
    so(behind.is_empty(), || format!("{} nodes are behind", behind.len()))?;
    so(cluster["RootRotationInProgress"] == false, || "in progress".into())?;
    Ok(root)
}

fn certificate(swarm: &Swarm, host: usize) -> String {
    let path = swarm.host(host).state_dir().join("node/identity.pem");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_new_root_under_traffic_loses_nothing() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 2);
    let (token, former) = (swarm.worker_token(), settled_root(&swarm).expect("a root"));
    let shown = swarm.manager().formic(&["swarm", "ca"]).ok();
    assert_eq!(shown.trim(), former.trim());
    // The third host goes away: its task, whichever that is, takes no part.
    let on = |host| tasks.iter().find(|task| task.host == host).expect("a task on each host");
    let flows = [(0, 1), (1, 0)].map(|(from, to)| Flow::start(on(from), on(to)));

    // One node hears of it only when it is back; until then the former root stays trusted.
    let third_before = certificate(&swarm, 2);
    swarm.host(2).stop_daemon();
    swarm.wait_node(2, "down");
    swarm.manager().formic(&["swarm", "ca", "--rotate", "--detach"]).ok();
    let refused = swarm.manager().formic(&["swarm", "ca", "--rotate"]);
    assert!(refused.code != 0 && refused.stderr.contains("ant-3"), "{}", refused.describe());
    wait_until("all but one renewed", SETTLE, || {
        let refused = swarm.manager().formic(&["swarm", "ca", "--rotate"]).stderr;
        so(refused.contains("waiting for ant-3 (") && !refused.contains("ant-2"), || refused.clone())
    });
    swarm.host(2).start_daemon(&[]);
    let new = wait_until("the new root everywhere", SETTLE, || settled_root(&swarm));
    assert_ne!(new, former);
    let body = |pem: &str| pem.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    wait_until("the former root forgotten", SETTLE, || {
        let held = certificate(&swarm, 2);
        let text: String = held.split_whitespace().collect();
        so(held != third_before && text.contains(&body(&new)) && !text.contains(&body(&former)), || {
            held.lines().filter(|line| line.starts_with('-')).collect()
        })
    });

    // The third host's task was placed anew; the others lost nothing.
    for flow in flows {
        let (sent, lost) = flow.stop();
        assert!(sent > 100, "only {sent} pings");
        assert_eq!(lost, 0, "lost of {sent}");
    }
    assert_ne!(swarm.worker_token(), token, "the old token names the former root");
    let joined = swarm.manager().formic(&["swarm", "join-token", "-q", "worker"]).ok();
    assert_eq!(joined, swarm.worker_token());

    // Whoever starts again comes back with what is on its disk.
    for host in [1, 0] {
        swarm.host(host).stop_daemon();
        swarm.host(host).start_daemon(&[]);
        swarm.wait_ready(3);
    }
    let tasks = swarm.wait_tasks("web", 3);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let address = tasks[to].address();
        wait_until("traffic", SETTLE, || pings(&tasks[from], address, 2));
    }
}

#[test]
fn the_docker_client_replaces_the_root() {
    let swarm = Swarm::start(2);
    let token = swarm.worker_token();
    let former = swarm.manager().docker(&["swarm", "ca"]).ok();
    // Waits until every node shows a certificate of the new root.
    let rotated = swarm.manager().docker(&["swarm", "ca", "--rotate"]).ok();
    let new = swarm.manager().docker(&["swarm", "ca"]).ok();
    assert!(new != former && rotated.ends_with(&new), "{rotated}");
    wait_until("the former root dropped", SETTLE, || settled_root(&swarm));
    swarm.host(1).docker(&["swarm", "leave"]).ok();
    let old = swarm.host(1).docker(&["swarm", "join", "--token", &token, &swarm.remote()]);
    assert!(old.code != 0 && old.stderr.contains("remote CA does not match fingerprint"), "{}", old.describe());
    swarm.join(1);
}

#[test]
fn what_a_demoted_manager_knew_is_replaced_under_traffic() {
    let swarm = Swarm::start_managers(2, 1);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 2);
    let (token, former) = (swarm.worker_token(), settled_root(&swarm).expect("a root"));
    let epoch = || current_epoch(&swarm);
    let before = epoch();
    let flow = Flow::start(&tasks[0], &tasks[1]);
    swarm.manager().formic(&["node", "demote", &swarm.host(1).name()]).ok();
    let new = wait_until("a new root everywhere", SETTLE, || {
        settled_root(&swarm).and_then(|root| so(root != former, || "the former root".into()).map(|()| root))
    });
    wait_until("fresh keys", SETTLE, || so(epoch() > before, || format!("epoch {}", epoch())));
    let (sent, lost) = flow.stop();
    assert!(sent > 0 && lost == 0, "{lost} of {sent} pings are lost");
    assert_eq!(swarm.manager().formic(&["swarm", "ca"]).ok().trim(), new.trim());
    swarm.host(2).formic(&["swarm", "leave"]).ok();
    let old = swarm.host(2).formic_with(&["swarm", "join", "--token", "-", &swarm.remote()], token.as_bytes());
    assert!(old.code != 0 && old.stderr.contains("remote CA does not match fingerprint"), "{}", old.describe());
    swarm.join(2);
}

fn current_epoch(swarm: &Swarm) -> u64 {
    let keys = swarm.manager().get("/formic/keys");
    let epochs = list(keys["epochs"].clone());
    let current = epochs.iter().find(|epoch| epoch["phase"] == "current").expect("a current epoch");
    current["epoch"].as_u64().expect("its number")
}
