//! How it is with the offloads that the data plane may use.

pub use crate::types::{Offload, Offloads, UnknownOffload};

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
}
