//! Processes of the node, by /proc: which sockets they hold, and whether they are a pod's.

use crate::find::pod_uid;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// A process, held by its open directory in /proc: that is bound to the process and not to its number, which another
/// process may have later.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    directory: File,
}

impl Process {
    pub(super) fn open(proc_root: &Path, pid: u32) -> io::Result<Self> {
        Ok(Self { pid, directory: File::open(proc_root.join(pid.to_string()))? })
    }

    /// Every process. Those that end meanwhile are left out.
    pub(super) fn all(proc_root: &Path) -> io::Result<impl Iterator<Item = Self>> {
        let entries = fs::read_dir(proc_root)?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        Ok(pids.filter_map(move |pid| Self::open(proc_root, pid).ok()))
    }

    fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{file}", self.directory.as_raw_fd()))
    }

    /// Inodes of the sockets that it holds.
    pub(super) fn sockets(&self) -> io::Result<BTreeSet<u64>> {
        let links = fs::read_dir(self.path("fd"))?;
        Ok(links.filter_map(|link| socket_inode(&fs::read_link(link.ok()?.path()).ok()?)).collect())
    }

    /// The pod in whose control groups it is. `own`: our own control groups are the root of what we see.
    pub(super) fn pod(&self, own: bool) -> io::Result<Option<String>> {
        Ok(pod_of(&fs::read_to_string(self.path("cgroup"))?, own))
    }

    /// What it calls itself, for people.
    pub(super) fn name(&self) -> String {
        fs::read_to_string(self.path("comm")).map(|name| name.trim().to_owned()).unwrap_or_default()
    }
}

/// The number in `socket:[…]`.
pub(super) fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether our control groups are the root of what /proc/PID/cgroup shows us: a container of its own cgroup namespace, as
/// is usual with version 2. Where it cannot be told it is taken for so, which takes more for a pod's.
pub(super) fn in_own_cgroups(proc_root: &Path) -> bool {
    let of = |pid: &str| fs::read_link(proc_root.join(pid).join("ns/cgroup")).ok();
    match (of("self"), of("1")) {
        (Some(own), Some(first)) => own != first,
        _ => true,
    }
}

/// The pod that a /proc/PID/cgroup speaks of, in any of its lines: version 1 has one for each controller, and who is in a
/// pod by one of them is not the node's. The names are those of `crate::find`; here less is enough, down to a group that
/// only holds pods, because what is taken for a pod's is refused.
fn pod_of(groups: &str, own: bool) -> Option<String> {
    groups.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let segments = || path.split('/').filter(|segment| !segment.is_empty());
        let slices = || segments().map(|s| s.split_once(':').map_or(s, |(slice, _)| slice));
        let uid = slices().find_map(|slice| pod_uid(slice).filter(|uid| is_uid(uid)));
        let of_pods = || slices().any(|slice| slice.contains("kubepods")).then(|| "unknown".to_owned());
        // Seen from our own container: itself and what is below, and beside it the other containers of our pod.
        let ours = || own && segments().take_while(|segment| *segment == "..").count() < 2;
        uid.or_else(of_pods).or_else(|| ours().then(|| "of this agent".to_owned()))
    })
}

/// A UID, or the hash that static pods have instead.
fn is_uid(text: &str) -> bool {
    text.len() >= 8 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "3c5a1c2e-8f0d-4b2e-9d1a-0123456789ab";

    /// As containerd and CRI-O write them, with the drivers systemd and cgroupfs, in versions 1 and 2, seen from the host
    /// and from a container.
    #[test]
    fn who_is_in_a_pod_is_told_from_the_nodes_own() {
        let systemd = UID.replace('-', "_");
        let check = |groups: &str, own: bool, want: Option<&str>| {
            assert_eq!(pod_of(groups, own).as_deref(), want, "{groups} {own}");
        };
        for groups in [
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-ab.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-ab.scope"),
            format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-conmon-ab.scope"),
            format!("0::/kubepods/besteffort/pod{UID}/ab"),
            format!("0::/kubepods/pod{UID}"),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{systemd}.slice/cri-containerd-ab.scope"
            ),
            format!(
                "3:pids:/system.slice/containerd.service/kubepods-burstable-pod{systemd}.slice:cri-containerd:ab"
            ),
            // One controller is enough.
            format!("12:pids:/system.slice/kubelet.service\n11:memory:/kubepods/burstable/pod{UID}/ab\n0::/"),
        ] {
            check(&groups, false, Some(UID));
        }
        for groups in [
            format!("0::/../../pod{UID}/ab"),
            format!("0::/../../kubepods-besteffort-pod{systemd}.slice/crio-ab.scope"),
            format!("0::/../../../besteffort/pod{UID}/ab/deeper"),
        ] {
            check(&groups, true, Some(UID));
        }
        check(
            "0::/kubepods/pod0a1b2c3d4e5f60718293a4b5c6d7e8f9/ab",
            false,
            Some("0a1b2c3d4e5f60718293a4b5c6d7e8f9"),
        );
        check("0::/kubepods/burstable", false, Some("unknown"));
        // The agent's own container, one below it, and one beside it.
        for groups in ["0::/", "0::/below", "0::/../cri-containerd-cd.scope"] {
            check(groups, true, Some("of this agent"));
        }
        for (groups, own) in [
            ("0::/", false),
            ("0::/system.slice/kubelet.service", false),
            (
                "12:pids:/system.slice/k3s.service\n1:name=systemd:/system.slice/k3s.service\n0::/system.slice/k3s.service",
                false,
            ),
            ("0::/kubelet.slice/kubelet.service", false),
            ("0::/docker/0f5e2d", false),
            ("0::/user.slice/podman-1.scope", false),
            ("0::/machine.slice/libpod-0f5e2d0f5e2d.scope/container/kubelet.slice", false),
            ("0::/../../../../system.slice/kubelet.service", true),
            ("0::/../../..", true),
        ] {
            check(groups, own, None);
        }
    }

    #[test]
    fn sockets_are_told_by_their_links() {
        for (link, want) in
            [("socket:[42]", Some(42)), ("pipe:[42]", None), ("/dev/null", None), ("socket:[x]", None)]
        {
            assert_eq!(socket_inode(Path::new(link)), want, "{link}");
        }
    }
}
