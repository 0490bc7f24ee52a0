//! A directory in, worlds out. Waits on the channel, never on the clock.

use super::*;
use crate::convert::Object;
use std::{fs, os::unix::fs::symlink, time::Duration};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};
use weft_core::model::{Kind, MtlsMode, ObjectKey, Route, RouteKind, Service};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
    )
}

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        write(&dir, name, text);
    }
    dir
}

fn write(dir: &TempDir, name: &str, text: &str) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn get(world: &World, name: &str) -> Option<Arc<Service>> {
    world.snapshot.services.get(&ObjectKey::new("default", name)).cloned()
}

/// Names and ports of the Services.
fn services(world: &World) -> Vec<(String, u16)> {
    world.snapshot.services.values().map(|s| (s.meta.key.name.to_string(), s.ports[0].port)).collect()
}

/// Problems, with file names instead of paths.
fn problems(world: &World, dir: &TempDir) -> Vec<String> {
    let prefix = format!("{}/", dir.path().display());
    world.problems.iter().map(|p| p.to_string().replace(&prefix, "")).collect()
}

#[test]
fn yaml_files_are_read_at_any_depth_and_others_are_not() {
    let a = service("a", 1);
    let dir = dir(&[
        ("a.yaml", &a),
        ("sub/deep/b.yml", &service("b", 2)),
        (
            "c.json",
            r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"ports": [{"port": 3}]}}"#,
        ),
        ("d.txt", "x"),
        (".e.yaml", "]"),
        ("f.yaml~", "]"),
        (".git/g.yaml", "]"),
        ("#h.yaml", "]"),
    ]);
    let world = FileProvider::new(dir.path()).load();
    assert_eq!(services(&world), [("a".into(), 1), ("b".into(), 2), ("c".into(), 3)]);
    assert_eq!(problems(&world, &dir), [""; 0]);
    assert_eq!(world.agent, AgentConfig::default());
}

#[test]
fn unchanged_objects_keep_their_arc_and_changed_ones_count() {
    let dir = dir(&[("a.yaml", &(service("a", 1) + &service("b", 1)))]);
    let mut provider = FileProvider::new(dir.path());
    let first = provider.load();
    write(&dir, "a.yaml", &(String::from("# a line above\n") + &service("a", 1) + &service("b", 2)));
    let second = provider.load();
    let of = |w: &World, n: &str| get(w, n).unwrap();
    assert!(Arc::ptr_eq(&of(&first, "a"), &of(&second, "a")));
    assert_eq!((of(&first, "b").meta.generation, of(&second, "b").meta.generation), (1, 2));
    // A label is no spec: another object, the same generation.
    write(
        &dir,
        "a.yaml",
        &(service("a", 1) + &service("b", 2).replace("name: b", "name: b, labels: {x: y}")),
    );
    let third = provider.load();
    assert_eq!((of(&third, "b").meta.generation, of(&third, "b").meta.labels.len()), (2, 1));
    assert_eq!(third, provider.load());
}

#[test]
fn the_last_good_version_stays() {
    let dir = dir(&[("a.yaml", &(service("a", 1) + &service("b", 1))), ("z.yaml", &service("z", 1))]);
    let mut provider = FileProvider::new(dir.path());
    provider.load();
    let kept = |n: &str, line| {
        format!("a.yaml:{line}: warning: Service default/{n}: the last good version stays in effect")
    };
    let and_how = "; correct the file, or delete it to remove the object";

    // One object that is refused, the other one good.
    write(&dir, "a.yaml", &(service("a", 0) + &service("b", 2)));
    let world = provider.load();
    assert_eq!(services(&world), [("a".into(), 1), ("b".into(), 2), ("z".into(), 1)]);
    assert_eq!(
        problems(&world, &dir),
        [
            "a.yaml:4: Service default/a: spec.ports[0].port: is required; it must be from 1 to 65535"
                .to_owned(),
            kept("a", 1),
        ]
        .into_iter()
        .rev()
        .collect::<Vec<_>>()
    );

    // Half of a file.
    write(&dir, "a.yaml", &(service("a", 3) + "apiVersion: v1\nkind: Service\nmetadata: {name: b"));
    let world = provider.load();
    assert_eq!(services(&world), [("a".into(), 3), ("b".into(), 2), ("z".into(), 1)]);
    assert!(problems(&world, &dir).contains(&(kept("b", 9) + and_how)), "{:#?}", problems(&world, &dir));

    // Truncated, not yet written.
    write(&dir, "a.yaml", "");
    let world = provider.load();
    assert_eq!(services(&world), [("a".into(), 3), ("b".into(), 2), ("z".into(), 1)]);

    // Not text at all.
    fs::write(dir.path().join("a.yaml"), b"a: 1\nb: \xff").unwrap();
    let world = provider.load();
    assert_eq!(services(&world).len(), 3);
    assert_eq!(problems(&world, &dir)[0], "a.yaml:2: not UTF-8 text; save it as UTF-8");

    // Good again; b is really gone.
    write(&dir, "a.yaml", &service("a", 4));
    let world = provider.load();
    assert_eq!(services(&world), [("a".into(), 4), ("z".into(), 1)]);
    assert_eq!(problems(&world, &dir), [""; 0]);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert_eq!(services(&provider.load()), [("z".into(), 1)]);
}

#[test]
fn one_object_may_be_defined_once() {
    let dir = dir(&[("a.yaml", &service("a", 1)), ("b.yaml", &(String::from("\n") + &service("a", 2)))]);
    let world = FileProvider::new(dir.path()).load();
    assert_eq!(services(&world), [("a".into(), 1)]);
    let said = format!(
        "b.yaml:2: Service default/a: is defined already in {}/a.yaml:1, which stays in effect; keep one of the two",
        dir.path().display()
    );
    assert_eq!(
        world.problems[0].to_string().replace(&format!("{}/b.yaml", dir.path().display()), "b.yaml"),
        said
    );
}

#[test]
fn a_good_definition_is_not_hidden_by_a_broken_one() {
    let dir = dir(&[("a.yaml", &service("a", 0)), ("b.yaml", &service("a", 2))]);
    let mut provider = FileProvider::new(dir.path());
    assert_eq!(services(&provider.load()), [("a".into(), 2)]);
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: shop}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP}]}
";

#[test]
fn settings_are_read() {
    let text = "apiVersion: weft.dev/v1alpha1
kind: AgentConfig
gatewayAddresses: {shop/gw: [127.0.0.2, \"::1\"]}
trustDomain: example.org
mtls: strict
tracing: {endpoint: \"http://127.0.0.1:4317\", samplingRatio: 0.5, attributes: {a: b}}
accessLog: {output: /tmp/log}
limits: {connectTimeout: 500ms, connections: 7}
";
    let dir = dir(&[("a.yaml", text), ("g.yaml", GATEWAY)]);
    let mut provider = FileProvider::new(dir.path());
    let world = provider.load();
    assert_eq!(problems(&world, &dir), [""; 0]);
    let agent = &world.agent;
    assert_eq!(agent.gateway_addresses[&ObjectKey::new("shop", "gw")].len(), 2);
    assert_eq!((&*agent.trust_domain, agent.mtls), ("example.org", MtlsMode::Strict));
    assert_eq!(agent.access_log, crate::config::AccessLog::File("/tmp/log".into()));
    assert_eq!((agent.limits.connections, agent.limits.handshakes), (7, 64));
    assert_eq!(agent.limits.connect_timeout, Duration::from_millis(500));

    write(&dir, "a.yaml", &text.replace("connections: 7", "idleTimeout: 1m"));
    let said = problems(&provider.load(), &dir);
    assert!(
        said.len() == 1 && said[0].contains("limits.idleTimeout"),
        "not served, so not taken silently: {said:?}"
    );

    write(&dir, "a.yaml", &text.replace("strict", "loose").replace("limits", "limts"));
    let world = provider.load();
    assert_eq!(world.agent.mtls, MtlsMode::Strict, "what is no mode is strict");
    assert_eq!(
        problems(&world, &dir),
        [
            "a.yaml:5: AgentConfig: mtls: \"loose\" is no mode and counts as strict; write permissive or strict",
            "a.yaml:8: warning: AgentConfig: limts: unknown field, it has no effect; did you mean \"limits\"?",
        ]
    );
}

const AGENT: &str = "apiVersion: weft.dev/v1alpha1
kind: AgentConfig
";

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn a_broken_setting_costs_only_itself() {
    let not_an_ip = "is no IP address; write a list such as [\"127.0.0.2\"]";
    for (line, said) in [
        ("mtls: 5", "mtls: expected text, found integer 5; put it in quotes".to_owned()),
        ("gatewayAddresses: {shop/gw: x}", format!("gatewayAddresses[shop/gw]: \"x\" {not_an_ip}")),
        ("gatewayAddresses: {shop/gw: [5]}", format!("gatewayAddresses[shop/gw][0]: 5 {not_an_ip}")),
        (
            "gatewayAddresses: 127.0.0.2",
            "gatewayAddresses: expected a mapping, found string \"127.0.0.2\"".to_owned(),
        ),
        (
            "limits: {connections: many}",
            "limits.connections: expected a whole number, found string \"many\"; remove the quotes"
                .to_owned(),
        ),
        (
            "tracing: {samplingRatio: 7}",
            "tracing.samplingRatio: 7 is out of range; it must be from 0 to 1".to_owned(),
        ),
        (
            "tracing: {attributes: {a.b/c: [d]}}",
            "tracing.attributes.a.b/c: expected text, found a list".to_owned(),
        ),
        ("strictUdp: deny", "strictUdp: \"deny\" is neither; write pass or drop".to_owned()),
        (
            "podCidrs: [\"10.244.0.0/16\", 10.0.0.0]",
            "podCidrs: \"10.0.0.0\" is no CIDR; write a list such as [\"10.244.0.0/16\"]".to_owned(),
        ),
        (
            "podCidrs: [\"::/0\"]",
            "podCidrs: ::/0 is every address, and nobody outside the cluster could be reached; write a list such as \
             [\"10.244.0.0/16\"]"
                .to_owned(),
        ),
        (
            "trustDomain: A B",
            "trustDomain: \"A B\" is no trust domain; use lower-case letters, digits, -, . and _ (SPIFFE)"
                .to_owned(),
        ),
    ] {
        let good = format!(
            "{AGENT}gatewayAddresses: {{shop/gw: 127.0.0.2}}\ntrustDomain: good.org\nmtls: strict\npodCidrs: [10.9.0.0/16]\n\
             limits: {{connections: 7}}\ntracing: {{samplingRatio: 0.5, attributes: {{a: b}}}}\n"
        );
        let dir = dir(&[("a.yaml", &good), ("g.yaml", GATEWAY)]);
        let mut provider = FileProvider::new(dir.path());
        let first = provider.load();
        assert_eq!(problems(&first, &dir), [""; 0], "one address is a list of one");
        assert_eq!(first.agent.gateway_addresses[&ObjectKey::new("shop", "gw")].len(), 1);

        let broken = format!("{AGENT}{line}\naccessLog: {{output: \"off\"}}\n");
        write(&dir, "a.yaml", &broken);
        let world = provider.load();
        assert_eq!(problems(&world, &dir), [format!("a.yaml:3: AgentConfig: {said}")]);
        assert_eq!(world.agent.access_log, crate::config::AccessLog::Off, "{line}: the others are in effect");
        let field = line.split_once(':').unwrap().0;
        let (was, is) = (format!("{:#?}", first.agent), format!("{:#?}", world.agent));
        let kept = match field {
            "mtls" => "mtls: Strict",
            "podCidrs" => "10.9.0.0/16",
            // A wrong security setting takes its strictest meaning.
            "strictUdp" => "drop_strict_udp: true",
            "gatewayAddresses" => "127.0.0.2",
            "limits" => "connections: 7",
            "trustDomain" => "good.org",
            _ if line.contains("samplingRatio") => "sampling_ratio: 0.5",
            _ => "\"a\": \"b\"",
        };
        let before = field == "strictUdp" || was.contains(kept);
        assert!(before && is.contains(kept), "{line}: the last good one stays: {is}");
        // Without an earlier one: the default; of what protects, the strictest meaning.
        let fresh = FileProvider::new(dir.path()).load().agent;
        let mtls = if field == "mtls" { MtlsMode::Strict } else { MtlsMode::Permissive };
        let default = AgentConfig {
            access_log: fresh.access_log.clone(),
            mtls,
            drop_strict_udp: field == "strictUdp",
            ..AgentConfig::default()
        };
        assert_eq!(fresh, default, "{line}");
    }
}

/// E3: `mtls: STRICT` in the mesh's settings was permissive; after a good `permissive` it still was.
#[test]
fn a_wrong_mesh_wide_mode_is_strict_from_the_start_and_after_a_good_one() {
    let check = |line: &str, expected: MtlsMode, says: &str| {
        let text = format!("{AGENT}{line}\n");
        let (read, said) = crate::config::read_settings(&text);
        assert_eq!(read.mtls, expected, "{line}");
        let said: Vec<_> = said.iter().map(ToString::to_string).collect();
        assert!(
            said.is_empty() == says.is_empty() && said.iter().any(|s| s.contains(says)) != says.is_empty(),
            "{said:?}"
        );
        let good = AgentConfig { mtls: MtlsMode::Permissive, ..AgentConfig::default() };
        assert_eq!(
            crate::config::settings("f", &text, Some(&good)).0.mtls,
            expected,
            "{line}, after permissive"
        );
    };
    check("mtls: strict", MtlsMode::Strict, "");
    check("mtls: permissive", MtlsMode::Permissive, "");
    check("trustDomain: a.b", MtlsMode::Permissive, "");
    for word in ["STRICT", "Strict", "[strict]", "true", "5", "permisive", "\"\""] {
        check(&format!("mtls: {word}"), MtlsMode::Strict, "mtls");
    }
    check("mtls: STRICT", MtlsMode::Strict, "write strict");
    check("mTLS: strict", MtlsMode::Strict, "counts as strict; write mtls");
    check("mtlss: permissive", MtlsMode::Strict, "write mtls");
    check("limts: {}", MtlsMode::Permissive, "did you mean \"limits\"?");
    // What cannot be read at all says nothing: the last good settings stay, and where there are none it may have said strict.
    let (read, said) = crate::config::read_settings(&format!("{AGENT}mtls: {{\n"));
    assert_eq!(read.mtls, MtlsMode::Strict);
    assert!(said[0].to_string().contains("until it can be read, mtls counts as strict"), "{said:?}");
}

#[test]
fn addresses_of_a_gateway_that_is_not_there_are_said() {
    let text =
        format!("{AGENT}gatewayAddresses:\n  shop/gw: [127.0.0.2]\n  shop/wg: [127.0.0.3]\n  a/b: [::1]\n");
    let dir = dir(&[("a.yaml", &text), ("g.yaml", GATEWAY)]);
    assert_eq!(
        problems(&FileProvider::new(dir.path()).load(), &dir),
        [
            "a.yaml:5: warning: AgentConfig: gatewayAddresses[shop/wg]: no file defines Gateway shop/wg: its addresses \
             have no effect; did you mean \"shop/gw\"?",
            "a.yaml:6: warning: AgentConfig: gatewayAddresses[a/b]: no file defines Gateway a/b: its addresses have no \
             effect; define it, or remove the entry",
        ]
    );
}

#[test]
fn a_directory_with_nothing_in_it_is_said() {
    let said = |dir: &TempDir, files| {
        let dir = dir.path().display();
        format!(
            "warning: no Kubernetes objects found in {dir} (files read: {files}; only .yaml, .yml and .json are read)"
        )
    };
    let text = |dir: &TempDir| {
        FileProvider::new(dir.path()).load().problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (none, other, comment) =
        (dir(&[]), dir(&[("a.txt", &service("a", 1))]), dir(&[("a.yaml", "# none\n---\n")]));
    for (dir, files) in [(&none, 0), (&other, 0), (&comment, 1)] {
        assert_eq!(text(dir), [said(dir, files)]);
    }
    // Nothing good, but something to say of it.
    let broken = dir(&[("a.yaml", "a: [")]);
    assert!(!text(&broken).iter().any(|p| p.contains("no Kubernetes objects")), "{:?}", text(&broken));
}

#[test]
fn problems_move_with_their_lines() {
    let bad = service("b", 1).replace("spec:", "spce:");
    let dir = dir(&[("a.yaml", &(service("a", 1) + &bad))]);
    let mut provider = FileProvider::new(dir.path());
    let lines = |w: &World| w.problems.iter().map(|p| p.origin.as_ref().unwrap().line).collect::<Vec<_>>();
    let first = provider.load();
    // The first document gets two lines more; the second is not read again.
    write(&dir, "a.yaml", &(String::from("# one\n# two\n") + &service("a", 1) + &bad));
    let second = provider.load();
    assert!(!lines(&first).is_empty());
    assert_eq!(lines(&second), lines(&first).iter().map(|l| l + 2).collect::<Vec<_>>());
    assert_eq!(provider.load(), second);
}

#[test]
fn a_file_that_is_no_text_is_said_at_every_load() {
    let dir = dir(&[("a.yaml", &service("a", 1))]);
    let mut provider = FileProvider::new(dir.path());
    provider.load();
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    fs::write(dir.path().join("a.yaml"), [0xff]).unwrap();
    for _ in 0..2 {
        let world = provider.load();
        assert_eq!(services(&world), [("a".into(), 1)]);
        assert_eq!(world.problems.len(), 2, "{:?}", problems(&world, &dir));
    }
}

#[test]
fn gateway_configs_are_known_by_name() {
    let text = "apiVersion: weft.dev/v1alpha1\nkind: WeftGatewayConfig\nmetadata: {name: edge, namespace: shop}\nspec: {addressMode: HostPort}\n";
    let dir = dir(&[("a.yaml", text)]);
    let mut provider = FileProvider::new(dir.path());
    let key = ObjectKey::new("shop", "edge");
    let first = provider.load();
    assert_eq!(problems(&first, &dir), [""; 0]);
    write(&dir, "a.yaml", &format!("# moved\n{text}"));
    let second = provider.load();
    assert!(Arc::ptr_eq(&first.snapshot.gateway_configs[&key], &second.snapshot.gateway_configs[&key]));
    write(&dir, "a.yaml", "a: [");
    assert!(provider.load().snapshot.gateway_configs.contains_key(&key), "the last good one stays");
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert!(provider.load().snapshot.gateway_configs.is_empty());
}

#[test]
fn a_missing_directory_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none");
    let world = FileProvider::new(&path).load();
    let path = path.display();
    assert_eq!(
        world.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [format!("{path}: No such file or directory (os error 2); name a directory that can be read")]
    );
    // Who prints an error prints its sources too: the reason is there once.
    let error = FileProvider::new(dir.path().join("none")).watch().unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{path} is no directory that can be read: name another, or create it")
    );
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "No such file or directory (os error 2)");
}

/// The first world that satisfies `want`.
async fn until(worlds: &mut watch::Receiver<Arc<World>>, want: impl Fn(&World) -> bool) -> Arc<World> {
    timeout(Duration::from_secs(20), worlds.wait_for(|w| want(w)))
        .await
        .expect("in time")
        .expect("followed")
        .clone()
}

#[tokio::test]
async fn edits_are_followed() {
    let dir = dir(&[("a.yaml", &service("a", 1))]);
    let mut worlds = FileProvider::new(dir.path()).watch().unwrap();
    assert_eq!(services(&worlds.borrow_and_update()), [("a".into(), 1)]);
    // Written in place, in a new sub-directory, then renamed over as editors do, then removed.
    write(&dir, "a.yaml", &service("a", 2));
    until(&mut worlds, |w| services(w) == [("a".into(), 2)]).await;
    write(&dir, "sub/b.yaml", &service("b", 1));
    until(&mut worlds, |w| services(w).len() == 2).await;
    write(&dir, ".a.yaml.swp", &service("a", 3));
    fs::rename(dir.path().join(".a.yaml.swp"), dir.path().join("a.yaml")).unwrap();
    until(&mut worlds, |w| services(w)[0].1 == 3).await;
    fs::remove_dir_all(dir.path().join("sub")).unwrap();
    let world = until(&mut worlds, |w| services(w).len() == 1).await;
    assert_eq!(get(&world, "a").unwrap().meta.generation, 3);
}

#[tokio::test]
async fn a_config_map_volume_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let (dir, at) = (root.path().join("v"), |p: &str| root.path().join("v").join(p));
    for (version, port) in [("..1", 1), ("..2", 2)] {
        fs::create_dir_all(at(version)).unwrap();
        fs::write(at(version).join("a.yaml"), service("a", port)).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let mut worlds = FileProvider::new(&dir).watch().unwrap();
    assert_eq!(services(&worlds.borrow_and_update()), [("a".into(), 1)]);
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    until(&mut worlds, |w| services(w) == [("a".into(), 2)]).await;
}

#[tokio::test]
async fn a_replaced_directory_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("conf");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", 1)).unwrap();
    let mut worlds = FileProvider::new(&dir).watch().unwrap();
    fs::rename(&dir, root.path().join("away")).unwrap();
    let world = until(&mut worlds, |w| !w.problems.is_empty()).await;
    assert_eq!(services(&world), [("a".into(), 1)], "the last good state stays");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", 2)).unwrap();
    until(&mut worlds, |w| services(w) == [("a".into(), 2)] && w.problems.is_empty()).await;
    // And the new directory is under watch as the old one was.
    fs::write(dir.join("a.yaml"), service("a", 3)).unwrap();
    until(&mut worlds, |w| services(w) == [("a".into(), 3)]).await;
}

#[tokio::test]
async fn a_change_that_changes_nothing_says_nothing() {
    let dir = dir(&[("a.yaml", &service("a", 1))]);
    let mut worlds = FileProvider::new(dir.path()).watch().unwrap();
    worlds.borrow_and_update();
    write(&dir, "a.yaml", &(service("a", 1) + "# a word\n"));
    write(&dir, "b.yaml", &service("b", 1));
    until(&mut worlds, |w| services(w).len() == 2).await;
    assert!(!worlds.has_changed().unwrap());
}

#[test]
fn ten_thousand_routes_reload_without_new_arcs() {
    let route = |i: usize, port: u16| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{i}}}\nspec: {{parentRefs: [{{name: g}}], rules: [{{backendRefs: [{{name: a, port: {port}}}]}}]}}\n---\n"
        )
    };
    let all =
        |edited: u16| (0..10_000).map(|i| route(i, if i == 7 { edited } else { 80 })).collect::<String>();
    let dir = dir(&[("a.yaml", &all(80))]);
    let mut provider = FileProvider::new(dir.path());
    let first = provider.load();
    write(&dir, "a.yaml", &all(81));
    let second = provider.load();
    assert_eq!(second.problems, []);
    let fresh: Vec<&Arc<Route>> = second
        .snapshot
        .routes
        .iter()
        .filter(|(id, route)| !Arc::ptr_eq(route, &first.snapshot.routes[*id]))
        .map(|(_, route)| route)
        .collect();
    assert_eq!(fresh.len(), 1);
    assert_eq!((fresh[0].kind, &*fresh[0].meta.key.name), (RouteKind::Http, "r7"));
    assert_eq!(Object::Route(fresh[0].clone()).id().kind, Kind::HttpRoute);
}

/// For the zone of the node that `weft run` serves.
#[test]
fn nodes_may_be_described() {
    let node = |zone: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
        )
    };
    let dir = dir(&[("n.yaml", &node("a"))]);
    let mut provider = FileProvider::new(dir.path());
    let of = |world: &World| world.snapshot.nodes.values().cloned().collect::<Vec<_>>();
    let world = provider.load();
    let first = of(&world);
    assert_eq!(problems(&world, &dir), [""; 0]);
    assert_eq!(first[0].zone().map(|z| &**z), Some("a"));
    write(&dir, "n.yaml", &format!("\n{}", node("a")));
    assert!(Arc::ptr_eq(&of(&provider.load())[0], &first[0]), "only its place has changed");
    write(&dir, "n.yaml", &node("longer"));
    assert_eq!(of(&provider.load())[0].zone().map(|z| &**z), Some("longer"));
    write(&dir, "n.yaml", "apiVersion: v1\nkind: Node\nmetadata: {}\n");
    assert_eq!(problems(&provider.load(), &dir), ["n.yaml:3: Node: metadata.name: is required"]);
}
