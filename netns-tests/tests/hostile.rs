//! Datagrams and connections that nobody asked for: dropped and counted; the daemon, its traffic and the tasks unharmed.

use netns_tests::attack::{Dice, Forger};
use netns_tests::capture::{self, Capture};
use netns_tests::swarm::SETTLE;
use netns_tests::topology::OUTSIDER;
use netns_tests::traffic::{Flow, in_network_of};
use netns_tests::wait::so;
use netns_tests::{Host, Packet, Swarm, Topology, wait_until};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// To each of the two UDP ports.
const DATAGRAMS_PER_PORT: usize = 6000;

/// Sent before the counters are looked at: fits the smallest socket buffer, so that the kernel drops none unseen.
const BURST: usize = 50;

const SEED: u64 = 0xa275;

/// Real datagrams of each port, to feed on.
fn recordings(net: &Topology, to: &Host, flow: impl FnOnce()) -> Vec<Packet> {
    let capture = Capture::underlay(net, "real.pcap");
    flow();
    let path = net.directory().join("real.pcap");
    // A hello (version octet 2) is a signed record, and as good the second time: it is no forgery when sent again.
    let gossip = |packet: &Packet| packet.is_udp(7946) && packet.payload.first() != Some(&2);
    let wanted = |packet: &Packet| packet.destination.0 == to.address() && (packet.is_udp(4500) || gossip(packet));
    wait_until("datagrams of both ports", SETTLE, || {
        let packets = capture::read(&path);
        let count = |port| packets.iter().filter(|packet| wanted(packet) && packet.is_udp(port)).count();
        so(count(4500) >= 20 && count(7946) >= 5, || format!("{} and {}", count(4500), count(7946)))
    });
    let mut packets = capture::read(&capture.stop());
    packets.retain(wanted);
    packets
}

/// Something that must be dropped. `0xFF` alone is not: it is a keep-alive, accepted and ignored.
fn forgery(dice: &mut Dice, real: &[Packet]) -> Vec<u8> {
    let original = real[dice.below(real.len())].payload.clone();
    let bytes = match dice.below(4) {
        0 => {
            let len = dice.below(1500);
            dice.bytes(len)
        }
        1 => original[..dice.below(original.len())].to_vec(),
        2 => dice.mutate(&original),
        _ => original,
    };
    if bytes == [0xff] { vec![0xfe] } else { bytes }
}

#[test]
fn twelve_thousand_hostile_datagrams() {
    let swarm = Swarm::start(2);
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 1);
    let victim = swarm.host(tasks[1].host);
    let peer = swarm.host(tasks[0].host).address();
    let pid = victim.daemon_pid();
    let real = recordings(&swarm.net, victim, || swarm.wait_all_ping(&tasks, 30));
    let flow = Flow::start(&tasks[0], &tasks[1]);

    let mut dice = Dice::new(SEED);
    for (port, prefix) in [(4500, ""), (7946, "gossip.")] {
        let of_port: Vec<Packet> = real.iter().filter(|packet| packet.is_udp(port)).cloned().collect();
        let ours = |reason: &str| if prefix.is_empty() { !reason.contains('.') } else { reason.starts_with(prefix) };
        attack(&mut dice, victim, &of_port, (peer, port), ours);
    }
    garbage_on_the_control_port(&mut dice, swarm.manager());

    assert_eq!(victim.daemon_pid(), pid, "seed {SEED:#x}: the daemon was started anew");
    let (sent, lost) = flow.stop();
    assert!(sent > 20 && lost == 0, "seed {SEED:#x}: {lost} of {sent} lost under attack");
    swarm.wait_ready(2);
    swarm.wait_all_ping(&tasks, 2);
    let shown = victim.formic(&["status"]).ok();
    assert!(shown.contains("gossip."), "the drops are shown: {shown}");
}

fn attack(dice: &mut Dice, victim: &Host, real: &[Packet], from: (Ipv4Addr, u16), ours: impl Fn(&str) -> bool) {
    let forger = Forger::new();
    let before = victim.drops(&ours);
    let mut sent = 0;
    while sent < DATAGRAMS_PER_PORT {
        for _ in 0..BURST {
            let payload = forgery(dice, real);
            let source = if dice.below(2) == 0 { from } else { (OUTSIDER, from.1) };
            forger.send(source, (victim.address(), from.1), &payload);
        }
        sent += BURST;
        wait_until(&format!("seed {SEED:#x}, port {}: {sent} drops", from.1), SETTLE, || {
            let dropped = victim.drops(&ours) - before;
            so(dropped >= sent as u64, || format!("{dropped}: {}", victim.status()["drops"]))
        });
    }
}

/// Half-open, silent, talkative and lying connections.
fn garbage_on_the_control_port(dice: &mut Dice, manager: &Host) {
    let address = SocketAddr::from((manager.address(), 2377));
    let before = manager.drops(|reason| reason.starts_with("control."));
    let connections = 100;
    let mut silent = Vec::new();
    for number in 0..connections {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("the port is open");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        let mut garbage = dice.bytes(600);
        if number % 3 == 0 {
            // A TLS record header in front, so that the parser goes deeper.
            garbage.splice(0..5, [0x16, 3, 1, 2, 0]);
        }
        if number % 10 == 0 {
            silent.push(stream);
            continue;
        }
        let _ = stream.write_all(&garbage);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 100, "an answer to garbage: {} bytes", answer.len());
    }
    wait_until("control drops", SETTLE, || {
        let dropped = manager.drops(|reason| reason.starts_with("control.")) - before;
        so(dropped >= connections * 9 / 10, || format!("{dropped}: {}", manager.status()["drops"]))
    });
}

#[test]
fn nothing_reaches_the_only_task_of_a_network() {
    for options in [&["--opt", "encrypted"][..], &[]] {
        let swarm = Swarm::start(1);
        swarm.create_network("net", options);
        let task = swarm.create_service("web", &["net"], 1).remove(0);
        let inside = swarm.net.directory().join("inside.pcap");
        let capture = Capture::start(in_network_of(&task, "tcpdump"), "eth0", inside.clone());
        let host = swarm.manager();
        let forger = Forger::new();
        let mut dice = Dice::new(SEED);
        let before = host.drops(|reason| !reason.contains('.'));
        let inner = clear_text_to(&task);
        let mut sent = 0;
        for _ in 0..50 {
            // In clear, as raw IP, as VXLAN would carry it, and dressed up as ESP.
            let mut dressed = dice.bytes(16);
            dressed.extend(&inner);
            dressed.extend([1, 2, 2, 4]);
            dressed.extend(dice.bytes(16));
            for payload in [&inner, &dressed] {
                forger.send_as_outsider((host.address(), 4500), payload);
                sent += 1;
            }
            forger.send_as_outsider((host.address(), 4789), &inner);
        }
        wait_until("all dropped", SETTLE, || {
            let dropped = host.drops(|reason| !reason.contains('.')) - before;
            so(dropped >= sent, || format!("{dropped} of {sent}: {}", host.status()["drops"]))
        });
        let mut packets = capture::read(&capture.stop());
        // The task's own kernel may speak IGMP or IPv6 on its device; all that was forged is an echo request.
        packets.retain(|packet| packet.protocol == 1 || packet.destination.0 == task.address());
        assert!(packets.is_empty(), "reached the task: {packets:?}");
    }
}

/// An inner IPv4 packet (an echo request) addressed to the task.
fn clear_text_to(task: &netns_tests::Task) -> Vec<u8> {
    let std::net::IpAddr::V4(to) = task.address() else { panic!("IPv4") };
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0];
    packet.extend([to.octets()[0], to.octets()[1], to.octets()[2], 200]);
    packet.extend(to.octets());
    packet.extend([8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    packet
}
