//! The real docker client: the commands of the specification verbatim, and those around them.

use netns_tests::swarm::SETTLE;
use netns_tests::wait::so;
use netns_tests::{Finished, Host, Topology, wait_until};

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
    let net = Topology::with_daemons(2, &[]);
    let address = net.host(0).address().to_string();
    net.host(0).docker(&["swarm", "init", "--advertise-addr", &address]).ok();
    let token = net.host(0).docker(&["swarm", "join-token", "-q", "manager"]).ok();
    let joined = net.host(1).docker(&["swarm", "join", "--token", &token, &format!("{address}:2377")]).ok();
    assert_eq!(joined, "This node joined a swarm as a manager.");
    wait_until("both are managers", SETTLE, || {
        let listed = net.host(1).docker(&["node", "ls"]);
        so(listed.stdout.contains("Leader") && listed.stdout.contains("Reachable"), || listed.describe())
    });
    let (first, second) = (net.host(0).name(), net.host(1).name());
    let demoted = net.host(0).docker(&["node", "demote", &second]).ok();
    assert_eq!(demoted, format!("Manager {second} demoted in the swarm."));
    wait_until("it is a worker", SETTLE, || {
        let refused = net.host(1).docker(&["node", "ls"]);
        so(refused.stderr.contains("Worker nodes can't be used to view or modify cluster state."), || {
            refused.describe()
        })
    });
    fails(&net.host(0).docker(&["node", "demote", &first]), "attempting to demote the last manager of the swarm");
}
