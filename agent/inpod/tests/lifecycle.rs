//! Plugin, manager, holder and rules together: the life of pods, agents and holders. Needs root.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

mod support;

use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread::JoinHandle,
};
use support::*;
use tempfile::TempDir;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use weft_cni::{plugin, protocol::Enrolled};
use weft_core::model::ObjectKey;
use weft_inpod::{
    CaptureConfig, Captured, CapturedPod, Decision, Enrolment, ManagerConfig, ManagerHandle, Netns, PodEvent,
    PodManager, WhileAway,
    holder::{self, Ended, GroupKey, HolderConfig, PodRecord, Transport},
    original_dst,
};

/// Who is enrolled, as the test says.
struct World {
    pods: Mutex<HashMap<String, Decision>>,
    version: watch::Sender<u64>,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { pods: Mutex::default(), version: watch::channel(0).0 })
    }

    fn set(&self, pod: &str, decision: Decision) {
        self.pods.lock().unwrap().insert(pod.into(), decision);
        self.version.send_modify(|v| *v += 1);
    }
}

impl Enrolment for World {
    fn decide(&self, _: &str, name: &str, _: &str) -> Decision {
        self.pods.lock().unwrap().get(name).cloned().unwrap_or(Decision::Unknown)
    }

    fn table(&self) -> Option<Enrolled> {
        let pods = self.pods.lock().unwrap();
        let enrolled = pods.iter().filter(|(_, d)| matches!(d, Decision::Enrolled(_)));
        let pods = enrolled.map(|(name, _)| format!("shop/{name}")).collect();
        Some(Enrolled { pods, ..Enrolled::default() })
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

fn enrolled() -> Decision {
    Decision::Enrolled(CaptureConfig::default())
}

/// A holder on a thread; dropped, it stops as if it had crashed: all its descriptors close.
struct Holder {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Ended>>,
}

impl Holder {
    fn start(run_dir: &Path) -> Self {
        let (stop, stopped) = UnixStream::pair().unwrap();
        let config = HolderConfig { run_dir: run_dir.into(), stop: Some(OwnedFd::from(stopped)) };
        let thread = std::thread::spawn(move || holder::run(config).unwrap());
        Self { stop: Some(stop), thread: Some(thread) }
    }

    /// Waits until it ends by itself.
    fn ended(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Agent {
    handle: ManagerHandle,
    events: mpsc::Receiver<PodEvent>,
}

impl Agent {
    fn start(run_dir: &Path, world: Arc<World>) -> Self {
        let (handle, events) = PodManager::start(ManagerConfig::new(run_dir), world).unwrap();
        Self { handle, events }
    }

    async fn connected(&self) {
        let mut counts = self.handle.counts();
        timeout(PATIENCE, counts.wait_for(|c| c.holder)).await.unwrap().unwrap();
    }

    async fn captured(&self, pods: usize) {
        let mut counts = self.handle.counts();
        timeout(PATIENCE, counts.wait_for(|c| c.captured == pods)).await.unwrap().unwrap();
    }

    async fn event(&mut self) -> PodEvent {
        timeout(PATIENCE, self.events.recv()).await.expect("no event came").expect("the manager ended")
    }

    /// The next event captures a pod; the data plane is ready for it.
    async fn serve(&mut self) -> CapturedPod {
        match self.event().await {
            PodEvent::Captured { pod, ready } => {
                ready.send(Ok(())).unwrap();
                pod
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Calls the plugin as a container runtime does, for the pod `name`.
async fn cni(run_dir: &Path, verb: &str, name: &str, netns: &Path) -> (bool, Value) {
    let config = json!({
        "cniVersion": "1.1.0", "name": "cluster", "type": "weft-cni", "runDir": run_dir,
        "prevResult": { "cniVersion": "1.1.0", "ips": [{ "address": format!("{POD4}/24") }] },
    });
    let (config, verb) = (config.to_string(), verb.to_owned());
    let (name, netns) = (name.to_owned(), netns.display().to_string());
    let outcome = tokio::task::spawn_blocking(move || {
        let env = |key: &str| match key {
            "CNI_COMMAND" => Some(verb.clone()),
            "CNI_CONTAINERID" => Some(format!("box-{name}")),
            "CNI_NETNS" => Some(netns.clone()),
            "CNI_IFNAME" => Some("eth0".into()),
            "CNI_ARGS" => Some(format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=u")),
            _ => None,
        };
        plugin::run(&env, config.as_bytes())
    });
    let outcome = outcome.await.unwrap();
    (outcome.success, serde_json::from_str(&outcome.stdout).unwrap_or(Value::Null))
}

fn has_table(net: &Net) -> bool {
    net.in_pod("nft", &["list", "tables"]).contains("inet weft")
}

fn accept_one(listener: &TcpListener, to: SocketAddr) -> TcpStream {
    let (stream, _) = accept(listener);
    assert_eq!(original_dst(&stream).unwrap(), to);
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enrolled_pod_starts_captured_and_is_forgotten_when_deleted() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    let _holder = Holder::start(dir.path());
    let mut agent = Agent::start(dir.path(), world.clone());
    agent.connected().await;
    assert!(cni(dir.path(), "STATUS", "a", Path::new("/")).await.0);
    world.set("a", enrolled());
    assert!(!cni(dir.path(), "CHECK", "a", &net.pod_path()).await.0, "not captured yet");

    let path = net.pod_path();
    let (answer, pod) = tokio::join!(cni(dir.path(), "ADD", "a", &path), agent.serve());
    assert!(answer.0, "{}", answer.1);
    assert_eq!(answer.1["ips"][0]["address"], format!("{POD4}/24"));
    assert!(has_table(&net));
    assert_eq!((pod.record.name.as_str(), pod.record.ips.len()), ("a", 1));
    let _client = connect(&net.pod, at(PEER4, 80)).unwrap();
    accept_one(&pod.listeners.outbound, at(PEER4, 80));
    assert!(cni(dir.path(), "CHECK", "a", &path).await.0);

    assert!(cni(dir.path(), "DEL", "a", &path).await.0);
    let PodEvent::Released { record, gone: true, .. } = agent.event().await else { panic!() };
    assert_eq!(record.container_id, "box-a");
    agent.handle.stop().await;

    let mut next = Agent::start(dir.path(), world);
    next.connected().await;
    assert_eq!(next.handle.counts().borrow().known, 0, "the holder has forgotten it too");
    assert!(next.events.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_joins_and_leaves() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    let _holder = Holder::start(dir.path());
    let mut agent = Agent::start(dir.path(), world.clone());
    agent.connected().await;
    world.set("a", Decision::NotEnrolled);
    assert!(cni(dir.path(), "ADD", "a", &net.pod_path()).await.0);
    assert!(!has_table(&net));
    let server = serve(&net.peer, at(PEER4, 80));
    let mut old = connect(&net.pod, at(PEER4, 80)).unwrap();
    let mut old_server = accept(&server).0;

    world.set("a", enrolled());
    let pod = agent.serve().await;
    agent.captured(1).await;
    let mut new = connect(&net.pod, at(PEER4, 80)).unwrap();
    let mut ours = accept_one(&pod.listeners.outbound, at(PEER4, 80));
    assert_talks(&mut old, &mut old_server);
    let standing = agent.handle.captured();
    let tunnel = weft_core::model::TunnelPort::application([]);
    let record = Captured { uid: "u".into(), addresses: vec![POD4.parse().unwrap()], tunnel };
    assert_eq!(**standing.borrow(), BTreeMap::from([(ObjectKey::new("shop", "a"), record)]));
    assert!(agent.handle.last_add().borrow().is_some());

    // Other exclusions change the rules in place; nothing is handed over again.
    let (config, _) = CaptureConfig::from_annotations([("weft.dev/exclude-outbound-ports", "80")]);
    world.set("a", Decision::Enrolled(config));
    agent.captured(0).await;
    assert_eq!(standing.borrow().len(), 1, "peers need not know of other rules");
    agent.captured(1).await;
    let _direct = connect(&net.pod, at(PEER4, 80)).unwrap();
    accept(&server);

    world.set("a", Decision::NotEnrolled);
    let PodEvent::Released { gone: false, drained, .. } = agent.event().await else { panic!() };
    timeout(PATIENCE, standing.clone().wait_for(|s| s.is_empty())).await.unwrap().unwrap();
    assert_talks(&mut new, &mut ours);
    drop((new, ours, pod));
    drained.send(()).unwrap();
    // Join again: proof that leaving is over, and that it can be undone.
    assert!(cni(dir.path(), "ADD", "a", &net.pod_path()).await.0);
    assert!(!has_table(&net));
    assert_talks(&mut old, &mut old_server);
    world.set("a", enrolled());
    let pod = agent.serve().await;
    agent.captured(1).await;
    let _again = connect(&net.pod, at(PEER4, 81)).unwrap();
    accept_one(&pod.listeners.outbound, at(PEER4, 81));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_not_served_does_not_start() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    world.set("a", enrolled());
    // The agent is there, its holder is not.
    let mut agent = Agent::start(dir.path(), world.clone());
    let away = cni(dir.path(), "STATUS", "a", Path::new("/")).await;
    assert_eq!((away.0, &away.1["code"]), (false, &json!(50)));
    let refused = cni(dir.path(), "ADD", "a", &net.pod_path()).await;
    assert_eq!((refused.0, &refused.1["code"]), (false, &json!(11)), "{}", refused.1);
    assert!(cni(dir.path(), "DEL", "a", &net.pod_path()).await.0);

    let _holder = Holder::start(dir.path());
    agent.connected().await;
    let path = net.pod_path();
    let (refused, ()) = tokio::join!(cni(dir.path(), "ADD", "a", &path), async {
        let PodEvent::Captured { ready, .. } = agent.event().await else { panic!() };
        ready.send(Err("no certificate".into())).unwrap();
    });
    assert!(!refused.0);
    assert!(refused.1["msg"].as_str().unwrap().contains("no certificate"), "{}", refused.1);
    assert!(!has_table(&net));
    // Nobody deleted it, so it is tried again, and offered again.
    agent.serve().await;
    agent.captured(1).await;
    assert!(has_table(&net));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugins_table_follows_enrolment() {
    let (dir, world) = (TempDir::new().unwrap(), World::new());
    let read = || -> Enrolled {
        serde_json::from_slice(&std::fs::read(dir.path().join("enrolment.json")).unwrap()).unwrap()
    };
    world.set("a", enrolled());
    let agent = Agent::start(dir.path(), world.clone());
    let _holder = Holder::start(dir.path());
    agent.connected().await;
    assert!(read().contains("shop", "a") && !read().contains("shop", "b"));
    world.set("b", enrolled());
    // The table is written before decisions are acted on; STATUS is answered after the change was seen.
    let seen = async {
        while !read().contains("shop", "b") {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, seen).await.unwrap();
    agent.handle.stop().await;
    assert!(read().contains("shop", "b"), "it stays for the time without an agent");
    let answer = cni(dir.path(), "ADD", "b", Path::new("/proc/self/ns/net")).await;
    assert_eq!(answer.1["code"], 11);
    assert!(cni(dir.path(), "ADD", "c", Path::new("/proc/self/ns/net")).await.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugins_table_outlives_a_reboot() {
    let (dir, state, world) = (TempDir::new().unwrap(), TempDir::new().unwrap(), World::new());
    let state_dir = state.path().join("made");
    let config = ManagerConfig { state_dir: Some(state_dir.clone()), ..ManagerConfig::new(dir.path()) };
    world.set("a", enrolled());
    let (handle, _events) = PodManager::start(config, world.clone()).unwrap();
    let copy = || std::fs::read(state_dir.join("enrolment.json")).unwrap_or_default();
    let until_copied = async |names: &[&str]| {
        let copied = async {
            let is_in = |name: &&str| String::from_utf8_lossy(&copy()).contains(&format!("shop/{name}"));
            while !names.iter().all(is_in) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, copied).await.unwrap();
    };
    until_copied(&["a"]).await;
    world.set("b", enrolled());
    until_copied(&["a", "b"]).await;
    assert_eq!(copy(), std::fs::read(dir.path().join("enrolment.json")).unwrap());
    // With nobody enrolled there is nothing that the plugin would have to know.
    world.set("a", Decision::NotEnrolled);
    world.set("b", Decision::NotEnrolled);
    let removed = async {
        while state_dir.join("enrolment.json").exists() || dir.path().join("enrolment.json").exists() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, removed).await.unwrap();
    world.set("a", enrolled());
    until_copied(&["a"]).await;
    handle.stop().await;
    let left: Vec<_> = std::fs::read_dir(&state_dir).unwrap().collect();
    assert_eq!(left.len(), 1, "no temporary file stays: {left:?}");
}

/// Not a test by itself: started as a process of its own by the tests below, which kill it.
#[tokio::test(flavor = "multi_thread")]
async fn as_another_process() {
    let Ok(role) = std::env::var("WEFT_TEST_ROLE") else { return };
    let run_dir = PathBuf::from(std::env::var("WEFT_TEST_DIR").unwrap());
    if role == "stranger" {
        for socket in ["holder.sock", "handoff.sock", "cni.sock"] {
            let refused = UnixStream::connect(run_dir.join(socket)).and_then(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                let ask = weft_cni::protocol::encode(&json!({ "hello": { "version": 1, "started": 1 } }));
                stream.write_all(&ask.unwrap())?;
                stream.read(&mut [0; 8])
            });
            let line = match refused {
                Ok(0) | Err(_) => "refused",
                Ok(_) => "ANSWERED",
            };
            println!("{socket} {line}");
        }
        return;
    }
    let world = World::new();
    world.set("a", enrolled());
    let mut agent = Agent::start(&run_dir, world);
    let _pod = agent.serve().await;
    agent.captured(1).await;
    println!("captured");
    std::future::pending::<()>().await;
}

fn another_process(role: &str, run_dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "as_another_process", "--nocapture", "--test-threads=1"])
        .env("WEFT_TEST_ROLE", role)
        .env("WEFT_TEST_DIR", run_dir)
        .stdout(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_wait_while_an_agent_is_dead() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    let _holder = Holder::start(dir.path());
    world.set("a", Decision::NotEnrolled);
    // The pod is known from before; the agent that captures it is another process, to be killed.
    let first = Agent::start(dir.path(), world.clone());
    first.connected().await;
    assert!(cni(dir.path(), "ADD", "a", &net.pod_path()).await.0);
    first.handle.stop().await;
    let mut process = another_process("agent", dir.path()).spawn().unwrap();
    wait_for_line(&mut process, "captured");
    process.kill().unwrap();
    process.wait().unwrap();

    let app = serve(&net.pod, at(POD4, 8080));
    let server = serve(&net.peer, at(PEER6, 80));
    let mut inbound = connect(&net.peer, at(POD4, 8080)).expect("not refused");
    let mut outbound = connect(&net.pod, at(PEER6, 80)).expect("not refused");
    inbound.write_all(b"early").unwrap();

    world.set("a", enrolled());
    let mut agent = Agent::start(dir.path(), world);
    let pod = agent.serve().await;
    let mut accepted = accept_one(&pod.listeners.inbound, at(POD4, 8080));
    let mut early = [0; 5];
    accepted.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    assert_talks(&mut inbound, &mut accepted);
    assert_talks(&mut outbound, &mut accept_one(&pod.listeners.outbound, at(PEER6, 80)));
    assert!(nobody_waits(&app) && nobody_waits(&server), "something went in clear");
}

fn wait_for_line(process: &mut std::process::Child, line: &str) {
    use std::io::{BufRead, BufReader};
    let output = process.stdout.take().unwrap();
    let found = BufReader::new(output).lines().any(|l| l.unwrap().contains(line));
    assert!(found, "the process ended without {line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_hands_over_its_queues() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    let old_holder = Holder::start(dir.path());
    world.set("a", enrolled());
    let mut old = Agent::start(dir.path(), world.clone());
    old.connected().await;
    let path = net.pod_path();
    let (answer, pod) = tokio::join!(cni(dir.path(), "ADD", "a", &path), old.serve());
    assert!(answer.0);
    let key = GroupKey { address: "127.0.0.1:0".parse().unwrap(), transport: Transport::Tcp };
    let group = old.handle.listen_group(key.clone(), 1).await.unwrap();
    let address = TcpListener::from(group.into_iter().next().unwrap()).local_addr().unwrap();
    let mut waiting = connect(&net.pod, at(PEER4, 80)).unwrap();
    let mut gateway_client = TcpStream::connect(address).unwrap();

    let new_holder = Holder::start(dir.path());
    assert_eq!(old_holder.ended(), Ended::HandedOver);
    // The old agent goes on with the new holder until a newer agent comes.
    old.connected().await;
    drop(pod);
    let mut new = Agent::start(dir.path(), world);
    let pod = new.serve().await;
    assert!(matches!(old.event().await, PodEvent::Superseded));
    old.handle.stop().await; // waits until its duplicates are closed
    assert_talks(&mut waiting, &mut accept_one(&pod.listeners.outbound, at(PEER4, 80)));
    assert_eq!(new.handle.groups(), std::slice::from_ref(&key));
    let group = new.handle.listen_group(key.clone(), 7).await.unwrap();
    assert_eq!(group.len(), 1, "a group keeps its size");
    let listener = TcpListener::from(group.into_iter().next().unwrap());
    assert_talks(&mut gateway_client, &mut accept(&listener).0);
    new.handle.close_group(key).await.unwrap();
    drop(listener);
    wait_until_refused(&Netns::current().unwrap(), address); // closed everywhere
    drop(new_holder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_crashed_gets_its_sockets_back() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    let holder = Holder::start(dir.path());
    world.set("a", enrolled());
    let mut agent = Agent::start(dir.path(), world.clone());
    agent.connected().await;
    let path = net.pod_path();
    let (answer, pod) = tokio::join!(cni(dir.path(), "ADD", "a", &path), agent.serve());
    assert!(answer.0);
    drop(holder);
    let mut counts = agent.handle.counts();
    timeout(PATIENCE, counts.wait_for(|c| !c.holder)).await.unwrap().unwrap();
    let mut waiting = connect(&net.pod, at(PEER4, 80)).unwrap();

    let _holder = Holder::start(dir.path());
    agent.connected().await;
    // A group is opened after the pod was given back on the same connection: requests keep their order.
    let key = GroupKey { address: "127.0.0.1:0".parse().unwrap(), transport: Transport::Udp };
    assert_eq!(agent.handle.listen_group(key, 3).await.unwrap().len(), 3);
    drop(pod);
    agent.handle.stop().await;
    let mut next = Agent::start(dir.path(), world);
    let pod = next.serve().await;
    assert_talks(&mut waiting, &mut accept_one(&pod.listeners.outbound, at(PEER4, 80)));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_may_connect() {
    let (dir, world) = (TempDir::new().unwrap(), World::new());
    let _holder = Holder::start(dir.path());
    let agent = Agent::start(dir.path(), world);
    agent.connected().await;
    // Doors wide open, so that only the check of the caller refuses.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    for socket in ["holder.sock", "handoff.sock", "cni.sock"] {
        std::fs::set_permissions(dir.path().join(socket), PermissionsExt::from_mode(0o666)).unwrap();
    }
    // A copy where user nobody can read it, whatever the build directory's permissions.
    let copy = dir.path().join("stranger");
    // By another process: a child that another test is just starting would have our descriptor, open for writing, and a
    // program that somebody writes to cannot be started (ETXTBSY).
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status().unwrap();
    assert!(copied.success());
    let command = another_process("stranger", dir.path());
    let mut stranger = Command::new(&copy);
    stranger.args(command.get_args()).envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
    let output = stranger.uid(65534).gid(65534).current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let root = another_process("stranger", dir.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&root.stdout).contains("holder.sock ANSWERED"), "root is let in");
    for socket in ["holder.sock", "handoff.sock", "cni.sock"] {
        assert!(said.contains(&format!("{socket} refused")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_from_before_can_be_added_by_hand() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    let _holder = Holder::start(dir.path());
    world.set("a", enrolled());
    let mut agent = Agent::start(dir.path(), world);
    agent.connected().await;
    let record = PodRecord {
        container_id: "found".into(),
        namespace: "shop".into(),
        name: "a".into(),
        uid: String::new(),
        ips: vec![POD4.parse().unwrap()],
        annotations: Default::default(),
    };
    let Agent { handle, events } = &mut agent;
    let (added, event) = tokio::join!(handle.add(record, net.pod.clone()), async {
        let Some(PodEvent::Captured { pod, ready }) = events.recv().await else { panic!() };
        ready.send(Ok(())).unwrap();
        pod
    });
    added.unwrap();
    assert_eq!(event.record.container_id, "found");
    assert!(has_table(&net));
    assert_eq!(agent.handle.records().await.len(), 1);
    assert_eq!(*agent.handle.last_add().borrow(), None, "no plugin brought it");
    agent.handle.forget("found".into()).await;
    let PodEvent::Released { gone: true, .. } = agent.event().await else { panic!() };
    assert!(agent.handle.records().await.is_empty());
}

/// Waits until the holder has let the node past the pod's capture.
async fn until_let_past(net: &Net) {
    let opened = async {
        while !net.in_pod("nft", &["list", "chain", "inet", "weft", "while_away"]).contains("accept") {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, opened).await.unwrap();
}

/// E20: an agent that is away for minutes must not get its node's pods restarted. Their kubelet calls from an address of the
/// node, here the peer's; another address of the same machine stands for everybody else.
#[tokio::test(flavor = "multi_thread")]
async fn probes_of_permissive_pods_do_not_wait_for_an_agent_that_is_away() {
    let (dir, world) = (TempDir::new().unwrap(), World::new());
    let (strict, net) = (Net::new(), Net::new());
    let node = [PEER4, PEER6].map(|ip| ip.parse().unwrap());
    let while_away = WhileAway::new([8080, 8081].into(), node.into());
    world.set("a", enrolled());
    world.set("b", Decision::Enrolled(CaptureConfig { while_away, ..CaptureConfig::default() }));
    let holder = Holder::start(dir.path());
    let mut agent = Agent::start(dir.path(), world.clone());
    agent.connected().await;
    let mut pods = Vec::new();
    for (name, net) in [("a", &strict), ("b", &net)] {
        let path = net.pod_path();
        let (added, pod) = tokio::join!(cni(dir.path(), "ADD", name, &path), agent.serve());
        assert!(added.0, "{}", added.1);
        pods.push(pod);
    }
    let apps: Vec<[TcpListener; 3]> = [&strict, &net]
        .map(|net| [at(POD4, 8080), at(POD6, 8080), at(POD4, 9090)].map(|to| serve(&net.pod, to)))
        .into();
    let probe = |net: &Net, from: &str, to: SocketAddr| connect_as(&net.peer, at(from, 0), to).unwrap();
    let _here = probe(&net, PEER4, at(POD4, 8080));
    accept_one(&pods[1].listeners.inbound, at(POD4, 8080));

    agent.handle.stop().await;
    until_let_past(&net).await;
    // Pods are let past in the order of their names: the strict one has been looked at by now, and names nobody.
    let waiting = probe(&strict, PEER4, at(POD4, 8080));
    assert!(nobody_waits(&apps[0][0]), "a strict pod");
    for (app, from, to) in [(0, PEER4, at(POD4, 8080)), (1, PEER6, at(POD6, 8080))] {
        let mut kubelet = probe(&net, from, to);
        assert_talks(&mut kubelet, &mut accept(&apps[1][app]).0);
    }
    assert!(refused(connect(&net.peer, at(POD4, 8081))), "a dead port, declared or not");
    let others = [probe(&net, CLIENT4, at(POD4, 8080)), probe(&net, PEER4, at(POD4, 9090))];
    assert!(apps[1].iter().all(nobody_waits), "from elsewhere, or to a port without a probe");

    // The next holder knows what the one before has done, and the next agent ends it as soon as it serves the pod.
    let next_holder = Holder::start(dir.path());
    assert_eq!(holder.ended(), Ended::HandedOver);
    let mut next = Agent::start(dir.path(), world.clone());
    for _ in 0..2 {
        next.serve().await;
    }
    next.captured(2).await;
    let _again = probe(&net, PEER4, at(POD4, 8080));
    accept_one(&pods[1].listeners.inbound, others[0].peer_addr().unwrap());
    accept_one(&pods[1].listeners.inbound, others[1].peer_addr().unwrap());
    accept_one(&pods[1].listeners.inbound, at(POD4, 8080));
    assert!(apps[1].iter().all(nobody_waits));
    accept_one(&pods[0].listeners.inbound, waiting.peer_addr().unwrap());
    next.handle.stop().await;
    until_let_past(&net).await;
    drop(next_holder);
}

/// A pod that becomes strict while its node has no agent is closed as soon as one knows it, also if that one cannot serve it:
/// it gets no certificate, say, as long as no controller is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_became_strict_meanwhile_is_closed_before_it_is_served() {
    let (dir, net, world) = (TempDir::new().unwrap(), Net::new(), World::new());
    let while_away = WhileAway::new([8080].into(), [PEER4.parse().unwrap()].into());
    world.set("a", Decision::Enrolled(CaptureConfig { while_away, ..CaptureConfig::default() }));
    let holder = Holder::start(dir.path());
    let mut agent = Agent::start(dir.path(), world.clone());
    agent.connected().await;
    let path = net.pod_path();
    let (added, pod) = tokio::join!(cni(dir.path(), "ADD", "a", &path), agent.serve());
    assert!(added.0, "{}", added.1);
    let app = serve(&net.pod, at(POD4, 8080));
    agent.handle.stop().await;
    until_let_past(&net).await;
    let mut direct = connect(&net.peer, at(POD4, 8080)).unwrap();
    let mut accepted = accept(&app).0;

    // The holder ends with its agent, as both of a pod do: the next knows of nothing but that the pod runs.
    let record = pod.record.clone();
    drop((holder, pod));
    let _holder = Holder::start(dir.path());
    world.set("a", enrolled());
    let mut next = Agent::start(dir.path(), world);
    next.connected().await;
    let Agent { handle, events } = &mut next;
    let (added, ()) = tokio::join!(handle.add(record, net.pod.clone()), async {
        let Some(PodEvent::Captured { pod, ready }) = events.recv().await else { panic!() };
        let _waiting = connect(&net.peer, at(POD4, 8080)).unwrap();
        accept_one(&pod.listeners.inbound, at(POD4, 8080));
        assert!(nobody_waits(&app), "a strict pod is open to its node");
        assert_talks(&mut direct, &mut accepted); // what was let in goes on
        ready.send(Err("no certificate".into())).unwrap();
    });
    assert!(added.is_err());
}
