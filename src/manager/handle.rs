//! The handle that the API and the daemon hold on a running manager.

use super::actor::{self, Published, Writer};
use super::admission::JoinLimit;
use super::authority::{self, Names};
use super::book::RecordBook;
use super::drops::Drops;
use super::listener::{self, Openings};
use super::planner;
use super::session::Sessions;
use super::store::{Loaded, Store, StoreError};
use super::tasks::TaskSet;
use super::{random, wall_clock};
#[cfg(test)]
use crate::cluster::CertificateAuthority;
use crate::cluster::{Command, Entry, NewRoot, Refusal, Reply, State};
use crate::tls::{Identity, NodeKey};
use crate::types::{Availability, ClusterId, ClusterSpec, Fork, Key32, NodeAddresses, NodeId, Role, UnixTime};
use crate::wire::control::Joined;
use crate::wire::token::JoinToken;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use zeroize::Zeroizing;

/// Why a manager could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManagerError {
    /// The state refuses it; nothing changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The manager is stopping; whether the state changed is unknown.
    #[error("{0}")]
    Unavailable(String),
    /// The store cannot be used; whether the state changed is unknown.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The control port cannot be opened.
    #[error("cannot listen on {address} for the control protocol: {reason}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why, and what to do.
        reason: String,
    },
    /// The certificate request of the first node, or the authority's key, is unusable.
    #[error("{0}")]
    Certificate(String),
}

/// What a new swarm is made of.
#[derive(Debug, Clone)]
pub struct InitParams {
    /// Settings.
    pub spec: ClusterSpec,
    /// The first node's host name.
    pub hostname: String,
    /// Its version of Formic.
    pub software: String,
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// Whether tasks may be placed on it.
    pub availability: Availability,
    /// Its certificate request ([`NodeKey::request`]).
    pub csr: Vec<u8>,
}

/// A running manager. Cheap to clone.
#[derive(Clone)]
pub struct Manager {
    pub(super) inner: Arc<Inner>,
}

/// The parts that the manager's loops share.
pub(super) struct Inner {
    /// The node this manager runs on.
    pub(super) node: NodeId,
    /// When it started.
    pub(super) started: Instant,
    pub(super) published: Arc<Published>,
    pub(super) writer: Writer,
    pub(super) sessions: Arc<Sessions>,
    pub(super) book: Mutex<RecordBook>,
    pub(super) drops: Drops,
    pub(super) join_limit: Mutex<JoinLimit>,
    pub(super) openings: Openings,
    pub(super) tasks: TaskSet,
    pub(super) server: Mutex<Option<ServerSide>>,
}

/// The TLS side of the control port.
#[derive(Clone)]
pub(super) struct ServerSide {
    pub(super) config: Arc<rustls::ServerConfig>,
    /// The roots that clients' certificates may stand under.
    pub(super) roots: Arc<[Vec<u8>]>,
    renew_at: UnixTime,
}

impl Manager {
    /// Whether `directory` holds a manager's state.
    pub fn exists(directory: &Path) -> bool {
        Store::exists(directory)
    }

    /// Makes a swarm whose first node this is. The state is durable when this returns; after a crash before that
    /// there is none.
    pub async fn create(directory: &Path, params: InitParams) -> Result<(Manager, Joined), ManagerError> {
        let directory = directory.to_owned();
        let (store, loaded, joined) = smol::unblock(move || create(&directory, params)).await?;
        Ok((Manager::start(store, loaded)?, joined))
    }

    /// Opens the state that [`Manager::create`] made.
    pub async fn open(directory: &Path) -> Result<Manager, ManagerError> {
        let directory = directory.to_owned();
        let (store, loaded) = smol::unblock(move || Store::open(&directory)).await?;
        Manager::start(store, loaded)
    }

    fn start(store: Store, loaded: Loaded) -> Result<Manager, ManagerError> {
        let node = loaded.node;
        let sessions = Arc::new(Sessions::default());
        let ending = sessions.clone();
        let (published, writer) = actor::start(store, loaded, move |node| ending.remove(node))?;
        let inner = Arc::new(Inner {
            node,
            started: Instant::now(),
            published,
            writer,
            sessions,
            book: Mutex::new(RecordBook::default()),
            drops: Drops::default(),
            join_limit: Mutex::new(JoinLimit::new(Instant::now())),
            openings: Openings::default(),
            tasks: TaskSet::default(),
            server: Mutex::new(None),
        });
        inner.tasks.spawn("planner", planner::run(inner.clone()));
        Ok(Manager { inner })
    }

    /// Opens the control port; gives the address it got. The port is exclusive.
    pub async fn listen(&self, address: SocketAddr) -> Result<SocketAddr, ManagerError> {
        listener::listen(&self.inner, address).await
    }

    /// Ends sessions, loops and the writer. The store is closed when this returns.
    pub async fn stop(&self) {
        self.inner.tasks.stop().await;
        self.inner.writer.stop().await;
    }

    /// The state after the last commit.
    pub fn state(&self) -> Arc<State> {
        self.inner.published.copy()
    }

    /// Reads the state in place, without a copy. Commits wait meanwhile.
    pub fn with_state<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        self.inner.published.with(read)
    }

    /// Gets a `()` after each change of the state; several changes may be one.
    pub fn watch(&self) -> smol::channel::Receiver<()> {
        self.inner.published.watch()
    }

    /// Commits a command: it is durable before this returns.
    pub async fn propose(&self, command: Command) -> Result<Reply, ManagerError> {
        self.inner.propose(command).await
    }

    /// The worker and the manager join token, `SWMTKN-1-...`.
    pub fn join_tokens(&self) -> (String, String) {
        self.inner.published.with(|state| {
            let root_digest = state.root_digest();
            let token = |secret: &Zeroizing<[u8; 16]>| JoinToken { root_digest, secret: secret.clone() }.to_string();
            (token(&state.cluster.worker_secret), token(&state.cluster.manager_secret))
        })
    }

    /// The root certificate, DER.
    pub fn root_certificate(&self) -> Vec<u8> {
        self.inner.published.with(|state| state.cluster.authority.certificate.clone())
    }

    /// A root certificate to take the place of the present one.
    pub fn new_root(&self) -> Result<NewRoot, ManagerError> {
        self.inner.published.with(new_root)
    }

    /// The node this manager runs on.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// What the control port turned away, by reason; only reasons that occurred.
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        self.inner.drops.read()
    }
}

impl Inner {
    pub(super) async fn propose(&self, command: Command) -> Result<Reply, ManagerError> {
        let mut verdicts = self.writer.propose(&self.published, vec![command]).await;
        verdicts.pop().unwrap_or_else(|| Err(ManagerError::Unavailable("the manager is stopping".to_owned())))
    }

    /// The TLS side of the control port. This manager signs its own certificate, anew after half of its life and when
    /// the trusted roots change.
    pub(super) fn server_side(&self) -> Result<ServerSide, ManagerError> {
        let now = wall_clock();
        let roots = self.published.with(|state| state.roots().into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>());
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(side) = server.as_ref().filter(|side| now < side.renew_at && *side.roots == *roots) {
            return Ok(side.clone());
        }
        let unusable = |error: &dyn std::fmt::Display| ManagerError::Certificate(error.to_string());
        let key = NodeKey::generate().map_err(|error| unusable(&error))?;
        let request = key.request().map_err(|error| unusable(&error))?;
        let (issued, life) = self.published.with(|state| {
            let names = Names { node: self.node, role: Role::Manager, cluster: state.cluster.id };
            (authority::issue_for(state, &request, names), state.cluster.spec.certificate_secs)
        });
        let issued = issued.map_err(|error| unusable(&error))?;
        let identity = Identity::new(&key, issued.chain).map_err(|error| unusable(&error))?;
        let config = crate::tls::server_config(&identity, &roots).map_err(|error| unusable(&error))?;
        let renew_at = UnixTime(now.0.saturating_add(life / 2));
        Ok(server.insert(ServerSide { config, roots: roots.into(), renew_at }).clone())
    }
}

/// The authority of a new swarm.
#[cfg(test)]
pub(crate) fn first_authority(cluster: ClusterId) -> CertificateAuthority {
    authority::create(cluster, wall_clock()).expect("the library makes keys")
}

#[cfg(test)]
impl Inner {
    /// Makes the control port present an identity for good.
    pub(super) fn present(&self, identity: &Identity) {
        let roots = self.server_side().expect("a server side").roots;
        let config = crate::tls::server_config(identity, &roots).expect("an identity");
        let renew_at = UnixTime(u64::MAX);
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(ServerSide { config, roots, renew_at });
    }
}

/// A root certificate to take the place of the state's.
pub(crate) fn new_root(state: &State) -> Result<NewRoot, ManagerError> {
    let made = authority::succeed(&state.cluster.authority, state.cluster.id, wall_clock());
    let (authority, cross) = made.map_err(|error| ManagerError::Certificate(error.to_string()))?;
    Ok(NewRoot { authority, cross, attestation: Key32::new(random()) })
}

/// The first state: the swarm and its first node. It goes into the store as a snapshot, so that there is no moment
/// with half of it.
fn create(directory: &Path, params: InitParams) -> Result<(Store, Loaded, Joined), ManagerError> {
    let now = wall_clock();
    let (cluster, node) = (ClusterId::from_random(random()), NodeId::from_random(random()));
    let fork = Fork(now.0);
    let certificate = |error: authority::AuthorityError| ManagerError::Certificate(error.to_string());
    let authority = authority::create(cluster, now).map_err(certificate)?;
    let names = Names { node, role: Role::Manager, cluster };
    let issued = authority::issue(&authority, &params.csr, names, now, params.spec.certificate_secs);
    let issued = issued.map_err(certificate)?;
    let data_path_port = params.spec.data_path_port;
    let init = Command::Init {
        cluster,
        fork,
        spec: params.spec,
        worker_secret: Zeroizing::new(random()),
        manager_secret: Zeroizing::new(random()),
        authority,
        attestation: Key32::new(random()),
        current: Key32::new(random()),
        next: Key32::new(random()),
    };
    let mut state = State::init(&Entry { at: now, command: init })?;
    let add = Command::AddNode {
        id: node,
        role: Role::Manager,
        hostname: params.hostname,
        software: params.software,
        addresses: params.addresses,
        availability: params.availability,
        certificate_expires: issued.expires,
        root: issued.root,
    };
    state.apply(&Entry { at: now, command: add }).0?;
    let store = Store::create(directory, node, &state)?;
    let joined = Joined { node, cluster, fork, data_path_port, role: Role::Manager, chain: issued.chain };
    Ok((store, Loaded { state, compact: false, node }, joined))
}
