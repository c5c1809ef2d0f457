//! Frames over a stream, and the server's side of the handshake.

use super::config::PeerError;
use super::identity::Peer;
use crate::wire::control::ALPN;
use crate::wire::frame::{self, FrameError, HEADER_LEN};
use futures_rustls::LazyConfigAcceptor;
use futures_rustls::server::TlsStream;
use rustls::{AlertDescription, CertificateError, ServerConfig};
use serde::{Serialize, de::DeserializeOwned};
use smol::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use smol::net::TcpStream;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// A frame's buffer grows in such steps (bytes): a header alone makes us hold no more.
const READ_STEP_BYTES: usize = 64 << 10;

/// How long one frame may take to leave: a peer that does not read is as good as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a peer that failed the handshake gets to read why.
const LINGER: Duration = Duration::from_secs(1);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer closed it between two frames.
    #[error("the connection was closed")]
    Closed,
    /// Nothing came, or nothing left, in time.
    #[error("no answer in time")]
    Timeout,
    /// What came is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection failed.
    #[error("{}", explain(.0))]
    Io(io::Error),
}

/// Bounds a future in time.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, StreamError> {
    smol::future::or(async { Ok(work.await) }, async {
        smol::Timer::after(limit).await;
        Err(StreamError::Timeout)
    })
    .await
}

/// Reads frames. A read may be dropped half-way and taken up again.
pub struct FrameReader<R> {
    stream: R,
    buffer: Zeroizing<Vec<u8>>,
    filled: usize,
    limit: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of at most `limit` bytes of content.
    pub fn new(stream: R, limit: usize) -> FrameReader<R> {
        FrameReader { stream, buffer: Zeroizing::new(Vec::new()), filled: 0, limit }
    }

    /// From now on, frames may be this long.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The next value.
    pub async fn read<T: DeserializeOwned>(&mut self, timeout: Duration) -> Result<T, StreamError> {
        within(timeout, self.fill()).await??;
        let value = frame::decode(self.buffer.get(HEADER_LEN..self.filled).unwrap_or_default());
        self.filled = 0;
        // A new buffer, so that the old one is wiped.
        self.buffer = Zeroizing::new(Vec::new());
        Ok(value?)
    }

    async fn fill(&mut self) -> Result<(), StreamError> {
        loop {
            let wanted = match self.buffer.get(..self.filled).and_then(|read| read.first_chunk::<HEADER_LEN>()) {
                None => HEADER_LEN,
                Some(header) => HEADER_LEN + self.content_len(*header)?,
            };
            if wanted > HEADER_LEN && self.filled == wanted || wanted == HEADER_LEN && self.filled == HEADER_LEN {
                return Ok(());
            }
            self.grow(wanted.min(self.filled + READ_STEP_BYTES));
            let free = self.buffer.get_mut(self.filled..).unwrap_or_default();
            match self.stream.read(free).await {
                Ok(0) if self.filled == 0 => return Err(StreamError::Closed),
                Ok(0) => return Err(StreamError::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.filled += count,
                // A peer that died could not say goodbye: no attack, since what matters is confirmed in its own frame.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.filled == 0 => {
                    return Err(StreamError::Closed);
                }
                Err(error) => return Err(StreamError::Io(error)),
            }
        }
    }

    fn content_len(&self, header: [u8; HEADER_LEN]) -> Result<usize, StreamError> {
        let len = frame::content_len(header)?;
        if len > self.limit { Err(FrameError::TooLong(len).into()) } else { Ok(len) }
    }

    /// Reallocation would leave an unwiped copy behind: copy by hand.
    fn grow(&mut self, len: usize) {
        if len > self.buffer.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(len.next_power_of_two()));
            larger.extend_from_slice(self.buffer.get(..self.filled).unwrap_or_default());
            self.buffer = larger;
        }
        self.buffer.resize(len, 0);
    }
}

/// Writes frames.
pub struct FrameWriter<W>(W);

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes frames to a stream.
    pub fn new(stream: W) -> FrameWriter<W> {
        FrameWriter(stream)
    }

    /// Writes one value and sees it off.
    pub async fn write<T: Serialize>(&mut self, value: &T) -> Result<(), StreamError> {
        self.write_frames(std::slice::from_ref(&frame::encode(value)?)).await
    }

    /// Writes encoded frames and sees them off.
    pub async fn write_frames(&mut self, frames: &[Zeroizing<Vec<u8>>]) -> Result<(), StreamError> {
        for frame in frames {
            within(WRITE_TIMEOUT, self.0.write_all(frame)).await?.map_err(StreamError::Io)?;
        }
        within(WRITE_TIMEOUT, self.0.flush()).await?.map_err(StreamError::Io)
    }

    /// Tells the peer that nothing follows.
    pub async fn close(&mut self) -> Result<(), StreamError> {
        within(WRITE_TIMEOUT, self.0.close()).await?.map_err(StreamError::Io)
    }
}

/// A finished handshake on the manager's side.
pub struct Accepted {
    /// The stream.
    pub stream: TlsStream<TcpStream>,
    /// What the client's certificate says, if it has one.
    pub peer: Option<Peer>,
    /// Set when the client speaks another version: all it may be told is a refusal with both versions.
    pub other_version: Option<String>,
}

/// The manager's side of the handshake. A client of another version of the protocol is let in that far, so that it
/// can be told; any other client without our ALPN fails here.
pub async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<Accepted> {
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
    let offered: Vec<Vec<u8>> =
        start.client_hello().alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default();
    if offered.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the client names no protocol (ALPN)"));
    }
    let other = offered.iter().find(|name| is_other_version(name)).filter(|_| offered.iter().all(|n| n != ALPN));
    let stream = match other {
        None => start.into_stream(config),
        Some(name) => {
            let mut theirs = ServerConfig::clone(&config);
            theirs.alpn_protocols = vec![name.clone()];
            start.into_stream(Arc::new(theirs))
        }
    };
    let stream = match stream.into_fallible().await {
        Ok(stream) => stream,
        Err((error, tcp)) => {
            drain(tcp).await;
            return Err(error);
        }
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = certificates.and_then(|chain| chain.first()).and_then(|leaf| Peer::of(leaf).ok());
    let other_version = other.map(|name| String::from_utf8_lossy(name).into_owned());
    Ok(Accepted { stream, peer, other_version })
}

/// Reads what the peer has sent already: closing with octets unread would reset the connection under our alert.
async fn drain(mut tcp: TcpStream) {
    let mut scratch = [0; 4096];
    let read = async { while matches!(tcp.read(&mut scratch).await, Ok(count) if count > 0) {} };
    // A peer that goes on sending is cut off.
    let _ = within(LINGER, read).await;
}

/// `formic/` and a few digits, but not ours.
fn is_other_version(name: &[u8]) -> bool {
    let digits = name.strip_prefix(b"formic/").unwrap_or_default();
    name != ALPN && (1..=6).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
}

/// What a failed handshake means, as the user shall read it: one line that says what to do.
pub fn explain(error: &io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return error.to_string();
    };
    match tls {
        rustls::Error::InvalidCertificate(reason) => explain_certificate(reason),
        rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)
        | rustls::Error::NoApplicationProtocol => {
            format!(
                "the remote node does not speak {} (this is Formic {}): run the same version of Formic on all nodes",
                String::from_utf8_lossy(ALPN),
                env!("CARGO_PKG_VERSION")
            )
        }
        rustls::Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the remote node refuses this node's certificate as expired or not valid yet: \
             compare the clocks of both hosts; if this node was away for too long, leave the swarm with --force and \
             join again"
                .to_owned()
        }
        rustls::Error::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            "the remote node does not accept this node's certificate: it belongs to another swarm".to_owned()
        }
        other => format!("TLS: {other}"),
    }
}

fn explain_certificate(reason: &CertificateError) -> String {
    let clocks = "compare the clocks of both hosts (at most 10 minutes of clock skew are allowed)";
    match reason {
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the remote certificate is not valid yet: clock skew of {} seconds; {clocks}",
            not_before.as_secs().saturating_sub(time.as_secs()).saturating_add(SKEW_ALLOWED.as_secs())
        ),
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the remote certificate expired {} seconds ago by this host's clock (clock skew?): {clocks}",
            time.as_secs().saturating_sub(not_after.as_secs())
        ),
        CertificateError::Other(other) => match other.0.downcast_ref::<PeerError>() {
            Some(reason) => reason.to_string(),
            None => other.0.to_string(),
        },
        CertificateError::UnknownIssuer | CertificateError::BadSignature => PeerError::OtherSwarm.to_string(),
        other => format!("the remote certificate is not acceptable: {other}"),
    }
}

/// Certificates count from this long before they were made, and this long after their end.
pub(crate) const SKEW_ALLOWED: Duration = Duration::from_secs(600);
