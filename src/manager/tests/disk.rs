//! Managers whose disk fails, and what is told of them.

use super::several::{Managers, create_network, eventually, names};
use super::*;
use crate::cluster::NodeState;
use crate::manager::disk::failing;
use crate::manager::{ManagerError, SILENT_MANAGER, news};

/// Gives a command until it is taken.
async fn insist(manager: &Manager, name: &str) {
    let end = Instant::now() + DEADLINE;
    loop {
        match manager.propose(create_network(name)).await {
            Ok(_) => return,
            // A leader that was lost meanwhile had taken it.
            Err(ManagerError::Refused(refusal)) if refusal.to_string().contains("already exists") => return,
            Err(error) => assert!(Instant::now() < end, "{name} is not taken: {error}"),
        }
    }
}

#[test]
fn a_leader_whose_disk_fails_is_followed_and_comes_back() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        let leader = managers.leader().await;
        let other = (leader + 1) % 3;
        insist(managers.get(leader), "kept").await;
        let directory = managers.seats[leader].directory.clone();
        failing::fail_after(&directory, 0);
        let end = Instant::now() + DEADLINE;
        for number in 0.. {
            if managers.get(leader).failure().is_some() {
                break;
            }
            assert!(Instant::now() < end, "the disk does not fail");
            // Taken by another manager, should that one lead by now, or not.
            let _ = managers.get(leader).propose(create_network(&format!("hit{number}"))).await;
        }
        // From then on it refuses at once, and says why.
        let refused = managers.get(leader).propose(create_network("refused")).await.unwrap_err();
        assert!(matches!(refused, ManagerError::Stalled(_)), "{refused}");
        assert!(refused.to_string().contains(directory.to_str().unwrap()), "it names the file: {refused}");
        assert!(matches!(managers.get(leader).refresh().await, Err(ManagerError::Stalled(_))));
        assert_eq!(managers.get(leader).failure(), Some(refused.to_string()));
        // The others go on.
        insist(managers.get(other), "meanwhile").await;
        assert!(managers.get(other).with_state(|state| names(state).contains(&"kept".to_owned())));
        assert!(managers.get(leader).with_state(|state| !names(state).contains(&"meanwhile".to_owned())));
        assert!(failing::mend(&directory) > 0, "it tried");
        // It comes back by itself, with everything, and all agree on what became of the command that hit it.
        eventually("it takes part", || managers.get(leader).failure().is_none()).await;
        eventually("it has caught up", || {
            managers.get(leader).with_state(|state| names(state).contains(&"meanwhile".to_owned()))
        })
        .await;
        insist(managers.get(leader), "after").await;
        let index = managers.get(leader).with_state(|state| state.index);
        managers.until("all are even", |state| state.index >= index).await;
        let known: Vec<_> = managers.running().map(|(_, manager)| manager.with_state(names)).collect();
        assert!(known.iter().all(|names| *names == known[0]), "{known:?}");
        assert!(!known[0].contains(&"refused".to_owned()));
        eventually("one leader", || {
            let known = managers.get(leader).leader();
            known.is_some() && known == managers.get(other).leader()
        })
        .await;
        // And so it is on its disk.
        managers.stop(leader).await;
        managers.start(leader).await;
        let has = |state: &State| {
            ["kept", "meanwhile", "after"].iter().all(|name| names(state).contains(&(*name).to_owned()))
        };
        eventually("all of it", || managers.get(leader).with_state(has)).await;
        managers.stop_all().await;
    });
}

#[test]
fn an_only_manager_whose_disk_fails_goes_on_where_it_stopped() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let mut agent = swarm.agent(swarm.join().await).await;
        swarm.network("kept").await;
        failing::fail_after(swarm.scratch.path(), 2);
        let refused = swarm.manager.propose(create_network("hit")).await.unwrap_err();
        assert!(matches!(refused, ManagerError::Interrupted(_)), "{refused}");
        assert!(!agent.until_ended().await, "the session ends, and the node is not told that it is removed");
        let opened = tls::open_session(swarm.control, &agent.identity, session_request(agent.boot)).await;
        let refused = opened.err().unwrap();
        assert!(matches!(refused, ConnectError::NotLeader { .. }), "{refused}");
        failing::mend(swarm.scratch.path());
        eventually("it takes part", || swarm.manager.failure().is_none()).await;
        insist(&swarm.manager, "after").await;
        let known = swarm.manager.with_state(names);
        assert!(known.contains(&"kept".to_owned()) && known.contains(&"after".to_owned()), "{known:?}");
        let again = swarm.agent(agent.identity).await;
        assert_eq!(again.node, agent.node);
        swarm.manager.stop().await;
        let manager = Manager::open(swarm.scratch.path()).await.unwrap();
        let same = |names: &[String]| known.iter().all(|name| names.contains(name)) && names.len() == known.len();
        assert!(same(&manager.with_state(names)), "{known:?}");
        manager.stop().await;
    });
}

#[test]
fn one_that_is_stopped_while_its_disk_fails_ends() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        failing::fail_after(swarm.scratch.path(), 0);
        swarm.manager.propose(create_network("hit")).await.unwrap_err();
        swarm.manager.stop().await;
        failing::mend(swarm.scratch.path());
        Manager::open(swarm.scratch.path()).await.unwrap().stop().await;
    });
}

#[test]
fn a_manager_that_does_not_answer_is_told_of_until_it_does() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let node = swarm.manager.node();
        let mut state = swarm.manager.state().duplicate().unwrap();
        let told = |state: &State, silent: bool, before: Vec<Command>| {
            let mut commands = before;
            let before = commands.len();
            news::silent_managers(state, |_| silent, &mut commands);
            commands
                .into_iter()
                .skip(before)
                .map(|command| match command {
                    Command::SetNodeState { node: told, state: NodeState::Ready, message } if told == node => message,
                    _ => panic!("another command"),
                })
                .collect::<Vec<_>>()
        };
        assert!(told(&state, true, Vec::new()).is_empty(), "it is not ready");
        let seen = state.nodes.get_mut(&node).unwrap();
        (seen.state, seen.message) = (NodeState::Ready, String::new());
        assert!(told(&state, false, Vec::new()).is_empty());
        assert_eq!(told(&state, true, Vec::new()), [SILENT_MANAGER]);
        let down = news::set_state(node, NodeState::Down, "heartbeat failure");
        assert!(told(&state, true, vec![down]).is_empty(), "it is down just now");
        state.nodes.get_mut(&node).unwrap().message = SILENT_MANAGER.to_owned();
        assert!(told(&state, true, Vec::new()).is_empty(), "known already");
        assert_eq!(told(&state, false, Vec::new()), [""]);
        swarm.manager.stop().await;
    });
}
