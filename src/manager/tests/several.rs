//! Several managers: real stores, real TLS over loopback.

use super::*;
use crate::cluster::NodeState;
use crate::manager::ManagerError;
use crate::manager::handle::LEADER_PATIENCE;
use crate::types::{Role, UnlockKey};

/// A manager of several, running or not.
pub(super) struct Seat {
    pub(super) manager: Option<Manager>,
    pub(super) identity: Identity,
    pub(super) control: SocketAddr,
    pub(super) directory: PathBuf,
}

pub(super) struct Managers {
    pub(super) seats: Vec<Seat>,
    scratch: Scratch,
}

/// A port that was free a moment ago.
fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listener.local_addr().unwrap()
}

fn at(control: SocketAddr) -> NodeAddresses {
    NodeAddresses { control, ..addresses() }
}

impl Managers {
    pub(super) async fn new(count: usize) -> Managers {
        let scratch = Scratch::new();
        let (key, mut params) = params(ClusterSpec { heartbeat_secs: 2, ..ClusterSpec::default() });
        let control = free_port();
        params.addresses = at(control);
        let directory = scratch.path().join("0");
        let (manager, joined) = Manager::create(&directory, params).await.unwrap();
        manager.listen(control).await.unwrap();
        let identity = Identity::new(&key, joined.chain).unwrap();
        let seats = vec![Seat { manager: Some(manager), identity, control, directory }];
        let mut managers = Managers { seats, scratch };
        while managers.seats.len() < count {
            managers.add().await;
        }
        managers
    }

    pub(super) fn get(&self, number: usize) -> &Manager {
        self.seats[number].manager.as_ref().unwrap()
    }

    pub(super) fn running(&self) -> impl Iterator<Item = (usize, &Manager)> {
        self.seats.iter().enumerate().filter_map(|(number, seat)| Some((number, seat.manager.as_ref()?)))
    }

    /// One more joins at the leader with the manager token.
    pub(super) async fn add(&mut self) {
        let control = free_port();
        let number = self.leader().await;
        let token: JoinToken = self.get(number).join_tokens().1.parse().unwrap_or_else(|error| panic!("{error}"));
        let (key, request) = join_request();
        let request = JoinRequest { addresses: at(control), ..request };
        let joined = tls::join(self.seats[number].control, &token, request).await.unwrap();
        assert_eq!(joined.role, Role::Manager);
        let identity = Identity::new(&key, joined.chain).unwrap();
        let directory = self.scratch.path().join(self.seats.len().to_string());
        let manager = Manager::join(&directory, &identity, &[self.seats[number].control]).await.unwrap();
        manager.listen(control).await.unwrap();
        self.seats.push(Seat { manager: Some(manager), identity, control, directory });
        let wanted = self.seats.len();
        self.until("a voter", |state| state.managers.values().filter(|manager| manager.voter).count() == wanted).await;
    }

    /// Waits until all running managers show it.
    pub(super) async fn until(&self, what: &str, found: impl Fn(&State) -> bool) {
        eventually(what, || self.running().all(|(_, manager)| manager.with_state(&found))).await;
    }

    pub(super) async fn leader(&self) -> usize {
        let mut leader = 0;
        eventually("a leader", || {
            let leads = |(number, manager): (usize, &Manager)| manager.inner.leads().then_some(number);
            self.running().find_map(leads).inspect(|found| leader = *found).is_some()
        })
        .await;
        leader
    }

    pub(super) async fn stop(&mut self, number: usize) {
        self.seats[number].manager.take().unwrap().stop().await;
    }

    pub(super) async fn start(&mut self, number: usize) {
        self.start_with(number, None).await;
    }

    /// Starts a locked one.
    pub(super) async fn unlock(&mut self, number: usize, key: UnlockKey) {
        self.start_with(number, Some(key)).await;
    }

    async fn start_with(&mut self, number: usize, key: Option<UnlockKey>) {
        let seat = &mut self.seats[number];
        let manager = Manager::unlock(&seat.directory, key).await.unwrap();
        manager.listen(seat.control).await.unwrap();
        seat.manager = Some(manager);
    }

    pub(super) async fn stop_all(mut self) {
        for number in 0..self.seats.len() {
            if self.seats[number].manager.is_some() {
                self.stop(number).await;
            }
        }
    }

    fn index(&self, number: usize) -> u64 {
        self.get(number).with_state(|state| state.index)
    }
}

pub(super) async fn eventually(what: &str, mut found: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !found() {
        assert!(Instant::now() < end, "not in time: {what}");
        smol::Timer::after(Duration::from_millis(20)).await;
    }
}

pub(super) fn create_network(name: &str) -> Command {
    let spec = NetworkSpec {
        name: name.to_owned(),
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        encrypted: true,
        subnet: None,
        gateway: None,
        ..NetworkSpec::default()
    };
    Command::CreateNetwork { id: NetworkId::from_random(random()), spec }
}

pub(super) fn names(state: &State) -> Vec<String> {
    state.networks.values().map(|network| network.spec.name.clone()).collect()
}

#[test]
fn any_manager_takes_a_command_and_shows_it() {
    smol::block_on(async {
        let managers = Managers::new(3).await;
        for number in 0..3 {
            let name = format!("net{number}");
            managers.get(number).propose(create_network(&name)).await.unwrap();
            assert!(managers.get(number).with_state(|state| names(state).contains(&name)), "reads its own writes");
            // And so does everybody who asks after it.
            for other in 0..3 {
                managers.get(other).refresh().await.unwrap();
                assert!(managers.get(other).with_state(|state| names(state).contains(&name)));
            }
        }
        let twice = managers.get(1).propose(create_network("net0")).await.unwrap_err();
        assert!(matches!(&twice, ManagerError::Refused(_)) && twice.to_string().contains("already exists"), "{twice}");
        let leader = managers.leader().await;
        let node = managers.get(leader).node();
        assert!(managers.running().all(|(_, manager)| manager.leader() == Some(node)));
        managers.stop_all().await;
    });
}

#[test]
fn a_leader_that_goes_is_followed_and_comes_back() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        for round in 0..3 {
            let leader = managers.leader().await;
            let start = Instant::now();
            managers.stop(leader).await;
            let other = (leader + 1) % 3;
            let name = format!("round{round}");
            let mut asked = Instant::now();
            while let Err(error) = managers.get(other).propose(create_network(&name)).await {
                let waited = asked.elapsed() >= LEADER_PATIENCE || !matches!(error, ManagerError::NoLeader);
                assert!(waited && start.elapsed() < DEADLINE, "{error} after {:?}", asked.elapsed());
                asked = Instant::now();
            }
            println!("a command was accepted {:?} after the leader went", start.elapsed());
            managers.start(leader).await;
            let index = managers.index(other);
            eventually("the state again", || managers.index(leader) >= index).await;
            assert!(managers.get(leader).with_state(|state| names(state).contains(&name)));
        }
        managers.stop_all().await;
    });
}

#[test]
fn without_a_majority_nothing_changes_and_the_text_says_so() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        let leader = managers.leader().await;
        for number in (0..3).filter(|number| *number != leader) {
            managers.stop(number).await;
        }
        eventually("no leader", || managers.get(leader).leader().is_none()).await;
        let refused = managers.get(leader).propose(create_network("lost")).await.unwrap_err();
        let text = "The swarm does not have a leader. It's possible that too few managers are online. \
                    Make sure more than half of the managers are online.";
        assert_eq!(refused.to_string(), text);
        assert_eq!(managers.get(leader).refresh().await.unwrap_err().to_string(), text);
        managers.start((leader + 1) % 3).await;
        let mut done = managers.get(leader).propose(create_network("found")).await;
        while done.is_err() {
            done = managers.get(leader).propose(create_network("found")).await;
        }
        assert_eq!(managers.get(leader).with_state(names), ["found"]);
        managers.stop_all().await;
    });
}

#[test]
fn agents_are_sent_to_the_leader() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        let leader = managers.leader().await;
        let follower = (leader + 1) % 3;
        let token: JoinToken = managers.get(follower).join_tokens().0.parse().unwrap_or_else(|error| panic!("{error}"));
        let (key, request) = join_request();
        let joined = tls::join(managers.seats[follower].control, &token, request).await.unwrap();
        let identity = Identity::new(&key, joined.chain).unwrap();
        let node = identity.peer().node;
        let mut agent = Agent::open(managers.seats[follower].control, identity, BootId(random())).await.unwrap();
        assert_eq!(agent.session.manager.node, managers.get(leader).node());
        agent.until("all managers", |agent| agent.told.swarm.as_ref().unwrap().managers.len() == 3).await;
        managers.stop(leader).await;
        assert!(!agent.until_ended().await);
        let next = managers.leader().await;
        let lead_began = Instant::now();
        let Agent { identity, boot, .. } = agent;
        let other = (0..3).find(|number| *number != leader && *number != next).unwrap();
        let again = Agent::open(managers.seats[other].control, identity, boot).await.unwrap();
        assert_eq!(again.session.manager.node, managers.get(next).node());
        // The first node has no session at all: the new leader waits a whole window before it says so.
        let gone = managers.get(next).node();
        let is_down = |state: &State| state.nodes[&node].state == NodeState::Down;
        drop(again);
        managers.until("down", is_down).await;
        assert!(lead_began.elapsed() >= Duration::from_secs(5), "{:?}", lead_began.elapsed());
        assert!(managers.get(next).with_state(|state| state.nodes.contains_key(&gone)));
        managers.stop_all().await;
    });
}

pub(super) async fn set_role(manager: &Manager, node: NodeId, role: Role) {
    let update = |state: &State| {
        let known = &state.nodes[&node];
        Command::UpdateNode {
            node,
            version: known.version,
            role,
            availability: known.availability,
            labels: known.labels.clone(),
        }
    };
    let update = manager.with_state(update);
    manager.propose(update).await.unwrap();
}

/// The managers were all replaced while one was away: it does not know any of those that speak to it now.
#[test]
fn one_that_slept_through_a_change_of_all_others_comes_back() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        let leader = managers.leader().await;
        let asleep = (leader + 1) % 3;
        managers.stop(asleep).await;
        managers.add().await;
        managers.add().await;
        // Both managers that the sleeper knows go.
        for old in [leader, (leader + 2) % 3] {
            let node = managers.get(old).node();
            set_role(managers.get(3), node, Role::Worker).await;
            eventually("it is out", || managers.get(3).with_state(|state| !state.managers.contains_key(&node))).await;
            managers.stop(old).await;
        }
        managers.get(3).propose(create_network("new")).await.unwrap();
        managers.start(asleep).await;
        eventually("it knows", || managers.get(asleep).with_state(|state| names(state) == ["new"])).await;
        managers.get(asleep).propose(create_network("newer")).await.unwrap();
        managers.stop_all().await;
    });
}

#[test]
fn demoted_managers_are_not_heard_and_the_leader_can_go() {
    smol::block_on(async {
        let managers = Managers::new(3).await;
        let leader = managers.leader().await;
        let out = (leader + 1) % 3;
        let node = managers.get(out).node();
        set_role(managers.get(out), node, Role::Worker).await;
        let rest = |state: &State| !state.managers.contains_key(&node) && state.managers.len() == 2;
        eventually("two managers", || managers.get(leader).with_state(rest)).await;
        eventually("it is not heard", || {
            managers.get(leader).drops().contains_key("not_manager")
                || managers.get((leader + 2) % 3).drops().contains_key("not_manager")
        })
        .await;
        // Neither are its commands.
        let refused = managers.get(out).propose(create_network("secret")).await.unwrap_err();
        assert!(!matches!(refused, ManagerError::Refused(_)), "{refused}");
        // The leader hands over and goes.
        let first = managers.get(leader).node();
        set_role(managers.get(leader), first, Role::Worker).await;
        let last = (leader + 2) % 3;
        let alone = |state: &State| state.managers.len() == 1;
        eventually("one manager", || managers.get(last).with_state(alone)).await;
        managers.get(last).propose(create_network("alone")).await.unwrap();
        assert_eq!(managers.get(last).with_state(names), ["alone"]);
        managers.stop_all().await;
    });
}

#[test]
fn one_that_is_left_goes_on_alone() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        managers.get(0).propose(create_network("before")).await.unwrap();
        managers.get(2).refresh().await.unwrap();
        let before = managers.get(2).state();
        for number in 0..3 {
            managers.stop(number).await;
        }
        let manager = Manager::force_new_cluster(&managers.seats[2].directory, None).await.unwrap();
        manager.listen(managers.seats[2].control).await.unwrap();
        managers.seats[2].manager = Some(manager);
        managers.get(2).propose(create_network("after")).await.unwrap();
        let state = managers.get(2).state();
        assert!(names(&state).contains(&"before".to_owned()) && names(&state).contains(&"after".to_owned()));
        assert!(state.cluster.fork > before.cluster.fork);
        let epochs = |state: &State| state.ring.epochs.iter().map(|held| held.epoch.0).collect::<Vec<_>>();
        assert!(epochs(&state).iter().min().unwrap() - epochs(&before).iter().max().unwrap() >= 1 << 16);
        assert_eq!(state.nodes.values().filter(|node| node.role == Role::Manager).count(), 1);
        // The others come back, elect a leader of their own, and are not listened to.
        managers.start(0).await;
        managers.start(1).await;
        let node = managers.get(2).node();
        eventually("their leader", || (0..2).any(|number| managers.get(number).inner.leads())).await;
        eventually("they knock", || managers.get(2).drops().contains_key("not_manager")).await;
        assert_eq!(managers.get(2).leader(), Some(node));
        let joined = tls::fetch_state(managers.seats[2].control, &managers.seats[0].identity, 1 << 20).await;
        assert!(joined.is_err(), "a former manager gets nothing");
        // It survives a restart as what it is now, and takes new managers.
        managers.stop(2).await;
        managers.start(2).await;
        managers.stop(0).await;
        managers.stop(1).await;
        assert!(managers.get(2).with_state(names).contains(&"after".to_owned()));
        managers.stop_all().await;
    });
}

#[test]
fn strangers_and_workers_get_nothing_of_the_managers() {
    smol::block_on(async {
        let managers = Managers::new(1).await;
        let control = managers.seats[0].control;
        let token: JoinToken = managers.get(0).join_tokens().0.parse().unwrap_or_else(|error| panic!("{error}"));
        let (key, request) = join_request();
        let joined = tls::join(control, &token, request).await.unwrap();
        let worker = Identity::new(&key, joined.chain).unwrap();
        let other = Managers::new(1).await;
        let first = managers.get(0).node();
        for identity in [&worker, &other.seats[0].identity] {
            let seats = (3, 2);
            assert!(tls::open_consensus(control, identity, first, seats, control).await.is_err());
            assert!(tls::forward(control, identity, b"x").await.is_err());
            assert!(tls::read_index(control, identity).await.is_err());
            assert!(tls::fetch_state(control, identity, 1 << 20).await.is_err());
        }
        let own = &managers.seats[0].identity;
        let wrong = tls::open_consensus(control, own, first, (2, 99), control).await.err().unwrap().to_string();
        assert!(wrong.contains("seat"), "{wrong}");
        assert!(tls::fetch_state(control, own, 100).await.is_err(), "more than asked for");
        assert!(tls::fetch_state(control, own, 1 << 20).await.is_ok());
        let drops = managers.get(0).drops();
        assert_eq!((drops["not_manager"], drops["wrong_seat"]), (4, 1), "{drops:?}");
        managers.stop_all().await;
        other.stop_all().await;
    });
}
