//! The client side, for the command line: one HTTP/1.1 connection a request, on the daemon's unix socket.

use super::types::{API_VERSION, Created, ErrorMessage, EspKeysRequest, ExecCreate, ExecInspect, ExecStart};
use super::upgrade::socket_of;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_hyper::rt::FuturesIo;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Bytes of an answer at most: tens of thousands of tasks.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Bytes of a secret read at once: a few hundred keys.
const SECRET_PIECE_BYTES: usize = 64 << 10;

/// Bytes of one frame of an exec's output at most: more than the daemon ever puts into one.
const MAX_FRAME_BYTES: usize = 1 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no daemon, or its socket may not be opened.
    #[error("cannot reach the daemon at {socket}: {source} (is `formic daemon` running, and may you use its socket?)")]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("Error response from daemon: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// The connection broke, or what came makes no sense.
    #[error("the daemon's answer is broken: {0}")]
    Broken(String),
}

/// The daemon behind a socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// A request's target: path segments and query parameters, encoded as they are added.
#[derive(Debug, Clone)]
pub struct Target(String);

impl Target {
    /// A path of these segments, under the version of the API.
    pub fn new(segments: &[&str]) -> Target {
        let mut text = format!("/v{API_VERSION}");
        for segment in segments {
            text.push('/');
            encode_into(&mut text, segment);
        }
        Target(text)
    }

    /// Adds a query parameter.
    pub fn with(mut self, name: &str, value: &str) -> Target {
        self.0.push(if self.0.contains('?') { '&' } else { '?' });
        encode_into(&mut self.0, name);
        self.0.push('=');
        encode_into(&mut self.0, value);
        self
    }
}

fn encode_into(text: &mut String, raw: &str) {
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

impl Client {
    /// A client of the daemon at `socket`. Nothing is connected yet.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET; the answer as JSON.
    pub async fn get<T: DeserializeOwned>(&self, target: &Target) -> Result<T, ClientError> {
        parse(&self.call(Method::GET, target, Bytes::new()).await?)
    }

    /// POST of JSON; the answer as JSON.
    pub async fn post<T: DeserializeOwned>(&self, target: &Target, body: &impl Serialize) -> Result<T, ClientError> {
        parse(&self.call(Method::POST, target, to_json(body)?).await?)
    }

    /// POST of JSON whose answer says nothing.
    pub async fn post_only(&self, target: &Target, body: &impl Serialize) -> Result<(), ClientError> {
        self.call(Method::POST, target, to_json(body)?).await.map(drop)
    }

    /// DELETE.
    pub async fn delete(&self, target: &Target) -> Result<(), ClientError> {
        self.call(Method::DELETE, target, Bytes::new()).await.map(drop)
    }

    /// Runs a command in a task: the connection that carries its streams, with what was read ahead of it, and the id
    /// to ask [`Client::exec_result`] with when the stream has ended.
    pub async fn exec(&self, task: &str, command: &ExecCreate) -> Result<ExecStream, ClientError> {
        let created: Created = self.post(&Target::new(&["containers", task, "exec"]), command).await?;
        let target = Target::new(&["exec", &created.id, "start"]);
        let (socket, early) = self.upgrade(&target, &ExecStart { detach: false }).await?;
        Ok(ExecStream { id: created.id, socket, early })
    }

    /// The keys of this node's ESP on a network, as Wireshark reads them. They pass no buffer that is not zeroized. Blocks.
    pub async fn esp_keys(&self, network: &str) -> Result<Zeroizing<Vec<u8>>, ClientError> {
        let wanted = EspKeysRequest { network: network.to_owned(), expose_keys: true };
        let (mut socket, early) = self.upgrade(&Target::new(&["formic", "debug", "esp-keys"]), &wanted).await?;
        // The daemon waits for this octet: nothing was read ahead.
        socket.write_all(&[1]).map_err(broken)?;
        if !early.is_empty() {
            return Err(broken("keys came before they were asked for"));
        }
        read_secret(&socket).map_err(broken)
    }

    /// POST of JSON after which the connection is the bare socket: it, and what was read ahead of it.
    async fn upgrade(&self, target: &Target, body: &impl Serialize) -> Result<(UnixStream, Bytes), ClientError> {
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri(target.0.as_str())
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "tcp");
        self.exchange(request, to_json(body)?, async |mut response| {
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(read_refusal(response).await);
            }
            let upgraded = hyper::upgrade::on(&mut response).await.map_err(broken)?;
            let (socket, early) = socket_of(upgraded).ok_or_else(|| broken("not a socket of ours"))?;
            let socket = socket.into_inner().map_err(broken)?;
            socket.set_nonblocking(false).map_err(broken)?;
            Ok((socket, early))
        })
        .await
    }

    /// The exit code of a command whose stream has ended.
    pub async fn exec_result(&self, id: &str) -> Result<i32, ClientError> {
        let result: ExecInspect = self.get(&Target::new(&["exec", id, "json"])).await?;
        result.exit_code.ok_or_else(|| broken("the command has not ended"))
    }

    async fn call(&self, method: Method, target: &Target, body: Bytes) -> Result<Bytes, ClientError> {
        let request = hyper::Request::builder().method(method).uri(target.0.as_str());
        self.exchange(request, body, async |response| {
            if response.status().is_success() { read_all(response).await } else { Err(read_refusal(response).await) }
        })
        .await
    }

    /// Sends a request on a connection of its own, which lives until `read` is done with the response.
    async fn exchange<T>(
        &self,
        request: hyper::http::request::Builder,
        body: Bytes,
        read: impl AsyncFnOnce(hyper::Response<Incoming>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let request = request.header(HOST, "formic").header(CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(body)).map_err(broken)?;
        let unreachable = |source| ClientError::Unreachable { socket: self.socket.clone(), source };
        let stream = smol::Async::<UnixStream>::connect(&self.socket).await.map_err(unreachable)?;
        let handshake = hyper::client::conn::http1::handshake(FuturesIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        let drive = async {
            // What breaks the connection breaks the exchange too, which tells it.
            let _ = connection.with_upgrades().await;
            std::future::pending().await
        };
        let exchange = async { read(sender.send_request(request).await.map_err(broken)?).await };
        smol::future::or(drive, exchange).await
    }
}

/// Reads to the end. What grows is copied and the former place zeroized.
fn read_secret(mut from: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut secret = Zeroizing::new(Vec::new());
    let mut piece = Zeroizing::new([0; SECRET_PIECE_BYTES]);
    loop {
        let length = match from.read(&mut *piece) {
            Ok(0) => return Ok(secret),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut grown = Zeroizing::new(Vec::with_capacity(secret.len() + length));
        grown.extend_from_slice(&secret);
        grown.extend(piece.iter().take(length));
        secret = grown;
        if secret.len() > MAX_ANSWER_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "there is no end to it"));
        }
    }
}

fn broken(error: impl std::fmt::Display) -> ClientError {
    ClientError::Broken(error.to_string())
}

fn to_json(body: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(broken)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(broken)
}

async fn read_all(response: hyper::Response<Incoming>) -> Result<Bytes, ClientError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
    body.map(http_body_util::Collected::to_bytes).map_err(broken)
}

async fn read_refusal(response: hyper::Response<Incoming>) -> ClientError {
    let status = response.status();
    let body = match read_all(response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    let message = serde_json::from_slice::<ErrorMessage>(&body).map(|error| error.message);
    let message = message.unwrap_or_else(|_| status.to_string());
    ClientError::Refused { status: status.as_u16(), message: message.split_whitespace().collect::<Vec<_>>().join(" ") }
}

/// The streams of a running exec.
pub struct ExecStream {
    /// For [`Client::exec_result`].
    pub id: String,
    socket: UnixStream,
    early: Bytes,
}

impl ExecStream {
    /// A second handle on the connection, for standard input: its shutdown for writing is the end of file.
    pub fn input(&self) -> io::Result<UnixStream> {
        self.socket.try_clone()
    }

    /// Copies the output until the command has ended. Blocks.
    pub fn copy_output(&mut self, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<()> {
        copy_frames((&*self.early).chain(&self.socket), stdout, stderr)
    }
}

/// Takes the frames apart: 8 bytes (stream, three zeros, length as a big-endian u32), then as many bytes.
fn copy_frames(mut frames: impl Read, stdout: &mut impl Write, stderr: &mut impl Write) -> io::Result<()> {
    let mut head = [0; 8];
    let mut content = Vec::new();
    while read_head(&mut frames, &mut head)? {
        let [stream, _, _, _, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes")));
        }
        content.resize(length, 0);
        frames.read_exact(&mut content)?;
        match stream {
            1 => stdout.write_all(&content).and_then(|()| stdout.flush())?,
            2 => stderr.write_all(&content).and_then(|()| stderr.flush())?,
            other => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of stream {other}"))),
        }
    }
    Ok(())
}

/// False at the end of the stream, if it ends between two frames.
fn read_head(frames: &mut impl Read, head: &mut [u8; 8]) -> io::Result<bool> {
    let mut first = [0];
    loop {
        match frames.read(&mut first) {
            Ok(0) => return Ok(false),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let [stream, rest @ ..] = head;
    *stream = first[0];
    frames.read_exact(rest).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_encoded() {
        let target = Target::new(&["networks", "a/b c?"]).with("filters", "{\"a\":1}").with("force", "1");
        assert_eq!(target.0, "/v1.50/networks/a%2Fb%20c%3F?filters=%7B%22a%22%3A1%7D&force=1");
    }

    #[test]
    fn frames_are_taken_apart() {
        let frames =
            [&[1, 0, 0, 0, 0, 0, 0, 3][..], b"out", &[2, 0, 0, 0, 0, 0, 0, 2], b"er", &[1, 0, 0, 0, 0, 0, 0, 0]];
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        copy_frames(&*frames.concat(), &mut stdout, &mut stderr).unwrap();
        assert_eq!((&*stdout, &*stderr), (&b"out"[..], &b"er"[..]));
    }

    #[test]
    fn broken_frames_are_errors() {
        for frames in [
            &[1, 0, 0, 0][..],
            &[1, 0, 0, 0, 0, 0, 0, 3, b'x'],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0xff, 0, 0, 0],
        ] {
            assert!(copy_frames(frames, &mut Vec::new(), &mut Vec::new()).is_err(), "{frames:?}");
        }
    }
}
