//! The messages between agent and controller, `weft.control.v1`: prost derives written by hand, so that no protoc is
//! needed to build. Rules of change: a tag is never used twice, an unknown field or message is ignored, and a change
//! that old peers cannot live with raises [`PROTOCOL`].
//!
//! Private keys pass through [`KeyPair`] only, which wipes itself and prints nothing. (The buffers of HTTP/2 and TLS
//! that a message passes through are not ours to wipe.)

use std::fmt;

use zeroize::Zeroize;

/// What this build speaks; said in [`Hello`] and [`Welcome`].
pub(crate) const PROTOCOL: u32 = 1;
/// `Agents/Connect`: one bidirectional stream per agent.
pub(crate) const CONNECT: &str = "/weft.control.v1.Agents/Connect";

/// From agent to controller.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Up {
    /// None: a kind of message that we do not know.
    #[prost(oneof = "UpBody", tags = "1, 2, 3, 4, 5")]
    pub(crate) body: Option<UpBody>,
}

/// What an [`Up`] is.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum UpBody {
    /// First, once.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// Watermarks.
    #[prost(message, tag = "2")]
    Applied(Applied),
    /// Own-node pods whose capture stands.
    #[prost(message, tag = "3")]
    Captured(Captured),
    /// I live.
    #[prost(message, tag = "4")]
    Heartbeat(Heartbeat),
    /// Budgets that the node's workloads have reached.
    #[prost(message, tag = "5")]
    Reached(Reached),
}

/// Who connects.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hello {
    /// [`PROTOCOL`] of the agent.
    #[prost(uint32, tag = "1")]
    pub(crate) protocol: u32,
    /// Node name; must be the token's.
    #[prost(string, tag = "2")]
    pub(crate) node: String,
    /// Version of the agent's build.
    #[prost(string, tag = "3")]
    pub(crate) version: String,
    /// Tells two agents of one node apart, as during an upgrade.
    #[prost(string, tag = "4")]
    pub(crate) instance: String,
}

/// Nothing to say.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Heartbeat {}

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Key {
    /// Namespace.
    #[prost(string, tag = "1")]
    pub(crate) namespace: String,
    /// Name.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
}

/// Which generations of which Gateways the agent serves: everything, or what changed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Applied {
    /// Forget what was said before.
    #[prost(bool, tag = "1")]
    pub(crate) full: bool,
    /// More of the same change follows: do not act on it yet.
    #[prost(bool, tag = "2")]
    pub(crate) more: bool,
    /// New or changed.
    #[prost(message, repeated, tag = "3")]
    pub(crate) gateways: Vec<GatewayApplied>,
    /// No longer served.
    #[prost(message, repeated, tag = "4")]
    pub(crate) removed: Vec<Key>,
}

/// One Gateway as an agent serves it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GatewayApplied {
    /// The Gateway.
    #[prost(message, optional, tag = "1")]
    pub(crate) gateway: Option<Key>,
    /// Its generation.
    #[prost(int64, tag = "2")]
    pub(crate) generation: i64,
    /// Its ListenerSets.
    #[prost(message, repeated, tag = "3")]
    pub(crate) sets: Vec<SetApplied>,
    /// `placement_hash` of what is bound.
    #[prost(fixed64, tag = "4")]
    pub(crate) placement: u64,
    /// Ports that could not be bound.
    #[prost(message, repeated, tag = "5")]
    pub(crate) unbound: Vec<Unbound>,
    /// Addresses that cannot be used at all.
    #[prost(message, repeated, tag = "6")]
    pub(crate) unusable: Vec<Unusable>,
    /// Its UID.
    #[prost(string, tag = "7")]
    pub(crate) uid: String,
}

/// A ListenerSet's generation.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SetApplied {
    /// The ListenerSet.
    #[prost(message, optional, tag = "1")]
    pub(crate) set: Option<Key>,
    /// Its generation.
    #[prost(int64, tag = "2")]
    pub(crate) generation: i64,
}

/// A port that could not be bound.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Unbound {
    /// The listener's port.
    #[prost(uint32, tag = "1")]
    pub(crate) port: u32,
    /// UDP instead of TCP.
    #[prost(bool, tag = "2")]
    pub(crate) udp: bool,
    /// Why.
    #[prost(string, tag = "3")]
    pub(crate) reason: String,
}

/// An address that cannot be used.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Unusable {
    /// The address.
    #[prost(string, tag = "1")]
    pub(crate) address: String,
    /// Why.
    #[prost(string, tag = "2")]
    pub(crate) reason: String,
}

/// Pods of the agent's node whose capture stands: everything, or what changed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Captured {
    /// As in [`Applied`].
    #[prost(bool, tag = "1")]
    pub(crate) full: bool,
    /// As in [`Applied`].
    #[prost(bool, tag = "2")]
    pub(crate) more: bool,
    /// New or changed.
    #[prost(message, repeated, tag = "3")]
    pub(crate) pods: Vec<CapturedPod>,
    /// No longer captured.
    #[prost(message, repeated, tag = "4")]
    pub(crate) removed: Vec<Key>,
}

/// One captured pod.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CapturedPod {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub(crate) pod: Option<Key>,
    /// Its UID.
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    /// Tunnels may come to the application's own ports. None: to 15008 only, as every agent says that does not know of this.
    #[prost(message, optional, tag = "3")]
    pub(crate) application: Option<ApplicationPorts>,
    /// Its addresses as they were read inside its network namespace. None: not said.
    #[prost(string, repeated, tag = "4")]
    pub(crate) addresses: Vec<String>,
}

/// The ports of a pod that tunnels may come to: all but some.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ApplicationPorts {
    /// Not captured, in ascending order.
    #[prost(uint32, repeated, tag = "1")]
    pub(crate) except: Vec<u32>,
}

/// The budgets that workloads of the agent's node have reached lately: all of them, each time.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Reached {
    /// In no order.
    #[prost(message, repeated, tag = "1")]
    pub(crate) budgets: Vec<BudgetReached>,
}

/// One of them.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BudgetReached {
    /// The pod, or the Gateway.
    #[prost(message, optional, tag = "1")]
    pub(crate) workload: Option<Key>,
    /// It is a Gateway.
    #[prost(bool, tag = "2")]
    pub(crate) gateway: bool,
    /// The name of a row of `weft_core::budget`.
    #[prost(string, tag = "3")]
    pub(crate) budget: String,
    /// How often, since the agent's start.
    #[prost(uint64, tag = "4")]
    pub(crate) times: u64,
}

/// From controller to agent.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Down {
    /// None: a kind of message that we do not know.
    #[prost(oneof = "DownBody", tags = "1, 2, 3")]
    pub(crate) body: Option<DownBody>,
}

/// What a [`Down`] is.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum DownBody {
    /// First, once.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// Key pairs and CA bundles.
    #[prost(message, tag = "2")]
    Material(Material),
    /// Who leads now.
    #[prost(message, tag = "3")]
    Leader(Leader),
}

/// The controller's side of [`Hello`].
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Welcome {
    /// [`PROTOCOL`] of the controller.
    #[prost(uint32, tag = "1")]
    pub(crate) protocol: u32,
    /// Version of the controller's build.
    #[prost(string, tag = "2")]
    pub(crate) version: String,
}

/// The leader has changed: connect anew.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Leader {
    /// Who leads, if known.
    #[prost(string, tag = "1")]
    pub(crate) holder: String,
}

/// Secrets and ConfigMaps that the agent's Gateways and policies need: everything, or what changed.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Material {
    /// As in [`Applied`].
    #[prost(bool, tag = "1")]
    pub(crate) full: bool,
    /// As in [`Applied`].
    #[prost(bool, tag = "2")]
    pub(crate) more: bool,
    /// Counts changes on this stream, for logs.
    #[prost(uint64, tag = "3")]
    pub(crate) version: u64,
    /// New or changed.
    #[prost(message, repeated, tag = "4")]
    pub(crate) objects: Vec<MaterialObject>,
    /// No longer needed: forget them.
    #[prost(message, repeated, tag = "5")]
    pub(crate) removed: Vec<MaterialKey>,
}

/// Names one object of [`Material`].
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MaterialKey {
    /// A ConfigMap instead of a Secret.
    #[prost(bool, tag = "1")]
    pub(crate) config_map: bool,
    /// Namespace and name.
    #[prost(message, optional, tag = "2")]
    pub(crate) key: Option<Key>,
}

/// One Secret or ConfigMap, as far as it is needed: no labels, no annotations (kubectl keeps a copy of a whole Secret
/// in one).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MaterialObject {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub(crate) id: Option<MaterialKey>,
    /// `metadata.uid`.
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    /// `metadata.generation`.
    #[prost(int64, tag = "3")]
    pub(crate) generation: i64,
    /// `metadata.creationTimestamp`, Unix seconds.
    #[prost(int64, tag = "4")]
    pub(crate) created: i64,
    /// What it holds; none: nothing that we use.
    #[prost(oneof = "Content", tags = "5, 6, 7")]
    pub(crate) content: Option<Content>,
    /// A ConfigMap's `config.yaml`, read as a `WeftGatewayConfig`; none: it has none.
    #[prost(message, optional, tag = "8")]
    pub(crate) parameters: Option<Parameters>,
    /// Why what the object holds now cannot be used, when `content` is of before.
    #[prost(string, optional, tag = "9")]
    pub(crate) broken: Option<String>,
}

/// `WeftGatewayConfig` as written: what is absent is left to the layer below.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Parameters {
    /// What is wrong with it; then nothing else is said.
    #[prost(string, optional, tag = "1")]
    pub(crate) invalid: Option<String>,
    /// `addressMode`, as written.
    #[prost(string, optional, tag = "2")]
    pub(crate) mode: Option<String>,
    /// `addressPool`: first and last address of each range, one after the other.
    #[prost(message, optional, tag = "3")]
    pub(crate) pool: Option<Texts>,
    /// `externalTrafficPolicy` is Cluster; false: Local.
    #[prost(bool, optional, tag = "4")]
    pub(crate) any_node: Option<bool>,
    /// `loadBalancerClass`.
    #[prost(string, optional, tag = "5")]
    pub(crate) load_balancer_class: Option<String>,
    /// `sourceRanges`, CIDR.
    #[prost(message, optional, tag = "6")]
    pub(crate) source_ranges: Option<Texts>,
    /// `nodeSelector`: label and value, one after the other.
    #[prost(message, optional, tag = "7")]
    pub(crate) node_selector: Option<Texts>,
    /// `paths`: the actions for repeated and escaped slashes, backslashes and parameters, in this order.
    #[prost(message, optional, tag = "8")]
    pub(crate) paths: Option<Texts>,
    /// `streamIdleTimeout`, milliseconds.
    #[prost(uint64, optional, tag = "9")]
    pub(crate) stream_idle_ms: Option<u64>,
    /// `udpSessionTimeout`, milliseconds.
    #[prost(uint64, optional, tag = "10")]
    pub(crate) udp_session_ms: Option<u64>,
    /// `clients`.
    #[prost(message, optional, tag = "11")]
    pub(crate) clients: Option<Clients>,
}

/// `clients` of a `WeftGatewayConfig`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Clients {
    /// `proxyProtocol`, as written.
    #[prost(string, tag = "1")]
    pub(crate) proxy_protocol: String,
    /// `trustedProxies`, CIDR.
    #[prost(string, repeated, tag = "2")]
    pub(crate) trusted: Vec<String>,
    /// `traceContext` is Trust.
    #[prost(bool, tag = "3")]
    pub(crate) trust_trace: bool,
}

/// A list that may be absent.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Texts {
    /// Its entries.
    #[prost(string, repeated, tag = "1")]
    pub(crate) texts: Vec<String>,
}

/// What a [`MaterialObject`] holds.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Content {
    /// A certificate with its key.
    #[prost(message, tag = "5")]
    Tls(KeyPair),
    /// CA certificates.
    #[prost(message, tag = "6")]
    Ca(Certificates),
    /// Cannot be used, and why.
    #[prost(string, tag = "7")]
    Invalid(String),
}

/// CA certificates.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Certificates {
    /// DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) der: Vec<Vec<u8>>,
}

/// A certificate with its private key; the key is wiped on drop and not printed.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct KeyPair {
    /// DER, leaf first.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) chain: Vec<Vec<u8>>,
    /// DER of PKCS#8, PKCS#1 or SEC1.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) key: Vec<u8>,
    /// DNS names and IPs of the leaf, for messages.
    #[prost(string, repeated, tag = "3")]
    pub(crate) names: Vec<String>,
    /// When the leaf may be used, in Unix seconds; 0 where it is not told.
    #[prost(int64, tag = "4")]
    pub(crate) not_before: i64,
    #[prost(int64, tag = "5")]
    pub(crate) not_after: i64,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Drop for KeyPair {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}
