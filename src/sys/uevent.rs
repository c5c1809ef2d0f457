//! Messages of the kernel about devices (`NETLINK_KOBJECT_UEVENT`), of which one matters: the virtual machine was
//! restored from a snapshot or copied, and this is not the only life of its memory any more (driver `vmgenid`).

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The multicast group of the kernel's own messages; that of udev is 2.
const KERNEL_GROUP: u32 = 1;
/// Octets of a message at most (the kernel's own limit is 2048 and the path).
const MAX_MESSAGE_BYTES: usize = 8192;

/// A socket that hears the kernel's messages.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Opens it. No right is needed; a kernel without it gives an error.
    pub fn open() -> io::Result<Uevents> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
        Ok(Uevents(fd))
    }

    /// Reads all messages that wait; whether one said that the virtual machine has a new generation.
    pub fn take_generation_change(&self) -> io::Result<bool> {
        let mut buffer = [0; MAX_MESSAGE_BYTES];
        let mut changed = false;
        loop {
            match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                Ok((length, sender)) => {
                    let message = buffer.get(..length).unwrap_or_default();
                    changed |= sender.is_some_and(|sender| is_generation_change(sender.pid(), message));
                }
                Err(Errno::EAGAIN) => return Ok(changed),
                // Some were lost; the others are still there.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a message of the netlink port `sender` tells of a new generation: only the kernel's (port 0) counts.
/// A message is `ACTION@PATH`, then `NAME=value` fields, each ended by a zero octet.
fn is_generation_change(sender: u32, message: &[u8]) -> bool {
    let mut fields = message.split(|byte| *byte == 0);
    let of_change = fields.next().is_some_and(|head| head.starts_with(b"change@"));
    sender == 0 && of_change && fields.any(|field| field == b"NEW_VMGENID=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.10 sends it.
    const CHANGE: &[u8] = b"change@/devices/LNXSYSTM:00/LNXSYBUS:00/QEMUVGID:00\0ACTION=change\0\
        DEVPATH=/devices/LNXSYSTM:00/LNXSYBUS:00/QEMUVGID:00\0SUBSYSTEM=acpi\0NEW_VMGENID=1\0SEQNUM=1234\0";

    #[test]
    fn only_the_kernels_word_counts() {
        assert!(is_generation_change(0, CHANGE));
        assert!(!is_generation_change(4711, CHANGE), "any process can send such a message to a port");
    }

    #[test]
    fn other_events_are_nothing() {
        let text = |message: &str| is_generation_change(0, message.replace(' ', "\0").as_bytes());
        assert!(text("change@/x NEW_VMGENID=1"));
        for other in [
            "",
            "NEW_VMGENID=1",
            "add@/x NEW_VMGENID=1",
            "change@/x NEW_VMGENID=0",
            "change@/x NEW_VMGENID=10",
            "change@/NEW_VMGENID=1 ACTION=change",
            // What root writes into a uevent file gets a prefix from the kernel.
            "change@/x SYNTH_ARG_NEW_VMGENID=1",
        ] {
            assert!(!text(other), "{other}");
        }
    }

    #[test]
    fn a_quiet_socket_says_nothing() {
        let uevents = Uevents::open().unwrap();
        assert!(!uevents.take_generation_change().unwrap());
    }
}
