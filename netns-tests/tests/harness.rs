//! The harness itself: what the other suites rely on, shown without a daemon.

use netns_tests::attack::Forger;
use netns_tests::capture::{self, Capture};
use netns_tests::swarm::SETTLE;
use netns_tests::wait::so;
use netns_tests::{Packet, Topology, process, wait_until};
use std::path::Path;

#[test]
fn hosts_reach_each_other_and_a_capture_sees_it() {
    let net = Topology::new(2);
    let running = Capture::underlay(&net, "ping.pcap");
    let target = net.host(1).address().to_string();
    net.host(0).run(&["ping", "-c", "3", "-i", "0.05", "-p", "4d41524b", &target]).ok();
    let file = net.directory().join("ping.pcap");
    let echoes = |packets: &[Packet]| {
        packets.iter().filter(|packet| packet.protocol == 1 && packet.source.0 == net.host(0).address()).count()
    };
    wait_until("three echo requests", SETTLE, || so(echoes(&capture::read(&file)) == 3, || "not all captured".into()));
    running.stop();
    assert!(capture::contains(&file, b"MARKMARK"));
    assert!(!capture::contains(&file, b"NOT THERE"));
    assert_eq!(net.host(0).run(&["hostname"]).ok(), "ant-1");
}

#[test]
fn a_forged_datagram_arrives_with_its_source() {
    let net = Topology::new(1);
    let capture = Capture::start(net.host(0).command("tcpdump"), "eth0", net.directory().join("forged.pcap"));
    Forger::new().send(("10.77.0.99".parse().unwrap(), 4500), (net.host(0).address(), 4500), b"nobody asked for this");
    let path = net.directory().join("forged.pcap");
    wait_until("the datagram", SETTLE, || so(capture::contains(&path, b"nobody asked"), || "not captured".into()));
    let packets = capture::read(&capture.stop());
    let forged = packets.iter().find(|packet| packet.is_udp(4500)).expect("it");
    assert_eq!(forged.source, ("10.77.0.99".parse().unwrap(), 4500));
    assert_eq!(forged.payload, b"nobody asked for this");
}

#[test]
fn a_cut_cable_cuts() {
    let net = Topology::new(2);
    let target = net.host(1).address().to_string();
    net.connect(1, false);
    assert_ne!(net.host(0).run(&["ping", "-c", "1", "-W", "1", &target]).code, 0);
    net.connect(1, true);
    wait_until("the cable", SETTLE, || {
        let finished = net.host(0).run(&["ping", "-c", "1", "-W", "1", &target]);
        so(finished.code == 0, || finished.describe())
    });
}

#[test]
fn nothing_is_left_on_the_machine() {
    let names = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let before = names(&std::fs::read_to_string("/proc/self/mounts").unwrap());
    let directory = std::thread::spawn(|| {
        let net = Topology::new(1);
        net.image_directory();
        net.directory().to_owned()
    })
    .join()
    .unwrap();
    assert!(!directory.exists());
    assert_eq!(names(&std::fs::read_to_string("/proc/self/mounts").unwrap()), before);
}

#[test]
fn the_image_directory_runs_its_programs_alone() {
    let net = Topology::new(1);
    let root = net.image_directory();
    for words in [&["/bin/sh", "-c", "echo it runs"][..], &["/bin/ping", "-V"], &["/bin/iperf3", "--version"]] {
        let mut command = std::process::Command::new("chroot");
        command.arg(&root).args(words);
        process::run(command).ok();
    }
}

#[test]
fn a_pair_is_two_hosts_on_one_cable() {
    let net = Topology::pair();
    assert_eq!(net.host(0).devices(), ["eth0", "lo"]);
    net.host(0).run(&["ping", "-c", "1", "-W", "5", &net.host(1).address().to_string()]).ok();
    net.host(1).use_binary(Path::new("/bin/echo"));
    assert_eq!(net.host(1).formic(&["another", "binary"]).ok(), "another binary");
}
