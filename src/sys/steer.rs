//! Which of the sockets that share a UDP port gets a datagram: a classic BPF program on the queue in the SPI of ESP.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The octet of a UDP payload that holds the queue in its low four bits: the last of the SPI.
const QUEUE_OCTET: u32 = 3;
const QUEUE_MASK: u32 = 0x0f;

/// Hands each datagram for the port of `socket` to the socket whose number is its SPI's queue modulo `sockets`: they
/// are numbered in the order in which they were bound. What is too short to have an SPI goes to the first. At least
/// two sockets must be bound.
pub fn by_queue(socket: BorrowedFd<'_>, sockets: u8) -> io::Result<()> {
    let step = |code: u32, operand: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: operand };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, QUEUE_OCTET),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, QUEUE_MASK),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, u32::from(sockets.max(1))),
        step(libc::BPF_RET | BPF_A, 0),
    ];
    let value = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let length = mem::size_of::<libc::sock_fprog>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF);
    // SAFETY: the value is a sock_fprog that points to `len` instructions; both outlive the call, which copies them.
    super::check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) })
        .map(drop)
}

/// The accumulator as the value of BPF_RET (linux/filter.h).
const BPF_A: u32 = 0x10;

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::{SocketAddr, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn socket(address: SocketAddr) -> UdpSocket {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.into()
    }

    #[test]
    fn the_queue_decides_whoever_sends() {
        for count in [2, 3, 4, 16] {
            let first = socket(([127, 0, 0, 1], 0).into());
            let address = first.local_addr().unwrap();
            let sockets: Vec<UdpSocket> = [first].into_iter().chain((1..count).map(|_| socket(address))).collect();
            by_queue(sockets[0].as_fd(), count).unwrap();
            for sender in (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()) {
                for queue in 0..16u8 {
                    sender.send_to(&[1, 2, 3, 0xa0 | queue, 5], address).unwrap();
                    let mut buffer = [0; 8];
                    let owner = &sockets[usize::from(queue % count)];
                    assert_eq!(owner.recv(&mut buffer).unwrap(), 5);
                    assert_eq!(buffer[3], 0xa0 | queue);
                }
                for short in [&[][..], &[0xff], &[7; 3]] {
                    sender.send_to(short, address).unwrap();
                    assert_eq!(sockets[0].recv(&mut [0; 8]).unwrap(), short.len());
                }
            }
        }
    }

    #[test]
    fn a_socket_alone_cannot_be_steered() {
        let alone = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(by_queue(alone.as_fd(), 2).is_err());
    }
}
