//! A node's key and certificate chain on disk, and what a certificate says about its holder.

use crate::crypto;
use crate::sys::random;
use crate::types::{ClusterId, Key32, NodeId, Role, UnixTime};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Bytes of an identity file at most: a key and three certificates are below 4 KiB.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// PEM label of the key as it is.
const PLAIN_KEY: &str = "PRIVATE KEY";

/// PEM label of the key sealed under HKDF(seal, 32 random octets), behind these.
const SEALED_KEY: &str = "SEALED PRIVATE KEY";

const SEAL_LABEL: &[u8] = b"formic sealed identity v1";

/// PEM label of a root that is trusted beside the chain's own.
const FURTHER_ROOT: &str = "TRUSTED CERTIFICATE";

const MANAGER: &str = "swarm-manager";
const WORKER: &str = "swarm-worker";

/// Why an identity was not made, read or stored.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system refuses.
    #[error("cannot use {path}: {cause}; restore it, or remove the state directory and join again")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The file is not an identity.
    #[error(
        "{0} is not a node identity (key and certificates): restore it, or remove the state directory and join again"
    )]
    Damaged(PathBuf),
    /// Its key is sealed, and not under the seal that is at hand.
    #[error("the key in {0} is sealed, and not by this manager's state: leave the swarm and join again")]
    Sealed(PathBuf),
    /// A certificate does not name a node of a swarm.
    #[error("the certificate does not name a node, a role and a swarm")]
    Certificate,
    /// The cryptographic library refuses.
    #[error("cannot make a key: {0}")]
    Key(String),
}

/// What a certificate says about its holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The node (CN).
    pub node: NodeId,
    /// Its role (OU).
    pub role: Role,
    /// Its swarm (O).
    pub cluster: ClusterId,
    /// From when the certificate counts.
    pub not_before: UnixTime,
    /// When it ends.
    pub expires: UnixTime,
}

impl Peer {
    /// Reads the names of a certificate. They mean something only when its chain was verified.
    pub fn of(certificate: &[u8]) -> Result<Peer, IdentityError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| IdentityError::Certificate)?;
        let subject = parsed.subject();
        let node = only(subject.iter_common_name())?.parse().map_err(|_| IdentityError::Certificate)?;
        let cluster = only(subject.iter_organization())?.parse().map_err(|_| IdentityError::Certificate)?;
        let role = match only(subject.iter_organizational_unit())? {
            MANAGER => Role::Manager,
            WORKER => Role::Worker,
            _ => return Err(IdentityError::Certificate),
        };
        let seconds = |time: x509_parser::time::ASN1Time| UnixTime(u64::try_from(time.timestamp()).unwrap_or(0));
        let validity = parsed.validity();
        let (not_before, expires) = (seconds(validity.not_before), seconds(validity.not_after));
        Ok(Peer { node, role, cluster, not_before, expires })
    }

    /// The OU of a role.
    pub fn unit(role: Role) -> &'static str {
        match role {
            Role::Manager => MANAGER,
            Role::Worker => WORKER,
        }
    }
}

/// The one attribute of its kind: a name with two of them could be read in two ways.
fn only<'a>(
    mut attributes: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
) -> Result<&'a str, IdentityError> {
    match (attributes.next(), attributes.next()) {
        (Some(attribute), None) => attribute.as_str().map_err(|_| IdentityError::Certificate),
        _ => Err(IdentityError::Certificate),
    }
}

/// A node's private key, made by the node itself (ECDSA P-256).
pub struct NodeKey(rcgen::KeyPair);

impl NodeKey {
    /// Draws a key.
    pub fn generate() -> Result<NodeKey, IdentityError> {
        rcgen::KeyPair::generate().map(NodeKey).map_err(|error| IdentityError::Key(error.to_string()))
    }

    /// A PKCS #10 request in DER. It carries the public key and proves that its sender has the private half; the
    /// manager chooses the names.
    pub fn request(&self) -> Result<Vec<u8>, IdentityError> {
        let request = rcgen::CertificateParams::default().serialize_request(&self.0);
        request.map(|request| request.der().to_vec()).map_err(|error| IdentityError::Key(error.to_string()))
    }
}

/// A node's key with its certificate chain, and whom it believes.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    /// Roots that are trusted beside the chain's own, while that one is being replaced.
    further_roots: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
    peer: Peer,
}

impl Identity {
    /// Joins a key and the chain (DER, leaf first, root last) that was made for it.
    pub fn new(key: &NodeKey, chain: Vec<Vec<u8>>) -> Result<Identity, IdentityError> {
        Identity::assemble(Zeroizing::new(key.0.serialized_der().to_vec()), chain, Vec::new())
    }

    fn assemble(
        key: Zeroizing<Vec<u8>>,
        chain: Vec<Vec<u8>>,
        further_roots: Vec<Vec<u8>>,
    ) -> Result<Identity, IdentityError> {
        let [leaf, .., _root] = chain.as_slice() else { return Err(IdentityError::Certificate) };
        let peer = Peer::of(leaf)?;
        let certificates = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect();
        Ok(Identity { chain: certificates(chain), further_roots: certificates(further_roots), key, peer })
    }

    /// The same key and chain, with these roots (DER) trusted, and always the chain's own.
    pub fn trusting(&self, roots: &[Vec<u8>]) -> Identity {
        let further = roots.iter().filter(|root| root.as_slice() != self.root().as_ref());
        let further_roots = further.cloned().map(CertificateDer::from).collect();
        Identity { chain: self.chain.clone(), further_roots, key: self.key.clone(), peer: self.peer }
    }

    /// What the certificate says.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The root certificate that its own was issued under, DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.chain.last().unwrap_or_else(|| unreachable!("an identity has a leaf and a root"))
    }

    /// All roots that are trusted, DER.
    pub fn trusted(&self) -> Vec<Vec<u8>> {
        self.roots().iter().map(|root| root.to_vec()).collect()
    }

    pub(super) fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.further_roots.iter().chain([self.root()]).cloned().collect()
    }

    /// The chain, leaf first.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The key for the TLS library, which wipes it.
    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.to_vec()).into()
    }

    /// Stores key and chain as one PEM file, mode 0600, durable, replaced in one step: a crash leaves the old one
    /// or the new one. The key is sealed, if there is a seal.
    pub fn save(&self, path: &Path, seal: Option<&Key32>) -> Result<(), IdentityError> {
        let failed = |cause| IdentityError::File { path: path.to_owned(), cause };
        let key = match seal {
            None => pem::Pem::new(PLAIN_KEY, self.key.to_vec()),
            Some(seal) => pem::Pem::new(SEALED_KEY, seal_key(seal, &self.key)),
        };
        let mut text = Zeroizing::new(pem::encode(&key));
        for certificate in &self.chain {
            text.push_str(&pem::encode(&pem::Pem::new("CERTIFICATE", certificate.to_vec())));
        }
        for root in &self.further_roots {
            text.push_str(&pem::encode(&pem::Pem::new(FURTHER_ROOT, root.to_vec())));
        }
        replace_private(path, text.as_bytes()).map_err(failed)
    }

    /// Reads what [`Identity::save`] wrote; `seal` opens a sealed key.
    pub fn load(path: &Path, seal: Option<&Key32>) -> Result<Identity, IdentityError> {
        let failed = |cause| IdentityError::File { path: path.to_owned(), cause };
        let damaged = || IdentityError::Damaged(path.to_owned());
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE_BYTES {
            return Err(damaged());
        }
        let text = Zeroizing::new(std::fs::read(path).map_err(failed)?);
        let (mut key, mut chain, mut further_roots) = (None, Vec::new(), Vec::new());
        for block in pem::parse_many(&*text).map_err(|_| damaged())? {
            match block.tag() {
                PLAIN_KEY => key = Some(Zeroizing::new(block.into_contents())),
                SEALED_KEY => {
                    let opened = seal.and_then(|seal| open_key(seal, block.contents()));
                    key = Some(opened.ok_or_else(|| IdentityError::Sealed(path.to_owned()))?);
                }
                "CERTIFICATE" => chain.push(block.into_contents()),
                FURTHER_ROOT => further_roots.push(block.into_contents()),
                _ => return Err(damaged()),
            }
        }
        Identity::assemble(key.ok_or_else(damaged)?, chain, further_roots).map_err(|_| damaged())
    }
}

/// Each random is used once, so the nonce may stand still.
fn seal_key(seal: &Key32, key: &[u8]) -> Vec<u8> {
    let random = random::bytes::<32>();
    let own = crypto::derive_key(&[seal.expose()], &[SEAL_LABEL, &random]);
    [random.as_slice(), &crypto::seal(&own, &[0; 12], SEAL_LABEL, key)].concat()
}

fn open_key(seal: &Key32, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (random, sealed) = sealed.split_first_chunk::<32>()?;
    let own = crypto::derive_key(&[seal.expose()], &[SEAL_LABEL, random]);
    crypto::open(&own, &[0; 12], SEAL_LABEL, sealed).ok()
}

/// Replaces a file that holds a secret: [`write_private`], and then the old file's octets are overwritten as far as the
/// file system lets us.
pub(crate) fn replace_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let old = std::fs::OpenOptions::new().write(true).open(path).ok();
    write_private(path, bytes)?;
    let Some(mut old) = old else { return Ok(()) };
    let length = old.metadata()?.len().min(MAX_FILE_BYTES);
    old.write_all(&vec![0; length as usize])?;
    old.sync_all()
}

/// Writes a file of mode 0600 durably and in one step. After an error the file is the old or the new one.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let directory = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut name = path.file_name().ok_or(std::io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let temporary = directory.join(name);
    // A leftover of a crash may have been made with another mode.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let put = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    put().inspect_err(|_| {
        // A part of a secret, on a disk that may be full: the next attempt removes it if this cannot.
        let _ = std::fs::remove_file(&temporary);
    })?;
    std::fs::File::open(directory)?.sync_all()
}
