//! A manager that is one no more: what it knew is worth nothing soon.

use super::several::{Managers, eventually, set_role};
use super::*;
use crate::types::{EpochPhase, Role};

/// What the managers must keep to themselves.
fn secrets(state: &State) -> Vec<Vec<u8>> {
    let masters = state.ring.epochs.iter().map(|held| held.master.expose().to_vec());
    let cluster = &state.cluster;
    let others = [cluster.worker_secret.to_vec(), cluster.manager_secret.to_vec(), cluster.authority.key.to_vec()];
    masters.chain(others).collect()
}

#[test]
fn what_a_demoted_manager_knew_is_replaced() {
    smol::block_on(async {
        let managers = Managers::new(3).await;
        let leader = managers.leader().await;
        let out = (leader + 1) % 3;
        let node = managers.get(out).node();
        set_role(managers.get(leader), node, Role::Worker).await;
        // It hears nothing after it is out: all that it knows is what its own state shows.
        eventually("it is out", || managers.get(leader).with_state(|state| !state.managers.contains_key(&node))).await;
        let replaced = |state: &State| {
            let known = managers.get(out).with_state(secrets);
            let current = state.ring.phase(EpochPhase::Current).unwrap().master.expose().to_vec();
            let cluster = &state.cluster;
            let present = [current, cluster.worker_secret.to_vec(), cluster.manager_secret.to_vec()];
            !present.iter().chain([&cluster.authority.key.to_vec()]).any(|secret| known.contains(secret))
        };
        eventually("all is replaced", || managers.get(leader).with_state(replaced)).await;
        // Its place on the streams between managers is taken from it, too.
        let (identity, seat) = (&managers.seats[out].identity, managers.get(out).seat());
        let (expected, to) = (managers.get(leader).node(), managers.get(leader).seat());
        let control = managers.seats[leader].control;
        let own = managers.seats[out].control;
        assert!(tls::open_consensus(control, identity, expected, (seat, to), own).await.is_err());
        assert!(tls::fetch_state(control, identity, 1 << 20).await.is_err());
        managers.stop_all().await;
    });
}

#[test]
fn one_that_is_dead_does_not_hold_up_the_others_that_go() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        let leader = managers.leader().await;
        // The dead one has the higher seat: it is not the first that is looked at.
        let mut others: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
        others.sort_by_key(|number| managers.get(*number).seat());
        let nodes = [others[0], others[1]].map(|number| managers.get(number).node());
        managers.stop(others[1]).await;
        // Until it counts as silent (`members::LATELY`).
        smol::Timer::after(Duration::from_secs(2)).await;
        for node in nodes {
            set_role(managers.get(leader), node, Role::Worker).await;
        }
        eventually("one manager", || managers.get(leader).with_state(|state| state.managers.len() == 1)).await;
        managers.stop_all().await;
    });
}
