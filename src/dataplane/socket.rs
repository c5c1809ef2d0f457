//! The data-path socket.

use super::DataplaneError;
use crate::sys::udp;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// Kernel buffers each way, in octets: 50 ms of 1 Gbit/s, what others found to pay.
const BUFFER_BYTES: i32 = 7 << 20;

/// A UDP socket bound to the data-path address, for this process alone. Made before privileges are dropped, its
/// buffers may exceed the system's limit.
#[derive(Debug)]
pub struct DataSocket {
    socket: Socket,
    address: SocketAddr,
}

impl DataSocket {
    /// Binds exclusively: without SO_REUSEPORT, which would let a second daemon share the port unnoticed.
    pub fn bind(address: SocketAddr) -> Result<DataSocket, DataplaneError> {
        open(address).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => DataplaneError::AddressInUse(address),
            io::ErrorKind::AddrNotAvailable => DataplaneError::AddressNotAvailable(address),
            _ => DataplaneError::Socket { address, source },
        })
    }

    /// The address in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }
}

fn open(address: SocketAddr) -> io::Result<DataSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    udp::set_path_mtu_probe(socket.as_fd(), address.is_ipv6())?;
    udp::set_buffers(socket.as_fd(), BUFFER_BYTES)?;
    socket.bind(&SockAddr::from(address))?;
    let address = socket.local_addr()?.as_socket().unwrap_or(address);
    Ok(DataSocket { socket, address })
}
