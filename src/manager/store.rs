//! What this manager must not forget, on disk: its term and vote, the log, the snapshot the log goes on from. Each
//! record is sealed under a key of its own: HKDF(at-rest key, 32 random octets). The at-rest key is in a file of mode
//! 0600 beside the store, the key file (see [`super::lock`]).
//!
//! [`Store::save`] keeps a [`Save`] of the consensus whole or not at all. One that brings a snapshot (this manager's
//! own, or the leader's) is written to a fresh store file that holds the snapshot and what of the log follows it,
//! sealed under a *new* at-rest key, and is put in the place of the old one. What the log held before can then never
//! be read again: its file is gone, and a copy of it does not open, since its key is gone too. The order of the steps
//! makes `kill -9` harmless at any moment:
//!
//! 1. the key file holds the old and the new key,
//! 2. the fresh file is complete and durable under another name,
//! 3. it is renamed over the old one,
//! 4. the key file holds the new key alone.
//!
//! [`Store::open`] takes the key that opens the snapshot it finds, and throws away the other one. A manager that starts
//! replaces the store by the same steps at once, since what it has read may be in the page cache alone.
//!
//! After a failed write nobody knows what of it is on the disk, nor what of the page cache will ever get there: the
//! store gives the file up, and takes nothing but a save that brings a snapshot, which is written to a fresh file by
//! the same steps. The new key of a replacement that failed half-way is kept until one succeeds, since it may be the
//! one that the file in place is sealed under.
//!
//! The lock file is held as long as the store is open: a second process is refused.

use super::disk;
use super::lock::{KeyFile, NodeSeal};
use crate::cluster::Lock;
use crate::crypto;
use crate::raft::{Body, Entry, HardState, Member, Membership, Payload, Position, Save, Snapshot};
use crate::sys::open_lock_file;
use crate::types::{Key32, NodeId, UnlockKey};
use nix::fcntl::{Flock, FlockArg};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The version of the stored form.
const FORMAT: u64 = 4;
/// Bytes of memory for the pages of the store: it is read once, at start.
const CACHE_BYTES: usize = 4 << 20;

pub(super) const STORE_FILE: &str = "store.redb";
const FRESH_FILE: &str = "store.redb.new";
pub(super) const KEY_FILE: &str = "at-rest.key";
const LOCK_FILE: &str = "lock";
const RECORD_LABEL: &[u8] = b"formic at-rest record v1";

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const HARD: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("hard");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");

/// Why the store cannot be used. One line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file system refuses.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process has it open.
    #[error("{0} is in use by another process: stop the other formic daemon, or use another --state-dir")]
    Busy(PathBuf),
    /// There is none.
    #[error("there is no manager state in {0}")]
    Missing(PathBuf),
    /// There is one already.
    #[error("there is a manager state in {0} already: leave the swarm first")]
    Exists(PathBuf),
    /// A newer Formic wrote it.
    #[error("{path} has format {found}, this Formic reads format {FORMAT}: run the newer version that wrote it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// An older Formic wrote it.
    #[error(
        "{path} has format {found}, this Formic reads format {FORMAT}: run the version that wrote it, or remove the state directory and make or join a swarm again"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// Its key file is locked.
    #[error("the manager's state is locked: it needs the unlock key")]
    Locked,
    /// Its key file is locked with another key. The words are Docker's.
    #[error("swarm could not be unlocked: invalid key provided")]
    WrongUnlockKey,
    /// The node's own key cannot be written.
    #[error("{0}")]
    Node(String),
    /// It cannot be read.
    #[error(
        "{path} is damaged ({reason}): restore {path} and {KEY_FILE} from one backup, or remove the state directory and make or join a swarm again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Owner {
    /// The node this manager runs on.
    pub(super) node: NodeId,
    /// Its seat among the managers.
    pub(super) member: Member,
}

/// An open store.
pub(super) struct Store {
    directory: PathBuf,
    /// Given up after a failed write, until it is replaced.
    database: Option<Database>,
    key: Key32,
    key_file: KeyFile,
    /// Of a replacement that failed: the file in place may be sealed under it already.
    next_key: Option<Key32>,
    owner: Owner,
    _lock: Flock<File>,
}

/// What a store held.
pub(super) struct Loaded {
    pub(super) owner: Owner,
    pub(super) hard: HardState,
    pub(super) snapshot: Snapshot,
    /// What of the log follows the snapshot.
    pub(super) entries: Vec<Entry>,
}

/// A snapshot as it is stored, without its data.
#[derive(Serialize, Deserialize)]
struct Head {
    owner: Owner,
    position: Position,
    membership: Membership,
}

impl Store {
    /// Whether there is a store.
    pub(super) fn exists(directory: &Path) -> bool {
        directory.join(STORE_FILE).exists()
    }

    /// Makes a store that holds a snapshot. It exists completely or, after a crash, not at all.
    pub(super) fn create(
        directory: &Path,
        owner: Owner,
        snapshot: &Snapshot,
        lock: &Lock,
    ) -> Result<Store, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| file_error(directory, error))?;
        let exclusive = exclusive(directory)?;
        if Store::exists(directory) {
            return Err(StoreError::Exists(directory.to_owned()));
        }
        let key = Key32::new(super::random());
        let key_file = KeyFile::create(directory, &key, lock)?;
        let hard = HardState { term: snapshot.position.term, vote: None };
        let database = write_fresh(directory, &key, owner, (snapshot, hard, &[]))?;
        put_in_place(directory)?;
        Ok(Store::of((directory, exclusive), database, (key, key_file), owner))
    }

    /// Opens a store and reads it, with the unlock key if it is locked.
    pub(super) fn open(directory: &Path, unlock: Option<&UnlockKey>) -> Result<(Store, Loaded), StoreError> {
        let path = directory.join(STORE_FILE);
        if !path.exists() {
            return Err(StoreError::Missing(directory.to_owned()));
        }
        let exclusive = exclusive(directory)?;
        let (key_file, keys) = KeyFile::read(directory, unlock)?;
        remove_if_there(&directory.join(FRESH_FILE))?;
        let database = open_database(&path)?;
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        check_format(&database, &path)?;
        let unfinished = keys.len() > 1;
        let (key, owner, snapshot) = read_snapshot(&database, keys).map_err(damaged)?;
        if unfinished {
            key_file.write(&[&key])?;
        }
        let hard = read_hard(&database, &key).map_err(damaged)?;
        let entries = read_log(&database, &key, snapshot.position).map_err(damaged)?;
        let store = Store::of((directory, exclusive), database, (key, key_file), owner);
        Ok((store, Loaded { owner, hard, snapshot, entries }))
    }

    fn of(
        (directory, lock): (&Path, Flock<File>),
        database: Database,
        (key, key_file): (Key32, KeyFile),
        owner: Owner,
    ) -> Store {
        let (directory, database) = (directory.to_owned(), Some(database));
        Store { directory, database, key, key_file, next_key: None, owner, _lock: lock }
    }

    /// From the next snapshot on it is in this seat.
    pub(super) fn set_owner(&mut self, owner: Owner) {
        self.owner = owner;
    }

    /// Locks the key file as `lock` says, unless it has followed a later word already. Tells whether anything changed.
    pub(super) fn follow_lock(&mut self, lock: &Lock) -> Result<bool, StoreError> {
        self.key_file.follow(lock, &keys(&self.key, &self.next_key))
    }

    /// How the node is to keep its private key once [`Store::follow_lock`] has changed something; `None` if it will not.
    pub(super) fn next_seal(&self, lock: &Lock) -> Option<NodeSeal> {
        self.key_file.next_seal(lock)
    }

    /// How the node is to keep its private key.
    pub(super) fn node_seal(&self) -> NodeSeal {
        self.key_file.node_seal()
    }

    /// Keeps what the consensus wants kept. Durable when this returns. After an error the store takes only saves that
    /// bring a snapshot, until one succeeds.
    pub(super) fn save(&mut self, save: &Save) -> Result<(), StoreError> {
        let saved = match &save.snapshot {
            Some(snapshot) => self.replace(snapshot, save),
            None => self
                .append(save)
                .map_err(|error| StoreError::File { path: self.directory.join(STORE_FILE), reason: explain(&error) }),
        };
        if saved.is_err() {
            self.database = None;
        }
        saved
    }

    fn append(&mut self, save: &Save) -> Result<(), redb::Error> {
        let database = self.database.as_ref().ok_or(redb::Error::PreviousIo)?;
        let transaction = database.begin_write()?;
        write_hard(&transaction, &self.key, save.hard)?;
        {
            let mut log = transaction.open_table(LOG)?;
            log.retain_in(save.after.saturating_add(1).., |_, _| false)?;
        }
        write_log(&transaction, &self.key, &save.entries)?;
        transaction.commit()?;
        Ok(())
    }

    /// A new store in the place of the old one, under a new at-rest key.
    fn replace(&mut self, snapshot: &Snapshot, save: &Save) -> Result<(), StoreError> {
        let key = self.next_key.get_or_insert_with(|| Key32::new(super::random())).duplicate();
        self.key_file.write(&keys(&self.key, &self.next_key))?;
        let database = write_fresh(&self.directory, &key, self.owner, (snapshot, save.hard, &save.entries))?;
        put_in_place(&self.directory)?;
        self.key_file.write(&[&key])?;
        (self.database, self.key, self.next_key) = (Some(database), key, None);
        Ok(())
    }
}

/// What the file in place may be sealed under.
fn keys<'a>(key: &'a Key32, next: &'a Option<Key32>) -> Vec<&'a Key32> {
    std::iter::once(key).chain(next).collect()
}

pub(super) fn file_error(path: &Path, error: std::io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), reason: error.to_string() }
}

/// What the file system said, without what the database puts around it.
fn explain(error: &redb::Error) -> String {
    match error {
        redb::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

fn exclusive(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join(LOCK_FILE);
    let file = open_lock_file(&path).map_err(|error| file_error(&path, error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => StoreError::Busy(directory.to_owned()),
        other => file_error(&path, other.into()),
    })
}

fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file_error(path, error)),
        _ => Ok(()),
    }
}

fn open_database(path: &Path) -> Result<Database, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        // Without it a damaged file may panic.
        .set_check_integrity_on_open(true)
        .open(path)
        .map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Busy(path.to_owned()),
            redb::DatabaseError::Storage(redb::StorageError::Io(error))
                if !matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof) =>
            {
                file_error(path, error)
            }
            other => damaged(other.to_string()),
        })
}

fn check_format(database: &Database, path: &Path) -> Result<(), StoreError> {
    let damaged = |error: redb::Error| StoreError::Damaged { path: path.to_owned(), reason: error.to_string() };
    let transaction = database.begin_read().map_err(|error| damaged(error.into()))?;
    let meta = transaction.open_table(META).map_err(|error| damaged(error.into()))?;
    match meta.get("format").map_err(|error| damaged(error.into()))?.map(|value| value.value()) {
        Some(FORMAT) => Ok(()),
        Some(found) if found < FORMAT => Err(StoreError::Older { path: path.to_owned(), found }),
        Some(found) => Err(StoreError::Newer { path: path.to_owned(), found }),
        None => Err(StoreError::Damaged { path: path.to_owned(), reason: "it names no format".to_owned() }),
    }
}

/// The snapshot, and the key that opens it.
fn read_snapshot(database: &Database, keys: Vec<Key32>) -> Result<(Key32, Owner, Snapshot), String> {
    let transaction = database.begin_read().map_err(|error| error.to_string())?;
    let table = transaction.open_table(SNAPSHOT).map_err(|error| error.to_string())?;
    let record = table.get(0).map_err(|error| error.to_string())?.ok_or("it has no snapshot")?;
    for key in keys {
        let Ok(plain) = open(&key, b'S', 0, record.value()) else { continue };
        let (head, data) = postcard::take_from_bytes::<Head>(&plain).map_err(|error| error.to_string())?;
        let Head { owner, position, membership } = head;
        let data = Payload::new(Zeroizing::new(data.to_vec()));
        return Ok((key, owner, Snapshot { position, membership, data }));
    }
    Err(format!("{KEY_FILE} does not open it"))
}

fn read_hard(database: &Database, key: &Key32) -> Result<HardState, String> {
    let transaction = database.begin_read().map_err(|error| error.to_string())?;
    let table = transaction.open_table(HARD).map_err(|error| error.to_string())?;
    let record = table.get(0).map_err(|error| error.to_string())?.ok_or("it has no term")?;
    let plain = open(key, b'H', 0, record.value()).map_err(|_| "its term does not open")?;
    postcard::from_bytes(&plain).map_err(|error| error.to_string())
}

/// The entries after the snapshot, without a gap.
fn read_log(database: &Database, key: &Key32, snapshot: Position) -> Result<Vec<Entry>, String> {
    let transaction = database.begin_read().map_err(|error| error.to_string())?;
    let log = transaction.open_table(LOG).map_err(|error| error.to_string())?;
    let (mut entries, mut last) = (Vec::new(), snapshot);
    for record in log.iter().map_err(|error| error.to_string())? {
        let (index, sealed) = record.map_err(|error| error.to_string())?;
        let index = index.value();
        if index != last.index + 1 {
            return Err(format!("entry {} is missing", last.index + 1));
        }
        let plain = open(key, b'L', index, sealed.value()).map_err(|_| format!("entry {index} does not open"))?;
        let (term, body): (u64, Body) =
            postcard::from_bytes(&plain).map_err(|error| format!("entry {index}: {error}"))?;
        last = Position { term, index };
        entries.push(Entry { position: last, body });
    }
    Ok(entries)
}

fn write_hard(transaction: &WriteTransaction, key: &Key32, hard: HardState) -> Result<(), redb::Error> {
    let plain = encode(&hard).map_err(redb::Error::Io)?;
    transaction.open_table(HARD)?.insert(0, seal(key, b'H', 0, &plain).as_slice())?;
    Ok(())
}

fn write_log(transaction: &WriteTransaction, key: &Key32, entries: &[Entry]) -> Result<(), redb::Error> {
    let mut log = transaction.open_table(LOG)?;
    for Entry { position, body } in entries {
        let plain = encode(&(position.term, body)).map_err(redb::Error::Io)?;
        log.insert(position.index, seal(key, b'L', position.index, &plain).as_slice())?;
    }
    Ok(())
}

/// Into a buffer of the right size from the start: growing would leave unwiped copies of keys behind.
pub(super) fn encode<T: Serialize>(value: &T) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let size = postcard::experimental::serialized_size(value).map_err(std::io::Error::other)?;
    let mut bytes = Zeroizing::new(vec![0; size]);
    postcard::to_slice(value, &mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

/// A complete and durable store file under another name; nothing of it is left after an error.
fn write_fresh(
    directory: &Path,
    key: &Key32,
    owner: Owner,
    (snapshot, hard, entries): (&Snapshot, HardState, &[Entry]),
) -> Result<Database, StoreError> {
    let path = directory.join(FRESH_FILE);
    remove_if_there(&path)?;
    let head = Head { owner, position: snapshot.position, membership: snapshot.membership.clone() };
    let head = encode(&head).map_err(|error| file_error(&path, error))?;
    let plain = Zeroizing::new([head.as_slice(), snapshot.data.bytes()].concat());
    let fill = || -> Result<Database, redb::Error> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let backend = disk::backend(directory, file)?;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?;
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert("format", FORMAT)?;
        transaction.open_table(SNAPSHOT)?.insert(0, seal(key, b'S', 0, &plain).as_slice())?;
        write_hard(&transaction, key, hard)?;
        write_log(&transaction, key, entries)?;
        transaction.commit()?;
        Ok(database)
    };
    fill().map_err(|error| {
        // On a full disk others need the room meanwhile; what cannot be removed now is removed by the next attempt.
        let _ = std::fs::remove_file(&path);
        StoreError::File { path: path.clone(), reason: explain(&error) }
    })
}

fn put_in_place(directory: &Path) -> Result<(), StoreError> {
    let path = directory.join(STORE_FILE);
    let put = disk::step(directory)
        .and_then(|()| std::fs::rename(directory.join(FRESH_FILE), &path))
        .and_then(|()| disk::step(directory))
        .and_then(|()| File::open(directory)?.sync_all());
    put.map_err(|error| file_error(&path, error))
}

/// The key of one record. It is used once, so the nonce may stand still.
fn record_key(key: &Key32, random: &[u8; 32]) -> Key32 {
    crypto::derive_key(&[key.expose()], &[RECORD_LABEL, random])
}

fn record_aad(kind: u8, index: u64) -> [u8; 9] {
    let mut aad = [kind; 9];
    aad[1..].copy_from_slice(&index.to_be_bytes());
    aad
}

fn seal(key: &Key32, kind: u8, index: u64, plain: &[u8]) -> Vec<u8> {
    let random = super::random::<32>();
    let sealed = crypto::seal(&record_key(key, &random), &[0; 12], &record_aad(kind, index), plain);
    [random.as_slice(), &sealed].concat()
}

fn open(key: &Key32, kind: u8, index: u64, record: &[u8]) -> Result<Zeroizing<Vec<u8>>, crypto::Unauthentic> {
    let (random, sealed) = record.split_first_chunk::<32>().ok_or(crypto::Unauthentic)?;
    crypto::open(&record_key(key, random), &[0; 12], &record_aad(kind, index), sealed)
}

/// What the tests of the store look at.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// The key file in the middle of a compaction, from `old` to `new`, neither of them locked.
    pub(in super::super) fn both_keys(old: &Path, new: &Path) -> Vec<u8> {
        let (file, old_keys) = KeyFile::read(old, None).unwrap();
        let (_, new_keys) = KeyFile::read(new, None).unwrap();
        let path = old.join(KEY_FILE);
        let before = std::fs::read(&path).unwrap();
        file.write(&[&old_keys[0], &new_keys[0]]).unwrap();
        let both = std::fs::read(&path).unwrap();
        std::fs::write(&path, before).unwrap();
        both
    }

    /// All records in a copy of a store file that the present key file opens: the 32 random octets, and the content.
    pub(in super::super) fn plain_records(directory: &Path, store: &[u8]) -> Vec<([u8; 32], Vec<u8>)> {
        let copy = directory.join("copy");
        std::fs::write(&copy, store).unwrap();
        let database = open_database(&copy).unwrap();
        let mut found = Vec::new();
        for key in KeyFile::read(directory, None).unwrap().1 {
            let transaction = database.begin_read().unwrap();
            for (table, kind) in [(HARD, b'H'), (LOG, b'L'), (SNAPSHOT, b'S')] {
                for record in transaction.open_table(table).unwrap().iter().unwrap() {
                    let (index, sealed) = record.unwrap();
                    let random = *sealed.value().first_chunk().unwrap();
                    let plain = super::open(&key, kind, index.value(), sealed.value()).unwrap();
                    found.push((random, plain.to_vec()));
                }
            }
        }
        std::fs::remove_file(copy).unwrap();
        found
    }

    /// Makes the store one of another format.
    pub(in super::super) fn set_format(directory: &Path, format: u64) {
        let database = open_database(&directory.join(STORE_FILE)).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", format).unwrap();
        transaction.commit().unwrap();
    }
}
