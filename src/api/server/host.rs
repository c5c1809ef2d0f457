//! What the host's `/proc` says: for `info`, and for the warning about a subnet that the host itself uses.

use ipnet::Ipv4Net;
use std::fs;
use std::net::Ipv4Addr;

/// Destinations of the host's IPv4 routes, without the default one. Empty when they cannot be read: this serves a
/// warning only.
pub(super) fn routes() -> Vec<Ipv4Net> {
    routes_in(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// Reads the format of `/proc/net/route`: addresses are hexadecimal in the byte order of the machine.
pub(super) fn routes_in(text: &str) -> Vec<Ipv4Net> {
    let address = |field: &str| u32::from_str_radix(field, 16).ok().map(|raw| Ipv4Addr::from(raw.to_ne_bytes()));
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let destination = address(fields.get(1)?)?;
            let mask = address(fields.get(7)?)?;
            Ipv4Net::with_netmask(destination, mask).ok()
        })
        .filter(|route| route.prefix_len() > 0)
        .collect()
}

/// The host's name.
pub(super) fn hostname() -> String {
    first_line("/proc/sys/kernel/hostname")
}

/// The kernel's release.
pub(super) fn kernel() -> String {
    first_line("/proc/sys/kernel/osrelease")
}

/// The system's name as `/etc/os-release` has it.
pub(super) fn operating_system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The architecture as Go names it, which is what Docker's clients expect.
pub(super) fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}
