//! The key file of a manager, and its lock. It holds the at-rest key (two of them while a store is replaced) and the
//! *node's seal*, under which the node keeps its own private key. Without autolock the file holds them as they are;
//! with it they are sealed under HKDF(unlock key, 32 random octets), and the unlock key is not on this disk.
//!
//! The file is replaced whole, and durably, before the one it replaces is overwritten: whatever the moment of a crash,
//! it opens with the former unlock key or with the new one. It says which change of the lock it follows, and a manager
//! that reads its log again does not go back to an earlier one.

use super::disk;
use super::store::{KEY_FILE, StoreError, file_error};
use crate::cluster::Lock;
use crate::crypto;
use crate::tls::replace_private;
use crate::types::{Key32, UnlockKey};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use zeroize::Zeroizing;

const MAGIC: &[u8; 16] = b"formic at-rest 2";
/// Of a key file beside a store of [`FORMER_STORE_FORMAT`] or before.
const FORMER_MAGIC: &[u8; 16] = b"formic at-rest 1";
const FORMER_STORE_FORMAT: u64 = 2;
const LABEL: &[u8] = b"formic unlock v1";
/// Bytes of a key file at most: one with two keys is below 250.
const MAX_FILE_BYTES: u64 = 512;
/// Follows the magic: SHA-256 of the rest, which anybody can read.
const OPEN: u8 = 0;
/// Follows the magic: 32 random octets, and the rest sealed.
const LOCKED: u8 = 1;

/// The keys in the file.
#[derive(Serialize, Deserialize)]
struct Content {
    at_rest: Vec<Zeroizing<[u8; 32]>>,
    seal: Zeroizing<[u8; 32]>,
    /// See [`Lock::since`].
    since: u64,
}

/// A key file, and what it is locked with.
pub(super) struct KeyFile {
    path: PathBuf,
    lock: Lock,
    seal: Key32,
}

impl KeyFile {
    /// A fresh file with one at-rest key.
    pub(super) fn create(directory: &Path, at_rest: &Key32, lock: &Lock) -> Result<KeyFile, StoreError> {
        let file = KeyFile { path: directory.join(KEY_FILE), lock: lock.clone(), seal: Key32::new(super::random()) };
        file.write(&[at_rest])?;
        Ok(file)
    }

    /// The file with its at-rest keys, one or two. `unlock` is not looked at if it is not locked.
    pub(super) fn read(directory: &Path, unlock: Option<&UnlockKey>) -> Result<(KeyFile, Vec<Key32>), StoreError> {
        let path = directory.join(KEY_FILE);
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize));
        let file = File::open(&path).map_err(|error| file_error(&path, error))?;
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| file_error(&path, error))?;
        let damaged = || StoreError::Damaged { path: path.clone(), reason: "it is not an at-rest key".to_owned() };
        if bytes.starts_with(FORMER_MAGIC) {
            return Err(StoreError::Older { path, found: FORMER_STORE_FORMAT });
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (content, key) = match rest.split_first().ok_or_else(damaged)? {
            (&OPEN, summed) => {
                let (sum, plain) = summed.split_first_chunk::<32>().ok_or_else(damaged)?;
                if crypto::sha256(&[plain]) != *sum {
                    return Err(damaged());
                }
                (Zeroizing::new(plain.to_vec()), None)
            }
            (&LOCKED, sealed) => {
                let unlock = unlock.ok_or(StoreError::Locked)?;
                (open(unlock, sealed).map_err(|_| StoreError::WrongUnlockKey)?, Some(unlock.0.clone()))
            }
            _ => return Err(damaged()),
        };
        let Ok((Content { at_rest, seal, since }, [])) = postcard::take_from_bytes(&content) else {
            return Err(damaged());
        };
        if at_rest.is_empty() || at_rest.len() > 2 {
            return Err(damaged());
        }
        let at_rest = at_rest.iter().map(|key| Key32::new(**key)).collect();
        Ok((KeyFile { path, lock: Lock { key, since }, seal: Key32::new(*seal) }, at_rest))
    }

    /// Replaces the file by one with these at-rest keys.
    pub(super) fn write(&self, at_rest: &[&Key32]) -> Result<(), StoreError> {
        let content = Content {
            at_rest: at_rest.iter().map(|key| Zeroizing::new(*key.expose())).collect(),
            seal: Zeroizing::new(*self.seal.expose()),
            since: self.lock.since,
        };
        let failed = |error: std::io::Error| file_error(&self.path, error);
        let content = super::store::encode(&content).map_err(failed)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES as usize));
        bytes.extend_from_slice(MAGIC);
        match &self.lock.key {
            None => {
                bytes.push(OPEN);
                bytes.extend(crypto::sha256(&[&content]));
                bytes.extend_from_slice(&content);
            }
            Some(key) => {
                bytes.push(LOCKED);
                bytes.extend(seal(key, &content));
            }
        }
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        disk::step(directory).and_then(|()| replace_private(&self.path, &bytes)).map_err(failed)
    }

    /// Locks it as `lock` says, unless it has followed a later word already. Tells whether anything changed.
    pub(super) fn follow(&mut self, lock: &Lock, at_rest: &[&Key32]) -> Result<bool, StoreError> {
        if lock.since <= self.lock.since {
            return Ok(false);
        }
        let former = std::mem::replace(&mut self.lock, lock.clone());
        if let Err(error) = self.write(at_rest) {
            self.lock = former;
            return Err(error);
        }
        Ok(true)
    }

    /// How the node is to keep its private key.
    pub(super) fn node_seal(&self) -> NodeSeal {
        self.seal_under(&self.lock)
    }

    /// The same once the file follows `lock`; `None` if that is no later word than the one it follows.
    pub(super) fn next_seal(&self, lock: &Lock) -> Option<NodeSeal> {
        (lock.since > self.lock.since).then(|| self.seal_under(lock))
    }

    fn seal_under(&self, lock: &Lock) -> NodeSeal {
        NodeSeal { key: self.seal.duplicate(), unlock: lock.key.clone().map(UnlockKey) }
    }
}

fn aad() -> [u8; 17] {
    let mut aad = [LOCKED; 17];
    aad[..16].copy_from_slice(MAGIC);
    aad
}

/// Each random is used once, so the nonce may stand still.
fn file_key(unlock: &[u8; 32], random: &[u8; 32]) -> Key32 {
    crypto::derive_key(&[unlock], &[LABEL, random])
}

fn seal(unlock: &[u8; 32], content: &[u8]) -> Vec<u8> {
    let random = super::random::<32>();
    [random.as_slice(), &crypto::seal(&file_key(unlock, &random), &[0; 12], &aad(), content)].concat()
}

fn open(unlock: &UnlockKey, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, crypto::Unauthentic> {
    let (random, sealed) = sealed.split_first_chunk::<32>().ok_or(crypto::Unauthentic)?;
    crypto::open(&file_key(&unlock.0, random), &[0; 12], &aad(), sealed)
}

/// How a manager's node keeps its private key on disk.
pub struct NodeSeal {
    /// What it is sealed under when it is.
    pub key: Key32,
    /// What the key file is locked with.
    unlock: Option<UnlockKey>,
}

impl NodeSeal {
    /// For tests of those who follow it.
    #[cfg(test)]
    pub(crate) fn of(key: Key32, locked: bool) -> NodeSeal {
        NodeSeal { key, unlock: locked.then(|| UnlockKey(Zeroizing::new([1; 32]))) }
    }

    /// The node's key is sealed, since the manager is locked.
    pub fn is_locked(&self) -> bool {
        self.unlock.is_some()
    }
}

/// Carries a change of the seal out; an error says what could not be written.
pub(super) type Follower = Box<dyn Fn(&NodeSeal) -> Result<(), String> + Send>;

/// Tells the node how to keep its private key.
pub(super) struct SealWatch(Mutex<Watch>);

struct Watch {
    seal: NodeSeal,
    follower: Option<Follower>,
    /// The node has not followed the last change yet.
    behind: bool,
}

impl SealWatch {
    pub(super) fn new(seal: NodeSeal) -> SealWatch {
        SealWatch(Mutex::new(Watch { seal, follower: None, behind: false }))
    }

    /// What opens the manager's key file, if that is locked.
    pub(super) fn unlock_key(&self) -> Option<UnlockKey> {
        self.watch().seal.unlock.as_ref().map(|key| UnlockKey(key.0.clone()))
    }

    /// From now on, and at once for how it is.
    pub(super) fn follow(&self, follower: Follower) -> Result<(), String> {
        let mut watch = self.watch();
        follower(&watch.seal)?;
        (watch.follower, watch.behind) = (Some(follower), false);
        Ok(())
    }

    /// Has the node and the key file, which `write` replaces, follow a change, in the order in which the node's key is
    /// never open beside a locked key file, and never sealed beside one that does not have the seal. After an error the
    /// change is to be tried again; if the file was written, by [`SealWatch::catch_up`].
    pub(super) fn change(
        &self,
        seal: NodeSeal,
        write: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut watch = self.watch();
        if seal.is_locked() {
            watch.tell(&seal)?;
        }
        write()?;
        watch.behind = !seal.is_locked();
        watch.seal = seal;
        watch.catch_up()
    }

    /// Returns once the node has followed the change that it could not follow before, if there is one.
    pub(super) fn catch_up(&self) -> Result<(), StoreError> {
        self.watch().catch_up()
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    fn tell(&self, seal: &NodeSeal) -> Result<(), StoreError> {
        self.follower.as_ref().map_or(Ok(()), |follower| follower(seal)).map_err(StoreError::Node)
    }

    fn catch_up(&mut self) -> Result<(), StoreError> {
        if self.behind {
            self.tell(&self.seal)?;
            self.behind = false;
        }
        Ok(())
    }
}
