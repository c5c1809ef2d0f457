//! Gossip datagrams (UDP, default port 7946): two outer forms and what is inside.
//!
//! ```text
//! pair    version 1 | epoch 4 | src node 17 | src boot 8 | counter 8  | ciphertext | tag 16     version octet 1
//! hello   version 1 | epoch 4 | src node 17 | src boot 8 | nonce 12   | ciphertext | tag 16     version octet 2
//! ```
//!
//! The version octet tells the two apart: 1 is a *pair* datagram under the key of one (sender, receiver, epoch,
//! boots), 2 is *hello* under a key that all admitted nodes share, and carries a [`Hello`] and nothing else: two signed
//! records. Only this fixed header is read before a tag has verified. All integers are big-endian; the plaintext
//! of a pair datagram is the postcard form of a [`Payload`].
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use crate::crypto::{self, SharedSecret, TAG_LEN, Unauthentic};
use crate::types::{BootId, ClusterId, Epoch, Fork, Id, Key32, NodeId, PublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Version octet of a pair datagram.
pub const VERSION_PAIR: u8 = 1;
/// Version octet of a hello.
pub const VERSION_HELLO: u8 = 2;
/// Octets of a pair datagram's header.
pub const PAIR_HEADER_LEN: usize = 38;
/// Octets of a hello's header.
pub const HELLO_HEADER_LEN: usize = 42;
/// Octets of the longest plaintext: the smallest IPv6 MTU without IPv6 and UDP headers, gossip header and tag.
pub const PLAINTEXT_MAX: usize = 1280 - 48 - PAIR_HEADER_LEN - TAG_LEN;
/// Octets of the longest datagram.
pub const DATAGRAM_MAX: usize = 1280 - 48;
/// Octets of the longest plaintext of a hello.
pub const HELLO_PLAINTEXT_MAX: usize = DATAGRAM_MAX - HELLO_HEADER_LEN - TAG_LEN;
/// Members that one payload may speak of.
pub const UPDATES_MAX: usize = 16;
/// Hashes of one [`Message::Digest`]: the children of one node of the tree of records.
pub const DIGEST_LEN: usize = 64;
/// Entries of one [`Message::Items`]: so many fit a datagram, however long their integers are.
pub const ITEMS_MAX: usize = 32;
/// Entries of one [`Message::Want`].
pub const WANT_MAX: usize = 128;

const PAIR_LABEL: &[u8] = b"formic gossip pair v1";
const HELLO_LABEL: &[u8] = b"formic gossip hello v1";

/// Why a datagram was not parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Shorter than header and tag, or longer than any of ours.
    #[error("length of no gossip datagram")]
    Length,
    /// Not a version this node speaks.
    #[error("unknown gossip version")]
    Version,
    /// The source is no node id.
    #[error("malformed source node")]
    Source,
    /// The plaintext is not the one encoding of a payload.
    #[error("malformed payload")]
    Payload,
}

/// The readable front of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The epoch of its key.
    pub epoch: Epoch,
    /// The sender.
    pub node: NodeId,
    /// The sender's boot.
    pub boot: BootId,
    /// What makes its nonce, and which form it has.
    pub form: Form,
}

/// The two forms of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Under a pair's key.
    Pair {
        /// Counts the datagrams of this key; the nonce is 0 u32 || counter.
        counter: u64,
    },
    /// Under the key that all share.
    Hello {
        /// The random nonce.
        nonce: [u8; 12],
    },
}

impl Header {
    /// Reads the header; returns it with the octets after it: ciphertext and tag.
    pub fn parse(datagram: &[u8]) -> Result<(Header, &[u8]), DatagramError> {
        if datagram.len() > DATAGRAM_MAX {
            return Err(DatagramError::Length);
        }
        let (&[version], rest) = take::<1>(datagram)?;
        if version != VERSION_PAIR && version != VERSION_HELLO {
            return Err(DatagramError::Version);
        }
        let (epoch, rest) = take::<4>(rest)?;
        let (node, rest) = take::<17>(rest)?;
        let (boot, rest) = take::<8>(rest)?;
        let (form, sealed) = if version == VERSION_PAIR {
            let (counter, sealed) = take::<8>(rest)?;
            (Form::Pair { counter: u64::from_be_bytes(*counter) }, sealed)
        } else {
            let (nonce, sealed) = take::<12>(rest)?;
            (Form::Hello { nonce: *nonce }, sealed)
        };
        if sealed.len() < TAG_LEN {
            return Err(DatagramError::Length);
        }
        let node = NodeId(Id::from_bytes(*node).map_err(|_| DatagramError::Source)?);
        Ok((Header { epoch: Epoch(u32::from_be_bytes(*epoch)), node, boot: BootId(*boot), form }, sealed))
    }

    /// Writes the header.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(DATAGRAM_MAX);
        out.push(match self.form {
            Form::Pair { .. } => VERSION_PAIR,
            Form::Hello { .. } => VERSION_HELLO,
        });
        out.extend_from_slice(&self.epoch.0.to_be_bytes());
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(&self.boot.0);
        match self.form {
            Form::Pair { counter } => out.extend_from_slice(&counter.to_be_bytes()),
            Form::Hello { nonce } => out.extend_from_slice(&nonce),
        }
        out
    }

    fn nonce(&self) -> [u8; 12] {
        match self.form {
            Form::Hello { nonce } => nonce,
            Form::Pair { counter } => {
                let mut nonce = [0; 12];
                for (to, from) in nonce.iter_mut().skip(4).zip(counter.to_be_bytes()) {
                    *to = from;
                }
                nonce
            }
        }
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), DatagramError> {
    bytes.split_first_chunk().ok_or(DatagramError::Length)
}

/// One end of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Party {
    /// The node.
    pub node: NodeId,
    /// Its boot.
    pub boot: BootId,
    /// Its X25519 public of the epoch.
    pub public: PublicKey,
}

/// The key of one direction of a pair in one epoch.
pub fn pair_key(
    gossip_key: &Key32,
    shared: &SharedSecret,
    (cluster, fork, epoch): (ClusterId, Fork, Epoch),
    source: &Party,
    destination: &Party,
) -> Key32 {
    let info: [&[u8]; 9] = [
        cluster.as_bytes(),
        &fork.0.to_be_bytes(),
        source.node.as_bytes(),
        destination.node.as_bytes(),
        &source.boot.0,
        &destination.boot.0,
        &source.public.0,
        &destination.public.0,
        &epoch.0.to_be_bytes(),
    ];
    Key32::new(*crypto::hkdf_sha256::<32>(PAIR_LABEL, &[gossip_key.expose(), shared.expose()], &info))
}

/// The key of hellos: the gossip key is also the root of the pairs' keys, so hellos get one of their own.
pub fn hello_key(gossip_key: &Key32) -> Key32 {
    crypto::derive_key(&[gossip_key.expose()], &[HELLO_LABEL])
}

/// Seals a pair datagram. The header's counter must never have been used with `key`.
pub fn seal_pair(key: &Key32, header: &Header, to: (NodeId, BootId), plaintext: &[u8]) -> Vec<u8> {
    let mut datagram = header.emit();
    let sealed = crypto::seal(key, &header.nonce(), &pair_aad(&datagram, to), plaintext);
    datagram.extend_from_slice(&sealed);
    datagram
}

/// Opens a pair datagram addressed to `to`.
pub fn open_pair(
    key: &Key32,
    header: &Header,
    to: (NodeId, BootId),
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Unauthentic> {
    crypto::open(key, &header.nonce(), &pair_aad(&header.emit(), to), sealed)
}

fn pair_aad(header: &[u8], (node, boot): (NodeId, BootId)) -> Vec<u8> {
    [header, node.as_bytes(), &boot.0].concat()
}

/// What a hello carries: the length of the ring record (2 octets), the ring record, the node record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The newest ring record that the sender has, which says how new its node record may be; empty if it has none.
    pub ring: &'a [u8],
    /// The sender's node record.
    pub node: &'a [u8],
}

impl<'a> Hello<'a> {
    /// Reads the plaintext of a hello.
    pub fn parse(plaintext: &'a [u8]) -> Result<Hello<'a>, DatagramError> {
        let (length, rest) = plaintext.split_first_chunk().ok_or(DatagramError::Payload)?;
        let split = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)));
        let (ring, node) = split.ok_or(DatagramError::Payload)?;
        Ok(Hello { ring, node })
    }

    /// Writes the plaintext. A ring record that does not fit beside the node record is left out.
    pub fn emit(&self) -> Vec<u8> {
        let fits = self.ring.len() + self.node.len() <= HELLO_PLAINTEXT_MAX - 2;
        let ring = if fits { self.ring } else { &[] };
        let length = u16::try_from(ring.len()).unwrap_or_default();
        [&length.to_be_bytes(), ring, self.node].concat()
    }
}

/// Seals the plaintext of a hello.
pub fn seal_hello(hello_key: &Key32, header: &Header, plaintext: &[u8]) -> Vec<u8> {
    let mut datagram = header.emit();
    let sealed = crypto::seal(hello_key, &header.nonce(), &datagram, plaintext);
    datagram.extend_from_slice(&sealed);
    datagram
}

/// Opens a hello.
pub fn open_hello(hello_key: &Key32, header: &Header, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Unauthentic> {
    crypto::open(hello_key, &header.nonce(), &header.emit(), sealed)
}

/// What a pair datagram carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// How often the sender has contradicted news of its death, in this boot.
    pub incarnation: u32,
    /// What it is for.
    pub message: Message,
    /// News of members. At most [`UPDATES_MAX`].
    pub updates: Vec<Update>,
    /// Encoded signed records, each to be judged by itself.
    pub records: Vec<Vec<u8>>,
}

/// What a datagram is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Only carries news.
    News,
    /// Are you there?
    Ping {
        /// Returned in the answer.
        sequence: u32,
    },
    /// I am, or the one you made me ask is.
    Ack {
        /// Of the ping or the request.
        sequence: u32,
    },
    /// Ask another node whether it is there.
    PingRequest {
        /// Returned in the answer.
        sequence: u32,
        /// Whom to ask.
        target: NodeId,
    },
    /// The hash of all records I hold.
    Root {
        /// It.
        hash: [u8; 8],
    },
    /// The hashes of one level of my tree of records.
    Digest {
        /// 0: of the whole, one for each value of the first 6 bits of a key's hash. 1: of one of those.
        level: u8,
        /// Which one, at level 1; 0 at level 0.
        bucket: u8,
        /// [`DIGEST_LEN`] of them.
        hashes: Vec<[u8; 8]>,
    },
    /// All records I hold whose key's hash is in a range.
    Items {
        /// First hash of the range.
        from: [u8; 8],
        /// Last hash of the range.
        to: [u8; 8],
        /// At most [`ITEMS_MAX`].
        items: Vec<Item>,
    },
    /// Send me these records.
    Want {
        /// Hashes of their keys. At most [`WANT_MAX`].
        hashes: Vec<[u8; 8]>,
    },
    /// The records asked for, or those that you lack.
    Records,
}

/// One record in [`Message::Items`], without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The hash of its key.
    pub hash: [u8; 8],
    /// How much lower than the present fork the fork of its generation is.
    pub fork_age: u64,
    /// Log index of its generation.
    pub index: u64,
    /// The epoch it was attested in.
    pub epoch: Epoch,
}

/// How a member is, in SWIM's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Liveness {
    /// There.
    Alive,
    /// Did not answer; may contradict.
    Suspect,
    /// Did not contradict.
    Down,
}

/// News of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The member.
    pub node: NodeId,
    /// Its boot.
    pub boot: BootId,
    /// Its incarnation that this is about.
    pub incarnation: u32,
    /// How it is.
    pub liveness: Liveness,
}

impl Payload {
    /// Reads the plaintext of a pair datagram, all of it.
    pub fn parse(plaintext: &[u8]) -> Result<Payload, DatagramError> {
        let payload: Payload = postcard::from_bytes(plaintext).map_err(|_| DatagramError::Payload)?;
        if payload.within_bounds() && payload.emit() == plaintext { Ok(payload) } else { Err(DatagramError::Payload) }
    }

    /// Writes the plaintext.
    pub fn emit(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap_or_default()
    }

    fn within_bounds(&self) -> bool {
        let message = match &self.message {
            Message::Digest { level, bucket, hashes } => {
                hashes.len() == DIGEST_LEN
                    && usize::from(*bucket) < DIGEST_LEN
                    && (*level == 1 || *bucket == 0)
                    && *level <= 1
            }
            Message::Items { from, to, items } => items.len() <= ITEMS_MAX && from <= to,
            Message::Want { hashes } => hashes.len() <= WANT_MAX,
            _ => true,
        };
        message && self.updates.len() <= UPDATES_MAX
    }
}

#[cfg(test)]
#[path = "gossip_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "gossip_fuzz_tests.rs"]
mod fuzz_tests;
