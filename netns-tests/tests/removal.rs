//! A node that is removed and does not go: cut off from the managers, deaf to all gossip, with all its keys, it neither
//! reads what is said from then on nor takes part.

use netns_tests::swarm::{SETTLE, list, text};
use netns_tests::traffic::{Flow, pings};
use netns_tests::wait::so;
use netns_tests::{Swarm, wait_until};
use serde_json::Value;
use std::time::{Duration, Instant};

/// From its removal until a node is shut out of everything.
const SHUT_OUT: Duration = Duration::from_secs(30);

const HOSTILE: usize = 2;

fn epochs(swarm: &Swarm, host: usize) -> Vec<(u64, String)> {
    let epochs = list(swarm.host(host).status()["epochs"].clone());
    epochs.iter().map(|epoch| (epoch[0].as_u64().unwrap_or(0), text(&epoch[1]))).collect()
}

fn current(swarm: &Swarm, host: usize) -> Option<u64> {
    epochs(swarm, host).into_iter().find(|(_, phase)| phase == "current").map(|(epoch, _)| epoch)
}

/// SAs of a host that are in use, with the node at the other end.
fn associations(swarm: &Swarm, host: usize) -> Vec<Value> {
    list(swarm.host(host).status()["sas"].clone()).into_iter().filter(|sa| sa["active"] == true).collect()
}

fn knows(swarm: &Swarm, host: usize, node: &str) -> bool {
    list(swarm.host(host).status()["peers"].clone()).iter().any(|peer| peer["node"] == node)
}

fn gossip_drops(swarm: &Swarm, host: usize) -> u64 {
    swarm.host(host).drops(|reason| reason.starts_with("gossip."))
}

#[test]
fn a_removed_node_that_does_not_go_is_shut_out_within_30_s() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 2);
    let on = |host| tasks.iter().find(|task| task.host == host).expect("a task on each host");
    let id = swarm.node_id(HOSTILE);
    let flow = Flow::start(on(0), on(1));

    // It hears neither that it is removed nor any news; it goes on to speak to everybody.
    let rules = "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }; \
                 add rule ip deaf in tcp sport 2377 drop; add rule ip deaf in udp dport 7946 drop";
    swarm.host(HOSTILE).run(&["nft", rules]).ok();
    let start = Instant::now();
    swarm.manager().formic(&["node", "rm", "--force", &id]).ok();
    for host in [0, 1] {
        let left = SHUT_OUT.saturating_sub(start.elapsed());
        wait_until("it is shut out", left, || {
            let held = epochs(&swarm, HOSTILE);
            let now = current(&swarm, host).ok_or("no current epoch")?;
            so(held.iter().all(|(epoch, _)| *epoch < now), || format!("{held:?}, the others are at {now}"))?;
            let with_it: Vec<Value> =
                associations(&swarm, host).into_iter().filter(|sa| sa["peer"] == id.as_str()).collect();
            so(with_it.is_empty(), || format!("{with_it:?}"))?;
            so(!knows(&swarm, host, &id), || "it is a member still".into())
        });
    }
    println!("shut out {:?} after the command", start.elapsed());

    // It is still there, with what it had, and believes to belong to the swarm.
    let status = swarm.host(HOSTILE).status();
    assert_ne!(status["swarm"]["state"], "inactive", "{}", status["swarm"]);
    let spis = |host| -> Vec<String> {
        list(swarm.host(host).status()["sas"].clone()).iter().map(|sa| text(&sa["spi"])).collect()
    };
    let (theirs, between) = (spis(HOSTILE), associations(&swarm, 0));
    assert!(!theirs.is_empty() && !between.is_empty(), "{theirs:?} {between:?}");
    assert!(between.iter().all(|sa| !theirs.contains(&text(&sa["spi"]))), "it has no key of what the others say");
    // What it says is dropped, on the data path and in the gossip, and it does not get back in.
    let data_drops = |host: usize| swarm.host(host).drops(|reason| !reason.contains('.'));
    for host in [0, 1] {
        let (gossip, data) = (gossip_drops(&swarm, host), data_drops(host));
        let refused = pings(on(HOSTILE), on(host).address(), 3).expect_err("it reaches a task");
        assert!(refused.contains(" 0 received"), "{refused}");
        wait_until("its datagrams are dropped", SETTLE, || {
            let (now, passed) = (gossip_drops(&swarm, host), data_drops(host));
            so(now > gossip && passed > data, || format!("gossip {gossip} -> {now}, data {data} -> {passed}"))
        });
        assert!(!knows(&swarm, host, &id), "it is a member again");
    }
    let (sent, lost) = flow.stop();
    assert!(sent > 100 && lost == 0, "{lost} of {sent} pings are lost");
}
