//! What users get wrong, through both clients: the text, the exit code, and that nothing has changed.
//!
//! Of the docker client's output only the daemon's part is kept: what the client says around it depends on its version.

use super::{golden, run, stabilise};
use crate::api::server::fake::Fake;
use crate::cluster::State;
use std::path::Path;
use std::process::Command;

/// What is there before: two networks, a service, an image.
const BEFORE: [&str; 5] = [
    "network create --driver overlay --subnet 10.9.0.0/24 net",
    "network create --driver overlay --attachable --subnet 10.8.0.0/24 open",
    "image import my-image /tmp",
    "service create --name web --network net --replicas 2 my-image sleep --forever",
    "node update --label-add zone=a ant-2",
];

const FORMIC: &str = "
fly
network
network fly
network create
network create a b
network create --fly a
network create --subnet
network create --driver bridge n
network create --driver  n
network create --opt colour=blue n
network create --opt encrypted=maybe n
network create --opt com.docker.network.driver.mtu=big n
network create --opt com.docker.network.driver.mtu=575 n
network create --opt com.docker.network.driver.mtu=65536 n
network create --subnet hello n
network create --subnet 10.7.0.0/33 n
network create --subnet 10.7.0.0/31 n
network create --subnet 10.7.0.1/24 n
network create --subnet 10.0.0.0/7 n
network create --subnet 127.0.0.0/24 n
network create --subnet 224.0.0.0/24 n
network create --subnet fd00::/64 n
network create --subnet 10.9.0.0/25 n
network create --subnet 10.9.0.0/16 n
network create --subnet 10.7.0.0/24 --subnet 10.6.0.0/24 n
network create --gateway 10.7.0.1 n
network create --subnet 10.7.0.0/24 --gateway 10.6.0.1 n
network create --subnet 10.7.0.0/24 --gateway 10.7.0.0 n
network create --subnet 10.7.0.0/24 --gateway x n
network create --subnet 10.7.0.0/24 --gateway 10.7.0.1 --gateway 10.7.0.2 n
network create --ip-range 10.7.0.0/25 n
network create --subnet 10.7.0.0/24 --ip-range 10.6.0.0/25 n
network create --subnet 10.7.0.0/24 --ip-range 10.7.0.0 n
network create --subnet 10.7.0.0/24 --aux-address a=10.6.0.9 n
network create --subnet 10.7.0.0/24 --aux-address a=10.7.0.1 n
network create --subnet 10.7.0.0/24 --aux-address a n
network create net
network create host
network create -n
network create a/b
network ls --filter colour=blue
network ls --filter
network inspect
network inspect nowhere
network rm
network rm nowhere
network rm net
run
run --network net nginx
run --network nowhere nginx
run --network open nginx
run nginx
attach open
attach --netns blue
attach --netns a/b open
attach --netns /proc/1/ns/net open
attach --netns blue net
attach --netns blue nowhere
attach --netns blue --ip x open
attach --netns blue --ip 10.9.0.9 open
attach --netns blue --ip 10.8.0.1 open
detach --netns blue open
detach --netns blue net
service
service create
service create --name web host
service create --name -x host
service create --network nowhere host
service create --network net --network net host
service create --replicas many host
service create --replicas 10001 host
service create --mode twice host
service create --mode global --replicas-max-per-node 1 host
service create --constraint node.colour==red host
service create --placement-pref zone host
service create --reserve-cpu 0.0001 host
service create --reserve-memory 1k host
service create --env NAME host
service rm
service rm nowhere
service ps nowhere
service inspect nowhere
exec
exec nowhere true
exec web.1
image import
image import host /tmp
image import a/../b /tmp
image import other /no/such/directory
image rm nowhere
node inspect nowhere
node rm nowhere
node rm ant-1
node demote ant-1
node update --availability away ant-2
node update --role captain ant-2
node update --label-rm colour ant-2
swarm init
swarm init --fly
swarm join --token x 10.77.0.1
swarm join-token captain
swarm update
swarm update --dispatcher-heartbeat 0s
swarm update --dispatcher-heartbeat 2h
swarm update --key-rotation-interval 1s
swarm update --cert-expiry 1s
swarm update --task-history-limit 1000
swarm update --disable-offload flying
swarm unlock
swarm unlock-key
swarm leave
";

const DOCKER: &str = "
network create --driver overlay --opt colour=blue n
network create --driver overlay --opt encrypted=maybe n
network create --driver overlay --opt com.docker.network.driver.mtu=575 n
network create --driver overlay --subnet 10.7.0.0/31 n
network create --driver overlay --subnet 127.0.0.0/24 n
network create --driver overlay --subnet 10.9.0.0/25 n
network create --driver overlay --subnet 10.7.0.0/24 --gateway 10.7.0.0 n
network create --driver overlay --subnet 10.7.0.0/24 --aux-address a=10.7.0.1 n
network create --driver overlay --ingress n
network create --driver overlay --ipam-driver dhcp n
network create --driver overlay --scope local n
network create --driver overlay net
network create --driver overlay host
network create --driver overlay a/b
network inspect nowhere
network rm nowhere
network rm net
network connect net web.1
network connect open web.1
network connect nowhere web.1
run --network net nginx
run --network open nginx
run --network nowhere nginx
run nginx
create --network net nginx
service create -d --name web host
service create -d --network nowhere host
service create -d --publish 80:80 host
service create -d --mode global-job host
service create -d --endpoint-mode dnsrr host
service create -d --constraint node.colour==red host
service create -d --secret s host
service rm nowhere
service inspect nowhere
service ps nowhere
exec nowhere true
node inspect nowhere
node rm nowhere
node demote ant-1
swarm init
swarm join --token x 10.77.0.1
swarm unlock
swarm unlock-key
swarm leave
volume create v
pull nginx
";

#[test]
fn wrong_uses_change_nothing() {
    let served = Fake::manager();
    let socket = served.clone().serve("cli-wrong");
    for line in BEFORE {
        let (_, err, code) = run(socket.socket(), &line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(code, 0, "{line}: {err}");
    }
    let mut text = String::new();
    let before = bytes(&served.current());
    for line in lines(FORMIC) {
        let (out, err, code) = run(socket.socket(), &line.split(' ').collect::<Vec<_>>());
        assert!(code != 0 && !err.trim().is_empty(), "formic {line}: {code} {out}");
        assert_eq!(bytes(&served.current()), before, "formic {line}: the state has changed");
        text.push_str(&format!("$ formic {line}\n{}= {code}\n", marked(&err)));
    }
    for line in lines(DOCKER) {
        let (err, code) = docker(socket.socket(), line);
        assert_ne!(code, 0, "docker {line}");
        assert_eq!(bytes(&served.current()), before, "docker {line}: the state has changed");
        text.push_str(&format!("$ docker {line}\n{}= {code}\n", marked(&err)));
    }
    assert!(lines(FORMIC).count() + lines(DOCKER).count() >= 150);
    golden("wrong.txt", &stabilise(&text));
}

fn lines(table: &'static str) -> impl Iterator<Item = &'static str> {
    table.lines().filter(|line| !line.is_empty())
}

fn marked(text: &str) -> String {
    text.lines().map(|line| format!("! {line}\n")).collect()
}

/// The state but for the index, which refused commands move too.
fn bytes(state: &State) -> Vec<u8> {
    let mut state = state.duplicate().unwrap();
    state.index = 0;
    state.to_bytes().unwrap().to_vec()
}

/// What the daemon says to the real client, and the client's exit code.
fn docker(socket: &Path, line: &str) -> (String, i32) {
    let mut command = Command::new("docker");
    command.env("DOCKER_HOST", format!("unix://{}", socket.display())).env_remove("DOCKER_CONTEXT");
    command.env("DOCKER_CONFIG", "/nonexistent").args(line.split(' '));
    let output = command.output().expect("this test needs the docker client on PATH (docker.io or docker-cli)");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    // The client of Docker 20.10 has words of its own for what is not found, and ends what `run` says with a full stop.
    let marks = ["Error response from daemon: ", "Error: "];
    let said = err.lines().filter_map(|line| marks.iter().find_map(|mark| Some(line.split_once(mark)?.1)));
    let said: Vec<&str> = said.map(|said| said.trim_end_matches('.')).map(not_found).collect();
    (said.join("\n"), output.status.code().unwrap_or(-1))
}

fn not_found(said: &str) -> &str {
    let lower = said.to_lowercase();
    if lower.contains("no such ") || lower.ends_with(" not found") { "(not found)" } else { said }
}
