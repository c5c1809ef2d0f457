//! One security association: sealing in [`OutboundSa`], opening in [`InboundSa`].
//!
//! 1. Nonce = salt || IV, IV = the 64-bit sequence number (RFC 4106, section 3).
//! 2. AES-GCM: AAD = SPI || sequence high || sequence low; the body is encrypted.
//! 3. AES-GMAC (RFC 4543): AAD = the same || IV || body; the body stays in clear. The library wants the AAD in one
//!    piece, and the high word does not travel: the body makes room for it by moving 4 octets towards the ICV.

use super::aead::{BadTag, CipherLibrary, NONCE_LEN, PacketCipher, TAG_LEN};
use super::counter::{CounterAnswer, PacketCounter};
use super::replay::ReplayWindow;
use super::schedule::{SALT_LEN, SaIdentity, SaKeys, spi};
use super::{EspDrop, SOFT_LIMIT_PACKETS};
use crate::types::{Spi, Time, Transform};
use crate::wire::esp::{
    HEADER_LEN, Header, ICV_LEN, MAX_EMITTED_PADDING, MIN_DATAGRAM_LEN, NextHeader, TRAILER_LEN, TrailerError,
    datagram_len, parse_trailer, write_trailer,
};
use std::ops::Range;

/// Octets in front of an inner packet in the buffer for [`OutboundSa::seal`].
pub const HEADROOM: usize = HEADER_LEN;
/// Octets after an inner packet that are always enough for [`OutboundSa::seal`].
pub const TAILROOM: usize = MAX_EMITTED_PADDING + TRAILER_LEN + ICV_LEN;
/// Octets of the AAD that a GCM packet has: SPI and the 64-bit sequence number.
const AAD_LEN: usize = 12;
/// Octets in front of the body in the AAD that a GMAC packet has: the same and the IV.
const GMAC_PREFIX_LEN: usize = AAD_LEN + 8;

/// What both directions of SA have.
struct Core {
    identity: SaIdentity,
    spi: Spi,
    cipher: PacketCipher,
    salt: [u8; SALT_LEN],
    enabled: bool,
    traffic: SaTraffic,
}

/// What went through an SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SaTraffic {
    /// Sealed, or authentic and accepted.
    pub packets: u64,
    /// Octets of what these carried.
    pub bytes: u64,
    /// When the last authentic packet came; never for a sending SA.
    pub last_authenticated: Option<Time>,
}

/// What tells a packet from all others of its SA. Formic's IV is the sequence number; others choose it freely.
#[derive(Clone, Copy)]
struct PacketNumber {
    sequence: u64,
    iv: u64,
}

/// The sending half. It cannot be copied, and its counter is never set back.
pub struct OutboundSa {
    core: Core,
    counter: PacketCounter,
}

/// A datagram made by [`OutboundSa::seal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Sealed {
    /// Its octets, from the start of the buffer.
    pub datagram_len: usize,
    /// This packet reached the soft limit: an early rotation is due. Said once.
    pub soft_limit: bool,
}

/// The receiving half, with the one replay window.
pub struct InboundSa {
    core: Core,
    window: ReplayWindow,
}

/// An authentic packet opened in place by [`InboundSa::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Opened {
    /// Where the inner packet (or control message) lies in the buffer.
    pub payload: Range<usize>,
    /// What it is.
    pub next_header: NextHeader,
    /// Its 64-bit sequence number.
    pub sequence: u64,
    /// The highest sequence number of this SA so far.
    pub newest: bool,
    /// The first authentic packet of this SA: the pair is confirmed.
    pub first: bool,
}

impl PacketNumber {
    fn nonce(self, salt: [u8; SALT_LEN]) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        let (salt_part, iv) = nonce.split_at_mut(SALT_LEN);
        salt_part.copy_from_slice(&salt);
        iv.copy_from_slice(&self.iv.to_be_bytes());
        nonce
    }

    /// SPI || sequence high || sequence low || IV: the AAD of GCM is its first 12 octets.
    fn aad_prefix(self, spi: Spi) -> [u8; GMAC_PREFIX_LEN] {
        let mut prefix = [0; GMAC_PREFIX_LEN];
        let (spi_part, rest) = prefix.split_at_mut(4);
        let (sequence, iv) = rest.split_at_mut(8);
        spi_part.copy_from_slice(&spi.0.to_be_bytes());
        sequence.copy_from_slice(&self.sequence.to_be_bytes());
        iv.copy_from_slice(&self.iv.to_be_bytes());
        prefix
    }
}

impl Core {
    fn new(keys: &SaKeys, library: CipherLibrary) -> Core {
        Core {
            identity: *keys.identity(),
            spi: spi(keys.identity()),
            cipher: PacketCipher::new(library, keys.key()),
            salt: keys.salt(),
            enabled: true,
            traffic: SaTraffic::default(),
        }
    }

    /// Writes the header in front of the `body_len` octets at [`HEADER_LEN`], protects them and writes the ICV after.
    fn protect(&self, number: PacketNumber, datagram: &mut [u8], body_len: usize) -> Result<(), BadTag> {
        let nonce = number.nonce(self.salt);
        let prefix = number.aad_prefix(self.spi);
        let header = Header { spi: self.spi, sequence_low: number.sequence as u32, iv: number.iv }.emit();
        let body = HEADER_LEN..HEADER_LEN + body_len;
        let tag = match self.identity.transform {
            Transform::Gcm => {
                let (aad, _iv) = prefix.split_at(AAD_LEN);
                self.cipher.seal(nonce, aad, datagram.get_mut(body.clone()).ok_or(BadTag)?)?
            }
            Transform::Gmac => {
                let shifted = GMAC_PREFIX_LEN..GMAC_PREFIX_LEN + body_len;
                datagram.copy_within(body.clone(), shifted.start);
                let aad = datagram.get_mut(..shifted.end).ok_or(BadTag)?;
                put_front(aad, &prefix)?;
                let tag = self.cipher.seal(nonce, aad, &mut [])?;
                datagram.copy_within(shifted, body.start);
                tag
            }
        };
        put_front(datagram, &header)?;
        put_front(datagram.get_mut(body.end..).ok_or(BadTag)?, &tag)
    }

    /// Undoes [`Core::protect`]; returns where the verified body (inner packet, padding, trailer) lies.
    fn verify(&self, number: PacketNumber, datagram: &mut [u8]) -> Result<Range<usize>, BadTag> {
        let nonce = number.nonce(self.salt);
        let prefix = number.aad_prefix(self.spi);
        let (rest, tag) = datagram.split_last_chunk_mut::<TAG_LEN>().ok_or(BadTag)?;
        let tag = *tag;
        let body = HEADER_LEN..rest.len();
        match self.identity.transform {
            Transform::Gcm => {
                let (aad, _iv) = prefix.split_at(AAD_LEN);
                self.cipher.open(nonce, aad, rest.get_mut(body.clone()).ok_or(BadTag)?, &tag)?;
                Ok(body)
            }
            Transform::Gmac => {
                // The tag is saved: its place takes the octets that the body moves by.
                let shifted = GMAC_PREFIX_LEN..GMAC_PREFIX_LEN + body.len();
                datagram.copy_within(body, shifted.start);
                let aad = datagram.get_mut(..shifted.end).ok_or(BadTag)?;
                put_front(aad, &prefix)?;
                self.cipher.open(nonce, aad, &mut [], &tag)?;
                Ok(shifted)
            }
        }
    }

    fn count(&mut self, bytes: usize) {
        self.traffic.packets += 1;
        self.traffic.bytes = self.traffic.bytes.saturating_add(bytes as u64);
    }
}

impl OutboundSa {
    /// The database makes SAs, once for each identity.
    pub(super) fn new(keys: &SaKeys, library: CipherLibrary) -> OutboundSa {
        OutboundSa { core: Core::new(keys, library), counter: PacketCounter::new() }
    }

    /// An SA that has already sent `used` packets.
    #[cfg(test)]
    pub(super) fn with_counter(keys: &SaKeys, used: u64) -> OutboundSa {
        OutboundSa { core: Core::new(keys, CipherLibrary::AwsLc), counter: PacketCounter::with_counter(used) }
    }

    /// Seals the `inner_len` octets at [`HEADROOM`] in `buffer` in place. The datagram starts at the front of the
    /// buffer; [`TAILROOM`] octets after the inner packet are always enough. On an error nothing may be sent.
    ///
    /// A datagram that must be sent again is sent as sealed, never sealed again.
    pub fn seal(&mut self, buffer: &mut [u8], inner_len: usize, next_header: NextHeader) -> Result<Sealed, EspDrop> {
        if !self.core.enabled {
            return Err(EspDrop::Suspended);
        }
        if inner_len > buffer.len() {
            return Err(EspDrop::NoRoom);
        }
        let datagram = buffer.get_mut(..datagram_len(inner_len)).ok_or(EspDrop::NoRoom)?;
        let (sequence, soft_limit) = match self.counter.draw() {
            CounterAnswer::Fine(sequence) => (sequence, false),
            CounterAnswer::SoftLimit(sequence) => (sequence, true),
            CounterAnswer::Exhausted => return Err(EspDrop::Exhausted),
        };
        let body_len = datagram.get_mut(HEADER_LEN..).and_then(|body| write_trailer(body, inner_len, next_header));
        let number = PacketNumber { sequence, iv: sequence };
        self.core.protect(number, datagram, body_len.ok_or(EspDrop::NoRoom)?).map_err(|BadTag| EspDrop::NoRoom)?;
        self.core.count(inner_len);
        Ok(Sealed { datagram_len: datagram_len(inner_len), soft_limit })
    }

    /// Which SA.
    pub fn identity(&self) -> &SaIdentity {
        &self.core.identity
    }

    /// Its name on the wire.
    pub fn spi(&self) -> Spi {
        self.core.spi
    }

    /// Whether it may be used now.
    pub fn is_enabled(&self) -> bool {
        self.core.enabled
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.core.enabled = enabled;
    }

    /// What it sent.
    pub fn traffic(&self) -> SaTraffic {
        self.core.traffic
    }

    /// The last sequence number used.
    pub fn sequence(&self) -> u64 {
        self.counter.used()
    }

    /// Whether the soft limit has been reached.
    pub fn is_past_soft_limit(&self) -> bool {
        self.counter.used() >= SOFT_LIMIT_PACKETS
    }
}

impl InboundSa {
    /// The database makes SAs, once for each identity.
    pub(super) fn new(keys: &SaKeys, library: CipherLibrary) -> InboundSa {
        InboundSa { core: Core::new(keys, library), window: ReplayWindow::default() }
    }

    /// Verifies and decrypts a datagram in place. After an error the datagram may be destroyed.
    pub fn open(&mut self, datagram: &mut [u8], now: Time) -> Result<Opened, EspDrop> {
        if !self.core.enabled {
            return Err(EspDrop::Suspended);
        }
        if datagram.len() < MIN_DATAGRAM_LEN {
            return Err(EspDrop::TooShort);
        }
        let header = Header::parse(datagram).ok_or(EspDrop::TooShort)?;
        if header.spi != self.core.spi {
            return Err(EspDrop::UnknownSpi);
        }
        let sequence = header.iv;
        if sequence as u32 != header.sequence_low {
            return Err(EspDrop::IvMismatch);
        }
        let fresh = self.window.check(sequence)?;
        let number = PacketNumber { sequence, iv: header.iv };
        let body = self.core.verify(number, datagram).map_err(|BadTag| EspDrop::BadTag)?;
        let newest = self.window.mark(fresh);
        let first = self.core.traffic.last_authenticated.replace(now).is_none();
        let (payload_len, next_header) =
            parse_trailer(datagram.get(body.clone()).unwrap_or_default()).map_err(|error| match error {
                TrailerError::Padding => EspDrop::BadPadding,
                TrailerError::NextHeader(_) => EspDrop::BadNextHeader,
            })?;
        self.core.count(payload_len);
        Ok(Opened { payload: body.start..body.start + payload_len, next_header, sequence, newest, first })
    }

    /// Which SA.
    pub fn identity(&self) -> &SaIdentity {
        &self.core.identity
    }

    /// Its name on the wire.
    pub fn spi(&self) -> Spi {
        self.core.spi
    }

    /// Whether it accepts packets now.
    pub fn is_enabled(&self) -> bool {
        self.core.enabled
    }

    pub(super) fn suspend(&mut self) {
        self.core.enabled = false;
    }

    /// Accepts packets again, from the highest sequence number seen on: what was sent meanwhile and is held back
    /// somewhere below it stays out.
    pub(super) fn resume(&mut self) {
        if !self.core.enabled {
            self.window.close_past();
            self.core.enabled = true;
        }
    }

    /// What it received.
    pub fn traffic(&self) -> SaTraffic {
        self.core.traffic
    }

    /// The highest sequence number received.
    pub fn sequence(&self) -> u64 {
        self.window.highest()
    }
}

fn put_front(buffer: &mut [u8], octets: &[u8]) -> Result<(), BadTag> {
    buffer.get_mut(..octets.len()).ok_or(BadTag)?.copy_from_slice(octets);
    Ok(())
}

#[cfg(test)]
mod tests;
