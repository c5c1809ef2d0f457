//! The ways a packet can go from one host to the other, set up side by side.
//!
//! ```text
//!   host 0                                host 1
//!   eth0 ---------- one veth pair ---------- eth0      MTU 1500
//!     |-- vxlan0         kernel VXLAN           |
//!     |-- wggo           wireguard-go           |      each with addresses of its own, iperf3 directly on it
//!     `-- wgbt           boringtun              |
//!   formic daemon, tasks                formic daemon, tasks      on a veth pair of their own
//! ```
//! Those that are not measured are idle.

use super::options::{Formic, Options};
use anyhow::{Context, Result, ensure};
use netns_tests::process::{self, Background, COMMAND_DEADLINE};
use netns_tests::swarm::FAST;
use netns_tests::traffic::in_network_of_pid;
use netns_tests::{Host, Swarm, Task, Topology, wait_until};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::Duration;

/// Two hosts' network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// A veth pair: segmentation is passed on, so that super-packets cross it whole.
    Gso,
    /// Like a wire: UDP, and what UDP tunnels carry, is segmented before it, and received packets are real ones.
    Wire,
}

impl Underlay {
    /// Both.
    pub const ALL: [Underlay; 2] = [Underlay::Gso, Underlay::Wire];

    /// For options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Underlay::Gso => "gso",
            Underlay::Wire => "wire",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Underlay::Gso => "veth pair, MTU 1500",
            Underlay::Wire => "wire-like veth pair: UDP and UDP tunnels are segmented before it, MTU 1500",
        }
    }

    fn prepare(self, net: &Topology) {
        if self == Underlay::Wire {
            for host in &net.hosts {
                let mut command = vec!["ethtool", "-K", "eth0", "gro", "on"];
                WIRE_LACKS.iter().for_each(|feature| command.extend([feature, "off"]));
                host.run(&command).ok();
            }
        }
    }
}

/// What a wire-like device does not do for its hosts. The second and the third are VXLAN's: without them it sends real
/// packets like everybody else.
const WIRE_LACKS: [&str; 3] = ["tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];

/// A congestion control that does not pace, and that every kernel allows in every namespace.
pub const UNPACED: &str = "reno";

/// Names of the lanes, in the order of the report. Further binaries of Formic have lanes `formic.2` and so on.
pub const LANES: [&str; 7] = [VETH, VXLAN, WIREGUARD_GO, BORINGTUN, FORMIC, FORMIC_PLAIN, FORMIC_LOCAL];
/// The underlay itself.
pub const VETH: &str = "veth";
/// Kernel VXLAN in clear.
pub const VXLAN: &str = "vxlan";
/// wireguard-go.
pub const WIREGUARD_GO: &str = "wireguard-go";
/// boringtun.
pub const BORINGTUN: &str = "boringtun";
/// Tasks on an encrypted network, on two hosts.
pub const FORMIC: &str = "formic";
/// Tasks on a network that is authenticated only.
pub const FORMIC_PLAIN: &str = "formic-plain";
/// Tasks on one host.
pub const FORMIC_LOCAL: &str = "formic-local";

/// One way.
pub struct Lane {
    /// Its name.
    pub name: String,
    /// A process in the network namespace that sends.
    pub from: u32,
    /// A process in the network namespace that receives.
    pub to: u32,
    /// The receiver's address.
    pub address: IpAddr,
    /// Processes that carry the packets; none when the kernel does.
    pub processes: Vec<u32>,
    /// Between two other tasks of the same hosts.
    pub neighbour: Option<Box<Lane>>,
}

impl Lane {
    /// Whether Formic carries the packets.
    pub fn is_formic(&self) -> bool {
        self.name.starts_with(FORMIC)
    }

    /// What connections begin with at both ends. `iperf3 --congestion` changes it only once they are made, and what BBR
    /// has begun stays paced by a timer whatever comes after.
    fn begin_unpaced(&self) -> Result<()> {
        for pid in [self.from, self.to] {
            let mut set = in_network_of_pid(pid, "sh");
            set.args(["-c", &format!("echo {UNPACED} >/proc/sys/net/ipv4/tcp_congestion_control")]);
            let finished = process::run(set);
            ensure!(finished.code == 0, "{}: {}", self.name, finished.describe());
        }
        Ok(())
    }
}

/// What holds the lanes: they are gone with it.
pub struct Bed {
    /// They.
    pub lanes: Vec<Lane>,
    // Dropped in this order: the tunnels end before their hosts.
    tunnels: Vec<Background>,
    nets: Vec<Topology>,
    swarms: Vec<Swarm>,
}

impl Bed {
    /// Sets up the lanes that are wanted.
    pub fn new(underlay: Underlay, options: &Options) -> Result<Bed> {
        let wanted = |lane: &str| options.wants_lane(lane);
        let mut bed = Bed { lanes: Vec::new(), tunnels: Vec::new(), nets: Vec::new(), swarms: Vec::new() };
        if [VETH, VXLAN, WIREGUARD_GO, BORINGTUN].into_iter().any(&wanted) {
            bed.add_peers(underlay, &wanted)?;
        }
        if [FORMIC, FORMIC_PLAIN, FORMIC_LOCAL].into_iter().any(&wanted) {
            for (number, binary) in (1..).zip(&options.formic) {
                bed.add_formic(underlay, number, binary, &wanted);
            }
        }
        ensure!(!bed.lanes.is_empty(), "nothing to measure");
        if !options.machine_congestion {
            bed.lanes.iter().try_for_each(Lane::begin_unpaced)?;
        }
        Ok(bed)
    }

    fn add_peers(&mut self, underlay: Underlay, wanted: &impl Fn(&str) -> bool) -> Result<()> {
        let net = Topology::pair();
        underlay.prepare(&net);
        if wanted(VETH) {
            self.lanes.push(on_hosts(VETH, &net, net.host(1).address().into(), Vec::new()));
        }
        if wanted(VXLAN) {
            self.lanes.push(on_hosts(VXLAN, &net, vxlan(&net), Vec::new()));
        }
        let tunnels: [(&str, &str, &[&str]); 2] = [
            (WIREGUARD_GO, "wggo", &["wireguard-go", "--foreground", "wggo"]),
            (BORINGTUN, "wgbt", &["boringtun-cli", "--foreground", "--disable-drop-privileges", "wgbt"]),
        ];
        for (number, (name, device, command)) in (2..).zip(tunnels) {
            if wanted(name) {
                let (address, processes) =
                    wireguard(&net, number, device, command).with_context(|| format!("set up {name}"))?;
                self.lanes.push(on_hosts(name, &net, address, processes.iter().map(Background::pid).collect()));
                self.tunnels.extend(processes);
            }
        }
        self.nets.push(net);
        Ok(())
    }

    fn add_formic(&mut self, underlay: Underlay, number: usize, binary: &Formic, wanted: &impl Fn(&str) -> bool) {
        let net = Topology::pair();
        underlay.prepare(&net);
        net.hosts.iter().for_each(|host| host.use_binary(&binary.path));
        let options: Vec<&str> = binary.options.iter().map(String::as_str).collect();
        let swarm = Swarm::bring_up(net, FAST, &options);
        let processes: Vec<u32> = swarm.net.hosts.iter().map(Host::daemon_pid).collect();
        if wanted(FORMIC) || wanted(FORMIC_LOCAL) {
            swarm.create_network("encrypted", &["--opt", "encrypted"]);
            let [here, beside, there, behind] = place(&swarm, "encrypted");
            let neighbour = between("neighbour", &beside, &behind, &processes);
            let lane = Lane { neighbour: Some(Box::new(neighbour)), ..between(FORMIC, &here, &there, &processes) };
            self.add_tasks(lane, number, wanted);
            self.add_tasks(between(FORMIC_LOCAL, &here, &beside, &processes[..1]), number, wanted);
        }
        if wanted(FORMIC_PLAIN) {
            swarm.create_network("plain", &[]);
            let [here, _, there, _] = place(&swarm, "plain");
            self.add_tasks(between(FORMIC_PLAIN, &here, &there, &processes), number, wanted);
        }
        self.swarms.push(swarm);
    }

    fn add_tasks(&mut self, lane: Lane, number: usize, wanted: &impl Fn(&str) -> bool) {
        if wanted(&lane.name) {
            self.lanes.push(Lane { name: numbered(&lane.name, number), ..lane });
        }
    }
}

fn between(name: &str, from: &Task, to: &Task, processes: &[u32]) -> Lane {
    Lane {
        name: name.to_owned(),
        from: from.pid,
        to: to.pid,
        address: to.address(),
        processes: processes.to_vec(),
        neighbour: None,
    }
}

/// Four tasks on a network: two of the first host and two of the second.
fn place(swarm: &Swarm, network: &str) -> [Task; 4] {
    let tasks = swarm.create_service(network, &[network], 4);
    let (first, second): (Vec<Task>, Vec<Task>) = tasks.into_iter().partition(|task| task.host == 0);
    assert_eq!((first.len(), second.len()), (2, 2), "two tasks on each host");
    [first[0].clone(), first[1].clone(), second[0].clone(), second[1].clone()]
}

/// The name of a lane of the binary with this number, from 1.
pub fn numbered(lane: &str, number: usize) -> String {
    if number == 1 { lane.to_owned() } else { format!("{lane}.{number}") }
}

fn on_hosts(name: &str, net: &Topology, address: IpAddr, processes: Vec<u32>) -> Lane {
    let (from, to) = (net.host(0).pid(), net.host(1).pid());
    Lane { name: name.to_owned(), from, to, address, processes, neighbour: None }
}

/// The address of a host's device of a lane.
fn device_address(lane: u8, host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, lane, if host == 0 { 1 } else { 2 })
}

fn bring_up(host: &Host, device: &str, address: Ipv4Addr) {
    host.run(&["ip", "address", "add", &format!("{address}/24"), "dev", device]).ok();
    host.run(&["ip", "link", "set", device, "up"]).ok();
}

/// Returns the address of host 1's device.
fn vxlan(net: &Topology) -> IpAddr {
    const DEVICE: &str = "vxlan0";
    for index in 0..2 {
        let (host, peer) = (net.host(index), net.host(1 - index));
        let command = format!(
            "ip link add {DEVICE} type vxlan id 1 dev eth0 local {} remote {} dstport 4789",
            host.address(),
            peer.address()
        );
        host.run(&command.split(' ').collect::<Vec<_>>()).ok();
        bring_up(host, DEVICE, device_address(1, index));
    }
    device_address(1, 1).into()
}

/// A WireGuard tunnel in userspace: the address of host 1's device, and the two processes.
fn wireguard(net: &Topology, number: u8, device: &str, command: &[&str]) -> Result<(IpAddr, Vec<Background>)> {
    let mut processes = Vec::new();
    let mut keys = Vec::new();
    for host in &net.hosts {
        // Where the tunnels' control sockets are. The host's /run is its own.
        host.run(&["mkdir", "-p", "/var/run/wireguard"]).ok();
        let mut tunnel = host.command(command[0]);
        tunnel.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut tunnel = Background::start(tunnel);
        wait_until(&format!("{} on {}", command[0], host.name()), Duration::from_secs(10), || {
            ensure_runs(&mut tunnel)?;
            let shown = host.run(&["wg", "show", device]);
            if shown.code == 0 { Ok(()) } else { Err(shown.describe()) }
        });
        processes.push(tunnel);
        let private = host.run(&["wg", "genkey"]).ok();
        let mut public = host.command("wg");
        public.arg("pubkey");
        keys.push((process::run_with(public, private.as_bytes(), COMMAND_DEADLINE).ok(), private));
    }
    for index in 0..2 {
        let (host, peer) = (net.host(index), net.host(1 - index));
        let words = format!(
            "set {device} listen-port 5182{number} private-key /dev/stdin peer {} allowed-ips 0.0.0.0/0 endpoint {}:5182{number}",
            keys[1 - index].0,
            peer.address(),
        );
        let mut set = host.command("wg");
        set.args(words.split(' '));
        process::run_with(set, keys[index].1.as_bytes(), COMMAND_DEADLINE).ok();
        host.run(&["ip", "link", "set", device, "mtu", WIREGUARD_MTU]).ok();
        bring_up(host, device, device_address(number, index));
    }
    Ok((device_address(number, 1).into(), processes))
}

/// WireGuard's own default over an underlay of 1500.
const WIREGUARD_MTU: &str = "1420";

fn ensure_runs(process: &mut Background) -> Result<(), String> {
    match process.ended() {
        None => Ok(()),
        Some(code) => panic!("it ended with exit code {code}"),
    }
}
