//! Real processes in real namespaces, in a tree like /proc of the test's making. Needs root.

use super::*;
use std::{
    fs,
    net::IpAddr,
    os::{
        fd::OwnedFd,
        unix::{fs::symlink, net::UnixStream},
    },
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};
use weft_core::model::{Labels, MESH_LABEL, Meta, MtlsMode, Namespace, Pod, Snapshot};
use weft_inpod::{Decision, ManagerConfig, PodEvent, PodManager, holder};

/// A test that waits longer hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pod's namespace with an address, and a process in it.
struct Sandboxed {
    name: String,
    process: Child,
}

impl Sandboxed {
    fn new(address: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wtj{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "addr", "add", address, "dev", "lo"]);
        let netns = Netns::open(&Path::new("/run/netns").join(&name)).unwrap();
        let process = netns.run(|| Command::new("sleep").arg("1000").spawn().unwrap()).unwrap();
        Self { name, process }
    }
}

fn ip(args: &[&str]) {
    assert!(Command::new("ip").args(args).status().unwrap().success(), "ip {args:?}");
}

impl Drop for Sandboxed {
    fn drop(&mut self) {
        let _ = (self.process.kill(), self.process.wait());
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Shows a process in a pod's control group.
fn show(proc_root: &Path, uid: &str, process: u32) {
    let dir = proc_root.join(process.to_string());
    fs::create_dir_all(dir.join("ns")).unwrap();
    symlink(format!("/proc/{process}/ns/net"), dir.join("ns/net")).unwrap();
    fs::write(dir.join("cgroup"), format!("0::/kubepods/pod{uid}/box{uid}\n")).unwrap();
}

fn meta(namespace: &str, name: &str, uid: &str, labels: &[(&str, &str)]) -> Meta {
    let labels: Labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Meta {
        key: ObjectKey::new(namespace, name),
        uid: uid.into(),
        generation: 1,
        created: 0,
        labels,
        annotations: Labels::new(),
        origin: None,
    }
}

fn pod(name: &str, ip: &str) -> Pod {
    Pod {
        meta: meta("shop", name, &format!("u{name}"), &[]),
        ips: vec![ip.parse::<IpAddr>().unwrap()],
        service_account: "default".into(),
        node: Some("here".into()),
        host_network: false,
        captured: None,
        proved: Vec::new(),
        tunnel: weft_core::model::TunnelPort::default(),
        finished: false,
        probes: Arc::default(),
    }
}

fn world(pods: &[Pod]) -> Snapshot {
    let shop = Namespace { meta: meta("", "shop", "", &[(MESH_LABEL, "enabled")]) };
    let pods = pods.iter().map(|pod| (pod.meta.key.clone(), Arc::new(pod.clone())));
    Snapshot {
        namespaces: [("shop".into(), Arc::new(shop))].into(),
        pods: pods.collect(),
        ..Snapshot::default()
    }
}

/// A holder on a thread, ended when it is dropped.
struct Holder(Option<(UnixStream, thread::JoinHandle<()>)>);

impl Holder {
    fn start(run_dir: &Path) -> Self {
        let (stop, stopped) = UnixStream::pair().unwrap();
        let config = holder::HolderConfig { run_dir: run_dir.into(), stop: Some(OwnedFd::from(stopped)) };
        Self(Some((
            stop,
            thread::spawn(move || assert_ne!(holder::run(config).unwrap(), holder::Ended::HandedOver)),
        )))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }
}

/// A data plane that is always ready.
async fn serve(mut events: mpsc::Receiver<PodEvent>) {
    while let Some(event) = events.recv().await {
        if let PodEvent::Captured { ready, .. } = event {
            let _ = ready.send(Ok(()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn running_pods_join_and_gone_ones_are_forgotten() {
    let (run_dir, proc_root) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let _holder = Holder::start(run_dir.path());
    let enrolment = WorldEnrolment::new("here");
    let (manager, events) = PodManager::start(ManagerConfig::new(run_dir.path()), enrolment.clone()).unwrap();
    let serving = tokio::spawn(serve(events));
    let manager = Arc::new(manager);
    let joiner = Joiner {
        proc_root: proc_root.path().into(),
        manager: manager.clone(),
        enrolment: enrolment.clone(),
        witness: None,
        gone_patience: Duration::ZERO,
    };
    let joining = joiner.start();
    let mut missing = joining.missing();

    let (mut sandbox, wrong) = (Sandboxed::new("10.79.0.2/32"), Sandboxed::new("10.79.0.3/32"));
    let elsewhere = Pod { node: Some("there".into()), ..pod("c", "10.79.0.4") };
    let pods = [pod("a", "10.79.0.2"), pod("b", "10.79.0.9"), elsewhere];
    show(proc_root.path(), "ub", wrong.process.id());
    enrolment.update(&world(&pods));
    let all_said = |m: &Missing| m.len() == 2;
    let said = timeout(PATIENCE, missing.wait_for(all_said)).await.unwrap().unwrap().clone();
    assert!(said[&pods[0].meta.key].contains("no process"), "{said:?}");
    assert!(said[&pods[1].meta.key].contains("none of its addresses"), "{said:?}");

    show(proc_root.path(), "ua", sandbox.process.id());
    let mut captured = manager.captured();
    timeout(PATIENCE, captured.wait_for(|c| !c.is_empty())).await.unwrap().unwrap();
    let found = captured.borrow().clone();
    assert_eq!(found.keys().collect::<Vec<_>>(), [&pods[0].meta.key]);
    let one = &found[&pods[0].meta.key];
    assert_eq!((one.uid.as_str(), &one.addresses), ("ua", &pods[0].ips));
    timeout(PATIENCE, missing.wait_for(|m| m.len() == 1)).await.unwrap().unwrap();
    assert_eq!(manager.records().await[0].container_id, "boxua");

    // Deleted by force: it runs on, and stays captured until it has ended.
    enrolment.update(&world(&pods[1..]));
    enrolment.update(&world(&pods[2..]));
    timeout(PATIENCE, missing.wait_for(|m| m.is_empty())).await.unwrap().unwrap();
    assert_eq!(manager.counts().borrow().captured, 1);
    sandbox.process.kill().unwrap();
    sandbox.process.wait().unwrap();
    timeout(PATIENCE, manager.counts().wait_for(|c| c.known == 0)).await.unwrap().unwrap();
    assert!(captured.borrow_and_update().is_empty());

    joining.stop().await;
    Arc::into_inner(manager).expect("the joiner has let go of it").stop().await;
    serving.await.unwrap();
}

#[test]
fn a_pod_lacks_its_sandbox_unless_the_very_pod_is_known() {
    let running = |uid: &str| Running { key: ObjectKey::new("shop", "a"), uid: uid.into(), ips: Vec::new() };
    let record = |name: &str, uid: &str| PodRecord {
        container_id: "box".into(),
        namespace: "shop".into(),
        name: name.into(),
        uid: uid.into(),
        ips: Vec::new(),
        annotations: BTreeMap::new(),
    };
    // (records, whether the pod is lacking)
    let cases = [
        (vec![], true),
        (vec![record("a", "u1")], false),
        (vec![record("a", "")], false),
        (vec![record("a", "u0")], true),
        (vec![record("a", "u0"), record("a", "u1")], false),
        (vec![record("b", "u1")], true),
    ];
    for (records, want) in cases {
        assert_eq!(lacking(vec![running("u1")], &records).len(), usize::from(want), "{records:?}");
    }
}

#[test]
fn only_this_nodes_running_pods_count() {
    let enrolment = WorldEnrolment::new("here");
    assert_eq!(enrolment.running(), None, "before the first world");
    let with = |name: &str, change: &dyn Fn(&mut Pod)| {
        let mut pod = pod(name, "10.79.1.2");
        change(&mut pod);
        pod
    };
    enrolment.update(&world(&[
        with("plain", &|_| {}),
        with("elsewhere", &|p| p.node = Some("there".into())),
        with("unscheduled", &|p| p.node = None),
        with("finished", &|p| p.finished = true),
        with("starting", &|p| p.ips.clear()),
        with("host", &|p| p.host_network = true),
        with("from-a-file", &|p| p.meta.uid = "".into()),
        with("kept-out", &|p| drop(p.meta.labels.insert(MESH_LABEL.into(), "disabled".into()))),
    ]));
    let running = enrolment.running().unwrap();
    let found: Vec<(&str, &str)> = running.iter().map(|r| (&*r.key.name, r.uid.as_str())).collect();
    assert_eq!(found, [("plain", "uplain")]);
    let key = |name: &str| ObjectKey::new("shop", name);
    for (name, uid, want) in
        [("plain", "uplain", true), ("plain", "", true), ("plain", "older", false), ("none", "", false)]
    {
        assert_eq!(enrolment.has(&key(name), uid), want, "{name} {uid}");
    }
    // The plugin's table is this node's.
    let table = enrolment.table().unwrap();
    assert_eq!(table.kept_out, ["shop/host", "shop/kept-out"].map(String::from).into());
}

/// The pod of a StatefulSet is made anew under its name, and its ADD may come before the watch shows it: what the labels of
/// its predecessor said let it start in clear, or permissive.
#[test]
fn a_pod_that_had_the_name_before_decides_nothing() {
    let enrolment = WorldEnrolment::new("here");
    let mut before = pod("a", "10.79.1.2");
    before.meta.labels.insert(MESH_LABEL.into(), "disabled".into());
    let mut mirror = pod("static", "10.79.1.3");
    mirror.meta.labels.insert(MESH_LABEL.into(), "disabled".into());
    mirror.meta.annotations.insert(weft_k8s::MIRROR.into(), "hash".into());
    enrolment.update(&world(&[before, mirror]));
    let check = |name: &str, uid: &str, want: Decision| {
        assert_eq!(enrolment.decide("shop", name, uid), want, "{name} {uid}");
        let workload = enrolment.workload(&ObjectKey::new("shop", name), uid, "d", MtlsMode::Permissive);
        assert_eq!(workload.is_some(), want != Decision::Unknown, "{name} {uid}");
    };
    check("a", "ua", Decision::NotEnrolled);
    check("a", "", Decision::NotEnrolled);
    check("a", "ua-2", Decision::Unknown);
    // A static pod is known to the runtime by its hash.
    check("static", "hash", Decision::NotEnrolled);
    check("static", "other", Decision::Unknown);
    enrolment.update(&world(&[Pod { meta: meta("shop", "a", "ua-2", &[]), ..pod("a", "10.79.1.4") }]));
    assert!(matches!(enrolment.decide("shop", "a", "ua-2"), Decision::Enrolled(_)));
}
