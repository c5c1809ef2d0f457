//! The server side: connections, the way from a request to its handler, and the handlers.

mod socket;

pub use socket::{ApiSocket, SocketError, bind};

use crate::agent::Node;

/// Serves the API until dropped: every connection and every `exec` in progress ends with this future. Errors when
/// the socket fails.
pub async fn serve(socket: ApiSocket, node: Node) -> std::io::Result<()> {
    let _ = node;
    let listener = smol::Async::new(socket.listener.try_clone()?)?;
    loop {
        let (_stream, _) = listener.accept().await?;
    }
}
