//! What an agent and a holder say to each other on `<runDir>/holder.sock`, and two holders on
//! `<runDir>/handoff.sock`. Frames as in `weft_cni::protocol`, descriptors by SCM_RIGHTS.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

/// The version of this protocol.
pub(crate) const VERSION: u32 = 1;
/// The most members of a Gateway's group: one per worker of the largest machine.
pub(crate) const MAX_MEMBERS: usize = 128;

/// The agent's door.
pub(crate) fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("holder.sock")
}

/// The next holder's door.
pub(crate) fn handoff_path(run_dir: &Path) -> PathBuf {
    run_dir.join("handoff.sock")
}

/// What is known of a pod's sandbox, kept by the holder so that an agent that starts knows it too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The sandbox (`CNI_CONTAINERID`). Names the record: a restarted pod has a new sandbox.
    pub container_id: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; may be empty.
    #[serde(default)]
    pub uid: String,
    /// The pod's addresses as its network plugin reported them.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// The pod's annotations, as far as whoever added it knew them.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// TCP or UDP, for groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
}

/// A group of sockets on one address of the host, one per worker (SO_REUSEPORT). The number of members is
/// fixed for its life: adding or closing one would lose the connections queued on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupKey {
    /// Address and port.
    pub address: SocketAddr,
    /// TCP or UDP.
    pub transport: Transport,
}

/// Agent → holder. Every request gets exactly one [`Answer`], except `Hello`, see there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Ask {
    /// First message. Answered by [`Answer::Snapshot`] and then as many [`Item`]s.
    Hello { version: u32, started: u64 },
    /// Remember a pod or group; carries its descriptors. What an agent knows of a pod that the holder holds
    /// already replaces the record only; its sockets stay.
    Adopt(Item),
    /// Open the pod's listeners, or duplicate those that are open. Answered with three descriptors.
    OpenPod { container_id: String },
    /// Note whether the pod's rules are in place.
    SetCaptured { container_id: String, captured: bool },
    /// Close the pod's listeners; keep its namespace.
    ClosePod { container_id: String },
    /// Forget the pod.
    RemovePod { container_id: String },
    /// Open a group, or duplicate one that is open. Answered with `members` descriptors.
    ListenGroup { key: GroupKey, members: usize },
    /// Close a group.
    CloseGroup { key: GroupKey },
}

/// Holder → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Answer {
    /// Done. `OpenPod` and `ListenGroup` carry descriptors.
    Ok,
    /// As many [`Item`]s follow.
    Snapshot { items: usize },
    /// Not done.
    Failed { reason: String },
    /// A newer agent has taken over: do not come back.
    Superseded,
}

/// New holder → old holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Handoff {
    /// Send everything. Answered like `Hello`.
    Take { version: u32 },
    /// Everything is here: let go.
    Taken,
}

/// One thing that a holder owns, with its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Item {
    /// The namespace, and when `listening` the three listeners.
    Pod {
        record: PodRecord,
        captured: bool,
        listening: bool,
        /// Its rules let the node's kubelet past capture. Holders of earlier versions never do that.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        past_capture: bool,
    },
    /// All members.
    Group { key: GroupKey, members: usize },
}
