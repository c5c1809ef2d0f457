//! The hosts of one test.
//!
//! ```text
//!   host 0 (ant-1)       host 1 (ant-2)      ...      each: own network, UTS and mount namespaces,
//!   eth0 10.77.0.1       eth0 10.77.0.2               its own /run
//!      |                    |
//!   ===+====================+==========  bridge `underlay` 10.77.0.254, in the test's own
//!                                        network namespace: captures and attackers live here
//! ```
//!
//! The thread that makes a topology moves into new network and mount namespaces and stays there: nothing of it is
//! visible on the machine, and all of it goes when the test's processes do.

use crate::host::Host;
use crate::process::{self, tied};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The bridge's name, for captures.
pub const BRIDGE: &str = "underlay";

/// The address of the test itself on the underlay: that of an attacker.
pub const OUTSIDER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);

/// Hosts on one bridge.
pub struct Topology {
    /// They.
    pub hosts: Vec<Host>,
    directory: PathBuf,
}

impl Topology {
    /// Makes `count` hosts.
    pub fn new(count: u8) -> Topology {
        let mut topology = Topology::empty();
        ip(&format!("link add {BRIDGE} type bridge mcast_snooping 0"));
        ip(&format!("address add {OUTSIDER}/24 dev {BRIDGE}"));
        ip(&format!("link set {BRIDGE} up"));
        ip("link set lo up");
        for index in 0..count {
            let pid = topology.add_host(index).pid();
            let wire = topology.host(index.into()).wire();
            ip(&format!("link add {wire} type veth peer name eth0 netns {pid}"));
            ip(&format!("link set {wire} master {BRIDGE} up"));
            topology.host(index.into()).connect_eth0();
        }
        topology
    }

    /// Makes two hosts on the ends of one cable, `eth0` to `eth0`, for measurements: no bridge between, and no outsider.
    pub fn pair() -> Topology {
        let mut topology = Topology::empty();
        let ends = [0, 1].map(|index| topology.add_host(index).pid());
        ip(&format!("link add eth0 netns {} type veth peer name eth0 netns {}", ends[0], ends[1]));
        topology.hosts.iter().for_each(Host::connect_eth0);
        topology
    }

    /// Makes `count` hosts without cables.
    pub(crate) fn unconnected(count: u8) -> Topology {
        let mut topology = Topology::empty();
        for index in 0..count {
            topology.add_host(index);
        }
        topology
    }

    fn empty() -> Topology {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .unwrap_or_else(|error| panic!("no new namespaces ({error}): run as root, or by scripts/test"));
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("make mounts private");
        let directory = make_directory();
        // Router solicitations would be noise in the captures.
        no_ipv6(Command::new("sh"));
        Topology { hosts: Vec::new(), directory }
    }

    /// Makes `count` hosts, each with a daemon that answers.
    pub fn with_daemons(count: u8, options: &[&str]) -> Topology {
        let topology = Topology::new(count);
        for host in &topology.hosts {
            host.start_daemon(options);
        }
        topology
    }

    fn add_host(&mut self, index: u8) -> &Host {
        let host = Host::new(index, &self.directory);
        no_ipv6(host.command("sh"));
        self.hosts.push(host);
        self.host(index.into())
    }

    /// A host by number, from 0.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// Where the test may put files; gone with the topology.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A command in the test's own namespace, on the underlay but on no host.
    pub fn outside(&self, program: &str) -> Command {
        tied(program)
    }

    /// Cuts a host off the underlay, or connects it again.
    pub fn connect(&self, index: usize, connected: bool) {
        ip(&format!("link set {} {}", self.hosts[index].wire(), if connected { "up" } else { "down" }));
    }

    /// A root directory for `image import`: busybox (static), ping and iperf3 with their libraries.
    pub fn image_directory(&self) -> PathBuf {
        let root = self.directory.join("image");
        if !root.exists() {
            let script = include_str!("../../scripts/image.sh");
            let mut command = Command::new("bash");
            command.args(["-euc", script, "image"]).arg(&root);
            process::run(command).ok();
        }
        root
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.hosts.iter().for_each(Host::print_log);
        }
        let complaints: Vec<String> = self.hosts.iter().flat_map(Host::unexpected_errors).collect();
        self.hosts.clear();
        let _ = std::fs::remove_dir_all(&self.directory);
        assert!(
            complaints.is_empty() || std::thread::panicking(),
            "unexpected errors in logs:\n{}",
            complaints.join("\n")
        );
    }
}

/// Below TMPDIR or /tmp, and short: a unix socket's path has at most 107 bytes.
fn make_directory() -> PathBuf {
    let path = process::run({
        let mut command = Command::new("mktemp");
        command.args(["-d", "--tmpdir", "formic-test.XXXXXX"]);
        command
    });
    PathBuf::from(path.ok())
}

/// Keeps IPv6 off the devices to come, where the kernel has it at all.
fn no_ipv6(mut shell: Command) {
    shell.args([
        "-c",
        "for kind in all default; do echo 1 >/proc/sys/net/ipv6/conf/$kind/disable_ipv6; done 2>/dev/null; true",
    ]);
    process::run(shell).ok();
}

fn ip(words: &str) {
    let mut command = Command::new("ip");
    command.args(words.split(' '));
    process::run(command).ok();
}
