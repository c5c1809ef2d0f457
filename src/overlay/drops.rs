//! Why packets are dropped: the one enum of the whole data path, each reason a metric.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal),+ $(,)?) => {
        /// Why the data path dropped a packet. Every drop has exactly one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant),+ }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),+];

            /// The name in metrics and in `formic status`.
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name),+ }
            }

            /// What it means, for people.
            pub fn description(self) -> &'static str {
                match self { $(DropReason::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

drop_reasons! {
    /// The inner packet is not a well-formed IPv4 or IPv6 packet, or its length field is wrong.
    MalformedInner => "malformed_inner",
    /// The device handed over a packet that is still to be segmented or whose checksum cannot be completed.
    UnfinishedOffload => "unfinished_offload",
    /// The packet is larger than the data plane's buffers.
    Oversized => "oversized",
    /// The container sent with a source address that is not its own.
    NotOwnSource => "not_own_source",
    /// The inner destination is a multicast group.
    Multicast => "multicast",
    /// The inner destination is a broadcast address.
    Broadcast => "broadcast",
    /// No endpoint of the network has the inner destination.
    NoSuchEndpoint => "no_such_endpoint",
    /// The container sent to its own address.
    ToSelf => "to_self",
    /// There is no security association to send to the peer with.
    NoSendingSa => "no_sending_sa",
    /// The underlay address of the peer is not known.
    NoPeerAddress => "no_peer_address",
    /// The security association has sent the last packet that its key is good for.
    Exhausted => "exhausted",
    /// The underlay socket refused the datagram because it exceeds the underlay's MTU.
    ExceedsUnderlayMtu => "exceeds_underlay_mtu",
    /// The packet is longer than the way to the peer carries; its sender was told (ICMP "too big").
    ExceedsPathMtu => "exceeds_path_mtu",
    /// The underlay has no route to the peer.
    Unreachable => "unreachable",
    /// The underlay device's queue is full.
    UnderlayQueueFull => "underlay_queue_full",
    /// The underlay socket refused the datagram, also when it was sent again.
    SendFailed => "send_failed",
    /// The worker did not read its socket fast enough, or a datagram's UDP checksum was wrong: counted by the kernel.
    ReceiveQueueFull => "receive_queue_full",
    /// A NAT keep-alive of one octet (RFC 3948), ignored as it should be.
    NatKeepAlive => "nat_keep_alive",
    /// The datagram is too short for ESP.
    TooShort => "too_short",
    /// SPI 0: an IKE message or garbage.
    SpiZero => "spi_zero",
    /// No security association has this SPI.
    UnknownSpi => "unknown_spi",
    /// The datagram came to a worker that does not own its SPI's queue: sent to a worker's own port, or the port is
    /// shared with another process.
    WrongWorker => "wrong_worker",
    /// The security association is not in use now.
    Suspended => "suspended",
    /// The low half of the IV is not the sequence number.
    IvMismatch => "iv_mismatch",
    /// The sequence number was seen before.
    Replayed => "replayed",
    /// The sequence number is older than the replay window.
    TooOld => "too_old",
    /// The integrity check failed: forged, damaged, or of another key.
    BadTag => "bad_tag",
    /// The padding is malformed although the packet is authentic.
    BadPadding => "bad_padding",
    /// The next header is none of IPv4, IPv6 and nothing, or contradicts the inner packet.
    BadNextHeader => "bad_next_header",
    /// An authentic control message of a kind that this version does not know.
    UnknownControl => "unknown_control",
    /// A control message came while the control plane was too far behind to take it.
    ControlBacklog => "control_backlog",
    /// The inner source is not an endpoint of the peer that sent the packet.
    ForeignSource => "foreign_source",
    /// The inner destination is not a local endpoint of the network.
    ForeignDestination => "foreign_destination",
    /// The container does not read its device fast enough.
    DeviceQueueFull => "device_queue_full",
    /// The container's device refused the packet.
    DeviceWriteFailed => "device_write_failed",
}

/// One counter for each [`DropReason`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> DropCounters {
        DropCounters([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one packet.
    pub fn count(&mut self, reason: DropReason) {
        self.count_many(reason, 1);
    }

    /// Counts several packets.
    pub fn count_many(&mut self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter = counter.saturating_add(packets);
        }
    }

    /// How many packets were dropped for this reason.
    pub fn packets(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// How many packets were dropped for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every reason with its counter.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.packets(reason)))
    }

    /// Adds another worker's counters.
    pub fn add(&mut self, other: &DropCounters) {
        other.iter().for_each(|(reason, packets)| self.count_many(reason, packets));
    }
}
