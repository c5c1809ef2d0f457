//! Records: what the managers say about nodes, endpoints and the key ring, signed by their attestation key.
//!
//! A worker, with every key it holds, cannot make one: it can only carry records on. Three stages are three types:
//! a [`RecordBody`] says something, a [`SignedRecord`] was parsed and claims to be signed, a [`VerifiedRecord`]
//! was checked against a [`TrustBundle`]; only the last may be applied.
//!
//! Encoding: the postcard form of (fork, generation, epoch, signer, body), then 64 octets of signature. The
//! signature covers `"formic record v1" || cluster || ` those octets. One record has exactly one encoding (a
//! parsed record is encoded again and compared), and none is longer than [`RECORD_MAX`].
//!
//! This module is not the store: [`RecordVersion`] orders two records of one [`RecordKey`], the gossip keeps the newer.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use crate::crypto::{self, SigningKey};
use crate::types::{
    BootId, ClusterId, EndpointKey, Epoch, Fork, Generation, Key32, NodeAddresses, NodeId, PublicKey, Queues,
    VerifyingKeyId,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Octets of the longest encoded record: with the overhead of a gossip datagram it fits the smallest IPv6 MTU.
pub const RECORD_MAX: usize = 1000;
/// Octets of the longest version string of a node.
pub const VERSION_MAX: usize = 32;
/// Epochs a node may have publics for: previous, current, next.
pub const PUBLICS_MAX: usize = 3;
/// Octets of the longest sealed endpoint body: what [`RECORD_MAX`] leaves.
pub const SEALED_MAX: usize = 780;
/// Attestation keys trusted at once: the present one and, during a change, the one before.
pub const TRUSTED_KEYS_MAX: usize = 2;

const SIGNATURE_LABEL: &[u8] = b"formic record v1";
const ENDPOINT_LABEL: &[u8] = b"formic endpoint v1";
const SIGNATURE_LEN: usize = 64;
const NONCE_LEN: usize = 12;

/// Why a record was not made, parsed or believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not the one encoding of a record.
    #[error("malformed record")]
    Malformed,
    /// A field or the whole is longer than its bound.
    #[error("record or one of its fields is too long")]
    TooLong,
    /// Attested in another life of the replicated state.
    #[error("record belongs to another fork")]
    OtherFork,
    /// Signed by a key that the trust bundle does not list.
    #[error("record is signed by an unknown key")]
    UnknownSigner,
    /// The signature is not the signer's, or the sealed body does not open.
    #[error("record is not authentic")]
    Unauthentic,
}

/// A node: how to reach it and to agree on keys with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node.
    pub node: NodeId,
    /// Its present boot.
    pub boot: BootId,
    /// Where in the log the managers committed (node, boot): boots are ordered by it.
    pub boot_index: u64,
    /// The version of Formic it runs, at most [`VERSION_MAX`] octets.
    pub version: String,
    /// Where it is reached.
    pub addresses: NodeAddresses,
    /// The queues it sends with in this boot.
    pub queues: Queues,
    /// Its X25519 publics of this boot by epoch, ascending, at most [`PUBLICS_MAX`].
    pub publics: Vec<(Epoch, PublicKey)>,
}

impl NodeRecord {
    /// The node's public of an epoch.
    pub fn public(&self, epoch: Epoch) -> Option<PublicKey> {
        self.publics.iter().find(|(of, _)| *of == epoch).map(|(_, public)| *public)
    }

    fn check(&self) -> Result<(), RecordError> {
        if self.version.len() > VERSION_MAX || self.publics.len() > PUBLICS_MAX {
            return Err(RecordError::TooLong);
        }
        let ascending = self.publics.iter().zip(self.publics.iter().skip(1)).all(|((a, _), (b, _))| a < b);
        if ascending { Ok(()) } else { Err(RecordError::Malformed) }
    }
}

/// What the members of its network may read of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointBody {
    /// Its address on the network.
    pub address: IpAddr,
    /// The task's name (`service.slot.id`, or `service.node.id` of a global service).
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// The service's name.
    pub service: String,
    /// Which of the replicas; 0 of a global service.
    pub task_slot: u64,
}

/// An endpoint. Everybody sees whose it is; only nodes with the network's key read the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    /// Network and task.
    pub key: EndpointKey,
    /// The node that runs the task.
    pub node: NodeId,
    /// The age of the allocation of its address.
    pub generation: Generation,
    /// False: a tombstone, the endpoint is gone.
    pub alive: bool,
    /// 12 octets of nonce, then the [`EndpointBody`] under AES-256-GCM.
    pub sealed: Vec<u8>,
}

impl EndpointRecord {
    /// Seals `body` for the members of the network. `network_key` is the network's key of `epoch`, in which the
    /// record will be attested; `nonce` is random and never used twice.
    #[allow(clippy::too_many_arguments)]
    pub fn seal(
        key: EndpointKey,
        node: NodeId,
        generation: Generation,
        alive: bool,
        body: &EndpointBody,
        network_key: &Key32,
        (cluster, fork, epoch): (ClusterId, Fork, Epoch),
        nonce: [u8; NONCE_LEN],
    ) -> Result<EndpointRecord, RecordError> {
        let mut record = EndpointRecord { key, node, generation, alive, sealed: nonce.to_vec() };
        let plain = postcard::to_stdvec(body).map_err(|_| RecordError::Malformed)?;
        let aad = record.aad(cluster, fork, epoch);
        record.sealed.extend(crypto::seal(&body_key(network_key), &nonce, &aad, &plain));
        record.check().map(|()| record)
    }

    /// Opens the body with the network's key of the epoch in which the record was attested.
    pub fn open(
        &self,
        network_key: &Key32,
        (cluster, fork, epoch): (ClusterId, Fork, Epoch),
    ) -> Result<EndpointBody, RecordError> {
        let (nonce, sealed) = self.sealed.split_first_chunk::<NONCE_LEN>().ok_or(RecordError::Malformed)?;
        let aad = self.aad(cluster, fork, epoch);
        let plain = crypto::open(&body_key(network_key), nonce, &aad, sealed).map_err(|_| RecordError::Unauthentic)?;
        let (body, rest) = postcard::take_from_bytes(&plain).map_err(|_| RecordError::Malformed)?;
        if rest.is_empty() { Ok(body) } else { Err(RecordError::Malformed) }
    }

    fn aad(&self, cluster: ClusterId, fork: Fork, epoch: Epoch) -> Vec<u8> {
        [
            ENDPOINT_LABEL,
            cluster.as_bytes(),
            &fork.0.to_be_bytes(),
            self.key.network.as_bytes(),
            self.key.task.as_bytes(),
            self.node.as_bytes(),
            &self.generation.fork.0.to_be_bytes(),
            &self.generation.index.to_be_bytes(),
            &[u8::from(self.alive)],
            &epoch.0.to_be_bytes(),
        ]
        .concat()
    }

    fn check(&self) -> Result<(), RecordError> {
        if self.sealed.len() > SEALED_MAX { Err(RecordError::TooLong) } else { Ok(()) }
    }
}

/// The network's key is also the root of its ESP keys; bodies get a key of their own.
fn body_key(network_key: &Key32) -> Key32 {
    crypto::derive_key(&[network_key.expose()], &[ENDPOINT_LABEL])
}

/// The key ring: which epoch to send with.
///
/// Its generation is the managers' *head*: it is made anew with every record, and no record that they attest is above
/// it. So whoever has it refuses records from a future that the managers' log has not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingRecord {
    /// The epoch to send with.
    pub active: Epoch,
    /// The oldest epoch that is not retired. Keys of older ones are erased, records attested in them void.
    pub oldest: Epoch,
}

impl RingRecord {
    fn check(&self) -> Result<(), RecordError> {
        if self.oldest <= self.active { Ok(()) } else { Err(RecordError::Malformed) }
    }
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordBody {
    /// A node.
    Node(NodeRecord),
    /// A removed node: everything of it is dropped. It takes the place of the node's record, so that the node
    /// is back only with a newer one, and any number of nodes may be gone.
    Gone(NodeId),
    /// An endpoint.
    Endpoint(EndpointRecord),
    /// The key ring.
    Ring(RingRecord),
}

/// What a record is about. Of two records of one key the one with the higher [`RecordVersion`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RecordKey {
    /// A node, alive or gone.
    Node(NodeId),
    /// An endpoint.
    Endpoint(EndpointKey),
    /// The key ring.
    Ring,
}

impl RecordBody {
    /// What it is about.
    pub fn key(&self) -> RecordKey {
        match self {
            RecordBody::Node(record) => RecordKey::Node(record.node),
            RecordBody::Gone(node) => RecordKey::Node(*node),
            RecordBody::Endpoint(record) => RecordKey::Endpoint(record.key),
            RecordBody::Ring(_) => RecordKey::Ring,
        }
    }

    fn check(&self) -> Result<(), RecordError> {
        match self {
            RecordBody::Node(record) => record.check(),
            RecordBody::Gone(_) => Ok(()),
            RecordBody::Endpoint(record) => record.check(),
            RecordBody::Ring(record) => record.check(),
        }
    }
}

/// The age of a record: the fork it was attested in, then its content, then the epoch of the attestation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordVersion {
    /// The life of the replicated state whose managers attested it.
    pub fork: Fork,
    /// Where in the log its content was made.
    pub generation: Generation,
    /// The epoch it was attested in: it is void when that is retired.
    pub epoch: Epoch,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    version: RecordVersion,
    signer: VerifyingKeyId,
    body: RecordBody,
}

/// The attestation keys a node believes, told by the managers over mTLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustBundle {
    /// Ed25519 publics; those beyond [`TRUSTED_KEYS_MAX`] are not believed.
    pub keys: Vec<PublicKey>,
    /// The life of the replicated state they sign in.
    pub fork: Fork,
}

/// A well-formed record that claims to be signed.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedRecord {
    content: Content,
    encoded: Vec<u8>,
}

impl SignedRecord {
    /// Signs a record (managers only). `version.fork` is the present fork, `version.epoch` the epoch it is attested in.
    pub fn sign(
        key: &SigningKey,
        cluster: ClusterId,
        version: RecordVersion,
        body: RecordBody,
    ) -> Result<SignedRecord, RecordError> {
        body.check()?;
        let content = Content { version, signer: crypto::verifying_key_id(&key.public()), body };
        let mut encoded = postcard::to_stdvec(&content).map_err(|_| RecordError::Malformed)?;
        let signature = key.sign(&signed_message(cluster, &encoded));
        encoded.extend_from_slice(&signature);
        if encoded.len() > RECORD_MAX { Err(RecordError::TooLong) } else { Ok(SignedRecord { content, encoded }) }
    }

    /// Reads the encoding, all of it. The signature is not checked yet.
    pub fn parse(encoded: &[u8]) -> Result<SignedRecord, RecordError> {
        if encoded.len() > RECORD_MAX {
            return Err(RecordError::TooLong);
        }
        let (bytes, _) = encoded.split_last_chunk::<SIGNATURE_LEN>().ok_or(RecordError::Malformed)?;
        let content: Content = postcard::from_bytes(bytes).map_err(|_| RecordError::Malformed)?;
        if postcard::to_stdvec(&content).ok().as_deref() != Some(bytes) {
            return Err(RecordError::Malformed);
        }
        content.body.check()?;
        Ok(SignedRecord { content, encoded: encoded.to_vec() })
    }

    /// The encoding.
    pub fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// What it is about.
    pub fn key(&self) -> RecordKey {
        self.content.body.key()
    }

    /// Its age. Compare it with the known record's before spending a signature check.
    pub fn version(&self) -> RecordVersion {
        self.content.version
    }

    /// What it claims. Not to be acted on before [`SignedRecord::verify`].
    pub fn body(&self) -> &RecordBody {
        &self.content.body
    }

    /// Checks fork, signer and signature.
    pub fn verify(self, trust: &TrustBundle, cluster: ClusterId) -> Result<VerifiedRecord, RecordError> {
        if self.content.version.fork != trust.fork || self.content.version.generation.fork > trust.fork {
            return Err(RecordError::OtherFork);
        }
        let trusted = trust.keys.iter().take(TRUSTED_KEYS_MAX);
        let mut candidates = trusted.filter(|key| crypto::verifying_key_id(key) == self.content.signer).peekable();
        candidates.peek().ok_or(RecordError::UnknownSigner)?;
        let (bytes, signature) = self.encoded.split_last_chunk::<SIGNATURE_LEN>().ok_or(RecordError::Malformed)?;
        let message = signed_message(cluster, bytes);
        if candidates.any(|key| crypto::verify(key, &message, signature).is_ok()) {
            Ok(VerifiedRecord(Arc::new(self)))
        } else {
            Err(RecordError::Unauthentic)
        }
    }
}

fn signed_message(cluster: ClusterId, content: &[u8]) -> Vec<u8> {
    [SIGNATURE_LABEL, cluster.as_bytes(), content].concat()
}

impl fmt::Debug for SignedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.content.fmt(f)
    }
}

impl Serialize for SignedRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.encoded.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SignedRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SignedRecord, D::Error> {
        SignedRecord::parse(&Vec::<u8>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A record that the managers signed. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRecord(Arc<SignedRecord>);

impl VerifiedRecord {
    /// What it says.
    pub fn body(&self) -> &RecordBody {
        self.0.body()
    }

    /// What it is about.
    pub fn key(&self) -> RecordKey {
        self.0.key()
    }

    /// Its age.
    pub fn version(&self) -> RecordVersion {
        self.0.version()
    }

    /// The record as it travels.
    pub fn signed(&self) -> &SignedRecord {
        &self.0
    }

    /// The node record, if it is one.
    pub fn node(&self) -> Option<&NodeRecord> {
        if let RecordBody::Node(record) = self.body() { Some(record) } else { None }
    }

    /// The endpoint record, if it is one.
    pub fn endpoint(&self) -> Option<&EndpointRecord> {
        if let RecordBody::Endpoint(record) = self.body() { Some(record) } else { None }
    }

    /// Opens the body of an endpoint record with the network's key of [`RecordVersion::epoch`].
    pub fn open_endpoint(&self, network_key: &Key32, cluster: ClusterId) -> Result<EndpointBody, RecordError> {
        let version = self.version();
        let record = self.endpoint().ok_or(RecordError::Malformed)?;
        record.open(network_key, (cluster, version.fork, version.epoch))
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
