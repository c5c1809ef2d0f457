//! Why datagrams and records were not used, each reason counted.

macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident = $name:literal),+ $(,)?) => {
        /// Why a datagram, or one record of it, was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum GossipDrop {
            $($(#[$doc])* $reason),+
        }

        impl GossipDrop {
            /// All reasons.
            pub const ALL: &[GossipDrop] = &[$(GossipDrop::$reason),+];

            /// The reason as metrics name it.
            pub fn name(self) -> &'static str {
                match self {
                    $(GossipDrop::$reason => $name),+
                }
            }
        }
    };
}

reasons! {
    /// Datagram: shorter than header and tag, or longer than ours are.
    Length = "length",
    /// Datagram: a version of the format that this node does not speak.
    Version = "version",
    /// Datagram: the source is no node id.
    Source = "source",
    /// Datagram: under an epoch that this node does not hold.
    UnknownEpoch = "unknown_epoch",
    /// Datagram: from a node or boot without a verified record here.
    UnknownSender = "unknown_sender",
    /// Datagram: the sender's record has no public for its epoch.
    NoPublic = "no_public",
    /// Datagram: the sender's public gives no secret, or its pair was closed.
    BadPublic = "bad_public",
    /// Datagram: no room for another pair.
    PairTableFull = "pair_table_full",
    /// Datagram: its counter was seen already or is too old.
    Replayed = "replayed",
    /// Datagram: its tag does not verify.
    Forged = "forged",
    /// Datagram: claims to be from this node.
    OwnIdentity = "own_identity",
    /// Datagram: too many hellos of unknown senders.
    HelloBudget = "hello_budget",
    /// Datagram: a hello that is not the sender's node record.
    HelloContent = "hello_content",
    /// Datagram: authentic, but not a payload.
    MalformedPayload = "malformed_payload",
    /// Message: the sender asks for more than it may.
    RequestBudget = "request_budget",
    /// Record: not a record.
    MalformedRecord = "malformed_record",
    /// Record: this node trusts no attestation key yet.
    NoTrust = "no_trust",
    /// Record: of another fork.
    OtherFork = "other_fork",
    /// Record: attested in a retired epoch.
    RetiredEpoch = "retired_epoch",
    /// Record: older than the one known.
    StaleRecord = "stale_record",
    /// Record: newer than the newest that the managers have attested, as far as this node knows.
    AboveHead = "above_head",
    /// Record: of a node that is gone.
    GoneNode = "gone_node",
    /// Record: brings back an older boot.
    OlderBoot = "older_boot",
    /// Record: another public for a (boot, epoch) that has one.
    ConflictingPublic = "conflicting_public",
    /// Record: the sender made this node check too many signatures.
    SignatureBudget = "signature_budget",
    /// Record: not signed by a trusted key.
    BadSignature = "bad_signature",
    /// Record: no room for another.
    StoreFull = "store_full",
    /// Record: the owner of this machine does not take its events.
    EventQueueFull = "event_queue_full",
    /// Outgoing: the owner of this machine does not take its datagrams.
    TransmitQueueFull = "transmit_queue_full",
    /// Outgoing: no epoch that both sides hold a public for.
    NoCommonEpoch = "no_common_epoch",
    /// Outgoing: the pair's counter is used up.
    CounterExhausted = "counter_exhausted",
}

/// How often each [`GossipDrop`] occurred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drops([u64; GossipDrop::ALL.len()]);

impl Drops {
    pub(super) fn new() -> Drops {
        Drops([0; GossipDrop::ALL.len()])
    }

    pub(super) fn count(&mut self, reason: GossipDrop) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += 1;
        }
    }

    /// How often one occurred.
    pub fn of(&self, reason: GossipDrop) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// All that occurred.
    pub fn iter(&self) -> impl Iterator<Item = (GossipDrop, u64)> + '_ {
        GossipDrop::ALL.iter().map(|reason| (*reason, self.of(*reason))).filter(|(_, count)| *count > 0)
    }
}
