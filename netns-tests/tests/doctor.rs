//! `formic doctor`: what it says of hosts that are well, and whether it names what is not.

use netns_tests::process::Finished;
use netns_tests::swarm::{list, text};
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, Topology, wait_until};
use serde_json::Value;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

/// What the command may take here to name a blocked path. It asks for 7.5 s, and is to take 10 s at most; a machine that is
/// busy with other things may need more.
const NAMED_WITHIN: Duration = Duration::from_secs(20);

/// What it found wrong: part and text.
fn wrong(host: &Host) -> Vec<(String, String)> {
    let start = Instant::now();
    let finished = host.formic(&["doctor", "--json"]);
    let elapsed = start.elapsed();
    assert!(elapsed < NAMED_WITHIN, "it took {elapsed:?}: {}", finished.describe());
    let report: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.describe()));
    let findings = list(report["findings"].clone()).into_iter().filter(|finding| finding["verdict"] == "wrong");
    let wrong: Vec<_> = findings.map(|finding| (text(&finding["part"]), text(&finding["text"]))).collect();
    assert_eq!((report["well"] == true, finished.code), (wrong.is_empty(), i32::from(!wrong.is_empty())));
    wrong
}

fn says(finished: &Finished, expected: &str) {
    assert!(finished.stdout.contains(expected), "no {expected:?} in it: {}", finished.describe());
}

#[test]
fn blocked_ports_are_named_with_their_direction() {
    let swarm = Swarm::start(3);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 3);
    swarm.wait_all_ping(&tasks, 1);
    for host in &swarm.net.hosts {
        // The managers' clock comes with the first heartbeat, gossip may still be getting to know each other.
        wait_until(&format!("{} is well", host.name()), NAMED_WITHIN * 3, || {
            let found = wrong(host);
            so(found.is_empty(), || format!("{found:?}"))
        });
    }
    // A second may begin on the way of the manager's word.
    let clock = ["0", "1"].map(|ahead| format!("this host's clock is {ahead} s ahead of the manager's"));
    wait_until("the manager has told its time", NAMED_WITHIN, || {
        let finished = swarm.host(2).formic(&["doctor"]);
        so(clock.iter().any(|text| finished.stdout.contains(text)), || finished.describe())
    });
    let well = swarm.host(2).formic(&["doctor"]);
    well.ok();
    for expected in [
        "gossip       10.77.0.1 answers: UDP 7946 is open both ways",
        "esp          10.77.0.2 answers: UDP 4500 is open both ways",
        "control      TCP 2377 of the manager at 10.77.0.1 is open",
        "the host's interface carries 1500 octets, the containers' devices 1438",
        "a TUN device was made in a network namespace of its own",
        "Nothing is wrong.",
    ] {
        says(&well, expected);
    }
    // Host 1 does not hear host 0's ESP, host 2 not its gossip, and host 0 not host 2's control connections.
    swarm.host(1).drop_input("ip saddr 10.77.0.1 udp dport 4500");
    swarm.host(2).drop_input("ip saddr 10.77.0.1 udp dport 7946");
    swarm.host(0).drop_input("ip saddr 10.77.0.3 tcp dport 2377");
    let expected: [&[(&str, &str)]; 3] = [
        &[("esp", "UDP 4500 to 10.77.0.2 is blocked"), ("gossip", "UDP 7946 to 10.77.0.3 is blocked")],
        &[("esp", "UDP 4500 from 10.77.0.1 to this host is blocked")],
        &[
            ("control", "TCP 2377 of the manager at 10.77.0.1 cannot be reached"),
            ("gossip", "UDP 7946 from 10.77.0.1 to this host is blocked"),
        ],
    ];
    for (host, expected) in swarm.net.hosts.iter().zip(expected) {
        wait_until(&format!("{} names what is blocked", host.name()), NAMED_WITHIN * 2, || {
            // Whether the session has been missed yet, is a matter of time.
            let mut found: Vec<_> = wrong(host).into_iter().filter(|(part, _)| part != "swarm").collect();
            found.sort();
            let named = |(found, expected): (&(String, String), &(&str, &str))| {
                found.0 == expected.0 && found.1.starts_with(expected.1)
            };
            so(found.len() == expected.len() && found.iter().zip(expected).all(named), || format!("{found:#?}"))
        });
    }
    swarm.net.hosts.iter().for_each(Host::hear_again);
    wait_until("all is well again", NAMED_WITHIN * 3, || {
        let found = wrong(swarm.host(0));
        so(found.is_empty(), || format!("{found:?}"))
    });
}

#[test]
fn a_host_without_a_daemon_is_examined() {
    let net = Topology::new(1);
    let host = net.host(0);
    let devices = host.devices();
    let well = host.formic(&["doctor"]);
    well.ok();
    for expected in ["UDP 4500 is free", "TCP 2377 is free", "/dev/net/tun can be opened", "only this host is examined"]
    {
        says(&well, expected);
    }
    let socket = host.in_network(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 4500)).expect("bind"));
    let ill = host.formic(&["doctor"]);
    assert_eq!(ill.code, 1, "{}", ill.describe());
    says(&ill, "WRONG  ports        UDP 4500 is in use by another program");
    says(&ill, "1 thing is wrong.");
    drop(socket);
    assert_eq!(host.devices(), devices, "nothing is left");

    host.start_daemon(&[]);
    let alone = host.formic(&["doctor"]);
    alone.ok();
    says(&alone, "this host is in no swarm");
    assert!(!alone.stdout.contains("is free"), "the daemon's ports are its own: {}", alone.describe());
}
