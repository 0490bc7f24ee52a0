//! The wire between the plugin and the agent, and the table that the agent leaves for the plugin.
//!
//! A frame is a big-endian `u32` length and that many bytes of JSON, on a Unix stream socket
//! (`<runDir>/cni.sock`). ADD carries one file descriptor, the pod's network namespace, attached by
//! SCM_RIGHTS to the first byte of the frame. One request and one response per connection.

use crate::spec::{PodArgs, ValidAttachment};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Where sockets and tables live unless configured.
pub const DEFAULT_RUN_DIR: &str = "/run/weft";
/// Where what must outlive a reboot lives unless configured.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/weft";
/// The version of this protocol; another version is refused by name, never guessed at.
pub const PROTOCOL_VERSION: u32 = 1;
/// The longest frame: bounds what a broken peer makes us allocate.
pub const MAX_FRAME_BYTES: usize = 4 << 20;
/// Bytes of the length prefix.
pub const HEADER_BYTES: usize = 4;

/// The agent's socket for the plugin.
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("cni.sock")
}

/// The table of [`Enrolled`] names, in the run directory, and a copy in the state directory: `/run` is empty after a
/// reboot, and the first pods start before the agent does.
#[must_use]
pub fn enrolment_path(dir: &Path) -> PathBuf {
    dir.join("enrolment.json")
}

/// What the plugin asks the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The question.
    pub command: Command,
}

/// A question to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Command {
    /// A sandbox exists; its network namespace comes along as a file descriptor. Answered when the pod's
    /// traffic is protected, or at once for a pod that is not enrolled.
    Add(Attachment),
    /// Is this sandbox as ADD left it?
    Check(Attachment),
    /// The sandbox goes away.
    Del {
        /// `CNI_CONTAINERID`.
        container_id: String,
    },
    /// Could an ADD be served now?
    Status,
    /// Forget every sandbox that is not listed.
    Gc {
        /// `cni.dev/valid-attachments`.
        valid: Vec<ValidAttachment>,
    },
}

/// One sandbox of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// `CNI_CONTAINERID`: the sandbox; a pod that is restarted gets a new one.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`, for people: the file descriptor is what counts.
    pub netns: String,
    /// Which pod it is.
    pub pod: PodArgs,
    /// The pod's addresses by `prevResult`.
    pub ips: Vec<IpAddr>,
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// Done.
    Ok,
    /// Not done; becomes a CNI error as it stands.
    Refused {
        /// CNI error code.
        code: u32,
        /// One line for the operator.
        msg: String,
        /// More.
        details: String,
    },
}

/// A frame that cannot be sent or understood. The peer is at fault, or speaks another version.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes is longer than {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// Not the JSON that was expected.
    #[error("frame is not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// A value as a frame: length prefix and JSON.
///
/// # Errors
/// When the JSON is longer than [`MAX_FRAME_BYTES`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut frame, value)?;
    let len = frame.len() - HEADER_BYTES;
    let prefix =
        u32::try_from(len).ok().filter(|_| len <= MAX_FRAME_BYTES).ok_or(FrameError::TooLong(len))?;
    frame[..HEADER_BYTES].copy_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// The length of the JSON that follows a prefix.
///
/// # Errors
/// When it is longer than [`MAX_FRAME_BYTES`].
pub fn body_length(prefix: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let len = u32::from_be_bytes(prefix) as usize;
    if len <= MAX_FRAME_BYTES { Ok(len) } else { Err(FrameError::TooLong(len)) }
}

/// The value in a frame's body.
///
/// # Errors
/// When the body is not the JSON of a `T`.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    Ok(serde_json::from_slice(body)?)
}

/// Which pods are enrolled, as far as it can be known without asking anyone. The agent writes it to
/// [`enrolment_path`] by rename; the plugin reads it only when the agent does not answer.
///
/// A *new* pod that is enrolled by its own label in a namespace that is not is unknown here: pod labels do
/// not reach the plugin. Such a pod starts uncaptured while the agent is away, and joins when it is back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolled {
    /// Namespaces labelled `weft.dev/mesh=enabled`.
    pub namespaces: BTreeSet<String>,
    /// `namespace/name` of pods of this node with a label of their own, enrolled.
    #[serde(default)]
    pub pods: BTreeSet<String>,
    /// `namespace/name` of pods of this node in an enrolled namespace that are kept out by their own label.
    #[serde(default)]
    pub kept_out: BTreeSet<String>,
}

impl Enrolled {
    /// Whether the pod is enrolled. A pod's own entry wins over its namespace's.
    #[must_use]
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        let key = format!("{namespace}/{name}");
        self.pods.contains(&key) || (self.namespaces.contains(namespace) && !self.kept_out.contains(&key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pods_own_entry_wins() {
        let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let table =
            Enrolled { namespaces: set(&["shop"]), pods: set(&["lab/one"]), kept_out: set(&["shop/out"]) };
        for (namespace, name, want) in [
            ("shop", "any", true),
            ("shop", "out", false),
            ("lab", "one", true),
            ("lab", "two", false),
            ("", "", false),
        ] {
            assert_eq!(table.contains(namespace, name), want, "{namespace}/{name}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(body_length(u32::MAX.to_be_bytes()).is_err());
        assert!(encode(&"x".repeat(MAX_FRAME_BYTES)).is_err());
        assert_eq!(body_length([0, 0, 1, 0]).unwrap(), 256);
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(id in "[a-z0-9]{1,64}", name in ".{0,80}", command in 0u8..5) {
            let attachment = Attachment {
                container_id: id.clone(),
                ifname: "eth0".into(),
                netns: "/run/netns/x".into(),
                pod: PodArgs { namespace: name.clone(), name, uid: String::new() },
                ips: vec![IpAddr::from([10, 0, 0, 1])],
            };
            let command = match command {
                0 => Command::Add(attachment),
                1 => Command::Check(attachment),
                2 => Command::Del { container_id: id },
                3 => Command::Gc { valid: vec![ValidAttachment { container_id: id, ifname: "e".into() }] },
                _ => Command::Status,
            };
            let request = Request { version: PROTOCOL_VERSION, command };
            let frame = encode(&request).unwrap();
            let (prefix, body) = frame.split_first_chunk::<HEADER_BYTES>().unwrap();
            prop_assert_eq!(body_length(*prefix).unwrap(), body.len());
            prop_assert_eq!(decode::<Request>(body).unwrap(), request);
        }

        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Request>(&body);
            let _ = decode::<Response>(&body);
            let _ = decode::<Enrolled>(&body);
        }

        #[test]
        fn no_configuration_panics(config in "\\PC{0,200}", args in "\\PC{0,80}") {
            let _ = crate::spec::NetConf::parse(config.as_bytes());
            let _ = PodArgs::parse(&args);
        }
    }
}
