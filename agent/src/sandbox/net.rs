//! Namespaces, links and routes of a sandbox, by the `ip` program.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A named network namespace (`/run/netns/NAME`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of this name, made elsewhere.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.into() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Removes it; whatever runs in it keeps the kernel's object alive but unreachable.
    ///
    /// # Errors
    /// `ip`'s.
    pub fn delete(&self) -> Result<()> {
        Ip::new().line(&format!("netns delete {}", self.name)).run()
    }

    fn create(&self) -> Result<()> {
        run("ip", &["netns", "add", &self.name])?;
        Ip::inside(self).line("link set lo up").run()
    }
}

/// A batch of `ip` commands, run as one process.
#[derive(Debug, Default)]
pub struct Ip {
    netns: Option<String>,
    lines: String,
}

impl Ip {
    /// In the current namespace.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Inside a namespace.
    #[must_use]
    pub fn inside(netns: &Netns) -> Self {
        Self { netns: Some(netns.name.clone()), lines: String::new() }
    }

    /// Adds one command, without the word `ip`.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    /// Runs the batch.
    ///
    /// # Errors
    /// The first failing line, with `ip`'s words.
    pub fn run(self) -> Result<()> {
        let mut command = Command::new("ip");
        if let Some(netns) = &self.netns {
            command.args(["-n", netns]);
        }
        let mut child = command
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run `ip` (Debian package iproute2)")?;
        child.stdin.take().context("no stdin")?.write_all(self.lines.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip: {}\n{}", String::from_utf8_lossy(&output.stderr).trim(), self.lines);
        }
        Ok(())
    }
}

/// Ends and address of a pod's link.
pub(super) struct PodLink {
    pub(super) ip: Ipv4Addr,
    pub(super) ip6: Ipv6Addr,
    pub(super) host_veth: String,
}

pub(super) fn require_tools() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root: run it with sudo");
    }
    for (tool, package) in [("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")] {
        if Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            bail!("`{tool}` is missing: apt-get install {package}");
        }
    }
    Ok(())
}

/// `<pid>x<n>`: the process that owns the sandbox, and a count.
pub(super) fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Ids of sandboxes whose process is gone. A kept one (`keep` file in its directory) is not dead.
pub(super) fn dead_ids() -> Vec<String> {
    ids(|id, pid| {
        let kept = std::env::temp_dir().join(format!("weft-{id}/keep")).exists();
        !kept && !PathBuf::from(format!("/proc/{pid}")).exists()
    })
}

/// Ids of a process's sandboxes.
pub(super) fn ids_of(process: u32) -> Vec<String> {
    ids(|_, pid| pid == process)
}

fn ids(wanted: impl Fn(&str, u32) -> bool) -> Vec<String> {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut ids: Vec<String> = names
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let id = name.strip_prefix("weft-")?.split('-').next()?.to_owned();
            let pid: u32 = id.split_once('x')?.0.parse().ok()?;
            wanted(&id, pid).then_some(id)
        })
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

/// The switch that joins the nodes: a bridge in a namespace of its own, with no way out.
pub(super) fn create_switch(id: &str) -> Result<()> {
    let switch = switch(id);
    switch.create()?;
    Ip::inside(&switch).line("link add br0 type bridge").line("link set br0 up").run()
}

fn switch(id: &str) -> Netns {
    Netns::named(&format!("weft-{id}-switch"))
}

/// A node with its link to the switch and a bridge for pods. Gives its address.
pub(super) fn create_node(id: &str, index: usize, netns: &Netns) -> Result<Ipv4Addr> {
    netns.create()?;
    let (switch, ip) = (switch(id), node_ip(index));
    Ip::inside(&switch)
        .line(&format!("link add node{index} mtu 1500 type veth peer name eth0 netns {}", netns.name))
        .line(&format!("link set node{index} master br0 up"))
        .run()?;
    Ip::inside(netns)
        .line(&format!("address add {ip}/24 dev eth0"))
        .line(&format!("address add fd77::{}/64 dev eth0 nodad", index + 1))
        .line("link set eth0 up")
        // Its own address, as the bridge plugin gives one: otherwise it takes the lowest of its ports', so that a new pod may
        // change it, and what the others have for other nodes is dropped until they ask again.
        .line(&format!("link add cni0 address 02:57:46:54:00:{:02x} type bridge", index + 1))
        .line(&format!("address add 10.88.{index}.1/24 dev cni0"))
        .line(&format!("address add fd88:{index}::1/64 dev cni0 nodad"))
        .line("link set cni0 up")
        .run()?;
    sysctl(netns, &["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])?;
    Ok(ip)
}

fn node_ip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(index + 1).unwrap_or(u8::MAX))
}

/// Routes between the pod ranges of two nodes.
pub(super) fn route_between(a: (usize, &Netns), b: (usize, &Netns)) -> Result<()> {
    for ((_, from), (to, _)) in [(a, b), (b, a)] {
        Ip::inside(from)
            .line(&format!("route add 10.88.{to}.0/24 via {}", node_ip(to)))
            .line(&format!("route add fd88:{to}::/64 via fd77::{}", to + 1))
            .run()?;
    }
    Ok(())
}

/// A pod's namespace, its veth to the node's bridge, addresses and default routes.
pub(super) fn create_pod(
    id: &str,
    node: usize,
    node_netns: &Netns,
    number: usize,
    netns: &Netns,
) -> Result<PodLink> {
    netns.create()?;
    let host_veth = format!("veth{number}");
    let byte = u8::try_from(number).context("too many pods on this node")?;
    let node_byte = u8::try_from(node)?;
    let ip = Ipv4Addr::new(10, 88, node_byte, byte);
    let ip6 = Ipv6Addr::new(0xfd88, u16::from(node_byte), 0, 0, 0, 0, 0, u16::from(byte));
    Ip::inside(node_netns)
        .line(&format!("link add {host_veth} type veth peer name eth0 netns {}", netns.name))
        .line(&format!("link set {host_veth} master cni0 up"))
        .run()
        .with_context(|| format!("sandbox {id}"))?;
    Ip::inside(netns)
        .line(&format!("address add {ip}/24 dev eth0"))
        .line(&format!("address add {ip6}/64 dev eth0 nodad"))
        .line("link set eth0 up")
        .line(&format!("route add default via 10.88.{node}.1"))
        .line(&format!("route add ::/0 via fd88:{node}::1"))
        .run()?;
    Ok(PodLink { ip, ip6, host_veth })
}

fn sysctl(netns: &Netns, settings: &[&str]) -> Result<()> {
    let path = netns.path();
    let mut args = vec![format!("--net={}", path.display()), "sysctl".into(), "-q".into(), "-w".into()];
    args.extend(settings.iter().map(|s| (*s).to_owned()));
    run("nsenter", &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Kills every process inside the sandbox's namespaces and removes the namespaces.
pub(super) fn remove(id: &str) {
    let prefix = format!("weft-{id}-");
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(&prefix)) {
        if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
            let pids = String::from_utf8_lossy(&output.stdout).into_owned();
            for pid in pids.split_whitespace().filter_map(|p| p.parse().ok()) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        let _ = run("ip", &["netns", "delete", &name]);
    }
}

/// `GET http://127.0.0.1:port/path` inside a namespace.
pub(super) fn http_get(netns: &Netns, port: u16, path: &str) -> Result<String> {
    let net = format!("--net={}", netns.path().display());
    let url = format!("http://127.0.0.1:{port}{path}");
    let output = Command::new("nsenter")
        .args([&net, "curl", "-sS", "--fail", "--noproxy", "*", "--max-time", "5", &url])
        .output()
        .context("cannot run curl (Debian package curl)")?;
    if !output.status.success() {
        bail!("{url}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
