//! The installation's files: chart and plain files say the same, and everybody has the rights that they need and no more.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};
use weft_k8s::{Role, watched_kinds};

const GATEWAY_API: &str = "gateway.networking.k8s.io";

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").canonicalize().expect("manifests/")
}

/// Helm's engine and Kustomize, as their users' programs run them.
fn render(args: &[&str]) -> Result<String> {
    let tool =
        std::env::var("WEFT_TEST_RENDER").context("WEFT_TEST_RENDER: run this by ./dev test or ./dev e2e")?;
    let output = Command::new(&tool).args(args).output().with_context(|| tool)?;
    ensure!(output.status.success(), "render {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Objects of a text by `Kind namespace/name`.
fn objects(text: &str) -> Result<BTreeMap<String, Value>> {
    let (documents, errors) = weft_k8s::yaml::read(text);
    ensure!(errors.is_empty(), "{errors:?}");
    let mut found = BTreeMap::new();
    for object in documents.into_iter().map(|d| d.value).filter(Value::is_object) {
        let part =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = format!("{} {}/{}", part("/kind"), part("/metadata/namespace"), part("/metadata/name"));
        ensure!(found.insert(name.clone(), object).is_none(), "{name} is there twice");
    }
    Ok(found)
}

fn chart(settings: &[&str]) -> Result<BTreeMap<String, Value>> {
    let dir = manifests().join("helm/weft");
    let mut args = vec!["chart", dir.to_str().context("a path in UTF-8")?];
    args.extend(settings);
    let texts: BTreeMap<String, String> = serde_json::from_str(&render(&args)?)?;
    let texts: Vec<&str> =
        texts.iter().filter(|(name, _)| *name != "NOTES.txt").map(|(_, t)| t.as_str()).collect();
    objects(&texts.join("\n---\n"))
}

fn kustomize(dir: &str) -> Result<BTreeMap<String, Value>> {
    objects(&render(&["kustomize", manifests().join(dir).to_str().context("a path in UTF-8")?])?)
}

#[test]
fn the_plain_files_are_what_the_chart_makes() -> Result<()> {
    render(&["check", manifests().to_str().context("a path in UTF-8")?]).map(drop)
}

#[test]
fn chart_and_kustomization_install_the_same_objects() -> Result<()> {
    let check = |dir: &str, settings: &[&str]| -> Result<()> {
        let settings = [&["managedBy=weft", "namespace.create=true"], settings].concat();
        let (mut helm, plain) = (chart(&settings)?, kustomize(dir)?);
        helm.retain(|_, object| !is_hook(object)); // `kubectl` has none
        for object in helm.values_mut() {
            // What only Helm reads.
            if let Some(annotations) =
                object["metadata"].get_mut("annotations").and_then(Value::as_object_mut)
            {
                annotations.retain(|name, _| !name.starts_with("helm.sh/"));
                if annotations.is_empty() {
                    object["metadata"].as_object_mut().map(|m| m.remove("annotations"));
                }
            }
        }
        let names = |set: &BTreeMap<String, Value>| set.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(&helm), names(&plain), "{dir}");
        for (name, object) in &helm {
            assert_eq!(object, &plain[name], "{dir}: {name}");
        }
        Ok(())
    };
    check(".", &[])?;
    check("addons/jaeger", &["jaeger.enabled=true"])?;
    check("addons/node-taint", &["nodeTaint.remove=true"])?;
    check("addons/hostname-policy", &["hostnamePolicy.enabled=true"])
}

/// What Helm makes and deletes around an action, and never counts among a release's objects.
fn is_hook(object: &Value) -> bool {
    object["metadata"]["annotations"]["helm.sh/hook"].is_string()
}

#[test]
fn before_helm_deletes_anything_a_hook_takes_everybody_out_with_the_least_rights() -> Result<()> {
    let all = chart(&["uninstall.drainSeconds=45", "image.tag=v1"])?;
    let mut hooks: Vec<(i64, &str, &Value)> = Vec::new();
    for (name, object) in all.iter().filter(|(_, object)| is_hook(object)) {
        let notes = &object["metadata"]["annotations"];
        assert_eq!(notes["helm.sh/hook"], "pre-delete", "{name}");
        assert_eq!(notes["helm.sh/hook-delete-policy"], "before-hook-creation,hook-succeeded", "{name}");
        let weight = notes["helm.sh/hook-weight"].as_str().context("a weight is a text")?.parse()?;
        hooks.push((weight, object["kind"].as_str().context("kind")?, object));
    }
    // Each finds what it needs: accounts and roles, then bindings, then the Job.
    hooks.sort_by_key(|(weight, kind, _)| (*weight, *kind));
    let kinds: Vec<&str> = hooks.iter().map(|(_, kind, _)| *kind).collect();
    assert_eq!(kinds, ["ClusterRole", "Role", "ServiceAccount", "ClusterRoleBinding", "RoleBinding", "Job"]);
    let job = &all["Job weft-system/weft-uninstall"]["spec"];
    let pod = &job["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "weft-uninstall");
    assert_eq!(pod["restartPolicy"], "Never");
    let container = &pod["containers"][0];
    assert_eq!(
        container["image"],
        all["DaemonSet weft-system/weft-agent"]["spec"]["template"]["spec"]["containers"][1]["image"]
    );
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    // Its arguments are ones that this program takes.
    let args = container["args"].as_array().context("args")?.iter().filter_map(Value::as_str);
    let cli = <weft::cli::Cli as clap::Parser>::try_parse_from(std::iter::once("weft").chain(args))?;
    let weft::cli::Command::Uninstall(args) = cli.command else { bail!("{cli:?}") };
    ensure!(args.leave_only && args.drain.as_secs() == 45 && args.timeout.as_secs() == 180, "{args:?}");
    // Longer than every step of it together: it would be killed half-way.
    let steps = args.drain + args.timeout + weft::cluster::WITHDRAWAL + args.timeout;
    let deadline = job["activeDeadlineSeconds"].as_u64().context("a deadline")?;
    ensure!(deadline >= steps.as_secs() + 30, "{deadline} s for {} s of steps", steps.as_secs());

    let mut expected = BTreeSet::new();
    let mut add = |group: &str, resources: &[&str], verbs: &[&str], name: &str| {
        for resource in resources {
            expected.extend(verbs.iter().map(|verb| right(group, resource, verb, name)));
        }
    };
    let read = [
        "backendtlspolicies",
        "gatewayclasses",
        "gateways",
        "grpcroutes",
        "httproutes",
        "listenersets",
        "tcproutes",
        "tlsroutes",
        "udproutes",
    ];
    add(GATEWAY_API, &read, &["list"], "*");
    add("", &["serviceaccounts", "services"], &["delete", "list"], "*");
    add("discovery.k8s.io", &["endpointslices"], &["delete", "list"], "*");
    add("weft.dev", &["workloadslices"], &["delete", "list"], "*");
    add("", &["configmaps"], &["get", "patch"], "weft-config");
    add("", &["pods"], &["get", "list"], "*");
    add("", &["events", "nodes"], &["list"], "*"); // nodes without an agent, and why
    add("apps", &["daemonsets"], &["get"], "weft-agent");
    add("apps", &["deployments"], &["delete", "get"], "weft-controller");
    assert_eq!(granted(&all, "weft-uninstall"), expected);
    ensure!(!chart(&["uninstall.hook=false"])?.values().any(is_hook), "who wants none gets none");
    ensure!(!kustomize(".")?.values().any(is_hook), "kubectl would make the Job at once");
    Ok(())
}

#[test]
fn the_chart_renders_with_every_value_set_and_refuses_what_cannot_be() -> Result<()> {
    let all = chart(&[
        "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "imagePullSecrets[0].name=pull",
        "config.mtls=strict",
        "config.tracing.endpoint=http://otel.test:4317",
        "agent.nodeSelector.a=b",
        "agent.seLinuxOptions.type=spc_t",
        "agent.extraEnv[0].name=A",
        "controller.replicas=1",
        "controller.nodeSelector.a=b",
        "controller.extraEnv[0].name=A",
        "resourceQuota.create=true",
        "jaeger.enabled=true",
        "nodeTaint.remove=true",
        "hostnamePolicy.enabled=true",
        "hostnamePolicy.action=Warn",
    ])?;
    let config = all["ConfigMap weft-system/weft-config"]["data"]["config.yaml"].as_str().unwrap_or_default();
    ensure!(config.contains("http://otel.test:4317"), "a given endpoint wins over the add-on's: {config}");
    ensure!(
        !all.contains_key("Namespace /weft-system"),
        "Helm's user makes the namespace unless told otherwise"
    );
    for bad in
        ["config.mtls=maybe", "replicas=3", "agent.drainSeconds=long", "config.tracing.endpoint=otel:4317"]
    {
        ensure!(chart(&[bad]).is_err(), "{bad} was taken");
    }
    Ok(())
}

#[test]
fn every_object_has_the_recommended_labels_and_the_agents_pod_its_safeguards() -> Result<()> {
    let all = kustomize("addons/jaeger")?;
    for (name, object) in all.iter().filter(|(name, _)| !name.starts_with("CustomResourceDefinition")) {
        for label in ["name", "instance", "part-of", "version", "managed-by"] {
            let label = format!("app.kubernetes.io/{label}");
            ensure!(object["metadata"]["labels"][&label].is_string(), "{name}: no label {label}");
        }
    }
    let agent = &all["DaemonSet weft-system/weft-agent"]["spec"];
    assert_eq!(agent["updateStrategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}));
    let pod = &agent["template"]["spec"];
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    let containers = pod["containers"].as_array().context("containers")?;
    assert_eq!(containers[0]["name"], "holder");
    for container in containers {
        let security = &container["securityContext"];
        ensure!(security["privileged"] != true, "{container}");
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(security["readOnlyRootFilesystem"], true);
        // A hostPort would keep the pod that takes over from being on the same node.
        ensure!(container.get("ports").is_none(), "{container}");
        ensure!(container["resources"]["requests"]["memory"].is_string(), "{container}");
        // Above the sum of its budgets (docs/budgets.md). CPU is not limited: it would be taken from all workloads alike.
        let limits = &container["resources"]["limits"];
        ensure!(limits["memory"].is_string() && limits["cpu"].is_null(), "{container}");
    }
    assert_eq!(
        all["Namespace /weft-system"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"],
        "privileged"
    );
    Ok(())
}

/// What a probe asks over the network, anybody there can keep from being answered: 128 half-sent requests to the health port
/// once had the controller restarted.
#[test]
fn no_probe_asks_over_the_network_and_no_port_is_open_for_one() -> Result<()> {
    let all = kustomize(".")?;
    for (name, container) in [
        ("DaemonSet weft-system/weft-agent", "agent"),
        ("Deployment weft-system/weft-controller", "controller"),
    ] {
        let pod = &all[name]["spec"]["template"]["spec"];
        let containers = pod["containers"].as_array().context("containers")?;
        let container = containers.iter().find(|c| c["name"] == container).context("the container")?;
        let socket =
            container["env"].as_array().into_iter().flatten().find(|e| e["name"] == "WEFT_ADMIN_SOCKET");
        let socket = socket.and_then(|e| e["value"].as_str()).context("a socket")?;
        let mounted =
            |mount: &Value| mount["mountPath"].as_str().is_some_and(|path| socket.starts_with(path));
        ensure!(container["volumeMounts"].as_array().into_iter().flatten().any(mounted), "{name}: {socket}");
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let command = container[probe]["exec"]["command"].as_array();
            let command =
                command.with_context(|| format!("{name}: {probe} is no exec: {}", container[probe]))?;
            let cli =
                <weft::cli::Cli as clap::Parser>::try_parse_from(command.iter().filter_map(Value::as_str))?;
            let weft::cli::Command::Health(args) = cli.command else { bail!("{cli:?}") };
            assert_eq!(args.socket.to_str(), Some(socket), "{name}: {probe}");
        }
        let ports = container["ports"].as_array().into_iter().flatten().map(|p| &p["containerPort"]);
        assert!(ports.clone().all(|port| *port != 15021), "{name}");
        // A scraper that goes by annotations is told how.
        let notes = &all[name]["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(
            (&notes["prometheus.io/port"], &notes["prometheus.io/scheme"]),
            (&json!("15020"), &json!("https"))
        );
    }
    // The right that the pages' guard asks for.
    let reader = &all["ClusterRole /weft-metrics-reader"]["rules"];
    assert_eq!(*reader, json!([{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]));
    Ok(())
}

#[test]
fn the_gateway_apis_definitions_are_never_brought_along() -> Result<()> {
    for name in kustomize(".")?.keys().filter(|name| name.starts_with("CustomResourceDefinition")) {
        ensure!(name.ends_with(".weft.dev"), "{name}");
    }
    Ok(())
}

/// A right: group, resource, verb, and a name or `*`.
type Right = (String, String, String, String);

/// The rights of a role.
fn rights(role: &Value) -> BTreeSet<Right> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut found = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let names = match texts(&rule["resourceNames"]) {
            none if none.is_empty() => vec!["*".to_owned()],
            names => names,
        };
        for (group, resource) in texts(&rule["apiGroups"])
            .iter()
            .flat_map(|g| texts(&rule["resources"]).into_iter().map(move |r| (g.clone(), r)))
        {
            for verb in texts(&rule["verbs"]) {
                found
                    .extend(names.iter().map(|n| (group.clone(), resource.clone(), verb.clone(), n.clone())));
            }
        }
    }
    found
}

fn right(group: &str, resource: &str, verb: &str, name: &str) -> Right {
    (group.into(), resource.into(), verb.into(), name.into())
}

/// What a role watches.
fn watched(role: &Role) -> BTreeSet<Right> {
    let mut found = BTreeSet::new();
    for access in watched_kinds(role) {
        let names = if access.names.is_empty() { &["*"] } else { access.names };
        for (verb, name) in access.verbs.iter().flat_map(|v| names.iter().map(move |n| (v, n))) {
            found.insert(right(access.group, access.resource, verb, name));
        }
    }
    found
}

/// The rights of a service account: its ClusterRole's and, in weft-system, its Role's.
fn granted(all: &BTreeMap<String, Value>, name: &str) -> BTreeSet<Right> {
    let cluster = rights(&all[&format!("ClusterRole /{name}")]);
    let own = rights(&all[&format!("Role weft-system/{name}")]);
    cluster.union(&own).cloned().collect()
}

#[test]
fn an_agent_may_read_what_it_watches_and_nothing_else_and_no_secret() -> Result<()> {
    let all = kustomize(".")?;
    let granted = granted(&all, "weft-agent");
    let mut expected = watched(&Role::Agent { node: "n1".into() });
    // Who asks for its metrics, and whether that one may: questions that store nothing.
    let questions =
        [("authentication.k8s.io", "tokenreviews"), ("authorization.k8s.io", "subjectaccessreviews")];
    expected.extend(questions.map(|(group, resource)| right(group, resource, "create", "*")));
    assert_eq!(granted, expected);
    for (group, resource, verb, _) in &granted {
        ensure!(resource != "secrets" && resource != "*", "agents may not read Secrets");
        let asks = verb == "create" && questions.contains(&(group, resource));
        ensure!(asks || matches!(verb.as_str(), "list" | "watch"), "agents only read: {verb} {resource}");
    }
    // Nobody else's binding gives it more.
    for (name, binding) in all.iter().filter(|(name, _)| name.contains("Binding ")) {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let agent = subjects.filter(|s| s["name"] == "weft-agent").count();
        ensure!(agent == 0 || binding["roleRef"]["name"] == "weft-agent", "{name}");
    }
    Ok(())
}

#[test]
fn the_controller_may_watch_what_it_watches_and_write_what_it_writes_and_nothing_else() -> Result<()> {
    let mut expected = watched(&Role::Controller);
    // The two named ConfigMaps are among all of them, which it reads for Gateways and policies.
    expected.retain(|(_, resource, _, name)| resource != "configmaps" || name == "*");
    let mut add = |group: &str, resource: &str, verbs: &[&str], name: &str| {
        expected.extend(verbs.iter().map(|verb| right(group, resource, verb, name)));
    };
    for kind in [
        "backendtlspolicies",
        "gatewayclasses",
        "gateways",
        "grpcroutes",
        "httproutes",
        "listenersets",
        "tcproutes",
        "tlsroutes",
        "udproutes",
    ] {
        // What was changed by somebody else in between is read again before its status is written.
        add(GATEWAY_API, kind, &["get"], "*");
        add(GATEWAY_API, &format!("{kind}/status"), &["patch"], "*");
    }
    add(GATEWAY_API, "gateways/finalizers", &["update"], "*");
    let own = ["create", "delete", "get", "list", "patch"];
    add("", "services", &own, "*");
    add("", "serviceaccounts", &own, "*");
    add("discovery.k8s.io", "endpointslices", &own, "*");
    add("weft.dev", "workloadslices", &["create", "delete", "list", "patch"], "*");
    add("events.k8s.io", "events", &["create", "patch"], "*");
    add("authentication.k8s.io", "tokenreviews", &["create"], "*");
    add("authorization.k8s.io", "subjectaccessreviews", &["create"], "*");
    add("", "secrets", &["create"], "*");
    add("", "secrets", &["get", "patch", "update"], "weft-ca");
    add("", "configmaps", &["create"], "*");
    add("", "configmaps", &["get", "patch", "update"], "weft-ca-root");
    add("coordination.k8s.io", "leases", &["create"], "*");
    add("coordination.k8s.io", "leases", &["get", "patch", "update"], "weft-controller");
    let all = kustomize(".")?;
    assert_eq!(granted(&all, "weft-controller"), expected);
    // Cluster-wide it makes no Secret and no ConfigMap, and writes no object's spec but its own objects'.
    let cluster = rights(&all["ClusterRole /weft-controller"]);
    for (group, resource, verb, _) in &cluster {
        let write = !matches!(verb.as_str(), "get" | "list" | "watch");
        let own = [
            "services",
            "serviceaccounts",
            "endpointslices",
            "workloadslices",
            "events",
            "tokenreviews",
            "subjectaccessreviews",
            "gateways/finalizers",
        ];
        ensure!(
            !write || resource.ends_with("/status") || own.contains(&resource.as_str()),
            "{verb} {group}/{resource}"
        );
    }
    Ok(())
}

#[test]
fn people_may_do_what_their_role_says() -> Result<()> {
    let all = kustomize(".")?;
    let may = |role: &str, verb: &str, resource: &str| -> Result<bool> {
        let role = all.get(&format!("ClusterRole /{role}")).with_context(|| role.to_owned())?;
        Ok(rights(role).iter().any(|(_, r, v, _)| r == resource && v == verb))
    };
    let check = |role: &str, verb: &str, resource: &str, expected: bool| -> Result<()> {
        ensure!(may(role, verb, resource)? == expected, "{role} {verb} {resource}: expected {expected}");
        Ok(())
    };
    let (admin, developer, viewer) = ("weft-platform-admin", "weft-application-developer", "weft-viewer");
    for kind in ["gatewayclasses", "gateways", "httproutes", "referencegrants", "weftgatewayconfigs"] {
        check(admin, "create", kind, true)?;
        check(viewer, "list", kind, true)?;
        check(viewer, "create", kind, false)?;
    }
    for kind in ["httproutes", "grpcroutes", "tlsroutes", "tcproutes", "udproutes", "backendtlspolicies"] {
        check(developer, "patch", kind, true)?;
    }
    for kind in ["gatewayclasses", "gateways", "listenersets", "referencegrants"] {
        check(developer, "get", kind, true)?;
        check(developer, "patch", kind, false)?;
    }
    check("weft-namespace-admin", "create", "referencegrants", true)?;
    // `weft check` and `weft join` name policies that keep tunnels out; the namespaces' own roles have the right already.
    check(admin, "list", "networkpolicies", true)?;
    check(admin, "patch", "networkpolicies", false)?;
    for role in [admin, developer, viewer, "weft-namespace-admin"] {
        check(role, "get", "secrets", false)?;
    }
    let aggregated = |role: &str, to: &str| {
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{to}");
        all[&format!("ClusterRole /{role}")]["metadata"]["labels"][label] == "true"
    };
    ensure!(
        aggregated(developer, "edit")
            && aggregated(viewer, "view")
            && aggregated("weft-namespace-admin", "admin")
    );
    if ["view", "edit", "admin"].iter().any(|to| aggregated(admin, to)) {
        bail!("a platform admin's rights are given by a binding, never by aggregation");
    }
    Ok(())
}
