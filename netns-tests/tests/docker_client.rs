//! The real docker client: the commands of the specification verbatim, and those around them.

use netns_tests::swarm::{IDLE, SETTLE};
use netns_tests::wait::so;
use netns_tests::{Finished, Host, Topology, wait_until};
use std::collections::BTreeSet;

const NETWORK: &str = "my-multi-host-network";

/// As `docker run` prints it, everywhere.
const REFUSAL: &str = "docker: Error response from daemon: swarm-scoped network (my-multi-host-network) is not compatible with \
                       `docker create` or `docker run`. This network can only be used by a docker service.";

#[track_caller]
fn fails(finished: &Finished, text: &str) {
    assert!(finished.code != 0 && finished.stderr.contains(text), "no {text:?}: {}", finished.describe());
}

fn refuses_run(host: &Host) {
    let refused = host.docker(&["run", "--network", NETWORK, "nginx"]);
    assert_eq!(refused.code, 125, "{}", refused.describe());
    assert_eq!(refused.stderr.lines().next(), Some(REFUSAL), "{}", refused.describe());
}

#[test]
fn the_specification_with_the_real_client() {
    let net = Topology::with_daemons(3, &[]);
    let (manager, worker) = (net.host(0), net.host(1));
    outside_of_a_swarm(manager);
    swarm_of_three(&net);

    let id = manager.docker(&["network", "create", "--opt", "encrypted", "--driver", "overlay", NETWORK]).ok();
    assert!(id.len() == 25 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()), "{id}");
    networks(manager, &id);
    wait_until("the network's name everywhere", SETTLE, || {
        for host in &net.hosts {
            let refused = host.docker(&["run", "--network", NETWORK, "nginx"]);
            so(refused.stderr.starts_with(REFUSAL), || refused.describe())?;
        }
        Ok(())
    });
    net.hosts.iter().for_each(refuses_run);

    services(&net);
    workers_do_not_manage(worker);
    leaving(&net);
}

fn outside_of_a_swarm(host: &Host) {
    let version = host.docker(&["version"]).ok();
    assert!(version.contains("Server") && version.contains("ormic"), "{version}");
    assert!(host.docker(&["info"]).ok().contains("Swarm: inactive"));
    fails(
        &host.docker(&["node", "ls"]),
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\"",
    );
    fails(&host.docker(&["swarm", "leave"]), "This node is not part of a swarm");
}

fn swarm_of_three(net: &Topology) {
    let manager = net.host(0);
    let address = manager.address().to_string();
    let init = manager.docker(&["swarm", "init", "--advertise-addr", &address]).ok();
    assert!(init.contains("is now a manager") && init.contains("SWMTKN-1-"), "{init}");
    fails(&manager.docker(&["swarm", "init"]), "This node is already part of a swarm");
    let token = manager.docker(&["swarm", "join-token", "-q", "worker"]).ok();
    let remote = format!("{address}:2377");
    for host in &net.hosts[1..] {
        let joined = host.docker(&["swarm", "join", "--token", &token, &remote]).ok();
        assert_eq!(joined, "This node joined a swarm as a worker.");
    }
    let nodes = wait_until("three nodes", SETTLE, || {
        let nodes = manager.docker(&["node", "ls"]).ok();
        so(nodes.matches("Ready").count() == 3, || nodes.clone()).map(|()| nodes)
    });
    for host in &net.hosts {
        assert!(nodes.contains(&host.name()), "{nodes}");
    }
    assert!(nodes.contains("Leader") && nodes.contains("Active"), "{nodes}");
    assert!(manager.docker(&["info"]).ok().contains("Is Manager: true"));
    let info = net.host(1).docker(&["info"]).ok();
    assert!(info.contains("Swarm: active") && info.contains("Is Manager: false"), "{info}");
}

fn networks(manager: &Host, id: &str) {
    let taken = manager.docker(&["network", "create", "--driver", "overlay", NETWORK]);
    fails(&taken, &format!("network with name {NETWORK} already exists"));
    let list = manager.docker(&["network", "ls"]).ok();
    assert!(
        list.lines().any(|line| line.contains(NETWORK) && line.contains("overlay") && line.contains("swarm")),
        "{list}"
    );
    let inspect = manager
        .docker(&["network", "inspect", NETWORK, "--format", "{{.Id}} {{.Driver}} {{.Scope}} {{json .Options}}"])
        .ok();
    assert!(inspect.starts_with(&format!("{id} overlay swarm ")) && inspect.contains("encrypted"), "{inspect}");
    fails(&manager.docker(&["network", "inspect", "nowhere"]), "network nowhere not found");
    fails(&manager.docker(&["network", "rm", "nowhere"]), "network nowhere not found");
    for value in ["maybe", "2"] {
        let option = format!("encrypted={value}");
        fails(&manager.docker(&["network", "create", "--driver", "overlay", "--opt", &option, "other"]), "encrypted");
    }
}

fn services(net: &Topology) {
    let manager = net.host(0);
    // Without -d the client polls until the service has converged, then prints the id.
    let created = manager.docker(&[
        "service",
        "create",
        "--name",
        "web",
        "--replicas",
        "3",
        "--network",
        NETWORK,
        "host",
        "sh",
        "-c",
        // A first process ignores signals that it does not handle, and would take 10 s to be stopped.
        "trap 'exit 0' TERM; sleep 100000 & wait",
    ]);
    assert!(created.ok().contains("verify: Service") || created.stdout.contains("converged"), "{}", created.describe());
    // The specification's own line: no name, no command, an image that nobody has.
    let verbatim = manager.docker(&["service", "create", "--detach", "--network", NETWORK, "my-image"]).ok();
    let id = verbatim.lines().last().unwrap_or_default().to_owned();
    assert_eq!(id.len(), 25, "{verbatim}");
    let ps = wait_until("the unknown image rejected", SETTLE, || {
        let ps = manager.docker(&["service", "ps", "--no-trunc", &id]).ok();
        so(ps.contains("Rejected"), || ps.clone()).map(|()| ps)
    });
    assert!(ps.contains("my-image"), "the reason names the image: {ps}");
    manager.docker(&["service", "rm", &id]).ok();

    let list = manager.docker(&["service", "ls"]).ok();
    assert!(
        list.lines().any(|line| line.contains("web") && line.contains("3/3") && line.contains("replicated")),
        "{list}"
    );
    let ps = manager.docker(&["service", "ps", "web"]).ok();
    for host in &net.hosts {
        assert!(ps.lines().any(|line| line.contains(&host.name()) && line.contains("Running")), "{ps}");
    }
    let taken = manager.docker(&["service", "create", "--detach", "--name", "web", "host", "true"]);
    fails(&taken, "name conflicts with an existing object: service web already exists");
    for (option, value) in [("--publish", "80:80"), ("--mount", "type=tmpfs,target=/x"), ("--limit-memory", "1g")] {
        let refused =
            manager.docker(&["service", "create", "--detach", option, value, "--network", NETWORK, "host", "true"]);
        fails(&refused, "unsupported");
    }
    fails(&manager.docker(&["network", "rm", NETWORK]), "in use by service");
}

fn workers_do_not_manage(worker: &Host) {
    for command in [&["node", "ls"][..], &["service", "ls"], &["network", "create", "--driver", "overlay", "other"]] {
        fails(
            &worker.docker(command),
            "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state.",
        );
    }
}

fn leaving(net: &Topology) {
    let manager = net.host(0);
    assert_eq!(manager.docker(&["service", "rm", "web"]).ok(), "web");
    wait_until("network free", SETTLE, || {
        let removed = manager.docker(&["network", "rm", NETWORK]);
        so(removed.code == 0, || removed.describe())
    });
    assert!(!manager.docker(&["network", "ls"]).ok().contains(NETWORK));
    assert_eq!(net.host(2).docker(&["swarm", "leave"]).ok(), "Node left the swarm.");
    assert!(net.host(2).docker(&["info"]).ok().contains("Swarm: inactive"));
    let down = wait_until("the node that left is down", SETTLE, || {
        let nodes = manager.docker(&["node", "ls"]).ok();
        let line = nodes.lines().find(|line| line.contains("ant-3") && line.contains("Down")).map(str::to_owned);
        line.ok_or(nodes)
    });
    let id = down.split_whitespace().next().unwrap_or_default();
    manager.docker(&["node", "rm", id]).ok();
    assert!(!manager.docker(&["node", "ls"]).ok().contains("ant-3"));
    fails(&manager.docker(&["node", "rm", "ant-2"]), "is not down and can't be removed");
    fails(&manager.docker(&["swarm", "leave"]), "--force");
    manager.docker(&["swarm", "leave", "--force"]).ok();
    assert!(manager.docker(&["info"]).ok().contains("Swarm: inactive"));
}

#[test]
fn the_real_client_makes_managers_and_workers_of_nodes() {
    let net = Topology::with_daemons(4, &[]);
    let first = net.host(0);
    let address = first.address().to_string();
    first.docker(&["swarm", "init", "--dispatcher-heartbeat", "1s", "--advertise-addr", &address]).ok();
    for (index, role) in [(1, "manager"), (2, "worker"), (3, "worker")] {
        let token = first.docker(&["swarm", "join-token", "-q", role]).ok();
        let joined = net.host(index).docker(&["swarm", "join", "--token", &token, &format!("{address}:2377")]).ok();
        assert_eq!(joined, format!("This node joined a swarm as a {role}."));
    }
    let promoted = first.docker(&["node", "promote", "ant-3"]).ok();
    assert_eq!(promoted, "Node ant-3 promoted to a manager in the swarm.");
    wait_managers(net.host(2), ["Reachable", "Reachable", "Reachable", ""]);
    nodes_are_changed_and_shown(&net);
    managers_go(&net);
}

/// Waits until `node ls` shows these states of the managers, in the order of the hosts, but for the one of them that leads.
fn wait_managers(host: &Host, states: [&str; 4]) {
    let wanted: Vec<String> =
        states.iter().enumerate().map(|(index, state)| format!("ant-{} {state}", index + 1)).collect();
    wait_until("the managers' states", SETTLE, || {
        let listed = host.docker(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"]);
        let shown = listed.stdout.replacen("Leader", "Reachable", 1);
        let mut lines: Vec<&str> = shown.lines().collect();
        lines.sort_unstable();
        so(shown != listed.stdout && lines == wanted, || listed.describe())
    });
}

fn nodes_are_changed_and_shown(net: &Topology) {
    // On one that does not lead.
    let manager = net.host(1);
    let shown = |node: &str| {
        let format = "{{.Spec.Labels.zone}} {{.Spec.Availability}} {{.Spec.Role}} {{.Status.State}} {{.Status.Addr}}";
        manager.docker(&["node", "inspect", "--format", format, node]).ok()
    };
    let update = ["node", "update", "--label-add", "zone=a", "--availability", "pause", "ant-4"];
    assert_eq!(manager.docker(&update).ok(), "ant-4");
    assert_eq!(shown("ant-4"), "a pause worker ready 10.77.0.4");
    let update = ["node", "update", "--label-rm", "zone", "--availability", "active", "ant-4"];
    assert_eq!(manager.docker(&update).ok(), "ant-4");
    assert_eq!(shown("ant-4"), "<no value> active worker ready 10.77.0.4");
    let pretty = manager.docker(&["node", "inspect", "--pretty", "self"]).ok();
    let lines: Vec<String> = pretty.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in ["Hostname: ant-2", "Address: 10.77.0.2:2377", "Raft Status: Reachable"] {
        assert!(lines.iter().any(|shown| shown == line), "no {line:?}: {pretty}");
    }
    fails(&manager.docker(&["node", "inspect", "ant-9"]), "ant-9");

    manager.docker(&["network", "create", "--driver", "overlay", NETWORK]).ok();
    let head = ["service", "create", "--detach", "--name", "web", "--mode", "global", "--network", NETWORK, "host"];
    manager.docker(&[&head, IDLE].concat()).ok();
    for host in &net.hosts {
        wait_until("its task", SETTLE, || {
            let ps = manager.docker(&["node", "ps", "--format", "{{.Name}} {{.Node}} {{.CurrentState}}", &host.name()]);
            let runs = ps.stdout.starts_with("web.") && ps.stdout.contains(&format!("{} Running", host.name()));
            so(ps.code == 0 && runs && ps.stdout.lines().count() == 1, || ps.describe())
        });
    }
    let own = manager.docker(&["node", "ps", "--format", "{{.Node}}", "self"]).ok();
    assert_eq!(own, "ant-2");
}

fn managers_go(net: &Topology) {
    let first = net.host(0);
    net.host(1).kill_daemon();
    wait_managers(net.host(2), ["Reachable", "Unreachable", "Reachable", ""]);
    let refused = first.docker(&["node", "rm", "--force", "ant-2"]);
    fails(
        &refused,
        "is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal",
    );
    assert_eq!(first.docker(&["node", "demote", "ant-2"]).ok(), "Manager ant-2 demoted in the swarm.");
    wait_until("it is removed", SETTLE, || {
        let removed = first.docker(&["node", "rm", "ant-2"]);
        so(removed.code == 0 && removed.stdout.trim_end() == "ant-2", || removed.describe())
    });
    // This one is alive.
    fails(&first.docker(&["node", "rm", "ant-4"]), "is not down and can't be removed");
    assert_eq!(first.docker(&["node", "rm", "--force", "ant-4"]).ok(), "ant-4");
    wait_until("it has left", SETTLE, || {
        let info = net.host(3).docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]);
        so(info.stdout.trim_end() == "inactive", || info.describe())
    });
    let left = first.docker(&["node", "ls", "--format", "{{.Hostname}}"]).ok();
    assert_eq!(left.lines().collect::<BTreeSet<_>>(), BTreeSet::from(["ant-1", "ant-3"]));

    assert_eq!(first.docker(&["node", "demote", "ant-3"]).ok(), "Manager ant-3 demoted in the swarm.");
    wait_until("it is a worker", SETTLE, || {
        let refused = net.host(2).docker(&["node", "ls"]);
        so(refused.stderr.contains("Worker nodes can't be used to view or modify cluster state."), || {
            refused.describe()
        })
    });
    fails(&first.docker(&["node", "demote", "ant-1"]), "attempting to demote the last manager of the swarm");
}
