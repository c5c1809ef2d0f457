//! Hosts whose daemons are in one swarm. Host 0 is a manager.

use crate::host::Host;
use crate::topology::Topology;
use crate::wait::{so, wait_until};
use serde_json::Value;
use std::cell::Cell;
use std::net::IpAddr;
use std::time::Duration;

/// What placing and starting a few tasks may take on two busy cores.
pub const SETTLE: Duration = Duration::from_secs(30);

/// What a task of a service runs that has nothing to do. A first process ignores signals that it does not handle.
pub const IDLE: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"];

/// Options of `swarm init` that make failures show sooner than the default of three times 5 s.
pub const FAST: &[&str] = &["--dispatcher-heartbeat", "1s"];

/// A swarm.
pub struct Swarm {
    /// Its hosts.
    pub net: Topology,
    asked: Cell<usize>,
    /// The hosts advertise their IPv6 addresses.
    over_ipv6: bool,
}

/// A task as the managers show it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// Which replica.
    pub slot: u64,
    /// The host that runs it.
    pub host: usize,
    /// Its first process, as every process of this machine sees it.
    pub pid: u32,
    /// Its addresses, in the order of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// `running` and so on.
    pub state: String,
    /// Where it is to be brought.
    pub desired: String,
    /// What went wrong.
    pub error: String,
}

impl Task {
    /// Its first address.
    pub fn address(&self) -> IpAddr {
        *self.addresses.first().expect("a task on a network")
    }

    /// Whether it runs and shall run.
    pub fn is_running(&self) -> bool {
        self.state == "running" && self.desired == "running" && self.pid != 0
    }
}

impl Swarm {
    /// `count` hosts with daemons, the first a manager, the others joined as workers; the nodes are ready.
    pub fn start(count: u8) -> Swarm {
        Swarm::start_with(count, FAST, &[])
    }

    /// So many managers, joined with the manager token, and so many workers after them; the nodes are ready and the
    /// managers have their votes.
    pub fn start_managers(managers: u8, workers: u8) -> Swarm {
        let net = Topology::new(managers + workers);
        for host in &net.hosts {
            host.start_daemon(&[]);
        }
        let first = net.host(0);
        let address = first.address().to_string();
        first.formic(&[&["swarm", "init", "--advertise-addr", &address], FAST].concat()).ok();
        let swarm = Swarm { net, asked: Cell::new(0), over_ipv6: false };
        let token = text(&swarm.manager().get("/swarm")["JoinTokens"]["Manager"]);
        for index in 1..usize::from(managers) {
            let join = ["swarm", "join", "--token", "-", &swarm.remote()];
            swarm.host(index).formic_with(&join, token.as_bytes()).ok();
        }
        (usize::from(managers)..swarm.net.hosts.len()).for_each(|index| swarm.join(index));
        swarm.wait_ready(swarm.net.hosts.len());
        wait_until("the managers vote", SETTLE, || {
            let nodes = list(swarm.manager().try_get("/nodes")?);
            let votes = nodes.iter().filter(|node| node["ManagerStatus"]["Reachability"] == "reachable").count();
            so(votes == usize::from(managers), || format!("{nodes:?}"))
        });
        swarm
    }

    /// The host whose manager leads, as the first of `managers` that answers says.
    pub fn leader(&self, managers: &[usize]) -> Option<usize> {
        let nodes = managers.iter().find_map(|index| self.host(*index).try_get("/nodes").ok())?;
        let leads = list(nodes).into_iter().find(|node| node["ManagerStatus"]["Leader"] == true)?;
        let name = text(&leads["Description"]["Hostname"]);
        self.net.hosts.iter().position(|host| host.name() == name)
    }

    /// The same on an underlay of another MTU.
    pub fn start_on(count: u8, mtu_bytes: u32) -> Swarm {
        let net = Topology::new(count);
        for host in &net.hosts {
            host.run(&["ip", "link", "set", "eth0", "mtu", &mtu_bytes.to_string()]).ok();
        }
        Swarm::bring_up(net, FAST, &[])
    }

    /// The same with further options of `swarm init` and of the daemons.
    pub fn start_with(count: u8, init: &[&str], daemon: &[&str]) -> Swarm {
        Swarm::bring_up(Topology::new(count), init, daemon)
    }

    /// A swarm of hosts without daemons; these are started.
    pub fn bring_up(net: Topology, init: &[&str], daemon: &[&str]) -> Swarm {
        for host in &net.hosts {
            host.start_daemon(daemon);
        }
        let count = net.hosts.len();
        Swarm::of_first(net, count, init)
    }

    /// A swarm of hosts whose daemons already run.
    pub fn on(net: Topology) -> Swarm {
        let count = net.hosts.len();
        Swarm::of_first(net, count, FAST)
    }

    /// A swarm of the first `count` hosts; the daemons already run.
    pub fn of_first(net: Topology, count: usize, init: &[&str]) -> Swarm {
        Swarm::of_first_over(net, count, init, false)
    }

    /// A swarm of hosts around a router ([`crate::routed`]), by the addresses of one family.
    pub fn start_routed(net: Topology, over_ipv6: bool) -> Swarm {
        for host in &net.hosts {
            host.start_daemon(&[]);
        }
        let count = net.hosts.len();
        Swarm::of_first_over(net, count, FAST, over_ipv6)
    }

    fn of_first_over(net: Topology, count: usize, init: &[&str], over_ipv6: bool) -> Swarm {
        let swarm = Swarm { net, asked: Cell::new(0), over_ipv6 };
        let address = swarm.underlay_address(0).to_string();
        swarm.manager().formic(&[&["swarm", "init", "--advertise-addr", &address], init].concat()).ok();
        for index in 1..count {
            swarm.join(index);
        }
        swarm.wait_ready(count);
        swarm
    }

    /// The manager that is told and asked: host 0, unless [`Swarm::ask`] has named another.
    pub fn manager(&self) -> &Host {
        self.net.host(self.asked.get())
    }

    /// From now on this host is the manager that is told and asked.
    pub fn ask(&self, index: usize) {
        self.asked.set(index);
    }

    /// A host by number.
    pub fn host(&self, index: usize) -> &Host {
        self.net.host(index)
    }

    /// The worker join token.
    pub fn worker_token(&self) -> String {
        text(&self.manager().get("/swarm")["JoinTokens"]["Worker"])
    }

    /// Where to join.
    pub fn remote(&self) -> String {
        std::net::SocketAddr::new(self.underlay_address(self.asked.get()), 2377).to_string()
    }

    /// What a host advertises.
    pub fn underlay_address(&self, index: usize) -> IpAddr {
        let host = self.host(index);
        if self.over_ipv6 { crate::routed::ipv6(host) } else { host.address().into() }
    }

    /// Joins a host as a worker; the token goes by standard input.
    pub fn join(&self, index: usize) {
        let token = self.worker_token();
        self.host(index).formic_with(&["swarm", "join", "--token", "-", &self.remote()], token.as_bytes()).ok();
    }

    /// The nodes as the manager shows them.
    pub fn nodes(&self) -> Vec<Value> {
        list(self.manager().get("/nodes"))
    }

    /// A host's node.
    pub fn node(&self, index: usize) -> Value {
        let name = self.host(index).name();
        let node = self.nodes().into_iter().find(|node| node["Description"]["Hostname"] == name.as_str());
        node.unwrap_or_else(|| panic!("no node {name}"))
    }

    /// A host's node id.
    pub fn node_id(&self, index: usize) -> String {
        text(&self.node(index)["ID"])
    }

    /// Waits until so many nodes are ready.
    #[track_caller]
    pub fn wait_ready(&self, count: usize) {
        wait_until("nodes ready", SETTLE, || {
            let states: Vec<String> =
                list(self.manager().try_get("/nodes")?).iter().map(|node| text(&node["Status"]["State"])).collect();
            let ready = states.iter().filter(|state| *state == "ready").count();
            if ready == count { Ok(()) } else { Err(format!("{states:?}")) }
        });
    }

    /// Waits until a host's node is in a state (`ready`, `down`).
    #[track_caller]
    pub fn wait_node(&self, index: usize, state: &str) {
        wait_until(&format!("{} {state}", self.host(index).name()), SETTLE, || {
            let node = self.node(index);
            if node["Status"]["State"] == state { Ok(()) } else { Err(node["Status"].to_string()) }
        });
    }

    /// `network create --driver overlay`; the id.
    #[track_caller]
    pub fn create_network(&self, name: &str, options: &[&str]) -> String {
        let id =
            self.manager().formic(&[&["network", "create", "--driver", "overlay"], options, &[name]].concat()).ok();
        assert!(id.len() == 25 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "an id: {id:?}");
        id
    }

    /// `service create` of replicas that idle, from the image `host`; waits until they run.
    #[track_caller]
    pub fn create_service(&self, name: &str, networks: &[&str], replicas: usize) -> Vec<Task> {
        self.create_service_of(name, networks, replicas, "host", IDLE);
        self.wait_tasks(name, replicas)
    }

    /// `service create`; does not wait.
    #[track_caller]
    pub fn create_service_of(&self, name: &str, networks: &[&str], replicas: usize, image: &str, command: &[&str]) {
        let replicas = replicas.to_string();
        let mut arguments = vec!["service", "create", "--detach", "--name", name, "--replicas", &replicas];
        for network in networks {
            arguments.extend(["--network", network]);
        }
        arguments.push(image);
        arguments.extend(command);
        self.manager().formic(&arguments).ok();
    }

    /// All tasks of a service that the managers know, whatever their state.
    pub fn tasks(&self, service: &str) -> Vec<Task> {
        self.try_tasks(service).unwrap_or_else(|error| panic!("tasks of {service}: {error}"))
    }

    fn try_tasks(&self, service: &str) -> Result<Vec<Task>, String> {
        let services = list(self.manager().try_get("/services")?);
        let Some(found) = services.iter().find(|s| s["Spec"]["Name"] == service) else { return Ok(Vec::new()) };
        self.try_tasks_that(|task| task["ServiceID"] == found["ID"])
    }

    /// The tasks that the managers know and that fit.
    pub(crate) fn try_tasks_that(&self, fits: impl Fn(&Value) -> bool) -> Result<Vec<Task>, String> {
        let nodes = list(self.manager().try_get("/nodes")?);
        let tasks = list(self.manager().try_get("/tasks")?);
        let mut tasks: Vec<Task> = tasks.iter().filter(|task| fits(task)).map(|task| self.task(task, &nodes)).collect();
        tasks.sort_by_key(|task| task.slot);
        Ok(tasks)
    }

    fn task(&self, task: &Value, nodes: &[Value]) -> Task {
        let node = nodes.iter().find(|node| node["ID"] == task["NodeID"]);
        let hostname = node.map(|node| text(&node["Description"]["Hostname"]));
        let host = self.net.hosts.iter().position(|host| Some(host.name()) == hostname);
        let status = &task["Status"];
        Task {
            id: text(&task["ID"]),
            slot: task["Slot"].as_u64().unwrap_or(0),
            host: host.unwrap_or(usize::MAX),
            pid: status["ContainerStatus"]["PID"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            addresses: addresses(task),
            state: text(&status["State"]),
            desired: text(&task["DesiredState"]),
            error: text(&status["Err"]),
        }
    }

    /// Waits until a service has exactly so many running tasks, each with a living process; in the order of slots.
    #[track_caller]
    pub fn wait_tasks(&self, service: &str, count: usize) -> Vec<Task> {
        self.wait_tasks_for(service, count, SETTLE)
    }

    /// The same with an own deadline.
    #[track_caller]
    pub fn wait_tasks_for(&self, service: &str, count: usize, deadline: Duration) -> Vec<Task> {
        wait_until(&format!("{count} tasks of {service}"), deadline, || {
            let tasks = self.try_tasks(service)?;
            let wanted: Vec<Task> = tasks.iter().filter(|task| task.desired == "running").cloned().collect();
            let settled = wanted.len() == count && wanted.iter().all(|task| task.is_running() && is_alive(task.pid));
            if settled { Ok(wanted) } else { Err(format!("{tasks:#?}")) }
        })
    }

    /// Waits until a service and its tasks are gone from the managers' state.
    #[track_caller]
    pub fn wait_removed(&self, service: &str) {
        wait_until(&format!("{service} removed"), SETTLE, || {
            let services = list(self.manager().try_get("/services")?);
            so(services.iter().all(|s| s["Spec"]["Name"] != service), || "still listed".into())?;
            // A service is not listed any more while its tasks still end.
            let mut tasks = list(self.manager().try_get("/tasks")?);
            tasks.retain(|task| services.iter().all(|s| s["ID"] != task["ServiceID"]));
            so(tasks.is_empty(), || format!("{tasks:?}"))
        });
    }

    /// Pings between all pairs until each pair answers `count` of `count`.
    #[track_caller]
    pub fn wait_all_ping(&self, tasks: &[Task], count: u32) {
        for from in tasks {
            for to in tasks {
                let what = format!("{} (host {}) pings {} (host {})", from.address(), from.host, to.address(), to.host);
                wait_until(&what, SETTLE, || crate::traffic::pings(from, to.address(), count));
            }
        }
    }

    /// `formic exec` of a command in a task, on the task's host.
    #[track_caller]
    pub fn exec(&self, task: &Task, command: &[&str]) -> crate::Finished {
        self.host(task.host).formic(&[&["exec", &task.id], command].concat())
    }
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with(['Z', 'X']))
}

fn addresses(task: &Value) -> Vec<IpAddr> {
    let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
    let texts =
        attachments.iter().flat_map(|attachment| attachment["Addresses"].as_array().cloned().unwrap_or_default());
    texts.filter_map(|address| address.as_str()?.split('/').next()?.parse().ok()).collect()
}

/// A JSON list; empty when it is null.
pub fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        Value::Null => Vec::new(),
        other => panic!("not a list: {other}"),
    }
}

/// A JSON text; empty when it is none.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
