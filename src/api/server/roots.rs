//! What Docker's clients are told of root certificates: which one the swarm wants, and which one each node has.

use crate::api::types::TlsInfo;
use crate::cluster::{Node, State};

/// The trusted roots as clients are told of them.
pub(super) struct Roots(Vec<([u8; 32], TlsInfo)>);

impl Roots {
    /// Those of the state.
    pub(super) fn of(state: &State) -> Roots {
        Roots(state.roots_by_digest().into_iter().map(|(digest, root)| (digest, describe(root))).collect())
    }

    /// The one that issues.
    pub(super) fn wanted(&self) -> TlsInfo {
        self.0.last().map(|(_, info)| info.clone()).unwrap_or_default()
    }

    /// The one that a node's certificate was issued under.
    pub(super) fn of_node(&self, node: &Node) -> TlsInfo {
        let own = self.0.iter().find(|(digest, _)| *digest == node.root);
        own.map(|(_, info)| info.clone()).unwrap_or_default()
    }
}

fn describe(root: &[u8]) -> TlsInfo {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(root) else { return TlsInfo::default() };
    TlsInfo {
        trust_root: pem::encode_config(
            &pem::Pem::new("CERTIFICATE", root),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        ),
        cert_issuer_subject: base64(parsed.subject().as_raw()),
        cert_issuer_public_key: base64(parsed.public_key().raw),
    }
}

/// Base64, which is what PEM has between its first and its last line.
fn base64(octets: &[u8]) -> String {
    let text = pem::encode(&pem::Pem::new("X", octets));
    text.lines().filter(|line| !line.starts_with('-')).collect()
}
