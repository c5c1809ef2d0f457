//! The swarm's certificate authority. It chooses the names; of a request only the key counts.

use crate::cluster::{CertificateAuthority, State};
use crate::crypto;
use crate::tls::{Peer, SKEW_ALLOWED};
use crate::types::{ClusterId, NodeId, Role, UnixTime};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use std::time::Duration;
use zeroize::Zeroizing;

/// Life of the root certificate: 20 years, as Docker's.
const ROOT_LIFE_SECS: u64 = 20 * 365 * 24 * 3600;

/// Octets of a certificate request at most: an ECDSA P-256 one is below 400.
const MAX_REQUEST_BYTES: usize = 8 << 10;

/// Why no certificate was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AuthorityError {
    /// The request is malformed or not signed by its own key.
    #[error("the certificate request is malformed")]
    Request,
    /// The cryptographic library refuses.
    #[error("cannot make a certificate: {0}")]
    Library(String),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> AuthorityError {
        AuthorityError::Library(error.to_string())
    }
}

/// Whom a certificate names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    pub(super) node: NodeId,
    pub(super) role: Role,
    pub(super) cluster: ClusterId,
}

/// A certificate with its chain.
#[derive(Debug)]
pub(super) struct Issued {
    /// DER, leaf first, root last.
    pub(super) chain: Vec<Vec<u8>>,
    /// When the leaf ends.
    pub(super) expires: UnixTime,
    /// SHA-256 of the root.
    pub(super) root: [u8; 32],
}

/// A fresh authority.
pub(super) fn create(cluster: ClusterId, now: UnixTime) -> Result<CertificateAuthority, AuthorityError> {
    let key = KeyPair::generate()?;
    let certificate = root_params(cluster, now).self_signed(&key)?;
    Ok(CertificateAuthority {
        certificate: certificate.der().to_vec(),
        key: Zeroizing::new(key.serialized_der().to_vec()),
    })
}

/// A fresh authority that takes the place of `present`, and its root as `present` signs it.
pub(super) fn succeed(
    present: &CertificateAuthority,
    cluster: ClusterId,
    now: UnixTime,
) -> Result<(CertificateAuthority, Vec<u8>), AuthorityError> {
    let next = create(cluster, now)?;
    let key = signing_key(&next)?;
    let issuer = Issuer::from_ca_cert_der(&present.certificate.as_slice().into(), signing_key(present)?)?;
    let mut params = root_params(cluster, now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let cross = params.signed_by(&key, &issuer)?;
    Ok((next, cross.der().to_vec()))
}

fn signing_key(authority: &CertificateAuthority) -> Result<KeyPair, AuthorityError> {
    let der = authority.key.as_slice().into();
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)?)
}

fn root_params(cluster: ClusterId, now: UnixTime) -> CertificateParams {
    let mut params = valid_for(now, ROOT_LIFE_SECS);
    params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
    params.distinguished_name.push(DnType::CommonName, "swarm-ca");
    // One more below it: the root that replaces it, as it signs it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Signs the key of a PKCS #10 request.
pub(super) fn issue(
    authority: &CertificateAuthority,
    request: &[u8],
    names: Names,
    now: UnixTime,
    life_secs: u64,
) -> Result<Issued, AuthorityError> {
    if request.len() > MAX_REQUEST_BYTES {
        return Err(AuthorityError::Request);
    }
    let request = CertificateSigningRequestParams::from_der(&request.into()).map_err(|_| AuthorityError::Request)?;
    let issuer = Issuer::from_ca_cert_der(&authority.certificate.as_slice().into(), signing_key(authority)?)?;
    let leaf = leaf(names, now, life_secs).signed_by(&request.public_key, &issuer)?;
    let expires = UnixTime(now.0.saturating_add(life_secs).saturating_add(SKEW_ALLOWED.as_secs()));
    let root = crypto::sha256(&[&authority.certificate]);
    Ok(Issued { chain: vec![leaf.der().to_vec(), authority.certificate.clone()], expires, root })
}

/// The certificate for the key of a request, under the state's root and with the way from the former one, if there is
/// one that nodes still know.
pub(super) fn issue_for(state: &State, request: &[u8], names: Names) -> Result<Issued, AuthorityError> {
    let cluster = &state.cluster;
    let life_secs = cluster.spec.certificate_secs;
    let mut issued = issue(&cluster.authority, request, names, super::wall_clock(), life_secs)?;
    if let Some(rotation) = &cluster.rotation {
        issued.chain.insert(1, rotation.cross.clone());
    }
    Ok(issued)
}

fn leaf(names: Names, now: UnixTime, life_secs: u64) -> CertificateParams {
    let mut params = valid_for(now, life_secs);
    params.distinguished_name.push(DnType::OrganizationName, names.cluster.to_string());
    params.distinguished_name.push(DnType::OrganizationalUnitName, Peer::unit(names.role));
    params.distinguished_name.push(DnType::CommonName, names.node.to_string());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if names.role == Role::Manager {
        // A worker's certificate is no server's, whatever else is checked.
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    params
}

fn valid_for(now: UnixTime, life_secs: u64) -> CertificateParams {
    let skew = SKEW_ALLOWED.as_secs();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = epoch + Duration::from_secs(now.0.saturating_sub(skew));
    params.not_after = epoch + Duration::from_secs(now.0.saturating_add(life_secs).saturating_add(skew));
    let mut serial = super::random::<16>();
    // A serial number is a positive integer (RFC 5280, section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}
