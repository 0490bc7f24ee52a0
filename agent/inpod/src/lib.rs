//! Everything of Weft that touches a pod's network namespace.
//!
//! ```text
//! kubelet ─▶ weft-cni ─▶ cni.sock ─▶ PodManager ─▶ holder: listeners in the pod's netns
//!                                        │    └──▶ apply: routes + one nft transaction
//!                                        └──▶ PodEvent::Captured ─▶ data plane
//! ```
//!
//! The binary calls [`holder::run`] (subcommand `weft holder`) and [`PodManager::start`]; the data plane
//! gets [`CapturedPod`]s with their listeners and [`PodSockets`]. A pod that ran before Weft came is found by
//! [`find_sandbox`] and given to [`ManagerHandle::add`]. All rules live inside pods: nothing here
//! changes the host's network. [`KubeletWatch`] tells the kubelet's connections from everybody else's.
//!
//! This is the only crate with `unsafe`: to own descriptors that came by SCM_RIGHTS, and for `setrlimit`.
#![warn(missing_docs)]

mod announce;
mod apply;
mod capture_config;
mod cni_server;
mod error_list;
mod find;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod holder;
mod kubelet;
mod manager;
mod netns;
mod ns_thread;
mod routes;
mod ruleset;
mod socket;
mod stash;
pub mod state;
mod sys;
mod wire;

pub use announce::{AnnounceError, Announcer};
pub use apply::{ApplyError, apply, apply_by, is_captured, remove};
pub use capture_config::{CaptureConfig, InvalidAnnotation, WhileAway};
pub use error_list::ErrorList;
pub use find::{NotFound, Sandbox, find_sandbox, find_sandboxes, node_addresses, pod_namespaces};
pub use kubelet::{KubeletWatch, NodeSocket, Stranger};
pub use manager::{
    Captured, CapturedPod, Counts, Decision, Enrolment, ManagerConfig, ManagerHandle, PodEvent, PodManager,
    StartError,
};
pub use netns::{Netns, NetnsError};
pub use ns_thread::{NetnsThread, Refused};
pub use ruleset::{
    AGENT_MARK, HBONE_PORT, INBOUND_PORT, LOCAL_MARK, Mechanism, Mode, OUTBOUND_PORT, Surroundings, ruleset,
};
pub use socket::{
    Family, Listeners, OpenError, bind_udp, ipv6_enabled, listen, open_listeners, original_dst,
};
pub use stash::PodSockets;
pub use sys::raise_open_files_limit;
