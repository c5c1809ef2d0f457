//! The control port: takes connections, shakes hands, reads the opening, and hands on to who answers it. What comes
//! here is anybody's: it is bounded in number, size and time, and everything turned away is counted by reason.

use super::admission;
use super::drops::ControlDrop;
use super::handle::{Inner, ManagerError};
use super::{forward, peers, session};
use crate::raft::Member;
use crate::tls::{self, FrameReader, FrameWriter, Peer, StreamError};
use crate::wire::control::{ALPN, Answer, MAX_FRAME_BYTES, Opening};
use futures_rustls::server::TlsStream;
use nix::sys::socket::sockopt::TcpMaxSeg;
use smol::future::FutureExt as _;
use smol::io::{ReadHalf, WriteHalf};
use smol::net::{TcpListener, TcpStream};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Connections at once that have not been answered yet.
const MAX_OPENINGS: usize = 256;
/// The same from one address.
const MAX_OPENINGS_PER_SOURCE: usize = 64;
/// Octets of an opening at most: a join request with its certificate request is below 2 KiB.
const MAX_OPENING_BYTES: usize = 16 << 10;
/// How long the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the opening may take after that.
const OPENING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a refused peer gets to read the refusal.
const LINGER: Duration = Duration::from_secs(1);
/// Octets of a TCP segment at most, both ways: what every way carries. A way that carries less than the interfaces at its
/// ends, and whose routers say nothing, would stop every session.
const MAX_SEGMENT_BYTES: u32 = 1200;
/// Pause after a failed accept (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) type Reader = FrameReader<ReadHalf<TlsStream<TcpStream>>>;
pub(super) type Writer = FrameWriter<WriteHalf<TlsStream<TcpStream>>>;

/// The connections that have not been answered yet.
#[derive(Clone, Default)]
pub(super) struct Openings(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them; ends with the value.
pub(super) struct Permit {
    openings: Openings,
    source: IpAddr,
}

impl Openings {
    fn admit(&self, source: IpAddr) -> Option<Permit> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = sources.values().sum();
        let own = sources.entry(source).or_default();
        if total >= MAX_OPENINGS || *own >= MAX_OPENINGS_PER_SOURCE {
            if *own == 0 {
                sources.remove(&source);
            }
            return None;
        }
        *own += 1;
        Some(Permit { openings: self.clone(), source })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut sources = self.openings.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = sources.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// A connection whose opening is being answered.
pub(super) struct Connection {
    pub(super) from: SocketAddr,
    /// What the client's certificate says; its chain is verified.
    pub(super) peer: Option<Peer>,
    /// The roots that were trusted when it was verified.
    pub(super) roots: Arc<[Vec<u8>]>,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pub(super) permit: Permit,
}

impl Connection {
    /// Answers and ends the connection.
    pub(super) async fn answer(mut self, answer: Answer) {
        if self.writer.write(&answer).await.is_ok() && self.writer.close().await.is_ok() {
            // Closing with octets unread would reset the connection under the answer.
            let rest = self.reader.read::<()>(LINGER);
            let _ = rest.await;
        }
    }

    /// Turns the peer away.
    pub(super) async fn refuse(self, inner: &Inner, why: ControlDrop, reason: impl Into<String>) {
        let reason = reason.into();
        inner.drops.count(why);
        tracing::info!(from = %self.from, why = why.name(), %reason, "refused on the control port");
        let answer = match why {
            ControlDrop::RemovedNode => Answer::Removed,
            ControlDrop::FormerBoot => Answer::FormerBoot,
            _ => Answer::Refused { reason },
        };
        self.answer(answer).await;
    }
}

/// Opens the port.
pub(super) async fn listen(inner: &Arc<Inner>, address: SocketAddr) -> Result<SocketAddr, ManagerError> {
    let failed = |error: std::io::Error| ManagerError::Listen { address, reason: explain_bind(&error) };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    nix::sys::socket::setsockopt(&listener.as_fd(), TcpMaxSeg, &MAX_SEGMENT_BYTES)
        .map_err(|error| failed(error.into()))?;
    let bound = listener.local_addr().map_err(failed)?;
    inner.credentials.server_side()?;
    inner.tasks.spawn("control port", accept(inner.clone(), listener));
    Ok(bound)
}

fn explain_bind(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the address is in use: stop the program that listens there, or choose another --listen-addr".to_owned()
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this host does not have the address: choose another --listen-addr".to_owned()
        }
        _ => error.to_string(),
    }
}

async fn accept(inner: Arc<Inner>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => match inner.openings.admit(from.ip()) {
                Some(permit) => {
                    inner.tasks.spawn("control connection", connection(inner.clone(), stream, from, permit))
                }
                None => inner.drops.count(ControlDrop::TooManyConnections),
            },
            Err(error) => {
                tracing::warn!(%error, "the control port cannot take a connection");
                smol::Timer::after(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(inner: Arc<Inner>, stream: TcpStream, from: SocketAddr, permit: Permit) {
    let Some((accepted, roots)) = handshake(&inner, stream, from).await else { return };
    let (read, write) = smol::io::split(accepted.stream);
    let reader = FrameReader::new(read, MAX_OPENING_BYTES);
    let writer = FrameWriter::new(write);
    let mut connection = Connection { from, peer: accepted.peer, roots, reader, writer, permit };
    if let Some(theirs) = accepted.other_version {
        let reason = format!(
            "this node speaks {theirs}, the manager speaks {} (Formic {}): run the same version on all nodes",
            String::from_utf8_lossy(ALPN),
            env!("CARGO_PKG_VERSION")
        );
        return connection.refuse(&inner, ControlDrop::OtherVersion, reason).await;
    }
    match connection.reader.read::<Opening>(OPENING_TIMEOUT).await {
        Ok(_) if is_outdated(&inner, &connection.roots) => inner.drops.count(ControlDrop::Handshake),
        Ok(opening) => {
            connection.reader.set_limit(MAX_FRAME_BYTES);
            dispatch(inner, connection, opening).await;
        }
        Err(error) => {
            count_stream_error(&inner, &error);
            tracing::debug!(%from, %error, "no opening on the control port");
        }
    }
}

async fn handshake(inner: &Inner, stream: TcpStream, from: SocketAddr) -> Option<(tls::Accepted, Arc<[Vec<u8>]>)> {
    let side = match inner.credentials.server_side() {
        Ok(side) => side,
        Err(error) => {
            tracing::error!(%error, "no certificate for the control port");
            return None;
        }
    };
    // A stream that does not take the option is broken; the handshake will say so.
    let _ = stream.set_nodelay(true);
    let limit = async {
        smol::Timer::after(HANDSHAKE_TIMEOUT).await;
        Err(std::io::ErrorKind::TimedOut.into())
    };
    match tls::accept(stream, side.config).or(limit).await {
        Ok(accepted) => Some((accepted, side.roots)),
        Err(error) => {
            inner.drops.count(ControlDrop::Handshake);
            tracing::debug!(%from, error = tls::explain(&error), "no handshake on the control port");
            None
        }
    }
}

/// Whether a root was trusted then that is not any more: a certificate of it would still count on this connection.
pub(super) fn is_outdated(inner: &Inner, roots: &[Vec<u8>]) -> bool {
    inner.published.with(|state| {
        let trusted = state.roots();
        roots.iter().any(|root| !trusted.contains(&root.as_slice()))
    })
}

async fn dispatch(inner: Arc<Inner>, connection: Connection, opening: Opening) {
    let of_leader = matches!(
        opening,
        Opening::Join(_) | Opening::Session(_) | Opening::Renew { .. } | Opening::Certified { .. } | Opening::Leave
    );
    if of_leader && !inner.leads() {
        return connection.answer(Answer::NotLeader { leader: inner.leader_address() }).await;
    }
    match opening {
        Opening::Join(request) => admission::join(&inner, connection, request).await,
        Opening::Session(request) => session::serve(inner, connection, request).await,
        Opening::Renew { csr } => admission::renew(&inner, connection, csr).await,
        Opening::Certified { root } => admission::certified(&inner, connection, root).await,
        Opening::Leave => admission::leave(&inner, connection).await,
        Opening::Consensus { from, to, address } => {
            peers::serve(inner, connection, (Member(from), Member(to)), address).await
        }
        Opening::Forward => forward::serve_command(inner, connection).await,
        Opening::Read => forward::serve_read(inner, connection).await,
        Opening::State => forward::serve_state(inner, connection).await,
    }
}

/// Counts why a stream ended, if its peer is to blame.
pub(super) fn count_stream_error(inner: &Inner, error: &StreamError) {
    match error {
        StreamError::Frame(crate::wire::frame::FrameError::TooLong(_)) => inner.drops.count(ControlDrop::FrameTooLong),
        StreamError::Frame(crate::wire::frame::FrameError::Malformed) => inner.drops.count(ControlDrop::Malformed),
        StreamError::Timeout => inner.drops.count(ControlDrop::OpeningTimeout),
        StreamError::Closed | StreamError::Io(_) => {}
    }
}
