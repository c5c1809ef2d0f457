//! One security association: sealing in [`OutboundSa`], opening in [`InboundSa`].
//!
//! 1. Nonce = salt || IV, IV = the 64-bit sequence number (RFC 4106, section 3).
//! 2. AES-GCM: AAD = SPI || sequence high || sequence low; the body is encrypted.
//! 3. AES-GMAC (RFC 4543): AAD = the same || IV || body; the body stays in clear. The library wants the AAD in one
//!    piece, and the high word does not travel: the body makes room for it by moving 4 octets towards the ICV.
//!
//! Other implementations number in other ways ([`Numbering`]); what has their keys ([`super::external`]) seals and opens
//! by the same [`Core`].

#[cfg(test)]
use super::HARD_LIMIT_PACKETS;
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
/// Octets of the IV of a packet.
const IV_LEN: usize = 8;
/// Octets in front of the body in the longest AAD: SPI, the 64-bit sequence number, and for GMAC the IV.
const GMAC_PREFIX_LEN: usize = 4 + 8 + IV_LEN;

/// How the ends of an SA number its packets. All of Formic's own are [`Numbering::InIv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbering {
    /// 64 bits, all of which stand in the IV.
    InIv,
    /// Extended sequence numbers (RFC 4303, section 2.2.1): the high half is not sent, the receiver concludes it from
    /// its window. The IV says nothing.
    Extended,
    /// 32 bits, and the AAD has no more. The IV says nothing.
    Short,
}

/// What both directions of SA have, and how they protect a packet.
pub(super) struct Core {
    pub(super) spi: Spi,
    pub(super) transform: Transform,
    pub(super) numbering: Numbering,
    pub(super) cipher: PacketCipher,
    pub(super) salt: [u8; SALT_LEN],
    pub(super) traffic: SaTraffic,
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
    identity: SaIdentity,
    enabled: bool,
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
    identity: SaIdentity,
    enabled: bool,
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
}

/// What is authenticated in front of the body: SPI, the sequence number as far as it counts, and for GMAC the IV.
struct Prefix {
    octets: [u8; GMAC_PREFIX_LEN],
    len: usize,
}

impl Prefix {
    fn new(spi: Spi, number: PacketNumber, numbering: Numbering) -> Prefix {
        let mut prefix = Prefix { octets: [0; GMAC_PREFIX_LEN], len: 0 };
        prefix.push(&spi.0.to_be_bytes());
        match numbering {
            Numbering::InIv | Numbering::Extended => prefix.push(&number.sequence.to_be_bytes()),
            Numbering::Short => prefix.push(&(number.sequence as u32).to_be_bytes()),
        }
        prefix.push(&number.iv.to_be_bytes());
        prefix
    }

    fn push(&mut self, octets: &[u8]) {
        let end = self.len + octets.len();
        if let Some(place) = self.octets.get_mut(self.len..end) {
            place.copy_from_slice(octets);
            self.len = end;
        }
    }

    /// The AAD of GMAC without the body.
    fn of_gmac(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or_default()
    }

    /// The AAD of GCM: all but the IV.
    fn of_gcm(&self) -> &[u8] {
        self.octets.get(..self.len - IV_LEN).unwrap_or_default()
    }
}

impl Core {
    fn new(keys: &SaKeys, library: CipherLibrary) -> Core {
        Core {
            spi: spi(keys.identity()),
            transform: keys.identity().transform,
            numbering: Numbering::InIv,
            cipher: PacketCipher::new(library, keys.key()),
            salt: keys.salt(),
            traffic: SaTraffic::default(),
        }
    }

    /// Seals as [`OutboundSa::seal`] says, with the next number of the counter.
    pub(super) fn seal(
        &mut self,
        counter: &mut PacketCounter,
        buffer: &mut [u8],
        inner_len: usize,
        next_header: NextHeader,
    ) -> Result<Sealed, EspDrop> {
        if inner_len > buffer.len() {
            return Err(EspDrop::NoRoom);
        }
        let datagram = buffer.get_mut(..datagram_len(inner_len)).ok_or(EspDrop::NoRoom)?;
        let (sequence, soft_limit) = match counter.draw() {
            CounterAnswer::Fine(sequence) => (sequence, false),
            CounterAnswer::SoftLimit(sequence) => (sequence, true),
            CounterAnswer::Exhausted => return Err(EspDrop::Exhausted),
        };
        let body_len = datagram.get_mut(HEADER_LEN..).and_then(|body| write_trailer(body, inner_len, next_header));
        let number = PacketNumber { sequence, iv: sequence };
        self.protect(number, datagram, body_len.ok_or(EspDrop::NoRoom)?).map_err(|BadTag| EspDrop::NoRoom)?;
        self.count(inner_len);
        Ok(Sealed { datagram_len: datagram_len(inner_len), soft_limit })
    }

    /// Opens as [`InboundSa::open`] says, if the number is fresh in the window.
    pub(super) fn open(
        &mut self,
        window: &mut ReplayWindow,
        datagram: &mut [u8],
        now: Time,
    ) -> Result<Opened, EspDrop> {
        if datagram.len() < MIN_DATAGRAM_LEN {
            return Err(EspDrop::TooShort);
        }
        let header = Header::parse(datagram).ok_or(EspDrop::TooShort)?;
        if header.spi != self.spi {
            return Err(EspDrop::UnknownSpi);
        }
        let sequence = match self.numbering {
            Numbering::InIv if header.iv as u32 != header.sequence_low => return Err(EspDrop::IvMismatch),
            Numbering::InIv => header.iv,
            Numbering::Extended => window.extend(header.sequence_low)?,
            Numbering::Short => header.sequence_low.into(),
        };
        let fresh = window.check(sequence)?;
        let number = PacketNumber { sequence, iv: header.iv };
        let body = self.verify(number, datagram).map_err(|BadTag| EspDrop::BadTag)?;
        let newest = window.mark(fresh);
        let first = self.traffic.last_authenticated.replace(now).is_none();
        let (payload_len, next_header) =
            parse_trailer(datagram.get(body.clone()).unwrap_or_default()).map_err(|error| match error {
                TrailerError::Padding => EspDrop::BadPadding,
                TrailerError::NextHeader(_) => EspDrop::BadNextHeader,
            })?;
        self.count(payload_len);
        Ok(Opened { payload: body.start..body.start + payload_len, next_header, sequence, newest, first })
    }

    /// Writes the header in front of the `body_len` octets at [`HEADER_LEN`], protects them and writes the ICV after.
    fn protect(&self, number: PacketNumber, datagram: &mut [u8], body_len: usize) -> Result<(), BadTag> {
        let nonce = number.nonce(self.salt);
        let prefix = Prefix::new(self.spi, number, self.numbering);
        let header = Header { spi: self.spi, sequence_low: number.sequence as u32, iv: number.iv }.emit();
        let body = HEADER_LEN..HEADER_LEN + body_len;
        let tag = match self.transform {
            Transform::Gcm => {
                self.cipher.seal(nonce, prefix.of_gcm(), datagram.get_mut(body.clone()).ok_or(BadTag)?)?
            }
            Transform::Gmac => {
                let shifted = prefix.len..prefix.len + body_len;
                datagram.copy_within(body.clone(), shifted.start);
                let aad = datagram.get_mut(..shifted.end).ok_or(BadTag)?;
                put_front(aad, prefix.of_gmac())?;
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
        let prefix = Prefix::new(self.spi, number, self.numbering);
        let (rest, tag) = datagram.split_last_chunk_mut::<TAG_LEN>().ok_or(BadTag)?;
        let tag = *tag;
        let body = HEADER_LEN..rest.len();
        match self.transform {
            Transform::Gcm => {
                self.cipher.open(nonce, prefix.of_gcm(), rest.get_mut(body.clone()).ok_or(BadTag)?, &tag)?;
                Ok(body)
            }
            Transform::Gmac => {
                // The tag is saved: its place takes the octets that the body moves by.
                let shifted = prefix.len..prefix.len + body.len();
                datagram.copy_within(body, shifted.start);
                let aad = datagram.get_mut(..shifted.end).ok_or(BadTag)?;
                put_front(aad, prefix.of_gmac())?;
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
        OutboundSa {
            identity: *keys.identity(),
            enabled: true,
            core: Core::new(keys, library),
            counter: PacketCounter::new(),
        }
    }

    /// An SA that has already sent `used` packets.
    #[cfg(test)]
    pub(super) fn with_counter(keys: &SaKeys, used: u64) -> OutboundSa {
        let counter = PacketCounter::after(used, HARD_LIMIT_PACKETS);
        OutboundSa { counter, ..OutboundSa::new(keys, CipherLibrary::AwsLc) }
    }

    /// Seals the `inner_len` octets at [`HEADROOM`] in `buffer` in place. The datagram starts at the front of the
    /// buffer; [`TAILROOM`] octets after the inner packet are always enough. On an error nothing may be sent.
    ///
    /// A datagram that must be sent again is sent as sealed, never sealed again.
    pub fn seal(&mut self, buffer: &mut [u8], inner_len: usize, next_header: NextHeader) -> Result<Sealed, EspDrop> {
        if !self.enabled {
            return Err(EspDrop::Suspended);
        }
        self.core.seal(&mut self.counter, buffer, inner_len, next_header)
    }

    /// Which SA.
    pub fn identity(&self) -> &SaIdentity {
        &self.identity
    }

    /// Its name on the wire.
    pub fn spi(&self) -> Spi {
        self.core.spi
    }

    /// Whether it may be used now.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
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
        InboundSa {
            identity: *keys.identity(),
            enabled: true,
            core: Core::new(keys, library),
            window: ReplayWindow::default(),
        }
    }

    /// Verifies and decrypts a datagram in place. After an error the datagram may be destroyed.
    pub fn open(&mut self, datagram: &mut [u8], now: Time) -> Result<Opened, EspDrop> {
        if !self.enabled {
            return Err(EspDrop::Suspended);
        }
        self.core.open(&mut self.window, datagram, now)
    }

    /// Which SA.
    pub fn identity(&self) -> &SaIdentity {
        &self.identity
    }

    /// Its name on the wire.
    pub fn spi(&self) -> Spi {
        self.core.spi
    }

    /// Whether it accepts packets now.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn suspend(&mut self) {
        self.enabled = false;
    }

    /// Accepts packets again, from the highest sequence number seen on: what was sent meanwhile and is held back
    /// somewhere below it stays out.
    pub(super) fn resume(&mut self) {
        if !self.enabled {
            self.window.close_past();
            self.enabled = true;
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
mod published;
#[cfg(test)]
mod tests;
