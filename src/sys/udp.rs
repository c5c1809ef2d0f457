//! UDP in batches: `sendmmsg` and `recvmmsg` without allocation, trains of datagrams in one message (UDP_SEGMENT,
//! UDP_GRO), and the socket options that `socket2` lacks.

use socket2::SockAddr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams passed to the kernel or taken from it in one call: enough that the call's own cost does not show, few
/// enough that their buffers stay in the second-level cache.
pub const BATCH_DATAGRAMS: usize = 64;

/// Datagrams in one train at most (UDP_MAX_SEGMENTS of older kernels; newer ones take 128).
pub const TRAIN_DATAGRAMS: usize = 64;

/// Octets of a train at most: what a UDP payload over IPv4 can have.
pub const TRAIN_BYTES: usize = 65_535 - 20 - 8;

/// One received datagram, or a train of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReceivedDatagram {
    /// Octets in the buffer.
    pub length: usize,
    /// Octets of each datagram of a train but the last, which may be shorter; 0 when it is no train.
    pub segment: usize,
    /// It was longer than the buffer; the rest is lost.
    pub truncated: bool,
}

/// One datagram to send, or a train of them.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The octets, one datagram after the other.
    pub octets: &'a [u8],
    /// Octets of each datagram of a train but the last; 0 when it is no train.
    pub segment: usize,
    /// To whom.
    pub to: &'a SockAddr,
}

/// Receives as many messages as are there, at most one for each buffer and [`BATCH_DATAGRAMS`], without blocking.
/// Returns how many of `received` were filled.
pub fn receive_batch<'a>(
    socket: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    received: &mut [ReceivedDatagram; BATCH_DATAGRAMS],
) -> io::Result<usize> {
    let mut parts = [NO_PART; BATCH_DATAGRAMS];
    let mut controls = [Control::EMPTY; BATCH_DATAGRAMS];
    let mut messages = no_messages();
    let mut count: libc::c_uint = 0;
    for (((buffer, part), control), message) in buffers.zip(&mut parts).zip(&mut controls).zip(&mut messages) {
        *part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = (&raw mut *control).cast();
        message.msg_hdr.msg_controllen = CONTROL_LEN as _;
        count += 1;
    }
    // SAFETY: the first `count` messages point to one part and one control buffer each in `parts` and `controls`; the
    // parts point to distinct buffers that `buffers` lends for 'a; all outlive the call. The timeout may be null.
    let result = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT, ptr::null_mut())
    };
    let filled = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    for ((message, control), datagram) in messages.iter().zip(&controls).zip(received).take(filled) {
        let flags = message.msg_hdr.msg_flags;
        let segment = if message.msg_hdr.msg_controllen >= CONTROL_USED { control.segment() } else { 0 };
        *datagram = ReceivedDatagram {
            length: message.msg_len as usize,
            segment,
            truncated: flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
        };
    }
    Ok(filled)
}

/// Sends messages in order without blocking, at most [`BATCH_DATAGRAMS`]. Returns how many the kernel took: at least
/// one, if there was one. An error concerns the first.
pub fn send_batch<'a>(socket: BorrowedFd<'_>, batch: impl Iterator<Item = Message<'a>>) -> io::Result<usize> {
    let mut parts = [NO_PART; BATCH_DATAGRAMS];
    let mut controls = [Control::EMPTY; BATCH_DATAGRAMS];
    let mut messages = no_messages();
    let mut count: libc::c_uint = 0;
    for (((datagram, part), control), message) in batch.zip(&mut parts).zip(&mut controls).zip(&mut messages) {
        *part = libc::iovec { iov_base: datagram.octets.as_ptr().cast_mut().cast(), iov_len: datagram.octets.len() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = datagram.to.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = datagram.to.len();
        if datagram.segment != 0 {
            *control = Control::segment_of(datagram.segment);
            message.msg_hdr.msg_control = (&raw mut *control).cast();
            message.msg_hdr.msg_controllen = CONTROL_LEN as _;
        }
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` messages point to one part and at most one control buffer each in `parts` and
    // `controls`, to octets and to addresses that `batch` lends for 'a; all outlive the call, which only reads them.
    let result = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count, flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether the socket may be given trains of datagrams (UDP_GRO).
pub fn set_receive_trains(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_int(socket, libc::SOL_UDP, libc::UDP_GRO, on.into())
}

/// Sends without UDP checksums, and so without trains: for tests of refusals.
#[cfg(test)]
pub(crate) fn set_no_checksum(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_int(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

/// One control message: UDP_SEGMENT to send (two octets of data), UDP_GRO to receive (four).
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    data: [u8; 8],
}

/// Octets of a [`Control`] as the kernel wants them: header and padded data are whole words.
const CONTROL_LEN: usize = mem::size_of::<Control>();
/// Octets of a UDP_GRO message that is there.
const CONTROL_USED: usize = mem::size_of::<libc::cmsghdr>() + mem::size_of::<i32>();

impl Control {
    const EMPTY: Control = Control { header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 }, data: [0; 8] };

    fn segment_of(octets: usize) -> Control {
        let length = mem::size_of::<libc::cmsghdr>() + mem::size_of::<u16>();
        let header = libc::cmsghdr { cmsg_len: length as _, cmsg_level: libc::SOL_UDP, cmsg_type: libc::UDP_SEGMENT };
        let [low, high] = (octets as u16).to_ne_bytes();
        Control { header, data: [low, high, 0, 0, 0, 0, 0, 0] }
    }

    fn segment(&self) -> usize {
        let ours = self.header.cmsg_level == libc::SOL_UDP && self.header.cmsg_type == libc::UDP_GRO;
        match self.data.first_chunk::<4>() {
            Some(data) if ours => usize::try_from(i32::from_ne_bytes(*data)).unwrap_or(0),
            _ => 0,
        }
    }
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
        let single = |octets| Message { octets, segment: 0, to: &to };
        assert_eq!(send_batch(sender.as_fd(), datagrams.iter().map(|d| single(d.as_slice()))).unwrap(), 10);
        assert_eq!(send_batch(sender.as_fd(), std::iter::empty()).unwrap(), 0);

        let mut buffers = vec![[0u8; 80]; BATCH_DATAGRAMS];
        let mut received = [ReceivedDatagram::default(); BATCH_DATAGRAMS];
        let slices = buffers.iter_mut().map(|buffer| buffer.as_mut_slice());
        assert_eq!(receive_batch(receiver.as_fd(), slices, &mut received).unwrap(), 10);
        for (n, (datagram, buffer)) in received.iter().zip(&buffers).take(10).enumerate() {
            assert_eq!(*datagram, ReceivedDatagram { length: (10 * n).min(80), segment: 0, truncated: n == 9 });
            assert!(buffer.iter().take(datagram.length).all(|&byte| usize::from(byte) == n));
        }
        let nothing = receive_batch(receiver.as_fd(), buffers.iter_mut().map(|b| b.as_mut_slice()), &mut received);
        assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn trains_arrive_whole_or_cut() {
        let octets: Vec<u8> = (0..10_100u32).map(|n| (n / 7) as u8).collect();
        for together in [true, false] {
            let (sender, receiver) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
            set_receive_trains(receiver.as_fd(), together).unwrap();
            let to = SockAddr::from(receiver.local_addr().unwrap());
            let train = Message { octets: &octets, segment: 1000, to: &to };
            assert_eq!(send_batch(sender.as_fd(), std::iter::once(train)).unwrap(), 1);
            let mut buffers = vec![[0u8; 20_000]; 12];
            let mut received = [ReceivedDatagram { segment: 77, ..Default::default() }; BATCH_DATAGRAMS];
            let count =
                receive_batch(receiver.as_fd(), buffers.iter_mut().map(|b| b.as_mut_slice()), &mut received).unwrap();
            let segments: Vec<_> = received.iter().take(count).map(|datagram| datagram.segment).collect();
            assert_eq!(segments, if together { vec![1000] } else { vec![0; 11] });
            let parts = buffers.iter().zip(&received).take(count).map(|(buffer, datagram)| &buffer[..datagram.length]);
            assert_eq!(parts.collect::<Vec<_>>().concat(), octets);
        }
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
        let order = [&good, &bad, &good].map(|to| Message { octets: &data, segment: 0, to });
        assert_eq!(send_batch(socket.as_fd(), order.into_iter()).unwrap(), 1);
        assert!(send_batch(socket.as_fd(), order.into_iter().skip(1)).is_err());
    }
}
