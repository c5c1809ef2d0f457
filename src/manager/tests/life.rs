//! Heartbeats, boots, time.

use super::*;
use crate::cluster::{Entry, Lock, NodeState};
use crate::types::{AttachRequest, EpochPhase, Queues, TaskId};

#[test]
fn a_silent_node_is_down_and_comes_back() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let mut agent = swarm.agent(swarm.join().await).await;
        let node = agent.node;
        let is = |wanted: NodeState| move |state: &State| state.nodes[&node].state == wanted;
        assert!(swarm.manager.with_state(is(NodeState::Ready)));
        // With heartbeats it stays ready for longer than the window.
        let start = Instant::now();
        let mut last = start;
        while start.elapsed() < Duration::from_secs(4) {
            last = Instant::now();
            agent.say(FromAgent::Heartbeat).await;
            while !matches!(agent.session.reader.read(DEADLINE).await.unwrap(), ToAgent::Alive { .. }) {}
            assert!(swarm.manager.with_state(is(NodeState::Ready)));
            smol::Timer::after(Duration::from_millis(300)).await;
        }
        swarm.until("down", is(NodeState::Down)).await;
        assert!(last.elapsed() >= Duration::from_secs(3), "three heartbeats, not fewer");
        assert!(last.elapsed() < Duration::from_secs(15), "{:?}", last.elapsed());
        let Agent { identity, boot, .. } = agent;
        let _again = Agent::open(swarm.control, identity, boot).await.unwrap();
        swarm.until("ready", is(NodeState::Ready)).await;
        swarm.manager.stop().await;
    });
}

#[test]
fn a_restarted_manager_gives_nodes_a_window_to_come_back() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(quick());
        let (manager, joined) = Manager::create(scratch.path(), params).await.unwrap();
        let boot = BootId([1; 8]);
        let open = Command::OpenSession {
            node: joined.node,
            boot,
            hostname: "first".to_owned(),
            software: "0.1.0".to_owned(),
            addresses: addresses(),
            machine: Machine::default(),
            queues: Queues::ONE,
        };
        manager.propose(open).await.unwrap();
        manager.stop().await;
        let manager = Manager::open(scratch.path()).await.unwrap();
        let start = Instant::now();
        let changed = manager.watch();
        while manager.with_state(|state| state.nodes[&joined.node].state == NodeState::Ready) {
            assert!(start.elapsed() < DEADLINE);
            let tick = async { Ok(smol::Timer::after(Duration::from_millis(100)).await).map(|_| ()) };
            smol::future::or(changed.recv(), tick).await.unwrap();
        }
        assert!(start.elapsed() >= Duration::from_secs(10), "{:?}", start.elapsed());
        manager.stop().await;
    });
}

/// Answers probes as an agent does, until the session ends.
async fn answer_probes(session: &mut tls::Session) {
    while let Ok(message) = session.reader.read::<ToAgent>(DEADLINE).await {
        if let ToAgent::Probe = message {
            session.writer.write(&FromAgent::Heartbeat).await.unwrap();
        }
    }
}

#[test]
fn one_session_of_a_node() {
    smol::block_on(async {
        // No heartbeat comes during the test: a session lives because it answers.
        let swarm = Swarm::new(ClusterSpec { heartbeat_secs: 60, ..ClusterSpec::default() }).await;
        let identity = swarm.join().await;
        let open = async |boot| tls::open_session(swarm.control, &identity, session_request(BootId([boot; 8]))).await;
        let mut first = open(7).await.unwrap();
        // The same boot while the first answers: a clone.
        let clone = async { open(7).await.err().unwrap() };
        let refused = smol::future::or(clone, async {
            answer_probes(&mut first).await;
            panic!("the living session ended")
        });
        let refused = refused.await;
        assert!(refused.to_string().contains("was the host cloned"), "{refused}");
        assert_eq!(swarm.manager.drops()["second_session"], 1);
        // The connection of the first breaks unnoticed: it says nothing, and the node comes back at once.
        let mut second = open(7).await.unwrap();
        assert_eq!(second.boot_index, first.boot_index, "the same boot");
        answer_probes(&mut first).await;
        // A new boot takes the place at once, and the former one is over for good.
        let third = open(8).await.unwrap();
        assert!(third.boot_index > second.boot_index);
        answer_probes(&mut second).await;
        let refused = open(7).await.err().unwrap();
        assert!(matches!(refused, tls::ConnectError::FormerBoot), "{refused}");
        swarm.manager.stop().await;
    });
}

#[test]
fn a_node_cannot_begin_boots_without_end() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let identity = swarm.join().await;
        let open = async |boot| tls::open_session(swarm.control, &identity, session_request(BootId([boot; 8]))).await;
        let mut open_now = Vec::new();
        for boot in 1..=10 {
            open_now.push(open(boot).await.unwrap());
        }
        let index = swarm.manager.state().index;
        for boot in 11..=13 {
            let refused = open(boot).await.err().unwrap().to_string();
            assert!(refused.contains("began too many boots, one in 30 s is admitted"), "{refused}");
        }
        assert_eq!(swarm.manager.drops()["boot_rate_limited"], 3);
        assert_eq!(swarm.manager.state().index, index, "nothing was written");
        // The session that is there goes on, and so do other nodes.
        let last = open_now.last_mut().unwrap();
        last.writer.write(&FromAgent::Heartbeat).await.unwrap();
        while !matches!(last.reader.read(DEADLINE).await.unwrap(), ToAgent::Alive { .. }) {}
        swarm.agent(swarm.join().await).await;
        // What it had begun may come back as often as it likes.
        open(10).await.unwrap();
        swarm.manager.stop().await;
    });
}

/// Asks for an attachment that is refused. Gives the reason, and whether the log stayed as it was.
async fn refused_attachment(swarm: &Swarm, agent: &mut Agent, network: NetworkId) -> (String, bool) {
    let (name, image) = ("box".to_owned(), "netns:box".to_owned());
    let request = AttachRequest { name, image, network, address: None, aliases: vec![] };
    let before = swarm.manager.state().index;
    agent.say(FromAgent::Attach { id: TaskId::from_random(random()), request }).await;
    loop {
        if let ToAgent::AttachRefused { reason, .. } = agent.session.reader.read(DEADLINE).await.unwrap() {
            return (reason, swarm.manager.state().index == before);
        }
    }
}

#[test]
fn an_attachment_that_is_refused_is_not_in_the_log() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let closed = swarm.network("closed").await;
        let open = NetworkId::from_random(random());
        let spec = NetworkSpec { name: "open".to_owned(), attachable: true, ..NetworkSpec::default() };
        swarm.manager.propose(Command::CreateNetwork { id: open, spec }).await.unwrap();
        let mut agent = swarm.agent(swarm.join().await).await;
        // Something else may be written meanwhile, but not every time.
        let mut quiet = false;
        for _ in 0..20 {
            let (reason, unchanged) = refused_attachment(&swarm, &mut agent, closed).await;
            assert!(reason.contains("closed"), "{reason}");
            quiet |= unchanged;
        }
        assert!(quiet, "each is in the log");
        // A node that has used up what it may attach, in whatever session.
        let sessions = &swarm.manager.inner.sessions;
        let allowed = (0..2000).filter(|_| sessions.may_attach(agent.node)).count();
        assert!((1024..1100).contains(&allowed), "{allowed}: what is refused for another reason costs nothing");
        let Agent { identity, boot, .. } = agent;
        let mut agent = Agent::open(swarm.control, identity, boot).await.unwrap();
        let (reason, _) = refused_attachment(&swarm, &mut agent, open).await;
        assert_eq!(reason, "this node attached too often: one in 10 s is admitted now");
        assert_eq!(swarm.manager.drops()["attach_rate_limited"], 1);
        assert!(sessions.may_attach(swarm.first.peer().node), "another one may");
        swarm.manager.stop().await;
    });
}

#[test]
fn a_daemon_that_starts_again_and_again_gets_in() {
    use super::super::limits::{Allowance, Bucket};
    let (start, allowance) = (Instant::now(), Allowance { burst: 10.0, refill: Duration::from_secs(30) });
    let mut bucket = Bucket::new(&allowance, start);
    // Every second a start, each a new boot: after the burst one in 30 s.
    let admitted = (0..310u64).filter(|second| bucket.take(&allowance, start + Duration::from_secs(*second))).count();
    assert_eq!(admitted, 10 + 10);
}

/// A state whose last activation is `age` old.
fn aged(path: &Path, age: u64) {
    use super::super::authority;
    use super::super::store::{Owner, Store};
    use crate::raft::{Member, Membership, Payload, Peer, Position, Snapshot};
    use crate::types::{ClusterId, Fork, Key32};
    let at = UnixTime(wall_clock().0 - age);
    let cluster = ClusterId::from_random(random());
    let init = Command::Init {
        cluster,
        fork: Fork(at.0),
        spec: ClusterSpec { key_rotation_secs: 60, ..quick() },
        worker_secret: Zeroizing::new(random()),
        manager_secret: Zeroizing::new(random()),
        authority: authority::create(cluster, at).unwrap(),
        attestation: Key32::new(random()),
        current: Key32::new(random()),
        next: Key32::new(random()),
    };
    let state = State::init(&Entry { at, command: init }).unwrap_or_else(|refusal| panic!("{refusal}"));
    let owner = Owner { node: NodeId::from_random(random()), member: Member(1) };
    let membership = Membership::alone(owner.member, Peer { node: owner.node, address: addresses().control });
    let data = Payload::new(state.to_bytes().unwrap());
    let snapshot = Snapshot { position: Position { term: 1, index: state.index }, membership, data };
    drop(Store::create(path, owner, &snapshot, &Lock::default()).unwrap());
}

#[test]
fn a_restart_does_not_reset_the_rotation_timer() {
    smol::block_on(async {
        let current =
            |manager: &Manager| manager.with_state(|state| state.ring.phase(EpochPhase::Current).unwrap().epoch);
        let scratch = Scratch::new();
        // 55 of 60 seconds had passed before the restart: the rest is waited for, no more and no less.
        let start = Instant::now();
        aged(scratch.path(), 55);
        let manager = Manager::open(scratch.path()).await.unwrap();
        let before = current(&manager);
        let changed = manager.watch();
        while current(&manager) == before {
            assert!(start.elapsed() < DEADLINE, "no rotation");
            let tick = async { Ok(smol::Timer::after(Duration::from_millis(100)).await).map(|_| ()) };
            smol::future::or(changed.recv(), tick).await.unwrap();
        }
        // The ages in the log are in whole seconds.
        assert!(start.elapsed() >= Duration::from_millis(3900), "{:?}", start.elapsed());
        manager.stop().await;
    });
}

#[test]
fn an_address_in_use_is_named() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let taken = swarm.manager.listen(swarm.control).await.err().unwrap().to_string();
        assert!(taken.contains(&swarm.control.to_string()) && taken.contains("the address is in use"), "{taken}");
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 2377));
        let nowhere = swarm.manager.listen(elsewhere).await.err().unwrap().to_string();
        assert!(nowhere.contains("this host does not have the address"), "{nowhere}");
        swarm.manager.stop().await;
    });
}
