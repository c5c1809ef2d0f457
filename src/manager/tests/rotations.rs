//! A leader that goes in the middle of a rotation: the next one finishes it, once; and nothing of an erased master is
//! left with any of the managers.

use super::several::{Managers, eventually};
use super::store::occurs;
use super::*;
use crate::manager::store::{STORE_FILE, testing};
use crate::types::{Epoch, EpochPhase};
use smol::future::FutureExt as _;
use smol::lock::Mutex as AsyncMutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Time between two words of the node: it repeats itself, as what it said may not have been heard.
const WORD_EVERY: Duration = Duration::from_millis(100);

/// How far the node goes along.
#[derive(Default)]
struct Goes {
    ready: AtomicBool,
    sending: AtomicBool,
}

impl Goes {
    fn along(&self, ready: bool, sending: bool) {
        self.ready.store(ready, Ordering::Relaxed);
        self.sending.store(sending, Ordering::Relaxed);
    }
}

/// A node's part in the key life, through all sessions.
async fn take_part(controls: Vec<SocketAddr>, identity: Identity, goes: Arc<Goes>) {
    let boot = BootId(random());
    loop {
        for control in &controls {
            if let Ok(session) = tls::open_session(*control, &identity, session_request(boot)).await {
                one_session(session, &goes).await;
            }
        }
        smol::Timer::after(WORD_EVERY).await;
    }
}

async fn one_session(session: Session, goes: &Goes) {
    let Session { mut reader, mut writer, .. } = session;
    let ring = AsyncMutex::new(Vec::new());
    let listen = async {
        loop {
            match reader.read::<ToAgent>(DEADLINE).await {
                Ok(ToAgent::Ring(view)) => {
                    *ring.lock().await = view.epochs.iter().map(|view| (view.epoch, view.phase)).collect();
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    };
    let speak = async {
        loop {
            let mut words = vec![FromAgent::Heartbeat];
            for (epoch, phase) in ring.lock().await.iter().copied() {
                if phase == EpochPhase::Next && goes.ready.load(Ordering::Relaxed) {
                    words.push(FromAgent::Ready { epoch });
                }
                if phase == EpochPhase::Current && goes.sending.load(Ordering::Relaxed) {
                    words.push(FromAgent::Sending { epoch });
                }
            }
            for word in words {
                if writer.write(&word).await.is_err() {
                    return;
                }
            }
            smol::Timer::after(WORD_EVERY).await;
        }
    };
    listen.or(speak).await;
}

fn ring(state: &State) -> Vec<(u32, EpochPhase)> {
    state.ring.epochs.iter().map(|held| (held.epoch.0, held.phase)).collect()
}

/// The number of the current epoch once a rotation is through: all send with it, and the next one was handed out.
fn settled(state: &State, node: NodeId) -> Option<u32> {
    let current = state.ring.phase(EpochPhase::Current)?;
    let next = state.ring.phase(EpochPhase::Next)?;
    let through = current.sending.contains(&node) && next.participants.contains(&node) && state.ring.request.is_none();
    through.then_some(current.epoch.0)
}

fn is_activated(state: &State, epoch: u32) -> bool {
    state.ring.phase(EpochPhase::Current).is_some_and(|current| current.epoch.0 == epoch)
}

/// Has the epoch `before` rotated, once.
async fn wish(manager: &Manager, before: u32) {
    let end = Instant::now() + DEADLINE;
    while let Err(error) = manager.propose(Command::RequestRotation { force: true }).await {
        assert!(Instant::now() < end, "the wish is not taken: {error}");
        // A leader that was lost meanwhile may have taken it.
        let shown = manager.refresh().await.is_ok();
        if shown && manager.with_state(|state| state.ring.request.is_some() || !is_activated(state, before)) {
            return;
        }
    }
}

/// A rotation is wished and goes on to a point at which its leader stops.
async fn begin(managers: &Managers, goes: &Goes, node: NodeId, phase: usize, before: u32) {
    let leader = managers.leader().await;
    let until = async |what: &str, found: &dyn Fn(&State) -> bool| {
        eventually(what, || managers.get(leader).with_state(found)).await;
    };
    goes.along(phase > 1, phase < 2);
    wish(managers.get(leader), before).await;
    match phase {
        0 => until("it waits for the node", &|state| state.ring.request.is_some()).await,
        1 => {
            goes.along(true, true);
            let ready = |state: &State| {
                let next = state.ring.phase(EpochPhase::Next).is_some_and(|next| next.ready.contains(&node));
                next || is_activated(state, before + 1)
            };
            until("the node is ready", &ready).await;
        }
        2 => until("it is activated", &|state| is_activated(state, before + 1)).await,
        _ => {
            until("the next one is drawn", &|state| {
                is_activated(state, before + 1) && state.ring.phase(EpochPhase::Next).is_some()
            })
            .await;
        }
    }
}

#[test]
fn a_leader_that_goes_at_any_point_of_a_rotation_leaves_it_to_the_next_one() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        let token: JoinToken = managers.get(0).join_tokens().0.parse().unwrap_or_else(|error| panic!("{error}"));
        let (key, request) = join_request();
        let joined = tls::join(managers.seats[0].control, &token, request).await.unwrap();
        let identity = Identity::new(&key, joined.chain).unwrap();
        let (node, goes) = (joined.node, Arc::<Goes>::default());
        let controls = managers.seats.iter().map(|seat| seat.control).collect();
        let _node = smol::spawn(take_part(controls, identity, goes.clone()));
        // From here on the node is among those that a rotation waits for.
        goes.along(true, true);
        managers.until("the node is there", |state| state.nodes[&node].boot.is_some()).await;
        let first = managers.get(0).with_state(|state| state.ring.phase(EpochPhase::Current).unwrap().epoch.0);
        wish(managers.get(0), first).await;
        managers.until("a first rotation", |state| settled(state, node).is_some()).await;
        let mut masters: BTreeMap<Epoch, [u8; 32]> = BTreeMap::new();
        for phase in 0..4 {
            let leader = managers.leader().await;
            note_masters(managers.get(leader), &mut masters);
            let before = managers.get(leader).with_state(|state| settled(state, node)).expect("it is settled");
            begin(&managers, &goes, node, phase, before).await;
            note_masters(managers.get(leader), &mut masters);
            managers.stop(leader).await;
            goes.along(true, true);
            managers
                .until(&format!("phase {phase}: it is finished"), |state| settled(state, node) == Some(before + 1))
                .await;
            managers.start(leader).await;
            managers.until("all know", |state| settled(state, node) == Some(before + 1)).await;
            // A leader plans every second: it does not begin another one.
            smol::Timer::after(Duration::from_millis(2500)).await;
            let wanted =
                [(before, EpochPhase::Previous), (before + 1, EpochPhase::Current), (before + 2, EpochPhase::Next)];
            managers.until(&format!("phase {phase}: once"), |state| ring(state) == wanted).await;
        }
        let leader = managers.leader().await;
        note_masters(managers.get(leader), &mut masters);
        let held = managers.get(leader).with_state(ring);
        for number in 0..3 {
            managers.stop(number).await;
            search(&managers.seats[number].directory, &masters, &held);
        }
    });
}

fn note_masters(manager: &Manager, masters: &mut BTreeMap<Epoch, [u8; 32]>) {
    manager.with_state(|state| {
        masters.extend(state.ring.epochs.iter().map(|held| (held.epoch, *held.master.expose())));
    });
}

/// A manager's store holds the masters of the ring, sealed, and no other one in any way.
fn search(directory: &Path, masters: &BTreeMap<Epoch, [u8; 32]>, held: &[(u32, EpochPhase)]) {
    let raw = std::fs::read(directory.join(STORE_FILE)).unwrap();
    let plain = testing::plain_records(directory, &raw);
    let (mut found, mut erased) = (0, 0);
    for (epoch, master) in masters {
        let is_held = held.iter().any(|(number, _)| *number == epoch.0);
        let readable = plain.iter().any(|(_, plain)| occurs(plain, master));
        assert_eq!(readable, is_held, "{}: epoch {epoch}", directory.display());
        assert!(!occurs(&raw, master), "{}: epoch {epoch} is there in plain", directory.display());
        found += u32::from(is_held);
        erased += u32::from(!is_held);
    }
    assert!(found == 3 && erased >= 4, "{found} held, {erased} erased");
}
