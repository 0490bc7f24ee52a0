//! Who may do what, as the cluster's own authorizer says: `kubectl auth can-i --as …`, for all questions at once.

use crate::Story;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weft_tests::cluster::{Cluster, SYSTEM};

const GATEWAY_API: &str = "gateway.networking.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
const ROUTES: [&str; 6] =
    ["httproutes", "grpcroutes", "tlsroutes", "tcproutes", "udproutes", "backendtlspolicies"];

const AGENT: &str = "system:serviceaccount:weft-system:weft-agent";
const CONTROLLER: &str = "system:serviceaccount:weft-system:weft-controller";
/// Groups that the test binds to roles, all but the first in `e2e-shop` alone.
const PLATFORM: &str = "e2e:platform";
const DEVELOPERS: &str = "e2e:developers";
const LEADS: &str = "e2e:leads";
const VIEWERS: &str = "e2e:viewers";
const BINDING: &str = "e2e-platform";

/// One question.
#[derive(Clone, Copy, Debug)]
struct Ask<'a> {
    /// A service account, or a group.
    who: &'a str,
    verb: &'a str,
    group: &'a str,
    /// `resource` or `resource/subresource`.
    resource: &'a str,
    /// Empty: in all of them, or the kind has none.
    namespace: &'a str,
    /// Empty: any.
    name: &'a str,
    may: bool,
}

/// Every answer is as it should be, and the API server acts on it.
pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    bind(cluster)?;
    let mut table = agents();
    table.extend(controller());
    table.extend(people());
    // Aggregated roles are put together by a controller, which takes its time.
    let checked = cluster.wait("the rights of everybody", || check(cluster, &table));
    let really = checked.and_then(|()| {
        println!("{} rights are as they should be", table.len());
        refused(cluster, AGENT, &["get", "secrets", "-A"])?;
        refused(cluster, AGENT, &["-n", SYSTEM, "get", "secret", "weft-ca"])?;
        refused(cluster, CONTROLLER, &["-n", "e2e-shop", "delete", "httproute", "cart", "--dry-run=server"])
    });
    cluster.kubectl(&["delete", "clusterrolebinding", BINDING])?;
    really
}

fn bind(cluster: &Cluster) -> Result<()> {
    let subject = |group: &str| json!([{"kind": "Group", "apiGroup": RBAC, "name": group}]);
    let binding = |kind: &str, metadata: Value, role: &str, group: &str| {
        let role = json!({"kind": "ClusterRole", "apiGroup": RBAC, "name": role});
        let version = format!("{RBAC}/v1");
        json!({"apiVersion": version, "kind": kind, "metadata": metadata, "roleRef": role, "subjects": subject(group)})
    };
    let mut all =
        vec![binding("ClusterRoleBinding", json!({"name": BINDING}), "weft-platform-admin", PLATFORM)];
    // The cluster's own roles, which Weft's are aggregated to.
    for (role, group) in [("edit", DEVELOPERS), ("admin", LEADS), ("view", VIEWERS)] {
        let metadata = json!({"namespace": "e2e-shop", "name": role});
        all.push(binding("RoleBinding", metadata, role, group));
    }
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string())
}

/// Rows for every verb and resource.
fn rows<'a>(
    who: &'a str,
    verbs: &[&'a str],
    (group, resources): (&'a str, &[&'a str]),
    namespace: &'a str,
    may: bool,
) -> Vec<Ask<'a>> {
    let one =
        |verb: &&'a str, resource: &&'a str| Ask { who, verb, group, resource, namespace, name: "", may };
    resources.iter().flat_map(|resource| verbs.iter().map(move |verb| one(verb, resource))).collect()
}

fn agents() -> Vec<Ask<'static>> {
    let mut all = Vec::new();
    for namespace in ["", "default", "kube-system", SYSTEM, "e2e-shop"] {
        all.extend(rows(AGENT, &READ, ("", &["secrets"]), namespace, false));
        all.extend(rows(
            AGENT,
            &WRITE,
            ("", &["secrets", "configmaps", "pods", "services"]),
            namespace,
            false,
        ));
        all.extend(rows(AGENT, &["create"], ("", &["pods/exec", "serviceaccounts/token"]), namespace, false));
    }
    all.push(Ask {
        who: AGENT,
        verb: "get",
        group: "",
        resource: "secrets",
        namespace: SYSTEM,
        name: "weft-ca",
        may: false,
    });
    let watch = ["list", "watch"];
    all.extend(rows(AGENT, &watch, ("", &["pods", "services", "namespaces", "nodes"]), "", true));
    all.extend(rows(AGENT, &watch, (GATEWAY_API, &ROUTES), "", true));
    all.extend(rows(AGENT, &watch, ("weft.dev", &["workloadslices", "weftgatewayconfigs"]), "", true));
    all.extend(rows(AGENT, &WRITE, (GATEWAY_API, &ROUTES), "", false));
    all.extend(rows(AGENT, &WRITE, (GATEWAY_API, &["httproutes/status", "gateways/status"]), "", false));
    all.extend(rows(AGENT, &WRITE, ("weft.dev", &["workloadslices"]), "", false));
    all.extend(rows(AGENT, &["patch", "update"], ("", &["nodes", "nodes/status"]), "", false));
    // Who asks for its metrics, and whether that one may.
    all.extend(rows(AGENT, &["create"], ("authentication.k8s.io", &["tokenreviews"]), "", true));
    all.extend(rows(AGENT, &["create"], ("authorization.k8s.io", &["subjectaccessreviews"]), "", true));
    all
}

fn controller() -> Vec<Ask<'static>> {
    let named = |verb, resource, name, may| Ask {
        who: CONTROLLER,
        verb,
        group: "",
        resource,
        namespace: SYSTEM,
        name,
        may,
    };
    let mut all = vec![
        named("get", "secrets", "weft-ca", true),
        named("patch", "secrets", "weft-ca", true),
        named("get", "secrets", "another", false),
        named("delete", "secrets", "weft-ca", false),
    ];
    // Gateways refer to Secrets of any namespace; it reads them by its watch alone and writes none.
    all.extend(rows(CONTROLLER, &["list", "watch"], ("", &["secrets", "configmaps"]), "", true));
    all.extend(rows(CONTROLLER, &["get"], ("", &["secrets"]), "e2e-shop", false));
    all.extend(rows(CONTROLLER, &WRITE, ("", &["secrets", "configmaps", "pods"]), "e2e-shop", false));
    all.extend(rows(CONTROLLER, &["create"], ("", &["pods/exec", "serviceaccounts/token"]), "", false));
    all.extend(rows(
        CONTROLLER,
        &["patch"],
        (GATEWAY_API, &["httproutes/status", "gateways/status"]),
        "",
        true,
    ));
    all.extend(rows(CONTROLLER, &WRITE, (GATEWAY_API, &ROUTES), "", false));
    all.extend(rows(CONTROLLER, &WRITE, (GATEWAY_API, &["gateways", "gatewayclasses"]), "", false));
    all.extend(rows(CONTROLLER, &["patch", "update", "delete"], ("", &["namespaces", "nodes"]), "", false));
    all.extend(rows(
        CONTROLLER,
        &["create", "patch", "bind", "escalate"],
        (RBAC, &["clusterroles"]),
        "",
        false,
    ));
    all.extend(rows(CONTROLLER, &["impersonate"], ("", &["users", "groups", "serviceaccounts"]), "", false));
    all.extend(rows(CONTROLLER, &["create"], ("authentication.k8s.io", &["tokenreviews"]), "", true));
    all.extend(rows(CONTROLLER, &["create"], ("authorization.k8s.io", &["subjectaccessreviews"]), "", true));
    all
}

fn people() -> Vec<Ask<'static>> {
    let mut all = Vec::new();
    let platform = ["gatewayclasses", "gateways", "listenersets", "referencegrants"];
    all.extend(rows(PLATFORM, &WRITE, (GATEWAY_API, &platform), "", true));
    all.extend(rows(PLATFORM, &WRITE, (GATEWAY_API, &ROUTES), "", true));
    all.extend(rows(PLATFORM, &["patch"], ("", &["namespaces"]), "", true));
    // Policies that keep tunnels out are named to them by `weft check` and `weft join`.
    all.extend(rows(PLATFORM, &READ, ("networking.k8s.io", &["networkpolicies"]), "", true));
    all.extend(rows(PLATFORM, &WRITE, ("networking.k8s.io", &["networkpolicies"]), "", false));
    all.extend(rows(PLATFORM, &READ, ("", &["secrets"]), "", false));
    all.extend(rows(PLATFORM, &WRITE, ("weft.dev", &["workloadslices"]), "", false));
    all.extend(rows(PLATFORM, &["create", "patch", "delete"], ("apps", &["daemonsets"]), SYSTEM, false));
    for group in [DEVELOPERS, LEADS] {
        all.extend(rows(group, &WRITE, (GATEWAY_API, &ROUTES), "e2e-shop", true));
        all.extend(rows(group, &WRITE, (GATEWAY_API, &ROUTES), "e2e-web", false));
        all.extend(rows(group, &["create", "patch"], (GATEWAY_API, &["gateways"]), "e2e-shop", false));
        all.extend(rows(group, &READ, (GATEWAY_API, &platform[1..]), "e2e-shop", true));
        all.extend(rows(group, &["patch"], (GATEWAY_API, &["httproutes/status"]), "e2e-shop", false));
        // Labels of a namespace say who is in the mesh, and how strictly.
        all.extend(rows(group, &["patch"], ("", &["namespaces"]), "e2e-shop", false));
    }
    // What opens a namespace to others is for its admins.
    all.extend(rows(
        DEVELOPERS,
        &["create", "patch"],
        (GATEWAY_API, &["referencegrants"]),
        "e2e-shop",
        false,
    ));
    all.extend(rows(LEADS, &["create", "patch"], (GATEWAY_API, &["referencegrants"]), "e2e-shop", true));
    all.extend(rows(VIEWERS, &READ, (GATEWAY_API, &ROUTES), "e2e-shop", true));
    all.extend(rows(VIEWERS, &READ, ("weft.dev", &["workloadslices"]), "e2e-shop", true));
    all.extend(rows(VIEWERS, &WRITE, (GATEWAY_API, &ROUTES), "e2e-shop", false));
    all.extend(rows(VIEWERS, &READ, ("", &["secrets"]), "e2e-shop", false));
    all
}

/// A review is what `kubectl auth can-i --as` asks for; in one list, because there are hundreds.
fn check(cluster: &Cluster, table: &[Ask<'_>]) -> Result<()> {
    let reviews: Vec<Value> = table.iter().map(review).collect();
    let answers = cluster.create(&reviews)?;
    ensure!(answers.len() == table.len(), "{} answers to {} questions", answers.len(), table.len());
    let wrong: Vec<String> = table
        .iter()
        .zip(&answers)
        .filter(|(ask, answer)| answer["status"]["allowed"] != ask.may)
        .map(|(ask, answer)| format!("{ask:?}: {}", answer["status"]))
        .collect();
    ensure!(wrong.is_empty(), "{} of {} are wrong:\n{}", wrong.len(), table.len(), wrong.join("\n"));
    Ok(())
}

fn review(ask: &Ask<'_>) -> Value {
    let (resource, subresource) = ask.resource.split_once('/').unwrap_or((ask.resource, ""));
    let (user, groups) = match ask.who.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'))
    {
        Some((namespace, _)) => {
            let own = format!("system:serviceaccounts:{namespace}");
            (ask.who, json!(["system:authenticated", "system:serviceaccounts", own]))
        }
        None => ("somebody", json!(["system:authenticated", ask.who])),
    };
    json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "groups": groups, "resourceAttributes": {
            "verb": ask.verb, "group": ask.group, "resource": resource, "subresource": subresource,
            "namespace": ask.namespace, "name": ask.name}},
    })
}

/// The API server refuses a request in somebody's name.
fn refused(cluster: &Cluster, who: &str, args: &[&str]) -> Result<()> {
    match cluster.kubectl(&[&["--as", who][..], args].concat()) {
        Ok(said) => bail!("{who} may {args:?}: {said}"),
        Err(error) => {
            let said = format!("{error:#}");
            said.contains("Forbidden").then_some(()).with_context(|| said)
        }
    }
}
