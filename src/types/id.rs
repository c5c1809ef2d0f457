//! Identifiers. Their textual form is Docker's (25 characters of base36), their wire form 17 bytes.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// Characters of the textual form of an [`Id`].
const TEXT_LEN: usize = 25;

/// A random identifier: a number below 36^25, 25 characters of base36 as text (`dt0zvqn0saezzinc8a5g4worx`),
/// 17 big-endian bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 17]);

/// Why a text or byte string is not an [`Id`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id: expected 25 characters of 0-9 and a-z")]
pub struct IdError;

impl Id {
    /// The number zero: no identifier of anything, a place holder in tests and encodings.
    pub const ZERO: Id = Id([0; 17]);

    /// Reduces 17 random bytes to an id.
    pub fn from_random(random: [u8; 17]) -> Id {
        let mut digits = [0u8; TEXT_LEN];
        let mut value = random;
        for digit in digits.iter_mut().rev() {
            *digit = divide_by_36(&mut value);
        }
        Id::from_digits(&digits)
    }

    /// Reads the wire form. Errors when the number is 36^25 or more, so that one id has one encoding.
    pub fn from_bytes(bytes: [u8; 17]) -> Result<Id, IdError> {
        let id = Id::from_random(bytes);
        if id.0 == bytes { Ok(id) } else { Err(IdError) }
    }

    /// The wire form: 17 bytes, big-endian.
    pub fn as_bytes(&self) -> &[u8; 17] {
        &self.0
    }

    fn from_digits(digits: &[u8; TEXT_LEN]) -> Id {
        let mut value = [0u8; 17];
        for &digit in digits {
            let mut carry = u32::from(digit);
            for byte in value.iter_mut().rev() {
                let sum = u32::from(*byte) * 36 + carry;
                *byte = (sum & 0xff) as u8;
                carry = sum >> 8;
            }
        }
        Id(value)
    }
}

/// Divides the big-endian number by 36 in place; returns the remainder.
fn divide_by_36(value: &mut [u8; 17]) -> u8 {
    let mut remainder = 0u32;
    for byte in value.iter_mut() {
        let part = (remainder << 8) | u32::from(*byte);
        *byte = (part / 36) as u8;
        remainder = part % 36;
    }
    remainder as u8
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0;
        let mut text = [0u8; TEXT_LEN];
        for character in text.iter_mut().rev() {
            let digit = divide_by_36(&mut value);
            *character = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        }
        text.iter().try_for_each(|&c| fmt::Write::write_char(f, char::from(c)))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Id, IdError> {
        let bytes: &[u8; TEXT_LEN] = text.as_bytes().try_into().map_err(|_| IdError)?;
        let mut digits = [0u8; TEXT_LEN];
        for (digit, &byte) in digits.iter_mut().zip(bytes) {
            *digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'z' => byte - b'a' + 10,
                _ => return Err(IdError),
            };
        }
        Ok(Id::from_digits(&digits))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
        } else {
            Id::from_bytes(<[u8; 17]>::deserialize(deserializer)?).map_err(D::Error::custom)
        }
    }
}

macro_rules! id_type {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Id);

        impl $name {
            /// Reduces 17 random bytes to an id.
            pub fn from_random(random: [u8; 17]) -> Self {
                Self(Id::from_random(random))
            }

            /// The wire form: 17 bytes, big-endian.
            pub fn as_bytes(&self) -> &[u8; 17] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.parse().map(Self)
            }
        }
    )+};
}

id_type! {
    /// A swarm.
    ClusterId,
    /// A host that runs the daemon.
    NodeId,
    /// An overlay network.
    NetworkId,
    /// A service: the wanted replicas.
    ServiceId,
    /// A task: one placed replica.
    TaskId,
}

/// 8 random bytes drawn at each start of the daemon and never stored: a restart is a new identity for keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootId(pub [u8; 8]);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The number of one key in a key ring: one counter for the whole swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch after this one. Saturates: after 2^32 rotations (5.9 million years at 12 h) nothing rotates.
    pub fn next(self) -> Epoch {
        Epoch(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A life of the replicated state: max(old + 1, unix seconds), set at `init` and at every restore. Every
/// comparison starts with the fork, and a lower one is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fork(pub u64);

/// The age of an allocation: the newest owner of an address wins, whatever the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The life of the state that made it.
    pub fork: Fork,
    /// The log index that made it.
    pub index: u64,
}

/// The Security Parameters Index of an ESP packet (RFC 4303, section 2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Spi(pub u32);

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What ESP does to the packets of a network. It comes from the network's record, never from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Transform {
    /// AES-256-GCM with a 16-octet ICV (RFC 4106): `--opt encrypted`.
    Gcm = 1,
    /// ENCR_NULL_AUTH_AES_GMAC with a 256-bit key (RFC 4543): authenticated, not secret.
    Gmac = 2,
}

/// One endpoint: one task's address on one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointKey {
    /// The network.
    pub network: NetworkId,
    /// The task.
    pub task: TaskId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_round_trip() {
        let text = "dt0zvqn0saezzinc8a5g4worx";
        let id: Id = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(Id::from_bytes(*id.as_bytes()), Ok(id));
        assert_eq!(Id::from_random([0xff; 17]).to_string().len(), 25);
    }

    #[test]
    fn one_id_has_one_encoding() {
        assert_eq!(Id::from_bytes([0xff; 17]), Err(IdError));
        for bad in ["", "dt0zvqn0saezzinc8a5g4wor", "DT0zvqn0saezzinc8a5g4worx", "dt0zvqn0saezzinc8a5g4worxx"] {
            assert_eq!(bad.parse::<Id>(), Err(IdError), "{bad}");
        }
    }
}
