//! The root certificate is replaced while nodes come and go.

use super::super::{news::Seen, planner};
use super::*;
use crate::cluster::{Entry, NewTokens, ring};
use crate::crypto;
use crate::types::Time;

async fn rotate(swarm: &Swarm) {
    let root = Some(swarm.manager.new_root().unwrap());
    let (version, spec) = swarm.manager.with_state(|state| (state.cluster.version, state.cluster.spec.clone()));
    let (worker, manager) = (Some(Zeroizing::new(random())), Some(Zeroizing::new(random())));
    let tokens = NewTokens { worker, manager, unlock: None };
    swarm.manager.propose(Command::UpdateCluster { version, spec, tokens, root }).await.unwrap();
}

/// As the agent renews.
async fn renew(swarm: &Swarm, identity: &Identity) -> Identity {
    let key = NodeKey::generate().unwrap();
    let chain = tls::renew(swarm.control, identity, key.request().unwrap()).await.unwrap();
    let renewed = Identity::new(&key, chain).unwrap().trusting(&identity.trusted());
    tls::certified(swarm.control, &renewed).await.unwrap();
    renewed
}

fn in_rotation(state: &State) -> bool {
    state.cluster.rotation.is_some()
}

#[test]
fn a_new_root_shuts_nobody_out() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let token = swarm.token();
        let (away, mut present) = (swarm.join().await, swarm.agent(swarm.join().await).await);
        let former = swarm.manager.root_certificate();
        present.until("a push", |_| true).await;
        assert_eq!(present.told.swarm.as_ref().unwrap().roots, std::slice::from_ref(&former));
        rotate(&swarm).await;
        let new = swarm.manager.root_certificate();
        assert_ne!(new, former);
        present.until("both roots", |agent| agent.told.swarm.as_ref().unwrap().roots.len() == 2).await;
        let told = present.told.swarm.as_ref().unwrap();
        assert_eq!((&told.roots, told.attestation.len()), (&vec![former.clone(), new.clone()], 2));

        // The old token names the former root; the new one admits, and its certificate is of the new root.
        assert!(matches!(swarm.try_join(&token).await, Err(ConnectError::Untrusted { .. })));
        let joined = swarm.join().await;
        assert_eq!(joined.root().as_ref(), new.as_slice());

        // A node that knows the former root alone believes the manager, and the manager it.
        let again = swarm.agent(away).await;
        let renewed = renew(&swarm, &again.identity).await;
        assert_eq!(renewed.root().as_ref(), new.as_slice());
        drop(again);
        assert!(swarm.manager.with_state(in_rotation), "others are still behind");

        let renewed_present = renew(&swarm, &present.identity.trusting(&[former.clone(), new.clone()])).await;
        let first = renew(&swarm, &swarm.first).await;
        swarm.until("the former root is dropped", |state| !in_rotation(state)).await;
        assert!(!present.until_ended().await, "a session of a certificate that is not believed any more ends");

        // With their new certificates all are in; with the former one nobody.
        for identity in [&renewed, &renewed_present, &first, &joined] {
            tls::open_session(swarm.control, identity, session_request(BootId(random()))).await.unwrap();
        }
        let refused = tls::open_session(swarm.control, &present.identity, session_request(BootId(random()))).await;
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("no secure connection"), "{text}");
        let digest = swarm.manager.with_state(State::root_digest);
        assert_eq!(digest, crypto::sha256(&[&new]));
        swarm.manager.stop().await;
    });
}

/// The answer is lost on its way: the node goes on with what it has, and asks again.
#[test]
fn a_certificate_that_does_not_arrive_shuts_nobody_out() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let worker = swarm.join().await;
        rotate(&swarm).await;
        renew(&swarm, &swarm.first).await;
        let request = NodeKey::generate().unwrap().request().unwrap();
        tls::renew(swarm.control, &worker, request).await.unwrap();
        let early = swarm.manager.propose(Command::FinishRootRotation).await.unwrap_err().to_string();
        assert!(early.contains("not all nodes"), "{early}");
        tls::open_session(swarm.control, &worker, session_request(BootId(random()))).await.unwrap();
        let renewed = renew(&swarm, &worker).await;
        swarm.until("the former root is dropped", |state| !in_rotation(state)).await;
        tls::open_session(swarm.control, &renewed, session_request(BootId(random()))).await.unwrap();
        swarm.manager.stop().await;
    });
}

/// All nodes have renewed, but a manager's part in the consensus may be behind.
#[test]
fn a_silent_manager_holds_the_former_root_up() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let mut state = swarm.manager.state().duplicate().unwrap();
        let (version, spec, at) = (state.cluster.version, state.cluster.spec.clone(), state.at);
        let root = Some(swarm.manager.new_root().unwrap());
        swarm.manager.stop().await;
        let change = Command::UpdateCluster { version, spec, tokens: NewTokens::default(), root };
        state.apply(&Entry { at, command: change }).0.unwrap();
        let (node, root) = (swarm.first.peer().node, state.root_digest());
        state.apply(&Entry { at, command: Command::SetCertificateRoot { node, root } }).0.unwrap();
        let finishes = |silent: bool| {
            let seen = |_| Seen::new(&state, true, Some(Duration::ZERO), Duration::from_secs(60));
            let mut clock = ring::Clock::new(&state, Time::default(), at);
            let looks = (seen, |_| silent);
            let commands = planner::plan(&state, &mut clock, (Time::default(), at), looks, &mut planner::SystemDraw);
            commands.iter().any(|command| matches!(command, Command::FinishRootRotation))
        };
        assert!(!finishes(true));
        assert!(finishes(false));
    });
}

#[test]
fn a_restart_goes_on_with_the_replacement_and_the_former_key_is_not_on_disk() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let worker = swarm.join().await;
        let former_key = swarm.manager.with_state(|state| state.cluster.authority.key.clone());
        rotate(&swarm).await;
        swarm.manager.stop().await;
        let store = std::fs::read(swarm.scratch.path().join(super::super::store::STORE_FILE)).unwrap();
        let records = super::super::store::testing::plain_records(swarm.scratch.path(), &store);
        assert!(!records.is_empty());
        for (_, plain) in records {
            assert!(!plain.windows(former_key.len()).any(|window| window == former_key.as_slice()));
        }
        let manager = Manager::open(swarm.scratch.path()).await.unwrap();
        let control = manager.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let swarm = Swarm { manager, control, ..swarm };
        assert!(swarm.manager.with_state(in_rotation));
        renew(&swarm, &worker).await;
        renew(&swarm, &swarm.first).await;
        swarm.until("the former root is dropped", |state| !in_rotation(state)).await;
        swarm.manager.stop().await;
    });
}

#[test]
fn trusted_roots_are_kept_on_disk() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let worker = swarm.join().await;
        let own = worker.root().to_vec();
        let both = worker.trusting(&[own.clone(), vec![7; 9]]);
        let path = swarm.scratch.path().join("identity.pem");
        both.save(&path, None).unwrap();
        let loaded = Identity::load(&path, None).unwrap();
        assert_eq!(loaded.trusted(), [vec![7; 9], own.clone()]);
        assert_eq!(loaded.trusting(std::slice::from_ref(&own)).trusted(), [own]);
        swarm.manager.stop().await;
    });
}
