//! Which process is the node's kubelet: a decision over what was seen.

use std::{collections::BTreeSet, fmt};

/// A listener on the kubelet's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) inode: u64,
    /// Who made it.
    pub(super) uid: u32,
}

/// A process that holds one of the listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) name: String,
    /// The pod in whose control groups it is.
    pub(super) pod: Option<String>,
    /// Inodes of the listeners that it holds.
    pub(super) listeners: BTreeSet<u64>,
}

/// Why there is no kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoKubelet {
    /// Nobody listens.
    NotListening,
    /// A listener is not root's: any user of the node can make one while the kubelet is away.
    NotRoot(u32),
    /// Nobody was found to hold one of them.
    Unheld,
    /// A pod in the node's network has the port, or a part of it (`SO_REUSEPORT`).
    InPod(Holder),
    /// Several processes hold the port.
    Several(u32, u32),
}

/// The one process that holds every listener on the port, if it is root's and no pod's. Everybody else who holds one of
/// them too makes that untrue: it could be the kubelet's part that is the false one.
pub(super) fn elect(listeners: &[Listener], holders: &[Holder]) -> Result<u32, NoKubelet> {
    if listeners.is_empty() {
        return Err(NoKubelet::NotListening);
    }
    if let Some(other) = listeners.iter().find(|listener| listener.uid != 0) {
        return Err(NoKubelet::NotRoot(other.uid));
    }
    if let Some(holder) = holders.iter().find(|holder| holder.pod.is_some()) {
        return Err(NoKubelet::InPod(holder.clone()));
    }
    let all: BTreeSet<u64> = listeners.iter().map(|listener| listener.inode).collect();
    match holders {
        [one] if one.listeners.is_superset(&all) => Ok(one.pid),
        [] | [_] => Err(NoKubelet::Unheld),
        [one, another, ..] => Err(NoKubelet::Several(one.pid, another.pid)),
    }
}

impl fmt::Display for NoKubelet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListening => f.write_str("nobody listens on the kubelet's port"),
            Self::NotRoot(uid) => write!(f, "the kubelet's port is held by user {uid}"),
            Self::Unheld => f.write_str("whoever holds the kubelet's port cannot be found"),
            Self::InPod(Holder { pid, name, pod, .. }) => {
                let pod = pod.as_deref().unwrap_or_default();
                write!(f, "the kubelet's port is held by process {pid} ({name}) of pod {pod}")
            }
            Self::Several(one, another) => {
                write!(f, "the kubelet's port is held by processes {one} and {another}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_owner_of_the_port_outside_pods_is_the_kubelet() {
        let listener = |inode| Listener { inode, uid: 0 };
        let holder = |pid, listeners: &[u64]| Holder {
            pid,
            name: "x".into(),
            pod: None,
            listeners: listeners.iter().copied().collect(),
        };
        let in_pod = |pid, listeners| Holder { pod: Some("u".into()), ..holder(pid, listeners) };
        let check = |what: &str, listeners: &[Listener], holders: &[Holder], want: Result<u32, NoKubelet>| {
            assert_eq!(elect(listeners, holders), want, "{what}");
        };
        check("the kubelet", &[listener(1)], &[holder(7, &[1])], Ok(7));
        check("dual-stack", &[listener(1), listener(2)], &[holder(7, &[1, 2])], Ok(7));
        check("away", &[], &[], Err(NoKubelet::NotListening));
        let taken = in_pod(9, &[1]);
        check(
            "a hostNetwork pod while it is away",
            &[listener(1)],
            std::slice::from_ref(&taken),
            Err(NoKubelet::InPod(taken.clone())),
        );
        let beside = in_pod(9, &[2]);
        check(
            "a hostNetwork pod beside it, by SO_REUSEPORT",
            &[listener(1), listener(2)],
            &[holder(7, &[1]), beside.clone()],
            Err(NoKubelet::InPod(beside)),
        );
        let shared = in_pod(9, &[1]);
        check(
            "a listener that a pod has handed to a process of the node",
            &[listener(1)],
            &[holder(7, &[1]), shared.clone()],
            Err(NoKubelet::InPod(shared)),
        );
        check(
            "two processes of the node",
            &[listener(1), listener(2)],
            &[holder(7, &[1]), holder(8, &[2])],
            Err(NoKubelet::Several(7, 8)),
        );
        check(
            "a child that has inherited it",
            &[listener(1)],
            &[holder(7, &[1]), holder(8, &[1])],
            Err(NoKubelet::Several(7, 8)),
        );
        check("of nobody that is seen", &[listener(1)], &[], Err(NoKubelet::Unheld));
        check("half seen", &[listener(1), listener(2)], &[holder(7, &[1])], Err(NoKubelet::Unheld));
        let users = Listener { inode: 1, uid: 1000 };
        check("a user of the node", &[users], &[holder(7, &[1])], Err(NoKubelet::NotRoot(1000)));
        check(
            "a user beside it",
            &[users, listener(2)],
            &[holder(7, &[1, 2])],
            Err(NoKubelet::NotRoot(1000)),
        );
    }
}
