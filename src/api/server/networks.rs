//! Networks: create, list, inspect, remove; and the refusal to connect a container.

use super::backend::Backend;
use super::error::ApiError;
use super::filters::Filters;
use super::request::Request;
use super::{lookup, manager_state, names, random, respond, schema, time};
use crate::agent::LocalTask;
use crate::api::types::{
    Ipam, IpamConfig, NetworkConnect, NetworkContainer, NetworkCreate, NetworkCreated, NetworkResource,
};
use crate::cluster::{Command, Network, State};
use crate::types::{NetworkId, NetworkName, NetworkSpec, unmanaged_text};
use hyper::StatusCode;
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The only driver.
pub(super) const OVERLAY: &str = "overlay";

/// The option that asks for secrecy.
const ENCRYPTED: &str = "encrypted";

/// The option that bounds the MTU inside.
const MTU: &str = "com.docker.network.driver.mtu";

pub(super) async fn create(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    manager_state(backend)?;
    let wanted: NetworkCreate = request.json(&schema::NETWORK_CREATE)?;
    let spec = spec_from(wanted)?;
    let warning = spec.subnet.and_then(|subnet| host_route_warning(subnet, &backend.host_routes()));
    let id = NetworkId::from_random(random()?);
    backend.propose(Command::CreateNetwork { id, spec }).await?;
    if let Some(warning) = &warning {
        tracing::warn!(network = %id, "{warning}");
    }
    let created = NetworkCreated { id: id.to_string(), warning: warning.unwrap_or_default() };
    Ok(respond::json_with(StatusCode::CREATED, &created))
}

/// What a request for a network means. Pure.
pub(super) fn spec_from(wanted: NetworkCreate) -> Result<NetworkSpec, ApiError> {
    if !matches!(wanted.driver.as_str(), OVERLAY) {
        let text =
            format!("unsupported driver {:?}: Formic has overlay networks only, use --driver overlay", wanted.driver);
        return Err(ApiError::bad_request(text));
    }
    let (encrypted, mtu_bytes) = read_options(&wanted.options)?;
    let Addressing { subnet, gateway, ip_range, auxiliary } = read_ipam(&wanted.ipam)?;
    let NetworkCreate { name, labels, options, attachable, internal, .. } = wanted;
    Ok(NetworkSpec {
        name,
        labels,
        options,
        encrypted,
        subnet,
        gateway,
        attachable,
        internal,
        ip_range,
        auxiliary,
        mtu_bytes,
    })
}

/// Whether it is to be secret, and its MTU.
fn read_options(options: &BTreeMap<String, String>) -> Result<(bool, Option<u32>), ApiError> {
    let (mut encrypted, mut mtu_bytes) = (false, None);
    for (name, value) in options {
        match name.as_str() {
            ENCRYPTED => {
                encrypted = names::parse_switch(value).ok_or_else(|| {
                    ApiError::bad_request(format!(
                        "invalid value {value:?} of option {ENCRYPTED}: it must be true or false (empty is true)"
                    ))
                })?;
            }
            MTU => {
                let mtu = value.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "invalid value {value:?} of option {MTU}: it must be a number of bytes"
                    ))
                })?;
                mtu_bytes = Some(mtu);
            }
            _ => {
                return Err(ApiError::bad_request(format!(
                    "unsupported option {name}: Formic knows the options {ENCRYPTED} and {MTU} only"
                )));
            }
        }
    }
    Ok((encrypted, mtu_bytes))
}

/// What a network's addresses are to be.
#[derive(Default)]
struct Addressing {
    subnet: Option<IpNet>,
    gateway: Option<IpAddr>,
    ip_range: Option<IpNet>,
    auxiliary: BTreeMap<String, IpAddr>,
}

fn read_ipam(ipam: &Ipam) -> Result<Addressing, ApiError> {
    let config = match ipam.config.as_slice() {
        [] => return Ok(Addressing::default()),
        [config] => config,
        _ => return Err(ApiError::bad_request("a network has one subnet: give --subnet once")),
    };
    if config.subnet.is_empty() {
        let what = if config.gateway.is_empty() { "an ip-range or aux-address" } else { "a gateway" };
        return Err(ApiError::bad_request(format!("{what} needs its subnet: give --subnet too")));
    }
    let subnet = read_subnet(&config.subnet)?;
    let gateway = (!config.gateway.is_empty()).then(|| read_inside("gateway", &config.gateway, subnet)).transpose()?;
    let ip_range = (!config.ip_range.is_empty()).then(|| read_range(&config.ip_range, subnet)).transpose()?;
    let auxiliary = config
        .auxiliary_addresses
        .iter()
        .map(|(name, address)| Ok((name.clone(), read_inside("aux-address", address, subnet)?)));
    let auxiliary = auxiliary.collect::<Result<_, ApiError>>()?;
    Ok(Addressing { subnet: Some(IpNet::V4(subnet)), gateway, ip_range, auxiliary })
}

/// An address of the subnet.
fn read_inside(what: &str, text: &str, subnet: Ipv4Net) -> Result<IpAddr, ApiError> {
    let address = text
        .parse()
        .map_err(|_| ApiError::bad_request(format!("invalid {what} {text:?}: it must be an IPv4 address")))?;
    if !subnet.contains(&address) {
        return Err(ApiError::bad_request(format!("no matching subnet for {what} {address}: it is not in {subnet}")));
    }
    Ok(IpAddr::V4(address))
}

fn read_range(text: &str, subnet: Ipv4Net) -> Result<IpNet, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid ip-range {text:?}: it must look like 10.1.0.0/28"));
    let range: Ipv4Net = text.parse().map_err(|_| invalid())?;
    if !subnet.contains(&range) {
        return Err(ApiError::bad_request(format!("no matching subnet for range {range}: it is not in {subnet}")));
    }
    Ok(IpNet::V4(range.trunc()))
}

/// An IPv4 subnet without host bits.
pub(super) fn read_subnet(text: &str) -> Result<Ipv4Net, ApiError> {
    let subnet: IpNet = text
        .parse()
        .map_err(|_| ApiError::bad_request(format!("invalid subnet {text:?}: it must look like 10.1.0.0/24")))?;
    match subnet {
        IpNet::V6(_) => Err(ApiError::bad_request(format!("unsupported subnet {text}: IPv6 is not offered yet"))),
        IpNet::V4(subnet) if subnet.trunc() != subnet => {
            Err(ApiError::bad_request(format!("invalid subnet {text}: it should be {}", subnet.trunc())))
        }
        IpNet::V4(subnet) => Ok(subnet),
    }
}

fn host_route_warning(subnet: IpNet, routes: &[Ipv4Net]) -> Option<String> {
    routes.iter().find(|route| IpNet::V4(**route) == subnet).map(|route| {
        format!("subnet {route} is also a route of this host: containers on the network cannot reach those hosts")
    })
}

/// Filters of `network ls`.
const FILTERS: [&str; 7] = ["id", "name", "driver", "scope", "label", "type", "dangling"];

pub(super) fn list(backend: &dyn Backend, request: &Request) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let filters = Filters::parse(request.query("filters"), &FILTERS)?;
    let tasks = backend.tasks();
    let networks = filtered(&state, &filters)?;
    Ok(respond::json(&networks.into_iter().map(|network| describe(network, &tasks)).collect::<Vec<_>>()))
}

fn filtered<'a>(state: &'a State, filters: &Filters) -> Result<Vec<&'a Network>, ApiError> {
    let dangling = filters.flag("dangling")?;
    let used = |network: &Network| {
        state.services.values().any(|service| service.spec.networks.iter().any(|(id, _)| *id == network.id))
            || state
                .tasks
                .values()
                .any(|task| task.attachments.iter().any(|attachment| attachment.network == network.id))
    };
    let fits = |network: &&Network| {
        filters.any("id", |id| network.id.to_string().starts_with(id))
            && filters.any("name", |name| network.spec.name.contains(name))
            && filters.any("driver", |driver| driver == OVERLAY)
            && filters.any("scope", |scope| scope == "swarm")
            && filters.any("type", |kind| kind == "custom")
            && filters.labels("label", &network.spec.labels)
            && dangling.is_none_or(|dangling| dangling != used(network))
    };
    Ok(state.networks.values().filter(fits).collect())
}

pub(super) fn inspect(backend: &dyn Backend, request: &Request, wanted: &str) -> Result<respond::Response, ApiError> {
    let state = manager_state(backend)?;
    let scope = request.query("scope").unwrap_or_default();
    if !matches!(scope, "" | "swarm") {
        return Err(ApiError::not_found(format!("network {wanted} not found")));
    }
    Ok(respond::json(&describe(lookup::network(&state, wanted)?, &backend.tasks())))
}

pub(super) async fn remove(backend: &dyn Backend, wanted: &str) -> Result<respond::Response, ApiError> {
    let id = lookup::network(&*manager_state(backend)?, wanted)?.id;
    backend.propose(Command::RemoveNetwork { id }).await?;
    Ok(respond::empty(StatusCode::NO_CONTENT))
}

/// `network connect`: unmanaged containers have no keys.
pub(super) fn connect(backend: &dyn Backend, request: &Request, wanted: &str) -> Result<respond::Response, ApiError> {
    let connect: NetworkConnect = super::request::from_value(request.value()?)?;
    let network = lookup::network_name(&known_names(backend), wanted)?;
    tracing::debug!(network = network.name, container = connect.container, "refused to connect a container");
    require_attachable(&network)?;
    Err(ApiError::not_implemented(
        "the networks of a container of Formic are those of its service: `formic attach` puts a namespace of your own on one",
    ))
}

/// The refusal of the specification, the same on every node.
pub(super) fn require_attachable(network: &NetworkName) -> Result<(), ApiError> {
    if network.attachable { Ok(()) } else { Err(ApiError::forbidden(unmanaged_text(&network.name))) }
}

/// What this node knows of networks: the manager's state, or what the managers told this node.
pub(super) fn known_names(backend: &dyn Backend) -> Vec<NetworkName> {
    match backend.state() {
        Some(state) => state.networks.values().map(Network::told).collect(),
        None => backend.network_names(),
    }
}

/// The names of networks by the text of their ids.
pub(super) fn names_by_id(backend: &dyn Backend) -> BTreeMap<String, String> {
    known_names(backend).into_iter().map(|known| (known.id.to_string(), known.name)).collect()
}

/// A network as `network inspect` shows it; its containers are the tasks of this node.
pub(super) fn describe(network: &Network, tasks: &[LocalTask]) -> NetworkResource {
    NetworkResource {
        name: network.spec.name.clone(),
        id: network.id.to_string(),
        created: time::rfc3339(network.created_at),
        scope: "swarm".into(),
        driver: OVERLAY.into(),
        enable_ipv4: matches!(network.subnet, IpNet::V4(_)),
        enable_ipv6: matches!(network.subnet, IpNet::V6(_)),
        internal: network.spec.internal,
        attachable: network.spec.attachable,
        ipam: Ipam { driver: "default".into(), options: None, config: vec![ipam_config(network)] },
        containers: tasks.iter().filter_map(|task| container(network, task)).collect(),
        options: network.spec.options.clone(),
        labels: network.spec.labels.clone(),
        ..NetworkResource::default()
    }
}

/// Subnet, gateway and what else is said of addresses, as the API writes them.
pub(super) fn ipam_config(network: &Network) -> IpamConfig {
    let auxiliary = network.spec.auxiliary.iter().map(|(name, address)| (name.clone(), address.to_string()));
    IpamConfig {
        subnet: network.subnet.to_string(),
        gateway: network.gateway.to_string(),
        ip_range: network.spec.ip_range.map(|range| range.to_string()).unwrap_or_default(),
        auxiliary_addresses: auxiliary.collect(),
    }
}

fn container(network: &Network, task: &LocalTask) -> Option<(String, NetworkContainer)> {
    let id = task.assignment.id.to_string();
    let attachment = task.assignment.attachments.iter().find(|attachment| attachment.network == network.id)?;
    let (ipv4, ipv6) = match attachment.address {
        IpNet::V4(address) => (address.to_string(), String::new()),
        IpNet::V6(address) => (String::new(), address.to_string()),
    };
    let container = NetworkContainer {
        name: super::containers::long_name(task),
        endpoint_id: id.clone(),
        mac_address: String::new(),
        ipv4_address: ipv4,
        ipv6_address: ipv6,
    };
    (!task.status.state.is_terminal()).then_some((id, container))
}
