//! What is measured on a lane.

use super::lanes::Lane;
use super::metric::Metric;
use super::probe::{Echoes, echoes, flood};
use super::procfs::{process_cpu_secs, system_cpu_secs};
use super::stats::percentile;
use anyhow::{Context, Result, ensure};
use netns_tests::process;
use netns_tests::traffic::{IperfServer, in_network_of_pid};
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// One kind of measurement; each gives several metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One TCP flow, and what it costs.
    Tcp,
    /// Four TCP flows.
    Tcp4,
    /// Datagrams as fast as the sender can.
    Udp,
    /// Round trips with nothing else on the way.
    Idle,
    /// Round trips beside a TCP flow.
    Load,
    /// Round trips beside a neighbour that floods, where a lane has neighbours.
    Flooded,
}

/// What a lane may take until its first echo is answered.
const FIRST_ECHO: Duration = Duration::from_secs(10);

/// The TCP that is compared: the same everywhere, whatever the machine's default is.
const CONGESTION: &str = "cubic";

impl Kind {
    /// All.
    pub const ALL: [Kind; 6] = [Kind::Tcp, Kind::Tcp4, Kind::Udp, Kind::Idle, Kind::Load, Kind::Flooded];

    /// For options.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tcp => "tcp",
            Kind::Tcp4 => "tcp4",
            Kind::Udp => "udp",
            Kind::Idle => "idle",
            Kind::Load => "load",
            Kind::Flooded => "flooded",
        }
    }

    /// Measures once.
    pub fn measure(self, lane: &Lane, length: Duration) -> Result<Vec<(Metric, f64)>> {
        match self {
            Kind::Tcp => tcp_with_cost(lane, length),
            Kind::Tcp4 => Ok(vec![(Metric::Tcp4, gbits(tcp(lane, length, 4)?))]),
            Kind::Udp => {
                let flood = flood(lane, length)?;
                // WireGuard's MTU makes two fragments of a datagram: under a flood none may come whole, and that is a result.
                ensure!(flood.received_per_sec > 0.0 || !lane.is_formic(), "no datagram arrived");
                Ok(vec![
                    (Metric::UdpReceived, flood.received_per_sec / 1e3),
                    (Metric::UdpSent, flood.sent_per_sec / 1e3),
                ])
            }
            Kind::Idle => {
                let start = Instant::now();
                let found = echoes(lane, || start.elapsed() < length)?;
                round_trips(&found, Metric::IdleP50, Metric::IdleP99)
            }
            Kind::Load => loaded(lane, length),
            Kind::Flooded => flooded(lane, length),
        }
    }
}

/// Waits until the lane carries packets both ways.
pub fn wait_for_lane(lane: &Lane) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < FIRST_ECHO {
        let begin = Instant::now();
        if !echoes(lane, || begin.elapsed() < Duration::from_millis(20))?.micros.is_empty() {
            return Ok(());
        }
    }
    anyhow::bail!("{}: no echo came back within {FIRST_ECHO:?}", lane.name)
}

fn tcp_with_cost(lane: &Lane, length: Duration) -> Result<Vec<(Metric, f64)>> {
    let (tunnel, system) = (tunnel_cpu_secs(lane)?, system_cpu_secs()?);
    let flow = tcp(lane, length, 1)?;
    let gigabytes = flow.bytes / 1e9;
    let mut found = vec![(Metric::Tcp, gbits(flow)), (Metric::SystemCpu, (system_cpu_secs()? - system) / gigabytes)];
    if !lane.processes.is_empty() {
        found.push((Metric::TunnelCpu, (tunnel_cpu_secs(lane)? - tunnel) / gigabytes));
    }
    Ok(found)
}

fn tunnel_cpu_secs(lane: &Lane) -> Result<f64> {
    lane.processes.iter().map(|&pid| process_cpu_secs(pid)).sum()
}

fn loaded(lane: &Lane, length: Duration) -> Result<Vec<(Metric, f64)>> {
    let (found, flow) = echoes_beside(lane, || tcp(lane, length, 1))?;
    let mut metrics = round_trips(&found, Metric::LoadP50, Metric::LoadP99)?;
    metrics.push((Metric::LoadTcp, gbits(flow)));
    Ok(metrics)
}

fn flooded(lane: &Lane, length: Duration) -> Result<Vec<(Metric, f64)>> {
    let Some(neighbour) = &lane.neighbour else { return Ok(Vec::new()) };
    let (found, _) = echoes_beside(lane, || flood(neighbour, length))?;
    let at = |percent| percentile(&found.micros, percent).context("no echo was answered");
    let lost = found.lost as f64 / (found.lost + found.micros.len() as u64) as f64 * 100.0;
    Ok(vec![(Metric::FloodP50, at(50.0)?), (Metric::FloodP99, at(99.0)?), (Metric::FloodLost, lost)])
}

/// Echoes for as long as the load takes.
fn echoes_beside<T>(lane: &Lane, load: impl FnOnce() -> Result<T>) -> Result<(Echoes, T)> {
    let over = AtomicBool::new(false);
    let (found, load) = std::thread::scope(|scope| {
        // Not the other way round: the children of a thread die with it.
        let pinger = scope.spawn(|| echoes(lane, || !over.load(Ordering::Relaxed)));
        let load = load();
        over.store(true, Ordering::Relaxed);
        (pinger.join(), load)
    });
    Ok((found.map_err(|_| anyhow::anyhow!("the echoes panicked"))??, load?))
}

fn round_trips(found: &Echoes, p50: Metric, p99: Metric) -> Result<Vec<(Metric, f64)>> {
    let answered = found.micros.len();
    ensure!(found.lost * 10 <= answered as u64, "{} echoes were lost, {answered} answered", found.lost);
    let at = |percent| percentile(&found.micros, percent).context("no echo was answered");
    Ok(vec![(p50, at(50.0)?), (p99, at(99.0)?)])
}

/// What arrived.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Flow {
    bytes: f64,
    seconds: f64,
}

fn gbits(flow: Flow) -> f64 {
    flow.bytes * 8.0 / flow.seconds / 1e9
}

/// `iperf3` takes whole seconds.
fn tcp(lane: &Lane, length: Duration, flows: u32) -> Result<Flow> {
    let _server = IperfServer::start_in(lane.to);
    let seconds = length.as_secs_f64().ceil();
    let mut client: Command = in_network_of_pid(lane.from, "iperf3");
    client.args(["--client", &lane.address.to_string(), "--time", &seconds.to_string()]);
    client.args(["--parallel", &flows.to_string(), "--congestion", CONGESTION, "--json"]);
    let finished = process::run_with(client, b"", process::COMMAND_DEADLINE + length);
    received(&finished.stdout).with_context(|| finished.describe())
}

/// The receiver's sum of an `iperf3 --json` report.
fn received(report: &str) -> Result<Flow> {
    let report: Value = serde_json::from_str(report).context("no JSON")?;
    if let Some(error) = report["error"].as_str() {
        anyhow::bail!("{error}");
    }
    let sum = &report["end"]["sum_received"];
    let number = |name: &str| sum[name].as_f64().filter(|value| *value > 0.0).with_context(|| format!("no {name}"));
    Ok(Flow { bytes: number("bytes")?, seconds: number("seconds")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_iperf3() {
        let report = r#"{"end": {"sum_sent": {"bytes": 999}, "sum_received": {"bytes": 2500000000, "seconds": 2.0}}}"#;
        let flow = received(report).unwrap();
        assert_eq!(flow, Flow { bytes: 2.5e9, seconds: 2.0 });
        assert_eq!(gbits(flow), 10.0);
    }

    #[test]
    fn reports_without_a_flow_are_errors() {
        for report in [
            "",
            "{}",
            r#"{"end": {"sum_received": {"bytes": 0, "seconds": 2.0}}}"#,
            r#"{"end": {"sum_received": {"bytes": 5, "seconds": 2.0}}, "error": "unable to connect"}"#,
        ] {
            assert!(received(report).is_err(), "{report}");
        }
    }

    #[test]
    fn too_many_lost_echoes_are_an_error() {
        let echoes = |answered: usize, lost| Echoes { micros: vec![5.0; answered], lost };
        let trips = |found| round_trips(&found, Metric::IdleP50, Metric::IdleP99);
        assert_eq!(trips(echoes(10, 1)).unwrap(), [(Metric::IdleP50, 5.0), (Metric::IdleP99, 5.0)]);
        assert!(trips(echoes(10, 2)).is_err());
        assert!(trips(echoes(0, 0)).is_err());
    }
}
