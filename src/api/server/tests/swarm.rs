//! The swarm, its nodes, its keys, the daemon; and what is said outside of a swarm and on workers.

use super::super::fake::Fake;
use super::super::{error, respond, swarm};
use super::Api;
use crate::agent::SwarmState;
use crate::api::types::SwarmInit;
use crate::types::Role;
use serde_json::{Value, json};

/// What docker 28 sends for `swarm init --advertise-addr 10.77.0.1`.
fn init_from_docker() -> Value {
    json!({"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"10.77.0.1","DataPathAddr":"","DataPathPort":0,"ForceNewCluster":false,
           "Spec":{"Labels":null,"Orchestration":{},"Raft":{"ElectionTick":0,"HeartbeatTick":0},"Dispatcher":{},"CAConfig":{},
           "TaskDefaults":{},"EncryptionConfig":{"AutoLockManagers":false}},"AutoLockManagers":false,"Availability":"",
           "DefaultAddrPool":null,"SubnetSize":24})
}

#[test]
fn a_swarm_is_made_joined_and_left_once() {
    let api = Api::over(Fake::new());
    assert_eq!(api.refused("POST", "/swarm/leave", &Value::Null, 503), error::NOT_PART_OF_SWARM);
    let (status, id) = api.call("POST", "/v1.50/swarm/init", &init_from_docker());
    assert_eq!((status, id.as_str().unwrap().len()), (200, 25));
    assert_eq!(api.get(&format!("/nodes/{}", id.as_str().unwrap()))["ManagerStatus"]["Addr"], "10.77.0.1:2377");
    assert_eq!(api.get("/swarm")["JoinTokens"], json!({"Worker": "SWMTKN-1-worker", "Manager": "SWMTKN-1-manager"}));
    assert_eq!(api.refused("POST", "/swarm/init", &init_from_docker(), 503), error::ALREADY_IN_SWARM);
    assert_eq!(api.refused("POST", "/swarm/join", &json!({}), 503), error::ALREADY_IN_SWARM);
    assert!(api.refused("POST", "/swarm/leave", &Value::Null, 503).contains("--force"));
    assert_eq!(api.call("POST", "/swarm/leave?force=1", &Value::Null).0, 200);
    let join =
        |token: &str| json!({"ListenAddr": "0.0.0.0:2377", "RemoteAddrs": ["10.77.0.1:2377"], "JoinToken": token});
    assert!(api.refused("POST", "/swarm/join", &join("wrong"), 400).contains("token"));
    assert!(api.refused("POST", "/swarm/join", &join(""), 400).contains("token"));
    assert!(api.refused("POST", "/swarm/join", &json!({"JoinToken": "x"}), 400).contains("remote address"));
    assert_eq!(api.call("POST", "/swarm/join", &join("SWMTKN-1-worker")).0, 200);
    assert_eq!(api.get("/info")["Swarm"]["LocalNodeState"], "active");
}

fn settings(change: Value) -> Result<crate::types::ClusterSpec, String> {
    let mut wanted = init_from_docker();
    for (name, value) in change.as_object().unwrap() {
        wanted[name] = value.clone();
    }
    super::super::allow::strip_nulls(&mut wanted);
    let wanted: SwarmInit = serde_json::from_value(wanted).unwrap();
    swarm::init_from(wanted).map(|request| request.spec).map_err(|error| error.message)
}

#[test]
fn settings_are_read_and_held_to_their_ranges() {
    let spec = settings(json!({
        "DataPathPort": 7789, "DefaultAddrPool": ["10.20.0.0/16"], "SubnetSize": 26,
        "Spec": {"Dispatcher": {"HeartbeatPeriod": 1_000_000_000u64}, "Formic": {"KeyRotationSeconds": 90},
                 "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000u64}},
    }))
    .unwrap();
    assert_eq!((spec.data_path_port, spec.subnet_prefix, spec.heartbeat_secs), (7789, 26, 1));
    assert_eq!((spec.key_rotation_secs, spec.certificate_secs), (90, 7_776_000));
    assert_eq!(spec.address_pool.to_string(), "10.20.0.0/16");
    assert_eq!(settings(json!({})).unwrap(), crate::types::ClusterSpec::default());
    for (change, expected) in [
        (json!({"DataPathPort": 70_000}), "70000"),
        (json!({"SubnetSize": 31}), "/31"),
        (json!({"SubnetSize": 8, "DefaultAddrPool": ["10.0.0.0/16"]}), "/8"),
        (json!({"DefaultAddrPool": ["10.0.0.0/16", "10.1.0.0/16"]}), "one pool"),
        (json!({"DefaultAddrPool": ["fd00::/8"]}), "IPv6"),
        (json!({"Availability": "busy"}), "busy"),
        (json!({"Spec": {"Dispatcher": {"HeartbeatPeriod": 1_500_000_000u64}}}), "heartbeat"),
        (json!({"Spec": {"Dispatcher": {"HeartbeatPeriod": 301_000_000_000u64}}}), "heartbeat"),
        (json!({"Spec": {"Formic": {"KeyRotationSeconds": 59}}}), "key rotation"),
        (json!({"Spec": {"CAConfig": {"NodeCertExpiry": 1}}}), "certificate"),
    ] {
        let text = settings(change).unwrap_err();
        assert!(text.contains(expected), "no {expected:?} in {text:?}");
    }
    let api = Api::over(Fake::new());
    let mut request = init_from_docker();
    request["Spec"]["Raft"]["ElectionTick"] = json!(7);
    assert!(api.refused("POST", "/swarm/init", &request, 400).contains("Raft"));
    for change in [json!({"AutoLockManagers": true}), json!({"Spec": {"EncryptionConfig": {"AutoLockManagers": true}}})]
    {
        assert!(settings(change).unwrap().autolock);
    }
}

#[test]
fn settings_change_one_version_at_a_time() {
    let api = Api::manager();
    let update = |version: u64, change: Value| {
        let mut spec = api.get("/swarm")["Spec"].clone();
        spec.as_object_mut().unwrap().remove("Formic");
        spec["Dispatcher"] = change;
        api.call("POST", &format!("/v1.50/swarm/update?version={version}&rotateWorkerToken=false"), &spec)
    };
    let version = api.get("/swarm")["Version"]["Index"].as_u64().unwrap();
    assert_eq!(update(version, json!({"HeartbeatPeriod": 10_000_000_000u64})).0, 200);
    assert_eq!(api.fake.current().cluster.spec.heartbeat_secs, 10);
    assert_eq!(api.fake.current().cluster.spec.key_rotation_secs, 43_200, "what the client does not know stays");
    let (status, stale) = update(version, json!({"HeartbeatPeriod": 20_000_000_000u64}));
    assert_eq!((status, &stale["message"]), (400, &json!("update out of sequence")));
    let version = api.get("/swarm")["Version"]["Index"].as_u64().unwrap();
    let change = json!({"Orchestration": {"TaskHistoryRetentionLimit": 0}, "CAConfig": {"NodeCertExpiry": 7_200_000_000_000u64}});
    assert_eq!(api.call("POST", &format!("/v1.50/swarm/update?version={version}"), &change).0, 200);
    let spec = api.fake.current().cluster.spec.clone();
    assert_eq!((spec.task_history, spec.certificate_secs, spec.heartbeat_secs), (0, 7200, 10));
    let offloads = |names: Value| {
        let version = api.get("/swarm")["Version"]["Index"].as_u64().unwrap();
        let change = json!({"Formic": {"DisabledOffloads": names}});
        assert_eq!(api.call("POST", &format!("/v1.50/swarm/update?version={version}"), &change).0, 200);
        let shown = api.get("/swarm")["Spec"]["Formic"]["DisabledOffloads"].clone();
        (api.fake.current().cluster.spec.disabled_offloads.to_string(), shown)
    };
    let two = json!(["tso", "udp-gro"]);
    assert_eq!(offloads(json!(["udp-gro", "tso"])), ("tso, udp-gro".into(), two.clone()));
    assert_eq!(offloads(Value::Null), ("tso, udp-gro".into(), two), "what is not given stays");
    assert_eq!(offloads(json!([])), ("none".into(), json!([])));
    assert_eq!(api.get("/info")["Swarm"]["Cluster"]["Spec"]["Orchestration"]["TaskHistoryRetentionLimit"], 0);
    let version = api.get("/swarm")["Version"]["Index"].as_u64().unwrap();
    for (change, expected) in [
        (json!({"Raft": {"ElectionTick": 7}}), "Raft.ElectionTick"),
        (json!({"Orchestration": {"TaskHistoryRetentionLimit": 101}}), "task history limit 101"),
        (json!({"Orchestration": {"TaskHistoryRetentionLimit": -1}}), "task history limit -1"),
        (json!({"Raft": {"SnapshotInterval": 7}}), "Raft.SnapshotInterval"),
        (json!({"CAConfig": {"NodeCertExpiry": 60_000_000_000u64}}), "certificate expiry"),
        (json!({"Labels": {"a": "b"}}), "Labels.a"),
        (json!({"Formic": {"DisabledOffloads": ["gro"]}}), "there is no offload \"gro\""),
    ] {
        let text = api.refused("POST", &format!("/swarm/update?version={version}"), &change, 400);
        assert!(text.contains(expected), "{text}");
    }
    let text =
        api.refused("POST", &format!("/swarm/update?version={version}&rotateManagerUnlockKey=1"), &json!({}), 400);
    assert_eq!(text, "cannot rotate because autolock is not turned on");
    let secrets = || {
        let cluster = &api.fake.current().cluster;
        (*cluster.worker_secret, *cluster.manager_secret)
    };
    let before = secrets();
    let path = format!("/swarm/update?version={version}&rotateWorkerToken=true");
    assert_eq!(api.call("POST", &path, &json!({})).0, 200);
    let after = secrets();
    assert!(after.0 != before.0 && after.1 == before.1, "only the worker token is new");
}

#[test]
fn nodes_are_listed_updated_and_removed() {
    let api = Api::manager();
    let nodes = api.get("/nodes");
    assert_eq!(nodes.as_array().unwrap().len(), 2);
    let manager = api.get("/nodes/ant-1");
    assert_eq!(
        manager["ManagerStatus"],
        json!({"Leader": true, "Reachability": "reachable", "Addr": "10.77.0.1:2377"})
    );
    assert_eq!((&manager["Status"]["State"], &manager["Status"]["Addr"]), (&json!("ready"), &json!("10.77.0.1")));
    let worker = api.get("/nodes/ant-2");
    assert_eq!((worker.get("ManagerStatus"), &worker["Status"]["State"]), (None, &json!("unknown")));
    let description = &manager["Description"];
    assert_eq!(description["Platform"], json!({"Architecture": "x86_64", "OS": "linux"}));
    assert_eq!(description["Resources"], json!({"NanoCPUs": 4_000_000_000u64, "MemoryBytes": 8u64 << 30}));
    let version = worker["Version"]["Index"].as_u64().unwrap();
    let update = json!({"Role": "worker", "Availability": "drain", "Labels": {"a": "b"}});
    assert_eq!(api.call("POST", &format!("/nodes/ant-2/update?version={version}"), &update).0, 200);
    assert_eq!(
        api.get("/nodes/ant-2")["Spec"],
        json!({"Name": "", "Labels": {"a": "b"}, "Role": "worker", "Availability": "drain"})
    );
    assert_eq!(
        api.refused("POST", &format!("/nodes/ant-2/update?version={version}"), &update, 400),
        "update out of sequence"
    );
    let change = |role: &str| {
        let version = api.get("/nodes/ant-2")["Version"]["Index"].as_u64().unwrap();
        let update = json!({"Role": role, "Availability": "active"});
        assert_eq!(api.call("POST", &format!("/nodes/ant-2/update?version={version}"), &update).0, 200);
    };
    change("manager");
    assert_eq!(api.get("/nodes/ant-2")["ManagerStatus"]["Leader"], json!(false));
    assert!(api.refused("DELETE", "/nodes/ant-2?force=1", &Value::Null, 400).contains("must be demoted to worker"));
    change("worker");
    let version = api.get("/nodes/ant-1")["Version"]["Index"].as_u64().unwrap();
    let demote = json!({"Role": "worker", "Availability": "active"});
    assert_eq!(
        api.refused("POST", &format!("/nodes/ant-1/update?version={version}"), &demote, 400),
        "attempting to demote the last manager of the swarm"
    );
    assert!(api.refused("POST", "/nodes/ant-2/update?version=x", &update, 400).contains("version"));
    assert!(api.refused("DELETE", "/nodes/ant-1", &Value::Null, 400).contains("last manager"));
    assert_eq!(api.call("DELETE", "/nodes/ant-2?force=1", &Value::Null).0, 200);
    assert_eq!(api.refused("GET", "/nodes/ant-2", &Value::Null, 404), "node ant-2 not found");
}

#[test]
fn managers_answers_come_from_managers_only() {
    let paths = [
        ("GET", "/nodes"),
        ("GET", "/nodes/x"),
        ("DELETE", "/nodes/x"),
        ("GET", "/services"),
        ("POST", "/services/create"),
        ("GET", "/networks"),
        ("POST", "/networks/create"),
        ("GET", "/networks/x"),
        ("DELETE", "/networks/x"),
        ("GET", "/tasks"),
        ("GET", "/swarm"),
        ("POST", "/swarm/update?version=1"),
        ("GET", "/formic/keys"),
        ("POST", "/formic/rotate-keys"),
    ];
    let (outside, worker) = (Api::over(Fake::new()), Api::over(Fake::worker(&[])));
    for (method, path) in paths {
        assert_eq!(outside.refused(method, path, &Value::Null, 503), error::NOT_IN_SWARM, "{method} {path}");
        assert_eq!(worker.refused(method, path, &Value::Null, 503), error::WORKER, "{method} {path}");
    }
}

#[test]
fn the_daemon_describes_itself() {
    let api = Api::manager();
    let version = api.get("/v1.40/version");
    assert_eq!((&version["ApiVersion"], &version["MinAPIVersion"]), (&json!("1.50"), &json!("1.40")));
    let info = api.get("/info");
    assert_eq!(info["Swarm"]["Nodes"], 2);
    assert_eq!(info["Swarm"]["Managers"], 1);
    assert_eq!(info["Swarm"]["ControlAvailable"], true);
    assert_eq!(info["Swarm"]["Cluster"]["Spec"]["Dispatcher"]["HeartbeatPeriod"], 5_000_000_000u64);
    let worker = Api::over(Fake::worker(&[]));
    let info = worker.get("/info");
    assert_eq!((&info["Swarm"]["ControlAvailable"], info["Swarm"].get("Cluster")), (&json!(false), None));
    assert_eq!(info["Swarm"]["RemoteManagers"][0]["Addr"], "10.77.0.1:2377");
    assert_eq!(api.call("GET", "/images/json", &Value::Null).0, 501);
    assert_eq!(api.call("PATCH", "/nodes", &Value::Null).0, 501);
    assert_eq!(api.call("GET", "/v1.50/distribution/a/b:latest/json", &Value::Null).0, 404);
}

#[test]
fn the_header_says_where_the_node_stands() {
    let mut swarm = Api::over(Fake::worker(&[])).context.backend.swarm();
    for (state, role, expected) in [
        (SwarmState::Inactive, None, "inactive"),
        (SwarmState::Active, Some(Role::Worker), "active/worker"),
        (SwarmState::Active, Some(Role::Manager), "active/manager"),
        (SwarmState::Pending, Some(Role::Worker), "pending"),
        (SwarmState::Error, Some(Role::Manager), "error"),
    ] {
        (swarm.state, swarm.role) = (state, role);
        assert_eq!(respond::swarm_header(&swarm), expected);
    }
}

#[test]
fn images_are_imported_and_removed_by_normalised_names() {
    let api = Api::over(Fake::new());
    let import = |name: &str, directory: &str| json!({"name": name, "directory": directory});
    assert_eq!(api.call("POST", "/formic/images/import", &import("my-image", "/srv/root")).0, 201);
    assert_eq!(api.get("/formic/images")[0]["name"], "my-image:latest");
    assert!(api.refused("POST", "/formic/images/import", &import("a", "srv"), 400).contains("absolute"));
    assert!(api.refused("POST", "/formic/images/import", &import("host", "/srv"), 403).contains("host"));
    assert!(api.refused("POST", "/formic/images/import", &import("../x", "/srv"), 400).contains("invalid image name"));
    assert_eq!(api.call("DELETE", "/formic/images/my-image", &Value::Null).0, 204);
    assert_eq!(api.refused("DELETE", "/formic/images/my-image", &Value::Null, 404), "No such image: my-image:latest");
}

#[test]
fn keys_are_described_and_never_shown() {
    let api = Api::manager();
    let ring = api.get("/formic/keys");
    assert_eq!(ring["rotation_secs"], 43_200);
    let epochs = ring["epochs"].as_array().unwrap();
    assert_eq!(epochs.iter().map(|epoch| epoch["phase"].as_str().unwrap()).collect::<Vec<_>>(), ["current", "next"]);
    let text = ring.to_string();
    assert!(!text.contains("master") && !text.contains("key\""), "{text}");
    // The fake's keys are repeated bytes: none of them occurs, as numbers or as hexadecimal.
    assert!(!text.contains("6,6,6") && !text.contains("060606") && !text.contains("7,7,7"), "{text}");
    let (status, _) = api.call("POST", "/formic/rotate-keys?force=1", &Value::Null);
    assert_eq!(status, 202);
    assert!(api.fake.current().ring.request.is_some());
    assert!(api.get("/formic/keys")["requested_secs_ago"].is_u64());
}

const UNLOCK_FIRST: &str = "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";

/// Asks for the unlock key, and lets what follows from that happen.
fn seen_key(api: &Api) -> String {
    let key = api.get("/swarm/unlockkey")["UnlockKey"].as_str().unwrap().to_owned();
    while let Ok(job) = api.runtime.try_recv() {
        smol::block_on(job);
    }
    key
}

#[test]
fn a_locked_manager_wants_its_key_and_nothing_else() {
    let api = Api::manager();
    assert_eq!(api.get("/swarm/unlockkey"), json!({"UnlockKey": ""}));
    let unlock = |key: &str| api.call("POST", "/v1.50/swarm/unlock", &json!({"UnlockKey": key}));
    assert_eq!(unlock("x"), (409, json!({"message": "swarm is not locked"})));
    let update = |on: bool, parameters: &str| {
        let version = api.get("/swarm")["Version"]["Index"].as_u64().unwrap();
        let spec = json!({"EncryptionConfig": {"AutoLockManagers": on}});
        api.call("POST", &format!("/v1.50/swarm/update?version={version}{parameters}"), &spec)
    };
    assert_eq!(update(true, "").0, 200);
    assert_eq!(api.get("/swarm")["Spec"]["EncryptionConfig"], json!({"AutoLockManagers": true}));
    // Nobody has seen the key yet: a manager that ends now must be able to start again.
    assert!(api.fake.current().cluster.lock.key.is_none());
    let warned = |text: &str| {
        let info = api.get("/info");
        let warning = info["Warnings"].as_array().and_then(|warnings| warnings.first()?.as_str());
        assert!(warning.is_some_and(|warning| warning.contains(text)), "{}", info["Warnings"]);
    };
    warned("the managers are not locked until the unlock key has been shown");
    assert_eq!(api.call("HEAD", "/swarm/unlockkey", &Value::Null).0, 200);
    assert!(api.runtime.try_recv().is_err(), "nobody has seen it");
    // Whatever becomes of the leader meanwhile, once it was shown the managers lock.
    api.fake.change_leaders(2);
    let first = seen_key(&api);
    assert!(api.fake.current().cluster.lock.key.is_some());
    assert_eq!(update(true, "").0, 200);
    assert_eq!(api.get("/swarm/unlockkey")["UnlockKey"], first, "it was on already");
    assert_eq!(api.get("/info")["Warnings"], json!([]));
    assert_eq!(update(true, "&rotateManagerUnlockKey=true").0, 200);
    warned("the former one is in force until the new one has been shown");
    let second = seen_key(&api);
    assert!(second.starts_with("SWMKEY-1-") && second != first);

    api.fake.restart();
    assert_eq!(api.get("/info")["Swarm"]["LocalNodeState"], "locked");
    for (method, path) in [
        ("GET", "/swarm"),
        ("GET", "/swarm/unlockkey"),
        ("POST", "/swarm/update?version=1"),
        ("GET", "/nodes"),
        ("POST", "/services/create"),
        ("POST", "/networks/create"),
        ("POST", "/containers/create"),
        ("GET", "/formic/keys"),
        ("POST", "/formic/rotate-keys"),
    ] {
        assert_eq!(api.refused(method, path, &json!({}), 503), UNLOCK_FIRST, "{path}");
    }
    assert_eq!(api.refused("POST", "/swarm/init", &init_from_docker(), 503), error::ALREADY_IN_SWARM);
    for (key, status, text) in [
        ("SWMKEY-1-nonsense", 400, "invalid key string"),
        (&first, 401, "swarm could not be unlocked: invalid key provided"),
    ] {
        assert_eq!(unlock(key), (status, json!({"message": text})));
    }
    assert_eq!(api.get("/info")["Swarm"]["LocalNodeState"], "locked", "a wrong key changes nothing");
    assert_eq!(unlock(&second).0, 200);
    assert_eq!(api.get("/swarm/unlockkey")["UnlockKey"], second);
    assert_eq!(update(false, "").0, 200);
    assert_eq!(api.get("/swarm/unlockkey"), json!({"UnlockKey": ""}));
    assert!(api.fake.current().cluster.lock.key.is_none());
}
