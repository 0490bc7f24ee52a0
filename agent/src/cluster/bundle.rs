//! What is installed: the plain manifests of `manifests/`, embedded, with the given settings put in.

use super::{
    api::{list, text},
    args::Addon,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use weft_core::spelling::closest;

/// In the order in which they are applied: what others refer to comes first.
const CRDS: [&str; 2] = [
    include_str!("../../../manifests/crds/weft.dev_workloadslices.yaml"),
    include_str!("../../../manifests/crds/weft.dev_weftgatewayconfigs.yaml"),
];
const BASE: [&str; 8] = [
    include_str!("../../../manifests/base/namespace.yaml"),
    include_str!("../../../manifests/base/agent-rbac.yaml"),
    include_str!("../../../manifests/base/controller-rbac.yaml"),
    include_str!("../../../manifests/base/personas.yaml"),
    include_str!("../../../manifests/base/config.yaml"),
    include_str!("../../../manifests/base/controller.yaml"),
    include_str!("../../../manifests/base/agent.yaml"),
    include_str!("../../../manifests/base/gatewayclass.yaml"),
];
const HOSTNAME_POLICY: &str = include_str!("../../../manifests/addons/hostname-policy/policy.yaml");
const NODE_TAINT: &str = include_str!("../../../manifests/addons/node-taint/rbac.yaml");
const JAEGER: &str = include_str!("../../../manifests/addons/jaeger/jaeger.yaml");
const JAEGER_ENDPOINT: &str = "http://jaeger.weft-system.svc.cluster.local:4317";

/// The taint that the add-on `node-taint` takes away.
pub(super) const TAINT: &str = "weft.dev/agent-not-ready";
/// Restarts pods when the configuration that they read at their start is another one.
const CHECKSUM: &str = "weft.dev/config-checksum";

/// Kinds that we speak of: plural, and whether they are in a namespace.
const KINDS: [(&str, &str, bool); 18] = [
    ("ClusterRole", "clusterroles", false),
    ("ClusterRoleBinding", "clusterrolebindings", false),
    ("ConfigMap", "configmaps", true),
    ("CustomResourceDefinition", "customresourcedefinitions", false),
    ("DaemonSet", "daemonsets", true),
    ("Deployment", "deployments", true),
    ("EndpointSlice", "endpointslices", true),
    ("GatewayClass", "gatewayclasses", false),
    ("Lease", "leases", true),
    ("Namespace", "namespaces", false),
    ("PodDisruptionBudget", "poddisruptionbudgets", true),
    ("Role", "roles", true),
    ("RoleBinding", "rolebindings", true),
    ("Secret", "secrets", true),
    ("Service", "services", true),
    ("ServiceAccount", "serviceaccounts", true),
    ("ValidatingAdmissionPolicy", "validatingadmissionpolicies", false),
    ("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings", false),
];

/// Settings by key, as they were given; kept in the cluster for the next installation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Settings {
    /// `agent and controller`'s image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<String>,
    /// `--set`.
    pub(super) values: BTreeMap<String, String>,
    /// `--addon`.
    pub(super) addons: BTreeSet<String>,
}

/// The keys besides `config.…`.
const KEYS: [&str; 7] = [
    "controller.replicas",
    "controller.logFilter",
    "agent.cniConfDir",
    "agent.cniBinDir",
    "agent.drainSeconds",
    "agent.logFilter",
    "jaeger.image",
];

impl Settings {
    /// Reads the arguments.
    ///
    /// # Errors
    /// A sentence with the remedy, for a key that there is not or a value that cannot be.
    pub(super) fn read(image: Option<&str>, settings: &[String], addons: &[Addon]) -> Result<Self, String> {
        let mut values = BTreeMap::new();
        for setting in settings {
            let (key, value) =
                setting.split_once('=').ok_or_else(|| format!("--set {setting}: a setting is KEY=VALUE"))?;
            values.insert(key.to_owned(), value.to_owned());
        }
        let addons = addons.iter().map(|addon| addon_name(*addon).to_owned()).collect();
        let settings = Self { image: image.map(str::to_owned), values, addons };
        settings.review()?;
        Ok(settings)
    }

    /// Whether every setting is one that there is, with a value that it may have. An agent would go on without a wrong one:
    /// here somebody is there to correct it.
    ///
    /// # Errors
    /// A sentence that names the setting, with the nearest that there is.
    pub(super) fn review(&self) -> Result<(), String> {
        for (key, value) in self.values.iter().filter(|(key, _)| !key.starts_with("config.")) {
            review_one(key, value)?;
        }
        let (_, problems) = weft_k8s::read_settings(&yaml(&self.config()));
        let Some(problem) = problems.first() else { return Ok(()) };
        let remedy = match &*problem.remedy {
            "" => nearest(&problem.path).map(|meant| format!("; did you mean config.{meant}?")),
            remedy => Some(format!("; {remedy}")),
        };
        Err(format!("--set config.{}: {}{}", problem.path, problem.reason, remedy.unwrap_or_default()))
    }

    /// These settings over older ones.
    pub(super) fn over(mut self, older: Self) -> Self {
        self.image = self.image.or(older.image);
        self.addons.extend(older.addons);
        for (key, value) in older.values {
            self.values.entry(key).or_insert(value);
        }
        self
    }

    fn has(&self, addon: Addon) -> bool {
        self.addons.contains(addon_name(addon))
    }

    /// The AgentConfig document.
    pub(super) fn config(&self) -> Value {
        let mut config =
            json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AgentConfig", "metadata": {"name": "weft"}});
        if self.has(Addon::Jaeger) {
            config["tracing"]["endpoint"] = JAEGER_ENDPOINT.into();
        }
        for (key, value) in &self.values {
            let Some(path) = key.strip_prefix("config.") else { continue };
            let mut at = &mut config;
            for part in path.split('.') {
                if !at.is_object() {
                    *at = json!({}); // `config.a=1` and `config.a.b=2`: the longer path wins
                }
                at = &mut at[part];
            }
            *at = scalar(value);
        }
        config
    }
}

/// The setting of the AgentConfig that is most likely meant, wherever it stands.
fn nearest(path: &str) -> Option<String> {
    const SCHEMA: &str = include_str!("../../../manifests/helm/weft/values.schema.json");
    let schema: Value = serde_json::from_str(SCHEMA).ok()?;
    let mut paths = Vec::new();
    let mut open = vec![(String::new(), schema.pointer("/properties/config/properties"))];
    while let Some((prefix, fields)) = open.pop() {
        for (name, field) in fields.and_then(Value::as_object).into_iter().flatten() {
            open.push((format!("{prefix}{name}."), field.get("properties")));
            paths.push(format!("{prefix}{name}"));
        }
    }
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let names: Vec<String> = paths.iter().map(|path| last(path)).collect();
    let meant = closest(&last(path), names.iter().map(String::as_str))?;
    paths.into_iter().find(|path| last(path) == meant)
}

/// A setting that is not of the AgentConfig.
fn review_one(key: &str, value: &str) -> Result<(), String> {
    if !KEYS.contains(&key) {
        let likely = closest(key, KEYS).map(|k| format!("did you mean {k}? "));
        return Err(format!(
            "--set {key}: no such setting; {}there are config.* and {}. The Helm chart has more",
            likely.unwrap_or_default(),
            KEYS.join(", ")
        ));
    }
    // As the chart's schema has them.
    let number = |range: std::ops::RangeInclusive<u32>| match value.parse::<u32>() {
        Err(_) => Err(format!("--set {key}: `{value}` is no number")),
        Ok(n) if !range.contains(&n) => {
            Err(format!("--set {key}: {n} is out of range; from {} to {}", range.start(), range.end()))
        }
        Ok(_) => Ok(()),
    };
    match key {
        "controller.replicas" => number(1..=9),
        "agent.drainSeconds" => number(0..=86_400),
        "agent.cniConfDir" | "agent.cniBinDir" if !value.starts_with('/') || value.contains(':') => {
            Err(format!("--set {key}: `{value}` is no absolute path"))
        }
        _ if value.trim().is_empty() => Err(format!("--set {key}: nothing is set")),
        _ => Ok(()),
    }
}

fn addon_name(addon: Addon) -> &'static str {
    match addon {
        Addon::Jaeger => "jaeger",
        Addon::HostnamePolicy => "hostname-policy",
        Addon::NodeTaint => "node-taint",
    }
}

/// Numbers and booleans as such, anything else as text.
fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => value,
        _ => text.into(),
    }
}

/// All objects, in the order of application. `kept` is a configuration that somebody else wrote and that stays.
pub(super) fn objects(settings: &Settings, kept: Option<&str>) -> Vec<Value> {
    let mut texts: Vec<&str> = CRDS.into_iter().chain(BASE).collect();
    if settings.has(Addon::NodeTaint) {
        texts.push(NODE_TAINT);
    }
    if settings.has(Addon::HostnamePolicy) {
        texts.push(HOSTNAME_POLICY);
    }
    if settings.has(Addon::Jaeger) {
        texts.push(JAEGER);
    }
    let mut objects: Vec<Value> = texts.into_iter().flat_map(read).collect();
    let config = match kept {
        Some(text) => text.to_owned(),
        None => yaml(&settings.config()),
    };
    for object in &mut objects {
        adjust(object, settings, &config);
    }
    objects
}

/// YAML documents as JSON.
fn read(text: &str) -> Vec<Value> {
    let (documents, errors) = weft_k8s::yaml::read(text);
    debug_assert!(errors.is_empty(), "an embedded manifest does not parse: {errors:?}");
    documents.into_iter().map(|document| document.value).filter(Value::is_object).collect()
}

/// A value as a YAML document.
pub(super) fn yaml(value: &Value) -> String {
    // A JSON value always has a YAML form; JSON itself is one, should the writer ever disagree.
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}

fn adjust(object: &mut Value, settings: &Settings, config: &str) {
    let name = text(object, "/metadata/name").to_owned();
    let kind = text(object, "/kind").to_owned();
    if kind == "ConfigMap" && name == "weft-config" {
        object["data"]["config.yaml"] = config.into();
        let saved = serde_json::to_string(settings).unwrap_or_default();
        object["metadata"]["annotations"][SETTINGS] = saved.into();
    }
    if !matches!(kind.as_str(), "DaemonSet" | "Deployment") {
        return;
    }
    let value = |key: &str| settings.values.get(key).cloned();
    if name == "jaeger" {
        if let Some(image) = value("jaeger.image") {
            object["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
        }
        return;
    }
    // Other than the chart's sum, which a change of the tool may change: it costs a restart, not more.
    object["spec"]["template"]["metadata"]["annotations"][CHECKSUM] = format!("{:016x}", fnv(config)).into();
    if let Some(Value::Array(containers)) = object.pointer_mut("/spec/template/spec/containers") {
        for container in containers.iter_mut() {
            if let Some(image) = &settings.image {
                container["image"] = image.clone().into();
            }
        }
    }
    if kind == "DaemonSet" { agent(object, &value) } else { controller(object, settings, &value) }
}

fn agent(object: &mut Value, value: &impl Fn(&str) -> Option<String>) {
    let pod = &mut object["spec"]["template"]["spec"];
    if let Some(seconds) = value("agent.drainSeconds") {
        let grace = seconds.parse::<u32>().unwrap_or_default().saturating_add(30);
        pod["terminationGracePeriodSeconds"] = grace.into();
        set_env(pod, "WEFT_DRAIN_SECONDS", &seconds);
    }
    if let Some(filter) = value("agent.logFilter") {
        set_env(pod, "WEFT_LOG", &filter);
    }
    for (key, volume) in [("agent.cniConfDir", "cni-conf"), ("agent.cniBinDir", "cni-bin")] {
        let Some(path) = value(key) else { continue };
        if let Some(Value::Array(volumes)) = pod.get_mut("volumes") {
            for found in volumes.iter_mut().filter(|v| text(v, "/name") == volume) {
                found["hostPath"]["path"] = path.clone().into();
            }
        }
    }
}

fn controller(object: &mut Value, settings: &Settings, value: &impl Fn(&str) -> Option<String>) {
    if let Some(replicas) = value("controller.replicas").and_then(|n| n.parse::<u32>().ok()) {
        object["spec"]["replicas"] = replicas.into();
    }
    let pod = &mut object["spec"]["template"]["spec"];
    if let Some(filter) = value("controller.logFilter") {
        set_env(pod, "WEFT_LOG", &filter);
    }
    if settings.has(Addon::NodeTaint) {
        set_env(pod, "WEFT_REMOVE_NODE_TAINT", TAINT);
    }
}

/// Sets a variable of the process: the pod's last container, after the holder.
fn set_env(pod: &mut Value, name: &str, value: &str) {
    let Some(Value::Array(containers)) = pod.get_mut("containers") else { return };
    let Some(Value::Array(env)) = containers.last_mut().and_then(|c| c.get_mut("env")) else { return };
    match env.iter_mut().find(|v| text(v, "/name") == name) {
        Some(found) => found["value"] = value.into(),
        None => env.push(json!({"name": name, "value": value})),
    }
}

/// The annotation of weft-config that remembers the settings.
pub(super) const SETTINGS: &str = "weft.dev/install-settings";

/// FNV-1a: the same in every build, and nobody's secret hangs on it.
fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Where an object of a kind that we know is in the API.
pub(super) fn path(object: &Value) -> Option<String> {
    let (_, plural, namespaced) = KINDS.into_iter().find(|(kind, ..)| *kind == text(object, "/kind"))?;
    let version = text(object, "/apiVersion");
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let name = text(object, "/metadata/name");
    Some(if namespaced {
        format!("{root}/{version}/namespaces/{}/{plural}/{name}", text(object, "/metadata/namespace"))
    } else {
        format!("{root}/{version}/{plural}/{name}")
    })
}

/// `Kind namespace/name`.
pub(super) fn title(object: &Value) -> String {
    format!("{} {}", text(object, "/kind"), super::api::key(object))
}

/// The image that pods of a workload run.
pub(super) fn image(workload: &Value) -> &str {
    list(workload, "/spec/template/spec/containers").last().map_or("", |c| text(c, "/image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(objects: &'a [Value], title_: &str) -> &'a Value {
        objects.iter().find(|o| title(o) == title_).unwrap_or_else(|| panic!("no {title_}"))
    }

    #[test]
    fn every_object_has_a_path_and_only_ours_are_installed() {
        let settings =
            Settings::read(None, &[], &[Addon::Jaeger, Addon::NodeTaint, Addon::HostnamePolicy]).unwrap();
        let objects = objects(&settings, None);
        assert!(objects.len() >= 24, "{}", objects.len());
        for object in &objects {
            let path = path(object).unwrap_or_else(|| panic!("{}: add its kind to KINDS", title(object)));
            assert!(!path.contains("//") && !path.ends_with('/'), "{path}");
            assert!(!path.contains("gateway.networking.k8s.io/v1/namespaces"));
            let crd = text(object, "/kind") == "CustomResourceDefinition";
            assert!(!crd || text(object, "/metadata/name").ends_with(".weft.dev"), "{path}");
        }
        let position = |wanted: &str| objects.iter().position(|o| title(o) == wanted).unwrap();
        assert!(position("Namespace weft-system") < position("ServiceAccount weft-system/weft-agent"));
        assert!(position("ConfigMap weft-system/weft-config") < position("DaemonSet weft-system/weft-agent"));
        assert!(
            position("Deployment weft-system/weft-controller") < position("DaemonSet weft-system/weft-agent")
        );
    }

    #[test]
    fn settings_reach_their_fields() {
        let check = |given: &[&str], title: &str, pointer: &str, expected: Value| {
            let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
            let settings = Settings::read(Some("r.test/weft:1"), &given, &[]).unwrap();
            let objects = objects(&settings, None);
            assert_eq!(find(&objects, title).pointer(pointer), Some(&expected), "{given:?}: {pointer}");
        };
        let (agent, controller) =
            ("DaemonSet weft-system/weft-agent", "Deployment weft-system/weft-controller");
        check(&[], agent, "/spec/template/spec/containers/0/image", json!("r.test/weft:1"));
        check(&[], agent, "/spec/template/spec/containers/1/image", json!("r.test/weft:1"));
        check(&[], controller, "/spec/template/spec/containers/0/image", json!("r.test/weft:1"));
        check(&["controller.replicas=1"], controller, "/spec/replicas", json!(1));
        check(
            &["agent.drainSeconds=10"],
            agent,
            "/spec/template/spec/terminationGracePeriodSeconds",
            json!(40),
        );
        let settings = Settings::read(None, &["agent.cniConfDir=/k3s/net.d".into()], &[]).unwrap();
        let objects = objects(&settings, None);
        let volumes = list(find(&objects, agent), "/spec/template/spec/volumes");
        assert!(volumes.iter().any(|v| text(v, "/hostPath/path") == "/k3s/net.d"), "{volumes:?}");
    }

    #[test]
    fn the_configuration_is_made_of_settings_and_restarts_its_readers() {
        let make = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|s| (*s).to_owned()).collect();
            objects(&Settings::read(None, &given, &[]).unwrap(), None)
        };
        let (plain, strict) = (make(&[]), make(&["config.mtls=strict", "config.tracing.samplingRatio=0.5"]));
        let config = text(find(&strict, "ConfigMap weft-system/weft-config"), "/data/config.yaml");
        let (documents, errors) = weft_k8s::yaml::read(config);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(documents[0].value["mtls"], "strict");
        assert_eq!(documents[0].value["tracing"]["samplingRatio"], 0.5);
        let sum = |objects: &[Value]| {
            let agent = find(objects, "DaemonSet weft-system/weft-agent");
            agent["spec"]["template"]["metadata"]["annotations"][CHECKSUM].clone()
        };
        assert_ne!(sum(&plain), sum(&strict));
        assert_eq!(sum(&strict), sum(&make(&["config.tracing.samplingRatio=0.5", "config.mtls=strict"])));
    }

    #[test]
    fn the_embedded_configuration_is_one_that_agents_read() {
        let given = ["config.trustDomain=example.test", "config.limits.connections=10"].map(String::from);
        let settings = Settings::read(None, &given, &[Addon::Jaeger]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.yaml"), yaml(&settings.config())).unwrap();
        let world = weft_k8s::FileProvider::new(dir.path()).load();
        assert!(world.problems.is_empty(), "{:?}", world.problems);
        assert_eq!(world.agent.tracing.endpoint.as_deref(), Some(JAEGER_ENDPOINT));
        assert_eq!(&*world.agent.trust_domain, "example.test");
        assert_eq!(world.agent.limits.connections, 10);
    }

    #[test]
    fn a_setting_that_cannot_be_is_refused_with_what_can() {
        let check = |given: &str, says: &str| {
            let error = Settings::read(None, &[given.into()], &[]).unwrap_err();
            assert!(error.contains(says), "{given}: {error}");
        };
        check("replicas=3", "controller.replicas");
        check("config.mtls", "KEY=VALUE");
        check("controller.replicas=many", "no number");
        check("controller.replicas=0", "out of range; from 1 to 9");
        check("controller.replica=2", "did you mean controller.replicas?");
        check("agent.cniBinDir=opt/cni", "no absolute path");
        // E3: each of these was taken, and the mesh was permissive, or sampled everything.
        check("config.mtls=STRICT", "config.mtls: \"STRICT\" is no mode and counts as strict; write strict");
        check("config.mtls=Strict", "write strict");
        check("config.mtls=on", "write permissive or strict");
        check("config.mtls=true", "config.mtls: expected text");
        check("config.mTLS=strict", "did you mean \"mtls\"?");
        check("config.samplingRato=0.5", "did you mean config.tracing.samplingRatio?");
        check("config.tracing.samplingRato=0.5", "did you mean \"samplingRatio\"?");
        check("config.tracing.samplingRatio=7", "7 is out of range; it must be from 0 to 1");
        check("config.limits.connections=many", "expected a whole number");
        check("config.limits.connections=0", "out of range");
        check("config.trustDomain=A B", "no trust domain");
        check("config.=1", "unknown field");
        for good in [
            "config.mtls=strict",
            "config.mtls=permissive",
            "config.tracing.samplingRatio=0.5",
            "agent.logFilter=debug",
        ] {
            assert_eq!(Settings::read(None, &[good.into()], &[]).map(|_| ()), Ok(()), "{good}");
        }
    }

    #[test]
    fn the_last_installations_settings_are_kept_unless_given_anew() {
        let old = Settings::read(
            Some("a:1"),
            &["config.mtls=strict".into(), "controller.replicas=3".into()],
            &[Addon::Jaeger],
        );
        let new = Settings::read(None, &["controller.replicas=1".into()], &[]).unwrap();
        let both = new.over(old.unwrap());
        assert_eq!(both.image.as_deref(), Some("a:1"));
        assert_eq!(both.values["controller.replicas"], "1");
        assert_eq!(both.values["config.mtls"], "strict");
        assert!(both.has(Addon::Jaeger));
    }
}
