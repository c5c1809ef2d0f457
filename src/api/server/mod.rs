//! The server side: connections, the way from a request to its handler, and the handlers.
//!
//! 1. `socket`: the unix socket; who can open it may do everything.
//! 2. [`serve`]: connections, each on hyper's HTTP/1; jobs that outlive their request (execs).
//! 3. `request`: version, path, query, body; `allow` and `schema`: what of a body is implemented.
//! 4. `route`: to the handlers: `system`, `swarm`, `nodes`, `networks`, `services`, `tasks`, `containers`, `exec`,
//!    `formic`, `debug`. They read the replicated state or the node through `backend` and change it by commands.
//! 5. `respond`, `error`: Docker's JSON, codes and headers.

mod allow;
mod backend;
mod containers;
mod debug;
mod error;
mod exec;
#[cfg(test)]
pub(crate) mod fake;
mod filters;
mod formic;
mod host;
mod lookup;
mod names;
mod networks;
mod nodes;
mod renewal;
mod request;
mod respond;
mod roots;
mod schema;
mod services;
mod socket;
mod swarm;
mod system;
mod tasks;

#[cfg(test)]
mod tests;

pub use socket::{ApiSocket, SocketError, bind};

use crate::agent::{LOCKED, Node, SwarmState};
use crate::api::time;
use crate::cluster::State;
use crate::types::Role;
use backend::Backend;
use error::ApiError;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, UPGRADE};
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use rand::TryRng as _;
use request::Request;
use smol::channel::{Receiver, Sender};
use smol_hyper::rt::{FuturesIo, SmolTimer};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a request's body at most: far above any specification, far below what hurts.
const MAX_BODY_BYTES: usize = 1 << 20;

/// Connections at most: each costs a buffer, and a local tool that leaks them must not eat the daemon.
const MAX_CONNECTIONS: usize = 256;

/// Jobs that wait to be started at most; they are started at once.
const MAX_WAITING_JOBS: usize = 64;

/// How long a client may take for a request's head, and an idle connection lasts.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a client may take for a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long accepting pauses after a failure (no file descriptors): trying again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Work that outlives its request.
type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What handlers work with.
struct Context {
    backend: Box<dyn Backend>,
    execs: exec::Registry,
    jobs: Sender<Job>,
}

/// Serves the API until dropped: every connection and every `exec` in progress ends with this future. Errors when
/// the socket fails.
pub async fn serve(socket: ApiSocket, node: Node) -> std::io::Result<()> {
    serve_backend(socket, Box::new(node)).await
}

async fn serve_backend(socket: ApiSocket, backend: Box<dyn Backend>) -> std::io::Result<()> {
    let listener = smol::Async::new(socket.listener.try_clone()?)?;
    let (jobs, waiting) = smol::channel::bounded(MAX_WAITING_JOBS);
    let context = Arc::new(Context { backend, execs: exec::Registry::default(), jobs });
    // Owns every task below: dropping it ends them all.
    let executor = smol::Executor::new();
    let starting = start_jobs(&executor, waiting);
    executor.run(smol::future::or(accept(&executor, &listener, &context), starting)).await
}

async fn start_jobs(executor: &smol::Executor<'_>, waiting: Receiver<Job>) -> std::io::Result<()> {
    while let Ok(job) = waiting.recv().await {
        executor.spawn(job).detach();
    }
    std::future::pending().await
}

async fn accept(
    executor: &smol::Executor<'_>,
    listener: &smol::Async<std::os::unix::net::UnixListener>,
    context: &Arc<Context>,
) -> std::io::Result<()> {
    let slots = Arc::new(smol::lock::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the API");
                smol::Timer::after(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(slot) = slots.try_acquire_arc() else {
            tracing::warn!("{MAX_CONNECTIONS} connections to the API are open: one more was closed");
            continue;
        };
        let context = context.clone();
        let user = socket::user_of(stream.get_ref());
        let connection = async move {
            let handle = service_fn(|request| answer(context.clone(), user, request));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(SmolTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .half_close(true)
                .serve_connection(FuturesIo::new(stream), handle)
                .with_upgrades();
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection to the API failed");
            }
            drop(slot);
        };
        executor.spawn(connection).detach();
    }
}

async fn answer(
    context: Arc<Context>,
    user: Option<u32>,
    request: hyper::Request<Incoming>,
) -> Result<respond::Response, Infallible> {
    let result = handle(&context, user, request).await;
    let mut response = result.unwrap_or_else(|error| respond::error(&error));
    respond::add_headers(response.headers_mut(), &context.backend.swarm());
    Ok(response)
}

async fn handle(
    context: &Arc<Context>,
    user: Option<u32>,
    mut request: hyper::Request<Incoming>,
) -> Result<respond::Response, ApiError> {
    let wants_upgrade = request.headers().contains_key(UPGRADE) && request.headers().contains_key(CONNECTION);
    let upgrade = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let mut request = Request::new(head.method, &head.uri, read_body(body).await?)?;
    request.user = user;
    let response = route(context, &request, upgrade).await;
    let failed = response.as_ref().err().map(|error| error.message.as_str());
    tracing::debug!(method = %request.method, path = %head.uri.path(), failed, "API request");
    response
}

async fn read_body(body: Incoming) -> Result<Bytes, ApiError> {
    let read = async { Some(Limited::new(body, MAX_BODY_BYTES).collect().await) };
    let timeout = async {
        smol::Timer::after(BODY_TIMEOUT).await;
        None
    };
    match smol::future::or(read, timeout).await {
        Some(Ok(body)) => Ok(body.to_bytes()),
        Some(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("the request has more than {MAX_BODY_BYTES} bytes");
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text))
        }
        Some(Err(error)) => Err(ApiError::bad_request(format!("cannot read the request: {error}"))),
        None => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in time")),
    }
}

/// From a request to its handler.
async fn route(
    context: &Arc<Context>,
    request: &Request,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Result<respond::Response, ApiError> {
    let backend = &*context.backend;
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    let get = request.method == Method::GET || request.method == Method::HEAD;
    let post = request.method == Method::POST;
    let delete = request.method == Method::DELETE;
    if backend.swarm().state == SwarmState::Locked && !works_locked(&path) {
        return Err(ApiError::unavailable(LOCKED));
    }
    if reads_state(&path) {
        backend.refresh().await?;
    }
    match path.as_slice() {
        ["_ping"] if get => Ok(respond::text("OK")),
        ["version"] if get => system::version(),
        ["info"] if get => system::info(backend).await,
        ["swarm"] if get => swarm::inspect(backend),
        ["swarm", "init"] if post => swarm::init(backend, request).await,
        ["swarm", "join"] if post => swarm::join(backend, request).await,
        ["swarm", "leave"] if post => swarm::leave(backend, request).await,
        ["swarm", "update"] if post => swarm::update(backend, request).await,
        ["swarm", "unlockkey"] if get => swarm::unlock_key(context, request),
        ["swarm", "unlock"] if post => swarm::unlock(backend, request).await,
        ["nodes"] if get => nodes::list(backend, request),
        ["nodes", node] if get => nodes::inspect(backend, node),
        ["nodes", node] if delete => nodes::remove(backend, request, node).await,
        ["nodes", node, "update"] if post => nodes::update(backend, request, node).await,
        ["networks"] if get => networks::list(backend, request),
        ["networks", "create"] if post => networks::create(backend, request).await,
        ["networks", network] if get => networks::inspect(backend, request, network),
        ["networks", network] if delete => networks::remove(backend, network).await,
        ["networks", network, "connect"] if post => networks::connect(backend, request, network),
        ["services"] if get => services::list(backend, request),
        ["services", "create"] if post => services::create(backend, request).await,
        ["services", service] if get => services::inspect(backend, service),
        ["services", service] if delete => services::remove(backend, service).await,
        ["services", service, "update"] if post => services::update(backend, request, service).await,
        ["tasks"] if get => tasks::list(backend, request),
        ["tasks", task] if get => tasks::inspect(backend, task),
        ["containers", "json"] if get => containers::list(backend, request),
        ["containers", "create"] if post => containers::create(backend, request),
        ["containers", container, "json"] if get => containers::inspect(backend, container),
        ["containers", container, "exec"] if post => exec::create(context, request, container),
        ["exec", id, "start"] if post => exec::start(context, request, id, upgrade),
        ["exec", id, "json"] if get => exec::inspect(context, id),
        ["distribution", image @ .., "json"] if get => no_registry(image),
        ["formic", "debug", "esp-keys"] if post => debug::esp_keys(context, request, upgrade).await,
        ["formic", rest @ ..] => route_formic(backend, request, rest).await,
        _ => Err(not_served(request)),
    }
}

/// Whether the answer comes from the replicated state: it has to show what other managers have answered before.
/// Joining, leaving and unlocking need no leader.
fn reads_state(path: &[&str]) -> bool {
    match path {
        ["swarm", "init" | "join" | "leave" | "unlock"] => false,
        ["swarm" | "nodes" | "networks" | "services" | "tasks", ..] | ["formic", "keys" | "rotate-keys"] => true,
        _ => false,
    }
}

/// What a node can answer and do whose manager waits for the unlock key.
fn works_locked(path: &[&str]) -> bool {
    matches!(
        path,
        ["_ping" | "version" | "info"]
            | ["swarm", "init" | "join" | "leave" | "unlock"]
            | ["containers", "json"]
            | ["formic", "status" | "examination" | "images", ..]
    )
}

async fn route_formic(backend: &dyn Backend, request: &Request, path: &[&str]) -> Result<respond::Response, ApiError> {
    match (request.method.as_str(), path) {
        ("GET", ["status"]) => formic::status(backend).await,
        ("POST", ["examination"]) => formic::examine(backend).await,
        ("GET", ["keys"]) => formic::keys(backend),
        ("POST", ["rotate-keys"]) => formic::rotate_keys(backend, request).await,
        ("GET", ["images"]) => formic::images(backend).await,
        ("POST", ["images", "import"]) => formic::import(backend, request).await,
        ("POST", ["attachments"]) => formic::attach(backend, request).await,
        ("DELETE", ["attachments"]) => formic::detach(backend, request).await,
        ("DELETE", ["images", name @ ..]) if !name.is_empty() => formic::remove_image(backend, &name.join("/")).await,
        _ => Err(not_served(request)),
    }
}

fn not_served(request: &Request) -> ApiError {
    let path = request.path.join("/");
    ApiError::not_implemented(format!("{} /{path} is not part of the API that Formic serves", request.method))
}

fn no_registry(image: &[&str]) -> Result<respond::Response, ApiError> {
    Err(ApiError::not_found(format!("there is no registry to ask about {}", image.join("/"))))
}

/// The replicated state, or why there is none here.
fn manager_state(backend: &dyn Backend) -> Result<Arc<State>, ApiError> {
    backend.state().ok_or_else(|| {
        let swarm = backend.swarm();
        ApiError::unavailable(match swarm.role {
            _ if swarm.state == SwarmState::Inactive => error::NOT_IN_SWARM,
            // One that cannot use its state says why.
            Some(Role::Manager) if !swarm.error.is_empty() => &swarm.error,
            _ => error::WORKER,
        })
    })
}

/// Random octets of the system.
fn random<const N: usize>() -> Result<[u8; N], ApiError> {
    let mut octets = [0; N];
    match rand::rngs::SysRng.try_fill_bytes(&mut octets) {
        Ok(()) => Ok(octets),
        Err(error) => Err(ApiError::internal(format!("the system gives no randomness: {error}"))),
    }
}
