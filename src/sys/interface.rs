//! Network interfaces of the current thread's namespace: addresses, MTU, flags, and what the host's look like.
//!
//! By ioctl, not netlink: six settings on a device that was just made need no message builder, no socket
//! protocol and no further crate; the ioctls are frozen and their errors are plain `errno`s. The one setting that
//! only netlink knows is one message of fixed form. IPv6 addresses come with the feature that needs them.

use super::{check, explain};
use ipnet::{IpNet, Ipv4Net};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrStorage, socket,
};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

/// An `ifreq` for the interface `name`, all else zero. Errors when the name is empty or longer than 15 bytes.
pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain old data; all bytes zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let fits = !name.is_empty() && name.len() < request.ifr_name.len() && !name.bytes().any(|b| b == 0 || b == b'/');
    if !fits {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not an interface name: {name:?}")));
    }
    for (target, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *target = byte as libc::c_char;
    }
    Ok(request)
}

fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

fn ioctl(call: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    let socket = control_socket()?;
    // SAFETY: every SIOC[GS]IF* call reads and writes at most one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), call as _, request) }).map(drop)
}

fn ipv4_sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets().map(|octet| octet as libc::c_char);
    // `sockaddr_in` seen as `sockaddr`: the port first, then the address.
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: [0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0],
    }
}

/// Gives the interface its address and prefix. IPv6 is refused (`Unsupported`) until the command line offers it.
pub fn set_address(name: &str, address: IpNet) -> io::Result<()> {
    let IpNet::V4(address) = address else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "IPv6 addresses inside a network come later"));
    };
    let mut set = request(name)?;
    set.ifr_ifru.ifru_addr = ipv4_sockaddr(address.addr());
    ioctl(libc::SIOCSIFADDR, &mut set)
        .map_err(|error| explain(format_args!("set the address of {name} to {address}"), error))?;
    let mut set = request(name)?;
    set.ifr_ifru.ifru_netmask = ipv4_sockaddr(address.netmask());
    ioctl(libc::SIOCSIFNETMASK, &mut set)
        .map_err(|error| explain(format_args!("set the prefix of {name} to {address}"), error))
}

/// Whether the thread's namespace has an interface of this name.
pub fn exists(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

/// Sets the MTU in bytes.
pub fn set_mtu(name: &str, mtu_bytes: u32) -> io::Result<()> {
    let mut set = request(name)?;
    set.ifr_ifru.ifru_mtu = mtu_bytes as libc::c_int;
    ioctl(libc::SIOCSIFMTU, &mut set)
        .map_err(|error| explain(format_args!("set the MTU of {name} to {mtu_bytes}"), error))
}

/// The MTU in bytes.
pub fn mtu(name: &str) -> io::Result<u32> {
    let mut get = request(name)?;
    ioctl(libc::SIOCGIFMTU, &mut get).map_err(|error| explain(format_args!("read the MTU of {name}"), error))?;
    // SAFETY: SIOCGIFMTU filled `ifru_mtu`.
    let mtu_bytes = unsafe { get.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu_bytes).unwrap_or(0))
}

/// Sets the length of the transmit queue in packets: the burst that a reader of the TUN may be late by.
pub fn set_queue_len(name: &str, packets: u32) -> io::Result<()> {
    let mut set = request(name)?;
    set.ifr_ifru.ifru_metric = packets as libc::c_int;
    ioctl(libc::SIOCSIFTXQLEN, &mut set).map_err(|error| explain(format_args!("set the queue length of {name}"), error))
}

/// Bounds the super-packets that the kernel builds for the interface: their octets, headers included, and the packets
/// that each will be cut into (IFLA_GSO_MAX_SIZE, IFLA_GSO_MAX_SEGS).
pub fn set_gso_limits(name: &str, max_bytes: u32, max_packets: u32) -> io::Result<()> {
    let what = format_args!("limit the super-packets of {name} to {max_bytes} bytes");
    let index = nix::net::if_::if_nametoindex(name).map_err(|error| explain(what, error))?;
    let mut message = Vec::new();
    let length = NETLINK_HEADER_LEN + LINK_MESSAGE_LEN + 2 * ATTRIBUTE_LEN;
    // struct nlmsghdr: length, type, flags, sequence, port.
    message.extend((length as u32).to_ne_bytes());
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]);
    // struct ifinfomsg: family, type, index, flags, mask of flags to change.
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    for (attribute, value) in [(IFLA_GSO_MAX_SIZE, max_bytes), (IFLA_GSO_MAX_SEGS, max_packets)] {
        message.extend((ATTRIBUTE_LEN as u16).to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(value.to_ne_bytes());
    }
    ask_kernel(&message).map_err(|error| explain(what, error))
}

const NETLINK_HEADER_LEN: usize = 16;
const LINK_MESSAGE_LEN: usize = 16;
const ATTRIBUTE_LEN: usize = 8;
/// linux/if_link.h.
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFLA_GSO_MAX_SIZE: u16 = 41;

/// Sends one netlink message and waits for its acknowledgement.
fn ask_kernel(message: &[u8]) -> io::Result<()> {
    let kind = SockType::Raw;
    let socket = socket(AddressFamily::Netlink, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    nix::sys::socket::send(socket.as_raw_fd(), message, MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = nix::sys::socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsgerr after the header: the negative error number, 0 for done.
    let error = answer.get(NETLINK_HEADER_LEN..length).and_then(|rest| rest.first_chunk().copied());
    match error.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is too short")),
    }
}

/// Brings the interface up; its address must be set before, or the route to its network is missing.
pub fn set_up(name: &str) -> io::Result<()> {
    let mut flags = request(name)?;
    ioctl(libc::SIOCGIFFLAGS, &mut flags).map_err(|error| explain(format_args!("read the flags of {name}"), error))?;
    // SAFETY: SIOCGIFFLAGS filled `ifru_flags`.
    let old = unsafe { flags.ifr_ifru.ifru_flags };
    flags.ifr_ifru.ifru_flags = old | (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    ioctl(libc::SIOCSIFFLAGS, &mut flags).map_err(|error| explain(format_args!("bring {name} up"), error))
}

/// Takes IPv6 off the interface, or its link-local noise fills the counters. Nothing to do without IPv6.
pub fn disable_ipv6(name: &str) -> io::Result<()> {
    request(name)?;
    write_setting(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")
}

/// Lets every group use unprivileged ICMP sockets in this namespace: `ping` without privileges.
pub fn allow_ping() -> io::Result<()> {
    write_setting("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
}

fn write_setting(path: &str, value: &str) -> io::Result<()> {
    match std::fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| explain(format_args!("write {path}"), error)),
    }
}

/// The MTU of the interface that has this address; `None` when none has it.
pub fn mtu_of_address(address: IpAddr) -> io::Result<Option<u32>> {
    let found = getifaddrs()?.find(|interface| interface.address.as_ref().and_then(ip_of_sockaddr) == Some(address));
    found.map(|interface| mtu(&interface.interface_name)).transpose()
}

fn ip_of_sockaddr(address: &SockaddrStorage) -> Option<IpAddr> {
    let ipv4 = address.as_sockaddr_in().map(|v4: &SockaddrIn| IpAddr::V4(v4.ip()));
    ipv4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// Whether one of this namespace's routes is exactly `subnet`, and by which interface: an overlay may use the
/// same addresses, but its user should know.
pub fn host_route(subnet: IpNet) -> io::Result<Option<String>> {
    let IpNet::V4(subnet) = subnet else { return Ok(None) };
    match std::fs::read_to_string("/proc/net/route") {
        Ok(table) => Ok(find_route(&table, subnet.trunc())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(explain("read /proc/net/route", error)),
    }
}

/// Looks a subnet up in the text of `/proc/net/route`; answers the interface.
pub(super) fn find_route(table: &str, subnet: Ipv4Net) -> Option<String> {
    routes_of(table).find(|(_, route)| *route == subnet).map(|(interface, _)| interface.to_owned())
}

/// The interfaces and destinations in the text of `/proc/net/route`.
fn routes_of(table: &str) -> impl Iterator<Item = (&str, Ipv4Net)> {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let interface = columns.next()?;
        let destination = route_address(columns.next()?)?;
        let mask = route_address(columns.nth(5)?)?;
        Some((interface, Ipv4Net::with_netmask(destination, mask).ok()?))
    })
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub interface: String,
    /// With the length of its prefix.
    pub address: Ipv4Net,
    /// Whether the interface has no link layer, as a TUN.
    pub point_to_point: bool,
}

/// The IPv4 addresses of the thread's namespace.
pub fn addresses() -> io::Result<Vec<Address>> {
    let ip = |address: &Option<SockaddrStorage>| Some(address.as_ref()?.as_sockaddr_in()?.ip());
    let found = getifaddrs()?.filter_map(|found| {
        let address = Ipv4Net::with_netmask(ip(&found.address)?, ip(&found.netmask)?).ok()?;
        let point_to_point = found.flags.contains(nix::net::if_::InterfaceFlags::IFF_POINTOPOINT);
        Some(Address { interface: found.interface_name, address, point_to_point })
    });
    Ok(found.collect())
}

/// The interfaces and destinations of the IPv4 routes of the thread's namespace, without the default route.
pub fn routes() -> io::Result<Vec<(String, Ipv4Net)>> {
    // Not `/proc/net`, which is that of the first thread.
    let table = std::fs::read_to_string("/proc/thread-self/net/route")
        .map_err(|error| explain("read the routes of a network namespace", error))?;
    let found = routes_of(&table).filter(|(_, route)| route.prefix_len() > 0);
    Ok(found.map(|(interface, route)| (interface.to_owned(), route)).collect())
}

/// The kernel prints the big-endian word as a number of the machine.
fn route_address(hex: &str) -> Option<Ipv4Addr> {
    u32::from_str_radix(hex, 16).ok().map(|word| Ipv4Addr::from(word.to_ne_bytes()))
}
