//! Networks: what is created, shown, refused; and the refusal of unmanaged containers.

use super::super::fake::{Fake, HOST_ROUTE};
use super::Api;
use serde_json::{Value, json};

/// What docker 28 sends for `network create --opt encrypted --driver overlay NAME`.
fn from_docker(name: &str) -> Value {
    json!({"Driver":"overlay","Scope":"","IPAM":{"Driver":"default","Options":{},"Config":[]},"Internal":false,
           "Attachable":false,"Ingress":false,"ConfigOnly":false,"ConfigFrom":null,"Options":{"encrypted":""},
           "Labels":{},"Name":name})
}

fn with(mut request: Value, pointer: &str, value: Value) -> Value {
    *request.pointer_mut(pointer).unwrap() = value;
    request
}

#[test]
fn the_specifications_network_is_created_and_shown() {
    let api = Api::manager();
    let (status, created) = api.call("POST", "/v1.50/networks/create", &from_docker("my-multi-host-network"));
    assert_eq!(status, 201, "{created}");
    assert_eq!(created["Warning"], "");
    let id = created["Id"].as_str().unwrap();
    assert_eq!(id.len(), 25);
    for name in ["my-multi-host-network", id, &id[..4]] {
        let shown = api.get(&format!("/v1.50/networks/{name}?scope=swarm"));
        assert_eq!(shown["Id"], id);
        assert_eq!(shown["Scope"], "swarm");
        assert_eq!(shown["Driver"], "overlay");
        assert_eq!(shown["Options"], json!({"encrypted": ""}));
        assert_eq!(shown["Created"], "2023-11-14T22:13:20Z");
        assert_eq!(shown["IPAM"]["Config"][0]["Gateway"], "10.0.1.1");
        assert_eq!(shown["IPAM"]["Config"][0]["Subnet"], "10.0.1.0/24");
        assert_eq!(shown["Containers"], json!({}));
    }
    assert!(api.fake.current().networks.values().all(|network| network.spec.encrypted));
    let taken = api.refused("POST", "/v1.50/networks/create", &from_docker("my-multi-host-network"), 409);
    assert_eq!(taken, "network with name my-multi-host-network already exists");
}

#[test]
fn the_value_of_encrypted_is_read() {
    let api = Api::manager();
    for (value, encrypted) in [("", true), ("true", true), ("false", false), ("0", false)] {
        let name = format!("n{}", value.len() + usize::from(encrypted) * 10);
        let (status, _) =
            api.call("POST", "/networks/create", &with(from_docker(&name), "/Options/encrypted", json!(value)));
        assert_eq!(status, 201);
        let state = api.fake.current();
        let network = state.networks.values().find(|network| network.spec.name == name).unwrap();
        assert_eq!(network.spec.encrypted, encrypted, "{value:?}");
    }
    let text =
        api.refused("POST", "/networks/create", &with(from_docker("x"), "/Options/encrypted", json!("maybe")), 400);
    assert!(text.contains("encrypted") && text.contains("\"maybe\""), "{text}");
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    let api = Api::manager();
    let ipam = |config: Value| with(from_docker("x"), "/IPAM/Config", config);
    let mut ipv6 = from_docker("x");
    ipv6["EnableIPv6"] = json!(true);
    for (request, expected) in [
        (with(from_docker("x"), "/Driver", json!("bridge")), "overlay"),
        (with(from_docker("x"), "/Driver", json!("")), "overlay"),
        (with(from_docker("x"), "/Ingress", json!(true)), "Ingress"),
        (with(from_docker("x"), "/Scope", json!("local")), "Scope"),
        (with(from_docker("x"), "/IPAM/Driver", json!("dhcp")), "IPAM.Driver"),
        (with(from_docker("x"), "/Options", json!({"mtu": "9"})), "unsupported option mtu"),
        (with(from_docker("x"), "/Name", json!("a b")), "a b"),
        (with(from_docker("x"), "/Name", json!("")), "name"),
        (ipv6, "EnableIPv6"),
        (ipam(json!([{"Subnet": "10.1.0.0/24"}, {"Subnet": "10.2.0.0/24"}])), "one subnet"),
        (
            ipam(json!([{"Subnet": "10.1.0.0/24", "IPRange": "10.2.0.0/25"}])),
            "no matching subnet for range 10.2.0.0/25",
        ),
        (ipam(json!([{"Subnet": "10.1.0.0/24", "IPRange": "10.1.0.0"}])), "invalid ip-range"),
        (ipam(json!([{"IPRange": "10.1.0.0/25"}])), "an ip-range or aux-address needs its subnet"),
        (ipam(json!([{"Subnet": "10.1.0.0/24", "AuxiliaryAddresses": {"a": "10.2.0.9"}}])), "aux-address 10.2.0.9"),
        (ipam(json!([{"Subnet": "10.1.0.0/24", "AuxiliaryAddresses": {"a": "b"}}])), "invalid aux-address \"b\""),
        (with(from_docker("x"), "/Options", json!({"com.docker.network.driver.mtu": "big"})), "a number of bytes"),
        (with(from_docker("x"), "/Options", json!({"com.docker.network.driver.mtu": "100"})), "576 to 65535"),
        (ipam(json!([{"Subnet": "10.1.0.7/24"}])), "it should be 10.1.0.0/24"),
        (ipam(json!([{"Subnet": "10.1.0.0/33"}])), "10.1.0.0/33"),
        (ipam(json!([{"Subnet": "10.1.0.0/31"}])), "10.1.0.0/31"),
        (ipam(json!([{"Subnet": "fd00::/64"}])), "IPv6"),
        (ipam(json!([{"Gateway": "10.1.0.1"}])), "--subnet"),
        (ipam(json!([{"Subnet": "10.1.0.0/24", "Gateway": "10.2.0.1"}])), "10.2.0.1"),
        (ipam(json!([{"Subnet": "10.1.0.0/24", "Gateway": "x"}])), "\"x\""),
    ] {
        let text = api.refused("POST", "/networks/create", &request, 400);
        assert!(text.contains(expected), "no {expected:?} in {text:?}");
    }
    let text = api.refused("POST", "/networks/create", &from_docker("host"), 403);
    assert_eq!(text, "operation is not permitted on predefined host network");
    assert!(api.fake.current().networks.is_empty(), "nothing was made");
}

#[test]
fn what_was_asked_of_a_network_is_shown() {
    let api = Api::manager();
    let config = json!([{"Subnet": "10.1.0.0/24", "Gateway": "10.1.0.254", "IPRange": "10.1.0.0/26",
                         "AuxiliaryAddresses": {"printer": "10.1.0.9"}}]);
    let mut request = with(from_docker("x"), "/IPAM/Config", config.clone());
    request = with(request, "/Attachable", json!(true));
    request = with(request, "/Internal", json!(true));
    request = with(request, "/Options", json!({"encrypted": "", "com.docker.network.driver.mtu": "1300"}));
    assert_eq!(api.call("POST", "/networks/create", &request).0, 201);
    let shown = api.get("/networks/x");
    assert_eq!((&shown["Attachable"], &shown["Internal"]), (&json!(true), &json!(true)));
    assert_eq!(shown["IPAM"]["Config"], config);
    let network = api.fake.current().networks.values().next().unwrap().spec.clone();
    assert_eq!((network.mtu_bytes, network.attachable), (Some(1300), true));
}

#[test]
fn namespaces_go_on_attachable_networks_only() {
    let api = Api::manager();
    api.create_network("net");
    let open = with(from_docker("open"), "/Attachable", json!(true));
    assert_eq!(api.call("POST", "/networks/create", &open).0, 201);
    let attach = |network: &str, address: &str| json!({"netns": "blue", "network": network, "address": address});
    assert_eq!(api.refused("POST", "/formic/attachments", &attach("net", ""), 403), REFUSAL);
    assert_eq!(api.refused("POST", "/formic/attachments", &attach("missing", ""), 404), "network missing not found");
    assert_eq!(api.refused("POST", "/formic/attachments", &attach("open", "x"), 400), "invalid address \"x\"");
    let (status, attached) = api.call("POST", "/formic/attachments", &attach("open", "10.0.2.77"));
    assert_eq!((status, &attached["address"]), (201, &json!("10.0.2.77/24")), "{attached}");
    let listed = &api.get("/containers/json?all=1")[0];
    assert_eq!((&listed["Names"], &listed["Image"]), (&json!(["/blue"]), &json!("netns:blue")));
    assert_eq!(api.get("/tasks"), json!([]), "Docker's tasks are those of services");
    let off = |network: &str| format!("/formic/attachments?netns=blue&network={network}");
    assert_eq!(api.refused("DELETE", &off("net"), &Value::Null, 403), REFUSAL);
    assert_eq!(api.call("DELETE", &off("open"), &Value::Null).0, 204);
    assert!(api.refused("DELETE", &off("open"), &Value::Null, 404).contains("blue is not on this network"));
}

#[test]
fn a_subnet_of_the_host_is_made_with_a_warning() {
    let api = Api::manager();
    let request = with(from_docker("x"), "/IPAM/Config", json!([{"Subnet": HOST_ROUTE}]));
    let (status, created) = api.call("POST", "/networks/create", &request);
    assert_eq!(status, 201);
    assert!(created["Warning"].as_str().unwrap().contains(HOST_ROUTE), "{created}");
}

#[test]
fn lists_honour_their_filters() {
    let api = Api::manager();
    let red = api.create_network("red");
    api.create_network("reddish");
    api.create_network("blue");
    api.create_service("web", "blue", 1);
    let names = |filters: Value| {
        let filters: String = filters.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut names: Vec<String> = api
            .get(&format!("/networks?filters={filters}"))
            .as_array()
            .unwrap()
            .iter()
            .map(|network| network["Name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(json!({})), ["blue", "red", "reddish"]);
    assert_eq!(names(json!({"name": {"red": true}})), ["red", "reddish"]);
    assert_eq!(names(json!({"id": [red]})), ["red"]);
    assert_eq!(names(json!({"driver": ["overlay"], "scope": ["swarm"], "dangling": ["false"]})), ["blue"]);
    assert_eq!(names(json!({"dangling": ["true"]})), ["red", "reddish"]);
    assert_eq!(names(json!({"driver": ["bridge"]})), [""; 0]);
    assert!(
        api.refused("GET", "/networks?filters=%7B%22x%22%3A%5B%5D%7D", &Value::Null, 400).contains("invalid filter")
    );
}

#[test]
fn a_network_shows_its_local_tasks_and_stays_while_it_is_used() {
    let api = Api::manager();
    let id = api.create_network("net");
    api.create_service("web", "net", 1);
    let containers = &api.get("/networks/net")["Containers"];
    let (_, container) = containers.as_object().unwrap().iter().next().unwrap();
    assert!(container["Name"].as_str().unwrap().starts_with("web.1."));
    assert_eq!(container["IPv4Address"], "10.0.1.2/24");
    assert_eq!(
        api.refused("DELETE", &format!("/networks/{id}"), &Value::Null, 400),
        "network net is in use by service web"
    );
    assert_eq!(api.call("DELETE", "/services/web", &Value::Null).0, 200);
    assert_eq!(api.call("DELETE", "/networks/net", &Value::Null).0, 204);
    assert_eq!(api.refused("GET", "/networks/net", &Value::Null, 404), "network net not found");
}

#[test]
fn an_ambiguous_prefix_is_told() {
    let api = Api::manager();
    for number in 0..60 {
        api.create_network(&format!("net-{number}"));
    }
    let state = api.fake.current();
    let firsts: Vec<char> = state.networks.keys().filter_map(|id| id.to_string().chars().next()).collect();
    let twice = firsts.iter().find(|first| firsts.iter().filter(|other| other == first).count() > 1).unwrap();
    let count = firsts.iter().filter(|other| *other == twice).count();
    let text = api.refused("GET", &format!("/networks/{twice}"), &Value::Null, 400);
    assert_eq!(text, format!("network {twice} is ambiguous ({count} matches found based on ID prefix)"));
}

/// The relevant part of what docker 28 sends for `run --network NAME nginx`.
fn run(network: &str) -> Value {
    json!({"Image":"nginx","Cmd":null,"Volumes":{},"HostConfig":{"NetworkMode":network,"ConsoleSize":[0,0],
           "MemorySwappiness":-1,"RestartPolicy":{"Name":"no"}},"NetworkingConfig":{"EndpointsConfig":{}}})
}

const REFUSAL: &str = "swarm-scoped network (net) is not compatible with `docker create` or `docker run`. This network can only be used by a docker service.";

#[test]
fn unmanaged_containers_are_refused_alike_everywhere() {
    let manager = Api::manager();
    let id = manager.create_network("net");
    let worker = Api::over(Fake::worker(&["net"]));
    for (api, names) in [(&manager, vec!["net", &id]), (&worker, vec!["net"])] {
        for name in names {
            assert_eq!(api.refused("POST", "/v1.50/containers/create", &run(name), 403), REFUSAL);
            assert_eq!(
                api.refused("POST", &format!("/networks/{name}/connect"), &json!({"Container": "x"}), 403),
                REFUSAL
            );
        }
        let endpoints = json!({"Image": "nginx", "NetworkingConfig": {"EndpointsConfig": {"net": {}}}});
        assert_eq!(api.refused("POST", "/containers/create", &endpoints, 403), REFUSAL);
        assert_eq!(api.refused("POST", "/containers/create", &run("nowhere"), 400), "network nowhere not found");
        assert!(api.refused("POST", "/containers/create", &run("bridge"), 400).contains("docker service create"));
        assert!(
            api.refused("POST", "/containers/create", &json!({"Image": "nginx"}), 400)
                .contains("docker service create")
        );
        assert_eq!(api.refused("POST", "/networks/nowhere/connect", &json!({}), 404), "network nowhere not found");
    }
}
