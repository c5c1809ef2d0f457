//! Which offloads the data plane uses: one switch for each, for a node whose kernel or network card has a fault.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

    /// Reads a list of names with commas between them, `all` for all.
    pub fn parse_list(text: &str) -> Result<Offloads, UnknownOffload> {
        let mut words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.try_fold(Offloads::NONE, |offloads, word| match word {
            "all" => Ok(Offloads::ALL),
            name => Ok(offloads.with(name.parse()?)),
        })
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
    format!("{}, all", names.join(", "))
}

/// How it is with one offload, for `formic status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadStatus {
    /// Which.
    pub offload: Offload,
    /// It may be used.
    pub wanted: bool,
    /// Why it is not used although it may be: the test at the start failed.
    pub failure: Option<String>,
    /// Devices or peers for which the kernel refused it.
    pub refused: usize,
}

impl OffloadStatus {
    /// In words: `on`, or why not.
    pub fn describe(&self) -> String {
        let of = if self.offload == Offload::UdpGso { "peers" } else { "devices" };
        match (&self.failure, self.wanted, self.refused) {
            (Some(failure), true, _) => format!("off: {failure}"),
            (_, false, _) => "off: disabled".into(),
            (None, true, 0) => "on".into(),
            (None, true, refused) => format!("on, refused by the kernel for {refused} {of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_told_in_words() {
        let on = OffloadStatus { offload: Offload::Tso, wanted: true, failure: None, refused: 0 };
        assert_eq!(on.describe(), "on");
        let two = OffloadStatus { refused: 2, ..on.clone() };
        assert_eq!(two.describe(), "on, refused by the kernel for 2 devices");
        let broken = OffloadStatus { failure: Some("it burns".into()), ..on.clone() };
        assert_eq!(broken.describe(), "off: it burns");
        assert_eq!(OffloadStatus { wanted: false, ..broken }.describe(), "off: disabled");
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(Offloads::parse_list(""), Ok(Offloads::NONE));
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
}
