//! Commands on networks.

use super::apply::{Outcome, done};
use super::limits::{NETWORKS, check_labels, check_network_name, check_room, not_found};
use super::{Network, Refusal, State, ipam};
use crate::types::{NetworkId, NetworkSpec, UnixTime};
use std::collections::BTreeMap;

/// Names that Docker gives a meaning of their own.
const PREDEFINED: [&str; 6] = ["bridge", "default", "docker_gwbridge", "host", "ingress", "none"];

impl State {
    pub(super) fn create_network(&mut self, id: NetworkId, spec: &NetworkSpec, at: UnixTime) -> Outcome {
        check_network_name(&spec.name)?;
        if PREDEFINED.contains(&spec.name.as_str()) {
            let text = format!("operation is not permitted on predefined {} network", spec.name);
            return Err(Refusal::Forbidden(text));
        }
        if self.networks.values().any(|network| network.spec.name == spec.name) {
            return Err(Refusal::Conflict(format!("network with name {} already exists", spec.name)));
        }
        if self.networks.contains_key(&id) {
            return Err(Refusal::Conflict(format!("network with id {id} already exists")));
        }
        check_room("networks", self.networks.len(), NETWORKS)?;
        check_labels("labels", &spec.labels)?;
        check_labels("options", &spec.options)?;
        let subnet = ipam::choose_subnet(&self.cluster.spec, self.networks.values(), spec.subnet)?;
        let gateway = ipam::choose_gateway(&subnet, spec.gateway)?;
        ipam::check_details(&subnet, gateway, spec)?;
        let cursor = ipam::first_cursor(&subnet);
        let (spec, addresses, version) = (spec.clone(), BTreeMap::new(), self.index);
        let network = Network { id, spec, subnet, gateway, cursor, addresses, created_at: at, version };
        self.networks.insert(id, network);
        done()
    }

    pub(super) fn remove_network(&mut self, id: NetworkId) -> Outcome {
        let network = self.networks.get(&id).ok_or_else(|| not_found("network", id))?;
        let name = &network.spec.name;
        let uses = |service: &&super::Service| service.spec.networks.iter().any(|(network, _)| *network == id);
        if let Some(service) = self.services.values().filter(|service| !service.removing).find(uses) {
            return Err(Refusal::Invalid(format!("network {name} is in use by service {}", service.spec.name)));
        }
        // Also a task on its way out: until its node says that it is gone it can still send.
        if let Some(task) = network.addresses.values().next() {
            let user = self.attached_name(*task).unwrap_or_else(|| format!("task {task}"));
            return Err(Refusal::Invalid(format!("network {name} is in use by {user}")));
        }
        // A service on its way out that has tasks without an address creates none any more: nothing is left.
        self.networks.remove(&id);
        self.freed.retain(|(_, endpoint), _| endpoint.network != id);
        done()
    }
}
