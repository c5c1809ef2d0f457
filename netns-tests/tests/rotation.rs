//! The managers' keys rotate under load and nothing is lost.

use netns_tests::swarm::{FAST, list, text};
use netns_tests::traffic::{Flow, IperfServer, Stream};
use netns_tests::wait::so;
use netns_tests::{Ring, Swarm, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// From the wish to rotate until all send with the new epoch; far below the 10 min after which late nodes are left behind.
const ROTATION_DEADLINE: Duration = Duration::from_secs(30);

fn ring(swarm: &Swarm) -> Value {
    swarm.manager().get("/formic/keys")
}

/// The number of the current epoch, once all its participants send with it and a next one is there.
fn settled_epoch(swarm: &Swarm) -> Result<u64, String> {
    Ring::of(swarm.manager())?.settled()
}

/// SPIs that a host sends with now.
fn active_spis(swarm: &Swarm, host: usize) -> BTreeSet<String> {
    active(swarm, host).iter().map(|sa| text(&sa["spi"])).collect()
}

/// SAs that a host sends with now.
fn active(swarm: &Swarm, host: usize) -> Vec<Value> {
    let sas = list(swarm.host(host).status()["sas"].clone());
    sas.into_iter().filter(|sa| sa["direction"] == "out" && sa["active"] == true).collect()
}

#[test]
fn three_rotations_lose_nothing() {
    // One SA each way and pair, whatever the number of cores.
    let swarm = Swarm::start_with(3, FAST, &["--data-workers", "1"]);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 2);
    let mut epoch = wait_until("a settled ring", ROTATION_DEADLINE, || settled_epoch(&swarm));

    let flows: Vec<Flow> =
        [(0, 1), (1, 2), (2, 0)].into_iter().map(|(a, b)| Flow::start(&tasks[a], &tasks[b])).collect();
    let server = IperfServer::start(&tasks[2]);
    let stream = Stream::start(&tasks[0], &tasks[2], 170);
    for round in 0..3 {
        let before: Vec<_> = (0..3).map(|host| active_spis(&swarm, host)).collect();
        assert!(before.iter().all(|spis| spis.len() == 2), "an SA to each of two peers: {before:?}");
        wait_until("traffic under the keys of this round", ROTATION_DEADLINE, || {
            let packets =
                (0..3).flat_map(|host| active(&swarm, host)).map(|sa| sa["packets"].as_u64().unwrap_or(0)).min();
            so(packets >= Some(100), || format!("{packets:?} on the quietest SA"))
        });
        swarm.manager().formic(&["swarm", "rotate-keys"]).ok();
        let now = wait_until(&format!("rotation {round}"), ROTATION_DEADLINE, || {
            let now = settled_epoch(&swarm)?;
            so(now > epoch, || format!("still {now}: {}", ring(&swarm))).map(|()| now)
        });
        epoch = now;
        for (host, old) in before.iter().enumerate() {
            wait_until("all SPIs new", ROTATION_DEADLINE, || {
                let new = active_spis(&swarm, host);
                so(new.len() == 2 && new.is_disjoint(old), || format!("{old:?} -> {new:?}"))
            });
        }
    }
    let bytes = stream.stop();
    drop(server);
    assert!(bytes > 1_000_000, "the stream stood still: {bytes} bytes");
    for flow in flows {
        let (sent, lost) = flow.stop();
        assert!(sent > 100, "only {sent} pings");
        assert_eq!(
            lost,
            0,
            "lost of {sent}; drops: {:?}",
            swarm.net.hosts.iter().map(|h| h.status()["drops"].clone()).collect::<Vec<_>>()
        );
    }
    let shown = swarm.manager().formic(&["swarm", "keys"]).ok();
    assert!(shown.contains(&epoch.to_string()) && shown.contains("current") && shown.contains("next"), "{shown}");
}

#[test]
fn the_timer_rotates_and_survives_a_restart() {
    let swarm = Swarm::start_with(2, &["--dispatcher-heartbeat", "1s", "--key-rotation-interval", "60s"], &[]);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 1);
    let first = wait_until("a settled ring", ROTATION_DEADLINE, || settled_epoch(&swarm));
    let age = |swarm: &Swarm| {
        let ring = ring(swarm);
        let epochs = list(ring["epochs"].clone());
        let current = epochs.iter().find(|epoch| epoch["phase"] == "current").expect("a current epoch");
        (current["epoch"].as_u64().unwrap_or(0), current["activated_secs_ago"].as_u64().unwrap_or(0))
    };
    // The age is the log's, so that a manager that restarts often still rotates.
    wait_until("some age", Duration::from_secs(30), || so(age(&swarm).1 >= 5, || format!("{:?}", age(&swarm))));
    swarm.manager().stop_daemon();
    swarm.manager().start_daemon(&[]);
    swarm.wait_ready(2);
    let (epoch, secs) = age(&swarm);
    assert!(epoch == first && secs >= 5, "the restart began the interval anew: epoch {epoch}, {secs} s");
    wait_until("the timer's rotation", Duration::from_secs(90), || {
        let now = settled_epoch(&swarm)?;
        so(now > first, || format!("{:?}", age(&swarm)))
    });
    let tasks = swarm.wait_tasks("web", 2);
    swarm.wait_all_ping(&tasks, 2);
}

#[test]
fn a_node_that_slept_through_rotations_is_right_again() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 1);
    let mut epoch = wait_until("a settled ring", ROTATION_DEADLINE, || settled_epoch(&swarm));
    swarm.net.connect(2, false);
    swarm.wait_node(2, "down");
    for _ in 0..3 {
        swarm.manager().formic(&["swarm", "rotate-keys", "--force"]).ok();
        epoch = wait_until("a rotation without it", ROTATION_DEADLINE, || {
            let ring = Ring::of(swarm.manager())?;
            so(ring.current > epoch && ring.next.is_some(), || format!("{ring:?}")).map(|()| ring.current)
        });
    }
    swarm.net.connect(2, true);
    swarm.wait_node(2, "ready");
    let tasks = swarm.wait_tasks("web", 3);
    swarm.wait_all_ping(&tasks, 2);
}
