//! Autolock: managers whose daemons start again need the unlock key; nothing of them runs until then, and traffic between
//! the others takes no notice.

use netns_tests::swarm::{SETTLE, list};
use netns_tests::traffic::Flow;
use netns_tests::wait::so;
use netns_tests::{Host, Swarm, wait_until};

const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used. \
                      Please use \"docker swarm unlock\" to unlock it.";
const WRONG_KEY: &str = "swarm could not be unlocked: invalid key provided";

fn files(host: &Host) -> (Vec<u8>, String) {
    let read = |name: &str| std::fs::read(host.state_dir().join(name)).expect("a file of the node");
    (read("manager/at-rest.key"), String::from_utf8(read("node/identity.pem")).expect("PEM"))
}

/// Waits until the files of a manager are (not) locked.
fn wait_locked(host: &Host, locked: bool) {
    wait_until("the files follow", SETTLE, || {
        let (key_file, identity) = files(host);
        let is = (key_file.get(16) == Some(&1), identity.contains("SEALED PRIVATE KEY"));
        so(is == (locked, locked), || format!("{}: {is:?}", host.name()))
    });
}

fn is_locked(host: &Host) -> bool {
    host.get("/info")["Swarm"]["LocalNodeState"] == "locked"
}

/// Both clients, each with the key on standard input.
fn unlock(host: &Host, key: &str) {
    if host.index().is_multiple_of(2) {
        host.docker_with(&["swarm", "unlock"], key.as_bytes()).ok();
    } else {
        host.formic_with(&["swarm", "unlock"], key.as_bytes()).ok();
    }
}

fn wait_reachable(swarm: &Swarm, at: usize, count: usize) {
    wait_until("the managers reach each other", SETTLE, || {
        let nodes = list(swarm.host(at).try_get("/nodes")?);
        let reachable = nodes
            .iter()
            .filter(|node| node["ManagerStatus"]["Reachability"] == "reachable" && node["Status"]["State"] == "ready");
        so(reachable.count() == count, || format!("{nodes:?}"))
    });
}

fn turn_on(swarm: &Swarm) -> String {
    let on = swarm.host(0).docker(&["swarm", "update", "--autolock"]).ok();
    let key = swarm.host(1).formic(&["swarm", "unlock-key", "-q"]).ok();
    assert!(on.contains(&key) && key.starts_with("SWMKEY-1-"), "{on}");
    (0..3).for_each(|index| wait_locked(swarm.host(index), true));
    let identity = std::fs::read_to_string(swarm.host(3).state_dir().join("node/identity.pem")).expect("an identity");
    assert!(!identity.contains("SEALED"), "a worker's key cannot be locked");
    key
}

/// One manager starts again: it says that it is locked, and a wrong key changes nothing.
fn one_is_locked(swarm: &Swarm, key: &str) {
    let host = swarm.host(1);
    host.stop_daemon();
    host.start_daemon(&[]);
    assert!(is_locked(host));
    assert!(host.docker(&["info"]).ok().contains("Swarm: locked"));
    let status = host.formic(&["status"]).ok();
    assert!(status.contains("locked"), "{status}");
    for command in [&["node", "ls"][..], &["network", "create", "--driver", "overlay", "x"], &["swarm", "unlock-key"]] {
        host.formic(command).refused(LOCKED);
        let docker = host.docker(command);
        assert!(docker.code == 1 && docker.stderr.contains(LOCKED), "{}", docker.describe());
    }
    let before = files(host);
    let wrong = host.docker_with(&["swarm", "unlock"], b"SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    assert!(wrong.code == 1 && wrong.stderr.contains(WRONG_KEY), "{}", wrong.describe());
    host.formic_with(&["swarm", "unlock"], b"nonsense").refused("invalid key string");
    assert!(is_locked(host) && files(host) == before);
    // What it ran is placed elsewhere meanwhile.
    wait_until("the others call it down", SETTLE, || {
        let nodes = list(swarm.host(0).try_get("/nodes")?);
        let down = nodes.iter().any(|node| node["Status"]["State"] == "down");
        so(down, || format!("{nodes:?}"))
    });
    unlock(host, key);
    wait_reachable(swarm, 1, 3);
    host.formic(&["swarm", "unlock"]).refused("swarm is not locked");
}

/// The key is replaced while one manager is away: it opens with the old one, and follows.
fn the_key_is_replaced(swarm: &Swarm, old: &str) -> String {
    let away = swarm.host(2);
    away.stop_daemon();
    let key_files = || [0, 1, 2].map(|index| files(swarm.host(index)).0);
    let before = key_files();
    let rotated = swarm.host(1).formic(&["swarm", "unlock-key", "--rotate"]).ok();
    let new = swarm.host(0).docker(&["swarm", "unlock-key", "-q"]).ok();
    assert!(rotated.contains("Successfully rotated manager unlock key.") && rotated.contains(&new), "{rotated}");
    assert_ne!(new, old);
    away.start_daemon(&[]);
    away.formic_with(&["swarm", "unlock"], new.as_bytes()).refused(WRONG_KEY);
    unlock(away, old);
    wait_reachable(swarm, 2, 3);
    wait_until("all files follow", SETTLE, || {
        let changed = key_files().iter().zip(&before).filter(|(now, before)| now != before).count();
        so(changed == 3, || format!("{changed} of 3"))
    });
    new
}

#[test]
fn managers_are_locked_until_the_key_is_given() {
    let swarm = Swarm::start_managers(3, 2);
    for index in 0..3 {
        swarm.manager().formic(&["node", "update", "--availability", "drain", &swarm.host(index).name()]).ok();
    }
    swarm.create_network("net", &["--opt", "encrypted"]);
    let tasks = swarm.create_service("web", &["net"], 2);
    swarm.wait_all_ping(&tasks, 2);
    let flow = Flow::start(&tasks[0], &tasks[1]);
    let first = turn_on(&swarm);
    one_is_locked(&swarm, &first);
    let second = the_key_is_replaced(&swarm, &first);

    // All of them: the swarm stands still until a majority is unlocked, and its traffic does not.
    for index in 0..3 {
        swarm.host(index).kill_daemon();
    }
    for index in 0..3 {
        swarm.host(index).start_daemon(&[]);
        assert!(is_locked(swarm.host(index)));
        swarm.host(index).docker_with(&["swarm", "unlock"], first.as_bytes()).refused(WRONG_KEY);
    }
    unlock(swarm.host(0), &second);
    unlock(swarm.host(1), &second);
    wait_until("a command is taken", SETTLE, || {
        let created = swarm.host(0).formic(&["network", "create", "--driver", "overlay", "after"]);
        so(created.code == 0, || created.describe())
    });

    // A locked node can be given up.
    let left = swarm.host(2);
    left.formic(&["swarm", "leave"]).refused("Swarm is encrypted and locked.");
    left.formic(&["swarm", "leave", "--force"]).ok();
    assert_eq!(left.get("/info")["Swarm"]["LocalNodeState"], "inactive");
    assert!(!left.state_dir().join("manager").exists() && !left.state_dir().join("node/identity.pem").exists());

    // A demoted manager's files open by themselves.
    let name = swarm.host(2).name();
    wait_until("the lost one is out of the way", SETTLE, || {
        let demoted = swarm.host(0).formic(&["node", "demote", &name]);
        so(demoted.code == 0, || demoted.describe())
    });
    let name = swarm.host(1).name();
    swarm.host(0).formic(&["node", "demote", &name]).ok();
    wait_until("it is a worker", SETTLE, || {
        let refused = swarm.host(1).formic(&["node", "ls"]);
        so(refused.stderr.contains("Worker nodes can't be used"), || refused.describe())
    });
    swarm.host(1).stop_daemon();
    swarm.host(1).start_daemon(&[]);
    assert!(!is_locked(swarm.host(1)) && !swarm.host(1).state_dir().join("manager").exists());

    // Off: the files of the last one open by themselves, too.
    swarm.host(0).docker(&["swarm", "update", "--autolock=false"]).ok();
    wait_locked(swarm.host(0), false);
    swarm.host(0).formic(&["swarm", "unlock-key"]).refused("no unlock key is set");
    swarm.host(0).stop_daemon();
    swarm.host(0).start_daemon(&[]);
    assert!(!is_locked(swarm.host(0)));
    let (sent, lost) = flow.stop();
    assert!(sent > 100 && lost == 0, "{lost} of {sent} pings are lost");
    for host in &swarm.net.hosts {
        let log = host.log();
        assert!(!log.contains(&first) && !log.contains(&second) && !log.contains("SWMKEY"), "a key in the log");
    }
}

#[test]
fn a_swarm_is_locked_from_the_start() {
    let swarm = Swarm::start_with(1, &["--autolock"], &[]);
    let key = swarm.host(0).docker(&["swarm", "unlock-key", "-q"]).ok();
    wait_locked(swarm.host(0), true);
    swarm.host(0).kill_daemon();
    swarm.host(0).start_daemon(&[]);
    assert!(is_locked(swarm.host(0)));
    unlock(swarm.host(0), &key);
    wait_until("it is ready", SETTLE, || {
        let nodes = list(swarm.host(0).try_get("/nodes")?);
        so(nodes[0]["Status"]["State"] == "ready", || format!("{nodes:?}"))
    });
}
