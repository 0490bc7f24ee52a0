//! Thousands of routes and Services on a real cluster: are all statuses right, how soon, and at what cost?

mod api;
mod effect;
mod pods;
mod report;
mod track;
mod world;
mod writes;

use crate::cluster::{Cluster, SYSTEM};
use anyhow::{Context, Result, ensure};
use api::{Api, GATEWAY};
use clap::Parser;
use effect::Live;
use http::Method;
use pods::{Peaks, Sample};
use report::Figures;
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use track::Tracker;
use world::{MARK, Size, World};
use writes::Mark;

/// Thousands of routes and Services on a real cluster.
#[derive(Clone, Debug, Parser)]
#[command(name = "weft-scale", after_help = "Run by `./dev scale`, which brings a cluster up for it.")]
pub struct Args {
    /// HTTPRoutes
    #[arg(long, default_value_t = 5_000)]
    routes: usize,
    /// Services, each with an EndpointSlice
    #[arg(long, default_value_t = 2_000)]
    services: usize,
    /// Namespaces
    #[arg(long, default_value_t = 20)]
    namespaces: usize,
    /// Changes whose effect is waited for
    #[arg(long, default_value_t = 200)]
    edits: u64,
    /// Fail when statuses take longer than 60 s after the last object
    #[arg(long)]
    assert_time: bool,
    /// Leave Weft installed
    #[arg(long)]
    keep: bool,
    /// Said in the report
    #[arg(long, default_value = "")]
    commit: String,
    /// Where the report goes; `-` prints it only
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/SCALE.md"))]
    out: PathBuf,
}

/// What is asserted with `--assert-time`.
const ENOUGH: Duration = Duration::from_secs(60);
/// Free for Gateways on the test bed (its README).
const POOL: &str = "10.90.130.1-10.90.130.99";
/// Objects to measure the API server alone with.
const ALONE: usize = 1_000;
/// Kinds whose statuses are compared at the beginning of a term, of the experimental channel.
const KINDS: f64 = 9.0;

/// Runs everything and writes the report.
///
/// # Errors
/// What keeps it from measuring. What it finds wrong is in the report, and an exit code.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        args.namespaces >= 2 && args.services >= args.namespaces,
        "at least two namespaces with a Service each"
    );
    let cluster = Cluster::from_env()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let api = runtime.block_on(Api::new(cluster.clone()))?;
    let size = Size { namespaces: args.namespaces, services: args.services, routes: args.routes };
    let world = Arc::new(World::new(size, cluster.is_bed().then_some(POOL)));
    let scale = Scale { args, cluster: &cluster, runtime: &runtime, api: &api, world };
    let mut figures = Figures::default();
    let result = scale.all(&mut figures);
    if result.is_err() {
        eprintln!("{}", cluster.diagnosis());
    }
    result?;
    let text = report::markdown(&figures, args);
    println!("{text}");
    if args.out.as_os_str() != "-" {
        std::fs::write(&args.out, &text).with_context(|| args.out.display().to_string())?;
    }
    let failed: Vec<_> = figures.checks.iter().filter(|c| !c.holds).collect();
    failed.iter().for_each(|c| eprintln!("FAILED: {}: {}", c.what, c.found));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Scale<'a> {
    args: &'a Args,
    cluster: &'a Cluster,
    runtime: &'a Runtime,
    api: &'a Api,
    world: Arc<World>,
}

impl Scale<'_> {
    fn all(&self, figures: &mut Figures) -> Result<()> {
        self.clear()?;
        let installed =
            !self.cluster.kubectl(&["get", "namespace", SYSTEM, "--ignore-not-found"])?.is_empty();
        if !installed {
            step("the API server alone", || self.alone(figures))?;
            let settings = ["--set", "agent.drainSeconds=10"];
            let install = [&["install", "--image", &self.cluster.image][..], &settings].concat();
            step("install", || self.cluster.weft(&install).map(drop))?;
        }
        let live = step("pods that call each other", || Live::begin(self.cluster, self.runtime, self.api))?;
        figures.empty = self.sample()?;
        figures.effect_before =
            step("effect of changes, without much else", || live.route_edits(self.args.edits))?;
        step("namespaces, Gateways, Services", || self.services(figures))?;
        step("routes", || self.routes(figures))?;
        figures.effect = step("effect of changes, beside all", || live.route_edits(self.args.edits))?;
        figures.effect_endpoints =
            step("effect of endpoints, beside all", || live.endpoint_edits(self.args.edits))?;
        step("controller restarted", || self.restart(figures))?;
        figures.full = self.sample()?;
        step("all removed", || self.remove(figures))?;
        drop(live);
        self.clear()?;
        if !installed && !self.args.keep {
            step("uninstall", || self.cluster.weft(&["uninstall", "--purge"]).map(drop))?;
        }
        Ok(())
    }

    fn sample(&self) -> Result<Vec<Sample>> {
        self.runtime.block_on(pods::sample(self.api))
    }

    /// What the API server takes by itself: as many creations and status writes as it does, with nobody else around.
    fn alone(&self, figures: &mut Figures) -> Result<()> {
        self.runtime.block_on(async {
            let name = "scale-alone";
            let body = json!({"metadata": {"name": name, "labels": {MARK: "yes"}}});
            self.api.create(&[api::Object::new("/api/v1", "namespaces", body)]).await?;
            let mut routes = self.world.route_objects();
            routes.truncate(ALONE);
            for route in &mut routes {
                route.body["metadata"]["namespace"] = json!(name);
                route.path = format!("{GATEWAY}/namespaces/{name}/httproutes");
            }
            let created = self.api.create(&routes).await?;
            let patches: Vec<(String, Value)> = routes.iter().map(status_of).collect();
            let patched = self.api.patch(&patches).await?;
            let rate = |took: Duration| routes.len() as f64 / took.as_secs_f64();
            (figures.alone_creates, figures.alone_patches) = (rate(created), rate(patched));
            anyhow::Ok(())
        })?;
        self.clear()
    }

    fn services(&self, figures: &mut Figures) -> Result<()> {
        let before = self.sample()?;
        let start = Instant::now();
        self.runtime.block_on(async {
            self.api.create(&self.world.namespaces).await?;
            self.api.create(&self.world.gateways).await?;
            track::gateways(self.api, if self.cluster.is_bed() { "Programmed" } else { "Accepted" }).await?;
            figures.services_created = self.api.create(&self.world.services).await?;
            let last = Instant::now();
            let there =
                |sample: &Sample, want: f64| sample.get("weft_watch_objects{kind=\"Service\"}") >= want;
            let count = self.args.services as f64;
            pods::wait(self.api, "every Service to be known", |all| all.iter().all(|s| there(s, count)))
                .await?;
            figures.services_known = last.elapsed();
            anyhow::Ok(())
        })?;
        figures.cost_of_services = report::cost(&before, &self.sample()?, start.elapsed());
        Ok(())
    }

    /// The test itself.
    fn routes(&self, figures: &mut Figures) -> Result<()> {
        let mark = self.cluster.audit_log().map(Mark::now).transpose()?;
        let before = self.sample()?;
        let start = Instant::now();
        self.runtime.block_on(async {
            let tracker = Tracker::start(self.api.clone(), self.world.clone());
            let peaks = Peaks::start(self.api.clone());
            figures.routes_created = self.api.create(&self.world.route_objects()).await?;
            let last = Instant::now();
            figures.right_at_last = tracker.right();
            let (complete, exact) =
                tokio::try_join!(tracker.finish(last), track::exact(self.api, &self.world, last))?;
            (figures.complete, figures.attached) = (complete, exact);
            self.quiet().await?;
            figures.peaks = peaks.finish();
            anyhow::Ok(())
        })?;
        figures.loaded = self.sample()?;
        figures.cost_of_routes = report::cost(&before, &figures.loaded, start.elapsed());
        figures.check("every status is complete and correct", self.runtime.block_on(self.verify())?);
        figures.found(
            "attachedRoutes is exact on every listener",
            true,
            format!("{:?}", self.world.attached()),
        );
        figures.sorts = self.world.sorts();
        if self.args.assert_time {
            let took = figures.complete.max(figures.attached);
            figures.found("within 60 s", took <= ENOUGH, format!("{:.1} s", took.as_secs_f64()));
        }
        if let Some(mark) = mark {
            let writes = writes::statuses(&mark.writes()?);
            let routes = writes.get("httproutes/status").copied().unwrap_or_default();
            let one = routes.most == 1 && routes.objects == self.args.routes as u64;
            figures.found("one status write per route", one, format!("{routes:?}"));
            figures.writes = writes;
        }
        Ok(())
    }

    /// Waits until the leader has nothing to write.
    async fn quiet(&self) -> Result<()> {
        let idle = |s: &Sample| s.get("weft_status_queued") + s.get("weft_status_running") == 0.0;
        let done = |all: &[Sample]| all.iter().filter(|s| s.get("weft_leader") == 1.0).any(&idle);
        pods::wait(self.api, "the status writer to be done", done).await.map(drop)
    }

    /// Everything once more, from one list.
    async fn verify(&self) -> Result<Result<(), String>> {
        let list = self.api.json(Method::GET, &format!("{GATEWAY}/httproutes"), None).await?;
        let items = list["items"].as_array().context("items")?;
        let mut found = 0;
        for item in items {
            let key = world::key(item);
            let Some(route) = self.world.routes.get(&key) else { continue };
            found += 1;
            if let Some(why) = route.wrong(item) {
                return Ok(Err(format!("{key}: {why}")));
            }
        }
        let all = self.world.routes.len();
        Ok(if found == all { Ok(()) } else { Err(format!("{found} of {all} are there")) })
    }

    /// The next leader finds everything as it should be and writes nothing.
    fn restart(&self, figures: &mut Figures) -> Result<()> {
        let mark = self.cluster.audit_log().map(Mark::now).transpose()?;
        let before = self.sample()?;
        let old: Vec<String> = before.iter().map(|s| s.pod.clone()).collect();
        self.cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "deployment/weft-controller"])?;
        let start = Instant::now();
        self.cluster.kubectl(&[
            "-n",
            SYSTEM,
            "rollout",
            "status",
            "deployment/weft-controller",
            "--timeout=110s",
        ])?;
        let compared = |s: &Sample| {
            !old.contains(&s.pod)
                && s.get("weft_leader") == 1.0
                && s.get("weft_status_work_total{what=\"surveys\"}") >= KINDS
                && s.get("weft_status_queued") + s.get("weft_status_running") == 0.0
        };
        self.runtime.block_on(pods::wait(self.api, "a new leader that has compared everything", |all| {
            all.iter().any(compared)
        }))?;
        figures.restarted = start.elapsed();
        // What it might yet do: Gateways wait for agents for ten seconds.
        std::thread::sleep(Duration::from_secs(15));
        if let Some(mark) = mark {
            let writes: Vec<_> = writes::statuses(&mark.writes()?).into_iter().collect();
            figures.found("no status write by a new leader", writes.is_empty(), format!("{writes:?}"));
        }
        figures.check("every status is still correct", self.runtime.block_on(self.verify())?);
        Ok(())
    }

    fn remove(&self, figures: &mut Figures) -> Result<()> {
        let start = Instant::now();
        self.runtime.block_on(async {
            self.api.clear(&self.world.collections()).await?;
            self.api.delete(&self.world.paths_of_services()).await?;
            figures.removed = start.elapsed();
            let last = Instant::now();
            let empty = &figures.empty;
            let shrunk = |s: &Sample| {
                let before = empty.iter().find(|e| e.who == s.who);
                ["gateways", "frontends", "backends"].iter().all(|what| {
                    let series = format!("weft_config_objects{{what=\"{what}\"}}");
                    before.is_none_or(|b| s.get(&series) <= b.get(&series))
                })
            };
            let all = pods::wait(self.api, "every Config to shrink", |all| all.iter().all(shrunk)).await?;
            figures.shrunk = last.elapsed();
            let found: Vec<_> = all.iter().map(|s| format!("{} {:.0} MiB", s.who, s.mib())).collect();
            figures.found("every Config shrinks again", true, found.join(", "));
            anyhow::Ok(())
        })?;
        // Memory is given back a little later than it is freed.
        std::thread::sleep(Duration::from_secs(10));
        figures.removed_samples = self.sample()?;
        Ok(())
    }

    /// Takes away what is there, or what an earlier run has left.
    fn clear(&self) -> Result<()> {
        self.cluster.kubectl(&["delete", "namespace", "-l", MARK, "--ignore-not-found", "--wait=false"])?;
        let start = Instant::now();
        loop {
            let left = self.cluster.kubectl(&["get", "namespace", "-l", MARK, "-o", "name"])?;
            if left.trim().is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < Duration::from_secs(600), "namespaces that do not go: {left}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// A status as a controller would write it.
fn status_of(route: &api::Object) -> (String, Value) {
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "True", "reason": "Accepted", "message": "The route is attached.",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let entry = json!({
        "controllerName": "weft.dev/scale-test",
        "parentRef": route.body["spec"]["parentRefs"][0],
        "conditions": [condition("Accepted"), condition("ResolvedRefs")],
    });
    (format!("{}/{}/status", route.path, route.name()), json!({"status": {"parents": [entry]}}))
}

fn step<T>(name: &str, run: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("== {name}");
    let start = Instant::now();
    let result = run().with_context(|| format!("step: {name}"));
    println!("   {:.1} s", start.elapsed().as_secs_f64());
    result
}
