//! TUN devices: open one in the current thread's network namespace, read and write packets.
//!
//! Two drivers behind one type. The fast one is an own open with `IFF_VNET_HDR`: each packet carries the 10-byte
//! virtio header that TSO-sized packets need. The plain one is the `tun-tap` crate, which cannot set that flag:
//! for old kernels and as the reference in differential tests. Both start with all offloads off; the owner of
//! the descriptor turns them on when it can use them.
//!
//! A device may be opened several times, each time for a queue of its own (`IFF_MULTI_QUEUE`), which the plain driver
//! cannot either: each queue is read and written by itself, and the kernel hands a flow's packets to the queue on which
//! the flow's packets were last written.
//!
//! The namespace of a device is the one of the thread that *opened* `/dev/net/tun`, not of `TUNSETIFF`.

use super::{check, explain};
use crate::types::Queues;
use nix::sys::uio;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of `struct virtio_net_hdr` without the mergeable buffer count.
pub const VNET_HEADER_LEN: usize = 10;

const DEVICE: &str = "/dev/net/tun";

/// How the packets of a device are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TunDriver {
    /// Each packet is preceded by [`VNET_HEADER_LEN`] bytes; offloads are possible.
    Vnet,
    /// Bare IP packets.
    Plain,
}

impl TunDriver {
    /// The queues of a device of which `wanted` were asked for.
    pub fn queues(self, wanted: Queues) -> Queues {
        match self {
            TunDriver::Vnet => wanted,
            TunDriver::Plain => Queues::ONE,
        }
    }
}

/// One queue of an open TUN device, often the only one: non-blocking, closed on drop (and with the last one the
/// interface), close-on-exec.
#[derive(Debug)]
pub struct TunDevice {
    fd: OwnedFd,
    driver: TunDriver,
}

impl TunDevice {
    /// Opens the interface `name` in the current thread's network namespace and makes it.
    pub fn open(name: &str, driver: TunDriver) -> io::Result<TunDevice> {
        match driver {
            TunDriver::Vnet => TunDevice::open_vnet(name),
            TunDriver::Plain => TunDevice::open_plain(name),
        }
    }

    /// Opens the interface `name` in the current thread's network namespace and makes it, with as many of the wanted
    /// queues as the driver can ([`TunDriver::queues`]).
    pub fn open_queues(name: &str, driver: TunDriver, wanted: Queues) -> io::Result<Vec<TunDevice>> {
        match driver.queues(wanted) {
            Queues::ONE => Ok(vec![TunDevice::open(name, driver)?]),
            several => several.numbers().map(|_| TunDevice::open_vnet_as(name, libc::IFF_MULTI_QUEUE)).collect(),
        }
    }

    /// Whether devices can be made here. Errors say what to do; better told at the start than at the first task.
    pub fn check_available() -> io::Result<()> {
        OpenOptions::new().read(true).write(true).open(DEVICE).map(drop).map_err(device_error)
    }

    /// The fast driver: vnet header, offload mask 0.
    pub fn open_vnet(name: &str) -> io::Result<TunDevice> {
        TunDevice::open_vnet_as(name, 0)
    }

    fn open_vnet_as(name: &str, more_flags: libc::c_int) -> io::Result<TunDevice> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(device_error)?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more_flags;
        let mut request = super::interface::request(name)?;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })
            .map_err(|error| create_error(name, error))?;
        let header_len = VNET_HEADER_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, which outlives the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &header_len) })
            .map_err(|error| explain(format_args!("set the header size of {name}"), error))?;
        TunDevice::without_offloads(OwnedFd::from(file), TunDriver::Vnet)
    }

    /// The plain driver: `tun-tap`, bare packets.
    pub fn open_plain(name: &str) -> io::Result<TunDevice> {
        let valid = super::interface::request(name).map(|_| name)?;
        let interface = tun_tap::Iface::without_packet_info(valid, tun_tap::Mode::Tun).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound { device_error(error) } else { create_error(name, error) }
        })?;
        // SAFETY: `into_raw_fd` hands over an open descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(interface.into_raw_fd()) };
        super::process::set_nonblocking(&fd)?;
        TunDevice::without_offloads(fd, TunDriver::Plain)
    }

    /// Takes a descriptor that was opened elsewhere with `driver` (the helper sends them).
    pub fn from_fd(fd: OwnedFd, driver: TunDriver) -> TunDevice {
        TunDevice { fd, driver }
    }

    /// The offload mask is state of the device that survives its last owner: never inherit one.
    fn without_offloads(fd: OwnedFd, driver: TunDriver) -> io::Result<TunDevice> {
        set_offload_mask(fd.as_fd(), 0).map_err(|error| explain("set the offloads of a TUN device", error))?;
        Ok(TunDevice { fd, driver })
    }

    /// How packets are framed.
    pub fn driver(&self) -> TunDriver {
        self.driver
    }

    /// Bytes before the IP header of each packet: [`VNET_HEADER_LEN`] or 0.
    pub fn header_len(&self) -> usize {
        match self.driver {
            TunDriver::Vnet => VNET_HEADER_LEN,
            TunDriver::Plain => 0,
        }
    }

    /// Reads one packet with its header. `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(nix::unistd::read(&self.fd, buffer)?)
    }

    /// Writes one packet with its header.
    pub fn write(&self, packet: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.fd, packet)?)
    }

    /// Writes one packet that lies in several pieces, the header first.
    pub fn write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(uio::writev(&self.fd, pieces)?)
    }
}

impl AsFd for TunDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for TunDevice {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

impl From<TunDevice> for OwnedFd {
    fn from(device: TunDevice) -> OwnedFd {
        device.fd
    }
}

/// What a device hands over unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unfinished {
    /// TCP super-packets of both IP versions, with and without CWR.
    pub tcp: bool,
    /// UDP super-packets (Linux 6.2 or newer).
    pub udp: bool,
}

/// Tells the device that its reader finishes checksums and cuts super-packets, of UDP and TCP if wanted and if the
/// kernel can; answers what it will hand over. The device must have been opened with [`TunDriver::Vnet`].
pub fn accept_unfinished(device: BorrowedFd<'_>, tcp: bool, udp: bool) -> Unfinished {
    const TCP: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    const UDP: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let tries = [Unfinished { tcp, udp }, Unfinished { tcp, udp: false }, Unfinished::default()];
    let accepted = tries.into_iter().find(|wanted| {
        let parts = [(wanted.tcp, TCP), (wanted.udp, UDP)].map(|(on, mask)| if on { mask } else { 0 });
        let mask = parts.into_iter().fold(0, |mask, part| mask | part);
        // Super-packets have open checksums.
        let mask = if mask == 0 { 0 } else { mask | libc::TUN_F_CSUM };
        set_offload_mask(device, mask).is_ok()
    });
    accepted.unwrap_or_default()
}

/// Sets the offload mask (`TUN_F_*`): what the reader of this device is ready to receive unfinished.
fn set_offload_mask(device: BorrowedFd<'_>, mask: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD as _, libc::c_ulong::from(mask)) }).map(drop)
}

fn device_error(error: io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::ENOENT) => {
            ": run `modprobe tun`, or give the container the device (--device /dev/net/tun) if Formic runs in one"
        }
        Some(libc::ENODEV | libc::ENXIO) => ": the kernel has no TUN driver; run `modprobe tun`",
        Some(libc::EACCES | libc::EPERM) => ": this process may not open the device; run as root",
        _ => "",
    };
    io::Error::new(error.kind(), format!("open {DEVICE}: {error}{advice}"))
}

fn create_error(name: &str, error: io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => ": the capability CAP_NET_ADMIN is missing",
        Some(libc::EBUSY) => ": an interface of this name is in use",
        _ => "",
    };
    io::Error::new(error.kind(), format!("make the TUN device {name}: {error}{advice}"))
}
