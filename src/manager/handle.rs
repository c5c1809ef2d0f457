//! The handle that the API and the daemon hold on a running manager.

use super::actor::{self, Leadership, Published, Writer};
use super::admission::JoinLimit;
use super::authority::{self, Names};
use super::book::RecordBook;
use super::credentials::Credentials;
use super::drops::Drops;
use super::listener::{self, Openings};
use super::lock::{Follower, SealWatch};
use super::peers::Peers;
use super::session::Sessions;
use super::store::{Loaded, Owner, Store, StoreError};
use super::tasks::TaskSet;
use super::{fork, forward, members, planner, random, replica, wall_clock};
#[cfg(test)]
use crate::cluster::CertificateAuthority;
use crate::cluster::{Command, Entry, NewRoot, NewTokens, Refusal, Reply, State};
use crate::raft::{HardState, MAX_SNAPSHOT_BYTES, Member, Membership, Payload, Peer, Position, Save, Snapshot};
use crate::tls::Identity;
use crate::types::{Availability, ClusterId, ClusterSpec, Fork, Key32, NodeAddresses, NodeId, Role, UnlockKey};
use crate::wire::control::Joined;
use crate::wire::token::JoinToken;
use smol::future::FutureExt as _;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
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
    /// The disk fails this manager; nothing changed.
    #[error("this manager cannot write its state and takes no part in the swarm until it can: {0}")]
    Stalled(StoreError),
    /// The disk failed this manager while the command was on its way.
    #[error(
        "this manager could not write its state ({0}): the change may have been made or not; look, and try again if not"
    )]
    Interrupted(StoreError),
    /// No manager leads, or none that is reached; nothing changed.
    #[error(
        "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online."
    )]
    NoLeader,
    /// Another manager leads than was thought; nothing changed.
    #[error("another manager leads the swarm now: try again")]
    NotLeader,
    /// The leader changed while the command was on its way.
    #[error("the leader changed meanwhile: the change may have been made or not; look, and try again if not")]
    LeadLost,
    /// What is stored here cannot be gone on with.
    #[error("{0}")]
    Broken(String),
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
    /// Its certificate request ([`crate::tls::NodeKey::request`]).
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
    pub(super) published: Arc<Published>,
    pub(super) writer: Writer,
    pub(super) sessions: Arc<Sessions>,
    pub(super) book: Mutex<RecordBook>,
    pub(super) drops: Arc<Drops>,
    pub(super) join_limit: Mutex<JoinLimit>,
    pub(super) openings: Openings,
    pub(super) tasks: TaskSet,
    pub(super) credentials: Arc<Credentials>,
    pub(super) peers: Peers,
    seals: Arc<SealWatch>,
}

/// How long a leader that ends waits for another one to lead.
const HAND_OVER_TIME: Duration = Duration::from_secs(1);
/// How often it asks.
const HAND_OVER_ASK: Duration = Duration::from_millis(50);
/// How long a command or a read waits for a leader: an election that begins now, and the next one.
pub(super) const LEADER_PATIENCE: Duration = Duration::from_secs(4);
/// Pause before a leader that was not reached is asked again, or the one that was elected meanwhile.
pub(super) const LEADER_PAUSE: Duration = Duration::from_millis(100);
/// How long this manager may lag behind the leader before a command's proposer is told.
const APPLY_PATIENCE: Duration = Duration::from_secs(5);

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

    /// Opens the state that [`Manager::create`] made, unless it is locked.
    pub async fn open(directory: &Path) -> Result<Manager, ManagerError> {
        Manager::unlock(directory, None).await
    }

    /// Opens the state with the unlock key, should it be locked.
    pub async fn unlock(directory: &Path, unlock: Option<UnlockKey>) -> Result<Manager, ManagerError> {
        let directory = directory.to_owned();
        let (store, loaded) = smol::unblock(move || reopen(&directory, unlock.as_ref())).await?;
        Manager::start(store, loaded)
    }

    /// Makes this node, which the swarm knows as a manager, one: with the state that another manager gives it. The
    /// leader finds it then.
    pub async fn join(directory: &Path, identity: &Identity, managers: &[SocketAddr]) -> Result<Manager, ManagerError> {
        let mut reason = "no manager is known".to_owned();
        for &address in managers {
            match crate::tls::fetch_state(address, identity, MAX_SNAPSHOT_BYTES).await {
                Ok(bytes) => {
                    let (directory, node) = (directory.to_owned(), identity.peer().node);
                    let (store, loaded) = smol::unblock(move || take_over(&directory, node, &bytes)).await?;
                    return Manager::start(store, loaded);
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(ManagerError::Unavailable(format!("no manager gives this one the swarm's state: {reason}")))
    }

    /// Goes on alone with the state in `directory`, of a manager that was stopped: all that it has on disk counts as
    /// committed, in a new life of the state. `unlock`: its [`Manager::unlock_key`].
    pub async fn force_new_cluster(directory: &Path, unlock: Option<UnlockKey>) -> Result<Manager, ManagerError> {
        let directory = directory.to_owned();
        let (store, loaded) = smol::unblock(move || fork::begin(&directory, unlock.as_ref())).await?;
        Manager::start(store, loaded)
    }

    fn start(store: Store, loaded: Loaded) -> Result<Manager, ManagerError> {
        let Owner { node, member } = loaded.owner;
        let state = replica::read(&loaded.snapshot)?;
        let seals = Arc::new(SealWatch::new(store.node_seal()));
        let published = Arc::new(Published::new(state));
        let (sessions, drops, tasks) = (Arc::<Sessions>::default(), Arc::<Drops>::default(), TaskSet::default());
        let credentials = Arc::new(Credentials::new(node, published.clone()));
        let peers = Peers::new(member, credentials.clone(), drops.clone(), tasks.clone());
        let writer = actor::start(store, loaded, published.clone(), sessions.clone(), peers.clone(), seals.clone())?;
        let inner = Arc::new(Inner {
            node,
            published,
            writer,
            sessions,
            book: Mutex::new(RecordBook::default()),
            drops,
            join_limit: Mutex::new(JoinLimit::new(Instant::now())),
            openings: Openings::default(),
            tasks,
            credentials,
            peers,
            seals,
        });
        inner.tasks.spawn("planner", planner::run(inner.clone()));
        Ok(Manager { inner })
    }

    /// Opens the control port; gives the address it got. The port is exclusive.
    pub async fn listen(&self, address: SocketAddr) -> Result<SocketAddr, ManagerError> {
        listener::listen(&self.inner, address).await
    }

    /// Lets another manager lead, if this one does; then ends sessions, loops and the writer. The store is closed when
    /// this returns.
    pub async fn stop(&self) {
        self.inner.hand_over().await;
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

    /// Returns once the state as it is read here shows everything that was committed before, anywhere in the swarm.
    pub async fn refresh(&self) -> Result<(), ManagerError> {
        forward::refresh(&self.inner).await
    }

    /// The node whose manager leads, as far as is known here.
    pub fn leader(&self) -> Option<NodeId> {
        match self.inner.published.leadership() {
            Leadership::Here { .. } => Some(self.inner.node),
            Leadership::There(leader) => self.with_state(|state| {
                let leading = state.managers.iter().find(|(_, manager)| manager.seat == leader.0);
                leading.map(|(node, _)| *node)
            }),
            Leadership::Nobody => None,
        }
    }

    /// Commits a command: a majority of the managers has it on disk before this returns, and the state here shows it.
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

    /// What opens this manager's files, if they are locked. Behind the state as it is applied here, or before it.
    pub fn unlock_key(&self) -> Option<UnlockKey> {
        self.inner.seals.unlock_key()
    }

    /// Tells, now and whenever it changes, how this manager's node is to keep its private key. The change counts as
    /// made once `follower` returns.
    pub fn follow_seal(&self, follower: Follower) -> Result<(), StoreError> {
        self.inner.seals.follow(follower).map_err(StoreError::Node)
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

    /// Its seat among the managers.
    pub fn seat(&self) -> u64 {
        self.inner.peers.me().0
    }

    /// What keeps this manager from taking part, if anything does.
    pub fn failure(&self) -> Option<String> {
        self.inner.published.failure().map(|failure| failure.to_string())
    }

    /// What the control port turned away, by reason; only reasons that occurred.
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        self.inner.drops.read()
    }
}

impl Inner {
    /// Commits a command, here or at the leader. The applied state shows it when this returns.
    pub(super) async fn propose(&self, command: Command) -> Result<Reply, ManagerError> {
        let patience = Instant::now() + LEADER_PATIENCE;
        loop {
            let address = match self.leader().await? {
                Leader::Here => return self.propose_here(command).await.map(|(reply, _)| reply),
                Leader::At(address) => address,
            };
            match forward::to_leader(self, address, &command).await {
                Err(ManagerError::NoLeader) if Instant::now() < patience => smol::Timer::after(LEADER_PAUSE).await,
                outcome => return outcome,
            };
        }
    }

    /// Commits a command if this manager leads.
    pub(super) async fn propose_here(&self, command: Command) -> Result<(Reply, u64), ManagerError> {
        let mut verdicts = self.writer.propose(&self.published, vec![command]).await;
        verdicts.pop().unwrap_or_else(|| Err(ManagerError::Unavailable("the manager is stopping".to_owned())))
    }

    /// Whether this manager leads.
    pub(super) fn leads(&self) -> bool {
        matches!(self.published.leadership(), Leadership::Here { .. })
    }

    /// If this manager leads and there are others: waits until one of them does, but not for long.
    async fn hand_over(&self) {
        let alone = self.published.with(|state| state.managers.values().filter(|manager| manager.voter).count() <= 1);
        if alone || !self.leads() {
            return;
        }
        let changed = self.published.watch();
        let done = async {
            while !matches!(self.published.leadership(), Leadership::There(_)) {
                self.writer.leave().await;
                let change = async {
                    // Closed only when the manager ends.
                    let _ = changed.recv().await;
                };
                let again = async {
                    smol::Timer::after(HAND_OVER_ASK).await;
                };
                change.or(again).await;
            }
            true
        };
        let late = async {
            smol::Timer::after(HAND_OVER_TIME).await;
            false
        };
        if !done.or(late).await {
            tracing::warn!("no other manager took over the lead in {HAND_OVER_TIME:?}: they elect one by themselves");
        }
    }

    /// Where the leader is; waits a little for one.
    pub(super) async fn leader(&self) -> Result<Leader, ManagerError> {
        let changed = self.published.watch();
        let found = async {
            loop {
                match self.published.leadership() {
                    Leadership::Here { .. } => return Ok(Leader::Here),
                    Leadership::There(member) => match self.address_of(member) {
                        Some(address) => return Ok(Leader::At(address)),
                        None => return Err(ManagerError::NoLeader),
                    },
                    Leadership::Nobody => {}
                }
                if let Some(failure) = self.published.failure() {
                    return Err(failure);
                }
                if changed.recv().await.is_err() {
                    return Err(ManagerError::Unavailable("the manager is stopping".to_owned()));
                }
            }
        };
        let late = async {
            smol::Timer::after(LEADER_PATIENCE).await;
            Err(ManagerError::NoLeader)
        };
        found.or(late).await
    }

    /// The leader's control port, if another manager leads.
    pub(super) fn leader_address(&self) -> Option<SocketAddr> {
        match self.published.leadership() {
            Leadership::There(member) => self.address_of(member),
            Leadership::Here { .. } | Leadership::Nobody => None,
        }
    }

    fn address_of(&self, member: Member) -> Option<SocketAddr> {
        self.published.with(|state| {
            let manager = state.managers.values().find(|manager| manager.seat == member.0);
            manager.map(|manager| manager.address)
        })
    }

    /// Waits until the applied state has this log index.
    pub(super) async fn until_applied(&self, index: u64) -> Result<(), ManagerError> {
        let changed = self.published.watch();
        let applied = async {
            while self.published.with(|state| state.index) < index {
                if changed.recv().await.is_err() {
                    return Err(ManagerError::Unavailable("the manager is stopping".to_owned()));
                }
            }
            Ok(())
        };
        let late = async {
            smol::Timer::after(APPLY_PATIENCE).await;
            Err(ManagerError::NoLeader)
        };
        applied.or(late).await
    }
}

/// Where the leader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leader {
    Here,
    At(SocketAddr),
}

/// The authority of a new swarm.
#[cfg(test)]
pub(crate) fn first_authority(cluster: ClusterId) -> CertificateAuthority {
    authority::create(cluster, wall_clock()).expect("the library makes keys")
}

/// A certificate for a node of a new swarm.
#[cfg(test)]
pub(crate) fn issue_first(cluster: ClusterId, node: NodeId, role: Role, key: &crate::tls::NodeKey) -> Vec<Vec<u8>> {
    let request = key.request().expect("the library makes requests");
    let names = Names { node, role, cluster };
    authority::issue(&first_authority(cluster), &request, names, wall_clock(), 3600).expect("a certificate").chain
}

/// A root certificate to take the place of the state's.
pub(crate) fn new_root(state: &State) -> Result<NewRoot, ManagerError> {
    let made = authority::succeed(&state.cluster.authority, state.cluster.id, wall_clock());
    let (authority, cross) = made.map_err(|error| ManagerError::Certificate(error.to_string()))?;
    Ok(NewRoot { authority, cross, attestation: Key32::new(random()) })
}

/// The first state: the swarm and its first node. It goes into the store as a snapshot, so that there is no moment
/// with half of it.
fn create(directory: &Path, mut params: InitParams) -> Result<(Store, Loaded, Joined), ManagerError> {
    let now = wall_clock();
    let autolock = std::mem::take(&mut params.spec.autolock);
    let (cluster, node) = (ClusterId::from_random(random()), NodeId::from_random(random()));
    let fork = Fork(now.0);
    let certificate = |error: authority::AuthorityError| ManagerError::Certificate(error.to_string());
    let authority = authority::create(cluster, now).map_err(certificate)?;
    let names = Names { node, role: Role::Manager, cluster };
    let issued = authority::issue(&authority, &params.csr, names, now, params.spec.certificate_secs);
    let issued = issued.map_err(certificate)?;
    let (data_path_port, control) = (params.spec.data_path_port, params.addresses.control);
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
    if autolock {
        let spec = ClusterSpec { autolock, ..state.cluster.spec.clone() };
        let tokens = NewTokens { unlock: Some(Zeroizing::new(random())), ..NewTokens::default() };
        let command = Command::UpdateCluster { version: state.cluster.version, spec, tokens, root: None };
        state.apply(&Entry { at: now, command }).0?;
    }
    let seat = state.nodes.get(&node).map_or(0, |node| node.seat);
    let owner = Owner { node, member: Member(seat) };
    let membership = Membership::alone(owner.member, Peer { node, address: control });
    state.managers = members::seats(&membership);
    let bytes = state.to_bytes().map_err(|error| ManagerError::Broken(error.to_string()))?;
    let position = Position { term: FIRST_TERM, index: state.index };
    let snapshot = Snapshot { position, membership, data: Payload::new(bytes) };
    let store = Store::create(directory, owner, &snapshot, &state.cluster.lock)?;
    let joined = Joined { node, cluster, fork, data_path_port, role: Role::Manager, chain: issued.chain };
    let hard = HardState { term: FIRST_TERM, vote: None };
    Ok((store, Loaded { owner, hard, snapshot, entries: Vec::new() }, joined))
}

/// The store of a manager that ran before. What is read of it may be in the page cache alone: where a write has failed,
/// the system shows what it could not write, until it starts anew. It is written to a fresh file, under a fresh at-rest
/// key, before anything is answered from it; and under the lock of the state, which the former one may not have followed.
fn reopen(directory: &Path, unlock: Option<&UnlockKey>) -> Result<(Store, Loaded), ManagerError> {
    let (mut store, loaded) = Store::open(directory, unlock)?;
    store.follow_lock(&replica::read(&loaded.snapshot)?.cluster.lock)?;
    store.save(&Save {
        snapshot: Some(loaded.snapshot.clone()),
        hard: loaded.hard,
        after: loaded.snapshot.position.index,
        entries: loaded.entries.clone(),
    })?;
    Ok((store, loaded))
}

/// A store with the state of another manager.
fn take_over(directory: &Path, node: NodeId, bytes: &[u8]) -> Result<(Store, Loaded), ManagerError> {
    let broken =
        |error: &dyn std::fmt::Display| ManagerError::Broken(format!("the swarm's state is unreadable: {error}"));
    let snapshot: Snapshot = postcard::from_bytes(bytes).map_err(|error| broken(&error))?;
    let state = State::from_bytes(snapshot.data.bytes()).map_err(|error| broken(&error))?;
    let member = members::seat_of(&state, node);
    let member =
        member.ok_or_else(|| ManagerError::Unavailable(format!("node {node} is not a manager of the swarm")))?;
    let owner = Owner { node, member };
    let store = Store::create(directory, owner, &snapshot, &state.cluster.lock)?;
    let hard = HardState { term: snapshot.position.term, vote: None };
    Ok((store, Loaded { owner, hard, snapshot, entries: Vec::new() }))
}

/// The term in which a swarm is made.
pub(crate) const FIRST_TERM: u64 = 1;
