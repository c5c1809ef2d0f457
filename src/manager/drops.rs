//! What the control port turned away, by reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// Why the control port turned something away.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum ControlDrop { $($(#[$doc])* $name),+ }

        impl ControlDrop {
            const ALL: &'static [ControlDrop] = &[$(ControlDrop::$name),+];

            /// The metric's name.
            pub(crate) fn name(self) -> &'static str {
                match self { $(ControlDrop::$name => $text),+ }
            }
        }
    };
}

drop_reasons! {
    /// Too many connections that have not said yet who they are.
    TooManyConnections = "too_many_connections",
    /// No TLS handshake with us.
    Handshake = "handshake",
    /// Another version of the protocol.
    OtherVersion = "other_version",
    /// Nothing came in time.
    OpeningTimeout = "opening_timeout",
    /// A frame over the limit.
    FrameTooLong = "frame_too_long",
    /// Not a frame of the protocol.
    Malformed = "malformed",
    /// A request that needs a certificate came without one.
    NoCertificate = "no_certificate",
    /// A certificate of another swarm.
    ForeignCertificate = "foreign_certificate",
    /// A wrong join token.
    WrongToken = "wrong_token",
    /// A joiner while its source has tried too many wrong tokens.
    JoinRateLimited = "join_rate_limited",
    /// A join request that makes no sense.
    BadJoin = "bad_join",
    /// A node that was removed.
    RemovedNode = "removed_node",
    /// A node that this swarm does not know.
    UnknownNode = "unknown_node",
    /// A second session of one (node, boot).
    SecondSession = "second_session",
    /// A session of a boot that a newer one has followed.
    FormerBoot = "former_boot",
    /// A node that begins one boot after the other.
    BootRateLimited = "boot_rate_limited",
    /// A node that attaches more than it may.
    AttachRateLimited = "attach_rate_limited",
    /// The state refused the session.
    SessionRefused = "session_refused",
    /// What only managers may ask, from a node that is none (any more).
    NotManager = "not_manager",
    /// A message of the consensus from or for another seat.
    WrongSeat = "wrong_seat",
    /// A message of the consensus that waited behind too many others, or for a manager that is not reached.
    PeerTooSlow = "peer_too_slow",
    /// A report on a task of another node.
    ForeignTask = "foreign_task",
    /// A list longer than a page.
    PageTooLong = "page_too_long",
}

/// The counters.
#[derive(Default)]
pub(crate) struct Drops([AtomicU64; ControlDrop::ALL.len()]);

impl Drops {
    pub(crate) fn count(&self, reason: ControlDrop) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The reasons that occurred.
    pub(crate) fn read(&self) -> BTreeMap<&'static str, u64> {
        let counts =
            ControlDrop::ALL.iter().zip(&self.0).map(|(why, count)| (why.name(), count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}
