//! Services and tasks: what is created, shown, refused.

use super::super::fake::Fake;
use super::super::services::spec_from;
use super::Api;
use crate::types::{Resources, ServiceMode};
use serde_json::{Value, json};

/// What docker 28 sends for `service create --network NAME my-image`.
fn from_docker(network: &str) -> Value {
    json!({"Labels":{},"TaskTemplate":{"ContainerSpec":{"Image":"my-image:latest","Init":false,"DNSConfig":{}},
           "Resources":{"Limits":{},"Reservations":{}},"Placement":{},"Networks":[{"Target":network}],"ForceUpdate":0},
           "Mode":{"Replicated":{}},"EndpointSpec":{"Mode":"vip"}})
}

fn with(mut request: Value, parent: &str, name: &str, value: Value) -> Value {
    request.pointer_mut(parent).unwrap()[name] = value;
    request
}

#[test]
fn the_specifications_service_is_created_with_everything_filled_in() {
    let api = Api::manager();
    let network = api.create_network("my-multi-host-network");
    let (status, created) = api.call("POST", "/v1.50/services/create", &from_docker(&network));
    assert_eq!(status, 201, "{created}");
    let id = created["ID"].as_str().unwrap();
    let shown = api.get(&format!("/v1.50/services/{id}?insertDefaults=false"));
    assert_eq!(
        shown["Spec"]["Mode"],
        json!({"Replicated": {"Replicas": 1}}),
        "or docker says: unrecognized service mode"
    );
    assert_eq!(shown["Spec"]["EndpointSpec"]["Mode"], "vip");
    assert_eq!(shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "my-image:latest");
    assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"], json!([{"Target": network}]));
    let name = shown["Spec"]["Name"].as_str().unwrap();
    assert!(name.contains('_'), "a name is invented: {name}");
    assert_eq!(api.get(&format!("/services/{name}"))["ID"], id);
}

#[test]
fn all_that_is_implemented_arrives() {
    let api = Api::manager();
    api.create_network("a");
    api.create_network("b");
    let request = json!({
        "Name": "web", "Labels": {"tier": "front"},
        "TaskTemplate": {
            "ContainerSpec": {"Image": "host", "Command": ["sh"], "Args": ["-c", "true"], "Env": ["A=b", "C="], "Dir": "/tmp",
                              "Hostname": "h-1", "Isolation": "default"},
            "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000u64, "MaxAttempts": 0},
            "Runtime": "container",
            "Placement": {"Constraints": ["node.role==manager", "node.labels.zone != a"], "MaxReplicas": 7,
                          "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}]},
            "Resources": {"Limits": {}, "Reservations": {"NanoCPUs": 500_000_000u64, "MemoryBytes": 64u64 << 20}},
        },
        "UpdateConfig": {"Parallelism": 1, "FailureAction": "pause", "Order": "stop-first"},
        "Mode": {"Replicated": {"Replicas": 2}},
        "Networks": [{"Target": "b"}, {"Target": "a"}],
    });
    assert_eq!(api.call("POST", "/services/create", &request).0, 201);
    let state = api.fake.current();
    let spec = &state.services.values().next().unwrap().spec;
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 2 });
    let constraints: Vec<String> = spec.placement.constraints.iter().map(ToString::to_string).collect();
    assert_eq!(constraints, ["node.role==manager", "node.labels.zone!=a"]);
    assert_eq!((&*spec.placement.spread, spec.placement.max_per_node), (&["zone".to_owned()][..], 7));
    assert_eq!(spec.reservations, Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20 });
    assert_eq!(spec.container.image, "host:latest");
    assert_eq!(
        (&*spec.container.command, &*spec.container.args),
        (&["sh".to_owned()][..], &["-c".to_owned(), "true".to_owned()][..])
    );
    assert_eq!(spec.container.env, ["A=b", "C="]);
    assert_eq!((&*spec.container.dir, &*spec.container.hostname), ("/tmp", "h-1"));
    assert_eq!(spec.labels["tier"], "front");
    let names: Vec<&str> = spec.networks.iter().map(|(id, _)| state.networks[id].spec.name.as_str()).collect();
    assert_eq!(names, ["b", "a"], "in the order of the interfaces");
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let api = Api::manager();
    let network = api.create_network("net");
    let good = || from_docker(&network);
    let container = "/TaskTemplate/ContainerSpec";
    for (request, expected) in [
        (
            with(good(), container, "Mounts", json!([{"Type": "tmpfs", "Target": "/x"}])),
            "TaskTemplate.ContainerSpec.Mounts (--mount)",
        ),
        (with(good(), container, "Secrets", json!([{"SecretName": "x"}])), "Secrets"),
        (with(good(), container, "User", json!("nobody")), "User"),
        (with(good(), container, "Init", json!(true)), "Init"),
        (with(good(), container, "Labels", json!({"a": "b"})), "TaskTemplate.ContainerSpec.Labels"),
        (with(good(), container, "DNSConfig", json!({"Nameservers": ["1.1.1.1"]})), "DNSConfig"),
        (with(good(), container, "Env", json!(["A"])), "NAME=value"),
        (with(good(), container, "Env", json!(["=b"])), "NAME=value"),
        (with(good(), container, "Args", json!(["a\u{0}"])), "NUL"),
        (with(good(), container, "Args", json!("ls")), "malformed"),
        (with(good(), container, "Dir", json!("x")), "absolute"),
        (with(good(), container, "Hostname", json!("a b")), "hostname"),
        (with(good(), container, "Image", json!("")), "image reference must be provided"),
        (with(good(), container, "Image", json!("A B")), "invalid image name"),
        (with(good(), "/TaskTemplate/Resources/Limits", "MemoryBytes", json!(1)), "TaskTemplate.Resources"),
        (with(good(), "/TaskTemplate/Placement", "Constraints", json!(["node.ip==10.0.0.1"])), "node.ip==10.0.0.1"),
        (with(good(), "/TaskTemplate/Placement", "Constraints", json!(["node.role=manager"])), "node.role=manager"),
        (
            with(
                good(),
                "/TaskTemplate/Placement",
                "Preferences",
                json!([{"Spread": {"SpreadDescriptor": "engine.labels.a"}}]),
            ),
            "spread=node.labels.NAME",
        ),
        (
            with(good(), "/TaskTemplate/Placement", "Platforms", json!([{"OS": "plan9"}])),
            "TaskTemplate.Placement.Platforms",
        ),
        (
            with(good(), "/TaskTemplate/Resources/Reservations", "NanoCPUs", json!(999_999)),
            "invalid cpu value 0.000999999",
        ),
        (with(good(), "/TaskTemplate/Resources/Reservations", "MemoryBytes", json!(4096)), "Must be at least 4MiB"),
        (with(good(), "/TaskTemplate/Resources/Reservations", "MemoryBytes", json!(-1)), "malformed"),
        (
            with(good(), "/TaskTemplate/Resources/Reservations", "GenericResources", json!([{"a": 1}])),
            "Reservations.GenericResources",
        ),
        (with(good(), "/TaskTemplate", "LogDriver", json!({"Name": "none"})), "LogDriver"),
        (with(good(), "/TaskTemplate", "RestartPolicy", json!({"Condition": "never"})), "invalid restart condition"),
        (with(good(), "/EndpointSpec", "Mode", json!("dnsrr")), "\"dnsrr\" of EndpointSpec.Mode"),
        (with(good(), "/EndpointSpec", "Ports", json!([{"TargetPort": 80}])), "EndpointSpec.Ports (--publish)"),
        (with(good(), "/Mode", "Global", json!({})), "must specify only one service mode"),
        (with(good(), "/Mode", "ReplicatedJob", json!({"MaxConcurrent": 1})), "Mode.ReplicatedJob"),
        (with(good(), "/TaskTemplate/Networks/0", "Aliases", json!(["x"])), "TaskTemplate.Networks[0].Aliases"),
        (with(good(), "/TaskTemplate", "Networks", json!([{"Target": network}, {"Target": "net"}])), "twice"),
        (with(good(), "", "Name", json!("a b")), "a b"),
        (with(good(), "", "SomethingNew", json!(true)), "SomethingNew"),
        (json!([1]), "JSON object"),
    ] {
        let text = api.refused("POST", "/services/create", &request, 400);
        assert!(text.contains(expected), "no {expected:?} in {text:?}");
    }
    let text = api.refused("POST", "/services/create", &from_docker("nowhere"), 404);
    assert_eq!(text, "network nowhere not found");
    assert!(api.fake.current().services.is_empty(), "nothing was made");
    api.create_service("web", "net", 1);
    let text = api.refused("POST", "/services/create", &with(good(), "", "Name", json!("web")), 409);
    assert_eq!(text, "name conflicts with an existing object: service web already exists");
}

#[test]
fn lists_carry_status_and_honour_filters() {
    let api = Api::manager();
    api.create_network("net");
    let web = api.create_service("web", "net", 2);
    api.create_service("db", "net", 1);
    let all = api.get("/services?status=true");
    let found = all.as_array().unwrap().iter().find(|service| service["ID"] == web.as_str()).unwrap();
    assert_eq!(found["ServiceStatus"], json!({"RunningTasks": 2, "DesiredTasks": 2, "CompletedTasks": 0}));
    for (filter, count) in [("id", 0), ("name", 1)] {
        let list = api.get(&format!("/services?filters=%7B%22{filter}%22%3A%7B%22web%22%3Atrue%7D%7D"));
        assert_eq!(list.as_array().unwrap().len(), count, "{filter}");
        assert!(list.as_array().unwrap().iter().all(|service| service.get("ServiceStatus").is_none()));
    }
    assert_eq!(api.refused("GET", "/services/nowhere", &Value::Null, 404), "service nowhere not found");
}

#[test]
fn tasks_are_shown_as_docker_expects() {
    let api = Api::manager();
    let network = api.create_network("net");
    let web = api.create_service("web", "net", 2);
    api.create_service("db", "net", 1);
    let path = format!(
        "/v1.50/tasks?filters=%7B%22_up-to-date%22%3A%7B%22true%22%3Atrue%7D%2C%22service%22%3A%7B%22{web}%22%3Atrue%7D%7D"
    );
    let tasks = api.get(&path);
    let tasks = tasks.as_array().unwrap();
    assert_eq!(tasks.len(), 2);
    for task in tasks {
        assert_eq!(task["ServiceID"], web.as_str());
        assert_eq!(task["DesiredState"], "running");
        assert_eq!(task["Status"]["State"], "running");
        assert_eq!(task["Status"]["ContainerStatus"]["ContainerID"], task["ID"]);
        assert_eq!(task["Status"]["ContainerStatus"]["PID"], 4242);
        assert_eq!(task["NetworksAttachments"][0]["Network"]["ID"], network.as_str());
        assert_eq!(task["NetworksAttachments"][0]["Network"]["Spec"]["Name"], "net");
        assert!(task["NetworksAttachments"][0]["Addresses"][0].as_str().unwrap().ends_with("/24"));
        assert_eq!(task["Spec"]["ContainerSpec"]["Image"], "host:latest");
        assert_eq!(api.get(&format!("/tasks/{}", task["ID"].as_str().unwrap()))["Slot"], task["Slot"]);
    }
    for (filters, count) in [
        (json!({"service": ["web"]}), 2),
        (json!({"service": ["nowhere"]}), 0),
        (json!({"node": ["ant-1"]}), 3),
        (json!({"node": ["ant-2"]}), 0),
        (json!({"name": ["web.1"]}), 1),
        (json!({"desired-state": ["running"]}), 3),
        (json!({"desired-state": ["shutdown"]}), 0),
    ] {
        let encoded: String = filters.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
        assert_eq!(api.get(&format!("/tasks?filters={encoded}")).as_array().unwrap().len(), count, "{filters}");
    }
    assert!(
        api.refused("GET", "/tasks?filters=%7B%22desired-state%22%3A%5B%22x%22%5D%7D", &Value::Null, 400)
            .contains("desired-state")
    );
}

#[test]
fn a_removed_service_and_its_tasks_are_gone() {
    let api = Api::manager();
    api.create_network("net");
    api.create_service("web", "net", 2);
    assert_eq!(api.call("DELETE", "/services/web", &Value::Null).0, 200);
    assert_eq!(api.get("/services"), json!([]));
    assert_eq!(api.get("/tasks"), json!([]));
    assert_eq!(api.refused("DELETE", "/services/web", &Value::Null, 404), "service web not found");
}

#[test]
fn tasks_of_this_node_are_its_containers() {
    let api = Api::manager();
    api.create_network("net");
    api.create_service("web", "net", 1);
    let list = api.get("/containers/json");
    let container = &list.as_array().unwrap()[0];
    let id = container["Id"].as_str().unwrap();
    assert_eq!(container["State"], "running");
    assert_eq!(container["Names"], json!([format!("/web.1.{id}")]));
    assert_eq!(container["NetworkSettings"]["Networks"]["net"]["IPAddress"], "10.0.1.2");
    for name in [id, "web.1", &format!("web.1.{id}"), &id[..5]] {
        assert_eq!(api.get(&format!("/containers/{name}/json"))["State"]["Running"], true, "{name}");
    }
    assert_eq!(api.refused("GET", "/containers/web.9/json", &Value::Null, 404), "No such container: web.9");
}

#[test]
fn the_specification_survives_its_way_into_the_state_and_back() {
    let api = Api::manager();
    let network = api.create_network("net");
    let wanted = serde_json::from_value(from_docker(&network)).ok();
    let wanted: crate::api::types::ServiceSpec = wanted.unwrap();
    let spec = spec_from(wanted, &api.fake.current(), [1, 2]).unwrap();
    let back: crate::api::types::ServiceSpec = serde_json::from_str(&spec.api_spec).unwrap();
    let again = spec_from(back, &api.fake.current(), [9, 9]).unwrap();
    assert_eq!(again, spec);
}

#[test]
fn a_global_service_has_a_task_on_each_node_that_suits() {
    let api = Api::over(Fake::manager_of_two());
    let create = |name: &str, placement: Value| {
        let body = json!({"Name": name, "Mode": {"Global": {}},
                          "TaskTemplate": {"ContainerSpec": {"Image": "host"}, "Placement": placement}});
        api.call("POST", "/v1.50/services/create", &body).0
    };
    assert_eq!(create("everywhere", json!({})), 201);
    assert_eq!(create("workers", json!({"Constraints": ["node.role==worker"]})), 201);
    assert_eq!(create("narrow", json!({"MaxReplicas": 1})), 400);
    let services = api.get("/services?status=true&filters=%7B%22mode%22%3A%5B%22global%22%5D%7D");
    let mut desired: Vec<(&str, u64)> = services
        .as_array()
        .unwrap()
        .iter()
        .map(|service| {
            assert_eq!(service["Spec"]["Mode"], json!({"Global": {}}));
            (service["Spec"]["Name"].as_str().unwrap(), service["ServiceStatus"]["DesiredTasks"].as_u64().unwrap())
        })
        .collect();
    desired.sort_unstable();
    assert_eq!(desired, [("everywhere", 2), ("workers", 1)]);
    let worker = api.get("/nodes/ant-2")["ID"].as_str().unwrap().to_owned();
    let filter: String = json!({"node": ["ant-2"]}).to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
    let tasks = api.get(&format!("/tasks?filters={filter}"));
    assert_eq!(tasks.as_array().unwrap().len(), 2);
    assert!(tasks.as_array().unwrap().iter().all(|task| task["NodeID"] == worker.as_str() && task["Slot"] == 0));
}
