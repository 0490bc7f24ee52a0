//! Who is the kubelet, with real processes: each holds the sockets that it was started with. Their control groups are
//! those of files, since a test cannot be sure of a hierarchy that it may write to. Needs root.
#![allow(clippy::unwrap_used)] // clippy knows #[test] functions, not the helpers of an integration test

mod support;

use socket2::{Domain, Socket, Type};
use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::fs::{fchown, symlink},
    },
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use support::*;
use tempfile::TempDir;
use weft_inpod::{KubeletWatch, Stranger};

const PORT: u16 = 10_250;
const KUBELET: &str = "0::/system.slice/kubelet.service";
const POD: &str =
    "0::/kubepods.slice/kubepods-pod3c5a1c2e_8f0d_4b2e_9d1a_0123456789ab.slice/cri-containerd-ab.scope";
const POD_UID: &str = "3c5a1c2e-8f0d-4b2e-9d1a-0123456789ab";

/// A node and a pod on it, and a /proc that shows the test's processes only.
struct Node {
    net: Net,
    proc_root: TempDir,
    watch: KubeletWatch,
    /// The application in the pod.
    app: TcpListener,
}

impl Node {
    fn new(pod: &str) -> Self {
        let net = Net::new();
        let proc_root = TempDir::new().unwrap();
        for own in ["self", "1"] {
            // The test's control groups are as good as the host's here.
            fs::create_dir_all(proc_root.path().join(own).join("ns")).unwrap();
            symlink("cgroup:[1]", proc_root.path().join(own).join("ns/cgroup")).unwrap();
        }
        let root = proc_root.path().to_owned();
        let watch = net.peer.run(|| KubeletWatch::start(root)).unwrap().unwrap();
        watch.set_port(Some(PORT));
        let app = serve(&net.pod, at(pod, 8080));
        Self { net, proc_root, watch, app }
    }

    fn to(&self) -> SocketAddr {
        self.app.local_addr().unwrap()
    }

    /// A connection from the node to the pod, and where it is from.
    fn connection(&self) -> (TcpStream, SocketAddr) {
        let stream = connect(&self.net.peer, self.to()).unwrap();
        let from = stream.local_addr().unwrap();
        (stream, from)
    }

    fn listener(&self, address: SocketAddr) -> TcpListener {
        let domain = Domain::for_address(address);
        let listen = || {
            let socket = Socket::new(domain, Type::STREAM, None)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            socket.listen(8)?;
            std::io::Result::Ok(socket)
        };
        self.net.peer.run(listen).unwrap().unwrap().into()
    }

    /// Starts a process that holds these sockets, and alone: here they are closed.
    fn process(&self, groups: &str, sockets: [Option<OwnedFd>; 2]) -> Process {
        let [one, other] = sockets.map(|socket| socket.map_or_else(Stdio::null, Stdio::from));
        let child = Command::new("sleep").arg("600").stdin(one).stdout(other).spawn().unwrap();
        let shown = self.proc_root.path().join(child.id().to_string());
        let real = format!("/proc/{}", child.id());
        // Until it has become its program it has every descriptor of the test.
        let deadline = Instant::now() + PATIENCE;
        while fs::read_to_string(format!("{real}/comm")).unwrap() != "sleep\n" {
            assert!(Instant::now() < deadline, "the process has not become its program");
            std::thread::yield_now();
        }
        let hidden = self.proc_root.path().join(format!("new-{}", child.id()));
        fs::create_dir(&hidden).unwrap();
        fs::write(hidden.join("cgroup"), groups).unwrap();
        symlink(format!("{real}/fd"), hidden.join("fd")).unwrap();
        symlink(format!("{real}/comm"), hidden.join("comm")).unwrap();
        fs::rename(hidden, &shown).unwrap();
        Process(child)
    }

    /// Who the node says has connected from there.
    fn who(&self, from: SocketAddr) -> Result<(), Stranger> {
        let Some(socket) = self.watch.socket(from, self.to()).unwrap() else {
            return Err(Stranger::Elsewhere);
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(self.watch.recognise(socket))
    }

    fn no_kubelet(&self, from: SocketAddr) -> String {
        match self.who(from) {
            Err(Stranger::NoKubelet(why)) => {
                assert_eq!(self.watch.unknown(), why);
                why
            }
            other => panic!("{other:?}"),
        }
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn any4() -> SocketAddr {
    at("0.0.0.0", PORT)
}

#[test]
fn the_kubelets_own_connections_are_known() {
    for (pod, listens) in
        [(POD4, at("::", PORT)), (POD6, at("::", PORT)), (POD4, any4()), (POD4, at(PEER4, PORT))]
    {
        let node = Node::new(pod);
        let (stream, from) = node.connection();
        let listener = node.listener(listens);
        let kubelet = node.process(KUBELET, [Some(listener.into()), Some(stream.into())]);
        assert_eq!(node.who(from), Ok(()), "{pod} {listens}");
        // Kept in mind, and asked anew all the same.
        assert_eq!(node.who(from), Ok(()), "{pod} {listens}");
        drop(kubelet);
        assert_eq!(node.who(from), Err(Stranger::Elsewhere), "{pod} {listens}: it has ended");
    }
}

#[test]
fn forged_probes_are_not_the_kubelets() {
    let node = Node::new(POD4);
    let _kubelet = node.process(KUBELET, [Some(node.listener(any4()).into()), None]);
    // A root process of the node.
    let (stream, from) = node.connection();
    let root = node.process("0::/user.slice/session.scope", [Some(stream.into()), None]);
    let named = format!("process {} (sleep)", root.0.id());
    assert_eq!(node.who(from), Err(Stranger::Other(named)));
    // A pod in the node's network. Named at most once a second.
    let (stream, from) = node.connection();
    let pod = node.process(POD, [Some(stream.into()), None]);
    let named = format!("process {} (sleep) of pod {POD_UID}", pod.0.id());
    let deadline = Instant::now() + PATIENCE;
    while node.who(from) != Err(Stranger::Other(named.clone())) {
        assert!(matches!(node.who(from), Err(Stranger::Other(_))));
        assert!(Instant::now() < deadline, "{named} is not named");
        std::thread::yield_now();
    }
    // A user of the node: its socket is not root's.
    let (stream, from) = node.connection();
    fchown(&stream, Some(1000), None).unwrap();
    assert_eq!(node.who(from), Err(Stranger::Other("a process of user 1000".to_owned())));
}

#[test]
fn a_spoofed_address_of_the_kubelet_is_nobodys() {
    let node = Node::new(POD4);
    let (stream, from) = node.connection();
    let _kubelet = node.process(KUBELET, [Some(node.listener(any4()).into()), Some(stream.into())]);
    // The address is the node's, the port nobody's: whoever sends from there is in another namespace.
    let spoofed = SocketAddr::new(from.ip(), if from.port() == 1 { 2 } else { 1 });
    assert_eq!(node.who(spoofed), Err(Stranger::Elsewhere));
    // Another pod has an address of its own; here a socket of the pod itself.
    let inside = connect(&node.net.pod, node.to()).unwrap();
    assert_eq!(node.who(inside.local_addr().unwrap()), Err(Stranger::Elsewhere));
    assert_eq!(node.who(from), Ok(()));
}

/// Who can answer for a pod's address (with CAP_NET_RAW, on a bridge, by ARP) calls the kubelet from that address and port,
/// and has a connection between the kubelet and the pod. From there it would come to the pod as the kubelet.
#[test]
fn a_caller_of_the_kubelet_is_not_the_kubelet() {
    for (pod, kubelets) in [(POD4, at(PEER4, PORT)), (POD6, at(PEER6, PORT))] {
        let node = Node::new(pod);
        let listener = node.listener(at("::", PORT));
        let caller = connect(&node.net.pod, kubelets).unwrap();
        let accepted = accept(&listener).0;
        let (stream, from) = node.connection();
        let held = [Some(listener.into()), Some(accepted.into())];
        let kubelet = node.process(KUBELET, held);
        let socket = node.watch.socket(kubelets, caller.local_addr().unwrap()).unwrap().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let who = runtime.block_on(node.watch.recognise(socket));
        assert_eq!(who, Err(Stranger::Other(format!("a caller of the kubelet's port {PORT}"))), "{pod}");
        drop((kubelet, stream, from));
    }
}

#[test]
fn a_pod_that_takes_the_port_while_the_kubelet_restarts_is_not_the_kubelet() {
    let node = Node::new(POD4);
    let (stream, from) = node.connection();
    let kept: OwnedFd = stream.into();
    assert_eq!(node.no_kubelet(from), "nobody listens on the kubelet's port");
    let first = node.process(KUBELET, [Some(node.listener(any4()).into()), Some(kept.try_clone().unwrap())]);
    assert_eq!(node.who(from), Ok(()));
    drop(first);
    let taken = node.process(POD, [Some(node.listener(any4()).into()), Some(kept.try_clone().unwrap())]);
    let why = node.no_kubelet(from);
    assert!(why.ends_with(&format!("process {} (sleep) of pod {POD_UID}", taken.0.id())), "{why}");
    drop(taken);
    // The kubelet is back.
    let _second = node.process(KUBELET, [Some(node.listener(any4()).into()), Some(kept)]);
    assert_eq!(node.who(from), Ok(()));
}

#[test]
fn who_shares_the_port_makes_the_kubelet_unknown() {
    let node = Node::new(POD4);
    let (stream, from) = node.connection();
    let _kubelet = node.process(KUBELET, [Some(node.listener(any4()).into()), Some(stream.into())]);
    assert_eq!(node.who(from), Ok(()));
    let pods = node.process(POD, [Some(node.listener(any4()).into()), None]);
    let why = node.no_kubelet(from);
    assert!(why.contains(POD_UID), "{why}");
    drop(pods);
    assert_eq!(node.who(from), Ok(()));
    let other = node.process("0::/system.slice/x.service", [Some(node.listener(any4()).into()), None]);
    let why = node.no_kubelet(from);
    assert!(why.contains("held by processes"), "{why}");
    drop(other);
    // A user of the node can have the port as long as the kubelet is away, or on another address.
    let users = node.listener(any4());
    fchown(&users, Some(1000), None).unwrap();
    assert_eq!(node.no_kubelet(from), "the kubelet's port is held by user 1000");
}

#[test]
fn without_a_node_there_is_no_kubelet() {
    let node = Node::new(POD4);
    let (stream, from) = node.connection();
    let _kubelet = node.process(KUBELET, [Some(node.listener(any4()).into()), Some(stream.into())]);
    node.watch.set_port(None);
    assert_eq!(node.no_kubelet(from), "its port is not known");
    node.watch.set_port(Some(10_255));
    assert_eq!(node.no_kubelet(from), "nobody listens on the kubelet's port");
    node.watch.set_port(Some(PORT));
    assert_eq!(node.who(from), Ok(()));
    assert_eq!(node.watch.unknown(), "");
}

/// One look answers all that wait: a pod with root in the node's network cannot keep probes waiting by many connections.
#[test]
fn a_flood_does_not_keep_the_kubelet_waiting() {
    let node = Node::new(POD4);
    let (stream, from) = node.connection();
    let _kubelet = node.process(KUBELET, [Some(node.listener(any4()).into()), Some(stream.into())]);
    let (stranger, strangers) = node.connection();
    let _pod = node.process(POD, [Some(stranger.into()), None]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (own, other) = (
        node.watch.socket(from, node.to()).unwrap().unwrap(),
        node.watch.socket(strangers, node.to()).unwrap().unwrap(),
    );
    let answers = runtime.block_on(async {
        let flood = futures_util::future::join_all((0..900).map(|_| node.watch.recognise(other)));
        let begin = Instant::now();
        let (_, own) = tokio::join!(flood, node.watch.recognise(own));
        (own, begin.elapsed())
    });
    assert_eq!(answers.0, Ok(()));
    assert!(answers.1 < Duration::from_secs(2), "{:?}", answers.1);
}
