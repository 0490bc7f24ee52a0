//! How the watches stand, for `/readyz`, `weft status` and metrics.

use super::kinds::{MINIMUM_BUNDLE, MINIMUM_KUBERNETES, Watched};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};
use weft_core::model::{Kind, Str};

/// How the watches stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatchState {
    /// The API server's version, such as `v1.36.0`; none before it has answered.
    pub kubernetes: Option<Str>,
    /// Bundles of the Gateway API CRDs: one, none (not installed, or not known yet), or several (mixed: a mistake).
    pub bundles: BTreeSet<Bundle>,
    /// Why the served kinds could not be asked for the last time.
    pub discovery: Option<Fault>,
    /// By kind.
    pub kinds: BTreeMap<Watched, KindState>,
    /// The first World is out.
    pub ready: bool,
}

/// A release of the Gateway API CRDs, from their annotations.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bundle {
    /// `gateway.networking.k8s.io/bundle-version`, such as `v1.6.1`.
    pub version: Str,
    /// `gateway.networking.k8s.io/channel`: `standard` or `experimental`.
    pub channel: Str,
}

/// How the watch of one kind stands.
#[derive(Clone, Debug, PartialEq)]
pub struct KindState {
    /// The version that is watched; none while the cluster does not serve the kind, or this is not known yet.
    pub version: Option<&'static str>,
    /// All objects are in, and changes arrive. The last state stays in effect while this is false.
    pub synced: bool,
    /// Objects in effect.
    pub objects: usize,
    /// What is wrong with the watch now.
    pub error: Option<Fault>,
    /// When `version`, `synced` or `error` changed last.
    pub since: SystemTime,
    /// How often everything was listed: 1 at first, more after a gap that the server could not fill.
    pub lists: u64,
    /// How often list or watch failed.
    pub failures: u64,
}

/// What is wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub reason: Str,
    /// What to do; may be empty.
    pub remedy: Str,
}

impl Default for KindState {
    fn default() -> Self {
        Self {
            version: None,
            synced: false,
            objects: 0,
            error: None,
            since: SystemTime::UNIX_EPOCH,
            lists: 0,
            failures: 0,
        }
    }
}

impl WatchState {
    /// Every fault, and what is below the stated minimum: what `weft status` prints and readiness explains.
    #[must_use]
    pub fn findings(&self) -> Vec<(Str, Fault)> {
        let mut out: Vec<(Str, Fault)> = Vec::new();
        out.extend(self.discovery.iter().map(|f| ("API discovery".into(), f.clone())));
        out.extend(self.kubernetes.as_deref().and_then(old_kubernetes));
        out.extend(self.bundles.iter().filter_map(old_bundle));
        if self.bundles.len() > 1 {
            let all: Vec<String> =
                self.bundles.iter().map(|b| format!("{} {}", b.version, b.channel)).collect();
            let reason = format!("CRDs of several releases are mixed: {}", all.join(", "));
            out.push(("Gateway API".into(), fault(&reason, "apply all CRDs of one release")));
        }
        for (kind, state) in &self.kinds {
            out.extend(state.error.iter().map(|f| (kind.as_str().into(), f.clone())));
            if state.version.is_none() && self.kubernetes.is_some() && needed(*kind) {
                let remedy = if kind.group() == weft_core::model::GATEWAY_GROUP {
                    "install the Gateway API CRDs; they are picked up when they appear"
                } else {
                    "install Weft's CRDs (weft install); they are picked up when they appear"
                };
                out.push((kind.as_str().into(), fault("the cluster does not serve this kind", remedy)));
            }
        }
        out
    }
}

/// In the standard channel since the minimum bundle, or ours: its absence is no choice.
const fn needed(kind: Watched) -> bool {
    matches!(
        kind,
        Watched::Model(
            Kind::GatewayClass | Kind::Gateway | Kind::HttpRoute | Kind::GrpcRoute | Kind::ReferenceGrant
        ) | Watched::WorkloadSlice
            | Watched::GatewayConfig
    )
}

fn old_kubernetes(version: &str) -> Option<(Str, Fault)> {
    let (major, minor, _) = numbers(version)?;
    ((major, minor) < MINIMUM_KUBERNETES).then(|| {
        let reason = format!(
            "{version} is older than {}.{}, the oldest that Weft runs on",
            MINIMUM_KUBERNETES.0, MINIMUM_KUBERNETES.1
        );
        ("Kubernetes".into(), fault(&reason, "upgrade the cluster"))
    })
}

fn old_bundle(bundle: &Bundle) -> Option<(Str, Fault)> {
    let version = numbers(&bundle.version)?;
    (version < MINIMUM_BUNDLE).then(|| {
        let (major, minor, patch) = MINIMUM_BUNDLE;
        let reason = format!(
            "CRDs are {}, older than v{major}.{minor}.{patch}, the oldest that Weft reads",
            bundle.version
        );
        ("Gateway API".into(), fault(&reason, "apply the CRDs of a newer release"))
    })
}

/// `v1.36.0-rc.1+k3s1` as numbers.
pub(super) fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let core = version.strip_prefix('v').unwrap_or(version).split(['-', '+']).next()?;
    let mut parts = core.split('.').map(|p| p.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next().flatten().unwrap_or(0)))
}

pub(super) fn fault(reason: &str, remedy: &str) -> Fault {
    Fault { reason: reason.into(), remedy: remedy.into() }
}
