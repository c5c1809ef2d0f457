//! What this host is, as its managers are told.

use crate::types::{Machine, Resources};
use std::fs;

/// Billionths of a processor, in which processor time is counted.
const NANO: u64 = 1_000_000_000;

/// This host.
pub fn machine() -> Machine {
    Machine {
        os: std::env::consts::OS.into(),
        architecture: std::env::consts::ARCH.into(),
        resources: Resources { nano_cpus: processors().saturating_mul(NANO), memory_bytes: memory_bytes() },
    }
}

/// Bytes of memory; 0 when the kernel does not tell.
pub fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0u64).saturating_mul(1024)
}

/// Processors that this process may use.
pub fn processors() -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_something() {
        let Machine { os, architecture, resources } = machine();
        assert!(os == "linux" && !architecture.is_empty());
        assert!(resources.nano_cpus >= NANO && resources.memory_bytes > 1 << 20, "{resources:?}");
    }
}
