//! What the control plane tells the data plane, and what it hears from it.

use super::Offloads;
use crate::esp::{Direction, InstallError, SaIdentity, SaKeys, WorkerShare};
use crate::types::{EndpointKey, Epoch, Generation, NetworkId, NodeId, Transform};
use crate::wire::esp::ControlMessage;
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// A change of the data plane's tables. Each is idempotent.
pub enum DataCommand {
    /// Makes a network known, or changes it. Everything else about a network comes after this.
    SetNetwork {
        /// Which.
        network: NetworkId,
        /// What ESP does to its packets. An SA of another transform is refused.
        transform: Transform,
        /// Its subnet, for the broadcast address.
        subnet: Option<IpNet>,
    },
    /// Forgets a network: its endpoints are closed, its SAs suspended (their counters stay).
    RemoveNetwork {
        /// Which.
        network: NetworkId,
    },
    /// Takes over the TUN device of a local endpoint. An earlier device of the same endpoint is closed. Each worker
    /// reads its own queue of it and writes what it delivers there; of a device with fewer queues, the workers without
    /// one write to the first and read nothing.
    AddEndpoint {
        /// Which.
        endpoint: EndpointKey,
        /// Its address: the only source it may send with.
        address: IpAddr,
        /// The queues of its device, at least one.
        queues: Vec<OwnedFd>,
        /// Whether packets have a header of [`crate::offload::VNET_HEADER_LEN`] octets in front (IFF_VNET_HDR).
        vnet: bool,
    },
    /// Closes the device of a local endpoint.
    RemoveEndpoint {
        /// Which.
        endpoint: EndpointKey,
    },
    /// Who owns a remote address: the highest generation holds, in whatever order they come; of one generation, its
    /// end. Records of this node's own endpoints may be passed in too: they end the ownership of others.
    SetRemote {
        /// The network.
        network: NetworkId,
        /// The address.
        address: IpAddr,
        /// Its owner.
        peer: NodeId,
        /// The age of the allocation.
        generation: Generation,
        /// Whether the ownership begins or has ended.
        alive: bool,
    },
    /// A peer has left a network: nothing goes to it or is taken from it there; its SAs on it are suspended.
    RemovePeer {
        /// The network.
        network: NetworkId,
        /// The peer.
        peer: NodeId,
    },
    /// Where a peer's data path is.
    SetPeerAddress {
        /// The peer.
        peer: NodeId,
        /// Its underlay address.
        address: SocketAddr,
    },
    /// What the way to a peer carries. Longer packets are dropped, and their sender is told (ICMP "too big").
    SetPathMtu {
        /// The peer.
        peer: NodeId,
        /// Octets of inner packets.
        inner_bytes: u16,
    },
    /// Makes an SA, or enables it again with its old counter or window. It does not send before
    /// [`DataCommand::SetSending`].
    InstallSa {
        /// Which.
        identity: SaIdentity,
        /// Its keys.
        keys: SaKeys,
        /// Whether this node sends or receives with it.
        direction: Direction,
    },
    /// Takes an SA out of use; its counter or window stays.
    SuspendSa {
        /// Which.
        identity: SaIdentity,
    },
    /// Which outbound SA carries the traffic of its queue to a peer on a network. One that is not installed yet sends as
    /// soon as it is; until then packets are dropped.
    SetSending {
        /// The network.
        network: NetworkId,
        /// The peer.
        peer: NodeId,
        /// The SA.
        outbound: SaIdentity,
    },
    /// Nothing is sent to a peer on a network until the next [`DataCommand::SetSending`].
    StopSending {
        /// The network.
        network: NetworkId,
        /// The peer.
        peer: NodeId,
    },
    /// Erases the SAs of an epoch with their keys, and refuses the epoch for ever.
    EraseEpoch(Epoch),
    /// Which offloads may be used from now on; what failed the test at the start stays off.
    SetOffloads(Offloads),
    /// Sends one control message under an SA, whether or not traffic goes by it.
    SendControl {
        /// The SA.
        outbound: SaIdentity,
        /// What to say.
        message: ControlMessage,
    },
    /// Ends the workers; what comes after it in the batch is not applied.
    Stop,
}

impl DataCommand {
    /// Whether a worker has to do with it: what is about one SA is for the owner of its queue, all else for everyone.
    pub(super) fn concerns(&self, share: WorkerShare) -> bool {
        match self {
            DataCommand::InstallSa { identity, .. }
            | DataCommand::SuspendSa { identity }
            | DataCommand::SetSending { outbound: identity, .. }
            | DataCommand::SendControl { outbound: identity, .. } => share.owns(identity.queue),
            _ => true,
        }
    }
}

/// Why [`DataCommand::InstallSa`] did nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaRefusal {
    /// No [`DataCommand::SetNetwork`] came before.
    #[error("the network of the security association is not known")]
    NetworkUnknown,
    /// The network's record names another transform.
    #[error("the network has another transform than the security association")]
    WrongTransform,
    /// It was to send to a peer or on a network that is not its own.
    #[error("the security association belongs to another network or peer")]
    WrongPair,
    /// More nodes than the data plane can number.
    #[error("too many nodes")]
    TooManyPeers,
    /// The database of SAs refused it.
    #[error(transparent)]
    Install(#[from] InstallError),
}

/// What the control plane should know.
#[derive(Debug)]
pub enum DataEvent {
    /// An inbound SA opened its first packet since it was installed (or installed again): the pair is confirmed.
    Authenticated {
        /// Which.
        identity: SaIdentity,
    },
    /// A peer said something inside an authenticated packet. [`ControlMessage::Nothing`] is not reported.
    Control {
        /// The SA it came by.
        identity: SaIdentity,
        /// What it said.
        message: ControlMessage,
    },
    /// Long packets go to a peer: told at most once a second by each worker.
    PathUsed {
        /// The peer.
        peer: NodeId,
    },
    /// An outbound SA reached its soft limit: a rotation is due early.
    SoftLimit {
        /// Which.
        identity: SaIdentity,
    },
    /// An SA was not installed.
    SaRefused {
        /// Which.
        identity: SaIdentity,
        /// Why. [`InstallError::needs_new_boot`] tells whether only a new boot helps.
        reason: SaRefusal,
    },
    /// An endpoint could not be added, or its device is gone. It is removed.
    EndpointLost {
        /// Which.
        endpoint: EndpointKey,
        /// What happened.
        error: String,
    },
    /// A worker cannot go on and has ended; every [`crate::dataplane::Dataplane::send`] fails from now on.
    WorkerFailed {
        /// What happened.
        error: String,
    },
}
