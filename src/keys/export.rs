//! Keys for people: what `formic debug esp-keys` shows.

use super::NodeKeys;
use crate::esp::{SaKeys, wireshark_table};
use crate::types::{NetworkId, Transform};
use zeroize::Zeroizing;

/// Why there is no table of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoTable {
    /// Nothing of it runs here.
    #[error("no task of this network runs on this node: it holds no keys of it")]
    NotHere,
    /// It is not encrypted.
    #[error("this network is not encrypted: its packets are authenticated, and readable as they are")]
    NotSecret,
    /// No other node is known to be on it.
    #[error("no other node has a task on this network: there are no packets, and no keys")]
    NoPeer,
}

impl NodeKeys {
    /// The SAs of this node on an encrypted network with their keys, both ways, as Wireshark reads them. The keys are
    /// derived anew, as they were for the data plane: nothing is kept for this. What is handed out for an epoch that
    /// has not begun is left out: it would open what is yet to come.
    pub fn wireshark_table(&self, network: NetworkId, outer_ipv6: bool) -> Result<Zeroizing<String>, NoTable> {
        match self.networks.get(&network).map(|membership| membership.transform) {
            None => return Err(NoTable::NotHere),
            Some(Transform::Gmac) => return Err(NoTable::NotSecret),
            Some(Transform::Gcm) => {}
        }
        let mut identities = Vec::new();
        let begun = self.held.iter().filter(|(epoch, _)| Some(**epoch) <= self.active);
        for (&epoch, held) in begun {
            let Some(key) = held.networks.get(&network) else { continue };
            for (_, pair) in self.pairs.iter().filter(|((of, _), _)| *of == network) {
                let both = pair.outbounds(epoch).chain(pair.inbounds(epoch));
                identities.extend(both.map(|identity| (identity, &held.secret, key)));
            }
        }
        if identities.is_empty() {
            return Err(NoTable::NoPeer);
        }
        let sas = identities.iter().filter_map(|(identity, secret, key)| {
            let outbound = identity.src == self.config.node;
            let public = if outbound { identity.dst_public } else { identity.src_public };
            // It agreed when the SA was installed.
            let shared = secret.agree(&public).ok()?;
            Some(SaKeys::derive(key, &shared, identity))
        });
        Ok(wireshark_table(identities.len(), sas, outer_ipv6))
    }
}
