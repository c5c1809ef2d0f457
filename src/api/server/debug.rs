//! `formic debug esp-keys`: the keys of a network, for root, to decrypt a recording with.
//!
//! All of these have to hold, and each is checked here or in the node: the daemon was started with `--allow-key-export`,
//! the kernel says that root is at the other end of the socket, and the request says that it means it. The table never
//! passes a buffer of the HTTP library: the connection is upgraded, the client asks for it by one octet on the bare
//! socket, and it is written from where it was made, which is zeroized.

use super::error::ApiError;
use super::exec::hang_up;
use super::request::Request;
use super::{Context, Job, lookup, networks, respond, schema};
use crate::api::types::EspKeysRequest;
use crate::api::upgrade::socket_of;
use hyper::upgrade::OnUpgrade;
use smol::Async;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use zeroize::Zeroizing;

/// How long a client may take to ask for the table and to read it: it lies in memory meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// Root.
const ROOT: u32 = 0;

pub(super) async fn esp_keys(
    context: &Context,
    request: &Request,
    upgrade: Option<OnUpgrade>,
) -> Result<respond::Response, ApiError> {
    if request.user != Some(ROOT) {
        return Err(ApiError::forbidden("keys are shown to root only"));
    }
    let wanted: EspKeysRequest = request.json(&schema::ESP_KEYS)?;
    if !wanted.expose_keys {
        return Err(ApiError::bad_request("the request does not say that keys are to be exposed (expose_keys)"));
    }
    let upgrade = upgrade.ok_or_else(|| {
        ApiError::bad_request("keys are shown on a connection that is upgraded only: send Upgrade: tcp")
    })?;
    let backend = &*context.backend;
    let network = lookup::network_name(&networks::known_names(backend), &wanted.network)?.id;
    let table = backend.esp_keys(network).await?;
    let job: Job = Box::pin(async move {
        let send = async { hand_over(upgrade, table).await.is_some() };
        let late = async {
            smol::Timer::after(PATIENCE).await;
            false
        };
        if !smol::future::or(send, late).await {
            tracing::warn!(%network, "the keys were not taken");
        }
    });
    match context.jobs.try_send(job) {
        Ok(()) => Ok(respond::upgraded()),
        Err(_) => Err(ApiError::unavailable("too many commands are being started")),
    }
}

/// Writes the table once the client has asked for it. Nothing when the client went away.
async fn hand_over(upgrade: OnUpgrade, table: Zeroizing<String>) -> Option<()> {
    let (socket, early) = upgrade.await.ok().and_then(socket_of)?;
    let mut stream: &Async<UnixStream> = &socket;
    if early.is_empty() {
        stream.read_exact(&mut [0]).await.ok()?;
    }
    stream.write_all(table.as_bytes()).await.ok()?;
    drop(table);
    hang_up(&socket).await;
    Some(())
}
