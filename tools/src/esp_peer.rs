//! An end of ESP in UDP with fixed keys, around the production code of [`formic::esp`]: what other implementations are
//! tried against. A TUN device at one side, a UDP socket at the other. For tests only: keys that outlive a process and
//! numbers that are told by hand are what the daemon exists to avoid.
//!
//! ```text
//! out  TUN read -> ExternalOutbound::seal -> sendto
//! in   recvfrom -> classify -> ExternalInbound::open -> TUN write
//! ```

use anyhow::{Context, Result, bail};
use argh::FromArgs;
use formic::esp::external::{ExternalInbound, ExternalKeys, ExternalOutbound};
use formic::esp::{CipherLibrary, EspDrop, HEADROOM, Numbering, TAILROOM};
use formic::sys::poll::{PollSet, Polled, Waker};
use formic::sys::tun::{TunDevice, TunDriver};
use formic::types::{Spi, Time, Transform};
use formic::wire::esp::{Datagram, MAX_DATAGRAM_LEN, NextHeader, classify};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

const TUN_KEY: usize = 0;
const UDP_KEY: usize = 1;

/// Octets of the largest packet that a TUN device without offloads hands over.
const MAX_PACKET_LEN: usize = MAX_DATAGRAM_LEN - HEADROOM - TAILROOM;

/// One direction of a pair of SAs.
pub struct Direction {
    /// Its SPI.
    pub spi: u32,
    /// AES key of 16 or 32 octets, then the salt of 4.
    pub material: Vec<u8>,
    /// The last sequence number that was used before.
    pub used: u64,
}

/// A pair of SAs and its place.
pub struct Settings {
    /// Where it receives and sends from.
    pub local: SocketAddr,
    /// Where it sends to.
    pub peer: SocketAddr,
    /// The name of its TUN device; it is made down and without addresses.
    pub device: String,
    /// What is done to the packets.
    pub transform: Transform,
    /// How packets are numbered.
    pub numbering: Numbering,
    /// From here.
    pub outbound: Direction,
    /// To here.
    pub inbound: Direction,
}

/// What went through a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Packets sealed and sent.
    pub sent: u64,
    /// Packets opened and delivered.
    pub received: u64,
    /// The highest sequence number received.
    pub highest: u64,
    /// What was refused, by reason.
    pub drops: BTreeMap<EspDrop, u64>,
}

impl Report {
    /// How often for this reason.
    pub fn dropped(&self, reason: EspDrop) -> u64 {
        self.drops.get(&reason).copied().unwrap_or(0)
    }
}

/// Tells of a peer that runs on another thread, and stops it.
#[derive(Clone)]
pub struct Handle {
    report: Arc<Mutex<Report>>,
    stopped: Arc<Mutex<bool>>,
    waker: Waker,
}

impl Handle {
    /// What went through it so far.
    pub fn report(&self) -> Report {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes [`Peer::run`] return.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        // A peer whose poller is broken has returned already.
        let _ = self.waker.wake();
    }
}

/// The peer.
pub struct Peer {
    poll: PollSet,
    device: Polled<TunDevice>,
    socket: Polled<UdpSocket>,
    peer: SocketAddr,
    outbound: ExternalOutbound,
    inbound: ExternalInbound,
    handle: Handle,
    start: Instant,
    buffer: Vec<u8>,
}

impl Peer {
    /// Opens device and socket in the network namespace of this thread.
    pub fn open(settings: &Settings) -> Result<Peer> {
        let keys = |direction: &Direction| {
            ExternalKeys::new(Spi(direction.spi), settings.transform, settings.numbering, &direction.material)
        };
        let refused = "the library refuses the key";
        let outbound = ExternalOutbound::new(&keys(&settings.outbound)?, CipherLibrary::AwsLc, settings.outbound.used);
        let inbound = ExternalInbound::new(&keys(&settings.inbound)?, CipherLibrary::AwsLc, settings.inbound.used);
        let socket = UdpSocket::bind(settings.local).with_context(|| format!("bind {}", settings.local))?;
        socket.set_nonblocking(true)?;
        let device = TunDevice::open(&settings.device, TunDriver::Plain)?;
        let poll = PollSet::new()?;
        let handle = Handle { report: Arc::default(), stopped: Arc::default(), waker: poll.waker() };
        Ok(Peer {
            device: poll.register(device, TUN_KEY)?,
            socket: poll.register(socket, UDP_KEY)?,
            poll,
            peer: settings.peer,
            outbound: outbound.context(refused)?,
            inbound: inbound.context(refused)?,
            handle,
            start: Instant::now(),
            buffer: vec![0; MAX_DATAGRAM_LEN],
        })
    }

    /// For another thread.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Carries packets until [`Handle::stop`].
    pub fn run(mut self) -> Result<()> {
        while !*self.handle.stopped.lock().unwrap_or_else(PoisonError::into_inner) {
            self.poll.wait(None, |_| ())?;
            // Each is read until it would block, whichever woke.
            while self.send_one()? {}
            while self.receive_one()? {}
        }
        Ok(())
    }

    /// A packet of the device to the peer; `false` when there is none.
    fn send_one(&mut self) -> Result<bool> {
        let room = self.buffer.get_mut(HEADROOM..HEADROOM + MAX_PACKET_LEN).context("the buffer is too small")?;
        let inner_len = match self.device.source().read(room) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            // The device is down, or not up yet.
            Err(error) if error.raw_os_error() == Some(EIO) => return Ok(false),
            Err(error) => return Err(error).context("read from the device"),
        };
        let next_header = match room.first().map(|octet| octet >> 4) {
            Some(4) => NextHeader::Ipv4,
            Some(6) => NextHeader::Ipv6,
            _ => return Ok(true),
        };
        match self.outbound.seal(&mut self.buffer, inner_len, next_header) {
            Ok(sealed) => {
                let datagram = self.buffer.get(..sealed.datagram_len).unwrap_or_default();
                // A datagram that the system does not take is lost, as on any other wire.
                let sent = self.socket.source().send_to(datagram, self.peer).is_ok();
                self.note(|report| report.sent += u64::from(sent));
            }
            Err(reason) => self.note(|report| *report.drops.entry(reason).or_default() += 1),
        }
        Ok(true)
    }

    /// A datagram of whomever to the device; `false` when there is none.
    fn receive_one(&mut self) -> Result<bool> {
        let len = match self.socket.source().recv(&mut self.buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            // The peer's answer to an earlier datagram: nobody listens there.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(true),
            Err(error) => return Err(error).context("receive"),
        };
        let now = Time(u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX));
        let datagram = self.buffer.get_mut(..len).unwrap_or_default();
        let opened = match classify(datagram) {
            Datagram::KeepAlive => return Ok(true),
            Datagram::SpiZero => Err(EspDrop::SpiZero),
            Datagram::TooShort => Err(EspDrop::TooShort),
            Datagram::Esp(_) => self.inbound.open(datagram, now),
        };
        match opened {
            Ok(opened) => {
                let highest = self.inbound.sequence();
                let packet = self.buffer.get(opened.payload).unwrap_or_default();
                let delivered = opened.next_header != NextHeader::None && self.device.source().write(packet).is_ok();
                self.note(|report| {
                    report.received += u64::from(delivered);
                    report.highest = highest;
                });
            }
            Err(reason) => self.note(|report| *report.drops.entry(reason).or_default() += 1),
        }
        Ok(true)
    }

    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.handle.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What reading from a device says that is down.
const EIO: i32 = 5;

/// Carries packets of a TUN device in ESP with fixed keys, to try other implementations. For tests only.
#[derive(FromArgs, Debug)]
pub struct Options {
    /// address and port to receive at
    #[argh(option)]
    local: SocketAddr,
    /// address and port to send to
    #[argh(option)]
    peer: SocketAddr,
    /// name of the TUN device to make
    #[argh(option)]
    device: String,
    /// gcm or gmac
    #[argh(option, default = "\"gcm\".into()")]
    transform: String,
    /// extended sequence numbers
    #[argh(switch)]
    extended: bool,
    /// SPI of what is sent
    #[argh(option)]
    out_spi: u32,
    /// SPI of what is received
    #[argh(option)]
    in_spi: u32,
    /// last sequence number that was sent under the key before
    #[argh(option, default = "0")]
    sent: u64,
    /// highest sequence number that was received before
    #[argh(option, default = "0")]
    received: u64,
    /// file with the keying material in hexadecimal, key then salt: what is sent in the first line, received in the second
    #[argh(option)]
    keys: PathBuf,
}

impl Options {
    /// Reads the keys.
    pub fn settings(self) -> Result<Settings> {
        let text = std::fs::read_to_string(&self.keys).with_context(|| format!("read {}", self.keys.display()))?;
        let mut materials = text.lines().map(from_hex);
        let mut direction = |spi, used| {
            let material = materials.next().flatten().context("two lines of hexadecimal digits are needed")?;
            anyhow::Ok(Direction { spi, material, used })
        };
        Ok(Settings {
            outbound: direction(self.out_spi, self.sent)?,
            inbound: direction(self.in_spi, self.received)?,
            local: self.local,
            peer: self.peer,
            device: self.device,
            transform: match self.transform.as_str() {
                "gcm" => Transform::Gcm,
                "gmac" => Transform::Gmac,
                other => bail!("unknown transform {other:?}: gcm or gmac"),
            },
            numbering: if self.extended { Numbering::Extended } else { Numbering::Short },
        })
    }
}

/// Octets of hexadecimal digits; `None` when they are none.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.trim().chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect::<Option<_>>()?;
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(high << 4 | low),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_is_read_whole_or_not_at_all() {
        assert_eq!(from_hex(" 00fF10\n"), Some(vec![0, 255, 16]));
        assert_eq!(from_hex("0"), None);
        assert_eq!(from_hex("0g"), None);
        assert_eq!(from_hex(""), Some(Vec::new()));
    }
}
