//! The requests of an agent, and those of one manager to another.

use super::config::{Trust, client_config};
use super::identity::{Identity, Peer};
use super::stream::{FrameReader, FrameWriter, StreamError, explain, within};
use crate::crypto;
use crate::types::NodeId;
use crate::wire::control::{ALPN, Answer, JoinRequest, Joined, MAX_FRAME_BYTES, Opening, SessionRequest};
use crate::wire::token::JoinToken;
use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use rustls::pki_types::ServerName;
use smol::io::{ReadHalf, WriteHalf};
use smol::net::TcpStream;
use socket2::SockRef;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a manager may take to take the connection: one that is there does at once, or when the request is sent again
/// after a second. Who waits longer for one that was cut off comes too late to another one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A stream between managers breaks when nothing is acknowledged for so long, and a new one is tried at once: after a cut
/// the kernel would send again ever more seldom, and the two would hear of each other as long after it as it lasted.
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a manager may take to shake hands, and to answer: each.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a forwarded command may take: its commit may wait for an election.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(20);

/// Managers asked in a row when each names another leader.
pub(crate) const LEADER_STEPS: usize = 4;

/// Why a request to a manager failed. The texts are one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection.
    #[error("cannot reach the manager at {address}: {reason}")]
    Unreachable {
        /// The manager.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A connection, but not with a manager that we believe, or that believes us.
    #[error("no secure connection with {address}: {reason}")]
    Untrusted {
        /// The manager.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The manager's answer is no.
    #[error("{0}")]
    Refused(String),
    /// The managers have removed this node.
    #[error("this node was removed from the swarm")]
    Removed,
    /// A newer boot of this node has opened a session.
    #[error("this boot of the node is over: a newer one has opened a session")]
    FormerBoot,
    /// Another manager leads, or none: the answer names it.
    #[error("the swarm has no leader now, or another one than was asked: try again")]
    NotLeader {
        /// Where the leader is, if there is one.
        leader: Option<SocketAddr>,
    },
    /// The manager's answer makes no sense.
    #[error("unexpected answer from the manager at {0}: is it another version of Formic?")]
    Unexpected(SocketAddr),
    /// Our own key or certificate does not work.
    #[error("this node's certificate is unusable: {0}")]
    Identity(String),
}

type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
/// The way to a manager.
pub type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

/// An open session.
pub struct Session {
    /// The log index of this boot.
    pub boot_index: u64,
    /// The manager.
    pub manager: Peer,
    /// Gives `ToAgent`.
    pub reader: Reader,
    /// Takes `FromAgent`.
    pub writer: Writer,
}

/// Asks `first`, and then the leader that it names, as long as that leads on.
async fn at_leader<T, F: Future<Output = Result<T, ConnectError>>>(
    first: SocketAddr,
    ask: impl Fn(SocketAddr) -> F,
) -> Result<T, ConnectError> {
    let mut address = first;
    for _ in 0..LEADER_STEPS {
        match ask(address).await {
            Err(ConnectError::NotLeader { leader: Some(leader) }) if leader != address => address = leader,
            other => return other,
        }
    }
    Err(ConnectError::NotLeader { leader: None })
}

/// Asks to be admitted. `request.secret` is set from the token. The chain that comes back ends with the root that
/// the token pins.
pub async fn join(address: SocketAddr, token: &JoinToken, request: JoinRequest) -> Result<Joined, ConnectError> {
    at_leader(address, |address| join_at(address, token, request.clone())).await
}

async fn join_at(address: SocketAddr, token: &JoinToken, mut request: JoinRequest) -> Result<Joined, ConnectError> {
    request.secret = token.secret.clone();
    let mut connection = Connection::open(address, Trust::Digest(token.root_digest), None).await?;
    let Answer::Joined(joined) = connection.ask(Opening::Join(request)).await? else {
        return Err(ConnectError::Unexpected(address));
    };
    let leaf = joined.chain.first().and_then(|leaf| Peer::of(leaf).ok());
    let fits = leaf.is_some_and(|leaf| {
        leaf.node == joined.node && leaf.role == joined.role && leaf.cluster == connection.manager.cluster
    });
    let pinned = joined.chain.last().is_some_and(|root| crypto::sha256(&[root]) == token.root_digest);
    if fits && pinned && joined.cluster == connection.manager.cluster {
        Ok(joined)
    } else {
        Err(ConnectError::Unexpected(address))
    }
}

/// Opens the session of a node with a manager of its swarm.
pub async fn open_session(
    address: SocketAddr,
    identity: &Identity,
    request: SessionRequest,
) -> Result<Session, ConnectError> {
    at_leader(address, |address| open_session_at(address, identity, request.clone())).await
}

async fn open_session_at(
    address: SocketAddr,
    identity: &Identity,
    request: SessionRequest,
) -> Result<Session, ConnectError> {
    let mut connection = Connection::as_node(address, identity).await?;
    let Answer::Opened { boot_index } = connection.ask(Opening::Session(request)).await? else {
        return Err(ConnectError::Unexpected(address));
    };
    let Connection { manager, reader, writer, .. } = connection;
    Ok(Session { boot_index, manager, reader, writer })
}

/// Asks for a new certificate for the key of `csr`; gives the chain.
pub async fn renew(address: SocketAddr, identity: &Identity, csr: Vec<u8>) -> Result<Vec<Vec<u8>>, ConnectError> {
    let csr = &csr;
    at_leader(address, |address| async move {
        match Connection::as_node(address, identity).await?.ask(Opening::Renew { csr: csr.clone() }).await? {
            Answer::Renewed { chain } => Ok(chain),
            _ => Err(ConnectError::Unexpected(address)),
        }
    })
    .await
}

/// Tells the managers that this identity is on the node's disk.
pub async fn certified(address: SocketAddr, identity: &Identity) -> Result<(), ConnectError> {
    let root = crypto::sha256(&[identity.root().as_ref()]);
    at_leader(address, |address| async move {
        match Connection::as_node(address, identity).await?.ask(Opening::Certified { root }).await? {
            Answer::Noted => Ok(()),
            _ => Err(ConnectError::Unexpected(address)),
        }
    })
    .await
}

/// Tells the managers that this node leaves the swarm.
pub async fn leave(address: SocketAddr, identity: &Identity) -> Result<(), ConnectError> {
    at_leader(address, |address| async move {
        match Connection::as_node(address, identity).await?.ask(Opening::Leave).await? {
            Answer::Left => Ok(()),
            _ => Err(ConnectError::Unexpected(address)),
        }
    })
    .await
}

/// A manager's stream of its messages of the consensus to another one. The node there is `expected`; it answers to
/// `own`.
pub async fn open_consensus(
    address: SocketAddr,
    identity: &Identity,
    expected: NodeId,
    (from, to): (u64, u64),
    own: SocketAddr,
) -> Result<Writer, ConnectError> {
    let tcp = connect(address).await?;
    // A kernel that does not know the option waits longer.
    let _ = SockRef::from(&tcp).set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT));
    let mut connection = Connection::over(tcp, address, own_swarm(identity), Some(identity)).await?;
    if connection.manager.node != expected {
        let reason = format!("node {} answers there, not {expected}", connection.manager.node);
        return Err(ConnectError::Untrusted { address, reason });
    }
    match connection.ask(Opening::Consensus { from, to, address: own }).await? {
        Answer::Listening => Ok(connection.writer),
        _ => Err(ConnectError::Unexpected(address)),
    }
}

/// A manager passes a command on to the leader; gives what became of it.
pub async fn forward(address: SocketAddr, identity: &Identity, command: &[u8]) -> Result<Vec<u8>, ConnectError> {
    let mut connection = Connection::as_node(address, identity).await?;
    let failed = |error: StreamError| ConnectError::Untrusted { address, reason: error.to_string() };
    connection.writer.write(&Opening::Forward).await.map_err(failed)?;
    connection.writer.write(&command).await.map_err(failed)?;
    match connection.answer(FORWARD_TIMEOUT).await? {
        Answer::Forwarded { outcome } => Ok(outcome),
        _ => Err(ConnectError::Unexpected(address)),
    }
}

/// A manager asks the leader from which log index its own state is new enough.
pub async fn read_index(address: SocketAddr, identity: &Identity) -> Result<u64, ConnectError> {
    match Connection::as_node(address, identity).await?.ask(Opening::Read).await? {
        Answer::Index { index } => Ok(index),
        _ => Err(ConnectError::Unexpected(address)),
    }
}

/// A manager that has no state yet asks for the leader's snapshot, at most `limit` bytes of it.
pub async fn fetch_state(
    address: SocketAddr,
    identity: &Identity,
    limit: u64,
) -> Result<Zeroizing<Vec<u8>>, ConnectError> {
    at_leader(address, |address| async move {
        let mut connection = Connection::as_node(address, identity).await?;
        let Answer::State { total } = connection.ask(Opening::State).await? else {
            return Err(ConnectError::Unexpected(address));
        };
        let size = usize::try_from(total).ok().filter(|_| total <= limit).ok_or(ConnectError::Unexpected(address))?;
        let mut state = Zeroizing::new(Vec::with_capacity(size));
        while state.len() < size {
            let piece = connection.reader.read::<Zeroizing<Vec<u8>>>(STEP_TIMEOUT).await;
            let piece = piece.map_err(|error| ConnectError::Untrusted { address, reason: error.to_string() })?;
            if piece.is_empty() || state.len() + piece.len() > size {
                return Err(ConnectError::Unexpected(address));
            }
            state.extend_from_slice(&piece);
        }
        Ok(state)
    })
    .await
}

async fn connect(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let unreachable = |error: &dyn std::fmt::Display| ConnectError::Unreachable { address, reason: error.to_string() };
    let tcp = within(CONNECT_TIMEOUT, TcpStream::connect(address)).await.map_err(|error| unreachable(&error))?;
    let tcp = tcp.map_err(|error| unreachable(&error))?;
    tcp.set_nodelay(true).map_err(|error| unreachable(&error))?;
    Ok(tcp)
}

/// Whom a node believes: managers of its own swarm.
fn own_swarm(identity: &Identity) -> Trust {
    Trust::Roots(identity.roots(), identity.peer().cluster)
}

struct Connection {
    address: SocketAddr,
    manager: Peer,
    reader: Reader,
    writer: Writer,
}

impl Connection {
    async fn as_node(address: SocketAddr, identity: &Identity) -> Result<Connection, ConnectError> {
        Connection::open(address, own_swarm(identity), Some(identity)).await
    }

    async fn open(address: SocketAddr, trust: Trust, identity: Option<&Identity>) -> Result<Connection, ConnectError> {
        Connection::over(connect(address).await?, address, trust, identity).await
    }

    async fn over(
        tcp: TcpStream,
        address: SocketAddr,
        trust: Trust,
        identity: Option<&Identity>,
    ) -> Result<Connection, ConnectError> {
        let untrusted = |reason: String| ConnectError::Untrusted { address, reason };
        let config = client_config(trust, identity).map_err(|error| ConnectError::Identity(error.to_string()))?;
        let connector = TlsConnector::from(Arc::new(config));
        let handshake = connector.connect(ServerName::IpAddress(address.ip().into()), tcp);
        let tls = within(STEP_TIMEOUT, handshake).await.map_err(|error| untrusted(error.to_string()))?;
        let tls = tls.map_err(|error| untrusted(explain(&error)))?;
        if tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(untrusted("it is not a Formic manager".to_owned()));
        }
        let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let manager = leaf.and_then(|leaf| Peer::of(leaf).ok()).ok_or(ConnectError::Unexpected(address))?;
        let (read, write) = smol::io::split(tls);
        let (reader, writer) = (FrameReader::new(read, MAX_FRAME_BYTES), FrameWriter::new(write));
        Ok(Connection { address, manager, reader, writer })
    }

    /// In TLS 1.3 the server judges our certificate after our side of the handshake: its refusal arrives here.
    async fn ask(&mut self, opening: Opening) -> Result<Answer, ConnectError> {
        let address = self.address;
        let written = self.writer.write(&opening).await;
        let answer = self.answer(STEP_TIMEOUT).await;
        match (written, answer) {
            (Err(error), Err(ConnectError::Unexpected(_))) => {
                Err(ConnectError::Untrusted { address, reason: error.to_string() })
            }
            (_, answer) => answer,
        }
    }

    async fn answer(&mut self, timeout: Duration) -> Result<Answer, ConnectError> {
        let address = self.address;
        match self.reader.read(timeout).await {
            Err(StreamError::Frame(_)) => Err(ConnectError::Unexpected(address)),
            Err(error) => Err(ConnectError::Untrusted { address, reason: error.to_string() }),
            Ok(Answer::Refused { reason }) => Err(ConnectError::Refused(reason)),
            Ok(Answer::Removed) => Err(ConnectError::Removed),
            Ok(Answer::FormerBoot) => Err(ConnectError::FormerBoot),
            Ok(Answer::NotLeader { leader }) => Err(ConnectError::NotLeader { leader }),
            Ok(answer) => Ok(answer),
        }
    }
}
