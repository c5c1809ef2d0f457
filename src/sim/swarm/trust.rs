//! Certificates without cryptography: which roots each stands under, and which roots each end believes. A new root is
//! followed as the agent's renewal and the managers' control port do it, over calls that can break at any moment. And
//! what managers' files are locked with: an operator can give back the keys that somebody was shown.

use super::client::Rpc;
use super::{START, Swarm, random};
use crate::cluster::{CertificateAuthority, Command, NewRoot, NewTokens, State};
use crate::crypto;
use crate::types::{Key32, Time, UnixTime};
use rand::RngExt;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::time::Duration;
use zeroize::Zeroizing;

/// A new root makes all nodes ask at once; each waits up to so long, as the agent's.
const SPREAD: Duration = Duration::from_secs(2);
/// Between two attempts to get a certificate.
const RETRY: Duration = Duration::from_secs(2);
/// When a certificate ends that is given now.
pub(super) const EXPIRES: UnixTime = UnixTime(START + 90 * 86_400);

/// A root certificate.
type Root = Vec<u8>;

/// What a node has on its disk.
#[derive(Clone, Default)]
pub(super) struct Papers {
    /// The roots that its certificate stands under: the one that issued it last, before it the former one that had
    /// signed that one.
    under: Vec<Root>,
    /// The roots that it believes.
    trusted: Vec<Root>,
    /// What the managers know that it stands under: forgotten with the process, as what follows.
    known: Vec<Root>,
    /// When it asks for a new certificate, or tells the managers of the one it has.
    at: Option<Time>,
    asked: usize,
}

impl Papers {
    /// Of a node that was just admitted.
    pub(super) fn issued(state: &State) -> Papers {
        Papers { under: roots(state), trusted: vec![state.cluster.authority.certificate.clone()], ..Papers::default() }
    }

    /// The process ends.
    pub(super) fn forget(&mut self) {
        (self.known, self.at) = (Vec::new(), None);
    }

    pub(super) fn next_time(&self) -> Option<Time> {
        self.at
    }

    /// Whether a manager with this state and the node believe each other.
    pub(super) fn are_good_for(&self, state: &State) -> bool {
        let there = state.roots();
        let common = |roots: &[Root]| roots.iter().any(|root| there.contains(&root.as_slice()));
        common(&self.under) && common(&self.trusted)
    }
}

/// Those that a manager with this state believes, and that its own certificate stands under.
pub(super) fn roots(state: &State) -> Vec<Root> {
    state.roots().into_iter().map(<[u8]>::to_vec).collect()
}

/// A root that takes the place of another.
pub(super) fn new_root(rng: &mut StdRng) -> NewRoot {
    let authority = CertificateAuthority {
        certificate: random::<64>(rng).to_vec(),
        key: Zeroizing::new(random::<64>(rng).to_vec()),
    };
    NewRoot { authority, cross: random::<64>(rng).to_vec(), attestation: Key32::new(random(rng)) }
}

/// What a node waits for from a manager.
pub(super) enum Paper {
    /// A certificate under these roots.
    Certificate(Vec<Root>),
    /// That it is known what it stands under.
    Noted(Vec<Root>),
}

/// Unlock keys that somebody was shown.
#[derive(Default)]
pub(super) struct Shown(BTreeSet<[u8; 32]>);

impl Swarm {
    /// Whether the managers of two nodes believe each other, if they run.
    pub(super) fn managers_believe(&self, one: usize, other: usize) -> bool {
        let (one, other) = (&self.nodes[one].manager, &self.nodes[other].manager);
        one.as_ref().zip(other.as_ref()).is_none_or(|(one, other)| {
            let (one, other) = (one.state().roots(), other.state().roots());
            one.iter().any(|root| other.contains(root))
        })
    }

    /// Whether a request gets through TLS.
    pub(super) fn lets_in(&self, from: usize, to: usize, rpc: &Rpc) -> bool {
        match rpc {
            // As a manager.
            Rpc::Command(..) | Rpc::Read(_) => self.managers_believe(from, to),
            _ => {
                let manager = self.nodes[to].manager.as_ref();
                manager.is_some_and(|manager| self.nodes[from].papers.are_good_for(manager.state()))
            }
        }
    }

    /// The node hears which roots there are, and asks for a certificate of the newest.
    pub(super) fn follow_roots(&mut self, number: usize) {
        let spread = Duration::from_micros(self.rng.random_range(0..SPREAD.as_micros() as u64));
        let node = &mut self.nodes[number];
        let Some(told) = node.host.as_ref().and_then(|host| host.core.swarm.as_ref()) else { return };
        if node.papers.trusted != told.roots {
            node.papers.trusted.clone_from(&told.roots);
        }
        let (papers, newest) = (&mut node.papers, told.roots.last());
        if papers.at.is_none() && (newest != papers.under.last() || papers.known != papers.under) {
            papers.at = Some(self.now + spread);
        }
    }

    /// Certificates that are to be asked for, or told of.
    pub(super) fn turn_renewals(&mut self) {
        for number in 0..self.nodes.len() {
            let node = &mut self.nodes[number];
            if node.papers.at.is_none_or(|at| at > self.now) {
                continue;
            }
            let told = node.host.as_ref().and_then(|host| host.core.swarm.as_ref());
            let behind = told.is_some_and(|told| told.roots.last() != node.papers.under.last());
            node.papers.at = Some(self.now + RETRY).filter(|_| behind || node.papers.known != node.papers.under);
            let rpc = if behind { Rpc::Renew } else { Rpc::Certified(node.papers.under.clone()) };
            let manager = node.known.get(node.papers.asked % node.known.len().max(1)).copied();
            node.papers.asked += 1;
            let silent = node.link.cut || node.papers.at.is_none();
            if let Some(manager) = manager.and_then(|address| self.number_at(address)).filter(|_| !silent) {
                self.call(number, manager, rpc);
            }
        }
    }

    /// A node asks a manager for a certificate, or tells of the one it has.
    pub(super) fn hear_of_papers(&mut self, at: usize, number: usize, has: Option<Vec<Root>>) {
        let node = self.nodes[number].id;
        let Some(state) = self.nodes[at].manager.as_ref().map(super::manager::Manager::state) else { return };
        let Some(known) = state.nodes.get(&node) else { return };
        let (command, paper) = match has {
            None => {
                let root = state.root_digest();
                (Command::SetCertificateExpiry { node, expires: EXPIRES, root }, Paper::Certificate(roots(state)))
            }
            Some(under) => {
                let root = crypto::sha256(&[under.last().map_or(&[], Vec::as_slice)]);
                if known.root == root {
                    return self.call(at, number, Rpc::Paper(Paper::Noted(under)));
                }
                (Command::SetCertificateRoot { node, root }, Paper::Noted(under))
            }
        };
        let life = self.nodes[number].life;
        let op = self.ask(at, command);
        self.clients.papers.insert(op, (number, life, paper));
        self.answer_papers(op, at);
    }

    /// Answers the node once the command has ended well.
    pub(super) fn answer_papers(&mut self, op: u64, at: usize) {
        let Some(end) = self.clients.ends.get(&op).map(Result::is_ok) else { return };
        let Some((number, life, paper)) = self.clients.papers.remove(&op) else { return };
        if end && self.nodes[number].life == life {
            self.call(at, number, Rpc::Paper(paper));
        }
    }

    /// The answer has come; a certificate is on the disk at once.
    pub(super) fn keep_paper(&mut self, number: usize, paper: Paper) {
        let papers = &mut self.nodes[number].papers;
        match paper {
            Paper::Certificate(under) => (papers.under, papers.at) = (under, Some(self.now)),
            Paper::Noted(known) => papers.known = known,
        }
    }

    /// The replacement of the root is through, but for nodes that never were.
    pub(super) fn root_is_replaced(&self) -> bool {
        let behind = self.state().behind_on_root(UnixTime(START));
        let never =
            |id| self.number_of(id).is_none_or(|number| self.nodes[number].life == 0 || self.nodes[number].gone);
        self.state().cluster.rotation.is_none() || (!behind.is_empty() && behind.iter().all(|node| never(node.id)))
    }

    /// A user's change of how the managers' files are locked, or of the root certificate, by what the asked manager knows.
    pub(super) fn change_trust(&mut self, origin: usize) -> Option<(&'static str, Command)> {
        let state = self.nodes[origin].manager.as_ref()?.state();
        let (version, mut spec) = (state.cluster.version, state.cluster.spec.clone());
        let shown = state.unlock_key().cloned();
        let mut tokens = NewTokens::default();
        let (what, root) = match (self.rng.random_range(0..4), shown) {
            (0, _) => ("root replaced", Some(new_root(&mut self.rng))),
            (1, Some(key)) => {
                self.shown.0.insert(*key);
                return Some(("unlock key shown", Command::UnlockKeySeen { key }));
            }
            (2, Some(_)) => {
                spec.autolock = false;
                ("autolock off", None)
            }
            _ => {
                spec.autolock = true;
                tokens.unlock = Some(Zeroizing::new(random(&mut self.rng)));
                ("new unlock key", None)
            }
        };
        Some((what, Command::UpdateCluster { version, spec, tokens, root }))
    }

    /// A manager that starts needs its unlock key of an operator.
    pub(super) fn unlock(&self, number: usize) {
        let disk = self.nodes[number].disk.as_ref();
        let key = disk.and_then(|disk| disk.lock.key.as_ref());
        if key.is_some_and(|key| !self.shown.0.contains(&**key)) {
            self.oracle.fail(self.now, &format!("node {number} is locked with a key that nobody was shown"));
        }
    }
}
