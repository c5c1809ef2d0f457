//! Processor time and memory, from /proc.

use anyhow::{Context, Result};
use netns_tests::process::status_of;

/// Clock ticks of /proc in a second: `USER_HZ`, 100 on all machines that Formic is built for.
const TICKS_PER_SEC: f64 = 100.0;

/// Seconds that a process and all its threads have used.
pub fn process_cpu_secs(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(process_ticks(&text).context(path)? as f64 / TICKS_PER_SEC)
}

/// Seconds that all processors of the machine were busy.
pub fn system_cpu_secs() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    Ok(system_ticks(&text).context("/proc/stat")? as f64 / TICKS_PER_SEC)
}

/// Octets of a process that are in memory.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    bytes(&status_of(pid, "VmRSS")).with_context(|| format!("VmRSS of process {pid}"))
}

/// `utime` and `stime`. The name in parentheses may hold anything.
fn process_ticks(stat: &str) -> Option<u64> {
    const UTIME: usize = 14 - 3;
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(UTIME);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// user, nice, system, irq, softirq; neither idle and iowait nor what the hypervisor took.
fn system_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

/// `5120 kB`
fn bytes(size: &str) -> Option<u64> {
    Some(size.strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_a_process() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 123 77 5 6 20 0 4 0 100 1000 10";
        assert_eq!(process_ticks(stat), Some(200));
        assert_eq!(process_ticks("42 (a) S 1 2"), None);
        assert_eq!(process_ticks(""), None);
    }

    #[test]
    fn ticks_of_the_machine() {
        let stat = "cpu  10 2 30 4000 50 6 7 80 9 0\ncpu0 1 1 1 1 1 1 1 0 0 0\n";
        assert_eq!(system_ticks(stat), Some(10 + 2 + 30 + 6 + 7));
        assert_eq!(system_ticks("cpu  1 2 3\n"), None);
        assert_eq!(system_ticks("intr 1\n"), None);
    }

    #[test]
    fn memory() {
        assert_eq!(bytes("5120 kB"), Some(5_242_880));
        assert_eq!((bytes(""), bytes("12"), bytes("x kB")), (None, None, None));
    }

    #[test]
    fn this_process_has_used_something() {
        let pid = std::process::id();
        assert!(process_cpu_secs(pid).unwrap() >= 0.0 && system_cpu_secs().unwrap() > 0.0);
        assert!(resident_bytes(pid).unwrap() > 100_000);
    }
}
