//! The managers' log and snapshot on disk, each record sealed under a key of its own:
//! HKDF(at-rest key, 32 random octets). The at-rest key is a file of mode 0600 beside the store.
//!
//! Compaction writes a fresh store file that holds the snapshot alone, sealed under a *new* at-rest key, and puts
//! it in the place of the old one. What the log held before can then never be read again: its file is gone, and a
//! copy of it does not open, since its key is gone too. The order of the steps makes `kill -9` harmless at any moment:
//!
//! 1. the key file holds the old and the new key,
//! 2. the fresh file is complete and durable under another name,
//! 3. it is renamed over the old one,
//! 4. the key file holds the new key alone.
//!
//! [`Store::open`] takes the key that opens the snapshot it finds, and throws away the other one.
//!
//! The lock file is held as long as the store is open: a second process is refused.

use crate::cluster::{Effect, Entry, State};
use crate::crypto;
use crate::tls::write_private;
use crate::types::{Key32, NodeId};
use nix::fcntl::{Flock, FlockArg};
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The version of the stored form.
const FORMAT: u64 = 1;
/// Bytes of memory for the pages of the store: it is read once, at start.
const CACHE_BYTES: usize = 4 << 20;

pub(super) const STORE_FILE: &str = "store.redb";
const FRESH_FILE: &str = "store.redb.new";
pub(super) const KEY_FILE: &str = "at-rest.key";
const LOCK_FILE: &str = "lock";
const KEY_MAGIC: &[u8] = b"formic at-rest 1";
const RECORD_LABEL: &[u8] = b"formic at-rest record v1";

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
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

/// An open store.
pub(super) struct Store {
    directory: PathBuf,
    database: Database,
    key: Key32,
    /// Log records since the snapshot.
    entries: u64,
    node: NodeId,
    _lock: Flock<File>,
}

/// What a store held.
pub(super) struct Loaded {
    /// The state after the last durable entry.
    pub(super) state: State,
    /// A master was retired, and the compaction that must follow has not happened.
    pub(super) compact: bool,
    /// The node this manager runs on.
    pub(super) node: NodeId,
}

impl Store {
    /// Whether there is a store.
    pub(super) fn exists(directory: &Path) -> bool {
        directory.join(STORE_FILE).exists()
    }

    /// Makes a store that holds `state`. It exists completely or, after a crash, not at all.
    pub(super) fn create(directory: &Path, node: NodeId, state: &State) -> Result<Store, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| file_error(directory, error))?;
        let lock = lock(directory)?;
        if Store::exists(directory) {
            return Err(StoreError::Exists(directory.to_owned()));
        }
        let key = Key32::new(super::random());
        write_keys(directory, &[&key])?;
        let database = write_fresh(directory, &key, node, state)?;
        put_in_place(directory)?;
        Ok(Store { directory: directory.to_owned(), database, key, entries: 0, node, _lock: lock })
    }

    /// Opens a store and replays its log.
    pub(super) fn open(directory: &Path) -> Result<(Store, Loaded), StoreError> {
        let path = directory.join(STORE_FILE);
        if !path.exists() {
            return Err(StoreError::Missing(directory.to_owned()));
        }
        let lock = lock(directory)?;
        remove_if_there(&directory.join(FRESH_FILE))?;
        let keys = read_keys(directory)?;
        let database = open_database(&path)?;
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
        check_format(&database, &path)?;
        let unfinished = keys.len() > 1;
        let (key, node, mut state) = read_snapshot(&database, keys).map_err(damaged)?;
        if unfinished {
            write_keys(directory, &[&key])?;
        }
        let (entries, compact) = replay(&database, &key, &mut state).map_err(damaged)?;
        let store = Store { directory: directory.to_owned(), database, key, entries, node, _lock: lock };
        Ok((store, Loaded { state, compact, node }))
    }

    /// Log records since the snapshot.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Appends encoded entries from log index `first` on. Durable when this returns.
    pub(super) fn append(&mut self, first: u64, entries: &[Zeroizing<Vec<u8>>]) -> Result<(), StoreError> {
        let path = self.directory.join(STORE_FILE);
        let failed = |error: redb::Error| StoreError::File { path: path.clone(), reason: error.to_string() };
        let transaction = self.database.begin_write().map_err(|error| failed(error.into()))?;
        {
            let mut log = transaction.open_table(LOG).map_err(|error| failed(error.into()))?;
            for (index, entry) in (first..).zip(entries) {
                let sealed = seal(&self.key, b'L', index, entry);
                log.insert(index, sealed.as_slice()).map_err(|error| failed(error.into()))?;
            }
        }
        transaction.commit().map_err(|error| failed(error.into()))?;
        self.entries += entries.len() as u64;
        Ok(())
    }

    /// Replaces log and snapshot by a snapshot of `state`, and the at-rest key by a new one.
    pub(super) fn compact(&mut self, state: &State) -> Result<(), StoreError> {
        let key = Key32::new(super::random());
        write_keys(&self.directory, &[&self.key, &key])?;
        self.database = write_fresh(&self.directory, &key, self.node, state)?;
        put_in_place(&self.directory)?;
        write_keys(&self.directory, &[&key])?;
        self.key = key;
        self.entries = 0;
        Ok(())
    }
}

fn file_error(path: &Path, error: std::io::Error) -> StoreError {
    StoreError::File { path: path.to_owned(), reason: error.to_string() }
}

fn lock(directory: &Path) -> Result<Flock<File>, StoreError> {
    let path = directory.join(LOCK_FILE);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|error| file_error(&path, error))?;
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
        Some(found) => Err(StoreError::Newer { path: path.to_owned(), found }),
        None => Err(StoreError::Damaged { path: path.to_owned(), reason: "it names no format".to_owned() }),
    }
}

/// The snapshot, and the key that opens it.
fn read_snapshot(database: &Database, keys: Vec<Key32>) -> Result<(Key32, NodeId, State), String> {
    let transaction = database.begin_read().map_err(|error| error.to_string())?;
    let table = transaction.open_table(SNAPSHOT).map_err(|error| error.to_string())?;
    let record = table.get(0).map_err(|error| error.to_string())?.ok_or("it has no snapshot")?;
    for key in keys {
        let Ok(plain) = open(&key, b'S', 0, record.value()) else { continue };
        let (node, state) = plain.split_first_chunk::<17>().ok_or("its snapshot is too short")?;
        let node = crate::types::Id::from_bytes(*node).map(NodeId).map_err(|error| error.to_string())?;
        return Ok((key, node, State::from_bytes(state).map_err(|error| error.to_string())?));
    }
    Err(format!("{KEY_FILE} does not open it"))
}

/// Applies the log; gives its length and whether a compaction is due.
fn replay(database: &Database, key: &Key32, state: &mut State) -> Result<(u64, bool), String> {
    let transaction = database.begin_read().map_err(|error| error.to_string())?;
    let log = transaction.open_table(LOG).map_err(|error| error.to_string())?;
    let (mut entries, mut compact) = (0, false);
    for record in log.iter().map_err(|error| error.to_string())? {
        let (index, sealed) = record.map_err(|error| error.to_string())?;
        let index = index.value();
        if index != state.index + 1 {
            return Err(format!("entry {} is missing", state.index + 1));
        }
        let plain = open(key, b'L', index, sealed.value()).map_err(|_| format!("entry {index} does not open"))?;
        let entry: Entry = postcard::from_bytes(&plain).map_err(|error| format!("entry {index}: {error}"))?;
        let (_, effects) = state.apply(&entry);
        compact |= effects.contains(&Effect::Compact);
        entries += 1;
    }
    Ok((entries, compact))
}

/// A complete and durable store file under another name.
fn write_fresh(directory: &Path, key: &Key32, node: NodeId, state: &State) -> Result<Database, StoreError> {
    let path = directory.join(FRESH_FILE);
    remove_if_there(&path)?;
    let failed = |reason: String| StoreError::File { path: path.clone(), reason };
    let bytes = state.to_bytes().map_err(|error| failed(error.to_string()))?;
    let plain = Zeroizing::new([node.as_bytes().as_slice(), &bytes].concat());
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let file = file.map_err(|error| file_error(&path, error))?;
    let fill = || -> Result<Database, redb::Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(FileBackend::new(file)?)?;
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert("format", FORMAT)?;
        transaction.open_table(LOG)?;
        transaction.open_table(SNAPSHOT)?.insert(0, seal(key, b'S', 0, &plain).as_slice())?;
        transaction.commit()?;
        Ok(database)
    };
    fill().map_err(|error| failed(error.to_string()))
}

fn put_in_place(directory: &Path) -> Result<(), StoreError> {
    let path = directory.join(STORE_FILE);
    let renamed = std::fs::rename(directory.join(FRESH_FILE), &path);
    renamed.and_then(|()| File::open(directory)?.sync_all()).map_err(|error| file_error(&path, error))
}

/// Replaces the key file. The old file's octets are overwritten as far as the file system lets us.
fn write_keys(directory: &Path, keys: &[&Key32]) -> Result<(), StoreError> {
    let path = directory.join(KEY_FILE);
    let mut bytes = Zeroizing::new(KEY_MAGIC.to_vec());
    bytes.reserve_exact(keys.len() * 32);
    keys.iter().for_each(|key| bytes.extend_from_slice(key.expose()));
    let old = OpenOptions::new().write(true).open(&path).ok();
    write_private(&path, &bytes).map_err(|error| file_error(&path, error))?;
    if let Some(mut old) = old {
        let len = old.metadata().map_or(0, |metadata| metadata.len()).min(4096);
        let wiped = old.write_all(&vec![0; len as usize]).and_then(|()| old.sync_all());
        wiped.map_err(|error| file_error(&path, error))?;
    }
    Ok(())
}

fn read_keys(directory: &Path) -> Result<Vec<Key32>, StoreError> {
    let path = directory.join(KEY_FILE);
    let mut bytes = Zeroizing::new(Vec::with_capacity(256));
    let file = File::open(&path).map_err(|error| file_error(&path, error))?;
    file.take(200).read_to_end(&mut bytes).map_err(|error| file_error(&path, error))?;
    let (keys, rest) = bytes.strip_prefix(KEY_MAGIC).unwrap_or_default().as_chunks::<32>();
    if keys.is_empty() || keys.len() > 2 || !rest.is_empty() {
        return Err(StoreError::Damaged { path, reason: "it is not an at-rest key".to_owned() });
    }
    Ok(keys.iter().map(|key| Key32::new(*key)).collect())
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

    /// The key in a key file that holds one.
    pub(in super::super) fn bare_key(file: &[u8]) -> Vec<u8> {
        file.strip_prefix(KEY_MAGIC).unwrap().to_vec()
    }

    /// All records in a copy of a store file that the present key file opens: the 32 random octets, and the content.
    pub(in super::super) fn plain_records(directory: &Path, store: &[u8]) -> Vec<([u8; 32], Vec<u8>)> {
        let copy = directory.join("copy");
        std::fs::write(&copy, store).unwrap();
        let database = open_database(&copy).unwrap();
        let mut found = Vec::new();
        for key in read_keys(directory).unwrap() {
            let transaction = database.begin_read().unwrap();
            for (table, kind) in [(LOG, b'L'), (SNAPSHOT, b'S')] {
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
