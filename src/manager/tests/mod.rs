//! The manager as its nodes and its disk see it: a real store, real TLS over loopback, and a fake agent.

mod control;
mod disk;
mod former;
mod hostile;
mod life;
mod lock;
mod replicas;
mod roots;
mod rotations;
mod seats;
mod several;
mod store;

use super::{InitParams, Manager, random, wall_clock};
use crate::cluster::{Command, State};
use crate::tls::{self, ConnectError, Identity, NodeKey, Session};
use crate::types::{
    Availability, BootId, ClusterSpec, ContainerSpec, Machine, NetworkId, NetworkName, NetworkSpec, NodeAddresses,
    NodeId, Placement, Queues, Renewal, Resources, ServiceId, ServiceMode, ServiceSpec, TaskAssignment, TaskState,
    TaskStatus, UnixTime,
};
use crate::wire::control::{FromAgent, JoinRequest, NetworkView, RingView, SessionRequest, SwarmView, ToAgent};
use crate::wire::record::{SignedRecord, TrustBundle, VerifiedRecord};
use crate::wire::token::JoinToken;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long a test waits for a state that must come.
const DEADLINE: Duration = Duration::from_secs(30);

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        Scratch::on(&std::env::temp_dir())
    }

    /// Where nothing has to be written to a disk, for tests of many steps.
    fn in_memory() -> Scratch {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Scratch::on(memory) } else { Scratch::new() }
    }

    fn on(directory: &Path) -> Scratch {
        let path = directory.join(format!("formic-manager-{:016x}", u64::from_be_bytes(random())));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn addresses() -> NodeAddresses {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    NodeAddresses { control: at(2377), gossip: at(7946), data: at(4500), behind_nat: false }
}

fn params(spec: ClusterSpec) -> (NodeKey, InitParams) {
    let key = NodeKey::generate().unwrap();
    let params = InitParams {
        spec,
        hostname: "first".to_owned(),
        software: "0.1.0".to_owned(),
        addresses: addresses(),
        availability: Availability::Active,
        csr: key.request().unwrap(),
    };
    (key, params)
}

fn quick() -> ClusterSpec {
    ClusterSpec { heartbeat_secs: 1, ..ClusterSpec::default() }
}

/// A manager with an open control port.
struct Swarm {
    manager: Manager,
    control: SocketAddr,
    first: Identity,
    scratch: Scratch,
}

impl Swarm {
    async fn new(spec: ClusterSpec) -> Swarm {
        let scratch = Scratch::new();
        let (key, params) = params(spec);
        let (manager, joined) = Manager::create(scratch.path(), params).await.unwrap();
        let control = manager.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let first = Identity::new(&key, joined.chain).unwrap();
        assert_eq!(first.peer().node, manager.node());
        Swarm { manager, control, first, scratch }
    }

    fn token(&self) -> JoinToken {
        self.manager.join_tokens().0.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    async fn try_join(&self, token: &JoinToken) -> Result<Identity, ConnectError> {
        let (key, request) = join_request();
        let joined = tls::join(self.control, token, request).await?;
        Ok(Identity::new(&key, joined.chain).unwrap())
    }

    async fn join(&self) -> Identity {
        self.try_join(&self.token()).await.unwrap()
    }

    async fn network(&self, name: &str) -> NetworkId {
        let id = NetworkId::from_random(random());
        let spec = NetworkSpec {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            encrypted: true,
            subnet: None,
            gateway: None,
            ..NetworkSpec::default()
        };
        self.manager.propose(Command::CreateNetwork { id, spec }).await.unwrap();
        id
    }

    async fn service(&self, name: &str, network: NetworkId, replicas: u64) -> ServiceId {
        let id = ServiceId::from_random(random());
        let container = ContainerSpec {
            image: "host:latest".to_owned(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            dir: String::new(),
            hostname: String::new(),
        };
        let spec = ServiceSpec {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            container,
            networks: vec![(network, vec!["alias".to_owned()])],
            mode: ServiceMode::Replicated { replicas },
            placement: Placement::default(),
            reservations: Resources::default(),
            renewal: Renewal::default(),
            api_spec: String::new(),
        };
        self.manager.propose(Command::CreateService { id, spec }).await.unwrap();
        id
    }

    /// Waits for a state.
    async fn until(&self, what: &str, found: impl Fn(&State) -> bool) {
        let changed = self.manager.watch();
        let wait = async {
            while !self.manager.with_state(&found) {
                changed.recv().await.unwrap();
            }
        };
        smol::future::or(wait, async {
            smol::Timer::after(DEADLINE).await;
            panic!("not in time: {what}");
        })
        .await;
    }

    async fn agent(&self, identity: Identity) -> Agent {
        Agent::open(self.control, identity, BootId(random())).await.unwrap()
    }
}

fn join_request() -> (NodeKey, JoinRequest) {
    let key = NodeKey::generate().unwrap();
    let request = JoinRequest {
        secret: Zeroizing::new([0; 16]),
        csr: key.request().unwrap(),
        hostname: "worker".to_owned(),
        software: "0.1.0".to_owned(),
        addresses: addresses(),
        availability: Availability::Active,
    };
    (key, request)
}

fn session_request(boot: BootId) -> SessionRequest {
    SessionRequest {
        boot,
        hostname: "worker".to_owned(),
        software: "0.1.0".to_owned(),
        addresses: addresses(),
        machine: Machine::default(),
        queues: Queues::ONE,
    }
}

/// What an agent has been told: the last complete push, and all records.
#[derive(Default)]
struct Told {
    swarm: Option<SwarmView>,
    ring: Option<RingView>,
    names: Vec<NetworkName>,
    networks: Vec<NetworkView>,
    tasks: Vec<TaskAssignment>,
    index: u64,
}

/// Speaks the agent's side and does nothing else.
struct Agent {
    node: NodeId,
    identity: Identity,
    boot: BootId,
    session: Session,
    told: Told,
    records: Vec<Vec<u8>>,
}

impl Agent {
    async fn open(control: SocketAddr, identity: Identity, boot: BootId) -> Result<Agent, ConnectError> {
        let session = tls::open_session(control, &identity, session_request(boot)).await?;
        let node = identity.peer().node;
        Ok(Agent { node, identity, boot, session, told: Told::default(), records: Vec::new() })
    }

    async fn say(&mut self, message: FromAgent) {
        self.session.writer.write(&message).await.unwrap();
    }

    async fn status(&mut self, task: &TaskAssignment, state: TaskState) {
        let (message, error) = (String::new(), String::new());
        let status = TaskStatus { state, message, error, exit_code: None, pid: None, at: UnixTime(0) };
        self.say(FromAgent::Tasks { statuses: vec![(task.id, status)] }).await;
    }

    /// Takes one push.
    async fn push(&mut self) {
        let mut fresh = Told::default();
        loop {
            match self.session.reader.read(DEADLINE).await.unwrap() {
                ToAgent::Alive { .. } | ToAgent::Probe => {}
                ToAgent::Swarm(swarm) => fresh.swarm = Some(swarm),
                ToAgent::Ring(ring) => fresh.ring = Some(ring),
                ToAgent::Names(page) => fresh.names.extend(page),
                ToAgent::Networks(page) => fresh.networks.extend(page),
                ToAgent::Tasks(page) => fresh.tasks.extend(page),
                ToAgent::Records(page) => self.records.extend(page),
                ToAgent::Commit { index } => {
                    fresh.index = index;
                    break;
                }
                ToAgent::Removed => panic!("removed"),
                ToAgent::AttachRefused { reason, .. } => panic!("{reason}"),
            }
        }
        self.told = fresh;
    }

    /// Takes pushes until one shows what is looked for.
    async fn until(&mut self, what: &str, found: impl Fn(&Agent) -> bool) {
        let end = Instant::now() + DEADLINE;
        while self.told.swarm.is_none() || !found(self) {
            assert!(Instant::now() < end, "not in time: {what}");
            self.push().await;
        }
    }

    /// All records told so far, verified, as they came.
    fn verified(&self) -> Vec<VerifiedRecord> {
        let swarm = self.told.swarm.as_ref().unwrap();
        let trust = TrustBundle { keys: swarm.attestation.clone(), fork: swarm.fork };
        let verify = |bytes: &Vec<u8>| SignedRecord::parse(bytes).unwrap().verify(&trust, swarm.cluster).unwrap();
        self.records.iter().map(verify).collect()
    }

    /// Heartbeats and reads until the manager ends the session; tells whether it said that the node was removed.
    async fn until_ended(&mut self) -> bool {
        let mut removed = false;
        loop {
            match self.session.reader.read::<ToAgent>(DEADLINE).await {
                Ok(ToAgent::Removed) => removed = true,
                Ok(_) => {}
                Err(tls::StreamError::Timeout) => panic!("the session goes on"),
                Err(_) => return removed,
            }
        }
    }
}
