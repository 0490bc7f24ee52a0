//! A pod and the network around it: two namespaces joined by a veth, gone when the value is dropped.
#![allow(dead_code)] // each test binary uses a part

use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use weft_inpod::Netns;

/// Long enough for a loaded machine, short enough to see a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// `pod` is 10.77.0.2 and fd77::2; `peer` is 10.77.0.1, fd77::1 and routes for everything else, among it the
/// clients 10.78.0.9 and fd78::9.
pub(crate) struct Net {
    names: [String; 2],
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
}

pub(crate) const POD4: &str = "10.77.0.2";
pub(crate) const POD6: &str = "fd77::2";
pub(crate) const PEER4: &str = "10.77.0.1";
pub(crate) const PEER6: &str = "fd77::1";
pub(crate) const CLIENT4: &str = "10.78.0.9";
pub(crate) const CLIENT6: &str = "fd78::9";

impl Net {
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run them as root");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |role| format!("wt{}-{number}-{role}", std::process::id());
        let names = [name("pod"), name("peer")];
        // From here on a panic deletes what was made.
        let cleanup = Cleanup(names.clone());
        let [pod, peer] = &names;
        ip(&["netns", "add", pod]);
        ip(&["netns", "add", peer]);
        ip(&["-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", peer]);
        for (ns, addresses) in [(pod, &[POD4, POD6][..]), (peer, &[PEER4, PEER6, CLIENT4, CLIENT6][..])] {
            ip(&["-n", ns, "link", "set", "lo", "up"]);
            ip(&["-n", ns, "link", "set", "eth0", "up"]);
            for address in addresses {
                let on_link = address.contains("77");
                let length = match (address.contains(':'), on_link) {
                    (true, true) => "64",
                    (true, false) => "128",
                    (false, true) => "24",
                    (false, false) => "32",
                };
                let mut add = vec!["-n", ns, "addr", "add"];
                let with_length = format!("{address}/{length}");
                add.extend([with_length.as_str(), "dev", "eth0"]);
                if address.contains(':') {
                    add.push("nodad");
                }
                ip(&add);
            }
        }
        ip(&["-n", pod, "route", "add", "default", "via", PEER4]);
        ip(&["-n", pod, "-6", "route", "add", "default", "via", PEER6]);
        std::mem::forget(cleanup); // `Net` itself cleans up from now on
        let open = |name: &String| Netns::open(&PathBuf::from("/run/netns").join(name)).unwrap();
        Self { pod: open(&names[0]), peer: open(&names[1]), names }
    }

    pub(crate) fn pod_path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.names[0])
    }

    /// Runs a program inside the pod and returns its output.
    pub(crate) fn in_pod(&self, program: &str, args: &[&str]) -> String {
        output_in(&self.pod, program, args)
    }

    /// The same beside the pod.
    pub(crate) fn in_peer(&self, program: &str, args: &[&str]) -> String {
        output_in(&self.peer, program, args)
    }
}

fn output_in(ns: &Netns, program: &str, args: &[&str]) -> String {
    let output = ns.run(|| Command::new(program).args(args).output().unwrap()).unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A container of the pod's own, at [`NESTED4`], for which the pod forwards. Gone when the value is dropped.
pub(crate) struct Nested {
    pub(crate) netns: Netns,
    _cleanup: Cleanup<1>,
}

pub(crate) const NESTED4: &str = "10.79.0.2";

impl Nested {
    pub(crate) fn new(net: &Net) -> Self {
        let [pod, peer] = &net.names;
        let name = format!("{pod}-in");
        let cleanup = Cleanup([name.clone()]);
        ip(&["netns", "add", &name]);
        ip(&["-n", pod, "link", "add", "nested", "type", "veth", "peer", "name", "eth0", "netns", &name]);
        for (ns, interface, address) in [(pod, "nested", "10.79.0.1/24"), (&name, "eth0", "10.79.0.2/24")] {
            ip(&["-n", ns, "link", "set", interface, "up"]);
            ip(&["-n", ns, "addr", "add", address, "dev", interface]);
        }
        ip(&["-n", &name, "route", "add", "default", "via", "10.79.0.1"]);
        ip(&["-n", peer, "route", "add", "10.79.0.0/24", "via", POD4]);
        net.in_pod("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        Self { netns: Netns::open(&PathBuf::from("/run/netns").join(&name)).unwrap(), _cleanup: cleanup }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        drop(Cleanup(self.names.clone()));
    }
}

struct Cleanup<const N: usize>([String; N]);

impl<const N: usize> Drop for Cleanup<N> {
    fn drop(&mut self) {
        for name in &self.0 {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

/// A listener of an application in `ns`.
pub(crate) fn serve(ns: &Netns, address: SocketAddr) -> TcpListener {
    ns.run(|| TcpListener::bind(address)).unwrap().unwrap()
}

/// A connection of an application in `ns`.
pub(crate) fn connect(ns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
    let stream = ns.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection of an application in `ns` from this address, which a connection before it may have had.
pub(crate) fn connect_as(ns: &Netns, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let connect = || -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    };
    ns.run(connect).unwrap()
}

/// One of the kernel's counters in `ns`, as in `TcpExt` of /proc/net/netstat.
pub(crate) fn counter(ns: &Netns, name: &str) -> u64 {
    let text = ns.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).unwrap().unwrap();
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let found = names.split(' ').zip(values.split(' ')).find(|(n, _)| *n == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1.parse().unwrap()
}

/// Sockets of the pod in this state of `ss`, e.g. `time-wait`, one line each; IPv4 as such.
pub(crate) fn sockets_in(net: &Net, state: &str) -> String {
    net.in_pod("ss", &["-Htan", "state", state]).replace("::ffff:", "").replace(['[', ']'], "")
}

/// Waits until this holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Accepts within [`PATIENCE`], also from a non-blocking listener.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut fds, timeout), Ok(1), "no connection came");
    let (stream, peer) = listener.accept().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

pub(crate) fn refused(connected: io::Result<TcpStream>) -> bool {
    connected.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

/// Whether a connection waits. Asked only after something that would have put it there.
pub(crate) fn nobody_waits(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    matches!(listener.accept(), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// Bytes pass both ways.
pub(crate) fn assert_talks(a: &mut TcpStream, b: &mut TcpStream) {
    exchange(a, b);
    exchange(b, a);
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream) {
    let sent = b"weft";
    from.write_all(sent).unwrap();
    let mut got = [0; 4];
    to.read_exact(&mut got).unwrap();
    assert_eq!(&got, sent);
}

/// Waits until nobody listens at `to`. After the last handle is closed a child process that another test is just
/// starting may still have a copy, until it has become its program.
pub(crate) fn wait_until_refused(ns: &Netns, to: SocketAddr) {
    wait_until("somebody listens", || connect(ns, to).is_err());
}

/// Closes a listener of the pod, and waits until the kernel has: see [`wait_until_refused`].
pub(crate) fn close(net: &Net, listener: TcpListener) {
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    until_nobody_listens(net, port);
}

/// Waits until no socket of the pod listens on this port.
pub(crate) fn until_nobody_listens(net: &Net, port: u16) {
    let port = format!("sport = :{port}");
    wait_until("somebody listens", || net.in_pod("ss", &["-Hltn", &port]).trim().is_empty());
}
