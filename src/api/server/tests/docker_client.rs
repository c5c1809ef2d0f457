//! The real docker client against the API. It must be on PATH: this is the client that users have.

use super::super::fake::{Fake, Served};
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

struct Docker(Served);

impl Docker {
    fn over(fake: Fake, name: &str) -> Docker {
        Docker(fake.serve(name))
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.0.socket().display())).env_remove("DOCKER_CONTEXT");
        command.env("DOCKER_CONFIG", "/nonexistent").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .expect("this test needs the docker client on PATH (Debian: apt-get install docker.io or docker-cli)");
        // A client that ends before it has read all says why.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.ok_with_input(arguments, "")
    }

    #[track_caller]
    fn ok_with_input(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "docker {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], code: i32, text: &str) {
        self.fails_with_input(arguments, "", code, text);
    }

    #[track_caller]
    fn fails_with_input(&self, arguments: &[&str], input: &str, code: i32, text: &str) {
        let output = self.run(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "docker {arguments:?}: {error}");
        assert!(error.contains(text), "docker {arguments:?}: no {text:?} in {error:?}");
    }
}

const REFUSAL: &str = "docker: Error response from daemon: swarm-scoped network (net) is not compatible with `docker create` or `docker run`. This network can only be used by a docker service.";

#[test]
fn a_swarm_from_its_first_command_to_its_last() {
    let docker = Docker::over(Fake::new(), "docker-swarm");
    assert!(docker.ok(&["version"]).contains("1.50 (minimum version 1.40)"));
    assert!(docker.ok(&["info"]).contains("Swarm: inactive"));
    docker.fails(&["node", "ls"], 1, "This node is not a swarm manager. Use \"docker swarm init\"");
    assert!(docker.ok(&["swarm", "init", "--advertise-addr", "10.77.0.1"]).contains("is now a manager"));
    docker.fails(&["swarm", "init"], 1, "This node is already part of a swarm");
    assert_eq!(docker.ok(&["swarm", "join-token", "-q", "worker"]), "SWMTKN-1-worker");
    assert!(
        docker.ok(&["swarm", "join-token", "--rotate", "worker"]).contains("Successfully rotated worker join token.")
    );
    assert_eq!(docker.ok(&["swarm", "update", "--dispatcher-heartbeat", "10s"]), "Swarm updated.");
    let info = docker.ok(&["info"]);
    assert!(info.contains("Is Manager: true") && info.contains("Heartbeat Period: 10 seconds"), "{info}");
    let nodes = docker.ok(&["node", "ls"]);
    assert!(nodes.contains("ant-1") && nodes.contains("Leader") && nodes.contains('*'), "{nodes}");
    let pretty = docker.ok(&["node", "inspect", "--pretty", "self"]);
    for expected in ["ant-1", "x86_64", "CPUs:", "8GiB"] {
        assert!(pretty.contains(expected), "no {expected} in {pretty}");
    }
    docker.ok(&["swarm", "update", "--task-history-limit", "2", "--cert-expiry", "48h"]);
    let info = docker.ok(&["info"]);
    assert!(info.contains("Task History Retention Limit: 2") && info.contains("Expiry Duration: 2 days"), "{info}");
    let root = docker.ok(&["swarm", "ca"]);
    assert!(root.starts_with("-----BEGIN CERTIFICATE-----"), "{root}");
    // Without --detach: the client waits until all nodes show the new root.
    let rotated = docker.ok(&["swarm", "ca", "--rotate", "--cert-expiry", "72h"]);
    let shown = docker.ok(&["swarm", "ca"]);
    assert!(rotated.ends_with(&shown) && shown != root, "{rotated}");
    assert!(docker.ok(&["info"]).contains("Expiry Duration: 3 days"));
    docker.fails(&["swarm", "ca", "--rotate"], 1, "still in use");
    docker.fails(&["swarm", "update", "--snapshot-interval", "7"], 1, "Raft.SnapshotInterval");
    assert_eq!(docker.ok(&["node", "update", "--availability", "drain", "--label-add", "a=b", "ant-2"]), "ant-2");
    assert_eq!(docker.ok(&["node", "promote", "ant-2"]), "Node ant-2 promoted to a manager in the swarm.");
    docker.fails(&["node", "rm", "--force", "ant-2"], 1, "must be demoted to worker before removal");
    assert_eq!(docker.ok(&["node", "demote", "ant-2"]), "Manager ant-2 demoted in the swarm.");
    docker.fails(&["node", "demote", "ant-1"], 1, "attempting to demote the last manager of the swarm");
    docker.fails(&["node", "rm", "ant-1"], 1, "last manager of the swarm and can't be removed");
    assert_eq!(docker.ok(&["node", "rm", "--force", "ant-2"]), "ant-2");
    docker.fails(&["swarm", "leave"], 1, "--force");
    assert_eq!(docker.ok(&["swarm", "leave", "--force"]), "Node left the swarm.");
    docker.fails(&["swarm", "leave"], 1, "This node is not part of a swarm");
    docker.fails(&["swarm", "join", "--token", "x", "10.77.0.1:2377"], 1, "join token");
    assert_eq!(
        docker.ok(&["swarm", "join", "--token", "SWMTKN-1-worker", "10.77.0.1:2377"]),
        "This node joined a swarm as a worker."
    );
    docker.fails(&["service", "ls"], 1, "Worker nodes can't be used to view or modify cluster state");
}

#[test]
fn the_specifications_three_commands() {
    let docker = Docker::over(Fake::manager(), "docker-spec");
    let id = docker.ok(&["network", "create", "--opt", "encrypted", "--driver", "overlay", "net"]);
    assert!(id.len() == 25 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{id}");
    docker.fails(&["run", "--network", "net", "nginx"], 125, REFUSAL);
    docker.fails(&["create", "--network", &id, "nginx"], 1, "swarm-scoped network (net) is not compatible");
    docker.fails(&["network", "connect", "net", "x"], 1, "swarm-scoped network (net) is not compatible");
    // Without --detach: the client polls until the service has converged.
    let created = docker.ok(&["service", "create", "--network", "net", "my-image"]);
    assert!(created.contains("converged"), "{created}");
    let worker = Docker::over(Fake::worker(&["net"]), "docker-spec-worker");
    worker.fails(&["run", "--network", "net", "nginx"], 125, REFUSAL);
    worker.fails(&["run", "nginx"], 125, "docker service create");
}

#[test]
fn networks_and_services_are_shown_as_docker_shows_them() {
    let docker = Docker::over(Fake::manager(), "docker-show");
    docker.ok(&["network", "create", "--driver", "overlay", "--subnet", "10.9.0.0/24", "--label", "a=b", "net"]);
    let list = docker.ok(&["network", "ls", "--filter", "driver=overlay"]);
    assert!(
        list.lines().any(|line| line.contains("net") && line.contains("overlay") && line.contains("swarm")),
        "{list}"
    );
    let format = "{{.Scope}} {{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}} {{json .Labels}}";
    assert_eq!(
        docker.ok(&["network", "inspect", "net", "--format", format]),
        "swarm 10.9.0.0/24 10.9.0.1 {\"a\":\"b\"}"
    );
    docker.ok(&[
        "service",
        "create",
        "-d",
        "--name",
        "web",
        "--replicas",
        "2",
        "--network",
        "net",
        "-e",
        "A=b",
        "host",
        "sleep",
        "9",
    ]);
    let services = docker.ok(&["service", "ls"]);
    assert!(services.contains("web") && services.contains("replicated") && services.contains("2/2"), "{services}");
    let tasks = docker.ok(&["service", "ps", "web"]);
    assert!(tasks.contains("web.1") && tasks.contains("ant-1") && tasks.contains("Running"), "{tasks}");
    assert!(docker.ok(&["node", "ps", "self"]).contains("web.2"));
    assert!(docker.ok(&["service", "inspect", "--pretty", "web"]).contains("Replicas:	2"));
    let ps = docker.ok(&["ps"]);
    assert!(ps.contains("web.1.") && ps.lines().skip(1).all(|line| line.contains(" host:latest ")), "{ps}");
    let inspected = docker.ok(&["network", "inspect", "net"]);
    assert!(inspected.contains("10.9.0.2/24") && inspected.contains("web.1."), "{inspected}");
    docker.fails(&["service", "create", "-d", "--publish", "80:80", "host"], 1, "unsupported field EndpointSpec.Ports");
    docker.fails(&["service", "create", "-d", "--mode", "global-job", "host"], 1, "no jobs");
    docker.fails(&["service", "create", "-d", "--mode", "replicated-job", "host"], 1, "no jobs");
    docker.fails(&["service", "create", "-d", "--endpoint-mode", "dnsrr", "host"], 1, "dnsrr");
    docker.fails(&["network", "create", "x"], 1, "overlay");
    let details = ["--subnet", "10.8.0.0/24", "--ip-range", "10.8.0.0/25", "--aux-address", "a=10.8.0.9"];
    let options = ["--attachable", "--internal", "--opt", "com.docker.network.driver.mtu=1300"];
    docker.ok(&[&["network", "create", "-d", "overlay"], &details[..], &options, &["open"]].concat());
    let format = "{{.Attachable}} {{.Internal}} {{json (index .IPAM.Config 0).AuxAddress}}";
    assert_eq!(docker.ok(&["network", "inspect", "open", "--format", format]), "true true {\"a\":\"10.8.0.9\"}");
    docker.fails(&["network", "rm", "net"], 1, "network net is in use by service web");
    assert_eq!(docker.ok(&["service", "rm", "web"]), "web");
    assert_eq!(docker.ok(&["network", "rm", "net"]), "net");
}

#[test]
fn docker_exec_runs_in_a_task() {
    let docker = Docker::over(Fake::manager(), "docker-exec");
    docker.ok(&["network", "create", "-d", "overlay", "net"]);
    docker.ok(&["service", "create", "-d", "--name", "web", "--network", "net", "host"]);
    assert_eq!(docker.ok(&["exec", "-e", "COLOUR=blue", "web.1", "sh", "-c", "echo $COLOUR"]), "blue");
    docker.fails(&["exec", "web.1", "sh", "-c", "echo wrong >&2; exit 3"], 3, "wrong");
    docker.fails(&["exec", "nowhere", "true"], 1, "No such container: nowhere");
    let served = docker.0.socket().display().to_string();
    let script = format!("echo hello | DOCKER_HOST=unix://{served} docker exec -i web.1 cat");
    let piped = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&piped.stdout), "hello\n", "{piped:?}");
}

#[test]
fn placement_is_asked_for_as_docker_does() {
    let docker = Docker::over(Fake::manager_of_two(), "docker-placement");
    // Without --detach: the client counts the nodes of a global service.
    let created = docker.ok(&["service", "create", "--name", "everywhere", "--mode", "global", "host"]);
    assert!(created.contains("converged"), "{created}");
    let services = docker.ok(&["service", "ls"]);
    assert!(services.contains("global") && services.contains("2/2"), "{services}");
    let tasks = docker.ok(&["service", "ps", "--format", "{{.Name}} {{.Node}}", "everywhere"]);
    assert!(tasks.contains(" ant-1") && tasks.contains(" ant-2") && tasks.contains("everywhere."), "{tasks}");
    docker.ok(&["node", "update", "--label-add", "zone=a", "ant-1"]);
    docker.ok(&[
        "service",
        "create",
        "--name",
        "one",
        "--constraint",
        "node.labels.zone==a",
        "--placement-pref",
        "spread=node.labels.zone",
        "--reserve-cpu",
        "1.5",
        "--reserve-memory",
        "1g",
        "--replicas-max-per-node",
        "2",
        "--replicas",
        "2",
        "host",
    ]);
    let pretty = docker.ok(&["service", "inspect", "--pretty", "one"]);
    for expected in ["node.labels.zone==a", "CPU:		1.5", "1GiB", "Max Replicas Per Node"] {
        assert!(pretty.contains(expected), "no {expected:?} in {pretty}");
    }
    let nodes = docker.ok(&["service", "ps", "--format", "{{.Node}}", "one"]);
    assert_eq!(nodes, "ant-1\nant-1");
    docker.ok(&["service", "create", "-d", "--name", "big", "--reserve-memory", "1t", "host"]);
    let big = docker.ok(&["service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "big"]);
    assert!(
        big.starts_with("Pending") && big.contains("no suitable node (insufficient resources on 2 nodes)"),
        "{big}"
    );
    docker.fails(&["service", "create", "-d", "--constraint", "node.colour==red", "host"], 1, "node.colour==red");
    assert_eq!(docker.ok(&["node", "update", "--availability", "drain", "ant-2"]), "ant-2");
    assert!(!docker.ok(&["node", "ps", "--filter", "desired-state=running", "ant-2"]).contains("everywhere"));
    assert!(docker.ok(&["service", "ls"]).contains("1/1"));
}

#[test]
fn managers_are_locked_and_unlocked() {
    let fake = Fake::manager();
    let docker = Docker::over(fake.clone(), "docker-lock");
    docker.fails(&["swarm", "unlock-key"], 1, "no unlock key is set");
    docker.fails(&["swarm", "unlock-key", "--rotate"], 1, "cannot rotate because autolock is not turned on");
    docker.fails(&["swarm", "unlock"], 1, "swarm is not locked");
    let on = docker.ok(&["swarm", "update", "--autolock"]);
    let first = docker.ok(&["swarm", "unlock-key", "-q"]);
    assert!(on.contains("Swarm updated.") && on.contains(&first) && first.starts_with("SWMKEY-1-"), "{on}");
    let rotated = docker.ok(&["swarm", "unlock-key", "--rotate"]);
    let key = docker.ok(&["swarm", "unlock-key", "-q"]);
    assert!(rotated.contains("Successfully rotated manager unlock key.") && rotated.contains(&key), "{rotated}");
    assert!(docker.ok(&["info"]).contains("Autolock Managers: true"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while fake.current().cluster.next_unlock_key.is_some() {
        assert!(std::time::Instant::now() < deadline, "nobody was told that the key was seen");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    fake.restart();
    assert!(docker.ok(&["info"]).contains("Swarm: locked"));
    docker.fails(&["node", "ls"], 1, "Swarm is encrypted and needs to be unlocked before it can be used.");
    docker.fails_with_input(&["swarm", "unlock"], &first, 1, "swarm could not be unlocked: invalid key provided");
    docker.fails_with_input(&["swarm", "unlock"], "SWMKEY-1-x", 1, "invalid key string");
    docker.ok_with_input(&["swarm", "unlock"], &key);
    assert!(docker.ok(&["node", "ls"]).contains("Leader"));
    assert_eq!(docker.ok(&["swarm", "update", "--autolock=false"]), "Swarm updated.");
    docker.fails(&["swarm", "unlock-key"], 1, "no unlock key is set");
}

#[test]
fn services_are_scaled_updated_and_rolled_back() {
    let docker = Docker::over(Fake::manager_of_two(), "docker-life");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let ok = |line: &str| docker.ok(&words(line).iter().map(String::as_str).collect::<Vec<_>>());
    ok("network create -d overlay net");
    ok("network create -d overlay other");
    ok("service create -d --name web --replicas 2 --network net --restart-condition on-failure --restart-delay 2s \
        --restart-max-attempts 3 --restart-window 1m --update-parallelism 2 --update-delay 1s --update-monitor 1s \
        --update-max-failure-ratio 0.25 --rollback-parallelism 0 --rollback-monitor 1s host sleep 9");
    let inspect = |format: &str| docker.ok(&["service", "inspect", "--format", format, "web"]);
    assert_eq!(inspect("{{.UpdateStatus}} {{.PreviousSpec}}"), "<nil> <nil>");
    let policy = "{{json .Spec.TaskTemplate.RestartPolicy}}";
    let expected = r#"{"Condition":"on-failure","Delay":2000000000,"MaxAttempts":3,"Window":60000000000}"#;
    assert_eq!(inspect(policy), expected);
    let pretty = ok("service inspect --pretty web");
    for expected in ["Parallelism:	2", "Delay:		1s", "Max failure ratio: 0.25", "RollbackConfig:"] {
        assert!(pretty.contains(expected), "no {expected:?} in {pretty}");
    }
    assert_eq!(ok("service scale -d web=4"), "web scaled to 4");
    assert!(ok("service ls").contains("4/4"));
    docker.fails(&["service", "rollback", "-d", "nowhere"], 1, "service nowhere not found");
    // Without --detach: the client follows the update, which is over when it looks.
    let updated = ok("service update --image my-image --env-add A=b --label-add tier=front --network-add other \
        --network-rm net --constraint-add node.role==worker --limit-cpu 0 web");
    assert_eq!(updated, "web");
    assert_eq!(inspect("{{.UpdateStatus.State}} {{.UpdateStatus.Message}}"), "completed update completed");
    let format = "{{.Image}} {{.Node}} {{.DesiredState}}";
    let tasks = docker.ok(&["service", "ps", "--filter", "desired-state=running", "--format", format, "web"]);
    assert_eq!(tasks, ["my-image:latest ant-2 Running"; 4].join("\n"));
    assert_eq!(ok("service ps -q web").lines().count(), 8, "the tasks before are history");
    assert_eq!(inspect("{{.PreviousSpec.TaskTemplate.ContainerSpec.Image}}"), "host:latest");
    docker.ok(&["network", "rm", "net"]);
    docker.fails(&["service", "rollback", "web"], 1, "not found");
    ok("service update -d --args=sleep --force --restart-condition any web");
    let rolled_back = ok("service rollback web");
    assert!(rolled_back.contains("rollback completed"), "{rolled_back}");
    assert_eq!(
        inspect("{{.UpdateStatus.State}} {{json .Spec.TaskTemplate.ContainerSpec.Args}}"),
        r#"rollback_completed ["sleep","9"]"#
    );
    ok("service update -d --image broken --update-failure-action rollback web");
    assert_eq!(inspect("{{.UpdateStatus.State}}"), "rollback_completed");
    docker.fails(&["service", "update", "--image", "broken", "web"], 1, "update paused due to failure");
    docker.fails(&["service", "rollback", "-d", "--force", "web"], 125, "unknown flag");
    docker.fails(&["service", "update", "-d", "--update-order", "start-first", "web"], 1, "start-first");
    docker.fails(&["service", "update", "-d", "--publish-add", "80", "web"], 1, "EndpointSpec.Ports");
    docker.fails(&["service", "scale", "-d", "web=x"], 1, "invalid replicas value x");
    ok("service create -d --name all --mode global host");
    docker.fails(&["service", "scale", "-d", "all=2"], 1, "scale can only be used with replicated");
}
