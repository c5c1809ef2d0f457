//! Who is believed.

use super::identity::{Identity, Peer};
use crate::crypto;
use crate::types::{ClusterId, Role};
use crate::wire::control::ALPN;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::sync::Arc;

/// Why a server is not the manager we look for, beyond what X.509 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The root certificate is not the token's.
    #[error(
        "remote CA does not match fingerprint: the join token belongs to another swarm, or something sits in between"
    )]
    WrongRoot,
    /// A node, but not a manager.
    #[error("the remote node is not a manager of the swarm")]
    NotManager,
    /// A manager of another swarm.
    #[error("the remote node belongs to another swarm")]
    OtherSwarm,
}

/// Which managers a client believes.
#[derive(Debug)]
pub(super) enum Trust {
    /// The root has this SHA-256 (a joiner: all it has is the token).
    Digest([u8; 32]),
    /// The root is one of these, and the swarm is this (a node in its swarm).
    Roots(Vec<CertificateDer<'static>>, ClusterId),
}

#[derive(Debug)]
struct ManagerVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ManagerVerifier {
    /// The roots to verify under: the known ones, or the presented one with the token's digest.
    fn roots(&self, presented: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        match &self.trust {
            Trust::Roots(known, _) => known.iter().try_for_each(|root| roots.add(root.clone()))?,
            Trust::Digest(digest) => {
                let pinned = presented.iter().find(|certificate| crypto::sha256(&[certificate]) == *digest);
                roots.add(pinned.ok_or_else(|| refuse(PeerError::WrongRoot))?.clone().into_owned())?;
            }
        }
        Ok(roots)
    }

    fn check_names(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let peer = Peer::of(certificate).map_err(|_| refuse(PeerError::NotManager))?;
        if peer.role != Role::Manager {
            return Err(refuse(PeerError::NotManager));
        }
        match &self.trust {
            Trust::Roots(_, cluster) if *cluster != peer.cluster => Err(refuse(PeerError::OtherSwarm)),
            _ => Ok(()),
        }
    }
}

fn refuse(reason: PeerError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(intermediates)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, intermediates, now, algorithms)?;
        self.check_names(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The client's side: with a certificate when the node has one.
pub(super) fn client_config(trust: Trust, identity: Option<&Identity>) -> Result<ClientConfig, Error> {
    let provider = provider();
    let verifier = ManagerVerifier { trust, provider: provider.clone() };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain(), identity.private_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The manager's side: a client certificate is optional, since a joiner has none, but one that is given must
/// stand under one of the swarm's roots (DER).
pub fn server_config(identity: &Identity, roots: &[Vec<u8>]) -> Result<Arc<ServerConfig>, Error> {
    let provider = provider();
    let mut trusted = RootCertStore::empty();
    roots.iter().try_for_each(|root| trusted.add(root.as_slice().into()))?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(identity.chain(), identity.private_key())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
