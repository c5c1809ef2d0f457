//! Which offloads the data plane uses: one switch for each, for a node or a swarm whose kernels or network cards have a
//! fault.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! offloads {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal),+ $(,)?) => {
        /// One way of handling many packets as one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Offload { $($(#[doc = $doc])+ $variant),+ }

        impl Offload {
            /// All of them.
            pub const ALL: &'static [Offload] = &[$(Offload::$variant),+];

            /// Its name in options and in `formic status`.
            pub fn name(self) -> &'static str {
                match self { $(Offload::$variant => $name),+ }
            }
        }
    };
}

offloads! {
    /// Containers hand over TCP super-packets and open checksums, which are cut and completed here.
    Tso => "tso",
    /// The same for UDP (Linux 6.2 or newer).
    Uso => "uso",
    /// Datagrams for one peer are passed to the kernel as one train (UDP_SEGMENT).
    UdpGso => "udp-gso",
    /// The kernel passes on trains of datagrams (UDP_GRO).
    UdpGro => "udp-gro",
    /// TCP packets of one flow are joined before a container's kernel sees them.
    JoinTcp => "join-tcp",
    /// The same for UDP (Linux 6.2 or newer).
    JoinUdp => "join-udp",
}

/// A set of [`Offload`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Offloads(u8);

/// A name that no offload has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no offload {0:?}: choose from {names}", names = names())]
pub struct UnknownOffload(String);

impl Offloads {
    /// None: one packet at a time.
    pub const NONE: Offloads = Offloads(0);
    /// All.
    pub const ALL: Offloads = Offloads(u8::MAX >> (8 - Offload::ALL.len()));

    /// Whether `offload` is among them.
    pub fn has(self, offload: Offload) -> bool {
        self.0 & bit(offload) != 0
    }

    /// The same with `offload`.
    pub fn with(self, offload: Offload) -> Offloads {
        Offloads(self.0 | bit(offload))
    }

    /// The same without `offload`.
    pub fn without(self, offload: Offload) -> Offloads {
        Offloads(self.0 & !bit(offload))
    }

    /// The same without those of `others`.
    pub fn minus(self, others: Offloads) -> Offloads {
        Offloads(self.0 & !others.0)
    }

    /// They, in order.
    pub fn iter(self) -> impl Iterator<Item = Offload> {
        Offload::ALL.iter().copied().filter(move |&offload| self.has(offload))
    }

    /// Reads a list of names with commas between them, `all` for all, `none` for none.
    pub fn parse_list(text: &str) -> Result<Offloads, UnknownOffload> {
        let mut words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.try_fold(Offloads::NONE, |offloads, word| match word {
            "all" => Ok(Offloads::ALL),
            "none" => Ok(offloads),
            name => Ok(offloads.with(name.parse()?)),
        })
    }
}

impl TryFrom<u8> for Offloads {
    type Error = UnknownOffload;

    fn try_from(bits: u8) -> Result<Offloads, UnknownOffload> {
        if bits & !Offloads::ALL.0 == 0 { Ok(Offloads(bits)) } else { Err(UnknownOffload(format!("{bits:#b}"))) }
    }
}

impl From<Offloads> for u8 {
    fn from(offloads: Offloads) -> u8 {
        offloads.0
    }
}

impl fmt::Display for Offloads {
    /// As [`Offloads::parse_list`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Offload::name).collect();
        f.write_str(if names.is_empty() { "none" } else { "" })?;
        f.write_str(&names.join(", "))
    }
}

impl FromStr for Offload {
    type Err = UnknownOffload;

    fn from_str(name: &str) -> Result<Offload, UnknownOffload> {
        let found = Offload::ALL.iter().find(|offload| offload.name() == name);
        found.copied().ok_or_else(|| UnknownOffload(name.to_owned()))
    }
}

fn bit(offload: Offload) -> u8 {
    1 << offload as u8
}

fn names() -> String {
    let names: Vec<&str> = Offload::ALL.iter().map(|offload| offload.name()).collect();
    format!("{}, all, none", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        assert_eq!(Offloads::parse_list(""), Ok(Offloads::NONE));
        assert_eq!(Offloads::parse_list("none"), Ok(Offloads::NONE));
        assert_eq!(Offloads::parse_list("all"), Ok(Offloads::ALL));
        let two = Offloads::NONE.with(Offload::Tso).with(Offload::UdpGro);
        assert_eq!(Offloads::parse_list("tso, udp-gro"), Ok(two));
        assert_eq!(two.iter().collect::<Vec<_>>(), [Offload::Tso, Offload::UdpGro]);
        assert_eq!(Offloads::ALL.minus(two).iter().count(), Offload::ALL.len() - 2);
        assert!(Offloads::ALL.iter().eq(Offload::ALL.iter().copied()));
        assert!(!two.without(Offload::Tso).has(Offload::Tso));
        let error = Offloads::parse_list("tso,gro").unwrap_err().to_string();
        assert!(error.contains("\"gro\"") && error.contains("udp-gso") && error.contains("all"), "{error}");
    }

    #[test]
    fn what_is_told_is_read_again() {
        for bits in 0..=u8::MAX {
            let Ok(offloads) = Offloads::try_from(bits) else {
                assert!(bits > u8::from(Offloads::ALL), "{bits}");
                continue;
            };
            assert_eq!(u8::from(offloads), bits);
            assert_eq!(Offloads::parse_list(&offloads.to_string()), Ok(offloads));
        }
        assert_eq!(Offloads::NONE.to_string(), "none");
    }
}
