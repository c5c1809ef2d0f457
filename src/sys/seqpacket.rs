//! Connected pairs of `SOCK_SEQPACKET` Unix sockets: whole messages, in order, with descriptors beside them, and
//! an end that is noticed.

use super::{check, explain};
use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, SockFlag, SockType, recvmsg, sendmsg,
    shutdown, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors in one message, by the kernel's own bound (`SCM_MAX_FD`): the queues of one task's interfaces.
/// The control buffer has room for all of them, so that none is ever installed here without an owner.
pub const MAX_FDS: usize = 253;

/// One end of a pair.
#[derive(Debug)]
pub struct SeqPacket(OwnedFd);

/// A received message.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the buffer that were filled.
    pub length: usize,
    /// The descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

impl SeqPacket {
    /// Two connected ends, close-on-exec, blocking.
    pub fn pair() -> io::Result<(SeqPacket, SeqPacket)> {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((SeqPacket(a), SeqPacket(b)))
    }

    /// Takes an inherited descriptor. Errors when it is not a `SOCK_SEQPACKET` socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<SeqPacket> {
        let kind = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType)?;
        if kind != SockType::SeqPacket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a SOCK_SEQPACKET socket"));
        }
        Ok(SeqPacket(fd))
    }

    /// A second descriptor of the same end.
    pub fn try_clone(&self) -> io::Result<SeqPacket> {
        self.0.try_clone().map(SeqPacket)
    }

    /// Makes sends and receives answer `WouldBlock` instead of waiting.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        super::process::set_nonblocking(&self.0)
    }

    /// Sends one message. Errors with `BrokenPipe` when the other end is closed; never raises SIGPIPE.
    pub fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        loop {
            let pieces = [IoSlice::new(message)];
            match sendmsg::<()>(self.0.as_raw_fd(), &pieces, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Receives one message; `None` at the end of the stream. A message longer than the buffer is dropped with
    /// `InvalidData`.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Received>> {
        let mut control = cmsg_space!([RawFd; MAX_FDS]);
        let mut pieces = [IoSliceMut::new(buffer)];
        let message = loop {
            match recvmsg::<()>(self.0.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just installed these descriptors for this process; nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message longer than its bound"));
        }
        Ok((message.bytes > 0).then_some(Received { length: message.bytes, fds }))
    }

    /// Tells the other end that nothing more comes; receiving goes on.
    pub fn shutdown_write(&self) -> io::Result<()> {
        Ok(shutdown(self.0.as_raw_fd(), Shutdown::Write)?)
    }

    /// Whether the other end is closed, even if messages of it still wait here.
    pub fn is_peer_closed(&self) -> io::Result<bool> {
        super::process::is_hung_up(self)
    }

    /// Waits until a message (or the end) can be received.
    pub fn wait_readable(&self, timeout: Option<std::time::Duration>) -> io::Result<bool> {
        let mut entry = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = timeout.map_or(-1, |t| libc::c_int::try_from(t.as_millis()).unwrap_or(libc::c_int::MAX));
        loop {
            // SAFETY: one `pollfd` that outlives the call.
            match check(unsafe { libc::poll(&mut entry, 1, millis) }) {
                Ok(ready) => return Ok(ready > 0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(explain("wait for a message", error)),
            }
        }
    }
}

impl AsFd for SeqPacket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<SeqPacket> for OwnedFd {
    fn from(socket: SeqPacket) -> OwnedFd {
        socket.0
    }
}
