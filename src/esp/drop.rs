//! Why ESP dropped a packet.

/// The reason for which a packet was dropped; each is a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EspDrop {
    /// Fewer octets than the shortest ESP packet.
    TooShort,
    /// More octets than a UDP payload can have.
    TooLong,
    /// SPI 0: the non-ESP marker of RFC 3948.
    SpiZero,
    /// No SA has this SPI.
    UnknownSpi,
    /// The SPI's queue is another worker's, who alone may judge it.
    WrongWorker,
    /// The IV's low half is not the sequence number.
    IvMismatch,
    /// This sequence number was received before.
    Replayed,
    /// The sequence number is older than the replay window.
    TooOld,
    /// The ICV does not verify under any candidate.
    BadTag,
    /// Authentic, but its padding is malformed.
    BadPadding,
    /// Authentic, but it carries neither IPv4 nor IPv6 nor nothing.
    BadNextHeader,
    /// The SA is not in use now.
    Suspended,
    /// The SA has sent [`HARD_LIMIT_PACKETS`](super::HARD_LIMIT_PACKETS).
    Exhausted,
    /// No SA for this peer and network.
    NoSa,
    /// The buffer has no room for header, padding and ICV.
    NoRoom,
}

impl EspDrop {
    /// Every reason, in order.
    pub const ALL: [EspDrop; 15] = [
        EspDrop::TooShort,
        EspDrop::TooLong,
        EspDrop::SpiZero,
        EspDrop::UnknownSpi,
        EspDrop::WrongWorker,
        EspDrop::IvMismatch,
        EspDrop::Replayed,
        EspDrop::TooOld,
        EspDrop::BadTag,
        EspDrop::BadPadding,
        EspDrop::BadNextHeader,
        EspDrop::Suspended,
        EspDrop::Exhausted,
        EspDrop::NoSa,
        EspDrop::NoRoom,
    ];

    /// The name under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            EspDrop::TooShort => "too_short",
            EspDrop::TooLong => "too_long",
            EspDrop::SpiZero => "spi_zero",
            EspDrop::UnknownSpi => "unknown_spi",
            EspDrop::WrongWorker => "wrong_worker",
            EspDrop::IvMismatch => "iv_mismatch",
            EspDrop::Replayed => "replayed",
            EspDrop::TooOld => "too_old",
            EspDrop::BadTag => "bad_tag",
            EspDrop::BadPadding => "bad_padding",
            EspDrop::BadNextHeader => "bad_next_header",
            EspDrop::Suspended => "suspended",
            EspDrop::Exhausted => "exhausted",
            EspDrop::NoSa => "no_sa",
            EspDrop::NoRoom => "no_room",
        }
    }
}
