//! What this host has, for people to look at.

use crate::types::HostResources;
use std::fs;

/// Read anew at each call; 0 where the host does not tell.
pub fn own_resources() -> HostResources {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    HostResources {
        processors: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory_bytes: kibibytes.unwrap_or(0u64).saturating_mul(1024),
    }
}
