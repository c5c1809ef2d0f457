//! A task's network: a namespace with one TUN for each interface, addressed and up. Nothing outside it.

use crate::helper::verbs::{ErrorKind, Interface, InterfaceName, MAX_INTERFACES, NamespaceName, VerbError};
use crate::sys::tun::{TunDevice, TunDriver};
use crate::sys::udp::{TRAIN_BYTES, TRAIN_DATAGRAMS};
use crate::sys::{interface, namespace};
use crate::types::Queues;
use ipnet::{IpNet, Ipv4Net};
use std::io;
use std::os::fd::OwnedFd;

/// Packets that wait in a TUN for the data plane: about 2 ms of small packets at a million a second, so that a
/// reader that is busy for a batch loses nothing.
const TRANSMIT_QUEUE_PACKETS: u32 = 2000;

/// Numbers after `eth` that are tried in a namespace of somebody else.
const MAX_INTERFACE_NUMBERS: u32 = 1000;

/// Makes it, and gives the queues of all devices in order. The devices are opened on the thread that is inside the namespace: that makes them belong to it.
pub(super) fn create(
    interfaces: &[Interface],
    driver: TunDriver,
    queues: Queues,
) -> io::Result<(OwnedFd, Vec<TunDevice>)> {
    namespace::in_new_network(|| {
        interface::set_up("lo")?;
        tolerate(interface::allow_ping())?;
        let devices = interfaces.iter().map(|wanted| attach(wanted, driver, queues));
        Ok(devices.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// Makes a device in a namespace that somebody else made, and leaves everything else there as it is.
pub(super) fn attach_to(
    namespace: &NamespaceName,
    (address, mtu): (IpNet, u32),
    driver: TunDriver,
    queues: Queues,
) -> Result<Vec<TunDevice>, VerbError> {
    let opened = namespace::open_named(namespace.as_str()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            VerbError::new(ErrorKind::Invalid, format!("no such network namespace: {namespace}"))
        }
        io::ErrorKind::PermissionDenied => VerbError::new(ErrorKind::Invalid, error.to_string()),
        _ => error.into(),
    })?;
    namespace::in_network(&opened, || {
        if let Some(text) = objection(address)? {
            return Ok(Err(VerbError::new(ErrorKind::Invalid, format!("the namespace {namespace} {text}"))));
        }
        let name = free_name()?;
        attach(&Interface { name, address, mtu }, driver, queues).map(Ok)
    })?
}

/// Why this thread's namespace may not be put on the network of this address: what it sends to somebody else would go
/// there. Devices that were put there before are none; one on the same network may be on its way out.
fn objection(address: IpNet) -> io::Result<Option<String>> {
    let IpNet::V4(address) = address else { return Ok(None) };
    let there = interface::addresses()?;
    let attached =
        |found: &&interface::Address| found.point_to_point && found.interface.parse::<InterfaceName>().is_ok();
    if there.iter().filter(attached).count() >= MAX_INTERFACES {
        return Ok(Some(format!("has {MAX_INTERFACES} devices of networks already")));
    }
    let same: Vec<&str> = there
        .iter()
        .filter(attached)
        .filter(|found| found.address.trunc() == address.trunc())
        .map(|found| found.interface.as_str())
        .collect();
    let meets = |interface: &str, other: &Ipv4Net| {
        !same.contains(&interface) && (other.contains(&address.network()) || address.contains(&other.network()))
    };
    if let Some(found) = there.iter().find(|found| meets(&found.interface, &found.address)) {
        let interface::Address { interface, address: other, .. } = found;
        return Ok(Some(format!(
            "has the address {other} on {interface}, which overlaps the subnet {}",
            address.trunc()
        )));
    }
    let routes = interface::routes()?;
    let found = routes.iter().find(|(interface, route)| meets(interface, route));
    Ok(found.map(|(interface, route)| {
        format!("has a route to {route} by {interface}, which overlaps the subnet {}", address.trunc())
    }))
}

/// The first name that no interface of this thread's namespace has.
fn free_name() -> io::Result<InterfaceName> {
    let names = (0..MAX_INTERFACE_NUMBERS).map(|number| format!("eth{number}"));
    let free = names.filter(|name| !interface::exists(name)).find_map(|name| name.parse().ok());
    free.ok_or_else(|| io::Error::other("all names from eth0 on are taken in the namespace"))
}

fn attach(wanted: &Interface, driver: TunDriver, queues: Queues) -> io::Result<Vec<TunDevice>> {
    let name = wanted.name.as_str();
    let queues = TunDevice::open_queues(name, driver, queues)?;
    interface::set_mtu(name, wanted.mtu)?;
    tolerate(interface::set_queue_len(name, TRANSMIT_QUEUE_PACKETS))?;
    if driver == TunDriver::Vnet {
        let (bytes, packets) = super_packet_limits(wanted.mtu);
        tolerate(interface::set_gso_limits(name, bytes, packets))?;
    }
    tolerate(interface::disable_ipv6(name))?;
    interface::set_address(name, wanted.address)?;
    interface::set_up(name)?;
    Ok(queues)
}

/// The super-packets that make one train of datagrams: octets and packets. The kernel's TCP takes room for headers of
/// all layers off the octets (MAX_TCP_HEADER, 320 on machines with 64-octet cache lines), then as many whole segments
/// as fit; with IPv4 and timestamps these have the MTU less 52 octets. Whatever it does instead is carried all the
/// same, in one train more.
fn super_packet_limits(mtu: u32) -> (u32, u32) {
    const TCP_ROOM: usize = 321;
    // Header, padding, trailer and ICV.
    const ESP_BYTES: usize = 16 + 3 + 2 + 16;
    let mtu = mtu as usize;
    let packets = (TRAIN_BYTES / (mtu + ESP_BYTES)).clamp(1, TRAIN_DATAGRAMS);
    let bytes = (packets * mtu.saturating_sub(52) + TCP_ROOM).clamp(mtu, 1 << 16);
    (bytes as u32, packets as u32)
}

/// `/proc/sys` is read-only where Formic itself runs in a container; the root of a user namespace has few groups
/// and may not set a queue's length. These settings are comforts: without them IPv6 noise is dropped and counted,
/// ping needs CAP_NET_RAW, which tasks have, and the queue has the kernel's 500 packets.
fn tolerate(result: io::Result<()>) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem};
    match result {
        Err(error) if matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | InvalidInput) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_super_packet_makes_one_train() {
        // 44 datagrams of at most 1475 octets are 64,900; TCP fills 44 segments of 1386 octets, also with IPv6 or without options.
        assert_eq!(super_packet_limits(1438), (61_305, 44));
        for mtu in [576, 1280, 1418, 1438, 8938, 9000, 65_535] {
            let (bytes, packets) = super_packet_limits(mtu);
            let train = packets as usize * (mtu as usize + 37);
            assert!(packets == 1 || train <= TRAIN_BYTES && packets as usize <= TRAIN_DATAGRAMS, "{mtu}: {packets}");
            assert!(bytes >= mtu && bytes <= 65_536, "{mtu}: {bytes}");
        }
    }
}
