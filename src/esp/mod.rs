//! IPsec ESP (RFC 4303) in userspace: the key schedule, one security association (SA) in each direction, and the
//! database of one worker's SAs.
//!
//! ```text
//! out:  OutboundSa::seal   counter -> trailer -> AEAD in place -> header, ICV
//! in:   SaDatabase::open   SPI -> candidates -> InboundSa::open: lengths -> IV -> replay check -> AEAD in place
//!                          -> replay mark -> trailer
//! ```
//!
//! [`external`] is the same with keys that came from elsewhere, to talk to other implementations in tests.
//!
//! It is not: the policy for what an inner packet may be (`overlay`), the decision which SAs exist and which one
//! sends (`keys`), the sockets (`dataplane`).
//!
//! Invariants
//! - The same (key, nonce) never twice: an [`SaIdentity`] determines its keys, the database makes an SA once for an
//!   identity and keeps its counter until the epoch is erased, and then refuses the epoch for ever.
//! - One SA has one counter or one replay window, owned by one worker.
//! - No octet of a packet is believed before its ICV has verified, save the fixed header.
//! - Sealing and opening allocate nothing.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod aead;
mod counter;
mod database;
mod drop;
pub mod external;
mod replay;
mod sa;
mod schedule;
mod wireshark;

pub use aead::{CipherBroken, CipherLibrary, CipherReport, PacketCipher};
pub use counter::{CounterAnswer, HARD_LIMIT_PACKETS, PacketCounter, SOFT_LIMIT_PACKETS};
pub use database::{
    Direction, InboundIndex, InstallError, MAX_CANDIDATES, MAX_ERASED_EPOCHS, MAX_SAS_PER_DIRECTION, OutboundIndex,
    Received, SaDatabase, SaSummary, WorkerShare,
};
pub use drop::EspDrop;
pub use replay::{Fresh, REPLAY_WINDOW_PACKETS, ReplayWindow};
pub use sa::{HEADROOM, InboundSa, Numbering, Opened, OutboundSa, SaTraffic, Sealed, TAILROOM};
pub use schedule::{SaIdentity, SaKeys, gossip_key, network_key, queue_of, spi};
pub use wireshark::wireshark_table;

#[cfg(test)]
mod testing;
