//! A stolen node: every row is one request with its kubelet's own certificate or its agent's own token. Nothing is written,
//! signed or told beyond that node; what is let through is written down too, because the mesh must not rest on it.

use crate::{
    Story,
    authority::{Ca, OK, PERMISSION_DENIED, Row as Certificate, pod_of},
};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::cluster::{Cluster, SYSTEM};

/// Whose credentials a request shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thief {
    /// The kubelet's client certificate.
    Kubelet,
    /// The token of the agent for the API server, as it is in its container.
    Agent,
}

use Thief::{Agent, Kubelet};

/// What the API server must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// By authorization or admission.
    Refused,
    /// Because an object cannot be changed so, whoever asks.
    Invalid,
    /// The node's own affair: whatever the mesh concludes from it may be a thief's word.
    Its,
}

use Expect::{Invalid, Its, Refused};

/// One request. Writes are tried with `dryRun`: authorization, admission and validation decide, nothing is stored.
struct Row {
    what: &'static str,
    thief: Thief,
    method: &'static str,
    path: String,
    body: Value,
    expected: Expect,
}

fn row(
    what: &'static str,
    thief: Thief,
    (method, path): (&'static str, impl Into<String>),
    body: Value,
    expected: Expect,
) -> Row {
    Row { what, thief, method, path: path.into(), body, expected }
}

/// The stolen node and another one, with a pod, and the agent, of each.
struct Scene<'a> {
    cluster: &'a Cluster,
    node: String,
    other: String,
    own_pod: String,
    other_pod: String,
    own_agent: String,
    other_agent: String,
    /// Accounts of `e2e-web` with a pod on the node, and on the other.
    accounts: [&'static str; 2],
    server: String,
    token: String,
    dir: TempDir,
}

pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    story.kept_lives_on()?; // its way leads by the kubelet
    let scene = Scene::new(story)?;
    crate::step("nothing beyond the node by the API server", || {
        let all = [
            scene.pods(),
            scene.mirrors(),
            scene.nodes(),
            scene.tokens(),
            scene.objects(),
            scene.settings(),
            scene.reads(),
        ];
        let mut wrong = Vec::new();
        for row in all.iter().flatten() {
            wrong.extend(scene.check(row).err().map(|e| format!("{e:#}")));
        }
        ensure!(wrong.is_empty(), "{} rows:\n{}", wrong.len(), wrong.join("\n"));
        Ok(())
    })?;
    crate::step("nothing beyond the node by the controller", || scene.certificates())
}

impl<'a> Scene<'a> {
    fn new(story: &'a Story<'_>) -> Result<Self> {
        let cluster = story.cluster;
        // The leader is asked by way of its node's kubelet, which must not be the one that is stopped.
        let leader = cluster.leader()?;
        let at = ["-n", SYSTEM, "get", "pod", &leader, "-o", "jsonpath={.spec.nodeName}"];
        let here = usize::from(cluster.kubectl(&at)? == story.nodes[0]);
        let there = 1 - here;
        let (node, other) = (story.nodes[here].clone(), story.nodes[there].clone());
        let mut agents = cluster.agents()?;
        let own_agent = agents.remove(&node).context("no agent")?;
        let server = cluster.kubectl(&[
            "config",
            "view",
            "--minify",
            "-o",
            "jsonpath={.clusters[0].cluster.server}",
        ])?;
        let path = "/var/run/secrets/kubernetes.io/serviceaccount/token";
        let pid = cluster.on_node(&node, &["pgrep", "-f", "^weft agent --node="])?;
        let pid = pid.lines().next().context("no agent runs")?.trim().to_owned();
        // The image has no `cat`; who has the node reads it like this as well.
        let token = cluster.on_node(&node, &["cat", &format!("/proc/{pid}/root{path}")])?.trim().to_owned();
        Ok(Self {
            own_pod: pod_of(cluster, "e2e-shop", ["version=cart-v1", "version=cart-v2"][here])?,
            other_pod: pod_of(cluster, "e2e-shop", ["version=cart-v1", "version=cart-v2"][there])?,
            accounts: [["client", "web"][here], ["client", "web"][there]],
            other_agent: agents.remove(&other).context("no agent")?,
            dir: tempfile::tempdir()?,
            cluster,
            node,
            other,
            own_agent,
            server,
            token,
        })
    }

    /// The API server's code and answer.
    fn ask(&self, thief: Thief, (method, path): (&str, &str), body: &Value) -> Result<(u16, String)> {
        let pki = |file: &str| {
            Ok::<_, anyhow::Error>(self.cluster.bed_file(&format!("pki/{file}"))?.display().to_string())
        };
        let (ca, cert, key) =
            (pki("ca.crt")?, pki(&format!("{}.crt", self.node))?, pki(&format!("{}.key", self.node))?);
        let url = format!("{}{path}", self.server);
        let bearer = format!("authorization: Bearer {}", self.token);
        let mut args =
            vec!["curl", "-sS", "--noproxy", "*", "--max-time", "20", "--cacert", &ca, "-X", method];
        match thief {
            Kubelet => args.extend(["--cert", &cert, "--key", &key]),
            Agent => args.extend(["-H", &bearer]),
        }
        let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
        let (kind, file) = (format!("content-type: application/{kind}"), self.dir.path().join("body"));
        let data = format!("@{}", file.display());
        if !body.is_null() {
            std::fs::write(&file, body.to_string())?;
            args.extend(["-H", &kind, "--data-binary", &data]);
        }
        args.extend(["-w", "\n%{http_code}", &url]);
        let said = self.cluster.run(&args)?;
        let (answer, code) = said.rsplit_once('\n').context("no code")?;
        Ok((code.parse()?, answer.to_owned()))
    }

    fn check(&self, row: &Row) -> Result<()> {
        let Row { what, thief, method, path, body, expected } = row;
        // TokenReviews and the like are answers, not objects: they know no dry run.
        let dry = *method != "GET" && !path.ends_with("reviews") && !path.ends_with("/token");
        let query = if dry { "?dryRun=All" } else { "" };
        let (code, answer) = self.ask(*thief, (method, &format!("{path}{query}")), body)?;
        let found = match code {
            200..=202 => Its,
            // "cannot delete" of mirror pods and the like are admission's.
            401 | 403 => Refused,
            409 | 422 => Invalid,
            _ => anyhow::bail!("{thief:?} {what}: {method} {path}: {code} {answer}"),
        };
        let why =
            answer.split("\"message\":").nth(1).unwrap_or_default().chars().take(300).collect::<String>();
        ensure!(
            found == *expected,
            "{thief:?} {what}: {method} {path}: expected {expected:?}, was {code}: {why}"
        );
        Ok(())
    }

    fn pod(&self, name: &str) -> String {
        format!("/api/v1/namespaces/e2e-shop/pods/{name}")
    }

    /// Pods of its own and of another node: their status, what their metadata says, their end.
    fn pods(&self) -> Vec<Row> {
        let (own, other) = (self.pod(&self.own_pod), self.pod(&self.other_pod));
        let status = |pod: &str| ("PATCH", format!("{pod}/status"));
        let ips = || json!({"status": {"podIP": "10.91.2.250", "podIPs": [{"ip": "10.91.2.250"}]}});
        let note = || json!({"metadata": {"annotations": {"weft.dev/exclude-inbound-ports": "8080"}}});
        let label = |key: &str| json!({"metadata": {"labels": {key: "disabled"}}});
        let eviction = |pod: &str| json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "e2e-shop"}});
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": self.other_pod, "namespace": "e2e-shop"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": self.node},
        });
        vec![
            row("podIPs of its own pod", Kubelet, status(&own), ips(), Its),
            row("podIPs of another's", Kubelet, status(&other), ips(), Refused),
            // Exclusions open a pod that is on the stolen node anyway.
            row("annotations of its own pod, by its status", Kubelet, status(&own), note(), Its),
            row("annotations of another's, by its status", Kubelet, status(&other), note(), Refused),
            row("annotations of its own pod", Kubelet, ("PATCH", &*own), note(), Refused),
            // Labels are what says who is in the mesh, and how.
            row(
                "the mesh label of its own pod, by its status",
                Kubelet,
                status(&own),
                label("weft.dev/mesh"),
                Refused,
            ),
            row(
                "the mTLS label of its own pod, by its status",
                Kubelet,
                status(&own),
                label("weft.dev/mtls"),
                Refused,
            ),
            row("the mesh label of its own pod", Kubelet, ("PATCH", &*own), label("weft.dev/mesh"), Refused),
            row("the mesh label of another's", Kubelet, status(&other), label("weft.dev/mesh"), Refused),
            row("deletion of its own pod", Kubelet, ("DELETE", &*own), Value::Null, Its),
            row("deletion of another's", Kubelet, ("DELETE", &*other), Value::Null, Refused),
            row(
                "eviction of another's",
                Kubelet,
                ("POST", format!("{other}/eviction")),
                eviction(&self.other_pod),
                Refused,
            ),
            row(
                "binding another's pod to itself",
                Kubelet,
                ("POST", format!("{other}/binding")),
                binding,
                Refused,
            ),
            row("podIPs of a pod", Agent, status(&own), ips(), Refused),
            row("annotations of a pod", Agent, ("PATCH", &*own), note(), Refused),
            row("deletion of a pod", Agent, ("DELETE", &*own), Value::Null, Refused),
            row(
                "eviction of a pod",
                Agent,
                ("POST", format!("{own}/eviction")),
                eviction(&self.own_pod),
                Refused,
            ),
            row("a program in a pod", Agent, ("POST", format!("{own}/exec")), json!({}), Refused),
        ]
    }

    /// A pod as a kubelet mirrors a static one, in a namespace of the mesh.
    fn mirror(&self) -> Result<Value> {
        let uid = self.cluster.kubectl(&["get", "node", &self.node, "-o", "jsonpath={.metadata.uid}"])?;
        let owner =
            json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": uid, "controller": true});
        Ok(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("forged-{}", self.node), "namespace": "e2e-shop", "ownerReferences": [owner],
                "labels": {"weft.dev/mesh": "enabled"},
                "annotations": {
                    "kubernetes.io/config.mirror": "0123", "kubernetes.io/config.hash": "0123", "kubernetes.io/config.source": "file",
                },
            },
            "spec": {
                "nodeName": self.node,
                "containers": [{"name": "c", "image": self.cluster.image, "imagePullPolicy": "IfNotPresent"}],
            },
        }))
    }

    /// Pods that a kubelet makes.
    fn mirrors(&self) -> Vec<Row> {
        let Ok(good) = self.mirror() else { return Vec::new() };
        let edit = |edit: &dyn Fn(&mut Value)| {
            let mut pod = good.clone();
            edit(&mut pod);
            pod
        };
        let at = || ("POST", "/api/v1/namespaces/e2e-shop/pods");
        let system = || ("POST", "/api/v1/namespaces/weft-system/pods");
        vec![
            row("a mirror pod in a namespace of the mesh", Kubelet, at(), good.clone(), Its),
            row(
                "one of an account",
                Kubelet,
                at(),
                edit(&|p| p["spec"]["serviceAccountName"] = "cart".into()),
                Refused,
            ),
            row(
                "one of the controller's account",
                Kubelet,
                system(),
                edit(&|p| {
                    p["metadata"]["namespace"] = SYSTEM.into();
                    p["spec"]["serviceAccountName"] = "weft-controller".into();
                }),
                Refused,
            ),
            row(
                "one with a Secret",
                Kubelet,
                system(),
                edit(&|p| {
                    p["metadata"]["namespace"] = SYSTEM.into();
                    p["spec"]["volumes"] = json!([{"name": "ca", "secret": {"secretName": "weft-ca"}}]);
                }),
                Refused,
            ),
            row(
                "one on another node",
                Kubelet,
                at(),
                edit(&|p| p["spec"]["nodeName"] = self.other.as_str().into()),
                Refused,
            ),
            row(
                "one without the annotation",
                Kubelet,
                at(),
                edit(&|p| {
                    p["metadata"]["annotations"] = json!({});
                }),
                Refused,
            ),
            row("a pod", Agent, at(), good.clone(), Refused),
        ]
    }

    /// Its own Node and another's.
    fn nodes(&self) -> Vec<Row> {
        let (own, other) = (format!("/api/v1/nodes/{}", self.node), format!("/api/v1/nodes/{}", self.other));
        let addresses = || json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.91.2.7"}]}});
        let ranges = || json!({"spec": {"podCIDR": "10.91.77.0/24", "podCIDRs": ["10.91.77.0/24"]}});
        let label = |key: &str| json!({"metadata": {"labels": {key: "yes"}}});
        vec![
            row("its node's addresses", Kubelet, ("PATCH", format!("{own}/status")), addresses(), Its),
            row(
                "another node's addresses",
                Kubelet,
                ("PATCH", format!("{other}/status")),
                addresses(),
                Refused,
            ),
            row("its node's podCIDRs", Kubelet, ("PATCH", &*own), ranges(), Invalid),
            row("another node's podCIDRs", Kubelet, ("PATCH", &*other), ranges(), Refused),
            // So a Gateway's nodeSelector keeps nobody out by a label that is not reserved.
            row("a label of its node", Kubelet, ("PATCH", &*own), label("example.com/edge"), Its),
            row(
                "a reserved label of its node",
                Kubelet,
                ("PATCH", &*own),
                label("node-restriction.kubernetes.io/edge"),
                Refused,
            ),
            row("a label of another node", Kubelet, ("PATCH", &*other), label("example.com/edge"), Refused),
            row("its node's taints", Kubelet, ("PATCH", &*own), json!({"spec": {"taints": []}}), Its),
            row(
                "a new taint of its node",
                Kubelet,
                ("PATCH", &*own),
                json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
                Refused,
            ),
            row("deletion of another node", Kubelet, ("DELETE", &*other), Value::Null, Refused),
            row("its node's addresses", Agent, ("PATCH", format!("{own}/status")), addresses(), Refused),
            row("a label of its node", Agent, ("PATCH", &*own), label("example.com/edge"), Refused),
        ]
    }

    /// Tokens of service accounts.
    fn tokens(&self) -> Vec<Row> {
        let at = |namespace: &str, account: &str| {
            ("POST", format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"))
        };
        let of = |audience: &str, pod: Option<&str>| {
            let uid = |pod: &str| self.uid_of(pod);
            let bound =
                pod.map(|pod| json!({"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid(pod)}));
            json!({"spec": {"audiences": [audience], "expirationSeconds": 600, "boundObjectRef": bound}})
        };
        let ours = "weft-controller";
        vec![
            row(
                "a token of its own agent",
                Kubelet,
                at(SYSTEM, "weft-agent"),
                of(ours, Some(&self.own_agent)),
                Its,
            ),
            row(
                "a token of another node's agent",
                Kubelet,
                at(SYSTEM, "weft-agent"),
                of(ours, Some(&self.other_agent)),
                Refused,
            ),
            row("a token of no agent", Kubelet, at(SYSTEM, "weft-agent"), of(ours, None), Refused),
            row(
                "a token of another node's pod",
                Kubelet,
                at("e2e-shop", "cart"),
                of(ours, Some(&self.other_pod)),
                Refused,
            ),
            row(
                "a token of its own agent for somebody else",
                Kubelet,
                at(SYSTEM, "weft-agent"),
                of("elsewhere", Some(&self.own_agent)),
                Refused,
            ),
            row(
                "a token of its own pod for the controller",
                Kubelet,
                at("e2e-shop", "cart"),
                of(ours, Some(&self.own_pod)),
                Refused,
            ),
            row("a token", Agent, at(SYSTEM, "weft-agent"), of(ours, Some(&self.own_agent)), Refused),
            row("a token of the controller", Agent, at(SYSTEM, "weft-controller"), of(ours, None), Refused),
        ]
    }

    /// Objects that the mesh reads: nobody of a node writes them.
    fn objects(&self) -> Vec<Row> {
        let label = || json!({"metadata": {"labels": {"forged": "yes"}}});
        let mut rows = Vec::new();
        for thief in [Kubelet, Agent] {
            let mut add = |what, at: (&'static str, &str), body, expected| {
                rows.push(row(what, thief, at, body, expected))
            };
            let mut slice = named("discovery.k8s.io/v1", "EndpointSlice", "e2e-shop");
            (slice["addressType"], slice["endpoints"]) = ("IPv4".into(), json!([]));
            let mut service = named("v1", "Service", "e2e-shop");
            service["spec"] = json!({"ports": [{"port": 80}]});
            let mut workloads = named("weft.dev/v1alpha1", "WorkloadSlice", "e2e-shop");
            workloads["workloads"] = json!([]);
            add("a Service", ("POST", "/api/v1/namespaces/e2e-shop/services"), service, Refused);
            add(
                "another Service's labels",
                ("PATCH", "/api/v1/namespaces/e2e-shop/services/cart"),
                label(),
                Refused,
            );
            add(
                "an EndpointSlice",
                ("POST", "/apis/discovery.k8s.io/v1/namespaces/e2e-shop/endpointslices"),
                slice,
                Refused,
            );
            add(
                "a WorkloadSlice",
                ("POST", "/apis/weft.dev/v1alpha1/namespaces/e2e-shop/workloadslices"),
                workloads,
                Refused,
            );
            add(
                "the mesh's WorkloadSlice",
                ("PATCH", "/apis/weft.dev/v1alpha1/namespaces/e2e-shop/workloadslices/weft-0"),
                label(),
                Refused,
            );
            add(
                "deletion of it",
                ("DELETE", "/apis/weft.dev/v1alpha1/namespaces/e2e-shop/workloadslices/weft-0"),
                Value::Null,
                Refused,
            );
        }
        rows
    }

    /// What Weft and its users keep there, and Leases.
    fn settings(&self) -> Vec<Row> {
        let label = || json!({"metadata": {"labels": {"forged": "yes"}}});
        let mut rows = Vec::new();
        for thief in [Kubelet, Agent] {
            let mut add = |what, at: (&'static str, &str), body, expected| {
                rows.push(row(what, thief, at, body, expected))
            };
            let secret = named("v1", "Secret", SYSTEM);
            let gateway = "/apis/gateway.networking.k8s.io/v1/namespaces/e2e-shop";
            add(
                "the controller's Lease",
                ("PATCH", "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases/weft-controller"),
                json!({"spec": {"holderIdentity": "me"}}),
                Refused,
            );
            add("a Secret of Weft's", ("POST", "/api/v1/namespaces/weft-system/secrets"), secret, Refused);
            add("the CA", ("PATCH", "/api/v1/namespaces/weft-system/secrets/weft-ca"), label(), Refused);
            add(
                "the roots",
                ("PATCH", "/api/v1/namespaces/weft-system/configmaps/weft-ca-root"),
                label(),
                Refused,
            );
            add(
                "the settings",
                ("PATCH", "/api/v1/namespaces/weft-system/configmaps/weft-config"),
                label(),
                Refused,
            );
            add(
                "the mesh label of a namespace",
                ("PATCH", "/api/v1/namespaces/e2e-shop"),
                json!({"metadata": {"labels": {"weft.dev/mesh": "disabled"}}}),
                Refused,
            );
            add(
                "a route's status",
                ("PATCH", &format!("{gateway}/httproutes/x/status")),
                json!({"status": {}}),
                Refused,
            );
            add(
                "a Gateway",
                ("POST", &format!("{gateway}/gateways")),
                named("gateway.networking.k8s.io/v1", "Gateway", "e2e-shop"),
                Refused,
            );
            let own = thief == Kubelet;
            let lease =
                format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", self.node);
            add("its node's Lease", ("PATCH", &lease), label(), if own { Its } else { Refused });
            let lease =
                format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", self.other);
            add("another node's Lease", ("PATCH", &lease), label(), Refused);
        }
        rows
    }

    /// What can be read, and asked.
    fn reads(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut add = |what, thief, path: &str, expected| {
            rows.push(row(what, thief, ("GET", path), Value::Null, expected))
        };
        for thief in [Kubelet, Agent] {
            add("the CA", thief, "/api/v1/namespaces/weft-system/secrets/weft-ca", Refused);
            add("all Secrets", thief, "/api/v1/secrets", Refused);
            add("Secrets of a namespace", thief, "/api/v1/namespaces/e2e-web/secrets", Refused);
            add("all ConfigMaps", thief, "/api/v1/configmaps", Refused);
            add("all Services", thief, "/api/v1/services", Its);
            add("all nodes", thief, "/api/v1/nodes", if thief == Agent { Its } else { Refused });
        }
        // RBAC cannot scope these by node: SECURITY.md lists them.
        for (what, path) in [
            ("all pods", "/api/v1/pods"),
            ("all namespaces", "/api/v1/namespaces"),
            ("all EndpointSlices", "/apis/discovery.k8s.io/v1/endpointslices"),
            ("all WorkloadSlices", "/apis/weft.dev/v1alpha1/workloadslices"),
            ("all HTTPRoutes", "/apis/gateway.networking.k8s.io/v1/httproutes"),
        ] {
            add(what, Agent, path, Its);
        }
        add("one pod", Agent, &self.pod(&self.own_pod), Refused);
        add("a pod's logs", Agent, &format!("{}/log", self.pod(&self.own_pod)), Refused);
        let review =
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}});
        rows.push(row(
            "whose a token is",
            Agent,
            ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"),
            review,
            Its,
        ));
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": "x", "nonResourceAttributes": {"path": "/metrics", "verb": "get"}},
        });
        rows.push(row(
            "what somebody may",
            Agent,
            ("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews"),
            review,
            Its,
        ));
        rows
    }

    fn uid_of(&self, pod: &str) -> String {
        let namespace = if pod.starts_with("weft-") { SYSTEM } else { "e2e-shop" };
        self.cluster
            .kubectl(&["-n", namespace, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}"])
            .unwrap_or_default()
    }

    /// The token that the kubelet can have of its agent gives certificates of its own pods, and of none that it has invented.
    fn certificates(&self) -> Result<()> {
        let path = "/api/v1/namespaces/weft-system/serviceaccounts/weft-agent/token";
        let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": self.own_agent, "uid": self.uid_of(&self.own_agent)});
        let wish = json!({"spec": {"audiences": ["weft-controller"], "expirationSeconds": 600, "boundObjectRef": bound}});
        let (code, answer) = self.ask(Kubelet, ("POST", path), &wish)?;
        ensure!(code == 201, "{code}: {answer}");
        let answer: Value = serde_json::from_str(&answer)?;
        let token = answer["status"]["token"].as_str().context("no token")?;
        // A kubelet takes away mirror pods of which it has no static one; a thief's would not.
        self.cluster.ctl(&["stop", "kubelet", &self.node])?;
        let made = self.forged(token);
        self.cluster.ctl(&["start", "kubelet", &self.node])?;
        let _ = self.cluster.kubectl(&[
            "-n",
            "e2e-shop",
            "delete",
            "pod",
            &format!("forged-{}", self.node),
            "--force",
            "--ignore-not-found",
        ]);
        made
    }

    fn forged(&self, token: &str) -> Result<()> {
        let pods = "/api/v1/namespaces/e2e-shop/pods";
        let (code, answer) = self.ask(Kubelet, ("POST", pods), &self.mirror()?)?;
        ensure!(code == 201, "a mirror pod is its kubelet's to make: {code} {answer}");
        let forged = self.pod(&format!("forged-{}", self.node));
        // It stays what it is: without this annotation it would be a pod of the namespace's first account.
        let plain = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": null}}});
        let (code, answer) = self.ask(Kubelet, ("PATCH", &format!("{forged}/status")), &plain)?;
        ensure!(code == 422 || code == 403, "its annotation is gone: {code} {answer}");
        let ready = json!({"status": {"phase": "Running", "podIP": "10.91.1.250", "podIPs": [{"ip": "10.91.1.250"}]}});
        let (code, answer) = self.ask(Kubelet, ("PATCH", &format!("{forged}/status")), &ready)?;
        ensure!(code == 200, "{code} {answer}");
        // The controller has heard of it when its slice has, which tells that it is in no mesh.
        self.cluster.wait("the forged pod's entry in a slice", || {
            let slices = self.cluster.json(&["-n", "e2e-shop", "get", "workloadslices"])?;
            let mut all = slices["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|s| s["workloads"].as_array())
                .flatten();
            let entry = all.find(|w| w["name"] == format!("forged-{}", self.node)).context("not yet")?;
            ensure!(entry["enrolled"] != true, "it is in the mesh: {entry}");
            Ok(())
        })?;
        let ca = Ca::reach(self.cluster)?;
        let row = |what, identity, code| Certificate { what, token, identity, code, reason: "" };
        for row in [
            row("a pod of its own", ("e2e-shop", "cart"), OK),
            row("another of its own", ("e2e-web", self.accounts[0]), OK),
            row("a mirror pod's account", ("e2e-shop", "default"), PERMISSION_DENIED),
            row("another node's pod", ("e2e-web", self.accounts[1]), PERMISSION_DENIED),
            row("a pod that never was", ("e2e-shop", "ghost"), PERMISSION_DENIED),
            row("the agent's own", (SYSTEM, "weft-agent"), PERMISSION_DENIED),
            row("the node's network", ("kube-system", "kube-proxy"), PERMISSION_DENIED),
        ] {
            ca.expect(&row)?;
        }
        Ok(())
    }
}

fn named(api: &str, kind: &str, namespace: &str) -> Value {
    json!({"apiVersion": api, "kind": kind, "metadata": {"name": "forged", "namespace": namespace}})
}
