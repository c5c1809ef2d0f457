//! UDP in batches: `sendmmsg` and `recvmmsg` without allocation, and the socket options that `socket2` lacks.

use socket2::SockAddr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams passed to the kernel or taken from it in one call: enough that the call's own cost does not show, few
/// enough that their buffers stay in the second-level cache.
pub const BATCH_DATAGRAMS: usize = 64;

/// One received datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReceivedDatagram {
    /// Octets in the buffer.
    pub length: usize,
    /// It was longer than the buffer; the rest is lost.
    pub truncated: bool,
}

/// Receives as many datagrams as are there, at most one for each buffer and [`BATCH_DATAGRAMS`], without blocking.
/// Returns how many of `received` were filled.
pub fn receive_batch<'a>(
    socket: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    received: &mut [ReceivedDatagram; BATCH_DATAGRAMS],
) -> io::Result<usize> {
    let mut parts = [NO_PART; BATCH_DATAGRAMS];
    let mut messages = no_messages();
    let mut count: libc::c_uint = 0;
    for ((buffer, part), message) in buffers.zip(&mut parts).zip(&mut messages) {
        *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    // SAFETY: the first `count` messages point to one part each in `parts`, which point to distinct buffers that
    // `buffers` lends for 'a; all outlive the call. The timeout may be null.
    let result = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, ptr::null_mut())
    };
    let filled = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    for (message, datagram) in messages.iter().zip(received).take(filled) {
        let truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        *datagram = ReceivedDatagram { length: message.msg_len as usize, truncated };
    }
    Ok(filled)
}

/// Sends datagrams in order without blocking, at most [`BATCH_DATAGRAMS`]. Returns how many the kernel took: at
/// least one, if there was one. An error concerns the first.
pub fn send_batch<'a>(
    socket: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = (&'a [u8], &'a SockAddr)>,
) -> io::Result<usize> {
    let mut parts = [NO_PART; BATCH_DATAGRAMS];
    let mut messages = no_messages();
    let mut count: libc::c_uint = 0;
    for (((datagram, address), part), message) in datagrams.zip(&mut parts).zip(&mut messages) {
        *part = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = address.len();
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` messages point to one part each in `parts`, to datagrams and to addresses that
    // `datagrams` lends for 'a; all outlive the call, which only reads them.
    let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sets DF on what the socket sends and ignores what ICMP says about path MTUs (IP_PMTUDISC_PROBE).
pub fn set_path_mtu_probe(socket: BorrowedFd<'_>, ipv6: bool) -> io::Result<()> {
    if ipv6 {
        set_int(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        set_int(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    }
}

/// Asks for kernel buffers of this size each way: beyond the system's limit with CAP_NET_ADMIN, else up to it.
pub fn set_buffers(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes)
        .or_else(|_| set_int(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, bytes))?;
    set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, bytes)
        .or_else(|_| set_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, bytes))
}

/// How many datagrams the kernel dropped because the socket's buffer was full (a wrong checksum counts too). Wraps.
pub fn kernel_drops(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut memory = [0u32; MEMORY_INFO_DROPS + 1];
    let mut length = mem::size_of_val(&memory) as libc::socklen_t;
    let into = (&raw mut memory).cast();
    // SAFETY: the kernel writes at most `length` octets, the size of the array, which outlives the call.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, into, &raw mut length) };
    let [.., drops] = memory;
    if result == 0 { Ok(drops) } else { Err(io::Error::last_os_error()) }
}

/// SK_MEMINFO_DROPS of linux/sock_diag.h.
const MEMORY_INFO_DROPS: usize = 8;

const NO_PART: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn no_messages() -> [libc::mmsghdr; BATCH_DATAGRAMS] {
    // SAFETY: all-zero is a valid mmsghdr: null pointers with lengths of 0.
    unsafe { mem::zeroed() }
}

fn set_int(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    let length = mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: the value is an i32 that outlives the call, and the length is its size.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_batch_arrives_in_order_and_says_what_was_cut() {
        let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        set_path_mtu_probe(sender.as_fd(), false).unwrap();
        set_buffers(receiver.as_fd(), 1 << 20).unwrap();
        let to = SockAddr::from(receiver.local_addr().unwrap());
        let datagrams: Vec<Vec<u8>> = (0..10).map(|n| vec![n; 10 * usize::from(n)]).collect();
        assert_eq!(send_batch(sender.as_fd(), datagrams.iter().map(|d| (d.as_slice(), &to))).unwrap(), 10);
        assert_eq!(send_batch(sender.as_fd(), std::iter::empty()).unwrap(), 0);

        let mut buffers = vec![[0u8; 80]; BATCH_DATAGRAMS];
        let mut received = [ReceivedDatagram::default(); BATCH_DATAGRAMS];
        let slices = buffers.iter_mut().map(|buffer| buffer.as_mut_slice());
        assert_eq!(receive_batch(receiver.as_fd(), slices, &mut received).unwrap(), 10);
        for (n, (datagram, buffer)) in received.iter().zip(&buffers).take(10).enumerate() {
            assert_eq!(*datagram, ReceivedDatagram { length: (10 * n).min(80), truncated: n == 9 });
            assert!(buffer.iter().take(datagram.length).all(|&byte| usize::from(byte) == n));
        }
        let nothing = receive_batch(receiver.as_fd(), buffers.iter_mut().map(|b| b.as_mut_slice()), &mut received);
        assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_the_kernel_drops_is_known() {
        let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        assert_eq!(kernel_drops(receiver.as_fd()).unwrap(), 0);
        socket2::SockRef::from(&receiver).set_recv_buffer_size(4096).unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], receiver.local_addr().unwrap()).unwrap();
        }
        receiver.set_nonblocking(true).unwrap();
        let arrived = (0..100).take_while(|_| receiver.recv(&mut [0; 1000]).is_ok()).count();
        assert!(arrived < 100);
        assert_eq!(kernel_drops(receiver.as_fd()).unwrap() as usize, 100 - arrived);
    }

    #[test]
    fn an_error_concerns_the_first_datagram_only() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let good = SockAddr::from(socket.local_addr().unwrap());
        // An IPv4 socket refuses an IPv6 address at once.
        let bad = SockAddr::from("[::1]:9".parse::<std::net::SocketAddr>().unwrap());
        let data = [1u8; 4];
        let order = [&good, &bad, &good].map(|address| (data.as_slice(), address));
        assert_eq!(send_batch(socket.as_fd(), order.into_iter()).unwrap(), 1);
        assert!(send_batch(socket.as_fd(), order.into_iter().skip(1)).is_err());
    }
}
