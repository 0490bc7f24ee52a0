//! Leaving: an agent that is gone is said and its node healed, and the chart's hook takes everybody out before anything is
//! deleted. A pod from Weft's time can be stopped when Weft is gone, and new ones start.

use crate::{
    CLIENT, STRANGER, Story, brief,
    nodes::{captured, conflist, delete, make, page, ready},
    screens, step,
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    process::Command,
    time::{Duration, Instant},
};
use weft_tests::{cluster::SYSTEM, family::host};

/// What nodes have that shall have an agent, while one shall have none.
const SELECTED: &str = "e2e.weft.dev/agent";
/// A deletion that waits for anybody takes longer.
const SECONDS: Duration = Duration::from_secs(20);

pub(crate) fn run(story: &Story<'_>) -> Result<()> {
    step("an agent that is missing is an error", || missing(story))?;
    step("a node whose agent is gone is cleaned", || cleaned(story))?;
    step("a pod of Weft's time", || before(story))?;
    step("the chart's hook takes everybody out", || hook(story))?;
    step("uninstall", || story.uninstall())?;
    step("that pod stops, and another starts", || after(story))
}

/// Agents everywhere, or everywhere but on the second node.
fn leave_out(story: &Story<'_>, out: bool) -> Result<()> {
    let value = if out { json!("yes") } else { Value::Null };
    let label = if out { format!("{SELECTED}=yes") } else { format!("{SELECTED}-") };
    story.cluster.kubectl(&["label", "--overwrite", "node", &story.nodes[0], &label])?;
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {SELECTED: value}}}}}).to_string();
    story.cluster.kubectl(&["-n", SYSTEM, "patch", "daemonset", "weft-agent", "-p", &patch])?;
    let rolled = ["-n", SYSTEM, "rollout", "status", "daemonset/weft-agent", "--timeout=110s"];
    story.cluster.kubectl(&rolled)?;
    Ok(())
}

/// E4: "Agent gone from a node with 6 enrolled pods: check 12 checks, 0 errors; status 6/6".
fn missing(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    leave_out(story, true)?;
    cluster.wait("the agent to be gone", || {
        ensure!(!cluster.agents()?.contains_key(node), "still there");
        Ok(())
    })?;
    let said = screens::check(cluster, &[], 1, &[("WEFT-C033", "error", node, "nodeSelector")])?;
    let absent = said.iter().find(|f| f["id"] == "WEFT-C033").context("C033")?;
    let message = absent["message"].as_str().unwrap_or_default();
    ensure!(message.contains(SELECTED) && message.contains("e2e-shop/cart-v2"), "cause and pods: {message}");
    let screen = screens::status(cluster)?;
    let line =
        screen["nodes"].as_array().into_iter().flatten().find(|n| n["node"] == node).context("node")?;
    ensure!(line["captured"] == 0 && line["wanted"] != 0, "{line}");
    let pods = screen["pods"].as_array().into_iter().flatten();
    ensure!(pods.into_iter().any(|p| p["state"] == "unserved" && p["node"] == node), "{screen}");
    println!("{}", cluster.weft_says(&["status"])?.out);
    Ok(())
}

/// Nobody answers for the node's pods until it is cleaned; then they are pods as any other, and joined again later.
fn cleaned(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    let url = story.direct("cart-v2")?;
    let cut_off = cluster.call(STRANGER, &[&url, "--count=3", "--no-keepalive"])?;
    ensure!(cut_off.codes.is_empty(), "with no agent nobody answers: {}", brief(&cut_off));
    let refused = cluster.weft_says(&["node", "clean", &story.nodes[0]])?;
    ensure!(refused.code == 1 && refused.err.contains("an agent serves there"), "{refused:?}");
    let absent = cluster.weft_says(&["node", "clean", node, "--image", "weft.invalid/absent:1"])?;
    ensure!(absent.code == 1 && absent.err.contains("does not run there"), "{absent:?}");
    for time in ["once", "again"] {
        let said = cluster.weft(&["node", "clean", node])?;
        println!("{time}: {said}");
        ensure!(said.contains(&format!("{node}: clean")), "{said}");
    }
    story.clean(node)?;
    let tally = cluster.call(STRANGER, &[&url, "--count=20", "--no-keepalive"])?;
    ensure!(tally.bad() == 0, "a cleaned node's pod answers: {}", brief(&tally));
    leave_out(story, false)?;
    let pod = story.pod_of("cart-v2")?;
    captured(cluster, "e2e-shop", &pod)?;
    cluster.wait("mutual TLS again", || {
        let tally = cluster.call(CLIENT, &[&url, "--count=10", "--no-keepalive"])?;
        ensure!(tally.bad() == 0, "{}", brief(&tally));
        Ok(())
    })
}

/// A pod that the runtime makes by a configuration whose file names us, so that what it keeps of the pod does too.
fn before(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    let file = conflist(cluster, node)?;
    let mut inlined: Value = serde_json::from_str(&cluster.on_node(node, &["cat", &file])?)?;
    inlined["loadOnlyInlinedPlugins"] = true.into();
    let script = "printf %s \"$1\" >\"$2.tmp\" && mv \"$2.tmp\" \"$2\"";
    cluster.on_node(node, &["sh", "-c", script, "sh", &inlined.to_string(), &file])?;
    cluster.wait("the file to name the plugin", || {
        let cni = page(cluster, node)?["cni"].take();
        ensure!(cni["state"] == "installed" && cni["way"] == "conflist", "{cni}");
        Ok(())
    })?;
    cluster.wait("a pod of whose attachment the runtime keeps our entry", || {
        delete(cluster, "e2e-web", "old")?;
        make(cluster, "e2e-web", "old", node)?;
        ready(cluster, "e2e-web", "old")?;
        captured(cluster, "e2e-web", "old")?;
        ensure!(kept(story)?.contains("weft-cni"), "it loads a changed configuration a moment later");
        Ok(())
    })
}

/// The configurations that the runtime keeps of the second node's pods.
fn kept(story: &Story<'_>) -> Result<String> {
    let script = "import base64, glob, json\n\
        for path in glob.glob('/var/lib/cni/results/*'):\n    \
            print(base64.b64decode(json.load(open(path)).get('config') or '').decode())";
    story.cluster.on_node(&story.nodes[1], &["python3", "-c", script])
}

/// Objects of the chart that are hooks, by their weight, as Helm makes them.
fn hooks(image: &str) -> Result<Vec<Value>> {
    let tool =
        std::env::var("WEFT_TEST_RENDER").context("WEFT_TEST_RENDER: run this by ./dev test cluster")?;
    let (name, tag) = image.rsplit_once(':').context("an image with a tag")?;
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/helm/weft");
    let (name, tag) = (format!("image.repository={name}"), format!("image.tag={tag}"));
    let output =
        Command::new(tool).args(["chart", chart, &name, &tag, "uninstall.drainSeconds=5"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let texts: BTreeMap<String, String> = serde_json::from_slice(&output.stdout)?;
    let text = texts.get("uninstall.yaml").context("no template uninstall.yaml")?;
    let (documents, errors) = weft_k8s::yaml::read(text);
    ensure!(errors.is_empty(), "{errors:?}");
    let mut objects: Vec<Value> = documents.into_iter().map(|d| d.value).filter(Value::is_object).collect();
    let weight = |o: &Value| {
        let text = o["metadata"]["annotations"]["helm.sh/hook-weight"].as_str().map(str::parse::<i64>);
        text.and_then(Result::ok).unwrap_or_default()
    };
    objects.sort_by_key(weight);
    Ok(objects)
}

/// What `helm uninstall` does first, with the account and rights of the chart. Long-lived connections end with the drain, and
/// everything of the release is still there for Helm to delete.
fn hook(story: &Story<'_>) -> Result<()> {
    let cluster = story.cluster;
    if !story.has_gateway()? {
        story.gateway()?;
    }
    let load =
        cluster.load(CLIENT, &[&format!("http://{}/", host(&story.web)), "--connections=2", "--rate=20"])?;
    let objects = hooks(&cluster.image)?;
    cluster.create(&objects)?;
    let job = ["-n", SYSTEM, "wait", "--for=condition=Complete", "job/weft-uninstall", "--timeout=110s"];
    let start = Instant::now();
    let done = cluster.kubectl(&job);
    let log = cluster.kubectl(&["-n", SYSTEM, "logs", "job/weft-uninstall"])?;
    println!("{log}");
    done?;
    println!("the hook took {:.1} s", start.elapsed().as_secs_f64());
    ensure!(log.contains("agents are asked to let their pods go") && log.contains("clean"), "{log}");
    let tally = load.finish()?;
    println!("calls meanwhile: {}", brief(&tally));
    ensure!(tally.bad() == 0, "nobody is cut off: {}", brief(&tally));
    let gateway = cluster.json(&["-n", "e2e-web", "get", "gateway", "edge"])?;
    let conditions = gateway["status"]["conditions"].as_array().context("conditions")?;
    ensure!(conditions.iter().all(|c| c["status"] == "Unknown" && c["reason"] == "Pending"), "{gateway}");
    ensure!(gateway["status"]["addresses"].as_array().is_none_or(Vec::is_empty), "{gateway}");
    let route = cluster.json(&["-n", "e2e-web", "get", "httproute", "web"])?;
    ensure!(!route["status"].to_string().contains("weft.dev/gateway-controller"), "{route}");
    let left = [
        "get",
        "services,endpointslices,serviceaccounts",
        "-A",
        "-l",
        "weft.dev/managed-by=weft-controller",
        "-o",
        "name",
    ];
    let left = cluster.kubectl(&left)?;
    ensure!(left.trim().is_empty(), "of Gateways is left: {left}");
    for (what, there) in [("daemonset/weft-agent", true), ("deployment/weft-controller", false)] {
        let found = cluster.kubectl(&["-n", SYSTEM, "get", what, "--ignore-not-found", "-o", "name"])?;
        ensure!(found.trim().is_empty() != there, "{what}: {found}");
    }
    // What the policy `hook-succeeded` does.
    for object in &objects {
        let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default();
        let kind = text("/kind").to_lowercase();
        cluster.kubectl(&["-n", SYSTEM, "delete", &kind, text("/metadata/name")])?;
    }
    Ok(())
}

/// istio.io#16748: pods that were made with the plugin hang in Terminating when it is gone.
fn after(story: &Story<'_>) -> Result<()> {
    let (cluster, node) = (story.cluster, &*story.nodes[1]);
    let kept = kept(story)?;
    ensure!(!kept.contains("weft-cni"), "the runtime still keeps our entry: {kept}");
    let start = Instant::now();
    cluster.kubectl(&["-n", "e2e-web", "delete", "pod", "old", "--timeout=60s"])?;
    ensure!(start.elapsed() < SECONDS, "it took {:?}", start.elapsed());
    println!("the pod of Weft's time was gone in {:.1} s", start.elapsed().as_secs_f64());
    make(cluster, "e2e-web", "new", node)?;
    ready(cluster, "e2e-web", "new")?;
    delete(cluster, "e2e-web", "new")?;
    // The file is as its author, this test, left it.
    let now = cluster.on_node(node, &["cat", &conflist(cluster, node)?])?;
    ensure!(!now.contains("weft"), "{now}");
    let mut original: Value = serde_json::from_str(&now)?;
    original.as_object_mut().context("object")?.remove("loadOnlyInlinedPlugins");
    let script = "printf %s \"$1\" >\"$2.tmp\" && mv \"$2.tmp\" \"$2\"";
    cluster.on_node(node, &["sh", "-c", script, "sh", &original.to_string(), &conflist(cluster, node)?])?;
    Ok(())
}
