//! Autolock: what a disk is worth without the unlock key, and that nobody is locked out.

use super::several::{Managers, create_network, eventually, names};
use super::*;
use crate::cluster::{Lock, NewTokens};
use crate::manager::lock::KeyFile;
use crate::manager::store::{KEY_FILE, STORE_FILE, Store};
use crate::manager::{ManagerError, NodeSeal, StoreError};
use crate::types::UnlockKey;
use std::io::{BufRead as _, BufReader};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

fn key(number: u8) -> UnlockKey {
    UnlockKey(Zeroizing::new([number; 32]))
}

/// Turns autolock on with a key, or replaces the key.
async fn set_key(manager: &Manager, key: &UnlockKey) {
    set_autolock(manager, true, Some(key.0.clone())).await;
}

async fn set_autolock(manager: &Manager, autolock: bool, unlock: Option<Zeroizing<[u8; 32]>>) {
    let command = manager.with_state(|state| Command::UpdateCluster {
        version: state.cluster.version,
        spec: ClusterSpec { autolock, ..state.cluster.spec.clone() },
        tokens: NewTokens { unlock, ..NewTokens::default() },
        root: None,
    });
    manager.propose(command).await.unwrap();
}

async fn lock(manager: &Manager, key: &UnlockKey) {
    set_key(manager, key).await;
    manager.propose(Command::UnlockKeySeen { key: key.0.clone() }).await.unwrap();
}

async fn refused(directory: &Path, key: Option<UnlockKey>) -> StoreError {
    match Manager::unlock(directory, key).await.err() {
        Some(ManagerError::Store(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_locked_manager_opens_with_its_key_only() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let path = scratch.path();
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(path, params).await.unwrap();
        let plain = std::fs::read(path.join(KEY_FILE)).unwrap();
        set_key(&manager, &key(1)).await;
        assert!(std::fs::read(path.join(KEY_FILE)).unwrap() == plain, "nobody has seen the key yet");
        manager.propose(Command::UnlockKeySeen { key: key(2).0 }).await.unwrap();
        assert!(manager.unlock_key().is_none(), "a word on another key");
        lock(&manager, &key(1)).await;
        manager.propose(create_network("kept")).await.unwrap();
        manager.stop().await;

        let files = || [KEY_FILE, STORE_FILE].map(|file| std::fs::read(path.join(file)).unwrap());
        let before = files();
        assert_eq!(refused(path, None).await, StoreError::Locked);
        assert_eq!(refused(path, Some(key(2))).await, StoreError::WrongUnlockKey);
        assert!(files() == before, "a wrong key changes nothing");
        let (_, keys) = KeyFile::read(path, Some(&key(1))).unwrap();
        let contains = |at_rest: &[u8]| files().iter().any(|file| file.windows(32).any(|window| window == at_rest));
        assert!(!keys.iter().any(|at_rest| contains(at_rest.expose())), "the at-rest key is readable");

        let manager = Manager::unlock(path, Some(key(1))).await.unwrap();
        assert_eq!(manager.with_state(names), ["kept"]);
        set_autolock(&manager, false, None).await;
        manager.stop().await;
        Manager::open(path).await.unwrap().stop().await;
    });
}

/// What the node finds beside its own key, each time that it is told how to keep it.
#[test]
fn the_nodes_key_is_never_open_beside_a_locked_key_file() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(scratch.path(), params).await.unwrap();
        let (path, told) = (scratch.path().join(KEY_FILE), Arc::<Mutex<Vec<_>>>::default());
        let follower = {
            let told = told.clone();
            move |seal: &NodeSeal| {
                let locked = std::fs::read(&path).unwrap()[16] == 1;
                told.lock().unwrap().push((seal.is_locked(), locked));
                Ok(())
            }
        };
        manager.follow_seal(Box::new(follower)).unwrap();
        lock(&manager, &key(1)).await;
        set_autolock(&manager, false, None).await;
        assert_eq!(*told.lock().unwrap(), [(false, false), (true, false), (false, false)], "(the node, the key file)");
        manager.stop().await;
    });
}

#[test]
fn a_node_that_cannot_seal_its_key_keeps_the_key_file_open() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(scratch.path(), params).await.unwrap();
        let full = Arc::new(AtomicBool::new(true));
        let follower = {
            let full = full.clone();
            move |seal: &NodeSeal| match seal.is_locked() && full.load(Ordering::Relaxed) {
                true => Err("no room".to_owned()),
                false => Ok(()),
            }
        };
        manager.follow_seal(Box::new(follower)).unwrap();
        set_key(&manager, &key(1)).await;
        let told = manager.propose(Command::UnlockKeySeen { key: key(1).0 }).await.unwrap_err();
        assert!(matches!(&told, ManagerError::Interrupted(StoreError::Node(_))), "{told}");
        assert!(manager.unlock_key().is_none(), "what opens its files is what they are locked with");
        assert!(KeyFile::read(scratch.path(), None).is_ok());
        full.store(false, Ordering::Relaxed);
        eventually("it is locked", || manager.unlock_key() == Some(key(1))).await;
        manager.stop().await;
        assert_eq!(refused(scratch.path(), None).await, StoreError::Locked);
    });
}

#[test]
fn a_swarm_is_locked_from_its_beginning_once_the_key_was_seen() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(ClusterSpec { autolock: true, ..quick() });
        let (manager, _) = Manager::create(scratch.path(), params).await.unwrap();
        let key = manager.with_state(|state| UnlockKey(state.unlock_key().unwrap().clone()));
        manager.propose(Command::UnlockKeySeen { key: key.0.clone() }).await.unwrap();
        manager.stop().await;
        assert_eq!(refused(scratch.path(), None).await, StoreError::Locked);
        Manager::unlock(scratch.path(), Some(key)).await.unwrap().stop().await;
    });
}

#[test]
fn a_rotation_reaches_all_managers_and_the_one_that_was_away() {
    smol::block_on(async {
        let mut managers = Managers::new(3).await;
        lock(managers.get(0), &key(1)).await;
        eventually("all are locked", || managers.running().all(|(_, manager)| manager.unlock_key() == Some(key(1))))
            .await;
        managers.stop(2).await;
        lock(managers.get(0), &key(2)).await;
        eventually("both follow", || managers.running().all(|(_, manager)| manager.unlock_key() == Some(key(2)))).await;
        assert_eq!(refused(&managers.seats[2].directory, Some(key(2))).await, StoreError::WrongUnlockKey);
        managers.unlock(2, key(1)).await;
        eventually("it follows", || managers.get(2).unlock_key() == Some(key(2))).await;
        for number in 0..3 {
            managers.stop(number).await;
            let directory = managers.seats[number].directory.clone();
            assert_eq!(refused(&directory, Some(key(1))).await, StoreError::WrongUnlockKey);
            managers.unlock(number, key(2)).await;
        }
        // One that joins is locked from its first moment.
        managers.add().await;
        assert!(managers.get(3).unlock_key() == Some(key(2)));
        managers.stop_all().await;
    });
}

#[test]
fn a_locked_manager_goes_on_alone_and_stays_locked() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(scratch.path(), params).await.unwrap();
        lock(&manager, &key(1)).await;
        manager.stop().await;
        let locked = Manager::force_new_cluster(scratch.path(), None).await.err().unwrap();
        assert!(matches!(locked, ManagerError::Store(StoreError::Locked)), "{locked}");
        let manager = Manager::force_new_cluster(scratch.path(), manager.unlock_key()).await.unwrap();
        manager.stop().await;
        assert_eq!(refused(scratch.path(), None).await, StoreError::Locked);
        Manager::unlock(scratch.path(), Some(key(1))).await.unwrap().stop().await;
    });
}

#[test]
fn the_key_file_of_an_older_version_is_named() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(quick());
        Manager::create(scratch.path(), params).await.unwrap().0.stop().await;
        std::fs::write(scratch.path().join(KEY_FILE), [b"formic at-rest 1".as_slice(), &[0; 80]].concat()).unwrap();
        let error = refused(scratch.path(), None).await;
        assert!(matches!(error, StoreError::Older { found: 2, .. }), "{error}");
    });
}

#[test]
fn a_manager_that_starts_replaces_its_store_under_the_lock_of_its_state() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let [locked, open] = ["locked", "open"].map(|name| scratch.path().join(name));
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(&locked, params).await.unwrap();
        lock(&manager, &key(1)).await;
        manager.stop().await;
        let (store, loaded) = Store::open(&locked, Some(&key(1))).unwrap();
        drop(store);
        // As one is that took the state over and was killed before it locked its files.
        drop(Store::create(&open, loaded.owner, &loaded.snapshot, &Lock::default()).unwrap());
        let at_rest = |key: Option<&UnlockKey>| *KeyFile::read(&open, key).unwrap().1[0].expose();
        let readable = at_rest(None);
        Manager::open(&open).await.unwrap().stop().await;
        assert_eq!(refused(&open, None).await, StoreError::Locked);
        let second = at_rest(Some(&key(1)));
        assert!(second != readable, "the at-rest key was on the disk for everybody to read");
        Manager::unlock(&open, Some(key(1))).await.unwrap().stop().await;
        assert!(at_rest(Some(&key(1))) != second, "what was read may not be on the disk");
    });
}

const CHILD: &str = "FORMIC_TEST_LOCK_DIRECTORY";
const KEY_NUMBER: &str = "FORMIC_TEST_LOCK_KEY";

/// Not a test: the process that `killed_at_any_moment_one_of_two_keys_opens` kills. It replaces the unlock key as fast
/// as it can, and says which one it is about to show, and which one is in use.
#[test]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    smol::block_on(async {
        let mut number: u8 = std::env::var(KEY_NUMBER).unwrap().parse().unwrap();
        let manager = Manager::unlock(Path::new(&path), Some(key(number))).await.unwrap();
        loop {
            number = number.wrapping_add(1);
            set_key(&manager, &key(number)).await;
            println!("shown {number}");
            manager.propose(Command::UnlockKeySeen { key: key(number).0 }).await.unwrap();
            println!("used {number}");
        }
    });
}

#[test]
fn killed_at_any_moment_one_of_two_keys_opens() {
    smol::block_on(async {
        let scratch = Scratch::new();
        let (_, params) = params(quick());
        let (manager, _) = Manager::create(scratch.path(), params).await.unwrap();
        lock(&manager, &key(0)).await;
        manager.stop().await;
        let mut opens = 0u8;
        for round in 0..8u64 {
            let mut child = Process::new(std::env::current_exe().unwrap())
                .args(["--exact", "manager::tests::lock::child_that_is_killed", "--nocapture", "--test-threads=1"])
                .env(CHILD, scratch.path())
                .env(KEY_NUMBER, opens.to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let (mut shown, mut used) = (opens, opens);
            let mut read = |line: String| {
                let number = |word| line.strip_prefix(word).and_then(|number: &str| number.parse().ok());
                shown = number("shown ").unwrap_or(shown);
                used = number("used ").unwrap_or(used);
                number("used ").is_some()
            };
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut seen = 0;
            while seen < 1 + round {
                seen += u64::from(read(lines.next().expect("the child ended by itself").unwrap()));
            }
            smol::Timer::after(Duration::from_micros(round * 1100)).await;
            child.kill().unwrap();
            child.wait().unwrap();
            for line in lines.map_while(Result::ok) {
                read(line);
            }
            let opened = |number: u8| KeyFile::read(scratch.path(), Some(&key(number))).is_ok();
            let either = || [shown, used].into_iter().find(|number| opened(*number)).expect("neither key opens");
            Manager::unlock(scratch.path(), Some(key(either()))).await.unwrap().stop().await;
            // It has read the rest of its log.
            opens = either();
        }
    });
}
