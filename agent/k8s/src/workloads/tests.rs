//! Slices and their publisher.

use super::{
    Captured, SLICE_CAPACITY, SliceChange, SliceOptions, SlicePublisher, Slices, plan_slices, read_slice,
    slice_body,
};
use crate::{convert, testing::FakeApi, yaml};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use weft_core::model::{Capture, ObjectKey, Pod, Snapshot, Str, TunnelPort};

fn add(world: &mut Snapshot, text: &str) {
    let (documents, errors) = yaml::read(text);
    assert_eq!(errors, []);
    for document in documents {
        convert::convert(document.value, &convert::Source::default())
            .object
            .expect("it converts")
            .insert(world);
    }
}

fn namespace(world: &mut Snapshot, name: &str, labels: &str) {
    add(
        world,
        &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"),
    );
}

fn pod(world: &mut Snapshot, (namespace, name): (&str, &str), meta: &str, status: &str) {
    let uid = if meta.contains("uid:") { String::new() } else { format!("uid: uid-{name}, ") };
    add(
        world,
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, {uid}{meta}}}\n\
             spec: {{nodeName: n1, serviceAccountName: sa, containers: []}}\nstatus: {{podIP: 10.1.0.1, {status}}}\n"
        ),
    );
}

fn capture(uid: &str, tunnel: TunnelPort) -> Capture {
    Capture { uid: uid.into(), tunnel, addresses: Vec::new() }
}

/// What the slices are after the changes.
fn done(slices: &mut Slices, changes: &[SliceChange]) {
    for change in changes {
        let body = slice_body(change, "");
        let own = slices.entry(change.namespace.clone()).or_default();
        if change.workloads.is_empty() {
            own.remove(&change.number);
            continue;
        }
        let mut body = body;
        body["metadata"]["uid"] = "u".into();
        let (namespace, number, slice) = read_slice(&body).expect("ours");
        assert_eq!((&namespace, number), (&change.namespace, change.number));
        own.insert(number, slice);
    }
}

#[test]
fn entries_say_what_agents_need() {
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "weft.dev/mesh: enabled");
    namespace(&mut world, "plain", "weft.dev/mtls: strict");
    pod(&mut world, ("shop", "a"), "labels: {app: cart}", "");
    pod(&mut world, ("shop", "b"), "labels: {weft.dev/mesh: disabled, weft.dev/mtls: permissive}", "");
    pod(&mut world, ("plain", "c"), "", "podIPs: [{ip: 10.1.0.2}, {ip: \"fd00::2\"}]");
    for (name, spec, status) in [
        ("host", "hostNetwork: true", ""),
        ("finished", "", "phase: Succeeded"),
        ("failed", "", "phase: Failed"),
        ("pending", "", "podIP: \"\""),
        ("unscheduled", "nodeName: \"\"", ""),
    ] {
        let (spec, status) = (spec.to_owned(), status.to_owned());
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{}}}\nstatus: {{{}}}\n",
            if spec.contains("nodeName") { spec } else { format!("nodeName: n1, {spec}") },
            if status.contains("podIP") { status } else { format!("podIP: 10.1.0.9, {status}") }
        );
        add(&mut world, &text);
    }
    let captured = Captured::from([(
        "n1".into(),
        Arc::new(BTreeMap::from([(
            ObjectKey::new("shop", "a"),
            capture("uid-a", TunnelPort::application([9100])),
        )])),
    )]);
    let changes = plan_slices(&world, &captured, &Slices::new());
    let lines: Vec<String> = changes
        .iter()
        .flat_map(|c| c.workloads.values().map(move |w| (c, w)))
        .map(|(c, w)| {
            let ips: Vec<String> = w.ips.iter().map(ToString::to_string).collect();
            let mtls = w.mtls.as_deref().unwrap_or("-");
            format!(
                "{}/{} {} {} {} {} {} {mtls} {}",
                c.namespace,
                c.name(),
                w.name,
                ips.join(","),
                w.service_account,
                w.enrolled,
                w.captured,
                w.app
            )
        })
        .collect();
    assert_eq!(
        lines,
        [
            "plain/weft-0 c 10.1.0.2,fd00::2 sa false false strict c",
            "shop/weft-0 a 10.1.0.1 sa true true - cart",
            "shop/weft-0 b 10.1.0.1 sa false false permissive b",
            "shop/weft-0 host 10.1.0.9 default false false - host",
        ]
    );
    // Until a node has reported, what was published of its pods stays; not for another pod of the name.
    let mut slices = Slices::new();
    done(&mut slices, &changes);
    assert_eq!(plan_slices(&world, &captured, &slices), []);
    assert_eq!(plan_slices(&world, &Captured::new(), &slices), []);
    pod(&mut world, ("shop", "a"), "labels: {app: cart}, uid: another", "");
    let changes = plan_slices(&world, &Captured::new(), &slices);
    assert_eq!(changes.len(), 1);
    assert!(!changes[0].workloads["a"].captured);
    assert_eq!(plan_slices(&world, &Captured::from([("n1".into(), Arc::default())]), &slices).len(), 1);
    // A namespace that is gone took its slices along.
    world.pods.clear();
    assert!(plan_slices(&world, &captured, &slices).iter().all(|c| c.workloads.is_empty()));
    world.namespaces.clear();
    assert_eq!(plan_slices(&world, &captured, &slices), []);
}

/// From upgrade to rollback: an agent says where tunnels may come, its successor of the version before does not.
#[test]
fn slices_say_where_tunnels_come_while_the_agent_does() {
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "weft.dev/mesh: enabled");
    pod(&mut world, ("shop", "a"), "", "");
    let mut slices = Slices::new();
    let mut check = |said: Option<TunnelPort>, expected: TunnelPort| {
        let reported = |tunnel| (ObjectKey::new("shop", "a"), capture("uid-a", tunnel));
        let captured = said.map(|tunnel| ("n1".into(), Arc::new(BTreeMap::from([reported(tunnel)]))));
        let captured: Captured = captured.into_iter().collect();
        let changes = plan_slices(&world, &captured, &slices);
        // As agents read it.
        let read = changes.first().map(|change| {
            let source = convert::Source::default();
            let (slice, problems) = convert::convert_workload_slice(&slice_body(change, ""), &source);
            assert!(problems.is_empty(), "{problems:?}");
            slice.expect("a slice").pods["a"].tunnel.clone()
        });
        done(&mut slices, &changes);
        let text = format!("{captured:?} {changes:?}");
        let entry = slices[&Str::from("shop")][&0].workloads["a"].application_ports.clone();
        let tunnel = entry.map_or(TunnelPort::Hbone, |ports| TunnelPort::application(ports.except));
        assert_eq!(tunnel, expected, "{text}");
        assert!(read.is_none_or(|read| read == expected), "{text}");
    };
    check(Some(TunnelPort::Hbone), TunnelPort::Hbone);
    check(Some(TunnelPort::application([9100])), TunnelPort::application([9100]));
    // The controller has been restarted, and has not heard of that node yet.
    check(None, TunnelPort::application([9100]));
    check(Some(TunnelPort::application([])), TunnelPort::application([]));
    check(Some(TunnelPort::Hbone), TunnelPort::Hbone);
}

/// A pod of a node, with the address 10.1.0.1.
fn pod_on(world: &mut Snapshot, name: &str, node: &str, created: u8) {
    add(
        world,
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}, \
             creationTimestamp: \"2026-01-01T00:00:0{created}Z\"}}\nspec: {{nodeName: {node}, containers: []}}\n\
             status: {{podIP: 10.1.0.1}}\n"
        ),
    );
}

/// What agents report: `name node` of each pod that has read 10.1.0.1; `name node -` of an agent that does not say.
fn reports(text: &str) -> Captured {
    let mut out = Captured::new();
    for line in text.split(';').map(str::trim).filter(|l| !l.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let addresses = if words.len() > 2 { Vec::new() } else { vec![[10, 1, 0, 1].into()] };
        let pods = Arc::make_mut(out.entry(words[1].into()).or_default());
        let uid = format!("uid-{}", words[0]).into();
        if words[0] != "nobody" {
            let capture = Capture { uid, tunnel: TunnelPort::Hbone, addresses };
            pods.insert(ObjectKey::new("shop", words[0]), capture);
        }
    }
    out
}

/// B1: who has proved an address first keeps it until it is released.
#[test]
fn a_proof_stays_until_it_is_released() {
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "weft.dev/mesh: enabled");
    pod_on(&mut world, "a", "n1", 1);
    let mut slices = Slices::new();
    let mut check = |world: &Snapshot, reported: &str, expected: &[&str], disputed: &[&str]| {
        let changes = plan_slices(world, &reports(reported), &slices);
        done(&mut slices, &changes);
        let all = slices.values().flat_map(BTreeMap::values).flat_map(|s| s.workloads.values());
        let proved: Vec<&str> = all.filter(|w| !w.proved_ips.is_empty()).map(|w| &*w.name).collect();
        assert_eq!(proved, expected, "{reported}");
        let conflicts = super::conflicts(world, &slices);
        let claimants: Vec<&str> = conflicts.iter().map(|c| &*c.claimant.name).collect();
        assert_eq!(claimants, disputed, "{reported}");
        assert_eq!(plan_slices(world, &reports(reported), &slices), [], "{reported}");
    };
    check(&world, "", &[], &[]);
    check(&world, "a n1", &["a"], &[]);
    // The node's agent has just started and has not read it yet; and the leader, which has not heard of the node.
    check(&world, "a n1 -", &["a"], &[]);
    check(&world, "", &["a"], &[]);
    // A newer Pod object of another node repeats the address; then its agent says that it has read it.
    pod_on(&mut world, "forged", "n9", 9);
    check(&world, "a n1", &["a"], &["forged"]);
    check(&world, "a n1; forged n9", &["a"], &["forged"]);
    check(&world, "forged n9", &["a"], &["forged"]);
    check(&world, "nobody n1; forged n9", &["forged"], &["a"]);
    // The first is captured again: now it is the one that comes later, and it is said.
    check(&world, "a n1; forged n9", &["forged"], &["a"]);
    // Another pod of the name has proved nothing by that.
    world.pods.remove(&ObjectKey::new("shop", "forged"));
    check(&world, "a n1", &["a"], &[]);
    world.pods.remove(&ObjectKey::new("shop", "a"));
    pod_on(&mut world, "next", "n2", 9);
    check(&world, "nobody n1; next n2", &["next"], &[]);
}

proptest! {
    /// However nodes report: an address is proved by one pod at most, only by one whose agent has read it, and who had it and
    /// still has it keeps it.
    #[test]
    fn an_address_is_proved_by_one_pod_that_keeps_it(
        rounds in proptest::collection::vec(proptest::collection::vec(0u8..3, 4), 1..8),
    ) {
        let mut world = Snapshot::default();
        namespace(&mut world, "shop", "");
        (0..4u8).for_each(|i| pod_on(&mut world, &format!("p{i}"), &format!("n{i}"), i));
        let (mut slices, mut holder) = (Slices::new(), None::<String>);
        for round in rounds {
            // 0: its agent does not capture it; 1: it has read the address; 2: it does not say.
            let line = |(i, state): (usize, &u8)| match state {
                0 => format!("nobody n{i}"),
                1 => format!("p{i} n{i}"),
                _ => format!("p{i} n{i} -"),
            };
            let text: Vec<String> = round.iter().enumerate().map(line).collect();
            let changes = plan_slices(&world, &reports(&text.join("; ")), &slices);
            done(&mut slices, &changes);
            let all = slices.values().flat_map(BTreeMap::values).flat_map(|s| s.workloads.values());
            let proved: Vec<String> =
                all.filter(|w| !w.proved_ips.is_empty()).map(|w| w.name.to_string()).collect();
            prop_assert!(proved.len() <= 1, "{:?}", proved);
            let state = |name: &str| round[usize::from(name.as_bytes()[1] - b'0')];
            match (&holder, proved.first()) {
                (Some(was), is) if state(was) != 0 => prop_assert_eq!(is, Some(was), "it has not released it"),
                (_, Some(is)) => prop_assert_eq!(state(is), 1, "its agent has read it"),
                (_, None) => prop_assert!(round.iter().all(|state| *state != 1)),
            }
            holder = proved.first().cloned();
        }
    }
}

#[test]
fn a_change_of_one_pod_rewrites_one_slice() {
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "");
    let mut text = String::new();
    for i in 0..SLICE_CAPACITY + 200 {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i:04}, namespace: shop, uid: u{i}}}\nspec: {{nodeName: n1}}\nstatus: {{podIP: 10.1.{}.{}}}\n",
            i / 250,
            i % 250
        ));
    }
    add(&mut world, &text);
    let (none, mut slices) = (Captured::new(), Slices::new());
    let changes = plan_slices(&world, &none, &slices);
    assert_eq!(changes.iter().map(|c| c.workloads.len()).collect::<Vec<_>>(), [SLICE_CAPACITY, 200]);
    done(&mut slices, &changes);
    world.pods.remove(&ObjectKey::new("shop", "p0001"));
    let changes = plan_slices(&world, &none, &slices);
    assert_eq!(
        changes.iter().map(|c| (c.number, c.workloads.len())).collect::<Vec<_>>(),
        [(0, SLICE_CAPACITY - 1)]
    );
    done(&mut slices, &changes);
    for i in SLICE_CAPACITY..SLICE_CAPACITY + 200 {
        world.pods.remove(&ObjectKey::new("shop", format!("p{i:04}")));
    }
    let changes = plan_slices(&world, &none, &slices);
    assert_eq!(
        changes.iter().map(|c| (c.number, c.workloads.len())).collect::<Vec<_>>(),
        [(1, 0)],
        "emptied"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn slices_follow_the_pods(steps in prop::collection::vec(prop::collection::btree_set(0u8..12, 0..12), 1..8)) {
        let mut slices = Slices::new();
        for pods in steps {
            let mut world = Snapshot::default();
            namespace(&mut world, "a", "");
            for p in &pods {
                pod(&mut world, ("a", &format!("p{p}")), "", "");
            }
            let changes = plan_slices(&world, &Captured::new(), &slices);
            done(&mut slices, &changes);
            prop_assert_eq!(plan_slices(&world, &Captured::new(), &slices), []);
            let names: BTreeSet<Str> =
                slices.values().flat_map(|s| s.values()).flat_map(|s| s.workloads.keys().cloned()).collect();
            prop_assert_eq!(names.len(), pods.len());
        }
    }
}

fn options() -> SliceOptions {
    SliceOptions {
        interval: Duration::from_millis(20),
        backoff: Duration::from_millis(5),
        ..SliceOptions::default()
    }
}

fn names(api: &FakeApi, slice: &str) -> Vec<String> {
    let slice = api.object("workloadslices", "shop", slice).unwrap_or_default();
    let entries = slice["workloads"].as_array().cloned().unwrap_or_default();
    entries.iter().map(|e| e["name"].as_str().unwrap_or("").to_owned()).collect()
}

#[tokio::test]
async fn slices_are_published_by_the_leader() {
    let api = FakeApi::new();
    let publisher = SlicePublisher::start(api.client(), options(), None);
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "");
    pod(&mut world, ("shop", "a"), "", "");
    let none = Arc::new(Captured::new());
    publisher.publish(&world, &none);
    publisher.set_leader(true);
    api.until("the slice", |api| names(api, "weft-0") == ["a"]).await;
    pod(&mut world, ("shop", "b"), "", "");
    publisher.publish(&world, &none);
    api.until("the other pod", |api| names(api, "weft-0") == ["a", "b"]).await;
    // Refused, and tried again.
    api.fail("workloadslices", Some(500));
    world.pods.remove(&ObjectKey::new("shop", "a"));
    publisher.publish(&world, &none);
    api.forget_requests();
    api.until("two attempts", |api| api.requests().len() > 1).await;
    api.fail("workloadslices", None);
    api.until("the pod to go", |api| names(api, "weft-0") == ["b"]).await;
    // The next leader starts from what is there, and writes nothing that is right.
    publisher.set_leader(false);
    publisher.set_leader(true);
    api.forget_requests();
    world.pods.clear();
    publisher.publish(&world, &none);
    api.until("the slice to go", |api| api.object("workloadslices", "shop", "weft-0").is_none()).await;
    let writes: Vec<_> = api.requests().into_iter().filter(|r| r.method != "GET").map(|r| r.method).collect();
    assert_eq!(writes, ["DELETE"]);
    publisher.stop().await;
}

/// `weft node clean` says of a node without an agent that its pods are captured no more; the leader does not say otherwise
/// from memory when another pod changes.
#[tokio::test]
async fn what_others_wrote_into_a_slice_is_read_before_it_is_written_over() {
    let api = FakeApi::new();
    let publisher = SlicePublisher::start(api.client(), options(), None);
    publisher.set_leader(true);
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "weft.dev/mesh: enabled");
    pod(&mut world, ("shop", "a"), "", "");
    let reported = BTreeMap::from([(ObjectKey::new("shop", "a"), capture("uid-a", TunnelPort::Hbone))]);
    publisher.publish(&world, &Arc::new(Captured::from([("n1".into(), Arc::new(reported))])));
    let captured = |api: &FakeApi| {
        let slice = api.object("workloadslices", "shop", "weft-0");
        slice.is_some_and(|s| s["workloads"][0]["captured"] == true)
    };
    api.until("the capture", captured).await;
    // The agent is gone: nobody reports, and what was said stays, until it is taken back.
    let none = Arc::new(Captured::new());
    publisher.publish(&world, &none);
    let mut cleaned = api.object("workloadslices", "shop", "weft-0").unwrap();
    cleaned["workloads"][0]["captured"] = false.into();
    api.put(cleaned);
    pod(&mut world, ("shop", "b"), "", "");
    publisher.publish(&world, &none);
    api.until("the other pod", |api| names(api, "weft-0") == ["a", "b"]).await;
    assert!(!captured(&api));
    publisher.stop().await;
}

/// The agent of a cleaned node comes back and captures the same pods, before anybody has heard of its node without them: for its
/// peers they stayed out of the mesh until something else changed in their slice.
#[tokio::test]
async fn the_pods_of_a_cleaned_node_are_captured_again_for_their_peers() {
    let api = FakeApi::new();
    let publisher = SlicePublisher::start(api.client(), options(), None);
    publisher.set_leader(true);
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "weft.dev/mesh: enabled");
    pod(&mut world, ("shop", "a"), "", "");
    let reported = BTreeMap::from([(ObjectKey::new("shop", "a"), capture("uid-a", TunnelPort::Hbone))]);
    let reported = Arc::new(Captured::from([("n1".into(), Arc::new(reported))]));
    publisher.publish(&world, &reported);
    let captured = |api: &FakeApi| {
        let slice = api.object("workloadslices", "shop", "weft-0");
        slice.is_some_and(|s| s["workloads"][0]["captured"] == true)
    };
    api.until("the capture", captured).await;
    // The agent is gone; the other pod says when that is known.
    pod(&mut world, ("shop", "b"), "", "");
    publisher.publish(&world, &Arc::default());
    api.until("the other pod", |api| names(api, "weft-0") == ["a", "b"]).await;
    let mut cleaned = api.object("workloadslices", "shop", "weft-0").unwrap();
    cleaned["workloads"][0]["captured"] = false.into();
    api.put(cleaned);
    publisher.publish(&world, &reported);
    api.until("the capture, again", captured).await;
    publisher.stop().await;
}

/// An upgrade may leave the CRDs behind: pods must be told of all the same.
#[tokio::test]
async fn a_definition_of_the_version_before_stops_no_slice() {
    let api = FakeApi::new();
    api.undeclare("applicationPorts");
    let publisher = SlicePublisher::start(api.client(), options(), None);
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "");
    pod(&mut world, ("shop", "a"), "", "");
    let said = (ObjectKey::new("shop", "a"), capture("uid-a", TunnelPort::application([])));
    let captured = Arc::new(Captured::from([("n1".into(), Arc::new(BTreeMap::from([said])))]));
    publisher.publish(&world, &captured);
    publisher.set_leader(true);
    api.until("the slice", |api| names(api, "weft-0") == ["a"]).await;
    let entry =
        |api: &FakeApi| api.object("workloadslices", "shop", "weft-0").unwrap()["workloads"][0].clone();
    assert!(entry(&api)["captured"] == true && entry(&api).get("applicationPorts").is_none());
    // With the new definition it is written at the next occasion.
    api.undeclare("");
    pod(&mut world, ("shop", "b"), "", "");
    publisher.publish(&world, &captured);
    api.until("the field", |api| entry(api).get("applicationPorts").is_some()).await;
    publisher.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slice_is_written_once_an_interval() {
    let api = FakeApi::new();
    let options = SliceOptions { interval: Duration::from_secs(1), ..SliceOptions::default() };
    let publisher = SlicePublisher::start(api.client(), options, None);
    publisher.set_leader(true);
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "");
    let none = Arc::new(Captured::new());
    let started = tokio::time::Instant::now();
    for i in 0..40 {
        pod(&mut world, ("shop", &format!("p{i:02}")), "", "");
        publisher.publish(&world, &none);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    api.until("every pod", |api| names(api, "weft-0").len() == 40).await;
    let writes = api.requests().iter().filter(|r| r.method == "PATCH").count();
    let seconds = started.elapsed().as_secs_f64();
    assert!(writes >= 4 && (writes as f64) <= seconds + 2.0, "{writes} writes in {seconds} s");
    publisher.stop().await;
}

/// A stolen node's agent says that it has captured another node's pods, or that it has not: neither is believed.
#[test]
fn a_node_speaks_for_its_own_pods_only() {
    let mut world = Snapshot::default();
    namespace(&mut world, "shop", "weft.dev/mesh: enabled");
    pod(&mut world, ("shop", "own"), "", "");
    pod(&mut world, ("shop", "other"), "", "podIPs: [{ip: 10.1.1.1}]");
    let other = ObjectKey::new("shop", "other");
    let elsewhere = Pod { node: Some("n2".into()), ..Pod::clone(&world.pods[&other]) };
    world.pods.insert(other, Arc::new(elsewhere));
    let says = |pods: &[&str]| {
        let one = |name: &&str| {
            (ObjectKey::new("shop", *name), capture(&format!("uid-{name}"), TunnelPort::default()))
        };
        Arc::new(pods.iter().map(one).collect::<BTreeMap<_, _>>())
    };
    // What n1 and n2 say; none: it has not said yet. Then whether each is captured in the end.
    let check = |first: Option<&[&str]>, second: Option<&[&str]>, before: &[&str], expected: [bool; 2]| {
        let mut slices = Slices::default();
        let nodes = Captured::from([("n1".into(), says(before)), ("n2".into(), says(before))]);
        done(&mut slices, &plan_slices(&world, &nodes, &Slices::default()));
        let said = [("n1", first), ("n2", second)];
        let captured: Captured =
            said.into_iter().filter_map(|(node, pods)| Some((node.into(), says(pods?)))).collect();
        let changes = plan_slices(&world, &captured, &slices);
        done(&mut slices, &changes);
        let is =
            |name: &str| slices["shop"].values().any(|s| s.workloads.get(name).is_some_and(|w| w.captured));
        assert_eq!([is("own"), is("other")], expected, "{first:?} {second:?} after {before:?}");
    };
    let lie: &[&str] = &["own", "other", "ghost"];
    check(Some(lie), Some(&[]), &[], [true, false]);
    check(Some(lie), None, &[], [true, false]);
    check(Some(&[]), None, &["own", "other"], [false, true]);
    check(Some(&[]), Some(&["other"]), &["own", "other"], [false, true]);
    check(Some(&[]), Some(&["own"]), &[], [false, false]);
}
