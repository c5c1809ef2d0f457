//! Which managers are listened to, by the state of one that may lag behind.

use super::*;
use crate::manager::drops::ControlDrop;
use crate::manager::peers::judge_seat;
use crate::raft::Member;
use crate::tls::Peer;
use crate::types::Role;

/// Found by a simulated swarm: a manager that was away knew the leader in a former seat only, or as a worker, and did
/// not listen to it. It never caught up as long as that one led.
#[test]
fn a_seat_newer_than_the_state_is_believed_by_its_certificate() {
    smol::block_on(async {
        let swarm = Swarm::new(quick()).await;
        let worker = swarm.join().await.peer().node;
        let state = swarm.manager.state();
        let (manager, index) = (swarm.manager.node(), state.index);
        let certificate = |node, role| {
            let (not_before, expires) = (UnixTime(0), UnixTime(u64::MAX));
            Some(Peer { node, role, cluster: state.cluster.id, not_before, expires })
        };
        let judge =
            |node, role, seat| judge_seat(&state, certificate(node, role), Member(seat)).map_err(|(why, _)| why);
        let seat = swarm.manager.seat();
        assert_eq!(judge(manager, Role::Manager, seat), Ok(manager));
        assert_eq!(judge(manager, Role::Manager, seat - 1), Err(ControlDrop::WrongSeat));
        assert_eq!(judge(manager, Role::Manager, index), Err(ControlDrop::WrongSeat));
        assert_eq!(judge(manager, Role::Manager, index + 1), Ok(manager));
        assert_eq!(judge(worker, Role::Manager, index), Err(ControlDrop::NotManager));
        assert_eq!(judge(worker, Role::Manager, index + 1), Ok(worker));
        assert_eq!(judge(worker, Role::Worker, index + 1), Err(ControlDrop::NotManager));
        let mut removed = state.duplicate().unwrap();
        let note = crate::cluster::GoneNode { generation: state.ring.generation, until: UnixTime(u64::MAX) };
        removed.gone.insert(worker, note);
        let judged = judge_seat(&removed, certificate(worker, Role::Manager), Member(index + 1));
        assert_eq!(judged.map_err(|(why, _)| why), Err(ControlDrop::RemovedNode));
        swarm.manager.stop().await;
    });
}
