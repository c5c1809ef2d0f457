//! The records a node holds, the tree of hashes that finds differences, and the queue of fresh ones to pass on.
//!
//! A key's hash places its record: 64 nodes by the first 6 bits, 64 below each of them by the next 6. A tree node's
//! hash is the exclusive or of its records' hashes (key and version), so one change costs three updates.

use crate::crypto;
use crate::types::{Epoch, Fork};
use crate::wire::gossip::DIGEST_LEN;
use crate::wire::record::{RecordKey, VerifiedRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Records held at once: 100,000 endpoints with room for tombstones.
pub const RECORDS_MAX: usize = 262_144;
/// Records that wait to be passed on; beyond them the periodic comparison does it.
const FRESH_MAX: usize = 1024;
/// Candidates looked at to fill one datagram.
const FRESH_SCAN: usize = 24;
/// What hearing a record again counts, in transmissions: others pass it on too.
const ECHO: u32 = 2;

struct Entry {
    record: VerifiedRecord,
    hash: u64,
    mark: u64,
    /// How often it was passed on, while it is fresh.
    sends: Option<u32>,
}

pub(super) struct Store {
    records: BTreeMap<RecordKey, Entry>,
    by_hash: BTreeMap<u64, RecordKey>,
    upper: Vec<u64>,
    lower: Vec<u64>,
    fresh: BTreeSet<(u32, u64)>,
}

/// The 64-bit hash that places a key.
pub(super) fn key_hash(key: &RecordKey) -> u64 {
    truncate(crypto::sha256(&[b"formic record key v1", &postcard::to_stdvec(key).unwrap_or_default()]))
}

fn version_mark(hash: u64, record: &VerifiedRecord) -> u64 {
    let version = record.version();
    truncate(crypto::sha256(&[
        b"formic record mark v1",
        &hash.to_be_bytes(),
        &version.fork.0.to_be_bytes(),
        &version.generation.fork.0.to_be_bytes(),
        &version.generation.index.to_be_bytes(),
        &version.epoch.0.to_be_bytes(),
    ]))
}

fn truncate(digest: [u8; 32]) -> u64 {
    digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// The range of hashes below a node of the tree.
pub(super) fn bucket_range(level: u8, bucket: u8, child: usize) -> RangeInclusive<u64> {
    let child = child as u64;
    let (first, shift) = if level == 0 { (child << 58, 58) } else { ((u64::from(bucket) << 58) | (child << 52), 52) };
    first..=first | ((1 << shift) - 1)
}

impl Store {
    pub(super) fn new() -> Store {
        Store {
            records: BTreeMap::new(),
            by_hash: BTreeMap::new(),
            upper: vec![0; DIGEST_LEN],
            lower: vec![0; DIGEST_LEN * DIGEST_LEN],
            fresh: BTreeSet::new(),
        }
    }

    pub(super) fn get(&self, key: &RecordKey) -> Option<&VerifiedRecord> {
        self.records.get(key).map(|entry| &entry.record)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &VerifiedRecord> {
        self.records.values().map(|entry| &entry.record)
    }

    pub(super) fn is_full(&self) -> bool {
        self.records.len() >= RECORDS_MAX
    }

    /// Puts a record in the place of the one of the same key, to be passed on.
    pub(super) fn insert(&mut self, record: VerifiedRecord) {
        let key = record.key();
        self.remove(&key);
        let hash = key_hash(&key);
        let mark = version_mark(hash, &record);
        self.toggle(hash, mark);
        self.by_hash.insert(hash, key);
        let sends = (self.fresh.len() < FRESH_MAX && self.fresh.insert((0, hash))).then_some(0);
        self.records.insert(key, Entry { record, hash, mark, sends });
    }

    pub(super) fn remove(&mut self, key: &RecordKey) {
        if let Some(entry) = self.records.remove(key) {
            self.toggle(entry.hash, entry.mark);
            self.by_hash.remove(&entry.hash);
            if let Some(sends) = entry.sends {
                self.fresh.remove(&(sends, entry.hash));
            }
        }
    }

    pub(super) fn keys_where(&self, wanted: impl Fn(&VerifiedRecord) -> bool) -> Vec<RecordKey> {
        self.records.iter().filter(|(_, entry)| wanted(&entry.record)).map(|(key, _)| *key).collect()
    }

    fn toggle(&mut self, hash: u64, mark: u64) {
        if let Some(upper) = self.upper.get_mut((hash >> 58) as usize) {
            *upper ^= mark;
        }
        if let Some(lower) = self.lower.get_mut((hash >> 52) as usize) {
            *lower ^= mark;
        }
    }

    /// The hash of everything.
    pub(super) fn root(&self) -> [u8; 8] {
        self.upper.iter().fold(0, |all, hash| all ^ hash).to_be_bytes()
    }

    /// The hashes of one level, as [`crate::wire::gossip::Message::Digest`] carries them.
    pub(super) fn digest(&self, level: u8, bucket: u8) -> Vec<[u8; 8]> {
        let skipped = if level == 0 { 0 } else { usize::from(bucket) * DIGEST_LEN };
        let all = if level == 0 { &self.upper } else { &self.lower };
        all.iter().skip(skipped).take(DIGEST_LEN).map(|hash| hash.to_be_bytes()).collect()
    }

    pub(super) fn range(&self, range: RangeInclusive<u64>) -> impl Iterator<Item = (u64, &VerifiedRecord)> {
        self.by_hash.range(range).filter_map(|(hash, key)| Some((*hash, self.get(key)?)))
    }

    pub(super) fn by_hash(&self, hash: u64) -> Option<&VerifiedRecord> {
        self.get(self.by_hash.get(&hash)?)
    }

    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Fresh records that fit into `room` octets, the least passed on first. Each is passed on `limit` times.
    pub(super) fn take_fresh(&mut self, mut room: usize, limit: u32) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        let candidates: Vec<(u32, u64)> = self.fresh.iter().take(FRESH_SCAN).copied().collect();
        for (_, hash) in candidates {
            let Some(record) = self.by_hash(hash) else { continue };
            let encoded = record.signed().encoded().to_vec();
            if let Some(left) = room.checked_sub(encoded.len() + RECORD_OVERHEAD) {
                room = left;
                self.count_sends(hash, 1, limit);
                taken.push(encoded);
            }
        }
        taken
    }

    /// Somebody passed on a record that is known: less reason to do it here.
    pub(super) fn echo(&mut self, key: &RecordKey, limit: u32) {
        if let Some(hash) = self.records.get(key).map(|entry| entry.hash) {
            self.count_sends(hash, ECHO, limit);
        }
    }

    fn count_sends(&mut self, hash: u64, more: u32, limit: u32) {
        let Some(key) = self.by_hash.get(&hash) else { return };
        let Some(entry) = self.records.get_mut(key) else { return };
        let Some(sends) = entry.sends else { return };
        self.fresh.remove(&(sends, hash));
        let sends = sends.saturating_add(more);
        entry.sends = (sends < limit).then_some(sends);
        if entry.sends.is_some() {
            self.fresh.insert((sends, hash));
        }
    }
}

/// Octets that a record takes in a payload beside its own.
pub(super) const RECORD_OVERHEAD: usize = 2;

/// The position of a version in [`crate::wire::gossip::Item`]: generation, then epoch; all are of one fork.
pub(super) fn item_order(record: &VerifiedRecord) -> (Fork, u64, Epoch) {
    let version = record.version();
    (version.generation.fork, version.generation.index, version.epoch)
}
