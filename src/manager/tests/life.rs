//! Heartbeats, boots, time.

use super::*;
use crate::cluster::{Entry, NodeState};
use crate::types::EpochPhase;

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
            while !matches!(agent.session.reader.read(DEADLINE).await.unwrap(), ToAgent::Alive) {}
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
        assert!(start.elapsed() >= Duration::from_secs(3), "{:?}", start.elapsed());
        manager.stop().await;
    });
}

#[test]
fn one_session_of_a_node() {
    smol::block_on(async {
        let swarm = Swarm::new(ClusterSpec { heartbeat_secs: 3, ..ClusterSpec::default() }).await;
        let identity = swarm.join().await;
        let boot = BootId([7; 8]);
        let first = tls::open_session(swarm.control, &identity, session_request(boot)).await.unwrap();
        // The same boot while the first is demonstrably alive: a clone.
        let refused = tls::open_session(swarm.control, &identity, session_request(boot)).await.err().unwrap();
        assert!(refused.to_string().contains("was the host cloned"), "{refused}");
        assert_eq!(swarm.manager.drops()["second_session"], 1);
        // Once the first has missed a heartbeat, the node may come back: its connection broke unnoticed.
        let end = Instant::now() + DEADLINE;
        let second = loop {
            match tls::open_session(swarm.control, &identity, session_request(boot)).await {
                Ok(session) => break session,
                Err(error) => assert!(Instant::now() < end, "{error}"),
            }
            smol::Timer::after(Duration::from_millis(50)).await;
        };
        assert_eq!(second.boot_index, first.boot_index, "the same boot");
        let mut first = first;
        while first.reader.read::<ToAgent>(DEADLINE).await.is_ok() {}
        // A new boot takes the place at once, and the former one is over for good.
        let third = tls::open_session(swarm.control, &identity, session_request(BootId([8; 8]))).await.unwrap();
        assert!(third.boot_index > second.boot_index);
        let refused = tls::open_session(swarm.control, &identity, session_request(boot)).await.err().unwrap();
        assert!(matches!(refused, tls::ConnectError::FormerBoot), "{refused}");
        swarm.manager.stop().await;
    });
}

/// A state whose last activation is `age` old.
fn aged(path: &Path, age: u64) {
    use super::super::{authority, store::Store};
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
    drop(Store::create(path, NodeId::from_random(random()), &state).unwrap());
}

#[test]
fn a_restart_does_not_reset_the_rotation_timer() {
    smol::block_on(async {
        let current =
            |manager: &Manager| manager.with_state(|state| state.ring.phase(EpochPhase::Current).unwrap().epoch);
        let scratch = Scratch::new();
        // 55 of 60 seconds had passed before the restart: the rest is waited for, no more and no less.
        aged(scratch.path(), 55);
        let manager = Manager::open(scratch.path()).await.unwrap();
        let (start, before) = (Instant::now(), current(&manager));
        let changed = manager.watch();
        while current(&manager) == before {
            assert!(start.elapsed() < DEADLINE, "no rotation");
            let tick = async { Ok(smol::Timer::after(Duration::from_millis(100)).await).map(|_| ()) };
            smol::future::or(changed.recv(), tick).await.unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
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
