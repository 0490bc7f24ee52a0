//! What Weft's own pods say of themselves: memory, CPU, counters.

use super::api::Api;
use anyhow::{Context, Result};
use http::Method;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::task::JoinHandle;

/// How often the pods are asked.
const PACE: Duration = Duration::from_secs(2);
const PODS: &str = "/api/v1/namespaces/weft-system/pods";

/// Series of one pod: the line up to the value.
pub(super) type Series = BTreeMap<String, f64>;

/// One of Weft's pods that run, as it is now.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// `agent n1`, or `controller`, and `controller (leads)`.
    pub(super) who: String,
    pub(super) pod: String,
    pub(super) series: Series,
}

impl Sample {
    /// A series without labels, or with just these; 0 when it is not there.
    pub(super) fn get(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }

    pub(super) fn mib(&self) -> f64 {
        self.get("process_resident_memory_bytes") / f64::from(1 << 20)
    }

    pub(super) fn cpu(&self) -> f64 {
        self.get("process_cpu_seconds_total")
    }
}

/// All agents and controllers that answer.
pub(super) async fn sample(api: &Api) -> Result<Vec<Sample>> {
    let list = api.json(Method::GET, PODS, None).await?;
    let mut out = Vec::new();
    for pod in list["items"].as_array().context("items")? {
        let text =
            |pointer: &str| pod.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let (name, node) = (text("/metadata/name"), text("/spec/nodeName"));
        let part = text("/metadata/labels/app.kubernetes.io~1component");
        if text("/status/phase") != "Running" || !["agent", "controller"].contains(&part.as_str()) {
            continue;
        }
        // One that is just ending does not answer.
        let Some(page) = api.metrics(&name).await else { continue };
        let series = parse(&page);
        let who = match part.as_str() {
            "agent" => format!("agent {node}"),
            _ if series.get("weft_leader") == Some(&1.0) => "controller (leads)".to_owned(),
            _ => "controller".to_owned(),
        };
        out.push(Sample { who, pod: name, series });
    }
    out.sort_by(|a, b| a.who.cmp(&b.who));
    Ok(out)
}

/// Waits until what the pods say is as wished; gives the last samples.
pub(super) async fn wait(api: &Api, what: &str, done: impl Fn(&[Sample]) -> bool) -> Result<Vec<Sample>> {
    let limit = tokio::time::Instant::now() + Duration::from_secs(300);
    loop {
        let samples = sample(api).await?;
        if done(&samples) {
            return Ok(samples);
        }
        anyhow::ensure!(tokio::time::Instant::now() < limit, "waited in vain for: {what}");
        tokio::time::sleep(PACE / 4).await;
    }
}

fn parse(page: &str) -> Series {
    let lines = page.lines().filter(|l| !l.starts_with('#'));
    lines
        .filter_map(|l| l.rsplit_once(' '))
        .filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?)))
        .collect()
}

/// The most memory that each pod had while this lived.
pub(super) struct Peaks {
    peaks: Arc<Mutex<BTreeMap<String, f64>>>,
    task: JoinHandle<()>,
}

impl Peaks {
    /// Begins to look; called inside the runtime.
    pub(super) fn start(api: Api) -> Self {
        let peaks = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = peaks.clone();
        let task = tokio::spawn(async move {
            loop {
                for sample in sample(&api).await.unwrap_or_default() {
                    let mut peaks = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    let peak: &mut f64 = peaks.entry(sample.pod.clone()).or_default();
                    *peak = peak.max(sample.mib());
                }
                tokio::time::sleep(PACE).await;
            }
        });
        Self { peaks, task }
    }

    /// MiB by pod.
    pub(super) fn finish(self) -> BTreeMap<String, f64> {
        self.task.abort();
        self.peaks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
