//! What a daemon costs that has nothing to do: 100 tasks of its own on an encrypted network, a security association
//! with each of 50 peers.
//!
//! The peers are real daemons. The manager is drained until the measured worker, then the only one there, has its tasks;
//! then the other workers join, and each gets one.

use super::options::Formic;
use super::procfs::{process_cpu_secs, resident_bytes};
use anyhow::Result;
use netns_tests::swarm::{IDLE, list};
use netns_tests::topology::OUTSIDER;
use netns_tests::{Swarm, Task, Topology, process, wait_until};
use std::time::{Duration, Instant};

/// Nodes beside the measured one.
pub const PEERS: u8 = 50;

/// Its endpoints.
pub const ENDPOINTS: usize = 100;

/// Which host is measured: the only worker when its tasks are placed.
const MEASURED: usize = 1;

/// What placing 100 tasks, or joining 50 nodes and hearing of all of them, may take on two busy cores.
const SETTLE: Duration = Duration::from_secs(240);

/// What was seen.
#[derive(Debug, Clone)]
pub struct Idle {
    /// Share of one core, in percent, of daemon and helper together: one value for each period.
    pub cpu_percent: Vec<f64>,
    /// Resident octets of the process that reads the network.
    pub daemon_bytes: u64,
    /// Resident octets of the helper.
    pub helper_bytes: u64,
}

/// Sets it up and watches `periods` times.
pub fn run(binary: &Formic, periods: u32, period: Duration) -> Result<Idle> {
    let swarm = set_up(binary);
    let daemon = swarm.host(MEASURED).daemon_pid();
    let helpers = process::children(daemon);
    let processes = [&[daemon], helpers.as_slice()].concat();
    let cpu = || processes.iter().map(|&pid| process_cpu_secs(pid)).sum::<Result<f64>>();
    let mut cpu_percent = Vec::new();
    for _ in 0..periods {
        let (start, before) = (Instant::now(), cpu()?);
        std::thread::sleep(period);
        cpu_percent.push((cpu()? - before) / start.elapsed().as_secs_f64() * 100.0);
    }
    Ok(Idle {
        cpu_percent,
        daemon_bytes: resident_bytes(daemon)?,
        helper_bytes: helpers.iter().map(|&pid| resident_bytes(pid)).sum::<Result<u64>>()?,
    })
}

fn set_up(binary: &Formic) -> Swarm {
    let net = Topology::new(PEERS + 1);
    route(&net);
    let options: Vec<&str> = binary.options.iter().map(String::as_str).collect();
    for host in &net.hosts {
        host.use_binary(&binary.path);
        host.start_daemon(&options);
    }
    // The default heartbeat: what a user gets.
    let swarm = Swarm::of_first(net, 2, &[]);
    swarm.create_network(NETWORK, &["--opt", "encrypted"]);
    availability(&swarm, "drain");
    place(&swarm, "many", ENDPOINTS, |task| task.host == MEASURED);
    availability(&swarm, "active");
    (2..swarm.net.hosts.len()).for_each(|index| swarm.join(index));
    place(&swarm, "one-each", PEERS.into(), |task| task.host != MEASURED);
    wait_until("an answer of each peer", SETTLE, || {
        let heard = list(swarm.host(MEASURED).status()["peers"].clone())
            .iter()
            .filter(|peer| peer["esp_heard_ms_ago"].is_u64())
            .count();
        if heard == usize::from(PEERS) { Ok(()) } else { Err(format!("{heard} of {PEERS}")) }
    });
    swarm
}

/// Lets the hosts reach each other through a router. Side by side each would have 50 neighbours, and the kernel's table
/// of neighbours, one for all namespaces, holds 1024 by default.
fn route(net: &Topology) {
    let mut router = net.outside("sh");
    router.args(["-c", "cd /proc/sys/net/ipv4; echo 1 >ip_forward; for kind in all underlay; do echo 0 >conf/$kind/send_redirects; done"]);
    process::run(router).ok();
    for host in &net.hosts {
        for words in [
            format!("address del {}/24 dev eth0", host.address()),
            format!("address add {}/32 dev eth0", host.address()),
            format!("route add {OUTSIDER} dev eth0"),
            format!("route add 10.77.0.0/24 via {OUTSIDER}"),
        ] {
            let mut command = host.command("ip");
            command.args(words.split(' '));
            process::run(command).ok();
        }
    }
}

const NETWORK: &str = "net";

fn availability(swarm: &Swarm, word: &str) {
    let manager = swarm.manager();
    manager.formic(&["node", "update", "--availability", word, &manager.name()]).ok();
}

fn place(swarm: &Swarm, service: &str, count: usize, right: impl Fn(&Task) -> bool) {
    swarm.create_service_of(service, &[NETWORK], count, "host", IDLE);
    let tasks = swarm.wait_tasks_for(service, count, SETTLE);
    assert!(tasks.iter().all(right), "{service} runs elsewhere: {tasks:#?}");
}
