//! The sandbox of a pod that runs already, found through /proc: no CNI ADD told of it.
//!
//! The kubelet names a pod's control group after the pod's UID, whatever the driver and the version of control groups, and
//! the runtime puts each container in a group of its own below. All processes of a pod share one network namespace, but
//! for those that made one of their own (a container engine inside a pod); the oldest process is the sandbox's.

use crate::netns::{Netns, NetnsError};
use crate::sys::since_boot_ns;
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
    unistd::{SysconfVar, sysconf},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

/// A sandbox that was found.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The pod's network namespace, held open.
    pub netns: Netns,
    /// The container of the process: the runtime's name for the sandbox, if the oldest process is what it seems to be.
    pub container_id: String,
    /// The process that the namespace was taken from.
    pub pid: u32,
    /// When that process started, in clock ticks since boot.
    pub started: u64,
}

/// Why a sandbox was not found. Try again later in every case: pods come and go while one looks.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// No process is in a control group of this pod.
    #[error("no process of the pod is there")]
    NoProcess,
    /// Its processes are in the host's network namespace: there is nothing to capture, and capturing would take the node
    /// off the network.
    #[error("its processes use the host's network")]
    HostNetwork,
    /// The namespace cannot be opened. The agent lacks `hostPID` or CAP_SYS_PTRACE.
    #[error("{0} (CAP_SYS_PTRACE?)")]
    Denied(NetnsError),
    /// /proc cannot be read.
    #[error("{0}: {1}")]
    Proc(String, io::Error),
}

impl Sandbox {
    /// When the sandbox's process started, to 10 ms. `None` if its /proc did not say.
    #[must_use]
    pub fn started_at(&self) -> Option<SystemTime> {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|t| u64::try_from(t).ok())?;
        let since_boot = self.started.checked_mul(1_000_000_000 / ticks.max(1))?;
        SystemTime::now().checked_sub(Duration::from_nanos(since_boot_ns().saturating_sub(since_boot)))
    }

    /// Whether one of these addresses is an interface's in the namespace. Blocking.
    ///
    /// # Errors
    /// When the namespace cannot be entered or looked at.
    pub fn has_address(&self, ips: &[IpAddr]) -> Result<bool, NetnsError> {
        Ok(addresses_in(&self.netns)?.iter().any(|address| ips.contains(address)))
    }
}

/// The addresses of the interfaces of a namespace, without link-local ones. Blocking.
///
/// # Errors
/// When the namespace cannot be entered or looked at.
pub(crate) fn addresses_in(netns: &Netns) -> Result<BTreeSet<IpAddr>, NetnsError> {
    let found = netns
        .run(getifaddrs)?
        .map_err(|e| NetnsError::Open { what: "interfaces of a pod".to_owned(), source: e.into() })?;
    Ok(found.filter_map(|interface| address(&interface)).filter(is_global).take(NODE_ADDRESSES_MAX).collect())
}

/// A link-local address is nobody's name on the network.
const fn is_global(ip: &IpAddr) -> bool {
    !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn address(interface: &InterfaceAddress) -> Option<IpAddr> {
    let address = interface.address.as_ref()?;
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// More addresses than a node or pod has; of what has more the rest is not looked at.
const NODE_ADDRESSES_MAX: usize = 1024;

/// The addresses from which a process of the node may call a pod: all in the calling thread's network namespace, but for
/// loopback's and those of interfaces that are down (kube-proxy's `kube-ipvs0` has every Service's there).
///
/// # Errors
/// When the kernel does not tell.
pub fn node_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let is_used = |interface: &InterfaceAddress| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    };
    let found = getifaddrs()?.filter(is_used).filter_map(|interface| address(&interface));
    Ok(found.filter(is_global).take(NODE_ADDRESSES_MAX).collect())
}

/// The sandbox of the pod with this UID. Blocking.
///
/// # Errors
/// Why not.
pub fn find_sandbox(proc_root: &Path, pod_uid: &str) -> Result<Sandbox, NotFound> {
    let one = BTreeSet::from([pod_uid.to_owned()]);
    find_sandboxes(proc_root, &one).remove(pod_uid).unwrap_or(Err(NotFound::NoProcess))
}

/// The same for several pods, with one look at all processes. Every UID is answered.
#[must_use]
pub fn find_sandboxes(
    proc_root: &Path,
    uids: &BTreeSet<String>,
) -> BTreeMap<String, Result<Sandbox, NotFound>> {
    let mut processes = match processes(proc_root, uids) {
        Ok(processes) => processes,
        Err(error) => {
            let what = || proc_root.display().to_string();
            let again = |e: &io::Error| io::Error::new(e.kind(), e.to_string());
            return uids.iter().map(|u| (u.clone(), Err(NotFound::Proc(what(), again(&error))))).collect();
        }
    };
    let hosts = host_namespaces(proc_root);
    let find = |uid: &String| {
        let mut candidates = processes.remove(uid).unwrap_or_default();
        candidates.sort_by_key(|p| (p.started, p.pid));
        (uid.clone(), choose(proc_root, uid, &candidates, &hosts))
    };
    uids.iter().map(find).collect()
}

/// Every network namespace that processes of pods are in, by the pods' UIDs; the host's is none of them. More than one of a
/// pod that made some itself. Blocking.
///
/// # Errors
/// When /proc cannot be read. Processes that end meanwhile are passed over.
pub fn pod_namespaces(proc_root: &Path) -> Result<BTreeMap<String, Vec<Netns>>, NotFound> {
    let failed = |error| NotFound::Proc(proc_root.display().to_string(), error);
    let hosts = host_namespaces(proc_root);
    let mut found: BTreeMap<String, Vec<Netns>> = BTreeMap::new();
    for entry in fs::read_dir(proc_root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Some((uid, _)) = membership(proc_root, pid) else { continue };
        let netns = match Netns::open(&entry.path().join("ns/net")) {
            Ok(netns) => netns,
            Err(NetnsError::Open { source, .. }) if is_gone(&source) => continue,
            Err(error) => return Err(NotFound::Denied(error)),
        };
        let of_pod = found.entry(uid).or_default();
        if !hosts.contains(&netns.inode()) && of_pod.iter().all(|known| known.inode() != netns.inode()) {
            of_pod.push(netns);
        }
    }
    Ok(found)
}

/// A process of a pod's container.
struct Process {
    pid: u32,
    started: u64,
    container_id: String,
}

fn processes(proc_root: &Path, uids: &BTreeSet<String>) -> io::Result<BTreeMap<String, Vec<Process>>> {
    let mut found: BTreeMap<String, Vec<Process>> = BTreeMap::new();
    for entry in fs::read_dir(proc_root)? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Some((uid, container_id)) = membership(proc_root, pid) else { continue };
        if uids.contains(&uid) {
            let started = started(proc_root, pid).unwrap_or(u64::MAX);
            found.entry(uid).or_default().push(Process { pid, started, container_id });
        }
    }
    Ok(found)
}

/// The first process whose namespace is the pod's.
fn choose(
    proc_root: &Path,
    uid: &str,
    candidates: &[Process],
    hosts: &BTreeSet<u64>,
) -> Result<Sandbox, NotFound> {
    let mut why = NotFound::NoProcess;
    for process in candidates {
        let netns = match Netns::open(&proc_root.join(process.pid.to_string()).join("ns/net")) {
            Ok(netns) => netns,
            Err(NetnsError::Open { source, .. }) if is_gone(&source) => continue,
            Err(error) => {
                why = NotFound::Denied(error);
                continue;
            }
        };
        if hosts.contains(&netns.inode()) {
            why = NotFound::HostNetwork; // CRI-O's conmon is in the pod's group too, for one
            continue;
        }
        // Again, now that the namespace is held: the number may be another process' by now.
        let same = membership(proc_root, process.pid);
        if same.as_ref().is_none_or(|(u, c)| (u.as_str(), c) != (uid, &process.container_id)) {
            continue;
        }
        let Process { pid, started, .. } = *process;
        return Ok(Sandbox { netns, container_id: process.container_id.clone(), pid, started });
    }
    Err(why)
}

fn is_gone(error: &io::Error) -> bool {
    // ESRCH, and ENOENT of a process that is a zombie.
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Namespaces that are no pod's: of the host's first process, and our own (the agent uses the host's network).
fn host_namespaces(proc_root: &Path) -> BTreeSet<u64> {
    let first = Netns::open(&proc_root.join("1/ns/net")).ok();
    first.into_iter().chain(Netns::current().ok()).map(|netns| netns.inode()).collect()
}

fn membership(proc_root: &Path, pid: u32) -> Option<(String, String)> {
    let groups = fs::read_to_string(proc_root.join(pid.to_string()).join("cgroup")).ok()?;
    groups.lines().find_map(pod_and_container)
}

/// Pod UID and container ID of one line of `/proc/PID/cgroup` (`id:controllers:path`, cgroups(7)).
fn pod_and_container(line: &str) -> Option<(String, String)> {
    let path = line.splitn(3, ':').nth(2)?;
    let mut segments = path.split('/');
    loop {
        let segment = segments.next()?;
        // containerd without its systemd driver writes `….slice:cri-containerd:<id>`.
        let (slice, rest) = segment.split_once(':').unwrap_or((segment, ""));
        let Some(uid) = pod_uid(slice) else { continue };
        let container = rest.rsplit(':').next().filter(|id| !id.is_empty()).or_else(|| segments.next())?;
        return Some((uid, container_id(container)?));
    }
}

/// `pod<uid>` (cgroupfs), `kubepods-burstable-pod<uid>.slice` (systemd, which spells `-` as `_`).
pub(crate) fn pod_uid(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let uid = name.rsplit_once("-pod").map(|(_, uid)| uid).or_else(|| name.strip_prefix("pod"))?;
    (!uid.is_empty()).then(|| uid.replace('_', "-"))
}

/// `<id>`, `cri-containerd-<id>.scope`, `crio-<id>`, `docker-<id>.scope`.
fn container_id(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    if name.contains("conmon") {
        return None; // CRI-O's watcher of a container, not in it
    }
    let id = name.rsplit('-').next()?;
    (!id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| id.to_owned())
}

/// Field 22 of `/proc/PID/stat`; the program's name before it may hold anything.
fn started(proc_root: &Path, pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(proc_root.join(pid.to_string()).join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3c5a1c2e-8f0d-4b2e-9d1a-0123456789ab";
    const ID: &str = "0f5e2d";

    #[test]
    fn groups_of_every_spelling_name_the_pod() {
        let systemd = UID.replace('-', "_");
        let both = Some((UID, ID));
        let cases = [
            (format!("11:memory:/kubepods/burstable/pod{UID}/{ID}"), both),
            (format!("4:cpu,cpuacct:/n1/kubepods/pod{UID}/{ID}"), both),
            (format!("0::/kubepods/besteffort/pod{UID}/{ID}/init/deeper"), both),
            // From inside a cgroup namespace.
            (format!("0::/../../pod{UID}/{ID}"), both),
            (
                format!("0::/../../../kubepods.slice/kubepods-pod{systemd}.slice/cri-containerd-{ID}.scope"),
                both,
            ),
            (
                format!(
                    "1:name=systemd:/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/crio-{ID}.scope"
                ),
                both,
            ),
            (
                format!(
                    "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{systemd}.slice/docker-{ID}.scope/x"
                ),
                both,
            ),
            (
                format!(
                    "3:pids:/system.slice/containerd.service/kubepods-burstable-pod{systemd}.slice:cri-containerd:{ID}"
                ),
                both,
            ),
            // A static pod's UID is a hash.
            (format!("0::/kubepods/pod0a1b2c3d/{ID}"), Some(("0a1b2c3d", ID))),
            (format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-conmon-{ID}.scope"), None),
            (format!("0::/kubepods/burstable/pod{UID}"), None),
            ("0::/kubepods/burstable".into(), None),
            ("0::/".into(), None),
            ("0::/user.slice/podman-1.scope".into(), None),
            ("garbage".into(), None),
            (String::new(), None),
        ];
        for (line, want) in cases {
            let got = pod_and_container(&line);
            assert_eq!(got.as_ref().map(|(u, c)| (u.as_str(), c.as_str())), want, "{line}");
        }
    }

    /// A process in a /proc of its own.
    fn process(root: &Path, pid: u32, uid: &str, id: &str, stat: &str) {
        let dir = root.join(pid.to_string());
        fs::create_dir_all(dir.join("ns")).unwrap();
        fs::write(dir.join("cgroup"), format!("0::/kubepods/pod{uid}/{id}\n")).unwrap();
        fs::write(dir.join("stat"), stat).unwrap();
        let _ = fs::remove_file(dir.join("ns/net"));
        std::os::unix::fs::symlink("/proc/self/ns/net", dir.join("ns/net")).unwrap();
    }

    /// As in /proc: `pid (name) state` and 18 fields before the start.
    fn stat(name: &str, start: u64) -> String {
        format!("7 ({name}) S {} {start} 0 0", ["1"; 18].join(" "))
    }

    #[test]
    fn a_number_that_was_reused_is_not_taken() {
        let root = tempfile::TempDir::new().unwrap();
        process(root.path(), 7, UID, ID, &stat("pause", 5));
        let candidate = |uid: &str, id: &str| {
            let process = Process { pid: 7, started: 5, container_id: id.into() };
            choose(root.path(), uid, &[process], &BTreeSet::new())
        };
        assert_eq!(candidate(UID, ID).unwrap().pid, 7);
        // What was seen before the namespace was opened is no longer so.
        for (uid, id) in [("another", ID), (UID, "another")] {
            assert!(matches!(candidate(uid, id), Err(NotFound::NoProcess)), "{uid} {id}");
        }
        fs::remove_dir_all(root.path().join("7")).unwrap();
        assert!(matches!(candidate(UID, ID), Err(NotFound::NoProcess)));
    }

    #[test]
    fn the_start_is_found_behind_any_name() {
        let root = tempfile::TempDir::new().unwrap();
        for (text, want) in [
            (stat("pause", 42), Some(42)),
            (stat("a) b (c", 43), Some(43)),
            ("7 (short) S 1".into(), None),
            (String::new(), None),
        ] {
            process(root.path(), 7, UID, ID, &text);
            assert_eq!(started(root.path(), 7), want, "{text}");
        }
    }
}
