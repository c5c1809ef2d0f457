//! Addresses: subnets out of the swarm's pool, addresses out of a subnet. Arithmetic on numbers, the same for both
//! families; the checks admit IPv4 only for now.
//!
//! Invariants: subnets of two networks never overlap; the network, broadcast and gateway address are never given; a
//! freed address is not given again before the search has gone round the whole subnet.

use super::limits::{AUXILIARY, MAX_SUBNET_PREFIX, MIN_SUBNET_PREFIX, NETWORK_MTU_BYTES};
use super::{Network, Refusal};
use crate::types::{ClusterSpec, NetworkSpec, TaskId};
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Blocks that no overlay may use, with what they are.
const SPECIAL_BLOCKS: [(Ipv4Net, &str); 5] = [
    (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "\"this network\""),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local"),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
    (Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4), "reserved"),
];

/// The subnet of a new network: the wanted one if it is allowed, or the pool's lowest free one.
pub(super) fn choose_subnet<'a>(
    spec: &ClusterSpec,
    networks: impl Iterator<Item = &'a Network>,
    wanted: Option<IpNet>,
) -> Result<IpNet, Refusal> {
    match wanted {
        Some(subnet) => check_wanted(subnet, networks),
        None => next_of_pool(spec, networks),
    }
}

fn check_wanted<'a>(subnet: IpNet, mut networks: impl Iterator<Item = &'a Network>) -> Result<IpNet, Refusal> {
    let IpNet::V4(block) = subnet else {
        return Err(Refusal::Invalid(format!("subnet {subnet}: IPv6 networks are not supported yet")));
    };
    if block.prefix_len() > MAX_SUBNET_PREFIX {
        let text = format!("subnet {subnet} is too small: it needs room for a gateway and a task (/30 or wider)");
        return Err(Refusal::Invalid(text));
    }
    check_block("subnet", block)?;
    match networks.find(|network| overlap(&network.subnet, &subnet)) {
        None => Ok(subnet),
        Some(other) => {
            let text = format!("subnet {subnet} overlaps with {} of network {}", other.subnet, other.spec.name);
            Err(Refusal::Invalid(text))
        }
    }
}

/// What holds for subnets and the pool alike.
pub(super) fn check_block(what: &str, block: Ipv4Net) -> Result<(), Refusal> {
    if block.addr() != block.network() {
        let text = format!("{what} {block} has host bits set: did you mean {}?", block.trunc());
        return Err(Refusal::Invalid(text));
    }
    if block.prefix_len() < MIN_SUBNET_PREFIX {
        return Err(Refusal::Invalid(format!("{what} {block} is too large: /{MIN_SUBNET_PREFIX} is the widest")));
    }
    match SPECIAL_BLOCKS.iter().find(|(special, _)| special.contains(&block) || block.contains(special)) {
        None => Ok(()),
        Some((_, kind)) => Err(Refusal::Invalid(format!("{what} {block} holds {kind} addresses"))),
    }
}

/// The pool's first subnet stays free: Docker gives 10.0.0.0/24 to its `ingress` network, users know their first own
/// network as 10.0.1.0/24, and published ports will need it here too.
fn next_of_pool<'a>(spec: &ClusterSpec, networks: impl Iterator<Item = &'a Network>) -> Result<IpNet, Refusal> {
    let mut taken: Vec<RangeInclusive<u128>> = networks.map(|network| span(&network.subnet)).collect();
    taken.sort_by_key(|range| *range.start());
    let pool = span(&spec.address_pool);
    let bits = u32::from(spec.address_pool.max_prefix_len().saturating_sub(spec.subnet_prefix));
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    let mut start = pool.start().saturating_add(size);
    // One pass: subnets do not overlap, so sorted by start they are sorted by end.
    for range in taken {
        if *range.end() >= start && *range.start() < start.saturating_add(size) {
            start = range.end().saturating_add(1).div_ceil(size).saturating_mul(size);
        }
    }
    let found = IpNet::new(address_of(start, &spec.address_pool), spec.subnet_prefix).ok();
    found.filter(|_| start.saturating_add(size - 1) <= *pool.end()).ok_or_else(|| {
        let (prefix, pool) = (spec.subnet_prefix, spec.address_pool);
        Refusal::NotNow(format!("no free /{prefix} left in the address pool {pool}: remove a network or give a subnet"))
    })
}

/// The gateway of a new network: the wanted one if it is a host address of the subnet, or the first.
pub(super) fn choose_gateway(subnet: &IpNet, wanted: Option<IpAddr>) -> Result<IpAddr, Refusal> {
    let hosts = hosts(subnet);
    let Some(gateway) = wanted else { return Ok(address_of(*hosts.start(), subnet)) };
    if gateway.is_ipv4() == subnet.addr().is_ipv4() && hosts.contains(&number_of(gateway)) {
        Ok(gateway)
    } else {
        Err(Refusal::Invalid(format!("gateway {gateway} is not a host address of subnet {subnet}")))
    }
}

/// What a new network has beside its subnet and gateway.
pub(super) fn check_details(subnet: &IpNet, gateway: IpAddr, spec: &NetworkSpec) -> Result<(), Refusal> {
    let NetworkSpec { ip_range, auxiliary, mtu_bytes, .. } = spec;
    if let Some(range) = ip_range.filter(|range| !subnet.contains(range)) {
        return Err(Refusal::Invalid(format!("ip-range {range} is not in subnet {subnet}")));
    }
    if let Some(range) = ip_range.filter(|_| room(subnet, gateway, spec) == 0) {
        let text = format!("ip-range {range} holds no address of subnet {subnet} that can be given");
        return Err(Refusal::Invalid(text));
    }
    if auxiliary.len() > AUXILIARY {
        return Err(Refusal::Invalid(format!("at most {AUXILIARY} auxiliary addresses are allowed")));
    }
    let hosts = hosts(subnet);
    for address in auxiliary.values() {
        if address.is_ipv4() != subnet.addr().is_ipv4() || !hosts.contains(&number_of(*address)) {
            return Err(Refusal::Invalid(format!(
                "auxiliary address {address} is not a host address of subnet {subnet}"
            )));
        }
        if *address == gateway {
            return Err(Refusal::Invalid(format!("auxiliary address {address} is the gateway's")));
        }
    }
    if let Some(mtu) = mtu_bytes.filter(|mtu| !NETWORK_MTU_BYTES.contains(mtu)) {
        let (least, most) = (NETWORK_MTU_BYTES.start(), NETWORK_MTU_BYTES.end());
        return Err(Refusal::Invalid(format!("an MTU of {mtu} bytes is not possible: {least} to {most} are")));
    }
    Ok(())
}

impl Network {
    /// How many tasks it has room for.
    pub fn capacity(&self) -> u128 {
        room(&self.subnet, self.gateway, &self.spec)
    }

    /// How many more tasks it has room for.
    pub fn free(&self) -> u128 {
        let range = self.range();
        let taken = self.addresses.keys().filter(|address| range.contains(&number_of(**address))).count();
        self.capacity().saturating_sub(taken as u128)
    }

    fn range(&self) -> RangeInclusive<u128> {
        given(&self.subnet, &self.spec)
    }

    /// Whether it is the gateway's or an auxiliary address.
    fn is_reserved(&self, address: &IpAddr) -> bool {
        *address == self.gateway || self.spec.auxiliary.values().any(|reserved| reserved == address)
    }

    /// An address that somebody has to have, with the subnet's prefix length.
    pub(super) fn wanted_address(&self, address: IpAddr) -> Result<IpNet, Refusal> {
        let (name, subnet) = (&self.spec.name, self.subnet);
        let family = address.is_ipv4() == subnet.addr().is_ipv4();
        let net = IpNet::new(address, subnet.prefix_len()).ok();
        match net.filter(|_| family && hosts(&subnet).contains(&number_of(address))) {
            None => {
                Err(Refusal::Invalid(format!("{address} is not a host address of subnet {subnet} of network {name}")))
            }
            Some(_) if self.is_reserved(&address) || self.addresses.contains_key(&address) => {
                Err(Refusal::Invalid(format!("Address already in use: {address} of network {name}")))
            }
            Some(net) => Ok(net),
        }
    }

    /// Why no task can be added, when none can.
    pub(super) fn full_text(&self) -> String {
        format!("network {} is full: all {} addresses of {} are taken", self.spec.name, self.capacity(), self.subnet)
    }

    /// The next free address from the cursor on, going round once.
    pub(super) fn next_free(&self) -> Option<IpAddr> {
        let range = self.range();
        if range.is_empty() {
            return None;
        }
        let mut number = self.cursor.clamp(*range.start(), *range.end());
        // Each step passes an address that is taken, or reserved as the gateway is.
        for _ in 0..=self.addresses.len().saturating_add(self.spec.auxiliary.len()).saturating_add(1) {
            let address = address_of(number, &self.subnet);
            if !self.is_reserved(&address) && !self.addresses.contains_key(&address) {
                return Some(address);
            }
            number = following(number, &range);
        }
        None
    }

    /// Gives a free address to a task and moves the cursor past it.
    pub(super) fn take(&mut self, address: IpAddr, task: TaskId) {
        self.addresses.insert(address, task);
        let (number, range) = (number_of(address), self.range());
        // One that was asked for, outside of the range, says nothing of where the search stands.
        if range.contains(&number) {
            self.cursor = following(number, &range);
        }
    }
}

/// The addresses that are given without being asked for; none if the wanted range holds only the network's own or the
/// broadcast address.
fn given(subnet: &IpNet, spec: &NetworkSpec) -> RangeInclusive<u128> {
    let hosts = hosts(subnet);
    match spec.ip_range.map(|range| span(&range)) {
        Some(range) => *range.start().max(hosts.start())..=*range.end().min(hosts.end()),
        None => hosts,
    }
}

/// How many of them there are, without the reserved ones.
fn room(subnet: &IpNet, gateway: IpAddr, spec: &NetworkSpec) -> u128 {
    let range = given(subnet, spec);
    let inside = |address: &&IpAddr| range.contains(&number_of(**address));
    let reserved: BTreeSet<&IpAddr> = spec.auxiliary.values().chain([&gateway]).filter(inside).collect();
    let numbers = range.end().saturating_add(1).saturating_sub(*range.start());
    numbers.saturating_sub(reserved.len() as u128)
}

fn following(number: u128, hosts: &RangeInclusive<u128>) -> u128 {
    if number >= *hosts.end() { *hosts.start() } else { number.saturating_add(1) }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}

/// First and last address as numbers.
fn span(net: &IpNet) -> RangeInclusive<u128> {
    number_of(net.network())..=number_of(net.broadcast())
}

/// First and last host address: without the network and, in IPv4, the broadcast address.
fn hosts(net: &IpNet) -> RangeInclusive<u128> {
    let span = span(net);
    let last = if net.addr().is_ipv4() { span.end().saturating_sub(1) } else { *span.end() };
    span.start().saturating_add(1)..=last
}

/// Where the search for addresses starts in a new subnet.
pub(super) fn first_cursor(subnet: &IpNet) -> u128 {
    *hosts(subnet).start()
}

fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address with that number, of the family of `net`.
fn address_of(number: u128, net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}
