//! Requests, filters, names, the allow-list: what needs no state.

use super::super::allow::{self, Shape};
use super::super::filters::Filters;
use super::super::host::routes_in;
use super::super::names::{invent, normalise_image, parse_switch};
use super::super::request::Request;
use super::super::{names, schema};
use hyper::{Method, Uri, body::Bytes};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn parse(path: &str) -> Result<Request, String> {
    let uri: Uri = path.parse().unwrap();
    Request::new(Method::GET, &uri, Bytes::new()).map_err(|error| error.message)
}

#[test]
fn versions_are_1_40_to_1_50_or_none() {
    for (path, expected) in [
        ("/v1.40/networks/a%2Fb", vec!["networks", "a/b"]),
        ("/v1.50/networks", vec!["networks"]),
        ("/networks", vec!["networks"]),
        ("/v1x/networks", vec!["v1x", "networks"]),
        ("/", vec![""]),
    ] {
        assert_eq!(parse(path).unwrap().path, expected, "{path}");
    }
    assert_eq!(
        parse("/v1.39/info").unwrap_err(),
        "client version 1.39 is too old. Minimum supported API version is 1.40, please upgrade your client to a newer version"
    );
    assert_eq!(
        parse("/v1.51/info").unwrap_err(),
        "client version 1.51 is too new. Maximum supported API version is 1.50"
    );
    assert!(parse("/v2.0/info").unwrap_err().contains("too new"));
    for path in ["/a%2", "/a%zz", "/a%ff", "/a?x=%f"] {
        assert!(parse(path).unwrap_err().contains("percent-encoded"), "{path}");
    }
}

#[test]
fn queries_are_read_as_docker_reads_them() {
    let request = parse("/x?force=1&a=b+c%3D&off=false&empty=&version=12&version=13").unwrap();
    assert!(request.flag("force") && !request.flag("off") && !request.flag("empty") && !request.flag("absent"));
    assert_eq!(request.query("a"), Some("b c="));
    assert_eq!(request.version(), Ok(12));
    assert!(parse("/x?version=x").unwrap().version().is_err());
}

const SHAPE: Shape = Shape::Object(&[
    ("Known", Shape::Any),
    ("List", Shape::List(&Shape::Object(&[("Target", Shape::Any)]))),
    ("Word", Shape::Words(&["vip"], "names come later")),
    ("Deep", Shape::Object(&[("Deeper", Shape::Object(&[("Known", Shape::Any)]))])),
]);

#[test]
fn what_is_not_implemented_is_refused_by_its_path() {
    let refused = |value: Value| allow::check(&value, &SHAPE).map_err(|error| error.to_string()).unwrap_err();
    for (value, path) in [
        (json!({"Unknown": 1}), "field Unknown:"),
        (json!({"Deep": {"Mounts": [{"Type": "bind"}]}}), "field Deep.Mounts (--mount):"),
        (json!({"Deep": {"Deeper": {"Other": {"X": {"Y": "z"}}}}}), "field Deep.Deeper.Other.X.Y:"),
        (json!({"List": [{"Target": "a"}, {"Target": "b", "Alias": ["x"]}]}), "field List[1].Alias:"),
        (json!({"Word": "dnsrr"}), "value \"dnsrr\" of Word: it is not supported, names come later"),
        (json!({"Word": 7}), "value 7 of Word:"),
        (json!({"known": true}), "field known:"),
    ] {
        let text = refused(value);
        assert!(text.contains(path) && text.contains("not supported"), "{text}");
    }
}

#[test]
fn what_is_at_its_default_passes() {
    for value in [
        json!({"Unknown": null, "U2": false, "U3": 0, "U4": "", "U5": [], "U6": {}, "U7": {"A": {"B": [], "C": 0.0}}}),
        json!({"Known": {"any": ["thing"]}, "Word": "vip", "List": [], "Deep": {"Deeper": {"Known": 1}}}),
        json!({"Word": ""}),
    ] {
        assert_eq!(allow::check(&value, &SHAPE), Ok(()));
    }
}

#[test]
fn a_refused_value_is_shown_cut() {
    let text = allow::check(&json!({"Word": "ä".repeat(500)}), &SHAPE).unwrap_err().to_string();
    assert!(text.len() < 200 && text.contains("..."), "{text}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[A-C]|Mounts", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever passes says nothing beyond the shape: without the known fields nothing but defaults is left.
    #[test]
    fn nothing_that_says_something_passes_unknown(value in any_json()) {
        const A_ONLY: Shape = Shape::Object(&[("A", Shape::Any)]);
        if let Value::Object(mut members) = value.clone() {
            let passes = allow::check(&value, &A_ONLY).is_ok();
            members.remove("A");
            prop_assert_eq!(passes, allow::is_default(&Value::Object(members)));
        }
    }

    #[test]
    fn stripping_nulls_leaves_no_null_member(value in any_json()) {
        let mut value = value;
        allow::strip_nulls(&mut value);
        fn clean(value: &Value) -> bool {
            match value {
                Value::Object(members) => members.values().all(|member| !member.is_null() && clean(member)),
                Value::Array(values) => values.iter().all(clean),
                _ => true,
            }
        }
        prop_assert!(clean(&value));
    }

    #[test]
    fn no_image_name_leads_out_of_a_directory(name in "[a-z./:@A-Z0-9_-]{0,20}") {
        if let Ok(image) = normalise_image(&name) {
            prop_assert!(image.split('/').all(|part| !part.starts_with('.') && !part.is_empty()), "{}", image);
            prop_assert_eq!(normalise_image(&image).unwrap(), image);
        }
    }
}

#[test]
fn images_are_spelled_with_their_tag() {
    for (name, expected) in [
        ("my-image", "my-image:latest"),
        ("host", "host:latest"),
        ("docker.io/library/nginx", "nginx:latest"),
        ("nginx:1.25", "nginx:1.25"),
        ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
        ("registry.example/a_b/c.d:v1_2", "registry.example/a_b/c.d:v1_2"),
    ] {
        assert_eq!(normalise_image(name).unwrap(), expected);
    }
    for name in [
        "",
        "My-Image",
        "a:",
        "a b",
        "../a",
        "a/../b",
        "/a",
        "a/",
        "a:b:c",
        "-a",
        "a@sha256:00",
        "a:b/c d",
        &"a".repeat(300),
    ] {
        assert!(normalise_image(name).is_err(), "{name}");
    }
}

#[test]
fn an_invented_name_is_free() {
    let first = invent([3, 4], |_| false);
    assert_eq!(invent([3, 4], |name| name == first), format!("{first}2"));
    for random in 0..=u8::MAX {
        let name = invent([random, random.wrapping_mul(7)], |_| false);
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    }
}

#[test]
fn switches_are_booleans() {
    for (value, expected) in [
        ("", Some(true)),
        ("true", Some(true)),
        ("1", Some(true)),
        ("false", Some(false)),
        ("0", Some(false)),
        ("maybe", None),
        ("TrUe", None),
    ] {
        assert_eq!(parse_switch(value), expected, "{value}");
    }
}

#[test]
fn filters_come_as_maps_or_lists() {
    let known = ["name", "label", "dangling"];
    for text in [r#"{"name":{"a":true,"b":true,"c":false}}"#, r#"{"name":["a","b"]}"#] {
        let filters = Filters::parse(Some(text), &known).unwrap();
        assert_eq!(filters.values("name"), ["a", "b"], "{text}");
        assert!(filters.any("name", |name| name == "b") && !filters.any("name", |name| name == "c"));
        assert!(filters.any("label", |_| false), "a filter that was not given lets all through");
    }
    for text in ["[]", "x", r#"{"name":"a"}"#, r#"{"name":[1]}"#] {
        assert!(Filters::parse(Some(text), &known).unwrap_err().message.contains("invalid filters"), "{text}");
    }
    assert_eq!(Filters::parse(Some(r#"{"colour":["a"]}"#), &known).unwrap_err().message, "invalid filter 'colour'");
    assert_eq!(Filters::parse(None, &known).unwrap(), Filters::default());
}

#[test]
fn label_filters_must_all_fit() {
    let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())]);
    let fits = |text: &str| Filters::parse(Some(text), &["label"]).unwrap().labels("label", &labels);
    assert!(fits(r#"{"label":["a=1","b"]}"#) && fits(r#"{"label":["a"]}"#));
    assert!(!fits(r#"{"label":["a=2"]}"#) && !fits(r#"{"label":["a","c"]}"#));
    let flag = |text: &str| Filters::parse(Some(text), &["dangling"]).unwrap().flag("dangling");
    assert_eq!(flag(r#"{"dangling":["true"]}"#), Ok(Some(true)));
    assert!(flag(r#"{"dangling":["perhaps"]}"#).is_err());
}

#[test]
fn routes_are_read_from_proc() {
    let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nbroken line\n";
    let expected: ipnet::Ipv4Net = "192.168.0.0/24".parse().unwrap();
    if cfg!(target_endian = "little") {
        assert_eq!(routes_in(text), [expected]);
    }
    assert_eq!(routes_in(""), []);
}

#[test]
fn every_schema_lets_an_empty_request_through() {
    for shape in [
        schema::NETWORK_CREATE,
        schema::SERVICE,
        schema::SWARM_INIT,
        schema::SWARM_JOIN,
        schema::NODE,
        schema::EXEC_CREATE,
        schema::EXEC_START,
        schema::IMAGE_IMPORT,
        schema::ESP_KEYS,
    ] {
        assert_eq!(allow::check(&json!({}), &shape), Ok(()));
        assert!(allow::check(&json!({"Surprise": 1}), &shape).is_err());
    }
    assert!(names::RESERVED_NETWORKS.contains(&"host"));
}
