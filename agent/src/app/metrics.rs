//! What is counted outside the data plane, in the Prometheus formats.

use super::{node::NodePage, world::Seen};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{Display, Write as _},
    sync::Arc,
};
use tokio::sync::watch;
use weft_control::ControlServer;
use weft_core::expiry::Ending;
use weft_inpod::Mechanism;
use weft_k8s::{
    WatchState,
    events::EventCounts,
    status::{Counted, Progress},
};
use weft_proxy::budgets::Reached;

/// Writes what a process counts beside the data plane.
pub(super) type More = Box<dyn Fn(&mut Text) + Send + Sync>;

/// Where OpenMetrics ends.
const END: &str = "# EOF\n";

/// Lines of metrics.
pub(super) struct Text {
    out: String,
    open: bool,
}

/// Appends to what was rendered; OpenMetrics keeps its end at the end.
pub(super) fn append(body: &mut String, open: bool, more: &More) {
    let mut text = Text { out: String::new(), open };
    more(&mut text);
    let ended = body.ends_with(END);
    if ended {
        body.truncate(body.len() - END.len());
    }
    body.push_str(&text.out);
    if ended {
        body.push_str(END);
    }
}

impl Text {
    /// A counter; `name` without `_total`. `label` names what tells the values apart.
    fn counter(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        let total = format!("{name}_total");
        self.family(if self.open { name } else { &total }, help, "counter");
        for (what, value) in values {
            self.line(&total, &[(label, what)], value);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, help, "gauge");
        self.line(name, &[], &value);
    }

    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: &dyn Display) {
        let one = |(label, value): &(&str, &str)| {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            format!("{label}=\"{value}\"")
        };
        let labels: Vec<String> = labels.iter().filter(|(label, _)| !label.is_empty()).map(one).collect();
        let braced = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.out, "{name}{braced} {value}");
    }
}

/// When the certificates that are shown here end, in Unix seconds: of identities, and of the Secrets of Gateways' listeners.
pub(super) fn certificates(identities: &[(String, i64)], listeners: &BTreeSet<Ending>, out: &mut Text) {
    let name = "weft_certificate_expiration_timestamp_seconds";
    out.family(
        name,
        "When a certificate ends, Unix time: of an identity, or of a Gateway's listener.",
        "gauge",
    );
    for (identity, end) in identities {
        out.line(name, &[("identity", identity)], end);
    }
    for Ending { gateway, secret, end } in listeners {
        let labels = [
            ("gateway_namespace", &*gateway.namespace),
            ("gateway_name", &*gateway.name),
            ("secret_namespace", &*secret.namespace),
            ("secret_name", &*secret.name),
        ];
        out.line(name, &labels, end);
    }
}

/// What the controller counts.
pub(super) struct Controller {
    pub(super) progress: Arc<Progress>,
    pub(super) events: Arc<EventCounts>,
    pub(super) server: ControlServer,
    pub(super) watched: watch::Receiver<Arc<WatchState>>,
}

/// The controller's metrics.
pub(super) fn controller(counted: &Controller, out: &mut Text) {
    watches(&counted.watched.borrow(), out);
    statuses(&counted.progress, out);
    let events = &counted.events;
    out.counter(
        "weft_events",
        "Events of the Kubernetes API by what became of them.",
        "result",
        &[
            ("sent", events.sent()),
            ("counted", events.counted()),
            ("dropped", events.dropped()),
            ("failed", events.failed()),
        ],
    );
    calls(&counted.server.counters().into_iter().collect::<Vec<_>>(), out);
    let agents = counted.server.agents();
    let connected = agents.borrow().values().filter(|agent| agent.gone.is_none()).count();
    out.gauge("weft_agents_connected", "Agents whose stream stands.", connected);
}

/// `signed`, `refused_<reason>` and the like, as the server has them.
fn calls(counters: &[(String, u64)], out: &mut Text) {
    let of = |prefix: &str| -> Vec<(&str, u64)> {
        counters.iter().filter_map(|(word, n)| Some((word.strip_prefix(prefix)?, *n))).collect()
    };
    let (refused, dropped) = (of("refused_"), of("dropped_"));
    let signed = counters.iter().find(|(word, _)| word == "signed").map_or(0, |(_, n)| *n);
    out.counter("weft_certificates_signed", "Certificates signed.", "", &[("", signed)]);
    out.counter("weft_agent_calls_refused", "Calls of agents refused, by reason.", "reason", &refused);
    out.counter(
        "weft_agent_streams_dropped",
        "Streams of agents ended by us, by reason.",
        "reason",
        &dropped,
    );
}

fn statuses(progress: &Progress, out: &mut Text) {
    let word = |what: Counted| format!("{what:?}").to_ascii_lowercase();
    let counts: Vec<(String, u64)> = Counted::ALL.iter().map(|c| (word(*c), progress.count(*c))).collect();
    let counts: Vec<(&str, u64)> = counts.iter().map(|(word, n)| (word.as_str(), *n)).collect();
    out.counter("weft_status_work", "What the status writer has done.", "what", &counts);
    out.gauge("weft_status_queued", "Statuses that wait to be compared or written.", progress.queued());
    out.gauge("weft_status_running", "Statuses being compared or written.", progress.running());
    let lag = progress.lag().as_secs_f64();
    out.gauge("weft_status_lag_seconds", "How long the oldest waiting status has waited.", lag);
    out.gauge("weft_leader", "Whether this replica leads.", u8::from(progress.leads()));
}

/// The agent's metrics, beside the data plane's.
pub(super) fn agent(page: &NodePage, out: &mut Text) {
    watches(&page.watched.borrow(), out);
    let cni = page.plugin.report();
    out.family("weft_cni_state", "How the CNI plugin stands on this node.", "gauge");
    for state in ["installed", "waiting", "failed", "removed"] {
        out.line("weft_cni_state", &[("state", state)], &u8::from(cni.state == state));
    }
    let reinserted = page.plugin.reinserted();
    out.counter("weft_cni_reinsertions", "How often the entry was put back.", "", &[("", reinserted)]);
    let counts = *page.on_node.counts.borrow();
    out.family("weft_node_pods", "Pods of this node by where they stand.", "gauge");
    let missing = page.on_node.missing.borrow().len();
    for (state, n) in [("captured", counts.captured), ("pending", counts.pending), ("failed", missing)] {
        out.line("weft_node_pods", &[("state", state)], &n);
    }
    out.family(
        "weft_node_capture",
        "How pods are captured: redirect where the kernel lacks nft_tproxy.",
        "gauge",
    );
    let mechanism = *page.on_node.mechanism.borrow();
    for known in Mechanism::ALL {
        let value = u8::from(mechanism == Some(known));
        out.line("weft_node_capture", &[("mechanism", known.name())], &value);
    }
    out.gauge("weft_holder_connected", "Whether the holder answers.", u8::from(counts.holder));
    let connected = u8::from(page.controller.borrow().connected);
    out.gauge("weft_controller_connected", "Whether the stream to the controller stands.", connected);
    let callers = page.shared.plaintext.list().len();
    out.gauge("weft_plaintext_callers", "Pairs of caller and permissive pod seen in clear.", callers);
    let forgotten = page.shared.plaintext.forgotten();
    out.counter(
        "weft_plaintext_callers_forgotten",
        "Pairs forgotten for want of room.",
        "",
        &[("", forgotten)],
    );
}

/// Budgets that were reached: of the process, by their names, and of workloads, with theirs.
pub(super) fn budgets(own: &BTreeMap<&'static str, u64>, workloads: &[Reached], out: &mut Text) {
    const NAME: &str = "weft_budget_reached";
    let help = "What was refused or displaced because a budget was used up (docs/budgets.md).";
    out.family(if out.open { NAME } else { "weft_budget_reached_total" }, help, "counter");
    for (budget, times) in own {
        out.line("weft_budget_reached_total", &[("budget", budget)], times);
    }
    for Reached { budget, by, times } in workloads {
        let labels = [
            ("budget", budget.name),
            ("kind", by.kind),
            ("namespace", &*by.key.namespace),
            ("name", &*by.key.name),
        ];
        out.line("weft_budget_reached_total", &labels, times);
    }
}

/// What the process itself costs, and what changes of the world do.
pub(super) fn process(seen: &Seen, out: &mut Text) {
    let cost = &seen.cost;
    out.counter("weft_config_updates", "Changes of the world that were taken in.", "", &[("", cost.updates)]);
    out.family(
        if out.open { "weft_config_update_seconds" } else { "weft_config_update_seconds_total" },
        "Time that taking them in took, by stage.",
        "counter",
    );
    for (stage, took) in [("resolve", cost.resolving), ("tell", cost.telling), ("serve", cost.serving)] {
        out.line("weft_config_update_seconds_total", &[("stage", stage)], &took.as_secs_f64());
    }
    let config = &seen.config;
    out.gauge("weft_config_version", "Version of the Config in effect.", config.version);
    out.family("weft_config_objects", "What is in the Config in effect.", "gauge");
    let objects = [
        ("gateways", config.gateways.len()),
        ("frontends", config.frontends.len()),
        ("workloads", config.workloads.len()),
        ("backends", config.endpoints.len()),
    ];
    objects.iter().for_each(|(what, n)| out.line("weft_config_objects", &[("what", what)], n));
    // The names that client libraries of Prometheus give them.
    if let Some((resident, cpu)) = kernel_says() {
        out.gauge("process_resident_memory_bytes", "Resident memory.", resident);
        out.family(
            if out.open { "process_cpu_seconds" } else { "process_cpu_seconds_total" },
            "User and system time.",
            "counter",
        );
        out.line("process_cpu_seconds_total", &[], &cpu);
    }
}

/// Resident bytes, and seconds of CPU.
fn kernel_says() -> Option<(u64, f64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the name, which may hold spaces: state is field 3, utime and stime are 14 and 15 of proc(5).
    let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map_while(|t| t.parse::<f64>().ok());
    // 100 ticks a second on every Linux that Rust runs on.
    let cpu = (times.next()? + times.next()?) / 100.0;
    Some((resident.trim().parse::<u64>().ok()? * 1024, cpu))
}

fn watches(state: &WatchState, out: &mut Text) {
    let kinds = || state.kinds.iter().filter(|(_, kind)| kind.version.is_some());
    out.family("weft_watch_objects", "Objects in effect, by kind.", "gauge");
    kinds().for_each(|(k, s)| out.line("weft_watch_objects", &[("kind", k.as_str())], &s.objects));
    out.family("weft_watch_synced", "Whether changes of a kind arrive.", "gauge");
    kinds().for_each(|(k, s)| out.line("weft_watch_synced", &[("kind", k.as_str())], &u8::from(s.synced)));
    let values: Vec<(&str, u64)> = kinds().map(|(k, s)| (k.as_str(), s.failures)).collect();
    out.counter("weft_watch_failures", "How often list or watch failed, by kind.", "kind", &values);
    out.gauge("weft_watch_findings", "What is wrong with watches and versions.", state.findings().len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_core::model::ObjectKey;

    /// E10: the family had no sample ever.
    #[test]
    fn certificates_tell_when_they_end() {
        let identities = [("spiffe://cluster.local/ns/a/sa/b".to_owned(), 1_700_000_000)];
        let key = |name| ObjectKey::new("shop", name);
        let ending = Ending { gateway: key("edge"), secret: key("cert"), end: 1_800_000_000 };
        let mut text = Text { out: String::new(), open: false };
        certificates(&identities, &BTreeSet::from([ending]), &mut text);
        let lines: Vec<&str> = text.out.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "weft_certificate_expiration_timestamp_seconds{identity=\"spiffe://cluster.local/ns/a/sa/b\"} 1700000000",
                "weft_certificate_expiration_timestamp_seconds{gateway_namespace=\"shop\",gateway_name=\"edge\",\
                 secret_namespace=\"shop\",secret_name=\"cert\"} 1800000000",
            ]
        );
    }

    #[test]
    fn counters_and_gauges_in_both_formats() {
        let check = |open: bool, before: &str, expected: &str| {
            let more: More = Box::new(|out| {
                calls(&[("refused_bad\"token".into(), 2), ("signed".into(), 3)], out);
                out.gauge("weft_leader", "Leads.", 1);
            });
            let mut body = before.to_owned();
            append(&mut body, open, &more);
            assert_eq!(body, expected);
        };
        let lines = |family: &str| {
            format!(
                "# HELP weft_certificates_signed{family} Certificates signed.\n\
                 # TYPE weft_certificates_signed{family} counter\nweft_certificates_signed_total 3\n\
                 # HELP weft_agent_calls_refused{family} Calls of agents refused, by reason.\n\
                 # TYPE weft_agent_calls_refused{family} counter\n\
                 weft_agent_calls_refused_total{{reason=\"bad\\\"token\"}} 2\n\
                 # HELP weft_agent_streams_dropped{family} Streams of agents ended by us, by reason.\n\
                 # TYPE weft_agent_streams_dropped{family} counter\n\
                 # HELP weft_leader Leads.\n# TYPE weft_leader gauge\nweft_leader 1\n"
            )
        };
        check(false, "a 1\n", &format!("a 1\n{}", lines("_total")));
        check(true, "a 1\n# EOF\n", &format!("a 1\n{}# EOF\n", lines("")));
    }
}
