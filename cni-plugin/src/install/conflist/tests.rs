use super::*;
use proptest::prelude::*;
use serde_json::json;

fn entry() -> Value {
    json!({ "type": PLUGIN, "runDir": "/run/weft" })
}

const ENTRY: &str = r#"{"runDir":"/run/weft","type":"weft-cni"}"#;

#[test]
fn an_entry_is_laid_out_as_its_neighbours() {
    let compact = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge","mtu":1e3}]}"#;
    let spread = "{\n\t\"plugins\" : [\n\t\t{\"type\":\"a\"},\n\t\t{ \"type\": \"b\" }\n\t],\n\t\"name\":\"n\",\"cniVersion\":\"0.3.1\"}\n";
    let twice =
        r#"{"plugins":[{"type":"old"}],"name":"n","cniVersion":"1.1.0","pl\u0075gins":[{"type":"new"}]}"#;
    let cases = [
        (compact, compact.replace("}]}", &format!("}}, {ENTRY}]}}"))),
        (
            spread,
            spread.replace(
                "\"b\" }",
                "\"b\" },\n\t\t{\n\t\t  \"runDir\": \"/run/weft\",\n\t\t  \"type\": \"weft-cni\"\n\t\t}",
            ),
        ),
        // The later key counts.
        (twice, twice.replace("\"new\"}", &format!("\"new\"}}, {ENTRY}"))),
    ];
    for (text, want) in cases {
        let got = insert(text, &entry(), true).unwrap();
        assert_eq!(got, want);
        assert_eq!(remove(&got).as_deref(), Some(text));
        assert_eq!(remove(text), None);
    }
}

#[test]
fn entries_of_ours_are_made_one() {
    let list = |plugins: &[&str]| {
        format!(r#"{{"name":"n","cniVersion":"1.0.0","plugins":[{}]}}"#, plugins.join(", "))
    };
    let (main, other, old) =
        (r#"{"type":"bridge"}"#, r#"{"type":"portmap"}"#, r#"{"type":"weft-cni","x":1}"#);
    // (plugins before, plugins after, plugins after when details do not matter)
    let cases: [(&[&str], &[&str], &[&str]); 5] = [
        (&[main, other], &[main, other, ENTRY], &[main, other, ENTRY]),
        (&[main, ENTRY, other], &[main, ENTRY, other], &[main, ENTRY, other]),
        (&[main, old, other], &[main, ENTRY, other], &[main, old, other]),
        (&[main, old, old, other], &[main, other, ENTRY], &[main, other, ENTRY]),
        // Before the plugin that makes the network it would see no pod.
        (&[old, main], &[main, ENTRY], &[main, ENTRY]),
    ];
    for (before, exact, loose) in cases {
        assert_eq!(insert(&list(before), &entry(), true).unwrap(), list(exact), "{before:?}");
        assert_eq!(insert(&list(before), &entry(), false).unwrap(), list(loose), "{before:?}");
    }
}

#[test]
fn what_cannot_take_us_says_why() {
    let with = |field: &str| format!(r#"{{"name":"n",{field},"plugins":[{{"type":"bridge"}}]}}"#);
    let version = |v: &str| Unusable::Version(v.into());
    let cases = [
        (with(r#""cniVersion":"0.2.0""#), Err(version("0.2.0"))),
        (with(r#""cniVersion":"1.2.0""#), Err(version("1.2.0"))),
        (with(r#""x":1"#), Err(version(""))),
        (with(r#""cniVersion":"0.4.0""#), Ok(())),
        (with(r#""cniVersion":"0.4.0","cniVersions":["1.0.0","1.1.0","2.0.0"]"#), Ok(())),
        (with(r#""cniVersions":["0.3.1","1.0.5"]"#), Err(version("1.0.5"))),
        (with(r#""cniVersion":"0.2.0","cniVersions":["1.0.0"]"#), Err(version("0.2.0"))),
        (r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#.into(), Err(Unusable::NoName)),
        (r#"{"cniVersion":"1.0.0","name":"n"}"#.into(), Err(Unusable::NoPlugins)),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#.into(), Err(Unusable::NoPlugins)),
        (r#"{"cniVersion":"1.0.0","name":"n","plugins":{"a":1}}"#.into(), Err(Unusable::NoPlugins)),
        // Only ours is no network.
        (format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{ENTRY}]}}"#), Err(Unusable::NoPlugins)),
    ];
    for (text, want) in cases {
        assert_eq!(insert(&text, &entry(), true).map(drop), want, "{text}");
    }
    for text in ["", "{", "[]", "7", "\u{feff}{}"] {
        assert!(matches!(insert(text, &entry(), true), Err(Unusable::NotJson(_))), "{text}");
    }
}

#[test]
fn a_single_plugin_becomes_a_list() {
    let single = "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"net\", \"type\": \"bridge\", \"big\": 18446744073709551616\n}\n";
    let list = derive_from_single(single, "10-net.conf", &entry()).unwrap();
    let value: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&value["name"], &value["cniVersion"]), (&json!("net"), &json!("0.4.0")));
    assert_eq!(value["plugins"][0], serde_json::from_str::<Value>(single).unwrap());
    assert_eq!(value["plugins"][1], entry());
    assert!(list.contains("18446744073709551616"));
    let network = network(&list).unwrap();
    assert_eq!((network.derived_from.as_deref(), network.ours), (Some("10-net.conf"), 1));
    let untyped = r#"{"cniVersion":"1.0.0","name":"n"}"#;
    assert_eq!(derive_from_single(untyped, "x", &entry()), Err(Unusable::NoPlugins));

    let linked =
        derive_from_list(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}"#, "l", &entry());
    let value: Value = serde_json::from_str(&linked.unwrap()).unwrap();
    assert_eq!((&value[DERIVED_FROM], &value["plugins"][1]), (&json!("l"), &entry()));
}

/// JSON text with any white space anywhere.
fn json_text() -> impl Strategy<Value = String> {
    let space = "[ \t\n]{0,3}";
    let string = r#""([a-zA-Z{}\[\],: ]|\\"|\\\\|\\n|\\u00e9|é){0,6}""#;
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("-12.5e+30".to_owned()),
        Just("123456789012345678901234567890".to_owned()),
        string,
    ];
    leaf.prop_recursive(3, 12, 4, move |inner| {
        let element = (space, inner, space).prop_map(|(a, v, b)| format!("{a}{v}{b}"));
        let member =
            (space, string, space, element.clone()).prop_map(|(a, k, b, v)| format!("{a}{k}{b}:{v}"));
        prop_oneof![
            proptest::collection::vec(element, 0..4).prop_map(|v| format!("[{}]", v.join(","))),
            proptest::collection::vec(member, 0..4).prop_map(|v| format!("{{{}}}", v.join(","))),
        ]
    })
}

/// A usable configuration with anything around and inside it.
fn conflist() -> impl Strategy<Value = String> {
    let space = || "[ \t\n]{0,3}";
    let plugin = (space(), json_text(), space())
        .prop_map(|(a, value, b)| format!("{a}{{\"x\":{value},{a}\"type\":\"other\"}}{b}"));
    let plugins = proptest::collection::vec(plugin, 1..4).prop_map(|v| v.join(","));
    (space(), plugins, json_text(), space(), any::<bool>()).prop_map(|(a, plugins, more, b, last)| {
        let plugins = format!("\"plugins\"{a}:{b}[{plugins}]");
        let rest = format!("\"cniVersion\":\"1.0.0\",{b}\"more\":{more},\"name\":\"n\"");
        let (first, second) = if last { (rest, plugins) } else { (plugins, rest) };
        format!("{a}{{{first}{b},{a}{second}{b}}}{b}")
    })
}

proptest! {
    #[test]
    fn inserting_and_removing_is_identity(text in conflist()) {
        let with = insert(&text, &entry(), true).unwrap();
        prop_assert_eq!(insert(&with, &entry(), true).unwrap(), with.clone(), "idempotent");
        let (before, mut after): (Value, Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::from_str(&with).unwrap());
        prop_assert_eq!(after["plugins"].as_array_mut().unwrap().pop(), Some(entry()));
        prop_assert_eq!(before, after, "nothing else changed");
        prop_assert_eq!(remove(&with), Some(text));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,80}", json in json_text()) {
        for text in [text, json] {
            let _ = (network(&text), insert(&text, &entry(), true), remove(&text));
            let _ = derive_from_single(&text, "x", &entry());
        }
    }
}
