//! The four requests of an agent.

use super::config::{Trust, client_config};
use super::identity::{Identity, Peer};
use super::stream::{FrameReader, FrameWriter, StreamError, explain, within};
use crate::crypto;
use crate::wire::control::{ALPN, Answer, JoinRequest, Joined, MAX_FRAME_BYTES, Opening, SessionRequest};
use crate::wire::token::JoinToken;
use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use rustls::pki_types::ServerName;
use smol::io::{ReadHalf, WriteHalf};
use smol::net::TcpStream;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a manager may take to take the connection, to shake hands, and to answer: each.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// The manager's answer makes no sense.
    #[error("unexpected answer from the manager at {0}: is it another version of Formic?")]
    Unexpected(SocketAddr),
    /// Our own key or certificate does not work.
    #[error("this node's certificate is unusable: {0}")]
    Identity(String),
}

type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

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

/// Asks to be admitted. `request.secret` is set from the token. The chain that comes back ends with the root that
/// the token pins.
pub async fn join(address: SocketAddr, token: &JoinToken, mut request: JoinRequest) -> Result<Joined, ConnectError> {
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
    let mut connection = Connection::as_node(address, identity).await?;
    let Answer::Opened { boot_index } = connection.ask(Opening::Session(request)).await? else {
        return Err(ConnectError::Unexpected(address));
    };
    let Connection { manager, reader, writer, .. } = connection;
    Ok(Session { boot_index, manager, reader, writer })
}

/// Asks for a new certificate for the key of `csr`; gives the chain.
pub async fn renew(address: SocketAddr, identity: &Identity, csr: Vec<u8>) -> Result<Vec<Vec<u8>>, ConnectError> {
    match Connection::as_node(address, identity).await?.ask(Opening::Renew { csr }).await? {
        Answer::Renewed { chain } => Ok(chain),
        _ => Err(ConnectError::Unexpected(address)),
    }
}

/// Tells the managers that this node leaves the swarm.
pub async fn leave(address: SocketAddr, identity: &Identity) -> Result<(), ConnectError> {
    match Connection::as_node(address, identity).await?.ask(Opening::Leave).await? {
        Answer::Left => Ok(()),
        _ => Err(ConnectError::Unexpected(address)),
    }
}

struct Connection {
    address: SocketAddr,
    manager: Peer,
    reader: Reader,
    writer: Writer,
}

impl Connection {
    async fn as_node(address: SocketAddr, identity: &Identity) -> Result<Connection, ConnectError> {
        let trust = Trust::Roots(identity.roots(), identity.peer().cluster);
        Connection::open(address, trust, Some(identity)).await
    }

    async fn open(address: SocketAddr, trust: Trust, identity: Option<&Identity>) -> Result<Connection, ConnectError> {
        let unreachable = |reason: String| ConnectError::Unreachable { address, reason };
        let untrusted = |reason: String| ConnectError::Untrusted { address, reason };
        let config = client_config(trust, identity).map_err(|error| ConnectError::Identity(error.to_string()))?;
        let tcp = within(STEP_TIMEOUT, TcpStream::connect(address)).await;
        let tcp =
            tcp.map_err(|error| unreachable(error.to_string()))?.map_err(|error| unreachable(error.to_string()))?;
        tcp.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
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
        let answer = match self.reader.read(STEP_TIMEOUT).await {
            Err(StreamError::Frame(_)) => Err(ConnectError::Unexpected(address)),
            Err(error) => Err(ConnectError::Untrusted { address, reason: error.to_string() }),
            Ok(Answer::Refused { reason }) => Err(ConnectError::Refused(reason)),
            Ok(Answer::Removed) => Err(ConnectError::Removed),
            Ok(Answer::FormerBoot) => Err(ConnectError::FormerBoot),
            Ok(answer) => Ok(answer),
        };
        match (written, answer) {
            (Err(error), Err(ConnectError::Unexpected(_))) => {
                Err(ConnectError::Untrusted { address, reason: error.to_string() })
            }
            (_, answer) => answer,
        }
    }
}
