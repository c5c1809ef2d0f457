//! A connection after `101 Switching Protocols`: the raw socket again.

use hyper::body::Bytes;
use hyper::upgrade::Upgraded;
use smol::Async;
use smol_hyper::rt::FuturesIo;
use std::os::unix::net::UnixStream;

/// The socket under an upgraded connection, and what was read of it beyond the HTTP message. `None` if it is not
/// the kind of socket that this API uses.
pub(super) fn socket_of(upgraded: Upgraded) -> Option<(Async<UnixStream>, Bytes)> {
    let parts = upgraded.downcast::<FuturesIo<Async<UnixStream>>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}
