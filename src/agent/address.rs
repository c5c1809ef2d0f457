//! Addresses as users type them: `IP`, `IP:PORT`, an interface's name, or nothing.

use super::model::NodeError;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Reads `IP`, `IP:PORT` or `INTERFACE[:PORT]`; the port is `default_port` when not given.
pub(super) fn parse(text: &str, default_port: u16) -> Result<SocketAddr, NodeError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, default_port));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => {
            (name, port.parse().map_err(|_| NodeError::Invalid(format!("invalid port {port:?} in address {text:?}")))?)
        }
        None => (text, default_port),
    };
    interface_address(name).map(|address| SocketAddr::new(address, port)).ok_or_else(|| {
        NodeError::Invalid(format!("invalid address {text:?}: not an IP address, and no interface of this name has one; use IP, IP:PORT or an interface's name"))
    })
}

/// The first address of an interface: IPv4 if it has one.
fn interface_address(name: &str) -> Option<IpAddr> {
    let of_interface = addresses().filter(|(interface, _)| interface == name).map(|(_, address)| address);
    of_interface.min_by_key(IpAddr::is_ipv6)
}

/// All addresses of interfaces that are up, with their interface, but for those that mean nothing on another link.
fn addresses() -> impl Iterator<Item = (String, IpAddr)> {
    getifaddrs().into_iter().flatten().filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP)).filter_map(
        |entry| {
            let address = entry.address.as_ref()?;
            let ipv4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            let ipv6 = || address.as_sockaddr_in6().map(|address| address.ip());
            let ipv6 = || ipv6().filter(|address| !address.is_unicast_link_local()).map(IpAddr::V6);
            Some((entry.interface_name.clone(), ipv4.or_else(ipv6)?))
        },
    )
}

/// The address to advertise when none was given: the only IPv4 one this host has beside loopback, or without any, the
/// only IPv6 one.
pub(super) fn only_address() -> Result<IpAddr, NodeError> {
    let mut found: Vec<IpAddr> =
        addresses().map(|(_, address)| address).filter(|address| !address.is_loopback()).collect();
    if found.iter().any(IpAddr::is_ipv4) {
        found.retain(IpAddr::is_ipv4);
    }
    found.dedup();
    match found.as_slice() {
        [address] => Ok(*address),
        [] => {
            Err(NodeError::Invalid("could not find an address to advertise: specify one with --advertise-addr".into()))
        }
        [first, second, ..] => Err(NodeError::Invalid(format!(
            "could not choose an IP address to advertise since this system has multiple addresses ({first} and {second}): specify one with --advertise-addr"
        ))),
    }
}

/// The address this host would use to reach `remote`: routing decides, nothing is sent.
pub(super) fn address_towards(remote: SocketAddr) -> Result<IpAddr, NodeError> {
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind(if remote.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.connect(remote)?;
        Ok(socket.local_addr()?.ip())
    };
    probe().map_err(|error| {
        NodeError::Invalid(format!(
            "no route to the manager {remote}: {error}; check the address, or specify --advertise-addr"
        ))
    })
}

/// Whether this host has the address.
pub(super) fn is_local(address: IpAddr) -> bool {
    addresses().any(|(_, own)| own == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_users_type() {
        assert_eq!(parse("10.1.2.3", 7).unwrap(), "10.1.2.3:7".parse().unwrap());
        assert_eq!(parse("10.1.2.3:9", 7).unwrap(), "10.1.2.3:9".parse().unwrap());
        for bad in ["nosuchif0", "10.1.2", "10.1.2.3:x", "", ":1"] {
            assert!(parse(bad, 7).is_err(), "{bad}");
        }
    }
}
