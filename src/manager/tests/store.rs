//! The store: what survives, what does not, and what it says when it cannot be read.

use super::super::store::{KEY_FILE, Loaded, STORE_FILE, Store, StoreError, testing};
use super::*;
use crate::cluster::Entry;
use crate::raft::{Body, Payload, Save, Snapshot};
use crate::types::{Epoch, EpochPhase};
use std::io::{BufRead as _, BufReader};
use std::process::{Command as Process, Stdio};

fn masters(manager: &Manager) -> BTreeMap<Epoch, [u8; 32]> {
    manager.with_state(|state| state.ring.epochs.iter().map(|held| (held.epoch, *held.master.expose())).collect())
}

pub(super) fn occurs(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in [STORE_FILE, KEY_FILE] {
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

/// The state that a store holds: all of its log applied.
pub(super) fn state_of(loaded: &Loaded) -> State {
    let mut state = State::from_bytes(loaded.snapshot.data.bytes()).unwrap();
    for entry in &loaded.entries {
        match &entry.body {
            Body::Command(payload) => drop(state.apply(&postcard::from_bytes::<Entry>(payload.bytes()).unwrap())),
            Body::Term | Body::Members(_) => state.pass(),
        }
    }
    state
}

/// Cuts a store's log down to a snapshot of all that it holds.
fn compact(store: &mut Store, loaded: &Loaded) {
    let position = loaded.entries.last().map_or(loaded.snapshot.position, |entry| entry.position);
    let data = Payload::new(state_of(loaded).to_bytes().unwrap());
    let snapshot = Snapshot { position, membership: loaded.snapshot.membership.clone(), data };
    let save = Save { snapshot: Some(snapshot), hard: loaded.hard, after: position.index, entries: Vec::new() };
    store.save(&save).unwrap();
}

/// A stopped manager's directory, with a network in its log.
async fn filled(path: &Path) -> Zeroizing<Vec<u8>> {
    let (_, params) = params(quick());
    let (manager, _) = Manager::create(path, params).await.unwrap();
    for name in ["one", "two"] {
        let spec = NetworkSpec {
            name: name.to_owned(),
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            encrypted: false,
            subnet: None,
            gateway: None,
            ..NetworkSpec::default()
        };
        let create = Command::CreateNetwork { id: NetworkId::from_random(random()), spec };
        manager.propose(create).await.unwrap();
    }
    manager.stop().await;
    manager.state().to_bytes().unwrap()
}

#[test]
fn a_state_survives_a_restart() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let before = filled(scratch.path()).await;
        let (_store, loaded) = Store::open(scratch.path(), None).unwrap();
        assert!(*state_of(&loaded).to_bytes().unwrap() == *before);
        assert_eq!(state_of(&loaded).networks.len(), 2);
    });
}

#[test]
fn files_are_private_and_the_store_is_exclusive() {
    use std::os::unix::fs::PermissionsExt as _;
    smol::block_on(async {
        let scratch = Scratch::new();
        let path = scratch.path().join("manager");
        filled(&path).await;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for file in std::fs::read_dir(&path).unwrap() {
            let file = file.unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
        let open = Manager::open(&path).await.unwrap();
        let second = Manager::open(&path).await.err().unwrap().to_string();
        assert!(second.contains("is in use by another process"), "{second}");
        let (_, params) = params(quick());
        let created = Manager::create(&path, params).await.err().unwrap().to_string();
        assert!(created.contains("is in use by another process"), "{created}");
        open.stop().await;
        Manager::open(&path).await.unwrap().stop().await;
        let missing = Manager::open(&scratch.path().join("none")).await.err().unwrap();
        assert!(missing.to_string().contains("there is no manager state"), "{missing}");
    });
}

#[test]
fn a_retired_master_cannot_be_read_again() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(scratch.path(), params).await.unwrap();
        let first = manager.with_state(|state| {
            let current = state.ring.phase(EpochPhase::Current).unwrap();
            (current.epoch, *current.master.expose())
        });
        let next = manager.with_state(|state| state.ring.phase(EpochPhase::Next).unwrap().epoch);
        manager.propose(Command::Activate { epoch: next, late: true }).await.unwrap();
        // Readable as long as it is needed: the scan below can find something.
        let store = scratch.path().join(STORE_FILE);
        let before = testing::plain_records(scratch.path(), &std::fs::read(&store).unwrap());
        assert!(before.iter().any(|(_, plain)| occurs(plain, &first.1)));
        let sealed: Vec<[u8; 32]> = before.iter().map(|(random, _)| *random).collect();
        let old_key = std::fs::read(scratch.path().join(KEY_FILE)).unwrap();

        manager.propose(Command::Retire { epoch: first.0 }).await.unwrap();
        let raw = std::fs::read(&store).unwrap();
        assert!(!occurs(&raw, &first.1), "in plain");
        let after = testing::plain_records(scratch.path(), &raw);
        assert!(!after.is_empty());
        assert!(!after.iter().any(|(_, plain)| occurs(plain, &first.1)), "under the current at-rest key");
        assert!(!sealed.iter().any(|random| occurs(&raw, random)), "an old record is still in the file");
        let key = std::fs::read(scratch.path().join(KEY_FILE)).unwrap();
        assert!(key != old_key && key.len() == old_key.len(), "one new at-rest key");
        assert!(!masters(&manager).contains_key(&first.0));
        manager.stop().await;
        Manager::open(scratch.path()).await.unwrap().stop().await;
    });
}

/// Each state that `kill -9` can leave of a compaction.
#[test]
fn every_step_of_a_compaction_is_a_readable_store() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (old, new) = (scratch.path().join("old"), scratch.path().join("new"));
        let wanted = filled(&old).await;
        copy(&old, &new);
        let (mut store, loaded) = Store::open(&new, None).unwrap();
        compact(&mut store, &loaded);
        drop(store);
        let read = |path: &Path, file: &str| std::fs::read(path.join(file)).unwrap();
        let both = testing::both_keys(&old, &new);
        let steps: [(&str, &Path, Option<Vec<u8>>); 5] = [
            ("both keys", &old, None),
            ("a begun fresh file", &old, Some(b"half".to_vec())),
            ("an empty fresh file", &old, Some(Vec::new())),
            ("a complete fresh file", &old, Some(read(&new, STORE_FILE))),
            ("the fresh file in place", &new, None),
        ];
        for (what, from, fresh) in steps {
            let path = scratch.path().join("step");
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(STORE_FILE), read(from, STORE_FILE)).unwrap();
            std::fs::write(path.join(KEY_FILE), &both).unwrap();
            if let Some(fresh) = fresh {
                std::fs::write(path.join(format!("{STORE_FILE}.new")), fresh).unwrap();
            }
            let (mut store, loaded) = Store::open(&path, None).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(*state_of(&loaded).to_bytes().unwrap() == *wanted, "{what}");
            assert_eq!(read(&path, KEY_FILE), read(from, KEY_FILE), "{what}: one key is left");
            assert!(!path.join(format!("{STORE_FILE}.new")).exists(), "{what}");
            compact(&mut store, &loaded);
            drop(store);
            Store::open(&path, None).unwrap();
            std::fs::remove_dir_all(&path).unwrap();
        }
    });
}

#[test]
fn damage_is_an_error_that_says_what_to_do() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (good, bad) = (scratch.path().join("good"), scratch.path().join("bad"));
        filled(&good).await;
        let store = std::fs::read(good.join(STORE_FILE)).unwrap();
        let attempt = |name: &str, file: &str, bytes: &[u8]| {
            copy(&good, &bad);
            std::fs::write(bad.join(file), bytes).unwrap();
            match Store::open(&bad, None) {
                Ok(_) => None,
                Err(error) => {
                    let text = error.to_string();
                    assert!(!text.contains('\n') && text.contains(bad.to_str().unwrap()), "{name}: {text}");
                    Some(error)
                }
            }
        };
        for length in (0..store.len()).step_by(store.len() / 40 + 1) {
            let error = attempt("truncated", STORE_FILE, &store[..length]);
            assert!(matches!(error, Some(StoreError::Damaged { .. })), "{length}: {error:?}");
        }
        assert!(matches!(attempt("garbage", STORE_FILE, &[7; 9000]), Some(StoreError::Damaged { .. })));
        assert!(matches!(attempt("no key", KEY_FILE, b""), Some(StoreError::Damaged { .. })));
        let mut other = std::fs::read(good.join(KEY_FILE)).unwrap();
        *other.last_mut().unwrap() ^= 1;
        assert!(matches!(attempt("another key", KEY_FILE, &other), Some(StoreError::Damaged { .. })));
        for at in (0..store.len()).step_by(store.len() / 60 + 1) {
            let mut flipped = store.clone();
            flipped[at] ^= 0x55;
            // A flip in an unused octet is harmless; any other is an error, never a wrong state.
            attempt("flipped", STORE_FILE, &flipped);
        }
        copy(&good, &bad);
        testing::set_format(&bad, u64::MAX);
        let newer = Store::open(&bad, None).err().unwrap();
        assert!(matches!(newer, StoreError::Newer { found: u64::MAX, .. }), "{newer}");
        testing::set_format(&bad, 1);
        let older = Store::open(&bad, None).err().unwrap();
        assert!(matches!(older, StoreError::Older { found: 1, .. }) && !older.to_string().contains('\n'), "{older}");
    });
}

const CHILD: &str = "FORMIC_TEST_STORE_DIRECTORY";

/// Not a test: the process that `killed_at_any_moment` kills. It writes and rotates as fast as it can, and says what
/// is durable.
#[test]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    smol::block_on(async {
        let manager = Manager::open(Path::new(&path)).await.unwrap();
        loop {
            let (next, previous) = manager.with_state(|state| {
                let phase = |phase| state.ring.phase(phase).map(|held| held.epoch);
                (phase(EpochPhase::Next), phase(EpochPhase::Previous))
            });
            let step = match (previous, next) {
                (Some(epoch), _) => Command::Retire { epoch },
                (None, Some(epoch)) => Command::Activate { epoch, late: true },
                (None, None) => Command::DrawNext { master: crate::types::Key32::new(random()) },
            };
            // The planner may have been faster.
            let _ = manager.propose(step).await;
            println!("durable {}", manager.with_state(|state| state.index));
        }
    });
}

#[test]
fn killed_at_any_moment_it_keeps_what_it_promised() {
    smol::block_on(async {
        let scratch = Scratch::new();
        filled(scratch.path()).await;
        let mut promised = 0;
        for round in 0..12u64 {
            let mut child = Process::new(std::env::current_exe().unwrap())
                .args(["--exact", "manager::tests::store::child_that_is_killed", "--nocapture", "--test-threads=1"])
                .env(CHILD, scratch.path())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut seen = 0;
            while seen < 3 + round * 2 {
                let line = lines.next().expect("the child ended by itself").unwrap();
                if let Some(index) = line.strip_prefix("durable ") {
                    promised = index.parse().unwrap();
                    seen += 1;
                }
            }
            smol::Timer::after(Duration::from_micros(round * 700)).await;
            child.kill().unwrap();
            child.wait().unwrap();
            for line in lines.map_while(Result::ok) {
                if let Some(index) = line.strip_prefix("durable ").and_then(|index| index.parse().ok()) {
                    promised = index;
                }
            }
            let (_store, loaded) =
                Store::open(scratch.path(), None).unwrap_or_else(|error| panic!("round {round}: {error}"));
            let index = state_of(&loaded).index;
            assert!(index >= promised, "{index} < {promised}");
        }
    });
}
