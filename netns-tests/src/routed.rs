//! Hosts that are not neighbours: each on a cable of its own to one router, the test's own namespace.
//!
//! ```text
//!   ant-1   eth0 10.77.0.1/32, fd77::1/128  ---- wire0 ----.
//!   ant-2   eth0 10.77.0.2/32, fd77::2/128  ---- wire1 ----+-- router: 10.77.0.254, fd77::fe on each wire
//!   ...                                                    '   its wires may carry less than the hosts' ends
//! ```

use crate::host::Host;
use crate::process;
use crate::topology::Topology;
use crate::wait::{so, wait_until};
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

/// The MTU of the hosts' own interfaces.
pub const HOST_MTU_BYTES: u32 = 9000;

/// What the first packet may take.
const CONNECTED_WITHIN: Duration = Duration::from_secs(20);

/// Where nft counts fragments of the underlay.
const WATCH: &str = "add table inet watch; add counter inet watch fragments; \
     add chain inet watch through { type filter hook forward priority 0; }; \
     add rule inet watch through ip frag-off & 0x3fff != 0 counter name fragments; \
     add rule inet watch through exthdr frag exists counter name fragments";

/// The rules by which the router keeps silent about packets that are too long.
const SILENCE: &str = "add table inet silence; add chain inet silence out { type filter hook output priority 0; }; \
     add rule inet silence out icmp type destination-unreachable drop; \
     add rule inet silence out icmpv6 type packet-too-big drop";

/// The IPv6 address of a host.
pub fn ipv6(host: &Host) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.index() as u16 + 1))
}

impl Topology {
    /// Makes `count` hosts around a router, each with an IPv4 and an IPv6 address.
    pub fn routed(count: u8) -> Topology {
        let topology = Topology::unconnected(count);
        shell(
            Command::new("sh"),
            "for kind in all default; do echo 0 >/proc/sys/net/ipv6/conf/$kind/disable_ipv6; done",
        );
        for host in &topology.hosts {
            let (wire, pid) = (host.wire(), host.pid());
            shell(
                Command::new("sh"),
                &format!("ip link add {wire} mtu {HOST_MTU_BYTES} type veth peer name eth0 netns {pid}"),
            );
            // A train of datagrams is checked as one packet by veth; as single ones they meet the MTU.
            let script = format!(
                "for kind in all default; do echo 0 >/proc/sys/net/ipv6/conf/$kind/disable_ipv6; done
                 ethtool -K eth0 tso off gso off tx-udp-segmentation off >/dev/null
                 ip link set lo up && ip link set eth0 mtu {HOST_MTU_BYTES} up
                 ip address add {v4}/32 dev eth0 && ip address add {v6}/128 dev eth0 nodad
                 ip route add default via 10.77.0.254 dev eth0 onlink
                 ip -6 route add default via fd77::fe dev eth0 onlink",
                v4 = host.address(),
                v6 = ipv6(host),
            );
            shell(host.command("sh"), &script);
            let script = format!(
                "ip address add 10.77.0.254/32 dev {wire} && ip address add fd77::fe/128 dev {wire} nodad
                 ip link set {wire} up
                 ip route add {v4}/32 dev {wire} && ip -6 route add {v6}/128 dev {wire}",
                v4 = host.address(),
                v6 = ipv6(host),
            );
            shell(Command::new("sh"), &script);
        }
        shell(
            Command::new("sh"),
            "ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
        );
        nft(WATCH);
        for host in &topology.hosts {
            for other in &topology.hosts {
                // The router learns its neighbours, and tells its link-local addresses apart from others' first.
                wait_until("the hosts reach each other", CONNECTED_WITHIN, || {
                    let finished = host.run(&["ping", "-n", "-c", "1", "-W", "1", &ipv6(other).to_string()]);
                    so(finished.code == 0, || finished.describe())
                });
            }
        }
        topology
    }

    /// From now on the way to and from a host carries packets of so many octets.
    pub fn narrow(&self, index: usize, mtu_bytes: u32) {
        shell(Command::new("sh"), &format!("ip link set {} mtu {mtu_bytes}", self.host(index).wire()));
    }

    /// The router says nothing any more about packets that are too long.
    pub fn silence_router(&self) {
        nft(SILENCE);
    }

    /// Fragments that the router has passed on.
    pub fn fragments(&self) -> u64 {
        let mut command = Command::new("nft");
        command.args(["list", "counter", "inet", "watch", "fragments"]);
        let text = process::run(command).ok();
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        words.next().and_then(|count| count.parse().ok()).expect("nft shows the counter")
    }
}

fn nft(rules: &str) {
    let mut command = Command::new("nft");
    command.arg(rules);
    process::run(command).ok();
}

fn shell(mut command: Command, script: &str) {
    command.args(["-euc", script]);
    process::run(command).ok();
}
