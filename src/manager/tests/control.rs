//! Joining, sessions, and what a node is told.

use super::*;
use crate::cluster::{Entry, NodeState};
use crate::esp::{gossip_key, network_key};
use crate::types::{Epoch, EpochPhase, Key32, PublicKey};
use crate::wire::record::{RecordBody, RecordKey};

fn text<T>(result: Result<T, ConnectError>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn only_a_right_token_admits() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let before = swarm.manager.state().to_bytes().unwrap();
        let mut wrong = swarm.token();
        wrong.secret[0] ^= 1;
        let refused = text(swarm.try_join(&wrong).await);
        assert!(refused.starts_with("A valid join token is necessary to join this cluster"), "{refused}");
        let mut other = swarm.token();
        other.root_digest[0] ^= 1;
        let refused = text(swarm.try_join(&other).await);
        assert!(refused.contains("remote CA does not match fingerprint"), "{refused}");
        assert!(*swarm.manager.state().to_bytes().unwrap() == *before, "nothing changed");
        let drops = swarm.manager.drops();
        assert_eq!(drops.get("wrong_token"), Some(&1), "{drops:?}");

        let identity = swarm.join().await;
        let peer = identity.peer();
        assert_eq!(peer.cluster, swarm.first.peer().cluster);
        let state = swarm.manager.state();
        assert_eq!(state.nodes.get(&peer.node).unwrap().certificate_expires, peer.expires);
        assert_eq!(state.nodes.get(&peer.node).unwrap().state, NodeState::Unknown);
        swarm.manager.stop().await;
    });
}

#[test]
fn wrong_tokens_are_limited() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let mut wrong = swarm.token();
        wrong.secret[0] ^= 1;
        let mut last = String::new();
        for _ in 0..7 {
            last = text(swarm.try_join(&wrong).await);
        }
        assert!(last.contains("too many wrong join tokens"), "{last}");
        let drops = swarm.manager.drops();
        assert!(drops["wrong_token"] <= 6 && drops["join_rate_limited"] >= 1, "{drops:?}");
        swarm.manager.stop().await;
    });
}

#[test]
fn nonsense_in_a_join_request_is_refused() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let nodes = swarm.manager.state().nodes.len();
        let good = || join_request().1;
        let nowhere = NodeAddresses { data: SocketAddr::from(([0, 0, 0, 0], 4500)), ..addresses() };
        let requests = [
            ("host name", JoinRequest { hostname: "x".repeat(65), ..good() }),
            ("host name", JoinRequest { hostname: "a\nb".to_owned(), ..good() }),
            ("version", JoinRequest { software: "1".repeat(33), ..good() }),
            ("certificate request", JoinRequest { csr: vec![0x30; 100], ..good() }),
            ("--advertise-addr", JoinRequest { addresses: nowhere, ..good() }),
        ];
        for (what, request) in requests {
            let refused = text(tls::join(swarm.control, &swarm.token(), request).await);
            assert!(refused.contains(what), "{refused}");
        }
        assert_eq!(swarm.manager.state().nodes.len(), nodes);
        swarm.manager.stop().await;
    });
}

#[test]
fn requests_of_nodes_need_a_certificate_of_this_swarm() {
    smol::block_on(async {
        let (swarm, other) = (Swarm::new(quick()).await, Swarm::new(quick()).await);
        let foreign = other.join().await;
        let refused = text(tls::open_session(swarm.control, &foreign, session_request(BootId([1; 8]))).await);
        assert!(refused.contains("another swarm"), "{refused}");
        // A certificate of ours for a node that the state does not know.
        let (key, _) = params(quick());
        let names = super::super::authority::Names {
            node: NodeId::from_random(random()),
            role: crate::types::Role::Worker,
            cluster: swarm.first.peer().cluster,
        };
        let issued = swarm.manager.with_state(|state| {
            let authority = &state.cluster.authority;
            super::super::authority::issue(authority, &key.request().unwrap(), names, wall_clock(), 3600).unwrap()
        });
        let unknown = Identity::new(&key, issued.chain).unwrap();
        let refused = text(tls::open_session(swarm.control, &unknown, session_request(BootId([1; 8]))).await);
        assert!(refused.contains("does not know node"), "{refused}");
        assert!(tls::renew(swarm.control, &unknown, key.request().unwrap()).await.is_err());
        assert!(tls::leave(swarm.control, &unknown).await.is_err());
        assert_eq!(swarm.manager.drops()["unknown_node"], 3);
        for swarm in [swarm, other] {
            swarm.manager.stop().await;
        }
    });
}

#[test]
fn a_node_gets_the_keys_of_its_own_networks_only() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let (mine, foreign) = (swarm.network("mine").await, swarm.network("foreign").await);
        let mut agent = swarm.agent(swarm.join().await).await;
        agent.push().await;
        let no_keys = |agent: &Agent| {
            let ring = agent.told.ring.as_ref().unwrap();
            ring.epochs.iter().all(|view| view.networks.is_empty()) && agent.told.networks.is_empty()
        };
        assert!(no_keys(&agent), "a node without a task has no network key");
        let mut names = agent.told.names.iter().map(|known| known.name.as_str()).collect::<Vec<_>>();
        names.sort_unstable();
        assert_eq!(names, ["foreign", "mine"], "but every name, for refusals that read alike");

        swarm.service("web", mine, 1).await;
        agent.until("the task", |agent| !agent.told.tasks.is_empty()).await;
        swarm.manager.with_state(|state| {
            let ring = agent.told.ring.as_ref().unwrap();
            assert_eq!(ring.epochs.len(), state.ring.epochs.len());
            for (view, held) in ring.epochs.iter().zip(&state.ring.epochs) {
                let (cluster, fork) = (state.cluster.id, state.cluster.fork);
                assert!(view.gossip_key == gossip_key(&held.master, cluster, fork, held.epoch));
                let [only] = view.networks.as_slice() else { panic!("one network") };
                assert_eq!(only.network, mine);
                assert!(only.key == network_key(&held.master, cluster, fork, held.epoch, mine));
                assert!(only.key != network_key(&held.master, cluster, fork, held.epoch, foreign));
            }
        });
        assert_eq!(agent.told.networks.len(), 1);
        assert_eq!(agent.told.networks[0].members, vec![(agent.node, true)]);
        assert_eq!(agent.told.index, swarm.manager.state().index);
        swarm.manager.stop().await;
    });
}

#[test]
fn masters_never_leave() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let network = swarm.network("net").await;
        swarm
            .manager
            .propose(Command::SetNodeState {
                node: swarm.manager.node(),
                state: NodeState::Down,
                message: String::new(),
            })
            .await
            .unwrap();
        let mut agent = swarm.agent(swarm.join().await).await;
        swarm.service("web", network, 3).await;
        agent.until("the tasks", |agent| agent.told.tasks.len() == 3).await;
        let mut book = super::super::book::RecordBook::default();
        swarm.manager.with_state(|state| {
            book.update(state);
            let push = super::super::push::compose(state, agent.node, &book, 0).unwrap();
            let bytes: Vec<u8> = push.frames.iter().flat_map(|frame| frame.to_vec()).collect();
            let secrets = state.ring.epochs.iter().map(|held| held.master.expose().as_slice()).chain([
                state.cluster.attestation.expose().as_slice(),
                state.cluster.worker_secret.as_slice(),
                state.cluster.manager_secret.as_slice(),
                state.cluster.authority.key.as_slice(),
            ]);
            for secret in secrets {
                assert!(!bytes.windows(secret.len()).any(|window| window == secret));
            }
            let held = &state.ring.epochs[0];
            let key = gossip_key(&held.master, state.cluster.id, state.cluster.fork, held.epoch);
            assert!(bytes.windows(32).any(|window| window == key.expose()), "the scan finds what is there");
        });
        swarm.manager.stop().await;
    });
}

fn last<'a>(records: &'a [VerifiedRecord], key: &RecordKey) -> Option<&'a VerifiedRecord> {
    records.iter().rev().find(|record| record.key() == *key)
}

/// A node refuses what is newer than the ring record it has.
fn assert_head_comes_first(agent: &Agent) {
    let mut head = None;
    for record in agent.verified() {
        if record.key() == RecordKey::Ring {
            head = head.max(Some(record.version().generation));
        }
        assert!(Some(record.version().generation) <= head, "{:?} before its head {head:?}", record.key());
    }
}

fn endpoint_key(task: &TaskAssignment) -> RecordKey {
    RecordKey::Endpoint(task.endpoints().next().unwrap())
}

fn master(swarm: &Swarm, epoch: Epoch) -> Key32 {
    swarm
        .manager
        .with_state(|state| state.ring.epochs.iter().find(|held| held.epoch == epoch).unwrap().master.duplicate())
}

#[test]
fn records_follow_the_life_of_a_task() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let network = swarm.network("net").await;
        let mut agent = swarm.agent(swarm.join().await).await;
        let mut watcher = swarm.agent(swarm.join().await).await;
        let service = swarm.service("web", network, 1).await;
        // Whichever of the two got the task plays it; the other one only watches.
        swarm.until("placed", |state| state.tasks.values().any(|task| task.node.is_some())).await;
        if swarm.manager.state().tasks.values().all(|task| task.node != Some(agent.node)) {
            std::mem::swap(&mut agent, &mut watcher);
        }
        agent.until("the task", |agent| !agent.told.tasks.is_empty()).await;
        let task = agent.told.tasks[0].clone();
        let key = endpoint_key(&task);
        assert!(last(&agent.verified(), &key).is_none(), "not announced before it starts");
        agent.status(&task, TaskState::Running).await;
        watcher.until("its record", |watcher| last(&watcher.verified(), &key).is_some()).await;

        let records = watcher.verified();
        let alive = last(&records, &key).unwrap();
        let endpoint = alive.endpoint().unwrap();
        assert!(endpoint.alive && endpoint.node == agent.node);
        let (cluster, fork, version) = (agent.identity.peer().cluster, alive.version().fork, alive.version());
        let key_of = |epoch| network_key(&master(&swarm, epoch), cluster, fork, epoch, network);
        let body = alive.open_endpoint(&key_of(version.epoch), cluster).unwrap();
        assert_eq!(body.address, task.attachments[0].address.addr());
        assert_eq!(body.name, format!("web.1.{}", task.id));
        assert_eq!(body.aliases, ["alias"]);

        swarm.manager.propose(Command::RemoveService { id: service }).await.unwrap();
        let dead = |watcher: &Agent| last(&watcher.verified(), &key).is_some_and(|r| !r.endpoint().unwrap().alive);
        watcher.until("its tombstone", dead).await;
        let tombstone = last(&watcher.verified(), &key).unwrap().clone();
        assert!(tombstone.version() > version);
        agent.say(FromAgent::TaskGone { id: task.id }).await;
        swarm.until("gone", |state| state.tasks.is_empty()).await;
        // A node that comes later still hears of the end, not of the life.
        let mut late = swarm.agent(swarm.join().await).await;
        late.push().await;
        assert!(last(&late.verified(), &key).is_some_and(|record| record == &tombstone));
        [&agent, &watcher, &late].into_iter().for_each(assert_head_comes_first);
        // Also of a manager that has just started, as long as the record of the life could still be somewhere.
        swarm.manager.stop().await;
        let told = |state: &State| {
            let mut book = super::super::book::RecordBook::default();
            book.update(state);
            book.since(0).0.iter().any(|record| record == tombstone.signed().encoded())
        };
        let mut state = swarm.manager.state().duplicate().unwrap();
        assert!(told(&state));
        let mut apply = |command| state.apply(&Entry { at: wall_clock(), command }).0.unwrap();
        let (current, next) = (tombstone.version().epoch, tombstone.version().epoch.next());
        apply(Command::Activate { epoch: next, late: true });
        apply(Command::Retire { epoch: current });
        assert!(state.freed.is_empty(), "its epoch is retired");
    });
}

#[test]
fn records_come_once_and_again_when_attested_anew() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let mut agent = swarm.agent(swarm.join().await).await;
        let (current, next) = swarm.manager.with_state(|state| {
            let epoch = |phase| state.ring.phase(phase).unwrap().epoch;
            (epoch(EpochPhase::Current), epoch(EpochPhase::Next))
        });
        let own = RecordKey::Node(agent.node);
        agent.until("its own record", |agent| last(&agent.verified(), &own).is_some()).await;
        let count = |agent: &Agent| agent.verified().iter().filter(|record| record.key() == own).count();
        let first = count(&agent);
        swarm.network("unrelated").await;
        agent.until("the name", |agent| !agent.told.names.is_empty()).await;
        assert_eq!(count(&agent), first, "nothing new about it");
        agent.say(FromAgent::Public { epoch: next, public: PublicKey([9; 32]) }).await;
        agent
            .until("its public", |agent| {
                last(&agent.verified(), &own).unwrap().node().unwrap().public(next) == Some(PublicKey([9; 32]))
            })
            .await;
        assert!(agent.verified().iter().all(|record| record.version().epoch == current));
        agent.records.clear();
        swarm.manager.propose(Command::Activate { epoch: next, late: true }).await.unwrap();
        agent.until("attested anew", |agent| last(&agent.verified(), &own).is_some()).await;
        let records = agent.verified();
        assert!(records.iter().all(|record| record.version().epoch == next));
        let ring = last(&records, &RecordKey::Ring).unwrap();
        assert!(matches!(ring.body(), RecordBody::Ring(ring) if ring.active == next && ring.oldest == current));
        agent.records.clear();
        swarm.manager.propose(Command::Retire { epoch: current }).await.unwrap();
        agent.until("retired", |agent| last(&agent.verified(), &RecordKey::Ring).is_some()).await;
        let newer = last(&agent.verified(), &RecordKey::Ring).unwrap().clone();
        assert!(matches!(newer.body(), RecordBody::Ring(ring) if ring.oldest == next));
        assert!(newer.version() > ring.version());
        swarm.manager.stop().await;
    });
}

#[test]
fn a_restarted_manager_makes_the_same_records() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let network = swarm.network("net").await;
        let mut agent = swarm.agent(swarm.join().await).await;
        swarm.service("web", network, 2).await;
        agent.until("a task", |agent| !agent.told.tasks.is_empty()).await;
        let task = agent.told.tasks[0].clone();
        agent.status(&task, TaskState::Running).await;
        agent.until("its record", |agent| last(&agent.verified(), &endpoint_key(&task)).is_some()).await;
        swarm.manager.stop().await;
        let state = swarm.manager.state();
        let book = || {
            let mut book = super::super::book::RecordBook::default();
            book.update(&state);
            book.since(0)
        };
        assert_eq!(book(), book());
        assert!(agent.records.iter().all(|record| SignedRecord::parse(record).is_ok()));
        assert!(book().0.iter().any(|record| agent.records.contains(record)));
    });
}

#[test]
fn a_node_speaks_for_its_own_tasks_only() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let network = swarm.network("net").await;
        let (mut one, mut two) = (swarm.agent(swarm.join().await).await, swarm.agent(swarm.join().await).await);
        swarm.service("web", network, 4).await;
        one.until("tasks", |agent| !agent.told.tasks.is_empty()).await;
        let task = one.told.tasks[0].clone();
        two.status(&task, TaskState::Failed).await;
        two.say(FromAgent::TaskGone { id: task.id }).await;
        two.say(FromAgent::Heartbeat).await;
        while !matches!(two.session.reader.read(DEADLINE).await.unwrap(), ToAgent::Alive { .. }) {}
        assert_eq!(swarm.manager.drops()["foreign_task"], 2);
        let state = swarm.manager.state();
        assert!(!state.tasks[&task.id].gone && state.tasks[&task.id].status.state < TaskState::Running);
        // Repetition does not write the log.
        one.status(&task, TaskState::Running).await;
        swarm.until("running", |state| state.tasks[&task.id].status.state == TaskState::Running).await;
        let index = swarm.manager.state().index;
        for _ in 0..20 {
            one.status(&task, TaskState::Running).await;
            one.say(FromAgent::Ready { epoch: Epoch(999) }).await;
            one.say(FromAgent::Heartbeat).await;
        }
        for _ in 0..20 {
            while !matches!(one.session.reader.read(DEADLINE).await.unwrap(), ToAgent::Alive { .. }) {}
        }
        assert_eq!(swarm.manager.state().index, index);
        swarm.manager.stop().await;
    });
}

#[test]
fn certificates_are_renewed_and_nodes_leave() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let identity = swarm.join().await;
        let mut agent = swarm.agent(identity).await;
        let key = NodeKey::generate().unwrap();
        let chain = tls::renew(swarm.control, &agent.identity, key.request().unwrap()).await.unwrap();
        let renewed = Identity::new(&key, chain).unwrap();
        let file = swarm.scratch.path().join("node.pem");
        agent.identity.save(&file, None).unwrap();
        renewed.save(&file, None).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let renewed = Identity::load(&file, None).unwrap();
        assert_eq!((renewed.peer().node, renewed.peer().role), (agent.node, agent.identity.peer().role));
        assert_eq!(swarm.manager.state().nodes[&agent.node].certificate_expires, renewed.peer().expires);
        tls::leave(swarm.control, &renewed).await.unwrap();
        assert_eq!(swarm.manager.state().nodes[&agent.node].state, NodeState::Down);
        assert!(!agent.until_ended().await);
        swarm.manager.stop().await;
    });
}

#[test]
fn a_removed_node_is_told_and_never_let_in_again() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let mut agent = swarm.agent(swarm.join().await).await;
        let mut other = swarm.agent(swarm.join().await).await;
        agent.push().await;
        let master = Key32::new(random());
        let remove = Command::RemoveNode { node: agent.node, force: true, master };
        let known = swarm.manager.with_state(|state| state.ring.epochs.iter().map(|held| held.epoch).max());
        swarm.manager.propose(remove).await.unwrap();
        let mut told = false;
        loop {
            match agent.session.reader.read::<ToAgent>(DEADLINE).await {
                Ok(ToAgent::Removed) => told = true,
                Ok(ToAgent::Ring(ring)) => {
                    let newest = ring.epochs.iter().map(|view| view.epoch).max();
                    assert!(newest <= known, "it was told the key that shall shut it out");
                }
                Ok(_) => {}
                Err(error) => break assert!(!matches!(error, tls::StreamError::Timeout), "the session goes on"),
            }
        }
        assert!(told, "told so");
        let again = tls::open_session(swarm.control, &agent.identity, session_request(BootId([3; 8]))).await;
        assert!(text(again).contains("was removed from the swarm"));
        let gone = agent.node;
        other.until("the gone note", |other| other.told.swarm.as_ref().unwrap().gone == [gone]).await;
        let records = other.verified();
        assert!(matches!(last(&records, &RecordKey::Node(gone)).unwrap().body(), RecordBody::Gone(_)));
        swarm.manager.stop().await;
    });
}
