//! Finding and mending differences between two nodes' records, whatever was lost before.
//!
//! ```text
//!  a -> b  Root     hash of everything               equal: done
//!  b -> a  Digest   64 hashes of its tree            a few differing nodes at a time, not all at once
//!  a -> b  Digest   one level down, or
//!          Items    (key hash, version) of a small range of the tree
//!  b -> a  Records  that a lacks or has older;  Want  those that b lacks or has older
//!  a -> b  Records
//! ```
//!
//! Every answer is bounded; what is left is found by the next comparison, which follows at once as long as
//! comparisons bring records.

use super::Gossip;
use super::members::MemberState;
use super::store::{bucket_range, item_order};
use crate::types::{Epoch, Fork, NodeId, Time};
use crate::wire::gossip::{DIGEST_LEN, ITEMS_MAX, Item, Message, WANT_MAX};
use crate::wire::record::VerifiedRecord;
use rand::RngExt;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Differing tree nodes that one digest's answer goes into.
const BRANCHES: usize = 8;
/// [`Message::Items`] that list one tree node; one with more records is looked into a level lower.
const ITEMS_MESSAGES: usize = 2;
/// The same on the lowest level: a tree node has about 64 records when the store is full.
const ITEMS_MESSAGES_LOWEST: usize = 6;
/// Records sent in answer to one message.
const RECORDS_PER_ANSWER: usize = 32;

impl Gossip {
    pub(super) fn start_sync(&mut self, now: Time) {
        let up = self.choose(1, |_, state| state == MemberState::Up);
        let chosen = if up.is_empty() { self.choose(1, |_, _| true) } else { up };
        for node in chosen {
            self.send(node, Message::Root { hash: self.store.root() }, now);
        }
    }

    pub(super) fn handle_root(&mut self, from: NodeId, hash: [u8; 8], now: Time) {
        if hash != self.store.root() {
            self.send_digest(from, 0, 0, now);
        }
    }

    fn send_digest(&mut self, to: NodeId, level: u8, bucket: u8, now: Time) {
        let hashes = self.store.digest(level, bucket);
        self.send(to, Message::Digest { level, bucket, hashes }, now);
    }

    pub(super) fn handle_digest(&mut self, from: NodeId, level: u8, bucket: u8, hashes: &[[u8; 8]], now: Time) {
        let ours = self.store.digest(level, bucket);
        let differ: Vec<usize> =
            ours.iter().zip(hashes).enumerate().filter(|(_, (a, b))| a != b).map(|(child, _)| child).collect();
        let start = self.rng.random_range(0..DIGEST_LEN);
        let (before, after): (Vec<usize>, Vec<usize>) = differ.into_iter().partition(|child| *child < start);
        for child in after.into_iter().chain(before).take(BRANCHES) {
            let range = bucket_range(level, bucket, child);
            let few = ITEMS_MAX * ITEMS_MESSAGES;
            if level == 0 && self.store.range(range.clone()).nth(few).is_some() {
                self.send_digest(from, 1, child as u8, now);
            } else {
                self.send_items(from, range, now);
            }
        }
    }

    /// Lists a range in as few messages as possible; together they cover it without a gap.
    fn send_items(&mut self, to: NodeId, range: RangeInclusive<u64>, now: Time) {
        let items: Vec<(u64, Item)> =
            self.store.range(range.clone()).map(|(hash, record)| (hash, self.item(hash, record))).collect();
        let mut first = *range.start();
        let mut chunks = items.chunks(ITEMS_MAX).take(ITEMS_MESSAGES_LOWEST).peekable();
        if chunks.peek().is_none() {
            self.send_items_message(to, range, Vec::new(), now);
            return;
        }
        while let Some(chunk) = chunks.next() {
            let end = chunk.last().map_or(*range.end(), |(hash, _)| *hash);
            let last = if chunks.peek().is_none() && items.len() <= ITEMS_MAX * ITEMS_MESSAGES_LOWEST {
                *range.end()
            } else {
                end
            };
            self.send_items_message(to, first..=last, chunk.iter().map(|(_, item)| *item).collect(), now);
            first = last.saturating_add(1);
        }
    }

    fn send_items_message(&mut self, to: NodeId, range: RangeInclusive<u64>, items: Vec<Item>, now: Time) {
        let message = Message::Items { from: range.start().to_be_bytes(), to: range.end().to_be_bytes(), items };
        self.send(to, message, now);
    }

    fn item(&self, hash: u64, record: &VerifiedRecord) -> Item {
        let (fork, index, epoch) = item_order(record);
        let fork_age = self.keyring.fork.0.saturating_sub(fork.0);
        Item { hash: hash.to_be_bytes(), fork_age, index, epoch }
    }

    pub(super) fn handle_items(&mut self, from: NodeId, range: RangeInclusive<u64>, items: &[Item], now: Time) {
        let fork = self.keyring.fork.0;
        let order = |item: &Item| (Fork(fork.saturating_sub(item.fork_age)), item.index, item.epoch);
        let theirs: BTreeMap<u64, (Fork, u64, Epoch)> =
            items.iter().map(|item| (u64::from_be_bytes(item.hash), order(item))).collect();
        let lacking = |hash: u64, record: &VerifiedRecord| theirs.get(&hash).is_none_or(|at| *at < item_order(record));
        let push: Vec<VerifiedRecord> = self
            .store
            .range(range)
            .filter(|(hash, record)| lacking(*hash, record))
            .map(|(_, record)| record.clone())
            .take(RECORDS_PER_ANSWER)
            .collect();
        let newer = |(hash, at): &(&u64, &(Fork, u64, Epoch))| {
            !self.keyring.is_retired(at.2) && self.store.by_hash(**hash).is_none_or(|record| item_order(record) < **at)
        };
        let want: Vec<[u8; 8]> =
            theirs.iter().filter(newer).map(|(hash, _)| hash.to_be_bytes()).take(WANT_MAX).collect();
        self.send_records(from, push, now);
        if !want.is_empty() {
            self.send(from, Message::Want { hashes: want }, now);
        }
    }

    pub(super) fn handle_want(&mut self, from: NodeId, hashes: &[[u8; 8]], now: Time) {
        let records = hashes.iter().filter_map(|hash| self.store.by_hash(u64::from_be_bytes(*hash)));
        let records: Vec<VerifiedRecord> = records.take(RECORDS_PER_ANSWER).cloned().collect();
        self.send_records(from, records, now);
    }
}
