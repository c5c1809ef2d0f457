//! What can be told without a daemon.

use super::Finding;
use crate::dataplane::{self, OffloadStatus};
use crate::sys::clock::Clock;
use crate::sys::tun::TunDevice;
use crate::sys::{namespace, privileges};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// The oldest kernel that has all that is needed.
const OLDEST_KERNEL: (u32, u32) = (5, 10);
/// The ports of a daemon that is not told others.
const CONTROL_PORT: u16 = 2377;
const GOSSIP_PORT: u16 = 7946;
const DATA_PORT: u16 = 4500;
/// Octets in a second below which the cipher, and not the network, is what limits a fast link: 10 Gbit/s.
const SLOW_CIPHER_BYTES_PER_SEC: f64 = 1.25e9;

/// Examines this host. With a daemon its ports are rightly in use, and the daemon itself tells of cipher and offloads.
pub fn machine(daemon_runs: bool) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![kernel(release.trim())];
    findings.extend(devices());
    if !daemon_runs {
        findings.extend([ports(), cipher_and_offloads()].concat());
    }
    findings
}

pub(super) fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= OLDEST_KERNEL => {
            Finding::ok("kernel", format!("Linux {release}"))
        }
        (Some(_), Some(_)) => {
            let (major, minor) = OLDEST_KERNEL;
            Finding::wrong("kernel", format!("Linux {release} is too old: {major}.{minor} or newer is needed"))
        }
        _ => Finding::note("kernel", "its version cannot be read from /proc"),
    }
}

/// A device is really made, in a namespace that nobody else sees.
fn devices() -> Vec<Finding> {
    let root = nix::unistd::geteuid().is_root();
    let capabilities = match privileges::check_needed() {
        Ok(()) => Finding::ok("capabilities", "all that the daemon needs are here"),
        Err(error) if root => Finding::wrong("capabilities", error.to_string()),
        Err(_) => {
            let text = "run this as root to have capabilities, devices and namespaces examined";
            return vec![Finding::note("capabilities", text)];
        }
    };
    let tun = match TunDevice::check_available() {
        Ok(()) => Finding::ok("tun", "/dev/net/tun can be opened"),
        Err(error) => Finding::wrong("tun", error.to_string()),
    };
    let device = match namespace::in_new_network(|| TunDevice::open_vnet("eth0").map(drop)) {
        Ok(_) => Finding::ok("namespaces", "a TUN device was made in a network namespace of its own"),
        Err(error) => Finding::wrong("namespaces", format!("no TUN device in a network namespace of its own: {error}")),
    };
    vec![capabilities, tun, device]
}

fn ports() -> Vec<Finding> {
    let udp = |port: u16| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).map(drop);
    vec![
        port("TCP", CONTROL_PORT, "--listen-addr", TcpListener::bind((Ipv4Addr::UNSPECIFIED, CONTROL_PORT)).map(drop)),
        port("UDP", GOSSIP_PORT, "daemon --gossip-port", udp(GOSSIP_PORT)),
        port("UDP", DATA_PORT, "--data-path-port", udp(DATA_PORT)),
    ]
}

pub(super) fn port(protocol: &str, port: u16, option: &str, bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::ok("ports", format!("{protocol} {port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let text =
                format!("{protocol} {port} is in use by another program: stop it, or choose another with {option}");
            Finding::wrong("ports", text)
        }
        Err(error) => Finding::wrong("ports", format!("{protocol} {port} cannot be bound: {error}")),
    }
}

fn cipher_and_offloads() -> Vec<Finding> {
    let (cipher, offloads) = match dataplane::self_test(Clock::start()) {
        Ok(tested) => tested,
        Err(broken) => return vec![Finding::wrong("cipher", broken.to_string())],
    };
    let speed =
        format!("AES-256-GCM by {}, {:.1} GB/s in one thread", cipher.library.name(), cipher.bytes_per_sec / 1e9);
    let cipher = match (cipher.fell_back, cipher.bytes_per_sec < SLOW_CIPHER_BYTES_PER_SEC) {
        (true, _) => Finding::note("cipher", format!("{speed}: the faster library failed its self-test")),
        (false, true) => Finding::note("cipher", format!("{speed}: slower than a link of 10 Gbit/s")),
        (false, false) => Finding::ok("cipher", speed),
    };
    let offload = |status: OffloadStatus| Finding::of_offload(status.offload.name(), &status.describe());
    std::iter::once(cipher).chain(offloads.into_iter().map(offload)).collect()
}
