//! The swarm itself: its first entry and its settings.

use super::apply::Outcome;
use super::limits::{MAX_SUBNET_PREFIX, MIN_SUBNET_PREFIX, TASK_HISTORY};
use super::{
    Cluster, Command, Entry, EpochState, Exposure, Lock, NewRoot, NewTokens, Refusal, Reply, Ring, State, ipam, ring,
};
use crate::types::{ClusterSpec, Epoch, EpochPhase, Fork, Generation, Key32, NodeId, Role, UnixTime};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Seconds between two heartbeats: below one the control plane would idle loudly, above five minutes nobody would
/// call the answer news.
const HEARTBEAT_SECS: RangeInclusive<u32> = 1..=300;
/// Seconds between two rotations: a minute lets every node follow, 30 days bound what one key protects.
const KEY_ROTATION_SECS: RangeInclusive<u32> = 60..=2_592_000;
/// Seconds a node certificate lives: Docker's lower bound, and ten years.
const CERTIFICATE_SECS: RangeInclusive<u64> = 3600..=315_360_000;

/// How far the epoch numbers of a new life are from the last known ones: the lost managers may have used some more.
const FORK_EPOCHS: u32 = 1 << 16;

/// A new life of the state: the majority of the managers is lost, and one goes on alone.
pub struct NewLife {
    /// Its node.
    pub node: NodeId,
    /// The new fork, above the old one.
    pub fork: Fork,
    /// Master of the new current epoch.
    pub current: Key32,
    /// Master of the new next epoch.
    pub next: Key32,
}

/// The log index of the first entry.
const FIRST_INDEX: u64 = 1;

impl State {
    /// The state after the first entry of a log, which must be [`Command::Init`]. Its index is 1.
    pub fn init(entry: &Entry) -> Result<State, Refusal> {
        let Command::Init { cluster, fork, spec, worker_secret, manager_secret, authority, attestation, current, next } =
            &entry.command
        else {
            return Err(Refusal::Invalid("a log starts with the swarm's settings and keys".into()));
        };
        check_spec(spec)?;
        if spec.autolock {
            return Err(Refusal::Invalid("autolock is turned on in a swarm that exists".into()));
        }
        Ok(State {
            index: FIRST_INDEX,
            at: entry.at,
            cluster: Cluster {
                id: *cluster,
                fork: *fork,
                created_at: entry.at,
                updated_at: entry.at,
                version: FIRST_INDEX,
                spec: spec.clone(),
                worker_secret: worker_secret.clone(),
                manager_secret: manager_secret.clone(),
                authority: authority.duplicate(),
                rotation: None,
                attestation: attestation.duplicate(),
                former_attestation: None,
                lock: Lock::default(),
                next_unlock_key: None,
                exposure: Exposure::default(),
            },
            nodes: BTreeMap::new(),
            gone: BTreeMap::new(),
            networks: BTreeMap::new(),
            services: BTreeMap::new(),
            tasks: BTreeMap::new(),
            freed: BTreeMap::new(),
            ring: first_ring((Epoch(1), current), next, Generation { fork: *fork, index: FIRST_INDEX }, entry.at),
            managers: BTreeMap::new(),
        })
    }

    /// Begins a new life of the state, in which only `life.node` is a manager; gives its new seat. Keys and epochs are
    /// new: the lost managers may still know the old ones.
    pub fn begin_life(&mut self, life: &NewLife, at: UnixTime) -> Result<u64, Refusal> {
        if !self.nodes.contains_key(&life.node) || life.fork <= self.cluster.fork {
            return Err(Refusal::Invalid("a new life needs a node of the swarm and a higher fork".into()));
        }
        self.pass();
        let index = self.index;
        let newest = self.ring.epochs.iter().map(|held| held.epoch.0).max().unwrap_or(0);
        let first = newest.checked_add(FORK_EPOCHS).filter(|first| *first < u32::MAX);
        let first = first.ok_or_else(|| Refusal::NotNow("the epoch numbers are used up".into()))?;
        self.cluster.fork = life.fork;
        self.at = at;
        let generation = Generation { fork: life.fork, index };
        self.ring = first_ring((Epoch(first), &life.current), &life.next, generation, at);
        self.note_abandoned_managers(life.node);
        for node in self.nodes.values_mut() {
            let stays = node.id == life.node;
            if stays || node.role == Role::Manager {
                node.role = if stays { Role::Manager } else { Role::Worker };
                node.seat = if stays { index } else { 0 };
                node.version = index;
            }
            node.publics.clear();
            node.record_index = index;
            node.updated_at = at;
        }
        Ok(index)
    }

    pub(super) fn update_cluster(
        &mut self,
        version: u64,
        spec: &ClusterSpec,
        tokens: &NewTokens,
        root: Option<&NewRoot>,
        at: UnixTime,
    ) -> Outcome {
        if version != self.cluster.version {
            return Err(Refusal::OutOfSequence);
        }
        check_spec(spec)?;
        if let Some(root) = root {
            self.check_root_rotation(root, at)?;
        }
        self.check_lock(spec.autolock, tokens.unlock.as_deref())?;
        let mut effects = self.change_lock(spec.autolock, tokens.unlock.as_ref());
        self.cluster.spec = spec.clone();
        self.change_tokens(tokens);
        self.cluster.version = self.index;
        self.cluster.updated_at = at;
        effects.extend(root.map(|root| self.start_root_rotation(root, at)));
        Ok((Reply::Done, effects))
    }

    pub(super) fn change_tokens(&mut self, tokens: &NewTokens) {
        if let Some(secret) = &tokens.worker {
            self.cluster.worker_secret = secret.clone();
        }
        if let Some(secret) = &tokens.manager {
            self.cluster.manager_secret = secret.clone();
        }
    }
}

/// A current and a next epoch. No node has a session yet, so neither has participants.
fn first_ring((first, current): (Epoch, &Key32), next: &Key32, generation: Generation, at: UnixTime) -> Ring {
    let epoch = |epoch, phase, master: &Key32, activated_at| EpochState {
        epoch,
        phase,
        master: master.duplicate(),
        participants: BTreeSet::new(),
        ready: BTreeSet::new(),
        sending: BTreeSet::new(),
        handed_out_at: at,
        activated_at,
    };
    Ring {
        epochs: vec![
            epoch(first, EpochPhase::Current, current, Some(at)),
            epoch(first.next(), EpochPhase::Next, next, None),
        ],
        request: None,
        generation,
        keep_previous_secs: ring::DEADLINE_SECS,
        last_early_rotation: None,
    }
}

fn check_spec(spec: &ClusterSpec) -> Result<(), Refusal> {
    check_range("heartbeat period", &spec.heartbeat_secs, &HEARTBEAT_SECS)?;
    check_range("key rotation interval", &spec.key_rotation_secs, &KEY_ROTATION_SECS)?;
    check_range("certificate life", &spec.certificate_secs, &CERTIFICATE_SECS)?;
    if spec.task_history > TASK_HISTORY {
        let text = format!("task history limit of {} is out of range: 0 to {TASK_HISTORY}", spec.task_history);
        return Err(Refusal::Invalid(text));
    }
    if spec.data_path_port == 0 {
        return Err(Refusal::Invalid("data path port must not be 0".into()));
    }
    check_pool(spec)
}

fn check_range<N: PartialOrd + std::fmt::Display>(
    what: &str,
    value: &N,
    range: &RangeInclusive<N>,
) -> Result<(), Refusal> {
    if range.contains(value) {
        return Ok(());
    }
    let text = format!("{what} of {value} s is out of range: {} to {} s", range.start(), range.end());
    Err(Refusal::Invalid(text))
}

fn check_pool(spec: &ClusterSpec) -> Result<(), Refusal> {
    let IpNet::V4(pool) = spec.address_pool else {
        return Err(Refusal::Invalid(format!("address pool {}: IPv6 is not supported yet", spec.address_pool)));
    };
    ipam::check_block("address pool", pool)?;
    let prefix = spec.subnet_prefix;
    if prefix <= pool.prefix_len() || !(MIN_SUBNET_PREFIX..=MAX_SUBNET_PREFIX).contains(&prefix) {
        let text =
            format!("subnet size /{prefix} does not fit: it must be narrower than the pool {pool} and at most /30");
        return Err(Refusal::Invalid(text));
    }
    Ok(())
}
