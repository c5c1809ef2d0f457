//! The data-path sockets: one port that all workers share, and a port of its own for each worker but the first.
//!
//! The first worker sends from the data-path port itself, the others from their own ports, so that network cards and
//! aggregated links tell the workers' streams apart. Peers send to the data-path port alone: the kernel hands each
//! datagram to the worker that owns its SPI's queue. What comes to a worker's own port is received too, by that worker.

use super::DataplaneError;
use crate::sys::poll::{PollSet, Polled};
use crate::sys::{steer, udp};
use crate::types::Queues;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

/// Kernel buffers each way, in octets: 50 ms of 1 Gbit/s, what others found to pay.
const BUFFER_BYTES: i32 = 7 << 20;

/// Sockets of one worker at most: the shared port's and its own.
pub(super) const MAX_SOCKETS: usize = 2;

/// The UDP sockets of all workers on the data-path address, for this process alone.
#[derive(Debug)]
pub struct DataSockets {
    workers: Vec<Vec<Socket>>,
    address: SocketAddr,
}

/// A socket of a worker.
pub(super) struct WorkerSocket {
    pub(super) socket: Polled<Socket>,
    /// It may have datagrams.
    pub(super) readable: bool,
    /// Failures in a row.
    pub(super) errors: u32,
}

impl DataSockets {
    /// Binds the address for `workers`. It is refused when anybody has it, also somebody who would share it.
    pub fn bind(address: SocketAddr, workers: Queues) -> Result<DataSockets, DataplaneError> {
        open(address, workers).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => DataplaneError::AddressInUse(address),
            io::ErrorKind::AddrNotAvailable => DataplaneError::AddressNotAvailable(address),
            _ => DataplaneError::Socket { address, source },
        })
    }

    /// The address in use.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The sockets of each worker; it sends from its last.
    pub(super) fn into_workers(self) -> Vec<Vec<Socket>> {
        self.workers
    }
}

impl WorkerSocket {
    pub(super) fn register(socket: Socket, poll: &PollSet, key: usize) -> io::Result<WorkerSocket> {
        Ok(WorkerSocket { socket: poll.register(socket, key)?, readable: true, errors: 0 })
    }
}

fn open(address: SocketAddr, workers: Queues) -> io::Result<DataSockets> {
    // Without SO_REUSEPORT, which would let a second daemon share the port unnoticed, and shift the sockets' numbers.
    let first = unbound(address)?;
    first.bind(&SockAddr::from(address))?;
    let address = first.local_addr()?.as_socket().unwrap_or(address);
    if workers == Queues::ONE {
        return Ok(DataSockets { workers: vec![vec![first]], address });
    }
    first.set_reuse_port(true)?;
    let mut sockets = vec![vec![first]];
    for _ in 1..workers.count() {
        let shared = unbound(address)?;
        shared.set_reuse_port(true)?;
        shared.bind(&SockAddr::from(address))?;
        let own = unbound(address)?;
        own.bind(&SockAddr::from(SocketAddr::new(address.ip(), 0)))?;
        sockets.push(vec![shared, own]);
    }
    if let Some(shared) = sockets.first().and_then(|of_first| of_first.first()) {
        steer::by_queue(shared.as_fd(), workers.count())?;
    }
    Ok(DataSockets { workers: sockets, address })
}

fn unbound(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    udp::set_path_mtu_probe(socket.as_fd(), address.is_ipv6())?;
    udp::set_buffers(socket.as_fd(), BUFFER_BYTES)?;
    Ok(socket)
}
